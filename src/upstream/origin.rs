//! A backend as configured: its name, its TLS settings and the result of its last DNS lookup. It knows nothing about
//! endpoints.

use std::net::IpAddr;
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
    pub tls: Option<(TlsConnector, OutboundTls)>,
    resolution: Mutex<NameResolution>,
    /// Requests a DNS lookup, because an endpoint refuses connections: the name may have new addresses.
    pub lookup_requested: Notify,
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
            tls: tls.map(|tls| (TlsConnector::from(Arc::clone(&tls.config)), tls)),
            resolution: Mutex::default(),
            lookup_requested: Notify::new(),
        })
    }

    /// Returns whether both have the same host and port.
    pub fn has_same_host_and_port(&self, other: &UpstreamOrigin) -> bool {
        self.host == other.host && self.port == other.port
    }

    /// Returns whether the port is the one of a URL without a port.
    pub fn has_default_port(&self) -> bool {
        matches!(self.port, 80 | 443)
    }

    /// The IP address, if the host is one.
    pub fn ip_literal(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }

    /// The result of DNS lookups; stays empty if the host is an IP address.
    pub fn resolution(&self) -> MutexGuard<'_, NameResolution> {
        self.resolution.lock()
    }

    /// Returns whether at least one lookup has completed, successfully or not.
    pub fn has_been_looked_up(&self) -> bool {
        let resolution = self.resolution();
        self.ip_literal().is_some() || resolution.resolved_at.is_some() || resolution.last_error.is_some()
    }

    #[cfg(test)]
    pub fn plain(host: &str, port: u16) -> Arc<UpstreamOrigin> {
        UpstreamOrigin::new(&ServerUrl { tls: false, host: host.to_owned(), port }, None)
    }
}
