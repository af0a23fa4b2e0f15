//! Bodies on their way through, with a bound on every pause.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::time::Instant;

use crate::client_body::ClientBody;
use crate::http1::chunked::{Decoded, Decoder};
use crate::http1::head::Framing;
use crate::http1::response::Extent;
use crate::upstream::connection::Connection;
use crate::upstream::deadline::Deadline;
use crate::upstream::exchange::Upload;
use crate::upstream::lane::InFlight;

/// The longest pause that a peer may make, and the longest that all its pauses may be together. The timer exists only
/// while something is waited for.
struct Patience {
    longest_pause: Duration,
    /// What is left for further pauses, if that is bounded.
    left: Option<Duration>,
    timer: Deadline,
    waiting_since: Option<Instant>,
}

impl Patience {
    /// Patient as long as something comes now and then.
    fn new(longest_pause: Duration) -> Patience {
        Patience { longest_pause, left: None, timer: Deadline::default(), waiting_since: None }
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
        if self.waiting_since.is_none() {
            let now = Instant::now();
            self.timer.set(now + limit);
            self.waiting_since = Some(now);
        }
        self.timer.poll(cx)
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
    kept: Option<Kept>,
    /// Where the bytes that came are counted.
    counter: Option<Rc<Cell<u64>>>,
}

/// What has gone by of a body, so that it can be sent again; nothing once it is more than a little.
#[derive(Clone, Default)]
pub struct Kept(Rc<RefCell<KeptParts>>);

#[derive(Default)]
struct KeptParts {
    parts: VecDeque<Bytes>,
    size: u64,
    /// Of the whole body, where the client said so.
    expected: Option<u64>,
    /// Whether its end was seen.
    ended: bool,
}

/// Queries are shorter; and so much is held for each request that may have to be sent again.
const MOST_KEPT: u64 = 64 * 1024;

impl Kept {
    fn note(&self, data: &Bytes) {
        let mut kept = self.0.borrow_mut();
        kept.size = kept.size.saturating_add(data.len() as u64);
        if kept.size <= MOST_KEPT {
            kept.parts.push_back(data.clone());
        } else {
            kept.parts.clear();
        }
    }

