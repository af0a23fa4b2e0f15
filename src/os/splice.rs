//! A pipe through which bytes go from one socket to another without coming into this process: splice(2).
//!
//! Copying is most of what a large body costs where nothing has to be encrypted; like this it costs about half.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};
use tokio::io::Interest;
use tokio::net::TcpStream;

/// Most pipes of the process at once. Each takes two descriptors, which are kept back for them.
pub const MAX_PIPES: usize = 32;

/// What a pipe holds, where the kernel lets it. Less costs a call more for every 64 KiB.
const PIPE_SIZE: usize = 256 * 1024;

static OPEN_PIPES: AtomicUsize = AtomicUsize::new(0);

/// A pipe for one body, made when it is needed.
///
/// SECURITY: it is not used for another one, so that what a body has left in it cannot become a part of the next.
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
    /// There are enough pipes, or the kernel gives none that is worth it: bytes can be copied as well.
    Unavailable,
}

struct PipeEnds {
    reader: OwnedFd,
    writer: OwnedFd,
    _permit: PipePermit,
}

/// One of the [`MAX_PIPES`].
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
        let place = PipePermit::acquire()?;
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).ok()?;
        // Whose user has many pipes gets small ones, by which a body would go in pieces of a few KiB.
        fcntl_setpipe_size(&writer, PIPE_SIZE).ok()?;
        Some(PipeEnds { reader, writer, _permit: place })
    }
}

impl SplicePipe {
    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.buffered == 0
    }

    /// Takes what has come on a socket, `most` bytes at most, if it is empty. 0: read from the socket, which alone tells
    /// whether nothing has come, the peer has ended, or bytes are of a kind that only a read gets.
    pub fn fill(&mut self, socket: &TcpStream, most: u64) -> usize {
        debug_assert!(self.is_empty(), "a full pipe and a silent socket look the same");
        if matches!(self.state, PipeState::Unopened) {
            self.state = PipeEnds::open().map_or(PipeState::Unavailable, PipeState::Open);
        }
        let PipeState::Open(PipeEnds { writer, .. }) = &self.state else { return 0 };
        let most = usize::try_from(most).map_or(PIPE_SIZE, |most| most.min(PIPE_SIZE));
        // A failure is none here, as the event loop would take it for "nothing has come".
        let moved = socket.try_io(Interest::READABLE, || {
            Ok(splice(socket, None, writer, None, most, SpliceFlags::NONBLOCK).unwrap_or(0))
        });
        self.buffered = moved.unwrap_or(0);
        self.buffered
    }

    /// Gives a socket what it has room for of what is in it.
    pub fn poll_drain(&mut self, cx: &mut Context<'_>, socket: &TcpStream) -> Poll<io::Result<usize>> {
        let PipeState::Open(PipeEnds { reader, .. }) = &self.state else { return Poll::Ready(Ok(0)) };
        loop {
            ready!(socket.poll_write_ready(cx))?;
            let given = socket.try_io(Interest::WRITABLE, || {
                Ok(splice(reader, None, socket, None, self.buffered, SpliceFlags::NONBLOCK)?)
            });
            match given {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Poll::Ready(Err(error)),
                Ok(given) => {
                    self.buffered -= given;
                    return Poll::Ready(Ok(given));
                }
            }
        }
    }
}
