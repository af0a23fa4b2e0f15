//! A connection to a backend: a socket, with or without TLS, and its read buffer. It knows nothing about HTTP.

use std::io;
use std::mem::MaybeUninit;
use std::net::Shutdown;
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
use tokio_util::either::Either;

use crate::upstream::deadline::Deadline;
use crate::upstream::endpoint::Endpoint;

/// Maximum time that written bytes may stay unacknowledged before the host is considered down (`TCP_USER_TIMEOUT`).
pub const UNACKNOWLEDGED_TIMEOUT: Duration = Duration::from_secs(5);

/// After this time everything is acknowledged. If the backend is silent for longer, the user timeout must be off: with
/// it, the kernel measures time instead of counting keep-alive probes, and a single lost probe would end the
/// connection.
pub const ACKNOWLEDGED_AFTER: Duration = Duration::from_secs(10);

pub struct UpstreamConnection {
    pub stream: UpstreamStream,
    /// Received bytes that are not consumed yet.
    pub unread: BytesMut,
    /// When the current response must have started.
    response_due: Instant,
    /// Expires at `response_due`, or before it when the sent bytes are acknowledged.
    timer: Deadline,
    has_user_timeout: bool,
    /// Maximum time without a request, as the backend announced it.
    pub max_idle: Duration,
    _guard: UpstreamConnectionGuard,
}

/// Counts an open connection of an endpoint while it exists.
pub struct UpstreamConnectionGuard(Option<(Arc<Endpoint>, usize)>);

impl UpstreamConnectionGuard {
    /// Counts a connection. Must be called and dropped on the worker's thread, because counters have a single writer.
    pub fn new(endpoint: &Arc<Endpoint>, worker: usize) -> UpstreamConnectionGuard {
        endpoint.counters_of(worker).open_connections.add(1);
        UpstreamConnectionGuard(Some((Arc::clone(endpoint), worker)))
    }

    /// For a connection that belongs to no worker.
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

/// A socket: on the left without TLS, on the right with it.
pub type UpstreamStream = Either<TcpStream, Box<TlsStream<TcpStream>>>;

/// The way to check that an idle connection is still open.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum IdleCheck {
    /// By what the event loop saw at its last poll, at no cost.
    EventLoop,
    /// By a system call, which sees the current state.
    Kernel,
}

impl UpstreamConnection {
    pub fn new(stream: UpstreamStream, guard: UpstreamConnectionGuard) -> UpstreamConnection {
        let (unread, response_due, timer) = (BytesMut::new(), Instant::now(), Deadline::default());
        let (has_user_timeout, max_idle) = (false, Duration::MAX);
        UpstreamConnection { stream, unread, response_due, timer, has_user_timeout, max_idle, _guard: guard }
    }

    /// Reads about `wanted` bytes into `unread`. 0 is the end of the stream.
    pub fn poll_fill(&mut self, cx: &mut Context<'_>, wanted: usize) -> Poll<io::Result<usize>> {
        self.unread.reserve(wanted);
        pin!(self.stream.read_buf(&mut self.unread)).poll(cx)
    }

    /// Closes the direction to the backend. The backend can still respond.
    pub fn half_close(&mut self) {
        let cx = &mut Context::from_waker(Waker::noop());
        // Over TLS, this writes the alert. If the socket accepts nothing, the alert is omitted.
        let _ = Pin::new(&mut self.stream).poll_shutdown(cx);
        let _ = SockRef::from(self.socket()).shutdown(Shutdown::Write);
    }

    /// Starts the response timeout: the backend accepted the last byte of the request at `now`, and its response must
    /// start within `limit`.
    pub fn expect_response(&mut self, now: Instant, limit: Duration) {
        self.response_due = now + limit;
        self.timer.set(now + limit.min(ACKNOWLEDGED_AFTER));
    }

    /// Ready when the response timeout has expired.
    pub fn poll_response_timeout(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        ready!(self.timer.poll(cx));
        self.set_user_timeout(None);
        self.timer.set(self.response_due);
        self.timer.poll(cx)
    }

    /// Call this when a response that has started makes a pause: clears the user timeout once everything is
    /// acknowledged.
    pub fn poll_pause(&mut self, cx: &mut Context<'_>) {
        if self.has_user_timeout && self.timer.poll(cx).is_ready() {
            self.set_user_timeout(None);
        }
    }

