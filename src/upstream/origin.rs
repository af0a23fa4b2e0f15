//! A backend by its name: what it is called, how to speak TLS with it, and what is known of its addresses.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;
use tokio_rustls::TlsConnector;

use crate::config::ServerUrl;
use crate::tls::OutboundTls;

/// A backend.
pub struct UpstreamOrigin {
    /// The value of `host`.
    pub authority: Arc<str>,
    pub host: String,
    pub port: u16,
    pub tls: Option<(TlsConnector, OutboundTls)>,
    resolution: Mutex<NameResolution>,
    /// One of its addresses takes no connections: the name may mean others by now.
    pub lookup_requested: Notify,
}

/// What became of looking up the name.
#[derive(Clone, Debug, Default)]
pub struct NameResolution {
    /// The last time that it was found.
    pub resolved_at: Option<SystemTime>,
    /// Why it could not be found the last time.
    pub last_error: Option<String>,
    /// How often it could not.
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

    /// Whether it has the same name and port.
    pub fn has_same_host_and_port(&self, other: &UpstreamOrigin) -> bool {
        self.host == other.host && self.port == other.port
    }

    /// The address, where the name is one.
    pub fn ip_literal(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }

    /// What became of looking up the name; nothing of what is an address.
    pub fn resolution(&self) -> MutexGuard<'_, NameResolution> {
        self.resolution.lock()
    }

    /// Whether it was looked up once, with whatever outcome.
    pub fn has_been_looked_up(&self) -> bool {
        let resolution = self.resolution();
        self.ip_literal().is_some() || resolution.resolved_at.is_some() || resolution.last_error.is_some()
    }

    #[cfg(test)]
    pub fn plain(host: &str, port: u16) -> Arc<UpstreamOrigin> {
        UpstreamOrigin::new(&ServerUrl { tls: false, host: host.to_owned(), port }, None)
    }
}
