//! Zero-copy forwarding: a pipe that moves bytes between two sockets within the kernel, by splice(2). It knows
//! nothing about HTTP.
//!
//! Copying is most of the cost of a large body without TLS; splicing halves it.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};
use tokio::io::Interest;
use tokio::net::TcpStream;

/// Maximum number of pipes in the process. Each uses two descriptors, which [`super::fd_limit`] reserves.
pub const MAX_PIPES: usize = 32;

/// Capacity of a pipe, if the kernel permits it. A smaller pipe needs one more system call for every 64 KiB.
const PIPE_SIZE: usize = 256 * 1024;

static OPEN_PIPES: AtomicUsize = AtomicUsize::new(0);

/// A pipe for one body, created when it is first needed.
///
/// SECURITY: a pipe is not reused, so that bytes left in it cannot become part of the next body.
#[derive(Default)]
pub struct SplicePipe {
    state: PipeState,
    buffered: usize,
}

#[derive(Default)]
enum PipeState {
    #[default]
    Unopened,
    Open(PipeEnds),
    /// The limit is reached, or the kernel refuses a pipe of useful size: the body is copied instead.
    Unavailable,
}

struct PipeEnds {
    reader: OwnedFd,
    writer: OwnedFd,
    _permit: PipePermit,
}

/// The right to open one of the [`MAX_PIPES`].
struct PipePermit;

impl PipePermit {
    fn acquire() -> Option<PipePermit> {
        let one_more = |open| (open < MAX_PIPES).then_some(open + 1);
        OPEN_PIPES.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).ok().map(|_| PipePermit)
    }
}

impl Drop for PipePermit {
    fn drop(&mut self) {
        OPEN_PIPES.fetch_sub(1, Ordering::Relaxed);
    }
}

impl PipeEnds {
    fn open() -> Option<PipeEnds> {
        let permit = PipePermit::acquire()?;
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).ok()?;
        // A user with many pipes gets small ones, which would split a body into pieces of a few KiB.
        fcntl_setpipe_size(&writer, PIPE_SIZE).ok()?;
        Some(PipeEnds { reader, writer, _permit: permit })
    }
}

impl SplicePipe {
    /// Whether the pipe contains no bytes.
    pub fn is_empty(&self) -> bool {
        self.buffered == 0
    }

    /// Moves available bytes, at most `max`, from a socket into the empty pipe. If this returns 0, read from the
    /// socket: only a read distinguishes an idle socket, a closed one, and bytes that cannot be spliced.
    pub fn fill(&mut self, socket: &TcpStream, max: u64) -> usize {
        debug_assert!(self.is_empty(), "a full pipe looks like an idle socket");
        if matches!(self.state, PipeState::Unopened) {
            self.state = PipeEnds::open().map_or(PipeState::Unavailable, PipeState::Open);
        }
        let PipeState::Open(PipeEnds { writer, .. }) = &self.state else { return 0 };
        let max = usize::try_from(max).map_or(PIPE_SIZE, |max| max.min(PIPE_SIZE));
        // An error is mapped to 0, because the event loop would take it for "no data available".
        let moved = socket.try_io(Interest::READABLE, || {
            Ok(splice(socket, None, writer, None, max, SpliceFlags::NONBLOCK).unwrap_or(0))
        });
        self.buffered = moved.unwrap_or(0);
        self.buffered
    }

    /// Moves bytes from the pipe into a socket, as many as the socket accepts. Returns their number.
    pub fn poll_drain(&mut self, cx: &mut Context<'_>, socket: &TcpStream) -> Poll<io::Result<usize>> {
        loop {
            ready!(socket.poll_write_ready(cx))?;
            match socket.try_io(Interest::WRITABLE, || self.drain(socket)) {
                Err(error) if is_transient(&error) => {}
                drained => return Poll::Ready(drained),
            }
        }
    }

    /// Tries the same once, whatever the event loop has reported about the socket.
    pub fn drain_unready(&mut self, socket: &TcpStream) -> Poll<io::Result<usize>> {
        match self.drain(socket) {
            Err(error) if is_transient(&error) => Poll::Pending,
            drained => Poll::Ready(drained),
        }
    }

    fn drain(&mut self, socket: &TcpStream) -> io::Result<usize> {
        let PipeState::Open(PipeEnds { reader, .. }) = &self.state else { return Ok(0) };
        let written = splice(reader, None, socket, None, self.buffered, SpliceFlags::NONBLOCK)?;
        self.buffered -= written;
        Ok(written)
    }
}

fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}
