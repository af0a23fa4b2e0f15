//! The socket of an HTTP/1 connection with its read buffer, and the state of the request body.
//!
//! A request body is read by its consumer, usually the code that writes to the backend, and shares the socket with the
//! code that writes the response.

use std::cell::RefCell;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker, ready};

use bytes::{Bytes, BytesMut};
use http::Version;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};

use crate::config::HalfClose;
use crate::downstream::departure::DepartureWatch;
use crate::downstream::socket::ClientSocket;
use crate::downstream::watched_io::WatchedIo;
use crate::http::client_body::{ClientBodySource, IncompleteBody};
use crate::http::h1::batch::WriteBatch;
use crate::http::h1::chunked::{ChunkedDecoder, Decoded};
use crate::http::h1::head::{Framing, HeadError, HeadLimits, HeadScanner};
use crate::http::h1::read_head;
use crate::os::splice::SplicePipe;

/// Maximum bytes of a body per read.
const MAX_READ: u64 = 64 * 1024;

/// Maximum bytes of further requests that are read before the response to the request in flight.
const MAX_READ_AHEAD: usize = 16 * 1024;

/// The response that a client with `Expect: 100-continue` waits for before it sends the body.
const CONTINUE_RESPONSE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

const CONTINUE_LENGTH: u8 = 25;

/// A client's socket, its read buffer, and the state of the request body.
pub struct Wire<I> {
    io: WatchedIo<I>,
    /// Received data that was not processed yet.
    unread: BytesMut,
    body: RequestBodyState,
    /// The body was polled.
    is_body_requested: bool,
    /// Length of the unwritten rest of the 100 response.
    pending_continue: u8,
    /// The 100 response was written, and may still be in the buffer of TLS.
    needs_flush: bool,
    /// Wakes the connection's task when the body ends.
    connection_waker: Option<Waker>,
    /// The reader of the body waits for data, so it detects that the client disconnects.
    is_reader_waiting: bool,
    /// Detects that the client disconnects while its upload is blocked; created when that happens first.
    departure: Option<Box<DepartureWatch>>,
    /// The client accepts interim responses: it uses HTTP/1.1, and the final response has not begun.
    accepts_interim: bool,
}

/// The part of the request body that is still to be read.
enum RequestBodyState {
    Ended,
    Length(u64),
    Chunked(ChunkedDecoder),
    Broken(IncompleteBody),
}

impl<I: AsyncRead + AsyncWrite + Unpin> Wire<I> {
    pub fn new(io: WatchedIo<I>) -> Wire<I> {
        Wire {
            io,
            unread: BytesMut::new(),
            body: RequestBodyState::Ended,
            is_body_requested: false,
            pending_continue: 0,
            needs_flush: false,
            connection_waker: None,
            is_reader_waiting: false,
            departure: None,
            accepts_interim: false,
        }
    }

    /// Returns whether there is received data that was not processed yet.
    pub fn has_unread(&self) -> bool {
        !self.unread.is_empty()
    }

