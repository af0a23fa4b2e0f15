//! A socket whose small writes can be made to go out together.
//!
//! It lies beneath TLS, which writes when it has something to say: session tickets when the handshake is over, and an
//! alert when the connection is. Each of these would be a system call and a packet of its own, though an answer follows
//! the one and precedes the other.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::connection::gathered::Gathered;

/// Most bytes that are held: an answer as HTTP/1 gathers it, and what TLS adds to it.
const MOST_HELD: usize = 20 * 1024;

/// A socket, and what is held back from it.
pub struct CorkedIo<I> {
    io: I,
    held: Gathered,
    is_corked: bool,
}

impl<I> CorkedIo<I> {
    /// Corked: what is written is held until the peer is waited for.
    pub fn new(io: I) -> CorkedIo<I> {
        CorkedIo { io, held: Gathered::default(), is_corked: true }
    }

    /// The socket.
    pub fn inner(&self) -> &I {
        &self.io
    }

    /// Holds what is written from here on until the peer is waited for, or the socket shut down.
    pub fn cork(&mut self) {
        self.is_corked = true;
    }

    /// What is held goes out with what is written next.
    pub fn uncork(&mut self) {
        self.is_corked = false;
    }
}

impl<I: AsyncWrite + Unpin> CorkedIo<I> {
    /// Has what is held go out, as far as the socket takes it at once.
    pub async fn send_held(&mut self) {
        poll_fn(|cx| {
            let _ = self.poll_drain(cx);
            Poll::Ready(())
        })
        .await;
    }

    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.held.poll_drain(&mut self.io, cx))?;
        // Few writes are held, and idle connections are to own no buffer.
        self.held.release();
        Poll::Ready(Ok(()))
    }

    fn passes(&self) -> bool {
        !self.is_corked && self.held.is_empty()
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin> AsyncRead for CorkedIo<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.io).poll_read(cx, buf);
        // Who waits for the peer must not hold back what the peer waits for.
        if polled.is_pending()
            && self.is_corked
            && let Poll::Ready(Err(error)) = self.poll_drain(cx)
        {
            return Poll::Ready(Err(error));
        }
        polled
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin> AsyncWrite for CorkedIo<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.passes() {
            return Pin::new(&mut self.io).poll_write(cx, buf);
        }
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let count = bufs.iter().map(|buf| buf.len()).sum::<usize>();
        if !self.passes() && self.held.len() + count <= MOST_HELD {
            bufs.iter().for_each(|buf| self.held.push(buf));
            // What the socket does not take now goes with the flush.
            if !self.is_corked
                && let Poll::Ready(Err(error)) = self.poll_drain(cx)
            {
                return Poll::Ready(Err(error));
            }
            return Poll::Ready(Ok(count));
        }
        ready!(self.poll_drain(cx))?;
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.is_corked {
            return Poll::Ready(Ok(()));
        }
        ready!(self.poll_drain(cx))?;
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(cx))?;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    /// Notes what it is given, each write by itself, and has nothing to be read. Takes so many bytes, no more.
    struct Noting {
        writes: Vec<String>,
        room: usize,
        is_shut: bool,
    }

    impl AsyncRead for Noting {
        fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            Poll::Pending
        }
    }

    impl AsyncWrite for Noting {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            let taken = buf.len().min(self.room);
            if taken == 0 {
                return Poll::Pending;
            }
            self.room -= taken;
            self.writes.push(String::from_utf8_lossy(&buf[..taken]).into_owned());
            Poll::Ready(Ok(taken))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.is_shut = true;
            Poll::Ready(Ok(()))
        }
    }

    fn corked() -> CorkedIo<Noting> {
        CorkedIo::new(Noting { writes: Vec::new(), room: usize::MAX, is_shut: false })
    }

    fn write(io: &mut CorkedIo<Noting>, text: &str) {
        let cx = &mut Context::from_waker(Waker::noop());
        match Pin::new(io).poll_write(cx, text.as_bytes()) {
            Poll::Ready(Ok(count)) => assert_eq!(count, text.len()),
            other => panic!("{other:?}"),
        }
    }

    fn wait(io: &mut CorkedIo<Noting>) {
        let mut room = [0; 8];
        let cx = &mut Context::from_waker(Waker::noop());
        assert!(Pin::new(io).poll_read(cx, &mut ReadBuf::new(&mut room)).is_pending());
    }

    fn flush(io: &mut CorkedIo<Noting>) -> bool {
        let cx = &mut Context::from_waker(Waker::noop());
        Pin::new(io).poll_flush(cx).is_ready()
    }

    #[test]
    fn what_the_peer_waits_for_goes_out_when_the_peer_is_waited_for() {
        let mut io = corked();
        write(&mut io, "hello ");
        assert!(flush(&mut io));
        write(&mut io, "finished");
        assert!(io.io.writes.is_empty());
        wait(&mut io);
        assert_eq!(io.io.writes, ["hello finished"]);
    }

    #[test]
    fn tickets_go_with_the_first_answer() {
        let mut io = corked();
        write(&mut io, "tickets ");
        io.uncork();
        wait(&mut io);
        assert!(io.io.writes.is_empty(), "nobody waits for tickets");
        write(&mut io, "answer");
        write(&mut io, "another");
        assert_eq!(io.io.writes, ["tickets answer", "another"]);
    }

    #[test]
    fn the_last_answer_goes_with_the_end() {
        let mut io = corked();
        io.uncork();
        write(&mut io, "first");
        io.cork();
        write(&mut io, "last ");
        assert!(flush(&mut io));
        write(&mut io, "alert");
        assert_eq!(io.io.writes, ["first"]);
        let cx = &mut Context::from_waker(Waker::noop());
        assert!(Pin::new(&mut io).poll_shutdown(cx).is_ready());
        assert_eq!(io.io.writes, ["first", "last alert"]);
        assert!(io.io.is_shut);
    }

    #[test]
    fn what_is_large_or_not_taken_at_once_is_sent_in_order_and_whole() {
        let mut io = corked();
        io.io.room = 4;
        write(&mut io, "tickets ");
        io.uncork();
        write(&mut io, "answer ");
        assert!(!flush(&mut io));
        io.io.room = usize::MAX;
        io.cork();
        let large = "x".repeat(MOST_HELD);
        write(&mut io, &large);
        assert_eq!(io.io.writes.concat(), format!("tickets answer {large}"));
    }
}
