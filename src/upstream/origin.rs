//! A backend by its name: what it is called, how to speak TLS with it, and what is known of its addresses.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;
use tokio_rustls::TlsConnector;

use crate::config::UpstreamUrl;
use crate::tls::UpstreamTls;

/// A backend.
pub struct Origin {
    /// The value of `host`.
    pub authority: Arc<str>,
    pub host: String,
    pub port: u16,
    pub tls: Option<(TlsConnector, UpstreamTls)>,
    resolution: Mutex<Resolution>,
    /// One of its addresses takes no connections: the name may mean others by now.
    pub doubted: Notify,
}

/// What became of looking up the name.
#[derive(Clone, Debug, Default)]
pub struct Resolution {
    /// The last time that it was found.
    pub found: Option<SystemTime>,
    /// Why it could not be found the last time.
    pub failing: Option<String>,
    /// How often it could not.
    pub failures: u64,
}

impl Origin {
    pub fn new(url: &UpstreamUrl, tls: Option<UpstreamTls>) -> Arc<Origin> {
        Arc::new(Origin {
            authority: url.authority().into(),
            host: url.host.clone(),
            port: url.port,
            tls: tls.map(|tls| (TlsConnector::from(Arc::clone(&tls.config)), tls)),
            resolution: Mutex::default(),
            doubted: Notify::new(),
        })
    }

    /// Whether it has the same name and port.
    pub fn is_at_the_place_of(&self, other: &Origin) -> bool {
        self.host == other.host && self.port == other.port
    }

    /// The address, where the name is one.
    pub fn literal(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }

    /// What became of looking up the name; nothing of what is an address.
    pub fn resolution(&self) -> MutexGuard<'_, Resolution> {
        self.resolution.lock()
    }

    /// Whether it was looked up once, with whatever outcome.
    pub fn was_looked_up(&self) -> bool {
        let resolution = self.resolution();
        self.literal().is_some() || resolution.found.is_some() || resolution.failing.is_some()
    }

    #[cfg(test)]
    pub fn plain(host: &str, port: u16) -> Arc<Origin> {
        Origin::new(&UpstreamUrl { tls: false, host: host.to_owned(), port }, None)
    }
}