    /// Reads a request head. `None`: the client closed the connection before it sent one.
    pub fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        scanner: &mut HeadScanner,
        limits: &HeadLimits,
    ) -> Poll<io::Result<read_head::HeadRead>> {
        match read_head::poll_read_head(&mut self.io, cx, &mut self.unread, scanner, limits)? {
            Poll::Ready(None) if !self.unread.is_empty() && *self.unread != *b"\r\n" => {
                Poll::Ready(Ok(Some(Err(HeadError::Malformed("the connection was closed within the head")))))
            }
            Poll::Ready(head) => Poll::Ready(Ok(head)),
            Poll::Pending => {
                // RFC 9112 section 2.2: an empty line before a request is ignored. Old clients send one after a POST.
                if *self.unread == *b"\r\n" {
                    self.unread = BytesMut::new();
                    *scanner = HeadScanner::default();
                }
                Poll::Pending
            }
        }
    }

    /// Sets the framing of the body that follows the head.
    pub fn expect_body(&mut self, framing: Framing, version: Version, expects_continue: bool) {
        self.body = match framing {
            Framing::None => RequestBodyState::Ended,
            Framing::Length(length) => RequestBodyState::Length(length),
            Framing::Chunked => RequestBodyState::Chunked(ChunkedDecoder::default()),
        };
        self.is_body_requested = false;
        self.accepts_interim = version == Version::HTTP_11;
        self.departure = None;
        // A client that already sends its body does not wait for the 100 response.
        self.pending_continue = if expects_continue && self.unread.is_empty() { CONTINUE_LENGTH } else { 0 };
    }

    /// Returns whether the client sends its body without waiting for a 100 response, and nothing of it was read.
    pub fn is_body_untouched(&self) -> bool {
        !self.is_body_requested && self.pending_continue == 0
    }

    /// Makes further reads of the body fail.
    ///
    /// SECURITY: the rest of it must not be parsed as the next request either, so the connection is closed.
    pub fn abandon_body(&mut self) {
        if !self.is_body_complete() {
            self.body = RequestBodyState::Broken(IncompleteBody(
                "the response was sent before the end of the request body".to_owned(),
            ));
        }
    }

    pub fn is_body_complete(&self) -> bool {
        match &self.body {
            RequestBodyState::Ended => true,
            RequestBodyState::Chunked(decoder) => decoder.is_done(),
            RequestBodyState::Length(_) | RequestBodyState::Broken(_) => false,
        }
    }

    pub fn remaining_body(&self) -> Option<u64> {
        match &self.body {
            RequestBodyState::Ended => Some(0),
            RequestBodyState::Length(remaining) => Some(*remaining),
            RequestBodyState::Chunked(_) | RequestBodyState::Broken(_) => None,
        }
    }

    /// Reads the next bytes of the body.
    pub fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, IncompleteBody>>> {
        self.is_body_requested = true;
        let polled = self.poll_body_bytes(cx);
        let over = match &polled {
            Poll::Ready(Some(Ok(_))) => self.is_body_complete(),
            Poll::Ready(_) => true,
            Poll::Pending => false,
        };
        self.is_reader_waiting = polled.is_pending();
        if over && let Some(server) = self.connection_waker.take() {
            server.wake();
        }
        polled
    }

    fn poll_body_bytes(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, IncompleteBody>>> {
        loop {
            let wanted = match &mut self.body {
                RequestBodyState::Ended => return Poll::Ready(None),
                RequestBodyState::Broken(why) => return Poll::Ready(Some(Err(why.clone()))),
                RequestBodyState::Length(remaining) if !self.unread.is_empty() => {
                    let taken = usize::try_from(*remaining).map_or(self.unread.len(), |n| n.min(self.unread.len()));
                    *remaining -= taken as u64;
                    if *remaining == 0 {
                        self.body = RequestBodyState::Ended;
                    }
                    return Poll::Ready(Some(Ok(self.take_unread(taken))));
                }
                RequestBodyState::Length(remaining) => *remaining,
                RequestBodyState::Chunked(decoder) => match decoder.decode(&mut self.unread) {
                    Ok(Decoded::Data(data)) => return Poll::Ready(Some(Ok(data))),
                    Ok(Decoded::End) => {
                        self.body = RequestBodyState::Ended;
                        return Poll::Ready(None);
                    }
                    Ok(Decoded::NeedsMore) => MAX_READ,
                    Err(error) => return self.fail_body(error.0),
                },
            };
            if self.pending_continue > 0 || self.needs_flush {
                match ready!(self.poll_send_continue(cx)) {
                    Ok(()) => {}
                    Err(_) => return self.fail_body("the connection was lost"),
                }
            }
            let room = usize::try_from(wanted.min(MAX_READ)).expect("64 KiB");
            self.unread.reserve(room);
            match ready!(pin!(self.io.read_buf(&mut self.unread)).poll(cx)) {
                Ok(0) => return self.fail_body("the connection was closed within the body"),
                Ok(_) => {}
                Err(_) => return self.fail_body("the connection was lost"),
            }
        }
    }

    fn take_unread(&mut self, count: usize) -> Bytes {
        let taken = match count == self.unread.len() {
            true => std::mem::take(&mut self.unread),
            false => self.unread.split_to(count),
        };
        taken.freeze()
    }

    fn fail_body(&mut self, why: &str) -> Poll<Option<Result<Bytes, IncompleteBody>>> {
        let why = IncompleteBody(why.to_owned());
        self.body = RequestBodyState::Broken(why.clone());
        Poll::Ready(Some(Err(why)))
    }

    /// Sends the 100 response.
    fn poll_send_continue(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.pending_continue > 0 {
            let rest = &CONTINUE_RESPONSE[usize::from(CONTINUE_LENGTH - self.pending_continue)..];
            match ready!(Pin::new(&mut self.io).poll_write(cx, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => self.pending_continue -= u8::try_from(written).expect("at most the rest"),
            }
            self.needs_flush = true;
        }
        ready!(Pin::new(&mut self.io).poll_flush(cx))?;
        self.needs_flush = false;
        Poll::Ready(Ok(()))
    }

    /// Writes a batch of the final response. TLS may buffer data until [`Wire::poll_flush`].
    pub fn poll_write(&mut self, cx: &mut Context<'_>, batch: &mut WriteBatch) -> Poll<io::Result<()>> {
        self.accepts_interim = false;
        batch.poll_write(&mut self.io, cx)
    }

    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    pub fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    pub fn io(&self) -> &I {
        self.io.inner()
    }
}

impl<I: AsyncRead + AsyncWrite + ClientSocket + Unpin> Wire<I> {
    /// Ready when the client disconnects while its request is served. While the reader of a body waits for data, it
    /// detects that.
    pub fn poll_disconnect(&mut self, cx: &mut Context<'_>, half_close: HalfClose) -> Poll<()> {
        // A body that was not polled yet is read ahead, because its client may disconnect while the request waits in
        // the queue.
        if !self.is_body_complete() && (self.is_body_requested || matches!(self.body, RequestBodyState::Broken(_))) {
            if matches!(self.body, RequestBodyState::Broken(_)) {
                return Poll::Pending;
            }
            if !self.connection_waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                self.connection_waker = Some(cx.waker().clone());
            }
            return self.poll_departure(cx, half_close);
        }
        while self.unread.len() < MAX_READ_AHEAD {
            match ready!(read_head::poll_read_more(&mut self.io, cx, &mut self.unread)) {
                // The request is complete, so the client may wait for the response.
                Ok(0) if half_close == HalfClose::Serve && self.is_body_complete() => return Poll::Pending,
                Ok(0) | Err(_) => return Poll::Ready(()),
                Ok(_) => {}
            }
        }
        self.poll_departure(cx, half_close)
    }

    /// Ready when the client disconnects while nothing is read from its socket.
    fn poll_departure(&mut self, cx: &mut Context<'_>, half_close: HalfClose) -> Poll<()> {
        // The rest of the request may be in the socket's buffer, before the FIN.
        if half_close == HalfClose::Serve {
            return Poll::Pending;
        }
        if self.is_reader_waiting {
            if let Some(departure) = &mut self.departure {
                departure.record_progress();
            }
            return Poll::Pending;
        }
        let accepts_probe = self.accepts_interim && !self.is_body_complete();
        let is_sending = self.pending_continue > 0 || self.needs_flush;
        let departure = self.departure.get_or_insert_with(|| Box::new(DepartureWatch::new(self.io.inner().tcp())));
        if departure.poll_departure(cx).is_ready() {
            return Poll::Ready(());
        }
        if accepts_probe && !is_sending && departure.poll_probe(cx).is_ready() {
            // RFC 9110 section 15.2: a client ignores a 100 response that it does not expect.
            self.pending_continue = CONTINUE_LENGTH;
            let _ = self.poll_send_continue(cx);
        }
        Poll::Pending
    }

    /// Buffers the last batch of the connection together with the close of TLS, if possible: the next flush sends both.
    pub fn buffer_final_write(&mut self, batch: &mut WriteBatch) {
        if batch.written() == 0 && self.io.inner_mut().buffer_final_write([&batch.prefix, &batch.data, batch.suffix]) {
            *batch = WriteBatch::default();
        }
    }

    /// Returns whether data can be moved from a pipe to the socket, which TLS rules out.
    pub fn can_splice(&self) -> bool {
        self.io.inner().plain_tcp().is_some()
    }

    /// Writes the contents of a pipe to the socket.
    pub fn poll_drain_pipe(&mut self, cx: &mut Context<'_>, pipe: &mut SplicePipe) -> Poll<io::Result<()>> {
        self.io.poll_drain_pipe(cx, pipe)
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin> ClientBodySource for RefCell<Wire<I>> {
    fn poll_data(&self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, IncompleteBody>>> {
        self.borrow_mut().poll_body(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.borrow().is_body_complete()
    }

    fn remaining(&self) -> Option<u64> {
        self.borrow().remaining_body()
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use tokio::io::ReadBuf;

    use super::*;
    use crate::downstream::activity::Activity;

    /// A peer behind a buffer like that of TLS, whose first flush blocks: written data arrives with the second flush.
    #[derive(Default)]
    struct BufferedPeer {
        held: Vec<u8>,
        arrived: Vec<u8>,
        flushes: usize,
    }

    impl AsyncWrite for BufferedPeer {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            self.held.extend_from_slice(bytes);
            Poll::Ready(Ok(bytes.len()))
        }

        fn poll_flush(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.flushes += 1;
            if self.flushes == 1 {
                return Poll::Pending;
            }
            let held = std::mem::take(&mut self.held);
            self.arrived.extend(held);
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    /// The client sends its body after the 100 response.
    impl AsyncRead for BufferedPeer {
        fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            if self.arrived != CONTINUE_RESPONSE {
                return Poll::Pending;
            }
            buffer.put_slice(b"body");
            Poll::Ready(Ok(()))
        }
    }

    #[test]
    fn a_blocked_100_response_is_flushed_later() {
        let mut wire = Wire::new(WatchedIo::new(BufferedPeer::default(), Rc::new(Activity::unregistered())));
        wire.expect_body(Framing::Length(4), Version::HTTP_11, true);
        let cx = &mut Context::from_waker(Waker::noop());
        assert!(wire.poll_body(cx).is_pending());
        match wire.poll_body(cx) {
            Poll::Ready(Some(Ok(body))) => assert_eq!(body, "body"),
            other => panic!("the 100 response was not sent: {other:?}"),
        }
        assert_eq!(wire.io().flushes, 2);
    }
}
