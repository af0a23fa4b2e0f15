//! Retry rule: whether a request may be sent again after the backend closed the connection without a response. It knows
//! nothing about endpoints or pools.
//!
//! After a failed connection attempt nothing was sent, so the request is not retried but sent to a different endpoint:
//! see `UpstreamClient::connect`. A request with a renewed key is sent again in `gateway/send.rs`.

use std::time::Duration;

use http::Method;

use crate::http::h1::head::Framing;
use crate::upstream::UpstreamError;
use crate::upstream::connection::ACKNOWLEDGED_AFTER;
use crate::upstream::exchange::Upload;

/// How a request is sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// No byte of it was written: on the next idle connection, and if none is left, on a new one.
    OnAnyConnection,
    /// The backend may have received it: once, on a new connection.
    OnNewConnection,
}

/// Decides whether a request is sent again after this error on a reused connection, `elapsed` after it was sent. `None`:
/// it is not.
///
/// A backend may close an idle connection at the moment at which a request is sent on it. Other errors, and any error
/// on a new connection, have other causes, which a retry does not remove. A connection that is closed later was not
/// idle: a proxy before the backend has given up on a long query, which still runs, or the query has ended the process.
pub fn decide_retry(error: &UpstreamError, upload: &Upload, elapsed: Duration) -> Option<Retry> {
    match error {
        UpstreamError::Closed(_) if upload.is_unsent() => Some(Retry::OnAnyConnection),
        UpstreamError::Closed(_) if upload.can_rewind() && elapsed < ACKNOWLEDGED_AFTER => Some(Retry::OnNewConnection),
        _ => None,
    }
}

/// Returns whether a request may be sent again although the backend may have executed it.
///
/// RFC 9110, section 9.2.2: a proxy must not automatically retry requests with a method that is not idempotent. This
/// rule is stricter: only GET and HEAD, which are safe (section 9.2.1), and only without a body, because a body is
/// streamed and not kept.
pub fn is_repeatable(method: &Method, framing: Framing) -> bool {
    framing == Framing::None && matches!(*method, Method::GET | Method::HEAD)
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::task::{Context, Waker};

    use super::*;
    use crate::upstream::{InvalidResponse, OutgoingMessage, RequestBody};

    fn upload(method: Method) -> Upload {
        let head = b"GET / HTTP/1.1\r\nhost: ".to_vec();
        let host_offset = Some(head.len());
        Upload::new(OutgoingMessage { method, head, host_offset, body: RequestBody::empty() }, "b")
    }

    fn sent(mut upload: Upload) -> Upload {
        let cx = &mut Context::from_waker(Waker::noop());
        assert!(upload.poll(&mut tokio::io::sink(), cx, &mut false).is_ready());
        upload
    }

    fn decide(error: &UpstreamError, upload: &Upload) -> Option<Retry> {
        decide_retry(error, upload, Duration::ZERO)
    }

    fn closed() -> UpstreamError {
        UpstreamError::Closed(io::ErrorKind::UnexpectedEof.into())
    }

    #[test]
    fn only_get_and_head_without_a_body_are_repeatable() {
        assert!(is_repeatable(&Method::GET, Framing::None));
        assert!(is_repeatable(&Method::HEAD, Framing::None));
        assert!(!is_repeatable(&Method::GET, Framing::Length(1)));
        assert!(!is_repeatable(&Method::GET, Framing::Chunked));
        for method in [Method::POST, Method::PUT, Method::DELETE, Method::PATCH, Method::OPTIONS] {
            assert!(!is_repeatable(&method, Framing::None), "{method}");
        }
    }

    #[test]
    fn an_unsent_request_is_retried_and_a_sent_one_once_if_it_is_repeatable() {
        for method in [Method::GET, Method::POST] {
            assert_eq!(decide(&closed(), &upload(method)), Some(Retry::OnAnyConnection));
        }
        let mut get = sent(upload(Method::GET));
        assert_eq!(decide(&closed(), &get), Some(Retry::OnNewConnection));
        get.rewind();
        assert_eq!(decide(&closed(), &sent(get)), None, "a second time");
        assert_eq!(decide(&closed(), &sent(upload(Method::POST))), None);
    }

    #[test]
    fn a_request_that_the_backend_had_for_a_while_is_not_retried() {
        let decide = |seconds| decide_retry(&closed(), &sent(upload(Method::GET)), Duration::from_secs(seconds));
        assert_eq!(decide(9), Some(Retry::OnNewConnection), "also after `TCP_USER_TIMEOUT`");
        assert_eq!(decide(10), None);
        let unsent = decide_retry(&closed(), &upload(Method::GET), Duration::from_secs(10));
        assert_eq!(unsent, Some(Retry::OnAnyConnection));
    }

    #[test]
    fn only_a_closed_connection_is_retried() {
        let invalid = UpstreamError::Invalid(InvalidResponse("no status"));
        for error in [UpstreamError::ResponseTimeout, UpstreamError::UnexpectedUpgrade, invalid] {
            assert_eq!(decide(&error, &sent(upload(Method::GET))), None, "{error}");
        }
    }
}
