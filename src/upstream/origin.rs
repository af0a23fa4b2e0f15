//! A backend as configured: its name, its TLS settings and the result of its last DNS lookup. It knows nothing about
//! endpoints.

use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;
use tokio_rustls::TlsConnector;

use crate::config::ServerUrl;
use crate::tls::OutboundTls;

pub struct UpstreamOrigin {
    /// The value of the `host` header.
    pub authority: Arc<str>,
    pub host: String,
    pub port: u16,
    socket: Option<Arc<Path>>,
    pub tls: Option<(TlsConnector, OutboundTls)>,
    resolution: Mutex<NameResolution>,
    /// Requests a DNS lookup, because an endpoint refuses connections: the name may have new addresses.
    pub lookup_requested: Notify,
}

/// The address of an endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EndpointAddress {
    Tcp(SocketAddr),
    /// The path of a Unix socket.
    Unix(Arc<Path>),
}

impl fmt::Display for EndpointAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EndpointAddress::Tcp(address) => address.fmt(f),
            EndpointAddress::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// The result of DNS lookups of a name.
#[derive(Clone, Debug, Default)]
pub struct NameResolution {
    /// The last successful lookup.
    pub resolved_at: Option<SystemTime>,
    /// The error of the last lookup, if it failed.
    pub last_error: Option<String>,
    /// The number of failed lookups.
    pub failures: u64,
}

impl UpstreamOrigin {
    pub fn new(url: &ServerUrl, tls: Option<OutboundTls>) -> Arc<UpstreamOrigin> {
        Arc::new(UpstreamOrigin {
            authority: url.authority().into(),
            host: url.host.clone(),
            port: url.port,
            socket: url.socket.as_deref().map(Arc::from),
            tls: tls.map(|tls| (TlsConnector::from(Arc::clone(&tls.config)), tls)),
            resolution: Mutex::default(),
            lookup_requested: Notify::new(),
        })
    }

    /// Returns whether both have the same host and port, or the same Unix socket.
    pub fn has_same_address(&self, other: &UpstreamOrigin) -> bool {
        self.host == other.host && self.port == other.port && self.socket == other.socket
    }

    /// Returns whether the port is the one of a URL without a port.
    pub fn has_default_port(&self) -> bool {
        matches!(self.port, 80 | 443)
    }

    /// The address, if it does not depend on a DNS lookup.
    pub fn fixed_address(&self) -> Option<EndpointAddress> {
        if let Some(path) = &self.socket {
            return Some(EndpointAddress::Unix(Arc::clone(path)));
        }
        self.host.parse().ok().map(|ip| EndpointAddress::Tcp(SocketAddr::new(ip, self.port)))
    }

    /// The result of DNS lookups; stays empty if the address is fixed.
    pub fn resolution(&self) -> MutexGuard<'_, NameResolution> {
        self.resolution.lock()
    }

    /// Returns whether at least one lookup has completed, successfully or not.
    pub fn has_been_looked_up(&self) -> bool {
        let resolution = self.resolution();
        self.fixed_address().is_some() || resolution.resolved_at.is_some() || resolution.last_error.is_some()
    }

    #[cfg(test)]
    pub fn plain(host: &str, port: u16) -> Arc<UpstreamOrigin> {
        UpstreamOrigin::new(&ServerUrl { tls: false, host: host.to_owned(), port, socket: None }, None)
    }
}
