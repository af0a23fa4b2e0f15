//! The backend's body on its way down, with a bound on every pause.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use crate::http::h1::chunked::{ChunkedDecoder, Decoded};
use crate::http::h1::head::Framing;
use crate::http::h1::response::BodyExtent;
use crate::os::splice::SplicePipe;
use crate::upstream::connection::{UpstreamConnection, UpstreamStream};
use crate::upstream::exchange::Upload;
use crate::upstream::load_balancer::UpstreamInFlight;
use crate::upstream::progress_timeout::ProgressTimeout;

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
const MAX_READ_SIZE: u64 = 128 * 1024;

/// The backend's body on its way down. When it was read to its end, its connection goes back to the pool.
pub struct ResponseBody {
    connection: Option<Box<UpstreamConnection>>,
    remaining: RemainingBody,
    /// The rest of a request that was answered before its end.
    upload: Option<Box<Upload>>,
    in_flight: Option<UpstreamInFlight>,
    /// Whether the connection can be used again.
    is_reusable: bool,
    progress_timeout: ProgressTimeout,
}

/// What is still to come.
enum RemainingBody {
    Done,
    Length(u64),
    Chunked(ChunkedDecoder),
    UntilClose,
}

impl ResponseBody {
    pub(super) fn new(
        connection: Box<UpstreamConnection>,
        extent: BodyExtent,
        upload: Option<Box<Upload>>,
        place: UpstreamInFlight,
        reusable: bool,
        pause: Duration,
    ) -> ResponseBody {
        let rest = match extent {
            BodyExtent::Framed(Framing::None) => RemainingBody::Done,
            BodyExtent::Framed(Framing::Length(length)) => RemainingBody::Length(length),
            BodyExtent::Framed(Framing::Chunked) => RemainingBody::Chunked(ChunkedDecoder::default()),
            BodyExtent::UntilClose => RemainingBody::UntilClose,
        };
        let (connection, place, patience) = (Some(connection), Some(place), ProgressTimeout::new(pause));
        let mut body = ResponseBody {
            connection,
            remaining: rest,
            upload,
            in_flight: place,
            is_reusable: reusable,
            progress_timeout: patience,
        };
        body.release_at_end();
        body
    }

    /// Gives the connection back, or closes it, as soon as the answer was read whole.
    fn release_at_end(&mut self) {
        if !self.is_end_stream() {
            return;
        }
        let (connection, place) = (self.connection.take(), self.in_flight.take());
        // A request that was not sent whole leaves a connection that nobody can use.
        if let (Some(connection), Some(place), None, true) =
            (connection, place, self.upload.take(), self.is_reusable)
        {
            place.return_connection(connection);
        }
    }

    /// A part of it has come.
    fn record_data(&mut self) {
        self.progress_timeout.record_progress();
        self.release_at_end();
        // What is left may have to wait for the client, for long.
        if let Some(connection) = &mut self.connection {
            connection.set_user_timeout(false);
        }
    }

    /// Gives up what is still to come.
    fn abort(&mut self) {
        (self.connection, self.in_flight) = (None, None);
    }

    /// Moves what has come into an empty pipe: so many bytes. 0 where it has to be read: what is here already, what has a framing
    /// or TLS on it, what comes while the request's body is still on its way up, and whatever the pipe does not take.
    pub fn splice_into(&mut self, pipe: &mut SplicePipe) -> usize {
        let (Some(connection), None) = (&self.connection, &self.upload) else { return 0 };
        let (UpstreamStream::Plain(socket), true) = (&connection.stream, connection.unread.is_empty()) else {
            return 0;
        };
        let RemainingBody::Length(left) = &mut self.remaining else { return 0 };
        let moved = pipe.fill(socket, *left);
        if moved > 0 {
            *left -= moved as u64;
            if *left == 0 {
                self.remaining = RemainingBody::Done;
            }
            self.record_data();
        }
        moved
    }

    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, ResponseBodyError>>> {
        let Some(connection) = self.connection.as_mut() else { return Poll::Ready(None) };
        if let Some(upload) = &mut self.upload {
            match upload.poll(&mut connection.stream, cx, &mut false) {
                Poll::Ready(Ok(())) => self.upload = None,
                // The answer may be whole nevertheless; the connection is not used again.
                Poll::Ready(Err(_)) => (self.upload, self.is_reusable) = (None, false),
                Poll::Pending => {}
            }
        }
        let broken = |why: &str| Poll::Ready(Some(Err(ResponseBodyError::Broken(why.to_owned()))));
        loop {
            let unread = &mut connection.unread;
            let wanted = match &mut self.remaining {
                RemainingBody::Done => return Poll::Ready(None),
                RemainingBody::Length(left) if !unread.is_empty() => {
                    let taken = usize::try_from(*left).map_or(unread.len(), |left| left.min(unread.len()));
                    *left -= taken as u64;
                    // While more is to come, its memory is used again for that once these bytes are written.
                    let data = match *left == 0 && taken == unread.len() {
                        true => std::mem::take(unread),
                        false => unread.split_to(taken),
                    };
                    if *left == 0 {
                        self.remaining = RemainingBody::Done;
                    }
                    return Poll::Ready(Some(Ok(data.freeze())));
                }
                RemainingBody::UntilClose if !unread.is_empty() => {
                    return Poll::Ready(Some(Ok(unread.split().freeze())));
                }
                RemainingBody::Length(left) => *left,
                RemainingBody::Chunked(decoder) => match decoder.decode(unread) {
                    Ok(Decoded::Data(data)) => {
                        if decoder.is_done() {
                            self.remaining = RemainingBody::Done;
                        }
                        return Poll::Ready(Some(Ok(data)));
                    }
                    Ok(Decoded::End) => {
                        self.remaining = RemainingBody::Done;
                        return Poll::Ready(None);
                    }
                    Ok(Decoded::NeedsMore) => MAX_READ_SIZE,
                    Err(error) => return broken(error.0),
                },
                RemainingBody::UntilClose => MAX_READ_SIZE,
            };
            let wanted = usize::try_from(wanted.min(MAX_READ_SIZE)).expect("128 KiB");
            match ready!(connection.poll_fill(cx, wanted)) {
                Ok(0) if matches!(self.remaining, RemainingBody::UntilClose) => {
                    self.remaining = RemainingBody::Done;
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
                self.record_data();
                Poll::Ready(Some(Ok(Frame::data(data))))
            }
            Poll::Ready(Some(Err(error))) => {
                self.abort();
                Poll::Ready(Some(Err(error)))
            }
            Poll::Ready(None) => {
                self.release_at_end();
                Poll::Ready(None)
            }
            Poll::Pending => {
                if let Some(connection) = &mut self.connection {
                    connection.poll_pause(cx);
                }
                ready!(self.progress_timeout.poll_expired(cx));
                self.abort();
                Poll::Ready(Some(Err(ResponseBodyError::Stalled)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.remaining, RemainingBody::Done)
    }

    fn size_hint(&self) -> SizeHint {
        match self.remaining {
            RemainingBody::Done => SizeHint::with_exact(0),
            RemainingBody::Length(left) => SizeHint::with_exact(left),
            RemainingBody::Chunked(_) | RemainingBody::UntilClose => SizeHint::new(),
        }
    }
}
