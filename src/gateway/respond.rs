//! What the client gets: the backend's answer without what concerned that connection only, or one of our own.

use std::pin::Pin;
use std::task::{Context as TaskContext, Poll};

use bytes::Bytes;
use http::header::{CONNECTION, SET_COOKIE};
use http::{HeaderMap, HeaderName, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};

use crate::gateway::access_log::AccessLine;
use crate::gateway::context::REQUEST_ID;
use crate::upstream;

/// An answer that stands, before the access line is tied to its body.
pub struct Answer {
    head: Response<()>,
    body: Source,
}

enum Source {
    Own(Option<Bytes>),
    Upstream(Box<upstream::ResponseBody>),
}

impl Answer {
    /// The backend's.
    pub fn from_upstream(response: Response<upstream::ResponseBody>) -> Answer {
        let (mut head, body) = response.into_parts();
        remove_hop_by_hop(&mut head.headers);
        Answer { head: Response::from_parts(head, ()), body: Source::Upstream(Box::new(body)) }
    }

    /// Without the cookies that the backend sets.
    ///
    /// SECURITY: for answers to a key that is not the client's: a session that the backend began for that key would
    /// outlive the gateway's judgement in the client's hands.
    pub fn without_cookies(mut self) -> Answer {
        self.head.headers_mut().remove(SET_COOKIE);
        self
    }

    /// One of our own.
    pub fn own(status: StatusCode, fields: HeaderMap, body: Bytes) -> Answer {
        let mut head = Response::new(());
        *head.status_mut() = status;
        *head.headers_mut() = fields;
        Answer { head, body: Source::Own(Some(body)) }
    }

    /// Ties the access line to the body, whose end writes it.
    pub fn observed(mut self, mut line: Box<AccessLine>) -> Response<ObservedBody> {
        line.head_is_ready(self.head.status());
        self.head.headers_mut().insert(REQUEST_ID, line.context().request_id.clone());
        self.head.map(|()| ObservedBody { source: self.body, line })
    }
}

/// RFC 9110 section 7.6.1, in an answer.
fn remove_hop_by_hop(fields: &mut HeaderMap) {
    let named: Vec<_> = fields.get_all(CONNECTION).iter().cloned().collect();
    for value in named {
        for option in value.as_bytes().split(|byte| *byte == b',') {
            if let Ok(name) = HeaderName::from_bytes(option.trim_ascii()) {
                // A backend cannot take the length or the type from its answer by naming them.
                if !matches!(name.as_str(), "content-length" | "content-type" | "cache-control") {
                    fields.remove(name);
                }
            }
        }
    }
    for name in [
        "connection",
        "proxy-connection",
        "keep-alive",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "proxy-authenticate",
    ] {
        fields.remove(name);
    }
}

/// The body of every answer. When it is dropped, read to its end or not, the access line is written.
pub struct ObservedBody {
    source: Source,
    line: Box<AccessLine>,
}

impl Body for ObservedBody {
    type Data = Bytes;
    type Error = upstream::body::ResponseBodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut TaskContext<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let polled = match &mut self.source {
            Source::Own(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Source::Upstream(body) => Pin::new(body).poll_frame(cx),
        };
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                let bytes = frame.data_ref().map_or(0, Bytes::len);
                self.line.sent += bytes as u64;
            }
            Poll::Ready(Some(Err(_))) => self.line.reason = "upstream_body_broken",
            Poll::Ready(None) => self.line.complete = true,
            Poll::Pending => {}
        }
        if self.is_end_stream() {
            self.line.complete = true;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Own(bytes) => bytes.is_none(),
            Source::Upstream(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Own(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, Bytes::len) as u64),
            Source::Upstream(body) => body.size_hint(),
        }
    }
}
