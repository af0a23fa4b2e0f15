//! A buffered writer for HTTP/2: the frames of one connection go out together.
//!
//! h2 flushes after each large frame. Here a flush of h2 does nothing: the connection flushes after it has polled h2, so
//! that all frames that are ready are few TLS records and system calls.

use std::cell::{Ref, RefCell, RefMut};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::downstream::http2::sent_frames::SentFrames;

/// Maximum number of buffered bytes, which are one write: the four frames that a stream may have in h2, and those of
/// other streams.
pub const MAX_BUFFERED: usize = 80 * 1024;

/// A client's socket with a write buffer, shared by h2 and the connection.
pub struct CoalescedIo<I>(Rc<RefCell<BufferedSocket<I>>>);

struct BufferedSocket<I> {
    io: I,
    buffer: BytesMut,
    /// A write of h2 had to wait for room.
    is_blocked: bool,
    sent: SentFrames,
}

/// The result of a flush.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flushed {
    /// All frames have left.
    Completely,
    /// Frames wait in h2, which must be polled again.
    MoreWaiting,
}

impl<I> Clone for CoalescedIo<I> {
    fn clone(&self) -> CoalescedIo<I> {
        CoalescedIo(Rc::clone(&self.0))
    }
}

impl<I> CoalescedIo<I> {
    pub fn new(io: I) -> CoalescedIo<I> {
        let (buffer, sent) = (BytesMut::new(), SentFrames::default());
        CoalescedIo(Rc::new(RefCell::new(BufferedSocket { io, buffer, is_blocked: false, sent })))
    }

    /// What the frames have shown that h2 has written.
    pub fn sent_frames(&self) -> RefMut<'_, SentFrames> {
        RefMut::map(self.0.borrow_mut(), |socket| &mut socket.sent)
    }

    /// The wrapped socket.
    pub fn socket(&self) -> Ref<'_, I> {
        Ref::map(self.0.borrow(), |socket| &socket.io)
    }

    /// Returns whether nothing is buffered.
    pub fn is_empty(&self) -> bool {
        self.0.borrow().buffer.is_empty()
    }

    /// Releases the memory of the buffer, if it is empty.
    pub fn release_buffer(&self) {
        let socket = &mut *self.0.borrow_mut();
        if socket.buffer.is_empty() {
            socket.buffer = BytesMut::new();
        }
    }
}

impl<I: AsyncWrite + Unpin> CoalescedIo<I> {
    /// Sends what is buffered.
    pub fn poll_send(&self, cx: &mut Context<'_>) -> Poll<io::Result<Flushed>> {
        let socket = &mut *self.0.borrow_mut();
        ready!(socket.poll_write_buffer(cx))?;
        ready!(Pin::new(&mut socket.io).poll_flush(cx))?;
        Poll::Ready(Ok(match std::mem::take(&mut socket.is_blocked) {
            true => Flushed::MoreWaiting,
            false => Flushed::Completely,
        }))
    }
}

impl<I: AsyncWrite + Unpin> BufferedSocket<I> {
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
        Poll::Ready(Ok(()))
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            if self.buffer.len() + buf.len() <= MAX_BUFFERED {
                self.buffer.extend_from_slice(buf);
                return Poll::Ready(Ok(buf.len()));
            }
            // Data that does not fit is not copied. The buffer is written before it, in the same call.
            let buffered = self.buffer.len();
            let parts = [IoSlice::new(&self.buffer), IoSlice::new(buf)];
            let written = ready!(Pin::new(&mut self.io).poll_write_vectored(cx, &parts))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.consume(written.min(buffered));
            if written > buffered {
                return Poll::Ready(Ok(written - buffered));
            }
        }
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for CoalescedIo<I> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.borrow_mut().io).poll_read(cx, buf)
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for CoalescedIo<I> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let socket = &mut *self.0.borrow_mut();
        let polled = socket.poll_write(cx, buf);
        match polled {
            Poll::Ready(Ok(written)) => socket.sent.inspect(&buf[..written]),
            Poll::Ready(Err(_)) => {}
            Poll::Pending => socket.is_blocked = true,
        }
        polled
    }

    /// False, although vectored writes are supported: h2 then copies frames below 1 KiB, and passes larger ones without
    /// a list.
    fn is_write_vectored(&self) -> bool {
        false
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let socket = &mut *self.0.borrow_mut();
        ready!(socket.poll_write_buffer(cx))?;
        Pin::new(&mut socket.io).poll_shutdown(cx)
    }
}
