//! The body of a response that begins before the backend's: one blank per interval until the JSON arrives
//! (`response_keepalive` of a route). JSON may begin with blanks (RFC 8259 section 2), so clients read it unmodified.
//!
//! Load balancers close a connection on which nothing is sent for a minute; queries take longer. The price is that the
//! status was sent before it was known: a failure can only abort the body.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Method, StatusCode};
use http_body::{Body, Frame};
use tokio::time::Sleep;

use crate::gateway::recent_rejections::RejectionRecorder;
use crate::gateway::rejection::Rejection;
use crate::http::headers::{HeaderName, Headers};
use crate::http::media_type::essence;
use crate::upstream::{ResponseBody, ResponseBodyError, UpstreamResponse};

/// An exchange with the backend that owns everything it needs.
pub type PendingExchange = Pin<Box<dyn Future<Output = Result<UpstreamResponse, Rejection>>>>;

/// The media type that the head of the response has announced.
pub const MEDIA_TYPE: &[u8] = b"application/json";

/// A body with blanks before the backend's JSON.
pub struct PaddedBody {
    state: PaddedBodyState,
    interval: Duration,
    /// When the request was sent to the backend.
    pub sent_at: Instant,
    /// Records a rejection that the client cannot receive any more.
    pub recorder: RejectionRecorder,
}

enum PaddedBodyState {
    /// The next blank is due when the timer ends.
    Waiting(PendingExchange, Pin<Box<Sleep>>),
    Upstream(Box<ResponseBody>),
    Failed,
}

/// The next part of a padded body.
pub enum PaddedFrame {
    /// A blank.
    Blank(Bytes),
    /// The backend has responded: its JSON follows.
    Begun,
    /// Of the backend's body.
    Frame(Option<Result<Frame<Bytes>, ResponseBodyError>>),
    /// The backend has responded with something that cannot follow the head that was sent.
    Unsuitable(StatusCode),
    /// The backend has not responded.
    Rejected(Rejection),
}

/// Whether a request can have a padded response. The client of an asynchronous query expects status 202.
pub fn can_be_padded(method: &Method, headers: &Headers) -> bool {
    let is_async = headers.all(HeaderName::XAsync).any(|value| !value.eq_ignore_ascii_case(b"false"));
    *method != Method::HEAD && !is_async
}

impl PaddedBody {
    /// Begins with a blank. `exchange` has already taken one interval.
    pub fn new(exchange: PendingExchange, interval: Duration, sent_at: Instant, recorder: RejectionRecorder) -> Self {
        let timer = Box::pin(tokio::time::sleep(Duration::ZERO));
        PaddedBody { state: PaddedBodyState::Waiting(exchange, timer), interval, sent_at, recorder }
    }

    /// The next part.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<PaddedFrame> {
        match &mut self.state {
            PaddedBodyState::Waiting(exchange, timer) => {
                if let Poll::Ready(result) = exchange.as_mut().poll(cx) {
                    return Poll::Ready(self.begin(result));
                }
                std::task::ready!(timer.as_mut().poll(cx));
                timer.as_mut().reset(tokio::time::Instant::now() + self.interval);
                Poll::Ready(PaddedFrame::Blank(Bytes::from_static(b" ")))
            }
            PaddedBodyState::Upstream(body) => Pin::new(body).poll_frame(cx).map(PaddedFrame::Frame),
            PaddedBodyState::Failed => Poll::Ready(PaddedFrame::Frame(None)),
        }
    }

    /// Sends more of the request to the backend. Returns whether there was progress.
    pub fn poll_upload(&mut self, cx: &mut Context<'_>) -> bool {
        match &mut self.state {
            PaddedBodyState::Upstream(body) => body.poll_upload(cx),
            PaddedBodyState::Waiting(..) | PaddedBodyState::Failed => false,
        }
    }

    fn begin(&mut self, result: Result<UpstreamResponse, Rejection>) -> PaddedFrame {
        let (state, frame) = match result {
            Ok(response) if is_suitable(response.status, &response.headers) => {
                (PaddedBodyState::Upstream(response.body), PaddedFrame::Begun)
            }
            Ok(response) => (PaddedBodyState::Failed, PaddedFrame::Unsuitable(response.status)),
            Err(rejection) => (PaddedBodyState::Failed, PaddedFrame::Rejected(rejection)),
        };
        self.state = state;
        frame
    }

    /// Whether the end was reached.
    pub fn is_end_stream(&self) -> bool {
        matches!(&self.state, PaddedBodyState::Upstream(body) if body.is_end_stream())
    }
}

/// SECURITY: only what the head has announced may follow. The text of an error, or a compressed body, would look like
/// the result of the query.
fn is_suitable(status: StatusCode, headers: &Headers) -> bool {
    let is_json = |value: &[u8]| essence(value).is_some_and(|essence| essence.eq_ignore_ascii_case(MEDIA_TYPE));
    status == StatusCode::OK
        && headers.get(HeaderName::ContentType).is_none_or(is_json)
        && headers.all(HeaderName::ContentEncoding).all(|value| value.eq_ignore_ascii_case(b"identity"))
}
