//! A connection to the backend: a socket, perhaps with TLS on it, and what was read too far.

use std::io;
use std::mem::MaybeUninit;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::BytesMut;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::upstream::deadline::Deadline;
use crate::upstream::endpoint::Endpoint;

/// So long may written bytes wait for the peer's kernel to acknowledge them, before the host is taken for gone.
const UNACKNOWLEDGED: Duration = Duration::from_secs(5);

/// A connection to the backend.
pub struct Connection {
    pub stream: Stream,
    /// Came and was not used yet.
    pub unread: BytesMut,
    /// When the answer to the request that is under way must have begun.
    pub answer_due: Deadline,
    is_impatient: bool,
    _open: Open,
}

/// A connection's place in what is counted.
pub struct Open(Option<(Arc<Endpoint>, usize)>);

impl Open {
    /// Must be called, and dropped, on the worker's thread.
    pub fn at(endpoint: &Arc<Endpoint>, worker: usize) -> Open {
        endpoint.tally(worker).open.add();
        Open(Some((Arc::clone(endpoint), worker)))
    }

    /// A connection that no worker has.
    pub fn uncounted() -> Open {
        Open(None)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if let Some((endpoint, worker)) = &self.0 {
            endpoint.tally(*worker).open.take();
        }
    }
}

/// With TLS or without.
pub enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Connection {
    pub fn new(stream: Stream, open: Open) -> Connection {
        let (unread, answer_due) = (BytesMut::new(), Deadline::default());
        Connection { stream, unread, answer_due, is_impatient: false, _open: open }
    }

    /// Reads what there is: so many bytes, or some more. 0 is the end.
    pub fn poll_fill(&mut self, cx: &mut Context<'_>, wanted: usize) -> Poll<io::Result<usize>> {
        self.unread.reserve(wanted);
        pin!(self.stream.read_buf(&mut self.unread)).poll(cx)
    }

    /// Whether a host that does not acknowledge anything is given up soon. Not while more is sent than a backend that
    /// is busy otherwise has room for: the kernel would take its closed window for such silence.
    pub fn be_impatient(&mut self, impatient: bool) {
        if self.is_impatient != impatient {
            let limit = impatient.then_some(UNACKNOWLEDGED);
            self.is_impatient =
                SockRef::from(self.stream.socket()).set_tcp_user_timeout(limit).is_ok() && impatient;
        }
    }

    /// Whether a connection that should be silent is. The event loop says so at no cost, but knows only what was the
    /// case when it last looked; `ask_kernel` for the truth of this moment.
    pub fn is_quiet(&mut self, ask_kernel: bool) -> bool {
        if !self.unread.is_empty() {
            return false;
        }
        let mut byte = [0];
        let mut cx = Context::from_waker(Waker::noop());
        match &mut self.stream {
            Stream::Plain(socket) => {
                if ask_kernel {
                    let mut byte = [MaybeUninit::uninit()];
                    let peeked = SockRef::from(&*socket).peek(&mut byte);
                    return peeked.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock);
                }
                let read = socket.try_read(&mut byte);
                read.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
            }
            // TLS sends records of its own, such as tickets; these are read here, and nothing else may come.
            Stream::Tls(stream) => {
                if ask_kernel && is_closed(stream.get_ref().0) {
                    return false;
                }
                Pin::new(stream).poll_read(&mut cx, &mut ReadBuf::new(&mut byte)).is_pending()
            }
        }
    }
}

/// Whether nothing but the peer's end is there to be read.
fn is_closed(socket: &TcpStream) -> bool {
    let mut byte = [MaybeUninit::uninit()];
    match SockRef::from(socket).peek(&mut byte) {
        Ok(bytes) => bytes == 0,
        Err(error) => error.kind() != io::ErrorKind::WouldBlock,
    }
}

impl Stream {
    fn socket(&self) -> &TcpStream {
        match self {
            Stream::Plain(socket) => socket,
            Stream::Tls(stream) => stream.get_ref().0,
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut *self {
            Stream::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Stream::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut *self {
            Stream::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Stream::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut *self {
            Stream::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Stream::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Stream::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Stream::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
