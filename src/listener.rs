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
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Binds `count` sockets to one address. With port 0 all get the port that the first one was given.
pub fn bind(address: SocketAddr, count: usize) -> io::Result<Vec<std::net::TcpListener>> {
    // Sharing a port is possible with strangers too. A socket that does not share finds out whether somebody is there.
    drop(socket(address, false)?);
    let mut address = address;
    let mut listeners = Vec::with_capacity(count);
    for _ in 0..count.max(1) {
        let listener = socket(address, true)?;
        address = listener.local_addr()?;
        listeners.push(listener);
    }
    Ok(listeners)
}

fn socket(address: SocketAddr, shared: bool) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Waits for the next connection. Failures to accept are logged, counted and outlived.
pub async fn accept(listener: &TcpListener, failures: &Counter) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                if tune(&stream).is_ok() {
                    return (stream, peer);
                }
            }
            Err(error) if is_about_one_connection(&error) => {}
            Err(error) => {
                failures.inc();
                warn!(%error, "cannot accept connections; trying again");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn is_about_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

/// No Nagle; probes find clients that are gone without a word while a query runs for them.
fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let probes = TcpKeepalive::new()
        .with_time(Duration::from_secs(60))
        .with_interval(Duration::from_secs(10))
        .with_retries(6);
    SockRef::from(stream).set_tcp_keepalive(&probes)
}

#[cfg(test)]
mod tests {
    use super::*;

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
