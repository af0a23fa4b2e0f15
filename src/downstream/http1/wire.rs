//! The socket of an HTTP/1 connection, the bytes that came too early, and the body that is being read.
//!
//! The body of a request is read where it is wanted, mostly in the task that writes to the backend.

use std::cell::RefCell;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker, ready};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};

use crate::downstream::socket::ClientSocket;
use crate::downstream::watched_io::WatchedIo;
use crate::http::client_body::{Http1Body, IncompleteBody};
use crate::http::h1::batch::WriteBatch;
use crate::http::h1::chunked::{ChunkedDecoder, Decoded};
use crate::http::h1::head::{Framing, HeadLimits, HeadScanner};
use crate::http::h1::read_head;
use crate::os::splice::SplicePipe;

/// Most bytes of a body that one read takes.
const MAX_READ: u64 = 64 * 1024;

/// Bytes of further requests that are taken from a client before the one in flight is answered.
const MAX_READ_AHEAD: usize = 16 * 1024;

/// What a client waits for that announced a body with `Expect: 100-continue`.
const CONTINUE_RESPONSE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// A client's socket and where its bytes stand.
pub struct Wire<I> {
    io: WatchedIo<I>,
    /// Came and was not used yet.
    unread: BytesMut,
    body: RequestBodyState,
    /// Somebody has asked for the body.
    is_body_requested: bool,
    /// What is left to write before the client sends its body.
    pending_continue: &'static [u8],
    /// That was written, and may still stand in the buffer of TLS.
    needs_flush: bool,
    /// The task that serves the connection, when it waits for the body to end.
    connection_waker: Option<Waker>,
}

