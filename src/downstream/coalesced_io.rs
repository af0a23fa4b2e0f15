//! Small writes that go out together.
//!
//! An HTTP/2 connection writes a few frames for each answer, and flushes. With many answers at once each of them would be
//! a TLS record and a system call of its own, though all are for one client.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::downstream::activity::Activity;
use crate::downstream::write_buffer::Gathered;

/// Most bytes that are gathered: what a TLS record holds.
const MOST_GATHERED: usize = 16 * 1024;

/// A socket, and what is on its way to it.
pub struct CoalescedIo<I> {
    io: I,
    gathered: Gathered,
    activity: Rc<Activity>,
    /// The flush was put off once.
    is_put_off: bool,
}

impl<I: AsyncWrite + Unpin> CoalescedIo<I> {
    pub fn new(io: I, activity: Rc<Activity>) -> CoalescedIo<I> {
        CoalescedIo { io, gathered: Gathered::default(), activity, is_put_off: false }
    }

    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.gathered.poll_drain(&mut self.io, cx))?;
        // An idle connection owns no buffer, and seldom is one idle that has just written.
        if self.activity.in_flight() == 0 {
            self.gathered.release();
        }
        Poll::Ready(Ok(()))
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for CoalescedIo<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for CoalescedIo<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let this = &mut *self;
            if this.gathered.len() + buf.len() <= MOST_GATHERED {
                this.gathered.push(buf);
                return Poll::Ready(Ok(buf.len()));
            }
            // Much is not copied. What has been gathered goes out before it, in the same call.
            let before = this.gathered.rest();
            let parts = [IoSlice::new(before), IoSlice::new(buf)];
            let written = ready!(Pin::new(&mut this.io).poll_write_vectored(cx, &parts))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            let of_gathered = written.min(before.len());
            this.gathered.advance(of_gathered);
            if written > of_gathered {
                return Poll::Ready(Ok(written - of_gathered));
            }
        }
    }

    /// It is, but h2 is to hand over its frames one after the other and not to wait for a flush after each.
    fn is_write_vectored(&self) -> bool {
        false
    }

    /// Lets the connection's other requests, which may be about to be answered too, have their turn first.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if !this.gathered.is_empty() && !this.is_put_off && this.activity.in_flight() > 1 {
            this.is_put_off = true;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        ready!(this.poll_drain(cx))?;
        this.is_put_off = false;
        Pin::new(&mut this.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(cx))?;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
