//! Bodies on their way through, with a bound on every pause.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep, sleep};

use crate::client_body::ClientBody;
use crate::upstream::pool::Lease;

/// The longest pause that a peer may make, and the longest that all its pauses may be together. The timer exists only
/// while something is waited for.
struct Patience {
    longest_pause: Duration,
    /// What is left for further pauses, if that is bounded.
    left: Option<Duration>,
    timer: Option<Pin<Box<Sleep>>>,
    waiting_since: Option<Instant>,
}

impl Patience {
    /// Patient as long as something comes now and then.
    fn new(longest_pause: Duration) -> Patience {
        Patience { longest_pause, left: None, timer: None, waiting_since: None }
    }

    /// Impatient with a peer that sends something now and then and not enough of it: [`Patience::earn`].
    fn bounded(longest_pause: Duration) -> Patience {
        Patience { left: Some(longest_pause), ..Patience::new(longest_pause) }
    }

    /// Something came.
    fn renew(&mut self) {
        if let (Some(since), Some(left)) = (self.waiting_since.take(), self.left.as_mut()) {
            *left = left.saturating_sub(since.elapsed());
        }
    }

    /// What came is worth so much waiting.
    fn earn(&mut self, worth: Duration) {
        if let Some(left) = self.left.as_mut() {
            *left = left.saturating_add(worth);
        }
    }

    /// Nothing came; ready when that has lasted too long.
    fn poll_lost(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let limit = self.left.map_or(self.longest_pause, |left| left.min(self.longest_pause));
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(limit)));
        if self.waiting_since.is_none() {
            let now = Instant::now();
            timer.as_mut().reset(now + limit);
            self.waiting_since = Some(now);
        }
        timer.as_mut().poll(cx)
    }
}

/// Why a client's body did not arrive whole.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RequestBodyError {
    /// The client made too long a pause.
    #[error("the client sent nothing of its body for too long")]
    Stalled,
    /// More came than the route takes.
    #[error("the client's body is larger than the route takes")]
    TooLarge,
    /// The connection failed, or the framing is broken.
    #[error("the client's body broke off: {0}")]
    Broken(String),
}

/// The client's body on its way up.
pub struct RequestBody {
    incoming: Option<ClientBody>,
    /// So many bytes may still come.
    room: u64,
    /// Bytes a second that the client must come to, at least.
    least_rate: u64,
    patience: Patience,
}

/// What a client's body has to keep within.
#[derive(Clone, Copy, Debug)]
pub struct BodyBounds {
    /// The longest pause.
    pub pause: Duration,
    /// Bytes a second at least, on average, not counting the time in which nobody waited for the client and one
    /// longest pause.
    pub least_rate: u64,
}

impl RequestBody {
    /// No body.
    pub fn empty() -> RequestBody {
        RequestBody { incoming: None, room: 0, least_rate: 0, patience: Patience::new(Duration::MAX) }
    }

    /// The rest of a client's body: `room` bytes at most.
    pub fn streaming(incoming: ClientBody, room: u64, bounds: BodyBounds) -> RequestBody {
        let incoming = (!incoming.is_end_stream()).then_some(incoming);
        let patience = Patience::bounded(bounds.pause);
        RequestBody { incoming, room, least_rate: bounds.least_rate.max(1), patience }
    }

    /// Whether there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.incoming.is_none()
    }
}

impl fmt::Debug for RequestBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_empty() { "RequestBody(empty)" } else { "RequestBody(streaming)" })
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = RequestBodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, RequestBodyError>>> {
        let Some(incoming) = self.incoming.as_mut() else { return Poll::Ready(None) };
        match Pin::new(incoming).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                self.patience.renew();
                // Trailers end here: no field may reach the backend that the field policy has not seen.
                let Some(data) = frame.data_ref() else { return Poll::Ready(None) };
                let worth = Duration::from_micros(data.len() as u64 * 1_000_000 / self.least_rate);
                self.patience.earn(worth);
                match self.room.checked_sub(data.len() as u64) {
                    Some(room) => self.room = room,
                    None => return Poll::Ready(Some(Err(RequestBodyError::TooLarge))),
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                Poll::Ready(Some(Err(RequestBodyError::Broken(error.to_string()))))
            }
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Pending => {
                ready!(self.patience.poll_lost(cx));
                Poll::Ready(Some(Err(RequestBodyError::Stalled)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.as_ref().is_none_or(ClientBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.as_ref().map_or_else(|| SizeHint::with_exact(0), ClientBody::size_hint)
    }
}

/// Why the backend's body did not arrive whole. The client must see that it is cut: an error here aborts its
/// connection or stream.
#[derive(Debug, thiserror::Error)]
pub enum ResponseBodyError {
    /// The backend made too long a pause.
    #[error("the upstream sent nothing of its answer for too long")]
    Stalled,
    /// The connection failed, or the framing is broken.
    #[error("the upstream's answer broke off")]
    Broken(#[source] hyper::Error),
}

/// The backend's body on its way down. When it was read to its end, its connection goes back to the pool.
pub struct ResponseBody {
    incoming: Incoming,
    patience: Patience,
    lease: Option<Lease>,
}

impl ResponseBody {
    pub(super) fn new(incoming: Incoming, pause: Duration, lease: Lease) -> ResponseBody {
        let mut body = ResponseBody { incoming, patience: Patience::new(pause), lease: Some(lease) };
        if body.incoming.is_end_stream() {
            body.release();
        }
        body
    }

    fn release(&mut self) {
        if let Some(lease) = self.lease.take() {
            lease.release();
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = ResponseBodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ResponseBodyError>>> {
        match Pin::new(&mut self.incoming).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                self.patience.renew();
                if self.incoming.is_end_stream() {
                    self.release();
                }
                if frame.is_data() {
                    return Poll::Ready(Some(Ok(frame)));
                }
                // Trailers are dropped, as on the way up; the end of the body comes next.
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Poll::Ready(Some(Err(error))) => {
                self.lease = None;
                Poll::Ready(Some(Err(ResponseBodyError::Broken(error))))
            }
            Poll::Ready(None) => {
                self.release();
                Poll::Ready(None)
            }
            Poll::Pending => {
                ready!(self.patience.poll_lost(cx));
                self.lease = None;
                Poll::Ready(Some(Err(ResponseBodyError::Stalled)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}
