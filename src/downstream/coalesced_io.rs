//! A buffered writer for HTTP/2: small writes of one connection go out together.
//!
//! h2 writes a few frames per response and flushes. Without this buffer, each of several responses that are ready
//! together would be a separate TLS record and system call.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::downstream::activity::Activity;

/// Maximum number of buffered bytes: the size of a TLS record.
const MAX_BUFFERED: usize = 16 * 1024;

/// A client's socket with a write buffer.
pub struct CoalescedIo<I> {
    io: I,
    buffer: BytesMut,
    activity: Rc<Activity>,
    is_flush_deferred: bool,
}

impl<I: AsyncWrite + Unpin> CoalescedIo<I> {
    pub fn new(io: I, activity: Rc<Activity>) -> CoalescedIo<I> {
        CoalescedIo { io, buffer: BytesMut::new(), activity, is_flush_deferred: false }
    }

    /// Removes bytes that were written from the buffer.
    fn consume(&mut self, count: usize) {
        // `clear` keeps the whole capacity, `advance` would not.
        if count == self.buffer.len() { self.buffer.clear() } else { self.buffer.advance(count) }
    }

    fn poll_write_buffer(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.buffer.is_empty() {
            match ready!(Pin::new(&mut self.io).poll_write(cx, &self.buffer))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => self.consume(written),
            }
        }
        // An idle connection keeps no buffer; connections that have just written are rarely idle.
        if self.activity.in_flight() == 0 {
            self.buffer = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for CoalescedIo<I> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for CoalescedIo<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let this = &mut *self;
            if this.buffer.len() + buf.len() <= MAX_BUFFERED {
                this.buffer.extend_from_slice(buf);
                return Poll::Ready(Ok(buf.len()));
            }
            // Large data is not copied. The buffer is written before it, in the same call.
            let buffered = this.buffer.len();
            let parts = [IoSlice::new(&this.buffer), IoSlice::new(buf)];
            let written = ready!(Pin::new(&mut this.io).poll_write_vectored(cx, &parts))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            this.consume(written.min(buffered));
            if written > buffered {
                return Poll::Ready(Ok(written - buffered));
            }
        }
    }

    /// False, although vectored writes are supported: h2 then passes its frames one by one and does not flush after
    /// each.
    fn is_write_vectored(&self) -> bool {
        false
    }

    /// Yields once while the connection has other requests in flight, whose responses may be ready too.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if !this.buffer.is_empty() && !this.is_flush_deferred && this.activity.in_flight() > 1 {
            this.is_flush_deferred = true;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        ready!(this.poll_write_buffer(cx))?;
        this.is_flush_deferred = false;
        Pin::new(&mut this.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_write_buffer(cx))?;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
