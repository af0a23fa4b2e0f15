//! A client's socket that records reads and writes in the connection's [`Activity`], limits HTTP/2 control frames, and
//! closes in a way that the client receives its last response. It knows nothing about requests.

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
use crate::downstream::frame_meter::{FrameMeter, FrameState, INVALID_PING, Rest};
use crate::downstream::socket::ClientSocket;
use crate::observability::metrics::{CloseCause, Metrics};
use crate::os::splice::SplicePipe;

/// Maximum duration of a lingering close.
const LINGER_TIMEOUT: Duration = Duration::from_secs(15);

/// Maximum time without data from the client during a lingering close.
const LINGER_IDLE_TIMEOUT: Duration = Duration::from_secs(2);

/// State of a lingering close.
struct LingeringClose {
    deadline: Instant,
    idle_timer: Pin<Box<Sleep>>,
}

/// A socket whose reads and writes are recorded.
pub struct WatchedIo<I> {
    io: I,
    activity: Rc<Activity>,
    /// The write side was shut down.
    is_shutdown_sent: bool,
    lingering: Option<Box<LingeringClose>>,
    frame_limit: Option<Box<FrameLimit>>,
}

/// The limit on HTTP/2 control frames of one client.
struct FrameLimit {
    meter: FrameMeter,
    metrics: Arc<Metrics>,
    state: Rc<FrameState>,
    /// Received bytes: `passable` that may be passed on, then a head that is not complete.
    held: Vec<u8>,
    passable: usize,
    /// Number of bytes that the head lacks.
    missing: usize,
    /// Bytes that replace the client's once it has exceeded the limit.
    injected: Option<&'static [u8]>,
}

impl<I> WatchedIo<I> {
    /// Wraps a socket.
    pub fn new(io: I, activity: Rc<Activity>) -> WatchedIo<I> {
        WatchedIo { io, activity, is_shutdown_sent: false, lingering: None, frame_limit: None }
    }

    /// Limits HTTP/2 frames; a client that exceeds the limit has its connection closed. Reports malformed heads in
    /// `state`.
    pub fn with_frame_limit(self, meter: FrameMeter, metrics: Arc<Metrics>, state: Rc<FrameState>) -> WatchedIo<I> {
        let (held, passable, missing) = (Vec::new(), 0, 0);
        let limit = FrameLimit { meter, metrics, state, held, passable, missing, injected: None };
        WatchedIo { frame_limit: Some(Box::new(limit)), ..self }
    }

    /// The wrapped socket.
    pub fn inner(&self) -> &I {
        &self.io
    }

    /// The wrapped socket.
    pub fn inner_mut(&mut self) -> &mut I {
        &mut self.io
    }

    fn track_blocking<T>(&self, written: Poll<T>) -> Poll<T> {
        self.activity.set_write_blocked(written.is_pending());
        written
    }

    fn track_write(&mut self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let (Some(metered), Poll::Ready(Ok(bytes))) = (&mut self.frame_limit, &written) {
            metered.meter.credit_sent_bytes(*bytes);
        }
        if let Poll::Ready(Ok(bytes @ 1..)) = written {
            self.activity.record_written(bytes);
            self.activity.closing.record_progress();
        }
        self.track_blocking(written)
    }
}

