//! All addresses of all backends, once for the process: workers take from here where requests may go, and tell what
//! became of them.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use http::StatusCode;
use parking_lot::Mutex;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::config::{HealthOptions, UpstreamOptions};
use crate::tls::OutboundTls;
use crate::upstream::UpstreamError;
use crate::upstream::endpoint::{Endpoint, EndpointFailure, EndpointState};
use crate::upstream::origin::UpstreamOrigin;

/// The backends, and which of their addresses are in use.
pub struct Backends {
    pub(super) options: UpstreamOptions,
    origins: Vec<Arc<UpstreamOrigin>>,
    workers: usize,
    endpoints: Mutex<Arc<[Arc<Endpoint>]>>,
    /// Counts how often the addresses changed: what a worker looks at with each request.
    generation: AtomicU64,
    /// The same, for who waits for it.
    changes: watch::Sender<u64>,
}

impl Backends {
    /// With the addresses that need no looking up. `tls` has one entry for each backend; `workers` will ask.
    pub fn new(options: UpstreamOptions, tls: Vec<Option<OutboundTls>>, workers: usize) -> Arc<Backends> {
        let mut new = Backends::without_endpoints(options, tls, workers);
        let endpoints = new.origins.iter().filter_map(|origin| ip_endpoint(origin, workers));
        new.endpoints = Mutex::new(endpoints.collect());
        Arc::new(new)
    }

    /// Without any address.
    fn without_endpoints(
        options: UpstreamOptions,
        tls: Vec<Option<OutboundTls>>,
        workers: usize,
    ) -> Backends {
        let origins = options.urls.iter().zip(tls).map(|(url, tls)| UpstreamOrigin::new(url, tls)).collect();
        Backends {
            options,
            origins,
            workers,
            endpoints: Mutex::default(),
            generation: AtomicU64::new(0),
            changes: watch::Sender::new(0),
        }
    }

    /// The same with other options. What is known of the addresses of a name stays until it is looked up again, and how
    /// they are stays where that says something of them still: `same_tls` if the names and certificates of TLS are the same.
    pub fn with_options(
        &self,
        options: UpstreamOptions,
        tls: Vec<Option<OutboundTls>>,
        workers: usize,
        same_tls: bool,
    ) -> Arc<Backends> {
        let mut new = Backends::without_endpoints(options, tls, workers);
        let before = self.endpoints();
        let endpoints = new.origins.iter().flat_map(|origin| {
            let is_meant = |old: &&Arc<Endpoint>| old.origin.has_same_host_and_port(origin);
            if let Some(old) = self.origins.iter().find(|old| old.has_same_host_and_port(origin)) {
                origin.resolution().clone_from(&old.resolution());
            }
            let same_way = |old: &Endpoint| same_tls && old.origin.tls.is_some() == origin.tls.is_some();
            let known = before.iter().filter(is_meant).map(|old| {
                let endpoint = Endpoint::new(Arc::clone(origin), old.address, workers);
                if same_way(old) && self.is_ejection_still_valid(old, &new.options.health) {
                    endpoint.copy_state_from(old);
                }
                endpoint
            });
            let known: Vec<_> = known.collect();
            if known.is_empty() { ip_endpoint(origin, workers).into_iter().collect() } else { known }
        });
        new.endpoints = Mutex::new(endpoints.collect());
        Arc::new(new)
    }

    /// Whether an address would be out of use by other options too.
    fn is_ejection_still_valid(&self, endpoint: &Endpoint, health: &HealthOptions) -> bool {
        match endpoint.state_and_health().1.failure {
            Some(EndpointFailure::HealthCheck) => self.options.health.path == health.path,
            _ => health.eject_after != 0,
        }
    }

    /// Each backend.
    pub fn origins(&self) -> &[Arc<UpstreamOrigin>] {
        &self.origins
    }

    /// All addresses.
    pub fn endpoints(&self) -> Arc<[Arc<Endpoint>]> {
        Arc::clone(&self.endpoints.lock())
    }