    /// Sets or clears the timeout for unacknowledged data. It must be off while more data is sent than the buffers of a
    /// busy backend can hold: the kernel treats a closed receive window like missing acknowledgements.
    pub fn set_user_timeout(&mut self, limit: Option<Duration>) {
        if self.has_user_timeout != limit.is_some() {
            self.has_user_timeout = SockRef::from(self.socket()).set_tcp_user_timeout(limit).is_ok() && limit.is_some();
        }
    }

    /// Returns whether an idle connection is still open and has received nothing.
    pub fn is_quiet(&mut self, check: IdleCheck) -> bool {
        if !self.unread.is_empty() {
            return false;
        }
        let would_block = |read: io::Result<usize>| read.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock);
        match &mut self.stream {
            Either::Left(socket) if check == IdleCheck::Kernel => would_block(peek(socket)),
            Either::Left(socket) => would_block(socket.try_read(&mut [0])),
            // TLS may send its own records, such as session tickets: these are consumed here. Application data must not
            // arrive.
            Either::Right(stream) => {
                let peeked = (check == IdleCheck::Kernel).then(|| peek(stream.get_ref().0));
                if peeked.is_some_and(|peeked| !matches!(peeked, Ok(1)) && !would_block(peeked)) {
                    return false;
                }
                let cx = &mut Context::from_waker(Waker::noop());
                Pin::new(stream).poll_read(cx, &mut ReadBuf::new(&mut [0])).is_pending()
            }
        }
    }

    fn socket(&self) -> &TcpStream {
        match &self.stream {
            Either::Left(socket) => socket,
            Either::Right(stream) => stream.get_ref().0,
        }
    }
}

/// The number of received bytes that can be read: 1 if there are any, 0 if the peer has closed the connection.
fn peek(socket: &TcpStream) -> io::Result<usize> {
    SockRef::from(socket).peek(&mut [MaybeUninit::uninit()])
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::time::timeout;

    use super::*;

    /// A lost keep-alive probe may end a connection only if it has unacknowledged data.
    #[tokio::test]
    async fn the_user_timeout_is_set_only_while_data_may_be_unacknowledged() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let socket = TcpStream::connect(listener.local_addr().expect("an address")).await.expect("connected");
        let mut connection = UpstreamConnection::new(Either::Left(socket), UpstreamConnectionGuard::uncounted());
        let limit = |connection: &UpstreamConnection| {
            SockRef::from(connection.socket()).tcp_user_timeout().expect("read").unwrap_or_default()
        };
        let (hour, moment) = (Duration::from_secs(3600), Duration::from_millis(20));

        connection.set_user_timeout(Some(UNACKNOWLEDGED_TIMEOUT));
        connection.expect_response(Instant::now(), hour);
        assert!(timeout(moment, poll_fn(|cx| connection.poll_response_timeout(cx))).await.is_err());
        assert_eq!(limit(&connection), UNACKNOWLEDGED_TIMEOUT);
        connection.expect_response(Instant::now() - ACKNOWLEDGED_AFTER, hour);
        assert!(timeout(moment, poll_fn(|cx| connection.poll_response_timeout(cx))).await.is_err());
        assert_eq!(limit(&connection), Duration::ZERO);
        connection.expect_response(Instant::now() - hour, hour);
        assert!(timeout(moment, poll_fn(|cx| connection.poll_response_timeout(cx))).await.is_ok());

        // The same for a pause within a response.
        let pausing = |cx: &mut Context<'_>, connection: &mut UpstreamConnection| -> Poll<()> {
            connection.poll_pause(cx);
            Poll::Pending
        };
        connection.set_user_timeout(Some(UNACKNOWLEDGED_TIMEOUT));
        connection.expect_response(Instant::now(), hour);
        let _ = timeout(moment, poll_fn(|cx| pausing(cx, &mut connection))).await;
        assert_eq!(limit(&connection), UNACKNOWLEDGED_TIMEOUT);
        connection.expect_response(Instant::now() - ACKNOWLEDGED_AFTER, hour);
        let _ = timeout(moment, poll_fn(|cx| pausing(cx, &mut connection))).await;
        assert_eq!(limit(&connection), Duration::ZERO);
    }
}
