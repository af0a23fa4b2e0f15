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
use crate::upstream::progress_timeout::Patience;

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
    kept: Option<Kept>,
    /// Where the bytes that came are counted.
    counter: Option<Rc<Cell<u64>>>,
}

/// What has gone by of a body, so that it can be sent again; nothing once it is more than a little.
#[derive(Clone, Default)]
pub struct Kept(Rc<RefCell<KeptParts>>);

#[derive(Default)]
struct KeptParts {
    /// Copied, as a part may be a byte of a large buffer, which would be held with it.
    bytes: Vec<u8>,
    size: u64,
    /// Of the whole body, where the client said so.
    expected: Option<u64>,
    /// Whether its end was seen.
    ended: bool,
}

/// Queries are shorter; and so much is held for each request that may have to be sent again.
const MOST_KEPT: u64 = 64 * 1024;

impl Kept {
    fn note(&self, data: &[u8]) {
        let mut kept = self.0.borrow_mut();
        kept.size = kept.size.saturating_add(data.len() as u64);
        if kept.size <= MOST_KEPT {
            kept.bytes.extend_from_slice(data);
        } else {
            kept.bytes = Vec::new();
        }
    }

    /// The body once more, if all of it has gone by and was kept.
    pub fn again(&self) -> Option<RequestBody> {
        let kept = self.0.borrow();
        let whole = kept.ended || kept.expected == Some(kept.size);
        if !whole || kept.size > MOST_KEPT {
            return None;
        }
        let bytes = Bytes::copy_from_slice(&kept.bytes);
        let incoming = (!bytes.is_empty()).then_some(ClientBody::Kept(bytes));
        Some(RequestBody { incoming, room: u64::MAX, ..RequestBody::empty() })
    }
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
        let patience = Patience::new(Duration::MAX);
        RequestBody { incoming: None, room: 0, least_rate: 1, patience, kept: None, counter: None }
    }

    /// The rest of a client's body: `room` bytes at most.
    pub fn streaming(incoming: ClientBody, room: u64, bounds: BodyBounds) -> RequestBody {
        let incoming = (!incoming.is_end_stream()).then_some(incoming);
        let patience = Patience::bounded(bounds.pause);
        RequestBody {
            incoming,
            room,
            least_rate: bounds.least_rate.max(1),
            patience,
            kept: None,
            counter: None,
        }
    }

    /// Keeps what goes by from here on.
    pub fn keep(&mut self) -> Kept {
        let kept = Kept::default();
        kept.0.borrow_mut().expected = self.size_hint().exact();
        self.kept = Some(kept.clone());
        kept
    }

    /// Counts what comes.
    pub fn counted(self, counter: Option<Rc<Cell<u64>>>) -> RequestBody {
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
                self.patience.renew();
                // Trailers end here: no field may reach the backend that the field policy has not seen.
                let Some(data) = frame.data_ref() else { return Poll::Ready(None) };
                let worth = Duration::from_micros(data.len() as u64 * 1_000_000 / self.least_rate);
                self.patience.earn(worth);
                if let Some(counter) = &self.counter {
                    counter.set(counter.get() + data.len() as u64);
                }
                match self.room.checked_sub(data.len() as u64) {
                    Some(room) => self.room = room,
                    None => return Poll::Ready(Some(Err(RequestBodyError::TooLarge))),
                }
                if let Some(kept) = &self.kept {
                    kept.note(data);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                Poll::Ready(Some(Err(RequestBodyError::Broken(error.to_string()))))
            }
            Poll::Ready(None) => {
                if let Some(kept) = &self.kept {
                    kept.0.borrow_mut().ended = true;
                }
                Poll::Ready(None)
            }
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
