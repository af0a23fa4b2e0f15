//! A client's socket that tells its [`Activity`] what happens on it.

use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

use crate::connection::activity::Activity;

/// A client that was answered before its request had ended gets so long to end it,
const LONGEST_LINGER: Duration = Duration::from_secs(15);

/// and may be silent for so long meanwhile.
const LONGEST_SILENCE: Duration = Duration::from_secs(2);

/// How long a client is still listened to.
struct Lingering {
    end: Instant,
    silence: Pin<Box<Sleep>>,
}

/// Reads and writes through, and takes notes.
pub struct WatchedIo<I> {
    io: I,
    activity: Rc<Activity>,
    lingering: Option<Lingering>,
}

impl<I> WatchedIo<I> {
    /// Watches `io`.
    pub fn new(io: I, activity: Rc<Activity>) -> WatchedIo<I> {
        WatchedIo { io, activity, lingering: None }
    }

    /// What is watched.
    pub fn inner(&self) -> &I {
        &self.io
    }

    fn note<T>(&self, written: Poll<T>) -> Poll<T> {
        self.activity.write_blocked(written.is_pending());
        written
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin> WatchedIo<I> {
    /// Reads and forgets what the client still sends, until it closes, falls silent or its time is over. Closing a socket with
    /// unread bytes resets the connection, and a reset can overtake the answer.
    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let lingering = self.lingering.get_or_insert_with(|| Lingering {
            end: Instant::now() + LONGEST_LINGER,
            silence: Box::pin(sleep(LONGEST_SILENCE)),
        });
        if lingering.silence.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        let _ = Pin::new(&mut self.io).poll_flush(cx);
        let mut forgotten = [MaybeUninit::uninit(); 16 * 1024];
        // A client that sends without end must not keep this thread.
        for _ in 0..16 {
            let mut buffer = ReadBuf::uninit(&mut forgotten);
            match ready!(Pin::new(&mut self.io).poll_read(cx, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => {
                    let next = Instant::now() + LONGEST_SILENCE;
                    lingering.silence.as_mut().reset(next.min(lingering.end));
                }
                _ => return Poll::Ready(()),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for WatchedIo<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.io).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.activity.bytes_came();
        }
        polled
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin> AsyncWrite for WatchedIo<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.io).poll_write(cx, buf);
        self.note(polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.note(polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.io).poll_flush(cx);
        self.note(polled)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.activity.lingers() {
            ready!(self.poll_linger(cx));
        }
        let polled = Pin::new(&mut self.io).poll_shutdown(cx);
        self.note(polled)
    }
}
