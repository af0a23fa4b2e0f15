//! An answer on its way to the client.

use std::io;
use std::pin::Pin;
use std::rc::Rc;
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

/// Room for a head and a small body. The allocator has pieces of this size at hand.
const INITIAL_RESPONSE_CAPACITY: usize = 1000;

/// A body of so many bytes is worth a pipe, which takes some system calls to make.
const MIN_SPLICE_LENGTH: u64 = 256 * 1024;

/// What an answer needs to know of its request.
pub(super) struct RequestSummary {
    pub method: Method,
    pub version: Version,
    /// The connection may go on as far as the request is concerned.
    pub keep_alive: bool,
}

impl<I> Http1Connection<I>
where
    I: AsyncRead + AsyncWrite + ClientSocket + Unpin + 'static,
{
    /// Writes an answer as its body comes. Says whether the connection can go on.
    pub(super) async fn send_response(
        &mut self,
        asked: &RequestSummary,
        reply: DownstreamResponse,
        body_is_passable: bool,
    ) -> Result<bool, ConnectionEnd> {
        let DownstreamResponse { status, headers, mut body } = reply;
        let framing = ResponseFraming::choose(&asked.method, asked.version, status, body.size_hint().exact());
        let goes_on = body_is_passable
            && asked.keep_alive
            && !self.is_closing
            && framing != ResponseFraming::Close
            && self.request_count < self.limits.max_requests
            && self.limits.max_age.is_none_or(|age| self.opened_at.elapsed() < age)
            && !headers.contains(HeaderName::Connection);
        let persistence = match (goes_on, asked.version) {
            (false, _) => Persistence::Close,
            (true, Version::HTTP_10) => Persistence::KeepAlive,
            (true, _) => Persistence::Default,
        };
        let mut batch = WriteBatch::default();
        batch.prefix.reserve(INITIAL_RESPONSE_CAPACITY);
        write_response(&mut batch.prefix, status, &headers, framing, persistence);
        let (mut left, is_counted) = match framing {
            ResponseFraming::Length(length) => (length, true),
            _ => (u64::MAX, false),
        };
        let wire = Rc::clone(&self.wire);
        let is_large = is_counted && left >= MIN_SPLICE_LENGTH;
        let mut pipe = (is_large && wire.borrow().can_splice()).then(SplicePipe::default);
        let mut ended = false;
        let written = self.until_shutdown(|cx, _| {
            loop {
                if ended && !goes_on {
                    wire.borrow_mut().cork();
                }
                let full = pipe.as_mut().filter(|pipe| !pipe.is_empty());
                if ended || full.is_some() || !batch.has_room() {
                    ready!(wire.borrow_mut().poll_write(cx, &mut batch))?;
                }
                if let Some(pipe) = full {
                    ready!(wire.borrow_mut().poll_drain_pipe(cx, pipe))?;
                }
                if ended {
                    return wire.borrow_mut().poll_flush(cx).map_err(ConnectionEnd::Disconnected);
                }
                if let Some(pipe) = &mut pipe
                    && let moved @ 1.. = body.splice_into(pipe)
                {
                    left = left.saturating_sub(moved as u64);
                    ended = body.is_end_stream() && left == 0;
                    continue;
                }
                // Nothing is borrowed here: the body may be read while the request's is still being sent.
                match next_data(Pin::new(&mut body), cx) {
                    // Nothing of it is for the client.
                    Poll::Ready(Some(Ok(_))) if framing == ResponseFraming::None => {}
                    Poll::Ready(Some(Ok(data))) => {
                        let Some(still) = left.checked_sub(data.len() as u64) else {
                            return Poll::Ready(Err(ConnectionEnd::ResponseIncomplete));
                        };
                        left = still;
                        ended = body.is_end_stream() && (left == 0 || !is_counted);
                        match (framing, ended) {
                            (ResponseFraming::Chunked, false) => batch.push_chunk(data),
                            (ResponseFraming::Chunked, true) => batch.push_final_chunk(data),
                            _ => batch.push_data(data),
                        }
                    }
                    Poll::Ready(None) if is_counted && left > 0 => {
                        return Poll::Ready(Err(ConnectionEnd::ResponseIncomplete));
                    }
                    Poll::Ready(None) => {
                        ended = true;
                        if framing == ResponseFraming::Chunked {
                            batch.push_last_chunk();
                        }
                    }
                    // What has come so far goes out, so that the client sees where the answer breaks off.
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
                        ready!(wire.poll_disconnect(cx));
                        return Poll::Ready(Err(ConnectionEnd::Disconnected(
                            io::ErrorKind::ConnectionAborted.into(),
                        )));
                    }
                }
            }
        });
        let written = written.await?;
        if matches!(written, Err(ConnectionEnd::ResponseIncomplete)) && framing == ResponseFraming::Close {
            // SECURITY: nothing but a reset tells such a client that its answer is not whole.
            self.wire.borrow().io().reset_on_drop();
        }
        written?;
        Ok(goes_on)
    }
}

/// The next bytes of an answer, one at least.
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
