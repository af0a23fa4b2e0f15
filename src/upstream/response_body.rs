//! A backend's response body while it is forwarded, with a limit on pauses; returns the connection to its pool at the
//! end. It knows nothing about the client.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio_util::either::Either;

use crate::admission::RequestPermit;
use crate::http::h1::chunked::{ChunkedDecoder, Decoded};
use crate::http::h1::head::Framing;
use crate::http::h1::response::BodyExtent;
use crate::os::splice::SplicePipe;
use crate::upstream::abandoned::abandon_response;
use crate::upstream::connection::UpstreamConnection;
use crate::upstream::exchange::Upload;
use crate::upstream::load_balancer::UpstreamInFlight;
use crate::upstream::progress_timeout::ProgressTimeout;

/// Why the backend's body did not arrive completely. The client must see that it is truncated, so this error aborts the
/// client's connection or stream.
#[derive(Debug, thiserror::Error)]
pub enum ResponseBodyError {
    /// The backend made no progress for too long.
    #[error("timeout while reading the upstream's response body")]
    Stalled,
    /// The backend's connection failed, or the framing is invalid.
    #[error("the upstream's response is incomplete: {0}")]
    Broken(String),
}

/// Maximum number of bytes per read. Twice as many cost no less; half of it costs a quarter more behind TLS.
const MAX_READ_SIZE: u64 = 128 * 1024;

/// Number of bytes per read if memory is short, or if they are discarded.
const MIN_READ_SIZE: u64 = 8 * 1024;

/// A backend's response body. Once it is read to the end, its connection goes back to the pool.
pub struct ResponseBody {
    connection: Option<Box<UpstreamConnection>>,
    remaining: RemainingBody,
    /// The rest of the request, if the response started before the request was sent completely.
    upload: Option<Box<Upload>>,
    in_flight: Option<UpstreamInFlight>,
    /// The permit of the request, without its slot, once the response is complete.
    permit: Option<Box<RequestPermit>>,
    /// True if the response allows keep-alive.
    is_reusable: bool,
    progress_timeout: ProgressTimeout,
}

/// The framing and length of the rest of the body.
enum RemainingBody {
    Done,
    Length(u64),
    Chunked(ChunkedDecoder),
    UntilClose,
}

impl RemainingBody {
    fn new(extent: BodyExtent) -> RemainingBody {
        match extent {
            BodyExtent::Framed(Framing::None) => RemainingBody::Done,
            BodyExtent::Framed(Framing::Length(length)) => RemainingBody::Length(length),
            BodyExtent::Framed(Framing::Chunked) => RemainingBody::Chunked(ChunkedDecoder::default()),
            BodyExtent::UntilClose => RemainingBody::UntilClose,
        }
    }
}

impl ResponseBody {
    pub(super) fn new(
        connection: Box<UpstreamConnection>,
        extent: BodyExtent,
        upload: Option<Box<Upload>>,
        in_flight: UpstreamInFlight,
        is_reusable: bool,
        max_pause: Duration,
    ) -> ResponseBody {
        let mut body = ResponseBody {
            connection: Some(connection),
            remaining: RemainingBody::new(extent),
            upload,
            in_flight: Some(in_flight),
            permit: None,
            is_reusable,
            progress_timeout: ProgressTimeout::new(max_pause),
        };
        body.release_at_end();
        body
    }

    /// The body of a response to an abandoned request. Its connection is closed at the end.
    pub(super) fn without_request(
        connection: Box<UpstreamConnection>,
        extent: BodyExtent,
        max_pause: Duration,
    ) -> ResponseBody {
        ResponseBody::abandoned(connection, RemainingBody::new(extent), ProgressTimeout::new(max_pause))
    }

    fn abandoned(
        connection: Box<UpstreamConnection>,
        remaining: RemainingBody,
        progress_timeout: ProgressTimeout,
    ) -> ResponseBody {
        let (connection, upload, in_flight, permit) = (Some(connection), None, None, None);
        ResponseBody { connection, remaining, upload, in_flight, permit, is_reusable: false, progress_timeout }
    }

    /// Closes the direction to the backend.
    pub(super) fn half_close(&mut self) {
        self.upload = None;
        if let Some(connection) = &mut self.connection {
            connection.half_close();
        }
    }

    /// The permit of the request, for sending it again in place of reading this body.
    pub fn take_permit(&mut self) -> Option<Box<RequestPermit>> {
        self.permit.take().or_else(|| self.in_flight.as_mut()?.permit.take())
    }

