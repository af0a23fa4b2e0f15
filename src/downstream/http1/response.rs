//! Writes a response to the client as its body arrives, and decides whether the connection stays open.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{Method, Version};
use http_body::Body;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::downstream::http1::{ConnectionEnd, Http1Connection};
use crate::downstream::socket::ClientSocket;
use crate::gateway::{DownstreamResponse, ObservedBody};
use crate::http::h1::batch::WriteBatch;
use crate::http::h1::response::{Persistence, ResponseFraming, write_response};
use crate::http::headers::HeaderName;
use crate::os::splice::SplicePipe;

/// Initial capacity for a head and a small body, below a size class of the allocator.
const INITIAL_RESPONSE_CAPACITY: usize = 1000;

/// Minimum length of a body for `splice`, because creating a pipe takes several system calls.
const MIN_SPLICE_LENGTH: u64 = 256 * 1024;

/// The properties of a request that its response depends on.
pub(super) struct RequestSummary {
    pub method: Method,
    pub version: Version,
    /// True if the request allows a persistent connection.
    pub keep_alive: bool,
}

impl<I> Http1Connection<I>
where
    I: AsyncRead + AsyncWrite + ClientSocket + Unpin + 'static,
{
    /// Writes a response as its body arrives. Returns whether the connection stays open.
    pub(super) async fn send_response(
        &mut self,
        request: &RequestSummary,
        response: DownstreamResponse,
    ) -> Result<bool, ConnectionEnd> {
        let DownstreamResponse { status, headers, mut body } = response;
        let framing = ResponseFraming::choose(&request.method, request.version, status, body.size_hint().exact());
        let stays_open = self.can_stay_open(request, framing) && !headers.contains(HeaderName::Connection);
        let persistence = match (stays_open, request.version) {
            (false, _) => Persistence::Close,
            (true, Version::HTTP_10) => Persistence::KeepAlive,
            (true, _) => Persistence::Default,
        };
        let mut batch = WriteBatch::default();
        batch.prefix.reserve(INITIAL_RESPONSE_CAPACITY);
        write_response(&mut batch.prefix, status, &headers, framing, persistence);
        let (mut remaining, has_length) = match framing {
            ResponseFraming::Length(length) => (length, true),
            _ => (u64::MAX, false),
        };
        let (wire, half_close) = (&self.wire, self.limits.half_close);
        let is_large = has_length && remaining >= MIN_SPLICE_LENGTH;
        let mut pipe = (is_large && wire.borrow().can_splice()).then(SplicePipe::default);
        let mut is_complete = false;
        let result = self.until_shutdown(|cx, _| {
            let mut poll_response = || loop {
                if is_complete && !stays_open {
                    wire.borrow_mut().buffer_final_write(&mut batch);
                }
                let filled_pipe = pipe.as_mut().filter(|pipe| !pipe.is_empty());
                if is_complete || filled_pipe.is_some() || !batch.has_room() {
                    ready!(wire.borrow_mut().poll_write(cx, &mut batch))?;
                }
                if let Some(pipe) = filled_pipe {
                    ready!(wire.borrow_mut().poll_drain_pipe(cx, pipe))?;
                }
                if is_complete {
                    return wire.borrow_mut().poll_flush(cx).map_err(ConnectionEnd::Disconnected);
                }
                if let Some(pipe) = &mut pipe
                    && let spliced @ 1.. = body.splice_into(pipe)
                {
                    remaining = remaining.saturating_sub(spliced as u64);
                    is_complete = body.is_end_stream() && remaining == 0;
                    continue;
                }
                // `wire` is not borrowed here: reading the response body may poll the request body.
                match next_data(Pin::new(&mut body), cx) {
                    // The response has no body.
                    Poll::Ready(Some(Ok(_))) if framing == ResponseFraming::None => {}
                    Poll::Ready(Some(Ok(data))) => {
                        let Some(rest) = remaining.checked_sub(data.len() as u64) else {
                            return Poll::Ready(Err(ConnectionEnd::ResponseIncomplete));
                        };
                        remaining = rest;
                        is_complete = body.is_end_stream() && (remaining == 0 || !has_length);
                        match (framing, is_complete) {
                            (ResponseFraming::Chunked, false) => batch.push_chunk(data),
                            (ResponseFraming::Chunked, true) => batch.push_final_chunk(data),
                            _ => batch.push_data(data),
                        }
                    }
                    Poll::Ready(None) if has_length && remaining > 0 => {
                        return Poll::Ready(Err(ConnectionEnd::ResponseIncomplete));
                    }
                    Poll::Ready(None) => {
                        is_complete = true;
                        if framing == ResponseFraming::Chunked {
                            batch.push_last_chunk();
                        }
                    }
                    // The data received so far is sent, so that the client sees where the response is cut off.
                    Poll::Ready(Some(Err(()))) => {
                        let _ = wire.borrow_mut().poll_write(cx, &mut batch);
                        let _ = wire.borrow_mut().poll_flush(cx);
                        return Poll::Ready(Err(ConnectionEnd::ResponseIncomplete));
                    }
                    Poll::Pending => {
                        let mut wire = wire.borrow_mut();
                        if !batch.is_empty() {
                            ready!(wire.poll_write(cx, &mut batch))?;
                        }
                        if let Poll::Ready(Err(error)) = wire.poll_flush(cx) {
                            return Poll::Ready(Err(ConnectionEnd::Disconnected(error)));
                        }
                        ready!(wire.poll_disconnect(cx, half_close));
                        return Poll::Ready(Err(ConnectionEnd::Disconnected(io::ErrorKind::ConnectionAborted.into())));
                    }
                }
            };
            let polled = poll_response();
            // The client may read only after it has sent its whole request.
            if polled.is_pending() && body.poll_upload(cx) {
                self.activity.record_upload_progress();
            }
            polled
        });
        let result = result.await.unwrap_or_else(Err);
        if result.is_err() && framing == ResponseFraming::Close {
            // SECURITY: without a length, only a reset shows the client that its response is incomplete.
            self.wire.borrow().io().reset_on_drop();
        }
        result?;
        body.record_complete();
        Ok(stays_open)
    }

    /// Returns whether the request, the response and the limits allow a persistent connection.
    fn can_stay_open(&self, request: &RequestSummary, framing: ResponseFraming) -> bool {
        request.keep_alive
            && !self.is_closing.get()
            && framing != ResponseFraming::Close
            && self.activity.request_count() < self.limits.max_requests
            && self.serving.get().config.timeouts.connection_age.is_none_or(|age| self.activity.age() < age)
    }
}

/// The next bytes of a response body, at least one.
fn next_data(mut body: Pin<&mut ObservedBody>, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, ()>>> {
    loop {
        match ready!(body.as_mut().poll_frame(cx)) {
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) if !data.is_empty() => return Poll::Ready(Some(Ok(data))),
                _ => {}
            },
            Some(Err(_)) => return Poll::Ready(Some(Err(()))),
            None => return Poll::Ready(None),
        }
    }
}
