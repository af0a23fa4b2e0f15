//! All endpoints of all backends, shared by the whole process: which of them accept requests, and the ejection policy.
//! It knows nothing about connections or HTTP messages.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Instant;

use http::StatusCode;
use parking_lot::Mutex;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::admission::{EndpointChoice, EndpointChooser, EndpointLoad};
use crate::config::{HealthOptions, UpstreamOptions};
use crate::tls::OutboundTls;
use crate::upstream::UpstreamError;
use crate::upstream::endpoint::{Endpoint, EndpointFailure, EndpointState};
use crate::upstream::origin::{EndpointAddress, UpstreamOrigin};
use crate::upstream::selection::{Candidate, select};

/// The configured backends and their endpoints.
pub struct Backends {
    pub(super) options: UpstreamOptions,
    origins: Vec<Arc<UpstreamOrigin>>,
    workers: usize,
    endpoints: Mutex<Arc<[Arc<Endpoint>]>>,
    /// Endpoints that get no new requests, until their last connection is closed.
    removed: Mutex<Vec<Arc<Endpoint>>>,
    /// Incremented when the endpoints change. Workers compare it with each request.
    generation: AtomicU64,
    /// The same number, for tasks that wait for a change.
    changes: watch::Sender<u64>,
    /// The choosers of requests that wait after a connection failed.
    untried: Mutex<Vec<Weak<UntriedEndpoints>>>,
}

/// The difference between the TLS names and certificates of two configurations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsChange {
    /// All of them are the same.
    Unchanged,
    /// At least one is different.
    Changed,
}

impl Backends {
    /// Creates the endpoints that need no DNS lookup. `tls` has one entry for each backend; `workers` is the number of
    /// worker threads.
    pub fn new(options: UpstreamOptions, tls: Vec<Option<OutboundTls>>, workers: usize) -> Arc<Backends> {
        let mut new = Backends::without_endpoints(options, tls, workers);
        let endpoints = new.origins.iter().filter_map(|origin| fixed_endpoint(origin, workers));
        new.endpoints = Mutex::new(endpoints.collect());
        Arc::new(new)
    }

    /// Creates the backends with an empty list of endpoints.
    fn without_endpoints(options: UpstreamOptions, tls: Vec<Option<OutboundTls>>, workers: usize) -> Backends {
        let origins = options.urls.iter().zip(tls).map(|(url, tls)| UpstreamOrigin::new(url, tls)).collect();
        Backends {
            options,
            origins,
            workers,
            endpoints: Mutex::default(),
            removed: Mutex::default(),
            generation: AtomicU64::new(0),
            changes: watch::Sender::new(0),
            untried: Mutex::default(),
        }
    }

    /// Returns whether a URL with this host and port names one of the backends, with or without the final dot of a
    /// complete DNS name.
    pub fn has_name(&self, host: &str, port: Option<u16>) -> bool {
        let host = without_final_dot(host.trim_start_matches('[').trim_end_matches(']'));
        self.origins.iter().any(|origin| {
            // The backend may write the scheme that the client used, with its own port.
            let is_port = port.map_or_else(|| origin.has_default_port(), |port| port == origin.port);
            without_final_dot(&origin.host).eq_ignore_ascii_case(host) && is_port
        })
    }

    /// Creates the backends of a new configuration. Known addresses of a name stay active until the next lookup. The
    /// state of an endpoint is copied if it is still meaningful.
    pub fn with_options(
        &self,
        options: UpstreamOptions,
        tls: Vec<Option<OutboundTls>>,
        tls_change: TlsChange,
    ) -> Arc<Backends> {
        let workers = self.workers;
        let mut new = Backends::without_endpoints(options, tls, workers);
        let before = self.endpoints();
        let endpoints = new.origins.iter().flat_map(|origin| {
            let is_same = |old: &&Arc<Endpoint>| old.origin.has_same_address(origin);
            if let Some(old) = self.origins.iter().find(|old| old.has_same_address(origin)) {
                origin.resolution().clone_from(&old.resolution());
            }
            let has_same_tls =
                |old: &Endpoint| tls_change == TlsChange::Unchanged && old.origin.tls.is_some() == origin.tls.is_some();
            let known = before.iter().filter(is_same).map(|old| {
                let endpoint = Endpoint::new(Arc::clone(origin), old.address.clone(), workers, Some(&old.load));
                if has_same_tls(old) && self.is_ejection_still_valid(old, &new.options.health) {
                    endpoint.copy_state_from(old);
                }
                endpoint
            });
            let known: Vec<_> = known.collect();
            if known.is_empty() { fixed_endpoint(origin, workers).into_iter().collect() } else { known }
        });
        new.endpoints = Mutex::new(endpoints.collect());
        new.removed = Mutex::new(self.removed().into_iter().chain(before.iter().map(Arc::clone)).collect());
        Arc::new(new)
    }