    /// Returns the connection to the pool, or closes it, once the response is complete.
    fn release_at_end(&mut self) {
        if !self.is_end_stream() {
            return;
        }
        let connection = self.connection.take();
        let Some(mut in_flight) = self.in_flight.take() else { return };
        if let (Some(connection), true) = (connection, self.is_reusable) {
            in_flight.return_connection(connection);
        }
        // The backend has finished. The client may still read, and counts until it has.
        self.permit = in_flight.permit.take();
        if let Some(permit) = &mut self.permit {
            permit.release_slot();
        }
    }

    /// Call this when data has arrived.
    fn record_data(&mut self) {
        self.progress_timeout.record_progress();
        self.release_at_end();
        // The rest may be delayed by a slow client, so the connection must not time out on unacknowledged data.
        if let Some(connection) = &mut self.connection {
            connection.set_user_timeout(None);
        }
    }

    /// Closes the connection.
    fn abort(&mut self) {
        self.connection = None;
        self.permit = self.in_flight.take().and_then(|mut in_flight| in_flight.permit.take());
    }

    /// Splices received bytes into an empty pipe, and returns their number. Returns 0 if the body has to be read
    /// instead: buffered data, chunked framing, TLS, a request body that is still being sent, or a pipe that accepts
    /// nothing.
    pub fn splice_into(&mut self, pipe: &mut SplicePipe) -> usize {
        let (Some(connection), None) = (&self.connection, &self.upload) else { return 0 };
        let (Either::Left(socket), true) = (&connection.stream, connection.unread.is_empty()) else {
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

    /// Sends more of the request, if it is not sent completely. Reading the response does this too; call it while the
    /// response is not read, because its client may read only after it has sent the whole request. Returns whether there
    /// was progress.
    pub fn poll_upload(&mut self, cx: &mut Context<'_>) -> bool {
        let (Some(upload), Some(connection)) = (&mut self.upload, &mut self.connection) else { return false };
        let mut progress = false;
        match upload.poll(&mut connection.stream, cx, &mut progress) {
            // The response may still be complete after an error.
            Poll::Ready(_) => self.upload = None,
            Poll::Pending => {}
        }
        progress
    }

    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, ResponseBodyError>>> {
        self.poll_upload(cx);
        let Some(connection) = self.connection.as_mut() else { return Poll::Ready(None) };
        let broken = |why: &str| Poll::Ready(Some(Err(ResponseBodyError::Broken(why.to_owned()))));
        loop {
            let unread = &mut connection.unread;
            let wanted = match &mut self.remaining {
                RemainingBody::Done => return Poll::Ready(None),
                RemainingBody::Length(left) if !unread.is_empty() => {
                    let taken = usize::try_from(*left).map_or(unread.len(), |left| left.min(unread.len()));
                    *left -= taken as u64;
                    // Keep the buffer while more data is expected: its memory is reused once these bytes are written.
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
            let wanted = usize::try_from(wanted.min(max_read_size(self.in_flight.as_ref()))).expect("128 KiB");
            match ready!(connection.poll_fill(cx, wanted)) {
                Ok(0) if matches!(self.remaining, RemainingBody::UntilClose) => {
                    self.remaining = RemainingBody::Done;
                    return Poll::Ready(None);
                }
                Ok(0) => return broken("the connection was closed before its end"),
                Ok(_) => {}
                Err(error) => return broken(&error.to_string()),
            }
        }
    }
}

/// What one read returns is kept until the client has read it.
fn max_read_size(in_flight: Option<&UpstreamInFlight>) -> u64 {
    let Some(UpstreamInFlight { permit, .. }) = in_flight else { return MIN_READ_SIZE };
    let memory = permit.as_deref().map_or(u64::MAX, RequestPermit::response_memory);
    memory.clamp(MIN_READ_SIZE, MAX_READ_SIZE)
}

impl Drop for ResponseBody {
    fn drop(&mut self) {
        if let (Some(connection), Some(in_flight)) = (self.connection.take(), self.in_flight.take()) {
            let remaining = std::mem::replace(&mut self.remaining, RemainingBody::Done);
            let progress_timeout = std::mem::replace(&mut self.progress_timeout, ProgressTimeout::new(Duration::MAX));
            abandon_response(in_flight, Box::new(ResponseBody::abandoned(connection, remaining, progress_timeout)));
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