/// How far the body of the request is.
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
            pending_continue: &[],
            needs_flush: false,
            connection_waker: None,
        }
    }

    /// Whether a part of a request's head has come, or is yet to be looked at.
    pub fn has_unread(&self) -> bool {
        !self.unread.is_empty()
    }

    /// Looks for a whole head. `None`: the client closed before it began one.
    pub fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        scanner: &mut HeadScanner,
        limits: &HeadLimits,
    ) -> Poll<io::Result<read_head::HeadRead>> {
        match ready!(read_head::poll_read_head(&mut self.io, cx, &mut self.unread, scanner, limits))? {
            None if !self.unread.is_empty() => Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
            head => Poll::Ready(Ok(head)),
        }
    }

    /// The head that was read says that this body follows.
    pub fn expect_body(&mut self, framing: Framing, expects_continue: bool) {
        self.body = match framing {
            Framing::None => RequestBodyState::Ended,
            Framing::Length(length) => RequestBodyState::Length(length),
            Framing::Chunked => RequestBodyState::Chunked(ChunkedDecoder::default()),
        };
        self.is_body_requested = false;
        // A client that did not wait is owed nothing.
        self.pending_continue =
            if expects_continue && self.unread.is_empty() { CONTINUE_RESPONSE } else { &[] };
    }

    /// Whether the client sends its body without being asked to, and nobody has looked at it.
    pub fn is_body_untouched(&self) -> bool {
        !self.is_body_requested && self.pending_continue.is_empty()
    }

    /// Nobody gets anything of the body any more.
    ///
    /// SECURITY: what is left of it is not the next request either; the connection ends.
    pub fn abandon_body(&mut self) {
        if !self.is_body_complete() {
            self.body = RequestBodyState::Broken(IncompleteBody(
                "the request was answered before its end".to_owned(),
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
            RequestBodyState::Length(left) => Some(*left),
            RequestBodyState::Chunked(_) | RequestBodyState::Broken(_) => None,
        }
    }

    /// The next bytes of the body.
    pub fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, IncompleteBody>>> {
        self.is_body_requested = true;
        let polled = self.poll_body_bytes(cx);
        let over = match &polled {
            Poll::Ready(Some(Ok(_))) => self.is_body_complete(),
            Poll::Ready(_) => true,
            Poll::Pending => false,
        };
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
                RequestBodyState::Length(left) if !self.unread.is_empty() => {
                    let taken =
                        usize::try_from(*left).map_or(self.unread.len(), |n| n.min(self.unread.len()));
                    *left -= taken as u64;
                    if *left == 0 {
                        self.body = RequestBodyState::Ended;
                    }
                    return Poll::Ready(Some(Ok(self.take_unread(taken))));
                }
                RequestBodyState::Length(left) => *left,
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
            if !self.pending_continue.is_empty() || self.needs_flush {
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

    /// Tells the client that it may send its body.
    fn poll_send_continue(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.pending_continue.is_empty() {
            match ready!(Pin::new(&mut self.io).poll_write(cx, self.pending_continue))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => self.pending_continue = &self.pending_continue[written..],
            }
            self.needs_flush = true;
        }
        ready!(Pin::new(&mut self.io).poll_flush(cx))?;
        self.needs_flush = false;
        Poll::Ready(Ok(()))
    }

    /// Ready when the client has gone away, while its request is being answered. Who reads the body notices it there.
    pub fn poll_disconnect(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        // What nobody has asked for yet is read ahead, as a request may wait for its turn and its client leave meanwhile.
        if !self.is_body_complete()
            && (self.is_body_requested || matches!(self.body, RequestBodyState::Broken(_)))
        {
            if !matches!(self.body, RequestBodyState::Broken(_))
                && !self.connection_waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker()))
            {
                self.connection_waker = Some(cx.waker().clone());
            }
            return Poll::Pending;
        }
        while self.unread.len() < MAX_READ_AHEAD {
            match ready!(read_head::poll_read_more(&mut self.io, cx, &mut self.unread)) {
                Ok(0) | Err(_) => return Poll::Ready(()),
                Ok(_) => {}
            }
        }
        Poll::Pending
    }

    /// Writes a batch. What TLS holds back needs [`Wire::poll_flush`].
    pub fn poll_write(&mut self, cx: &mut Context<'_>, batch: &mut WriteBatch) -> Poll<io::Result<()>> {
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

impl<I: ClientSocket> Wire<I> {
    /// What is written from here on may go out with the end of the connection.
    pub fn cork(&mut self) {
        self.io.inner_mut().cork();
    }

    /// Whether bytes go to the client as they are.
    pub fn can_splice(&self) -> bool {
        self.io.inner().plain_tcp().is_some()
    }

    /// Writes what is in a pipe.
    pub fn poll_drain_pipe(&mut self, cx: &mut Context<'_>, pipe: &mut SplicePipe) -> Poll<io::Result<()>> {
        self.io.poll_drain_pipe(cx, pipe)
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin> Http1Body for RefCell<Wire<I>> {
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

    /// A peer behind a buffer that is full at first, as TLS's may be: what is written there goes out with the second flush.
    #[derive(Default)]
    struct BufferedPeer {
        held: Vec<u8>,
        arrived: Vec<u8>,
        flushes: usize,
    }

    impl AsyncWrite for BufferedPeer {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
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

    /// The client sends its body once it was told that it may.
    impl AsyncRead for BufferedPeer {
        fn poll_read(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buffer: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            if self.arrived != CONTINUE_RESPONSE {
                return Poll::Pending;
            }
            buffer.put_slice(b"body");
            Poll::Ready(Ok(()))
        }
    }

    #[test]
    fn a_continue_that_did_not_go_out_at_once_goes_out_later() {
        let mut wire = Wire::new(WatchedIo::new(BufferedPeer::default(), Rc::new(Activity::unregistered())));
        wire.expect_body(Framing::Length(4), true);
        let cx = &mut Context::from_waker(Waker::noop());
        assert!(wire.poll_body(cx).is_pending());
        match wire.poll_body(cx) {
            Poll::Ready(Some(Ok(body))) => assert_eq!(body, "body"),
            other => panic!("the client was not told to send its body: {other:?}"),
        }
        assert_eq!(wire.io().flushes, 2);
    }
}