    /// Returns whether an ejection is still possible with the new options.
    fn is_ejection_still_valid(&self, endpoint: &Endpoint, health: &HealthOptions) -> bool {
        match endpoint.state_and_health().1.failure {
            Some(EndpointFailure::HealthCheck) => self.options.health.health_path == health.health_path,
            _ => health.eject_after != 0,
        }
    }

    /// The backends, as configured in `upstream.urls`.
    pub fn origins(&self) -> &[Arc<UpstreamOrigin>] {
        &self.origins
    }

    /// The current endpoints of all backends; a later change does not affect the returned list.
    pub fn endpoints(&self) -> Arc<[Arc<Endpoint>]> {
        Arc::clone(&self.endpoints.lock())
    }

    /// Endpoints of names or configurations that are not active any longer, and that still have connections.
    pub fn removed(&self) -> Vec<Arc<Endpoint>> {
        let mut removed = self.removed.lock();
        removed.retain(|endpoint| {
            let totals = endpoint.totals();
            totals.in_flight > 0 || totals.open_connections > 0
        });
        removed.clone()
    }

    /// Changes when the endpoints change.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Relaxed)
    }

    /// Receives a new number when the endpoints change.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Returns whether at least one endpoint accepts requests.
    pub fn is_usable(&self) -> bool {
        self.endpoints.lock().iter().any(|endpoint| endpoint.state() != EndpointState::Ejected)
    }

    /// Returns whether the first lookup of each name has completed.
    pub fn has_looked_up_all_names(&self) -> bool {
        self.origins.iter().all(|origin| origin.has_been_looked_up())
    }

    /// Sets the addresses of a name. Known endpoints keep their state; removed ones serve their current requests to the
    /// end.
    pub(super) fn set_addresses(&self, origin: &Arc<UpstreamOrigin>, addresses: &[IpAddr]) {
        let with_port = |ip: &IpAddr| EndpointAddress::Tcp(SocketAddr::new(*ip, origin.port));
        let addresses: Vec<_> = addresses.iter().map(with_port).collect();
        let mut endpoints = self.endpoints.lock();
        let is_ours = |endpoint: &&Arc<Endpoint>| Arc::ptr_eq(&endpoint.origin, origin);
        let (kept, removed): (Vec<_>, Vec<_>) =
            endpoints.iter().partition(|endpoint| !is_ours(endpoint) || addresses.contains(&endpoint.address));
        let is_new =
            |address: &&EndpointAddress| !endpoints.iter().filter(is_ours).any(|known| known.address == **address);
        let new: Vec<_> = addresses
            .iter()
            .filter(is_new)
            .map(|address| {
                let is_same = |old: &Arc<Endpoint>| old.address == *address && old.origin.has_same_address(origin);
                let before = self.removed().into_iter().rfind(is_same);
                let load = before.as_ref().map(|old| &old.load);
                Endpoint::new(Arc::clone(origin), address.clone(), self.workers, load)
            })
            .collect();
        if removed.is_empty() && new.is_empty() {
            return;
        }
        let list = |endpoints: &mut dyn Iterator<Item = &Arc<Endpoint>>| {
            endpoints.map(|endpoint| endpoint.address.to_string()).collect::<Vec<_>>().join(" ")
        };
        info!(
            backend = &*origin.authority,
            new = list(&mut new.iter()),
            gone = list(&mut removed.iter().copied()),
            "the addresses of a backend have changed"
        );
        let removed: Vec<_> = removed.into_iter().map(Arc::clone).collect();
        *endpoints = kept.into_iter().map(Arc::clone).chain(new).collect();
        drop(endpoints);
        for endpoint in &removed {
            endpoint.mark_removed();
        }
        self.removed.lock().extend(removed);
        self.notify_change();
    }

    /// Notifies workers that the endpoints have changed, or that a lookup failed and there are none.
    pub(super) fn notify_change(&self) {
        let generation = self.generation.fetch_add(1, Ordering::Relaxed) + 1;
        self.changes.send_replace(generation);
    }

    /// Records a response of an endpoint.
    pub(super) fn record_response(&self, endpoint: &Endpoint, status: StatusCode, was_ejected: bool) {
        match status {
            StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT => {
                self.record_failure(endpoint, EndpointFailure::ErrorStatus);
            }
            _ => endpoint.record_success(was_ejected),
        }
    }

    /// Records a failure of an endpoint, and ejects it after too many consecutive failures.
    pub(super) fn record_failure(&self, endpoint: &Endpoint, failure: EndpointFailure) {
        let failures = endpoint.record_failure();
        if failure.is_connect_failure() {
            endpoint.origin.lookup_requested.notify_one();
        }
        let limit = self.options.health.eject_after;
        if limit == 0 || failures < limit {
            return;
        }
        // Held for the whole decision: two concurrent ejections could leave too few endpoints.
        let endpoints = self.endpoints.lock();
        if !failure.is_connect_failure() && !can_be_spared(endpoint, &endpoints) {
            if failures == limit {
                warn!(
                    backend = &*endpoint.origin.authority, address = %endpoint.address, why = failure.as_str(),
                    "an endpoint fails but is not ejected: fewer than half of the endpoints would be left"
                );
            }
            return;
        }
        self.eject(endpoint, failure, failures);
    }

    /// Ejects an endpoint that refused a connection even with the full timeout.
    pub(super) fn eject_unreachable(&self, endpoint: &Endpoint, failure: EndpointFailure) {
        self.eject(endpoint, failure, self.options.health.eject_after);
    }

    fn eject(&self, endpoint: &Endpoint, failure: EndpointFailure, failures: u32) {
        if endpoint.eject(failure, &self.options.health, Instant::now()) {
            warn!(
                backend = &*endpoint.origin.authority, address = %endpoint.address, why = failure.as_str(),
                strikes = failures,
                "endpoint ejected"
            );
        }
    }

    /// Records a connection attempt that timed out before `upstream.connect_timeout`. After `upstream.eject_after` of
    /// them, the endpoint is probed with the full timeout.
    pub(super) fn record_short_connect_timeout(&self, endpoint: &Endpoint) {
        endpoint.origin.lookup_requested.notify_one();
        let limit = self.options.health.eject_after;
        if endpoint.record_short_connect_timeout() >= limit && limit != 0 {
            endpoint.probe_requested.notify_one();
        }
    }

    /// See [`EndpointChooser::choose`].
    fn choose_besides(&self, tried: &[Arc<EndpointLoad>], affinity: Option<u64>, limit: usize) -> EndpointChoice {
        let is_untried = |endpoint: &Arc<Endpoint>| !tried.iter().any(|load| Arc::ptr_eq(load, &endpoint.load));
        let endpoints = self.endpoints();
        if !endpoints.iter().any(is_untried) {
            return EndpointChoice::NoEndpoint;
        }
        loop {
            let has_room = |endpoint: &Arc<Endpoint>| endpoint.load.in_use() < limit;
            let Some(endpoint) = select(&endpoints, affinity, is_untried, has_room) else {
                return EndpointChoice::AllFull;
            };
            // A request that connected elsewhere before may have been faster.
            if let Some(permit) = endpoint.load.try_acquire(limit) {
                return EndpointChoice::Endpoint(permit);
            }
        }
    }

    /// The endpoints other than `tried`: the same chooser for all requests that wait for the same ones, as the queue asks
    /// each chooser once.
    pub fn besides(self: &Arc<Backends>, tried: Vec<Arc<EndpointLoad>>) -> Arc<UntriedEndpoints> {
        let mut choosers = self.untried.lock();
        choosers.retain(|chooser| chooser.strong_count() > 0);
        if let Some(known) = choosers.iter().filter_map(Weak::upgrade).find(|known| known.excludes(&tried)) {
            return known;
        }
        let new = Arc::new(UntriedEndpoints { backends: Arc::clone(self), tried });
        choosers.push(Arc::downgrade(&new));
        new
    }

    /// The error for a request without an endpoint.
    pub(super) fn no_endpoint_error(&self) -> UpstreamError {
        let error = self.origins.iter().find_map(|origin| origin.resolution().last_error.clone());
        let error = error.unwrap_or_else(|| "the name has no address".to_owned());
        UpstreamError::Connect(io::Error::new(io::ErrorKind::NotFound, error))
    }
}

