//! Listening sockets. Each worker has its own on the same port (SO_REUSEPORT), so that the kernel distributes
//! connections and no thread passes one to a different thread. All workers accept from the same Unix socket.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tracing::warn;

use crate::base::client_address;
use crate::os::unix_socket;

/// Length of the accept queue of each worker.
const BACKLOG: i32 = 4096;

/// Delay after a failed accept. If descriptors or memory are exhausted, an immediate retry would only use CPU time.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);

/// A listening socket of a worker that has not started.
pub enum BoundListener {
    /// Of its own, on a shared port.
    Tcp(std::net::TcpListener),
    /// A copy of the descriptor that all workers have.
    Unix(std::os::unix::net::UnixListener),
}

/// A listening socket of a running worker.
pub enum ClientListener {
    /// Its connections have addresses.
    Tcp(TcpListener),
    /// Its connections have none.
    Unix(UnixListener),
}

impl BoundListener {
    /// Registers the socket with the event loop of this thread.
    pub fn register(self) -> io::Result<ClientListener> {
        Ok(match self {
            BoundListener::Tcp(listener) => ClientListener::Tcp(TcpListener::from_std(listener)?),
            BoundListener::Unix(listener) => ClientListener::Unix(UnixListener::from_std(listener)?),
        })
    }
}

impl ClientListener {
    /// Accepts a connection.
    ///
    /// SECURITY: the peers of a Unix socket have no address. They share one that belongs to no other client, so that
    /// none of them is taken for a proxy or a client of a network.
    pub fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<(TcpStream, SocketAddr)>> {
        match self {
            ClientListener::Tcp(listener) => listener.poll_accept(cx),
            ClientListener::Unix(listener) => {
                let (stream, _) = ready!(listener.poll_accept(cx))?;
                let stream = stream.into_std().and_then(unix_socket::as_tcp_stream)?;
                Poll::Ready(Ok((stream, SocketAddr::new(client_address::UNIX_PEER, 0))))
            }
        }
    }
}

/// Binds `count` sockets to one address. With port 0, all of them use the port that the first one was assigned.
pub fn bind(address: SocketAddr, count: usize) -> io::Result<Vec<std::net::TcpListener>> {
    // SO_REUSEPORT would also share the port with an unrelated process. A socket without it detects that the port is in
    // use.
    drop(open_socket(address, PortUse::Exclusive)?);
    let mut address = address;
    let mut listeners = Vec::with_capacity(count);
    for _ in 0..count.max(1) {
        let listener = open_socket(address, PortUse::Shared)?;
        address = listener.local_addr()?;
        listeners.push(listener);
    }
    Ok(listeners)
}

/// Exclusive or shared use of a port by listening sockets.
#[derive(Clone, Copy, PartialEq, Eq)]
enum PortUse {
    Exclusive,
    Shared,
}

fn open_socket(address: SocketAddr, port: PortUse) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(port == PortUse::Shared)?;
    socket.set_nonblocking(true)?;
    set_connection_options(&socket)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Configures an inherited socket like the gateway's own. All workers then accept from the same socket.
pub fn adopt(socket: &std::net::TcpListener) -> io::Result<()> {
    socket.set_nonblocking(true)?;
    set_connection_options(&SockRef::from(socket))
}

/// Waits for the next connection. Errors are logged, counted and retried.
pub async fn accept(listener: &ClientListener, failures: &Counter) -> (TcpStream, SocketAddr) {
    loop {
        match poll_fn(|cx| listener.poll_accept(cx)).await {
            Ok(connection) => return connection,
            Err(error) if is_connection_error(&error) => {}
            Err(error) => {
                failures.inc();
                warn!(%error, "cannot accept connections; retrying");
                tokio::time::sleep(ACCEPT_RETRY_DELAY).await;
            }
        }
    }
}

/// Whether only one connection failed, before it was accepted.
pub fn is_connection_error(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

/// Sets the options that accepted sockets inherit on Linux, so that they are set once and not per connection:
/// TCP_NODELAY, and keepalive probes, which detect clients that have disappeared while their query runs.
fn set_connection_options(socket: &Socket) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    let probes =
        TcpKeepalive::new().with_time(Duration::from_secs(60)).with_interval(Duration::from_secs(10)).with_retries(6);
    socket.set_tcp_keepalive(&probes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepted_sockets_inherit_the_options() {
        let listener = bind(SocketAddr::from(([127, 0, 0, 1], 0)), 1).expect("bound").remove(0);
        let _client = std::net::TcpStream::connect(listener.local_addr().expect("an address")).expect("connected");
        let accepted = loop {
            match listener.accept() {
                Ok((accepted, _)) => break accepted,
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
            }
        };
        let socket = SockRef::from(&accepted);
        assert!(socket.tcp_nodelay().expect("read") && socket.keepalive().expect("read"));
        assert_eq!(socket.tcp_keepalive_time().expect("read"), Duration::from_secs(60));
    }

    #[test]
    fn all_workers_share_the_assigned_port() {
        let listeners = bind(SocketAddr::from(([127, 0, 0, 1], 0)), 3).expect("bound");
        let address = listeners[0].local_addr().expect("an address");
        assert_ne!(address.port(), 0);
        assert!(listeners.iter().all(|l| l.local_addr().expect("an address") == address));
        let error = bind(address, 1).expect_err("the port is in use");
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }
}
