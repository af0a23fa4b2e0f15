//! A client's body on its way up, with a bound on its size and on every pause.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use crate::http::client_body::ClientBody;
use crate::upstream::progress_timeout::ProgressTimeout;

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
    size_left: u64,
    /// Bytes a second that the client must come to, at least.
    min_rate: u64,
    progress_timeout: ProgressTimeout,
    replay_buffer: Option<ReplayBuffer>,
    /// Where the bytes that came are counted.
    counter: Option<Rc<Cell<u64>>>,
}

/// What has gone by of a body, so that it can be sent again; nothing once it is more than a little.
#[derive(Clone, Default)]
pub struct ReplayBuffer(Rc<RefCell<ReplayState>>);

#[derive(Default)]
struct ReplayState {
    /// Copied, as a part may be a byte of a large buffer, which would be held with it.
    bytes: Vec<u8>,
    size: u64,
    /// Of the whole body, where the client said so.
    expected: Option<u64>,
    /// Whether its end was seen.
    is_complete: bool,
}

/// Queries are shorter; and so much is held for each request that may have to be sent again.
const MAX_REPLAY_SIZE: u64 = 64 * 1024;

impl ReplayBuffer {
    fn append(&self, data: &[u8]) {
        let mut kept = self.0.borrow_mut();
        kept.size = kept.size.saturating_add(data.len() as u64);
        if kept.size <= MAX_REPLAY_SIZE {
            kept.bytes.extend_from_slice(data);
        } else {
            kept.bytes = Vec::new();
        }
    }

    /// The body once more, if all of it has gone by and was kept.
    pub fn replay(&self) -> Option<RequestBody> {
        let kept = self.0.borrow();
        let whole = kept.is_complete || kept.expected == Some(kept.size);
        if !whole || kept.size > MAX_REPLAY_SIZE {
            return None;
        }
        let bytes = Bytes::copy_from_slice(&kept.bytes);
        let incoming = (!bytes.is_empty()).then_some(ClientBody::Buffered(bytes));
        Some(RequestBody { incoming, size_left: u64::MAX, ..RequestBody::empty() })
    }
}

/// What a client's body has to keep within.
#[derive(Clone, Copy, Debug)]
pub struct BodyLimits {
    /// The longest pause.
    pub max_pause: Duration,
    /// Bytes a second at least, on average, not counting the time in which nobody waited for the client and one
    /// longest pause.
    pub min_rate: u64,
}

impl RequestBody {
    /// No body.
    pub fn empty() -> RequestBody {
        let progress_timeout = ProgressTimeout::new(Duration::MAX);
        RequestBody {
            incoming: None,
            size_left: 0,
            min_rate: 1,
            progress_timeout,
            replay_buffer: None,
            counter: None,
        }
    }

    /// The rest of a client's body: `room` bytes at most.
    pub fn streaming(incoming: ClientBody, size_left: u64, bounds: BodyLimits) -> RequestBody {
        let incoming = (!incoming.is_end_stream()).then_some(incoming);
        let progress_timeout = ProgressTimeout::with_budget(bounds.max_pause);
        RequestBody {
            incoming,
            size_left,
            min_rate: bounds.min_rate.max(1),
            progress_timeout,
            replay_buffer: None,
            counter: None,
        }
    }

    /// Keeps what goes by from here on.
    pub fn record_for_replay(&mut self) -> ReplayBuffer {
        let kept = ReplayBuffer::default();
        kept.0.borrow_mut().expected = self.size_hint().exact();
        self.replay_buffer = Some(kept.clone());
        kept
    }

    /// Counts what comes.
    pub fn with_counter(self, counter: Option<Rc<Cell<u64>>>) -> RequestBody {
        RequestBody { counter, ..self }
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
                self.progress_timeout.record_progress();
                // Trailers end here: no field may reach the backend that the field policy has not seen.
                let Some(data) = frame.data_ref() else { return Poll::Ready(None) };
                let worth = Duration::from_micros(data.len() as u64 * 1_000_000 / self.min_rate);
                self.progress_timeout.extend_budget(worth);
                if let Some(counter) = &self.counter {
                    counter.set(counter.get() + data.len() as u64);
                }
                match self.size_left.checked_sub(data.len() as u64) {
                    Some(room) => self.size_left = room,
                    None => return Poll::Ready(Some(Err(RequestBodyError::TooLarge))),
                }
                if let Some(kept) = &self.replay_buffer {
                    kept.append(data);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                Poll::Ready(Some(Err(RequestBodyError::Broken(error.to_string()))))
            }
            Poll::Ready(None) => {
                if let Some(kept) = &self.replay_buffer {
                    kept.0.borrow_mut().is_complete = true;
                }
                Poll::Ready(None)
            }
            Poll::Pending => {
                ready!(self.progress_timeout.poll_expired(cx));
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