impl Candidate for Arc<Endpoint> {
    fn endpoint(&self) -> &Endpoint {
        self
    }

    fn in_flight(&self) -> u64 {
        self.load.in_use() as u64
    }
}

impl fmt::Debug for Backends {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Backends").field(&self.options.name).finish()
    }
}

impl EndpointChooser for Backends {
    fn choose(&self, affinity: Option<u64>, limit: usize) -> EndpointChoice {
        self.choose_besides(&[], affinity, limit)
    }
}

/// The endpoints other than those to which a request could not connect.
#[derive(Debug)]
pub struct UntriedEndpoints {
    backends: Arc<Backends>,
    /// Each once.
    tried: Vec<Arc<EndpointLoad>>,
}

impl UntriedEndpoints {
    /// Returns whether it excludes just these, in any sequence.
    fn excludes(&self, tried: &[Arc<EndpointLoad>]) -> bool {
        let has = |load: &Arc<EndpointLoad>| self.tried.iter().any(|own| Arc::ptr_eq(own, load));
        self.tried.len() == tried.len() && tried.iter().all(has)
    }
}

impl EndpointChooser for UntriedEndpoints {
    fn choose(&self, affinity: Option<u64>, limit: usize) -> EndpointChoice {
        self.backends.choose_besides(&self.tried, affinity, limit)
    }
}

