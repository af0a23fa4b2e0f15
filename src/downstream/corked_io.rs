//! A socket whose last writes go out together.
//!
//! It lies beneath TLS, which ends a connection with an alert: a system call and a packet of its own, though the last answer
//! has just been written. Session tickets are not held for the first answer: nothing else acknowledges the end of the
//! client's handshake, and a client without TCP_NODELAY sends no request before that.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::downstream::write_buffer::Gathered;

/// Most bytes that are held: an answer as HTTP/1 gathers it, and what TLS adds to it.
const MOST_HELD: usize = 20 * 1024;

/// A socket, and what is held back from it.
pub struct CorkedIo<I> {
    io: I,
    held: Gathered,
    is_corked: bool,
}

impl<I> CorkedIo<I> {
    /// Lets everything through.
    pub fn new(io: I) -> CorkedIo<I> {
        CorkedIo { io, held: Gathered::default(), is_corked: false }
    }

    /// The socket.
    pub fn inner(&self) -> &I {
        &self.io
    }

    /// Holds what is written from here on until the socket is shut down, unless it is much.
    pub fn cork(&mut self) {
        self.is_corked = true;
    }
}

impl<I: AsyncWrite + Unpin> CorkedIo<I> {
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.held.poll_drain(&mut self.io, cx))?;
        self.held.release();
        Poll::Ready(Ok(()))
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for CorkedIo<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for CorkedIo<I> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let count = bufs.iter().map(|buf| buf.len()).sum::<usize>();
        if self.is_corked && self.held.len() + count <= MOST_HELD {
            bufs.iter().for_each(|buf| self.held.push(buf));
            return Poll::Ready(Ok(count));
        }
        ready!(self.poll_drain(cx))?;
        // To the kernel a list of one is more work than the one. TLS has no other call.
        match bufs {
            [buf] => Pin::new(&mut self.io).poll_write(cx, buf),
            bufs => Pin::new(&mut self.io).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.is_corked {
            return Poll::Ready(Ok(()));
        }
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

    /// Notes what it is given, each write by itself. Takes so many bytes, no more.
    struct Noting {
        writes: Vec<String>,
        room: usize,
        is_shut: bool,
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

    fn noting() -> CorkedIo<Noting> {
        CorkedIo::new(Noting { writes: Vec::new(), room: usize::MAX, is_shut: false })
    }

    fn write(io: &mut CorkedIo<Noting>, text: &str) {
        let cx = &mut Context::from_waker(Waker::noop());
        match Pin::new(io).poll_write(cx, text.as_bytes()) {
            Poll::Ready(Ok(count)) => assert_eq!(count, text.len()),
            other => panic!("{other:?}"),
        }
    }

    fn shut_down(io: &mut CorkedIo<Noting>) -> bool {
        let cx = &mut Context::from_waker(Waker::noop());
        Pin::new(io).poll_shutdown(cx).is_ready()
    }

    #[test]
    fn the_last_answer_goes_with_the_end() {
        let mut io = noting();
        write(&mut io, "first");
        io.cork();
        write(&mut io, "last ");
        write(&mut io, "alert");
        assert_eq!(io.io.writes, ["first"]);
        assert!(shut_down(&mut io));
        assert_eq!(io.io.writes, ["first", "last alert"]);
        assert!(io.io.is_shut);
    }

    #[test]
    fn what_is_large_or_not_taken_at_once_is_sent_in_order_and_whole() {
        let mut io = noting();
        io.cork();
        write(&mut io, "last ");
        let large = "x".repeat(MOST_HELD);
        write(&mut io, &large);
        write(&mut io, "alert");
        io.io.room = 2;
        assert!(!shut_down(&mut io) && !io.io.is_shut);
        io.io.room = usize::MAX;
        assert!(shut_down(&mut io) && io.io.is_shut);
        assert_eq!(io.io.writes.concat(), format!("last {large}alert"));
    }
}