    /// The body once more, if all of it has gone by and was kept.
    pub fn again(&self) -> Option<RequestBody> {
        let kept = self.0.borrow();
        let whole = kept.ended || kept.expected == Some(kept.size);
        if !whole || kept.size > MOST_KEPT {
            return None;
        }
        let incoming = (!kept.parts.is_empty()).then(|| ClientBody::Kept(kept.parts.clone()));
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

/// Why the backend's body did not arrive whole. The client must see that it is cut: an error here aborts its
/// connection or stream.
#[derive(Debug, thiserror::Error)]
pub enum ResponseBodyError {
    /// The backend made too long a pause.
    #[error("the upstream sent nothing of its answer for too long")]
    Stalled,
    /// The connection failed, or the framing is broken.
    #[error("the upstream's answer broke off: {0}")]
    Broken(String),
}

/// Most bytes of an answer that one read takes. Twice as many cost no less; half of it costs a quarter more behind TLS.
const MOST_READ: u64 = 128 * 1024;

/// The backend's body on its way down. When it was read to its end, its connection goes back to the pool.
pub struct ResponseBody {
    connection: Option<Box<Connection>>,
    rest: Rest,
    /// The rest of a request that was answered before its end.
    upload: Option<Box<Upload>>,
    place: Option<InFlight>,
    /// Whether the connection can be used again.
    reusable: bool,
    patience: Patience,
}

/// What is still to come.
enum Rest {
    Nothing,
    Length(u64),
    Chunked(Decoder),
    UntilClose,
}

impl ResponseBody {
    pub(super) fn new(
        connection: Box<Connection>,
        extent: Extent,
        upload: Option<Box<Upload>>,
        place: InFlight,
        reusable: bool,
        pause: Duration,
    ) -> ResponseBody {
        let rest = match extent {
            Extent::Framed(Framing::None) => Rest::Nothing,
            Extent::Framed(Framing::Length(length)) => Rest::Length(length),
            Extent::Framed(Framing::Chunked) => Rest::Chunked(Decoder::default()),
            Extent::UntilClose => Rest::UntilClose,
        };
        let (connection, place, patience) = (Some(connection), Some(place), Patience::new(pause));
        let mut body = ResponseBody { connection, rest, upload, place, reusable, patience };
        body.release_at_end();
        body
    }

    /// Gives the connection back, or closes it, as soon as the answer was read whole.
    fn release_at_end(&mut self) {
        if !self.is_end_stream() {
            return;
        }
        let (connection, place) = (self.connection.take(), self.place.take());
        // A request that was not sent whole leaves a connection that nobody can use.
        if let (Some(connection), Some(place), None, true) =
            (connection, place, self.upload.take(), self.reusable)
        {
            place.keep(connection);
        }
    }

    /// Gives up what is still to come.
    fn break_off(&mut self) {
        (self.connection, self.place) = (None, None);
    }

    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, ResponseBodyError>>> {
        let Some(connection) = self.connection.as_mut() else { return Poll::Ready(None) };
        if let Some(upload) = &mut self.upload {
            match upload.poll(&mut connection.stream, cx, &mut false) {
                Poll::Ready(Ok(())) => self.upload = None,
                // The answer may be whole nevertheless; the connection is not used again.
                Poll::Ready(Err(_)) => (self.upload, self.reusable) = (None, false),
                Poll::Pending => {}
            }
        }
        let broken = |why: &str| Poll::Ready(Some(Err(ResponseBodyError::Broken(why.to_owned()))));
        loop {
            let unread = &mut connection.unread;
            let wanted = match &mut self.rest {
                Rest::Nothing => return Poll::Ready(None),
                Rest::Length(left) if !unread.is_empty() => {
                    let taken = usize::try_from(*left).map_or(unread.len(), |left| left.min(unread.len()));
                    *left -= taken as u64;
                    // While more is to come, its memory is used again for that once these bytes are written.
                    let data = match *left == 0 && taken == unread.len() {
                        true => std::mem::take(unread),
                        false => unread.split_to(taken),
                    };
                    if *left == 0 {
                        self.rest = Rest::Nothing;
                    }
                    return Poll::Ready(Some(Ok(data.freeze())));
                }
                Rest::UntilClose if !unread.is_empty() => {
                    return Poll::Ready(Some(Ok(unread.split().freeze())));
                }
                Rest::Length(left) => *left,
                Rest::Chunked(decoder) => match decoder.decode(unread) {
                    Ok(Decoded::Data(data)) => {
                        if decoder.is_done() {
                            self.rest = Rest::Nothing;
                        }
                        return Poll::Ready(Some(Ok(data)));
                    }
                    Ok(Decoded::End) => {
                        self.rest = Rest::Nothing;
                        return Poll::Ready(None);
                    }
                    Ok(Decoded::NeedsMore) => MOST_READ,
                    Err(error) => return broken(error.0),
                },
                Rest::UntilClose => MOST_READ,
            };
            let wanted = usize::try_from(wanted.min(MOST_READ)).expect("128 KiB");
            match ready!(connection.poll_fill(cx, wanted)) {
                Ok(0) if matches!(self.rest, Rest::UntilClose) => {
                    self.rest = Rest::Nothing;
                    return Poll::Ready(None);
                }
                Ok(0) => return broken("the connection was closed within it"),
                Ok(_) => {}
                Err(error) => return broken(&error.to_string()),
            }
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
        match self.poll_data(cx) {
            Poll::Ready(Some(Ok(data))) => {
                self.patience.renew();
                self.release_at_end();
                Poll::Ready(Some(Ok(Frame::data(data))))
            }
            Poll::Ready(Some(Err(error))) => {
                self.break_off();
                Poll::Ready(Some(Err(error)))
            }
            Poll::Ready(None) => {
                self.release_at_end();
                Poll::Ready(None)
            }
            Poll::Pending => {
                ready!(self.patience.poll_lost(cx));
                self.break_off();
                Poll::Ready(Some(Err(ResponseBodyError::Stalled)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.rest, Rest::Nothing)
    }

    fn size_hint(&self) -> SizeHint {
        match self.rest {
            Rest::Nothing => SizeHint::with_exact(0),
            Rest::Length(left) => SizeHint::with_exact(left),
            Rest::Chunked(_) | Rest::UntilClose => SizeHint::new(),
        }
    }
}
