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

/// Minimum time for one connection attempt if more endpoints remain to be tried; at most half of the total connect
/// timeout.
const MIN_CONNECT_SHARE: Duration = Duration::from_secs(1);

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

/// The timeout of one connection attempt, out of the `total` time for all of them, so that an endpoint that does not
/// respond leaves time for the others.
pub fn connect_share(total: Duration, elapsed: Duration, others: usize) -> Duration {
    let left = total.saturating_sub(elapsed);
    let even = left / u32::try_from(others + 1).unwrap_or(u32::MAX);
    even.max(MIN_CONNECT_SHARE.min(total / 2)).min(left)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connect_time_is_shared_and_no_share_is_too_short_for_a_handshake() {
        let share = |total, elapsed, others| {
            connect_share(Duration::from_millis(total), Duration::from_millis(elapsed), others).as_millis()
        };
        assert_eq!((share(5000, 0, 0), share(5000, 0, 1), share(5000, 2500, 0)), (5000, 2500, 2500));
        assert_eq!((share(5000, 0, 19), share(5000, 4000, 15)), (1000, 1000));
        assert_eq!((share(600, 0, 19), share(600, 300, 18)), (300, 300), "there is time for a second attempt");
        assert_eq!((share(5000, 4900, 3), share(5000, 6000, 3)), (100, 0));
    }
}