    /// Another number means other addresses.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Relaxed)
    }

    /// Hears of other addresses.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Whether any request can be sent.
    pub fn is_usable(&self) -> bool {
        self.endpoints.lock().iter().any(|endpoint| endpoint.state() != EndpointState::Ejected)
    }

    /// Whether each name was looked up once.
    pub fn has_looked_up_all_names(&self) -> bool {
        self.origins.iter().all(|origin| origin.has_been_looked_up())
    }

    /// A name means these addresses now. What stays is left as it is; what is gone ends with its requests.
    pub(super) fn set_addresses(&self, origin: &Arc<UpstreamOrigin>, found: &[IpAddr]) {
        let mut endpoints = self.endpoints.lock();
        let is_ours = |endpoint: &&Arc<Endpoint>| Arc::ptr_eq(&endpoint.origin, origin);
        let (kept, left): (Vec<_>, Vec<_>) = endpoints
            .iter()
            .partition(|endpoint| !is_ours(endpoint) || found.contains(&endpoint.address.ip()));
        let is_new =
            |ip: &&IpAddr| !endpoints.iter().filter(is_ours).any(|endpoint| endpoint.address.ip() == **ip);
        let new: Vec<_> = found
            .iter()
            .filter(is_new)
            .map(|ip| Endpoint::new(Arc::clone(origin), SocketAddr::new(*ip, origin.port), self.workers))
            .collect();
        if left.is_empty() && new.is_empty() {
            return;
        }
        let told = |endpoints: &mut dyn Iterator<Item = &Arc<Endpoint>>| {
            endpoints.map(|endpoint| endpoint.address.ip().to_string()).collect::<Vec<_>>().join(" ")
        };
        info!(
            backend = &*origin.authority,
            new = told(&mut new.iter()),
            gone = told(&mut left.iter().copied()),
            "a backend has other addresses"
        );
        let left: Vec<_> = left.into_iter().map(Arc::clone).collect();
        *endpoints = kept.into_iter().map(Arc::clone).chain(new).collect();
        drop(endpoints);
        for endpoint in left {
            endpoint.mark_removed();
        }
        self.notify_change();
    }

    /// Tells everybody that there are other addresses, or that it is known that there are none.
    pub(super) fn notify_change(&self) {
        let generation = self.generation.fetch_add(1, Ordering::Relaxed) + 1;
        self.changes.send_replace(generation);
    }

    /// An address has answered with this status.
    pub(super) fn record_response(&self, endpoint: &Endpoint, status: StatusCode) {
        match status {
            StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT => {
                self.record_failure(endpoint, EndpointFailure::ErrorStatus);
            }
            _ => endpoint.record_success(),
        }
    }

    /// An address has not answered. Many times in a row take it out of use.
    pub(super) fn record_failure(&self, endpoint: &Endpoint, why: EndpointFailure) {
        let strikes = endpoint.record_failure();
        if why.is_connect_failure() {
            endpoint.origin.lookup_requested.notify_one();
        }
        let most = self.options.health.eject_after;
        if most == 0 || strikes < most {
            return;
        }
        // One decision at a time: two at once could leave too few.
        let endpoints = self.endpoints.lock();
        if !why.is_connect_failure() && !can_be_spared(endpoint, &endpoints) {
            if strikes == most {
                warn!(
                    backend = &*endpoint.origin.authority, address = %endpoint.address, why = why.as_str(),
                    "an address of the backend fails, and stays in use: half of the addresses would not be left"
                );
            }
            return;
        }
        self.eject(endpoint, why, strikes);
    }

    /// An address was given all the time there is to take a connection, after many requests had not waited for it.
    pub(super) fn eject_unreachable(&self, endpoint: &Endpoint, why: EndpointFailure) {
        self.eject(endpoint, why, self.options.health.eject_after);
    }

    fn eject(&self, endpoint: &Endpoint, why: EndpointFailure, strikes: u32) {
        if endpoint.eject(why, &self.options.health, Instant::now()) {
            warn!(
                backend = &*endpoint.origin.authority, address = %endpoint.address, why = why.as_str(), strikes,
                "an address of the backend is out of use"
            );
        }
    }

    /// An address has not taken a connection within a part of `upstream.connect_timeout`. As many of these as take one out
    /// of use have it tried with the whole time.
    pub(super) fn record_short_connect_timeout(&self, endpoint: &Endpoint) {
        endpoint.origin.lookup_requested.notify_one();
        let most = self.options.health.eject_after;
        if endpoint.record_short_connect_timeout() >= most && most != 0 {
            endpoint.probe_requested.notify_one();
        }
    }

    /// For a connection, whichever it is.
    pub(super) fn connect_timeout(&self) -> Duration {
        self.options.connect_timeout
    }

    /// Why there is no address for a request.
    pub(super) fn no_endpoint_error(&self) -> UpstreamError {
        if !self.endpoints.lock().is_empty() {
            return UpstreamError::Unavailable;
        }
        let failing = self.origins.iter().find_map(|origin| origin.resolution().last_error.clone());
        let why = failing.unwrap_or_else(|| "the name has no address".to_owned());
        UpstreamError::Connect(io::Error::new(io::ErrorKind::NotFound, why))
    }
}

/// The address of a backend that needs no looking up.
fn ip_endpoint(origin: &Arc<UpstreamOrigin>, workers: usize) -> Option<Arc<Endpoint>> {
    let address = SocketAddr::new(origin.ip_literal()?, origin.port);
    Some(Endpoint::new(Arc::clone(origin), address, workers))
}

