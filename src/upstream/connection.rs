//! A connection to the backend: a socket, perhaps with TLS on it, and what was read too far.

use std::io;
use std::mem::MaybeUninit;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::BytesMut;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::client::TlsStream;

use crate::upstream::deadline::Deadline;
use crate::upstream::endpoint::Endpoint;

/// So long may written bytes wait for the peer's kernel to acknowledge them, before the host is taken for gone.
const UNACKNOWLEDGED_TIMEOUT: Duration = Duration::from_secs(5);

/// After so long nothing is unacknowledged any more. Where a backend is silent for longer, impatience would end its
/// connection for a single keep-alive probe that got lost, as the kernel then counts seconds instead of probes.
const ACKNOWLEDGED_AFTER: Duration = Duration::from_secs(10);

/// A connection to the backend.
pub struct UpstreamConnection {
    pub stream: UpstreamStream,
    /// Came and was not used yet.
    pub unread: BytesMut,
    /// When the answer to the request that is under way must have begun.
    response_due: Instant,
    /// When that is, or before it when what was sent has been acknowledged.
    timer: Deadline,
    has_user_timeout: bool,
    _open: UpstreamConnectionGuard,
}

/// A connection's place in what is counted.
pub struct UpstreamConnectionGuard(Option<(Arc<Endpoint>, usize)>);

impl UpstreamConnectionGuard {
    /// Must be called, and dropped, on the worker's thread.
    pub fn new(endpoint: &Arc<Endpoint>, worker: usize) -> UpstreamConnectionGuard {
        endpoint.counters_of(worker).open_connections.increment();
        UpstreamConnectionGuard(Some((Arc::clone(endpoint), worker)))
    }

    /// A connection that no worker has.
    pub fn uncounted() -> UpstreamConnectionGuard {
        UpstreamConnectionGuard(None)
    }
}

impl Drop for UpstreamConnectionGuard {
    fn drop(&mut self) {
        if let Some((endpoint, worker)) = &self.0 {
            endpoint.counters_of(*worker).open_connections.decrement();
        }
    }
}

/// With TLS or without.
pub enum UpstreamStream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl UpstreamConnection {
    pub fn new(stream: UpstreamStream, open: UpstreamConnectionGuard) -> UpstreamConnection {
        let (unread, response_due, timer) = (BytesMut::new(), Instant::now(), Deadline::default());
        UpstreamConnection { stream, unread, response_due, timer, has_user_timeout: false, _open: open }
    }

    /// Reads what there is: so many bytes, or some more. 0 is the end.
    pub fn poll_fill(&mut self, cx: &mut Context<'_>, wanted: usize) -> Poll<io::Result<usize>> {
        self.unread.reserve(wanted);
        pin!(self.stream.read_buf(&mut self.unread)).poll(cx)
    }

    /// The last byte that the backend took was sent at `now`: its answer must begin within `limit`.
    pub fn expect_response(&mut self, now: Instant, limit: Duration) {
        self.response_due = now + limit;
        self.timer.set(now + limit.min(ACKNOWLEDGED_AFTER));
    }

    /// Ready when the answer is too late.
    pub fn poll_response_timeout(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        ready!(self.timer.poll(cx));
        self.set_user_timeout(false);
        self.timer.set(self.response_due);
        self.timer.poll(cx)
    }

    /// The answer has begun, and makes a pause.
    pub fn poll_pause(&mut self, cx: &mut Context<'_>) {
        if self.has_user_timeout && self.timer.poll(cx).is_ready() {
            self.set_user_timeout(false);
        }
    }