fn without_final_dot(name: &str) -> &str {
    name.strip_suffix('.').unwrap_or(name)
}

/// The endpoint of a backend whose host is an IP address or a Unix socket.
fn fixed_endpoint(origin: &Arc<UpstreamOrigin>, workers: usize) -> Option<Arc<Endpoint>> {
    Some(Endpoint::new(Arc::clone(origin), origin.fixed_address()?, workers, None))
}

/// Returns whether half of all endpoints are healthy without this one. An endpoint that accepts connections may be
/// healthy: the requests themselves may be the cause of the failures.
fn can_be_spared(endpoint: &Endpoint, all: &[Arc<Endpoint>]) -> bool {
    let others = all.iter().filter(|other| !std::ptr::eq(Arc::as_ptr(other), endpoint));
    let healthy = others.filter(|other| other.state() == EndpointState::Healthy).count();
    healthy > 0 && healthy * 2 >= all.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Sources, load};

    fn options(env: &[(&str, &str)]) -> UpstreamOptions {
        let mut environment = vec![("API_AUTH_SALT".into(), "cw_0x689RpI-jtRR7oE8h_eQsKImvJapLeSbXpwF4e4=".into())];
        let urls = ("URLS", "http://backend.test:8000,http://127.0.0.9:8000");
        let all = [urls].into_iter().chain(env.iter().copied());
        environment.extend(
            all.map(|(name, value)| (format!("TIMBR_GATEWAY_UPSTREAM_{name}").into(), value.to_owned().into())),
        );
        load(&Sources { environment, ..Sources::default() }).expect("valid").0.upstream
    }

    fn tcp(ip: IpAddr) -> EndpointAddress {
        EndpointAddress::Tcp(SocketAddr::new(ip, 8000))
    }

    fn states(backends: &Backends) -> Vec<(String, EndpointState)> {
        let state = |one: &Arc<Endpoint>| (one.address.to_string(), one.state());
        let mut all: Vec<_> = backends.endpoints().iter().map(state).collect();
        all.sort_by(|one, other| one.0.cmp(&other.0));
        all
    }

    fn plain(count: usize) -> Vec<Option<OutboundTls>> {
        vec![None; count]
    }

    #[test]
    fn a_final_dot_and_a_default_port_do_not_hide_a_name() {
        let backends = Backends::new(options(&[("URLS", "http://backend.test:8000,http://other.test.")]), plain(2), 1);
        for (host, port) in [("Backend.test.", Some(8000)), ("other.test", None), ("other.test.", Some(80))] {
            assert!(backends.has_name(host, port), "{host}");
        }
        for (host, port) in [("backend.test", None), ("test.", Some(8000)), ("other.test..", None)] {
            assert!(!backends.has_name(host, port), "{host}");
        }
    }

    /// Backends with two addresses of the name, one of them ejected, and an ejected endpoint without a name.
    fn backends_with_ejections(failure: EndpointFailure) -> Arc<Backends> {
        let backends = Backends::new(options(&[("HEALTH_PATH", "/health")]), plain(2), 1);
        let addresses = ["10.0.0.1", "10.0.0.2"].map(|ip| ip.parse().expect("an address"));
        backends.origins()[0].resolution().resolved_at = Some(std::time::SystemTime::now());
        backends.set_addresses(&backends.origins()[0], &addresses);
        for endpoint in backends.endpoints().iter().filter(|one| one.address != tcp(addresses[0])) {
            assert!(endpoint.eject(failure, &backends.options.health, Instant::now()));
        }
        backends
    }

    #[test]
    fn requests_that_tried_the_same_endpoints_share_a_chooser() {
        let backends = backends_with_ejections(EndpointFailure::Connect);
        let loads: Vec<_> = backends.endpoints().iter().map(|endpoint| Arc::clone(&endpoint.load)).collect();
        let besides = |tried: &[usize]| backends.besides(tried.iter().map(|one| Arc::clone(&loads[*one])).collect());
        let both = besides(&[0, 1]);
        assert!(Arc::ptr_eq(&both, &besides(&[1, 0])) && !Arc::ptr_eq(&both, &besides(&[0])));
        assert!(!Arc::ptr_eq(&both, &besides(&[0, 2])) && !Arc::ptr_eq(&both, &besides(&[0, 1, 2])));
        assert_eq!(backends.untried.lock().len(), 2, "those that no request uses any longer are removed");
    }

    #[test]
    fn new_options_keep_known_addresses_and_their_state() {
        use EndpointState::{Ejected, Healthy};
        let now = |one, two, three| {
            [("10.0.0.1", one), ("10.0.0.2", two), ("127.0.0.9", three)]
                .map(|(ip, state)| (format!("{ip}:8000"), state))
        };
        let path = ("HEALTH_PATH", "/health");
        let later = options(&[("RESPONSE_TIMEOUT", "7s"), path]);
        for failure in [EndpointFailure::Connect, EndpointFailure::ErrorStatus, EndpointFailure::HealthCheck] {
            let old = backends_with_ejections(failure);
            old.endpoints()[1].counters_of(0).open_connections.add(1);
            let new = old.with_options(later.clone(), plain(2), TlsChange::Unchanged);
            assert_eq!(states(&new), now(Healthy, Ejected, Ejected), "{failure:?}");
            assert!(new.is_usable() && new.has_looked_up_all_names());
            assert_eq!(new.endpoints()[1].totals().ejections, 1, "counters are copied");
            let open_connections = new.endpoints()[1].totals().open_connections;
            assert_eq!(open_connections, 0, "connections are counted per configuration");
        }
        let all_healthy = now(Healthy, Healthy, Healthy);
        let other_tls =
            backends_with_ejections(EndpointFailure::Connect).with_options(later, plain(2), TlsChange::Changed);
        assert_eq!(states(&other_tls), all_healthy, "a new certificate may solve the problem");
        let other_path = backends_with_ejections(EndpointFailure::HealthCheck).with_options(
            options(&[]),
            plain(2),
            TlsChange::Unchanged,
        );
        assert_eq!(states(&other_path), all_healthy, "the health checks are off");
        let never = backends_with_ejections(EndpointFailure::Connect).with_options(
            options(&[("EJECT_AFTER", "0"), path]),
            plain(2),
            TlsChange::Unchanged,
        );
        assert_eq!(states(&never), all_healthy, "requests eject no endpoint any more");
    }

    #[test]
    fn a_lookup_replaces_copied_addresses_and_a_different_port_copies_none() {
        let new = backends_with_ejections(EndpointFailure::Connect).with_options(
            options(&[]),
            plain(2),
            TlsChange::Unchanged,
        );
        let found = ["10.0.0.2", "10.0.0.3"].map(|ip| ip.parse().expect("an address"));
        new.set_addresses(&new.origins()[0], &found);
        let addresses: Vec<_> = states(&new).into_iter().map(|(ip, _)| ip).collect();
        assert_eq!(addresses, ["10.0.0.2:8000", "10.0.0.3:8000", "127.0.0.9:8000"]);
        let elsewhere = options(&[("URLS", "http://backend.test:9000,http://127.0.0.9:9000")]);
        let new =
            backends_with_ejections(EndpointFailure::Connect).with_options(elsewhere, plain(2), TlsChange::Unchanged);
        assert_eq!(states(&new), [("127.0.0.9:9000".to_owned(), EndpointState::Healthy)]);
        assert!(!new.has_looked_up_all_names());
    }

    #[test]
    fn removed_endpoints_are_counted_while_they_have_requests() {
        let backends = Backends::new(options(&[]), plain(2), 1);
        let address = |last: u8| IpAddr::from([10, 0, 0, last]);
        backends.set_addresses(&backends.origins()[0], &[address(1), address(2)]);
        let busy = Arc::clone(&backends.endpoints()[1]);
        assert!(busy.address == tcp(address(1)), "{:?}", busy.address);
        busy.counters_of(0).in_flight.add(1);
        backends.set_addresses(&backends.origins()[0], &[address(3)]);
        let removed = |backends: &Backends| {
            backends.removed().iter().map(|endpoint| endpoint.address.clone()).collect::<Vec<_>>()
        };
        assert_eq!(removed(&backends), [tcp(address(1))], "the other one has no request");
        let new = backends.with_options(options(&[]), plain(2), TlsChange::Unchanged);
        assert_eq!(removed(&new), [tcp(address(1))], "after a reload too");
        busy.counters_of(0).in_flight.decrement();
        assert_eq!((removed(&backends), removed(&new)), (vec![], vec![]));
    }
}
