//! A client's request body while it is forwarded: a limit on its size, a minimum rate, and the part that is received
//! before the request is sent. It knows nothing about connections or framing.

use std::cell::Cell;
use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
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
    /// What was received before the request is sent.
    buffered: Bytes,
    /// `None` once the end was received.
    incoming: Option<ClientBody>,
    /// The number of bytes that may still arrive.
    size_left: u64,
    /// The minimum rate of the client, in bytes per second.
    min_rate: u64,
    progress_timeout: ProgressTimeout,
    /// Where received bytes are counted.
    counter: Option<Rc<Cell<u64>>>,
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
        let (buffered, incoming, counter) = (Bytes::new(), None, None);
        RequestBody { buffered, incoming, size_left: 0, min_rate: 1, progress_timeout, counter }
    }

    /// A body that was received completely.
    pub fn received(buffered: Bytes) -> RequestBody {
        RequestBody { buffered, ..RequestBody::empty() }
    }

    /// A client's body of at most `max_size` bytes.
    pub fn streaming(incoming: ClientBody, max_size: u64, limits: BodyLimits) -> RequestBody {
        let incoming = (!incoming.is_end_stream()).then_some(incoming);
        let progress_timeout = ProgressTimeout::with_budget(limits.max_pause);
        let (buffered, min_rate, counter) = (Bytes::new(), limits.min_rate.max(1), None);
        RequestBody { buffered, incoming, size_left: max_size, min_rate, progress_timeout, counter }
    }

    /// Receives the body up to its end, or until at least `limit` bytes are buffered.
    pub async fn buffer(&mut self, limit: u64) -> Result<(), RequestBodyError> {
        let mut joined = BytesMut::new();
        while self.incoming.is_some() && (self.buffered.len().max(joined.len()) as u64) < limit {
            let Some(data) = poll_fn(|cx| self.poll_incoming(cx)).await.transpose()? else { break };
            // Several chunks are copied, because a small one may be a slice of a large buffer.
            if self.buffered.is_empty() && joined.is_empty() {
                self.buffered = data;
            } else {
                joined.extend_from_slice(&std::mem::take(&mut self.buffered));
                joined.extend_from_slice(&data);
            }
        }
        if !joined.is_empty() {
            self.buffered = joined.freeze();
        }
        Ok(())
    }

    /// The whole body, if it was received completely and nothing of it was sent.
    pub fn whole(&self) -> Option<Bytes> {
        self.incoming.is_none().then(|| self.buffered.clone())
    }

    /// How long the gateway has waited for the client in total.
    pub fn waited(&self) -> Duration {
        self.progress_timeout.waited()
    }

    /// Adds the size of each received chunk to `counter`.
    pub fn with_counter(self, counter: Option<Rc<Cell<u64>>>) -> RequestBody {
        RequestBody { counter, ..self }
    }

    /// Returns whether the body is empty.
    pub fn is_empty(&self) -> bool {
        self.buffered.is_empty() && self.incoming.is_none()
    }

    /// Returns whether the end was reached.
    pub fn is_end_stream(&self) -> bool {
        self.buffered.is_empty() && self.incoming.as_ref().is_none_or(ClientBody::is_end_stream)
    }

    /// The number of bytes that are still to come, if the client declared it.
    pub fn exact_size(&self) -> Option<u64> {
        let incoming = self.incoming.as_ref().map_or(Some(0), |incoming| incoming.size_hint().exact());
        incoming.and_then(|incoming| incoming.checked_add(self.buffered.len() as u64))
    }

    /// The next bytes; `None` at the end.
    pub fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, RequestBodyError>>> {
        if !self.buffered.is_empty() {
            return Poll::Ready(Some(Ok(std::mem::take(&mut self.buffered))));
        }
        self.poll_incoming(cx)
    }

    fn poll_incoming(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, RequestBodyError>>> {
        let Some(incoming) = self.incoming.as_mut() else { return Poll::Ready(None) };
        match Pin::new(incoming).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                self.progress_timeout.record_progress();
                // SECURITY: trailers are dropped: no header may reach the backend without passing the header policy.
                let Ok(data) = frame.into_data() else {
                    self.incoming = None;
                    return Poll::Ready(None);
                };
                let size = data.len() as u64;
                self.progress_timeout.extend_budget(Duration::from_micros(size * 1_000_000 / self.min_rate));
                if let Some(counter) = &self.counter {
                    counter.set(counter.get() + size);
                }
                match self.size_left.checked_sub(size) {
                    Some(left) => self.size_left = left,
                    None => return Poll::Ready(Some(Err(RequestBodyError::TooLarge))),
                }
                self.incoming.take_if(|incoming| incoming.is_end_stream());
                Poll::Ready(Some(Ok(data)))
            }
            Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(RequestBodyError::Broken(error.to_string())))),
            Poll::Ready(None) => {
                self.incoming = None;
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
