//! A client's socket that tells its [`Activity`] what happens on it.

use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

use crate::downstream::activity::Activity;
use crate::downstream::frame_meter::{FORBIDDEN, FrameMeter};
use crate::downstream::socket::Socket;
use crate::observability::metrics::{Cause, Metrics};
use crate::os::splice::KernelPipe;

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
    /// The client was told that nothing more comes.
    is_shut: bool,
    lingering: Option<Lingering>,
    metered: Option<Box<Metered>>,
}

/// An HTTP/2 client, whose frames are counted.
struct Metered {
    meter: FrameMeter,
    metrics: Arc<Metrics>,
    /// What is read instead of what the client sends, once it has gone too far.
    instead: Option<&'static [u8]>,
}

impl<I> WatchedIo<I> {
    /// Watches `io`.
    pub fn new(io: I, activity: Rc<Activity>) -> WatchedIo<I> {
        WatchedIo { io, activity, is_shut: false, lingering: None, metered: None }
    }

    /// Counts HTTP/2 frames, and has the connection ended when too many are of no use.
    pub fn metered(self, per_minute: u32, metrics: Arc<Metrics>) -> WatchedIo<I> {
        let metered = Metered { meter: FrameMeter::new(per_minute), metrics, instead: None };
        WatchedIo { metered: Some(Box::new(metered)), ..self }
    }

    /// What is watched.
    pub fn inner(&self) -> &I {
        &self.io
    }

    /// What is watched.
    pub fn inner_mut(&mut self) -> &mut I {
        &mut self.io
    }

    fn note<T>(&self, written: Poll<T>) -> Poll<T> {
        self.activity.write_blocked(written.is_pending());
        written
    }

    fn note_bytes(&mut self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let (Some(metered), Poll::Ready(Ok(bytes))) = (&mut self.metered, &written) {
            metered.meter.sent(*bytes);
        }
        if matches!(written, Poll::Ready(Ok(1..))) {
            self.activity.moved();
        }
        self.note(written)
    }
}

impl<I: Socket> WatchedIo<I> {
    /// Writes what is in a pipe.
    pub fn poll_empty(&mut self, cx: &mut Context<'_>, pipe: &mut KernelPipe) -> Poll<io::Result<()>> {
        while !pipe.is_empty() {
            let socket = self.io.plain().ok_or(io::ErrorKind::Unsupported)?;
            if ready!(self.note(pipe.poll_drain(cx, socket)))? == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
        }
        Poll::Ready(Ok(()))
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
        let mut forgotten = [MaybeUninit::uninit(); 16 * 1024];
        // A client that sends without end must not keep this thread.
        for _ in 0..16 {
            let mut buffer = ReadBuf::uninit(&mut forgotten);
            match ready!(Pin::new(&mut self.io).poll_read(cx, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => {
                    self.activity.moved();
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
        if let Some(instead) = self.metered.as_mut().and_then(|metered| metered.instead.as_mut()) {
            let given = instead.len().min(buf.remaining());
            buf.put_slice(&instead[..given]);
            *instead = &instead[given..];
            // Nothing more is read until the connection lingers.
            return if given > 0 { Poll::Ready(Ok(())) } else { Poll::Pending };
        }
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.io).poll_read(cx, buf);
        if buf.filled().len() > before {
            let activity = Rc::clone(&self.activity);
            if let Some(metered) = &mut self.metered
                && let Some(end) = metered.meter.read(&buf.filled()[before..])
            {
                metered.metrics.connection_ended(Cause::ControlFrames);
                metered.instead = Some(&FORBIDDEN);
                // What the client goes on sending is read for a moment, or it would not see the GOAWAY.
                activity.linger();
                buf.set_filled(before + end);
                if end == 0 {
                    return self.poll_read(cx, buf);
                }
            }
        }
        polled
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin> AsyncWrite for WatchedIo<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.io).poll_write(cx, buf);
        self.note_bytes(polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.note_bytes(polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.io).poll_flush(cx);
        self.note(polled)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.is_shut {
            let polled = Pin::new(&mut self.io).poll_shutdown(cx);
            ready!(self.note(polled))?;
            self.is_shut = true;
        }
        if self.activity.lingers() {
            ready!(self.poll_linger(cx));
        }
        Poll::Ready(Ok(()))
    }
}
