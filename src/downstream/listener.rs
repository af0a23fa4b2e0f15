//! Listening sockets: one for each worker on the same port, so that the kernel spreads connections and no thread
//! hands one to another.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpListener, TcpStream};
use tracing::warn;

/// Connections that the kernel keeps for each worker until they are accepted.
const BACKLOG: i32 = 4096;

/// After an accept that failed for want of descriptors or memory: trying again at once would only burn the CPU.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);

/// Binds `count` sockets to one address. With port 0 all get the port that the first one was given.
pub fn bind(address: SocketAddr, count: usize) -> io::Result<Vec<std::net::TcpListener>> {
    // Sharing a port is possible with strangers too. A socket that does not share finds out whether somebody is there.
    drop(open_socket(address, false)?);
    let mut address = address;
    let mut listeners = Vec::with_capacity(count);
    for _ in 0..count.max(1) {
        let listener = open_socket(address, true)?;
        address = listener.local_addr()?;
        listeners.push(listener);
    }
    Ok(listeners)
}

fn open_socket(address: SocketAddr, shared: bool) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared)?;
    socket.set_nonblocking(true)?;
    set_connection_options(&socket)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Has a socket that somebody else opened serve like ours. All workers accept from the one socket then.
pub fn adopt(socket: &std::net::TcpListener) -> io::Result<()> {
    socket.set_nonblocking(true)?;
    set_connection_options(&SockRef::from(socket))
}

/// Waits for the next connection. Failures to accept are logged, counted and outlived.
pub async fn accept(listener: &TcpListener, failures: &Counter) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok(connection) => return connection,
            Err(error) if is_connection_error(&error) => {}
            Err(error) => {
                failures.inc();
                warn!(%error, "cannot accept connections; trying again");
                tokio::time::sleep(ACCEPT_RETRY_DELAY).await;
            }
        }
    }
}

fn is_connection_error(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

/// What connections take over from the socket that they come in by, as Linux has it: set once and not for each of them. No
/// Nagle; probes find clients that are gone without a word while a query runs for them.
fn set_connection_options(socket: &Socket) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    let probes = TcpKeepalive::new()
        .with_time(Duration::from_secs(60))
        .with_interval(Duration::from_secs(10))
        .with_retries(6);
    socket.set_tcp_keepalive(&probes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_take_over_what_is_set_for_them() {
        let listener = bind(SocketAddr::from(([127, 0, 0, 1], 0)), 1).expect("bound").remove(0);
        let _client =
            std::net::TcpStream::connect(listener.local_addr().expect("an address")).expect("let in");
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
    fn all_workers_share_the_port_that_was_given() {
        let listeners = bind(SocketAddr::from(([127, 0, 0, 1], 0)), 3).expect("bound");
        let address = listeners[0].local_addr().expect("an address");
        assert_ne!(address.port(), 0);
        assert!(listeners.iter().all(|l| l.local_addr().expect("an address") == address));
        let error = bind(address, 1).expect_err("somebody listens there");
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }
}
