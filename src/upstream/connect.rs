//! A new connection to the backend: name, TCP, TLS.

use std::cell::RefCell;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tracing::warn;

use crate::config::{UpstreamOptions, UpstreamUrl};
use crate::tls::UpstreamTls;
use crate::upstream::connection::{Connection, Stream};

/// Opens connections to one origin.
pub struct Connector {
    url: UpstreamUrl,
    tls: Option<(TlsConnector, UpstreamTls)>,
    limit: Duration,
    /// What the name meant when it was last found.
    known: RefCell<Vec<SocketAddr>>,
}

impl Connector {
    pub fn new(options: &UpstreamOptions, tls: Option<UpstreamTls>) -> Connector {
        let tls = tls.map(|tls| (TlsConnector::from(tls.config.clone()), tls));
        let limit = options.connect_timeout;
        Connector { url: options.url.clone(), tls, limit, known: RefCell::default() }
    }

    /// Connects; takes no longer than `upstream.connect_timeout`.
    pub async fn connect(&self) -> io::Result<Connection> {
        let connecting = async {
            let socket = self.dial().await?;
            let stream = match &self.tls {
                None => Stream::Plain(socket),
                Some((connector, tls)) => {
                    Stream::Tls(Box::new(connector.connect(tls.server_name.clone(), socket).await?))
                }
            };
            Ok(Connection::new(stream))
        };
        timeout(self.limit, connecting).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    /// Tries the addresses of the name in turn; one that does not answer leaves time for the others.
    async fn dial(&self) -> io::Result<TcpStream> {
        let addresses = self.look_up().await?;
        let share = self.limit / u32::try_from(addresses.len().max(1)).unwrap_or(u32::MAX);
        let mut last = None;
        for address in addresses {
            match timeout(share, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => return tune(stream),
                Ok(Err(error)) => last = Some(error),
                Err(_) => last = Some(io::ErrorKind::TimedOut.into()),
            }
        }
        Err(last.unwrap_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the name has no address")))
    }

    async fn look_up(&self) -> io::Result<Vec<SocketAddr>> {
        if let Ok(address) = self.url.host.parse::<IpAddr>() {
            return Ok(vec![SocketAddr::new(address, self.url.port)]);
        }
        match lookup_host((self.url.host.as_str(), self.url.port)).await {
            Ok(found) => {
                let found: Vec<_> = found.collect();
                self.known.borrow_mut().clone_from(&found);
                Ok(found)
            }
            Err(error) if self.known.borrow().is_empty() => Err(error),
            // A name service that is away for a moment must not take the backend with it.
            Err(error) => {
                warn!(%error, "cannot look up the upstream's name; using the addresses it had before");
                Ok(self.known.borrow().clone())
            }
        }
    }
}

/// No Nagle; keep-alive probes, so that neither a firewall forgets a query that runs for minutes nor we wait for a
/// host that is gone.
fn tune(stream: TcpStream) -> io::Result<TcpStream> {
    stream.set_nodelay(true)?;
    let probes = TcpKeepalive::new()
        .with_time(Duration::from_secs(30))
        .with_interval(Duration::from_secs(10))
        .with_retries(3);
    SockRef::from(&stream).set_tcp_keepalive(&probes)?;
    Ok(stream)
}
