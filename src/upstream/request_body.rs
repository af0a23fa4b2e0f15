//! A client's request body while it is forwarded: limits on its size and on pauses, and the copy for a retry. It knows
//! nothing about connections or framing.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::Body;

use crate::http::client_body::ClientBody;
use crate::upstream::progress_timeout::ProgressTimeout;

/// Why a client's body did not arrive completely.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RequestBodyError {
    /// The client made no progress for too long.
    #[error("timeout while reading the request body")]
    Stalled,
    /// The body exceeds the size limit of its route.
    #[error("the request body exceeds the size limit of the route")]
    TooLarge,
    /// The client's connection failed, or the framing is invalid.
    #[error("the request body is incomplete: {0}")]
    Broken(String),
}

/// A client's body that is forwarded to a backend.
pub struct RequestBody {
    incoming: Option<ClientBody>,
    /// The number of bytes that may still arrive.
    size_left: u64,
    /// The minimum rate of the client, in bytes per second.
    min_rate: u64,
    progress_timeout: ProgressTimeout,
    replay_buffer: Option<ReplayBuffer>,
    /// Where received bytes are counted.
    counter: Option<Rc<Cell<u64>>>,
}

/// A copy of a body for a retry; empty once the body exceeds [`MAX_REPLAY_SIZE`].
#[derive(Clone, Default)]
pub struct ReplayBuffer(Rc<RefCell<ReplayState>>);

#[derive(Default)]
struct ReplayState {
    /// Copied, because a chunk may be a slice of a large buffer, which it would keep alive.
    bytes: Vec<u8>,
    size: u64,
    /// The length of the whole body, if it is known.
    expected: Option<u64>,
    /// True if the end was reached.
    is_complete: bool,
}

/// Typical queries are smaller. This much memory is held for each request that may be retried.
const MAX_REPLAY_SIZE: u64 = 64 * 1024;

impl ReplayBuffer {
    fn append(&self, data: &[u8]) {
        let mut state = self.0.borrow_mut();
        state.size = state.size.saturating_add(data.len() as u64);
        if state.size <= MAX_REPLAY_SIZE {
            state.bytes.extend_from_slice(data);
        } else {
            state.bytes = Vec::new();
        }
    }

    /// A copy of the body, if all of it was received and recorded.
    pub fn replay(&self) -> Option<RequestBody> {
        let state = self.0.borrow();
        let is_complete = state.is_complete || state.expected == Some(state.size);
        if !is_complete || state.size > MAX_REPLAY_SIZE {
            return None;
        }
        let bytes = Bytes::copy_from_slice(&state.bytes);
        let incoming = (!bytes.is_empty()).then_some(ClientBody::Buffered(bytes));
        Some(RequestBody { incoming, size_left: u64::MAX, ..RequestBody::empty() })
    }
}

/// Limits on how slowly a client may send its body.
#[derive(Clone, Copy, Debug)]
pub struct BodyLimits {
    /// Maximum time without progress.
    pub max_pause: Duration,
    /// Minimum average rate in bytes per second. Time during which the gateway did not wait for the client does not
    /// count, nor does one `max_pause`.
    pub min_rate: u64,
}

impl RequestBody {
    /// An empty body.
    pub fn empty() -> RequestBody {
        let progress_timeout = ProgressTimeout::new(Duration::MAX);
        RequestBody { incoming: None, size_left: 0, min_rate: 1, progress_timeout, replay_buffer: None, counter: None }
    }

    /// A client's body of at most `max_size` bytes.
    pub fn streaming(incoming: ClientBody, max_size: u64, limits: BodyLimits) -> RequestBody {
        let incoming = (!incoming.is_end_stream()).then_some(incoming);
        let progress_timeout = ProgressTimeout::with_budget(limits.max_pause);
        RequestBody {
            incoming,
            size_left: max_size,
            min_rate: limits.min_rate.max(1),
            progress_timeout,
            replay_buffer: None,
            counter: None,
        }
    }

    /// Records the body from here on, for a retry.
    pub fn record_for_replay(&mut self) -> ReplayBuffer {
        let buffer = ReplayBuffer::default();
        buffer.0.borrow_mut().expected = self.exact_size();
        self.replay_buffer = Some(buffer.clone());
        buffer
    }

    /// Adds the size of each received chunk to `counter`.
    pub fn with_counter(self, counter: Option<Rc<Cell<u64>>>) -> RequestBody {
        RequestBody { counter, ..self }
    }

    /// Returns whether the body is empty.
    pub fn is_empty(&self) -> bool {
        self.incoming.is_none()
    }

    /// Returns whether the end was reached.
    pub fn is_end_stream(&self) -> bool {
        self.incoming.as_ref().is_none_or(ClientBody::is_end_stream)
    }

    /// The number of bytes that are still to come, if the client declared it.
    pub fn exact_size(&self) -> Option<u64> {
        self.incoming.as_ref().map_or(Some(0), |incoming| incoming.size_hint().exact())
    }

    /// The next bytes; `None` at the end.
    pub fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, RequestBodyError>>> {
        let Some(incoming) = self.incoming.as_mut() else { return Poll::Ready(None) };
        match Pin::new(incoming).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                self.progress_timeout.record_progress();
                // SECURITY: trailers are dropped: no header may reach the backend without passing the header policy.
                let Ok(data) = frame.into_data() else { return Poll::Ready(None) };
                let size = data.len() as u64;
                self.progress_timeout.extend_budget(Duration::from_micros(size * 1_000_000 / self.min_rate));
                if let Some(counter) = &self.counter {
                    counter.set(counter.get() + size);
                }
                match self.size_left.checked_sub(size) {
                    Some(left) => self.size_left = left,
                    None => return Poll::Ready(Some(Err(RequestBodyError::TooLarge))),
                }
                if let Some(buffer) = &self.replay_buffer {
                    buffer.append(&data);
                }
                Poll::Ready(Some(Ok(data)))
            }
            Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(RequestBodyError::Broken(error.to_string())))),
            Poll::Ready(None) => {
                if let Some(buffer) = &self.replay_buffer {
                    buffer.0.borrow_mut().is_complete = true;
                }
                Poll::Ready(None)
            }
            Poll::Pending => {
                ready!(self.progress_timeout.poll_expired(cx));
                Poll::Ready(Some(Err(RequestBodyError::Stalled)))
            }
        }
    }
}

impl fmt::Debug for RequestBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_empty() { "RequestBody(empty)" } else { "RequestBody(streaming)" })
    }
}
