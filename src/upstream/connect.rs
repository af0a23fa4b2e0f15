//! Opens a connection to an endpoint: TCP, then TLS; or a Unix socket.

use std::io;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_util::either::Either;

use crate::os::unix_socket;
use crate::upstream::connection::UpstreamStream;
use crate::upstream::endpoint::Endpoint;
use crate::upstream::origin::EndpointAddress;

/// Connects within `limit`, or fails with `TimedOut`.
pub async fn connect(endpoint: &Endpoint, limit: Duration) -> io::Result<UpstreamStream> {
    let connecting = async {
        let socket = match &endpoint.address {
            EndpointAddress::Tcp(address) => tune(TcpStream::connect(address).await?)?,
            EndpointAddress::Unix(path) => unix_socket::connect_stream(path).await?,
        };
        Ok(match &endpoint.origin.tls {
            None => Either::Left(socket),
            Some((connector, tls)) => {
                Either::Right(Box::new(connector.connect(tls.server_name.clone(), socket).await?))
            }
        })
    };
    timeout(limit, connecting).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Disables Nagle's algorithm and enables keep-alive probes, so that a firewall keeps the connection of a query that
/// runs for minutes, and a host that is down is detected.
fn tune(stream: TcpStream) -> io::Result<TcpStream> {
    stream.set_nodelay(true)?;
    let probes =
        TcpKeepalive::new().with_time(Duration::from_secs(30)).with_interval(Duration::from_secs(10)).with_retries(3);
    SockRef::from(&stream).set_tcp_keepalive(&probes)?;
    Ok(stream)
}