impl<I: ClientSocket> WatchedIo<I> {
    /// Writes the contents of a pipe to the socket.
    pub fn poll_drain_pipe(&mut self, cx: &mut Context<'_>, pipe: &mut SplicePipe) -> Poll<io::Result<()>> {
        while !pipe.is_empty() {
            let socket = self.io.plain_tcp().ok_or(io::ErrorKind::Unsupported)?;
            let mut drained = pipe.poll_drain(cx, socket);
            if drained.is_pending() && self.activity.must_retry_write() {
                drained = pipe.drain_unready(socket);
                if drained.is_pending() {
                    self.activity.end_write_retry();
                }
            }
            match ready!(self.track_blocking(drained))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => self.activity.record_written(written),
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin> WatchedIo<I> {
    /// Reads and discards data until the client closes, sends nothing for a while, or the maximum duration is over.
    /// Closing a socket with unread data resets the connection, and the client may process the reset before the
    /// response.
    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let lingering = self.lingering.get_or_insert_with(|| {
            Box::new(LingeringClose {
                deadline: Instant::now() + LINGER_TIMEOUT,
                idle_timer: Box::pin(sleep(LINGER_IDLE_TIMEOUT)),
            })
        });
        if lingering.idle_timer.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        let mut discarded = [MaybeUninit::uninit(); 16 * 1024];
        // A client that sends all the time must not block this thread.
        for _ in 0..16 {
            let mut buffer = ReadBuf::uninit(&mut discarded);
            match ready!(Pin::new(&mut self.io).poll_read(cx, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => {
                    self.activity.closing.record_progress();
                    let next = Instant::now() + LINGER_IDLE_TIMEOUT;
                    lingering.idle_timer.as_mut().reset(next.min(lingering.deadline));
                }
                _ => return Poll::Ready(()),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for WatchedIo<I> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let WatchedIo { io, frame_limit, .. } = &mut *self;
        match frame_limit {
            None => Pin::new(io).poll_read(cx, buf),
            Some(limit) => limit.poll_read(Pin::new(io), cx, buf),
        }
    }
}

impl FrameLimit {
    /// Reads frames. A head is held back until it is complete.
    fn poll_read<I: AsyncRead>(
        &mut self,
        mut io: Pin<&mut I>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        while buf.filled().len() == before {
            if self.passable > 0 {
                self.pass_held(buf);
            } else if let Some(injected) = &mut self.injected {
                let count = injected.len().min(buf.remaining());
                buf.put_slice(&injected[..count]);
                *injected = &injected[count..];
                // Nothing more is read until the lingering close.
                return if count > 0 { Poll::Ready(Ok(())) } else { Poll::Pending };
            } else if self.held.is_empty() {
                ready!(io.as_mut().poll_read(cx, buf))?;
                let received = &mut buf.filled_mut()[before..];
                if received.is_empty() {
                    break;
                }
                let (passable, rest) = self.meter.inspect(received, &self.state);
                self.record(rest);
                if let Rest::Incomplete(_) = rest {
                    self.held.extend_from_slice(&received[passable..]);
                }
                buf.set_filled(before + passable);
            } else if ready!(self.poll_missing(io.as_mut(), cx))? == 0 {
                // The client has closed.
                break;
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Reads what the held head lacks. Returns the number of bytes.
    fn poll_missing<I: AsyncRead>(&mut self, io: Pin<&mut I>, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let before = self.held.len();
        self.held.resize(before + self.missing, 0);
        let mut part = ReadBuf::new(&mut self.held[before..]);
        let polled = io.poll_read(cx, &mut part);
        let received = part.filled().len();
        self.held.truncate(before + received);
        ready!(polled)?;
        if received > 0 {
            let (passable, rest) = self.meter.inspect(&mut self.held, &self.state);
            self.passable = passable;
            self.record(rest);
        }
        Poll::Ready(Ok(received))
    }

    fn pass_held(&mut self, buf: &mut ReadBuf<'_>) {
        let count = self.passable.min(buf.remaining());
        buf.put_slice(&self.held[..count]);
        self.held.drain(..count);
        self.passable -= count;
        if self.held.is_empty() {
            self.held = Vec::new();
        }
    }

    fn record(&mut self, rest: Rest) {
        match rest {
            Rest::Empty => {}
            Rest::Incomplete(missing) => self.missing = missing,
            Rest::Excess => {
                self.metrics.record_connection_end(CloseCause::ControlFrames);
                self.injected = Some(&INVALID_PING);
            }
        }
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin> AsyncWrite for WatchedIo<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.io).poll_write(cx, buf);
        self.track_write(polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.track_write(polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.io).poll_flush(cx);
        self.track_blocking(polled)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.is_shutdown_sent {
            let polled = Pin::new(&mut self.io).poll_shutdown(cx);
            ready!(self.track_blocking(polled))?;
            self.is_shutdown_sent = true;
        }
        if self.activity.closing.must_linger() {
            ready!(self.poll_linger(cx));
        }
        Poll::Ready(Ok(()))
    }
}