/// Whether half of all addresses are in use without this one. What still takes connections may be better than it seems:
/// the requests themselves may be what is wrong.
fn can_be_spared(endpoint: &Endpoint, all: &[Arc<Endpoint>]) -> bool {
    let others = all.iter().filter(|other| !std::ptr::eq(Arc::as_ptr(other), endpoint));
    let in_use = others.filter(|other| other.state() == EndpointState::Healthy).count();
    in_use > 0 && in_use * 2 >= all.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Sources, load};

    fn options(env: &[(&str, &str)]) -> UpstreamOptions {
        let mut environment =
            vec![("API_AUTH_SALT".into(), "cw_0x689RpI-jtRR7oE8h_eQsKImvJapLeSbXpwF4e4=".into())];
        let urls = ("URLS", "http://backend.test:8000,http://127.0.0.9:8000");
        let all = [urls].into_iter().chain(env.iter().copied());
        environment.extend(
            all.map(|(name, value)| {
                (format!("TIMBR_GATEWAY_UPSTREAM_{name}").into(), value.to_owned().into())
            }),
        );
        load(&Sources { environment, ..Sources::default() }).expect("valid").0.upstream
    }

    fn states(backends: &Backends) -> Vec<(String, EndpointState)> {
        let told = |one: &Arc<Endpoint>| (one.address.ip().to_string(), one.state());
        let mut all: Vec<_> = backends.endpoints().iter().map(told).collect();
        all.sort_by(|one, other| one.0.cmp(&other.0));
        all
    }

    fn plain(count: usize) -> Vec<Option<OutboundTls>> {
        vec![None; count]
    }

    /// Knows two addresses of the name; one of them is out of use, and so is that without a name.
    fn known(why: EndpointFailure) -> Arc<Backends> {
        let backends = Backends::new(options(&[("HEALTH_PATH", "/health")]), plain(2), 1);
        let found = ["10.0.0.1", "10.0.0.2"].map(|ip| ip.parse().expect("an address"));
        backends.origins()[0].resolution().resolved_at = Some(std::time::SystemTime::now());
        backends.set_addresses(&backends.origins()[0], &found);
        for endpoint in backends.endpoints().iter().filter(|one| one.address.ip() != found[0]) {
            assert!(endpoint.eject(why, &backends.options.health, Instant::now()));
        }
        backends
    }

    #[test]
    fn new_options_keep_known_addresses_and_their_state() {
        use EndpointState::{Ejected, Healthy};
        let now = |one, two, three| {
            [("10.0.0.1", one), ("10.0.0.2", two), ("127.0.0.9", three)].map(|(ip, how)| (ip.to_owned(), how))
        };
        let path = ("HEALTH_PATH", "/health");
        let later = options(&[("RESPONSE_TIMEOUT", "7s"), path]);
        for why in [EndpointFailure::Connect, EndpointFailure::ErrorStatus, EndpointFailure::HealthCheck] {
            let new = known(why).with_options(later.clone(), plain(2), 3, true);
            assert_eq!(states(&new), now(Healthy, Ejected, Ejected), "{why:?}");
            assert!(new.is_usable() && new.has_looked_up_all_names());
            assert_eq!(new.endpoints()[1].totals().ejections, 1, "counters go on");
            assert_eq!(
                new.endpoints()[1].counters_of(2).open_connections.get(),
                0,
                "connections are its own"
            );
        }
        let all_in_use = now(Healthy, Healthy, Healthy);
        let other_tls = known(EndpointFailure::Connect).with_options(later, plain(2), 1, false);
        assert_eq!(states(&other_tls), all_in_use, "another certificate may be all that was missing");
        let other_path = known(EndpointFailure::HealthCheck).with_options(options(&[]), plain(2), 1, true);
        assert_eq!(states(&other_path), all_in_use, "nobody checks it any more");
        let never = known(EndpointFailure::Connect).with_options(
            options(&[("EJECT_AFTER", "0"), path]),
            plain(2),
            1,
            true,
        );
        assert_eq!(states(&never), all_in_use, "requests take nothing out of use any more");
    }

    #[test]
    fn a_lookup_replaces_copied_addresses_and_a_different_port_copies_none() {
        let new = known(EndpointFailure::Connect).with_options(options(&[]), plain(2), 1, true);
        let found = ["10.0.0.2", "10.0.0.3"].map(|ip| ip.parse().expect("an address"));
        new.set_addresses(&new.origins()[0], &found);
        let addresses: Vec<_> = states(&new).into_iter().map(|(ip, _)| ip).collect();
        assert_eq!(addresses, ["10.0.0.2", "10.0.0.3", "127.0.0.9"]);
        let elsewhere = options(&[("URLS", "http://backend.test:9000,http://127.0.0.9:9000")]);
        let new = known(EndpointFailure::Connect).with_options(elsewhere, plain(2), 1, true);
        assert_eq!(states(&new), [("127.0.0.9".to_owned(), EndpointState::Healthy)]);
        assert!(!new.has_looked_up_all_names());
    }
}