    /// Whether a host that does not acknowledge anything is given up soon. Not while more is sent than a backend that
    /// is busy otherwise has room for: the kernel would take its closed window for such silence.
    pub fn set_user_timeout(&mut self, impatient: bool) {
        if self.has_user_timeout != impatient {
            let limit = impatient.then_some(UNACKNOWLEDGED_TIMEOUT);
            self.has_user_timeout =
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
            UpstreamStream::Plain(socket) => {
                if ask_kernel {
                    let mut byte = [MaybeUninit::uninit()];
                    let peeked = SockRef::from(&*socket).peek(&mut byte);
                    return peeked.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock);
                }
                let read = socket.try_read(&mut byte);
                read.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
            }
            // TLS sends records of its own, such as tickets; these are read here, and nothing else may come.
            UpstreamStream::Tls(stream) => {
                if ask_kernel && is_closed_by_peer(stream.get_ref().0) {
                    return false;
                }
                Pin::new(stream).poll_read(&mut cx, &mut ReadBuf::new(&mut byte)).is_pending()
            }
        }
    }
}

/// Whether nothing but the peer's end is there to be read.
fn is_closed_by_peer(socket: &TcpStream) -> bool {
    let mut byte = [MaybeUninit::uninit()];
    match SockRef::from(socket).peek(&mut byte) {
        Ok(bytes) => bytes == 0,
        Err(error) => error.kind() != io::ErrorKind::WouldBlock,
    }
}

impl UpstreamStream {
    fn socket(&self) -> &TcpStream {
        match self {
            UpstreamStream::Plain(socket) => socket,
            UpstreamStream::Tls(stream) => stream.get_ref().0,
        }
    }
}

impl AsyncRead for UpstreamStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut *self {
            UpstreamStream::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            UpstreamStream::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for UpstreamStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut *self {
            UpstreamStream::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            UpstreamStream::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut *self {
            UpstreamStream::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            UpstreamStream::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            UpstreamStream::Plain(stream) => Pin::new(stream).poll_flush(cx),
            UpstreamStream::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            UpstreamStream::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            UpstreamStream::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::time::timeout;

    use super::*;

    /// A keep-alive probe that is lost may end only a connection that has something unacknowledged.
    #[tokio::test]
    async fn the_user_timeout_is_set_only_while_data_may_be_unacknowledged() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let socket = TcpStream::connect(listener.local_addr().expect("an address")).await.expect("connected");
        let mut connection =
            UpstreamConnection::new(UpstreamStream::Plain(socket), UpstreamConnectionGuard::uncounted());
        let limit = |connection: &UpstreamConnection| {
            SockRef::from(connection.stream.socket()).tcp_user_timeout().expect("read").unwrap_or_default()
        };
        let (hour, moment) = (Duration::from_secs(3600), Duration::from_millis(20));

        connection.set_user_timeout(true);
        connection.expect_response(Instant::now(), hour);
        assert!(timeout(moment, poll_fn(|cx| connection.poll_response_timeout(cx))).await.is_err());
        assert_eq!(limit(&connection), UNACKNOWLEDGED_TIMEOUT);
        connection.expect_response(Instant::now() - ACKNOWLEDGED_AFTER, hour);
        assert!(timeout(moment, poll_fn(|cx| connection.poll_response_timeout(cx))).await.is_err());
        assert_eq!(limit(&connection), Duration::ZERO);
        connection.expect_response(Instant::now() - hour, hour);
        assert!(timeout(moment, poll_fn(|cx| connection.poll_response_timeout(cx))).await.is_ok());

        // The same within an answer that has begun.
        let pausing = |cx: &mut Context<'_>, connection: &mut UpstreamConnection| -> Poll<()> {
            connection.poll_pause(cx);
            Poll::Pending
        };
        connection.set_user_timeout(true);
        connection.expect_response(Instant::now(), hour);
        let _ = timeout(moment, poll_fn(|cx| pausing(cx, &mut connection))).await;
        assert_eq!(limit(&connection), UNACKNOWLEDGED_TIMEOUT);
        connection.expect_response(Instant::now() - ACKNOWLEDGED_AFTER, hour);
        let _ = timeout(moment, poll_fn(|cx| pausing(cx, &mut connection))).await;
        assert_eq!(limit(&connection), Duration::ZERO);
    }
}
