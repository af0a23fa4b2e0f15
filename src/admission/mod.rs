//! Limits on concurrent connections and requests, in total and per client.
//!
//! All workers share the counts. A permit releases its count when dropped. This module knows neither sockets nor HTTP.

mod endpoint_load;
mod fair_queue;
mod keyed_counts;
mod memory;
mod request_permit;
mod rule_limiter;

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use crate::config::{LimitOptions, LimitRule, QueueOptions};
use crate::observability::metrics::{CloseCause, Metrics};
use crate::os::fd_limit;
use crate::store::{OtherUses, RateUse};

pub use endpoint_load::{EndpointChoice, EndpointChooser, EndpointLoad, EndpointPermit};
use fair_queue::FairQueue;
pub use fair_queue::{QueueError, Slot};
use keyed_counts::KeyedCounts;
use memory::LateConnection;
pub use memory::MemoryLimit;
pub use request_permit::{RequestKind, RequestPermit};
pub use rule_limiter::{RuleExceeded, RuleLimiter};

/// Grants permits for connections and requests.
#[derive(Debug)]
pub struct Admission {
    limits: LimitOptions,
    metrics: Arc<Metrics>,
    counts: Arc<Counts>,
    max_abandoned: usize,
    /// One for each upstream, by its index in the configuration.
    queues: Vec<UpstreamQueue>,
    rules: Arc<[Arc<RuleLimiter>]>,
}

/// What stays when the limits change.
#[derive(Debug, Default)]
struct Counts {
    connections: KeyedCounts,
    requests: KeyedCounts,
    streams: KeyedCounts,
    memory: Arc<MemoryLimit>,
    /// Requests that wait for the proof of their identity.
    unauthenticated: AtomicUsize,
    /// Requests whose clients have left, as far as they do not count toward `limits.requests` any longer.
    abandoned: AtomicUsize,
}

/// The fair queue of one upstream.
#[derive(Debug)]
struct UpstreamQueue {
    upstream: String,
    limits: Option<QueueOptions>,
    /// `None`: the number of concurrent requests to this upstream is unlimited.
    fair_queue: Option<Arc<FairQueue>>,
}

/// The limit that a request would exceed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitExceeded {
    /// `limits.memory`.
    Memory,
    /// `limits.requests`, over all callers.
    Total,
    /// The share of `limits.requests` for requests without a proven identity.
    Unauthenticated,
    /// `limits.requests_per_identity`.
    Caller,
    /// `limits.streams_per_identity`.
    CallerStreams,
}

impl Admission {
    /// All counts are zero. `queues` has the name of each upstream and the limits of its queue, if there are any.
    pub fn new(
        limits: LimitOptions,
        rules: &[LimitRule],
        queues: Vec<(String, Option<QueueOptions>)>,
        metrics: Arc<Metrics>,
    ) -> Admission {
        let rules = rules.iter().map(|rule| Arc::new(RuleLimiter::new(rule.clone(), metrics.limit_rule(&rule.name))));
        let rules = rules.collect();
        let queue = |(upstream, limits): (String, Option<QueueOptions>)| UpstreamQueue {
            upstream,
            limits,
            fair_queue: limits.map(|limits| FairQueue::new(limits, Arc::clone(&metrics))),
        };
        let queues = queues.into_iter().map(queue).collect();
        // Each of them has a connection to a backend, as each other request may have.
        let max_abandoned = limits.requests.min(fd_limit::raise_to_max().saturating_sub(limits.requests));
        Admission { limits, metrics, counts: Arc::default(), max_abandoned, queues, rules }
    }

    /// The same counts and queues with new limits. A queue that is new starts empty: it does not count requests that are
    /// already at the backends. A rule that has not changed keeps its counts.
    pub fn with_limits(
        &self,
        limits: LimitOptions,
        rules: &[LimitRule],
        queues: Vec<(String, Option<QueueOptions>)>,
    ) -> Admission {
        let mut admission = Admission::new(limits, rules, queues, Arc::clone(&self.metrics));
        admission.counts = Arc::clone(&self.counts);
        for queue in &mut admission.queues {
            let same = self.queues.iter().find(|old| old.upstream == queue.upstream);
            let same = same.and_then(|old| old.fair_queue.as_ref());
            if let (Some(limits), Some(old)) = (queue.limits, same) {
                old.set_limits(limits);
                queue.fair_queue = Some(Arc::clone(old));
            }
        }
        admission.share_rules();
        // The callers' hashes are those of the shared `requests`.
        let current =
            |new: &Arc<RuleLimiter>| self.rules.iter().find(|old| old.rule == new.rule).unwrap_or(new).clone();
        admission.rules = admission.rules.iter().map(current).collect();
        admission
    }

    /// Replicas with the same secret share the rates of rules: see [`Admission::take_uses`].
    #[must_use]
    pub fn shared(mut self, secret: &[u8; 32]) -> Admission {
        self.counts = Arc::new(Counts { requests: KeyedCounts::with_secret(secret), ..Counts::default() });
        self.share_rules();
        self
    }

    fn share_rules(&mut self) {
        if self.counts.requests.is_shared() {
            let shared =
                |limiter: &Arc<RuleLimiter>| limiter.with_id(self.counts.requests.hash_key(&limiter.rule.name));
            self.rules = self.rules.iter().map(|limiter| Arc::new(shared(limiter))).collect();
        }
    }

    /// What was admitted under rules and not reported to other replicas yet.
    pub fn take_uses(&self) -> Vec<RateUse> {
        let mut uses = Vec::new();
        self.rules.iter().for_each(|limiter| limiter.take_uses(&mut uses));
        uses
    }

    /// Counts what other replicas have admitted.
    pub fn add_uses(&self, others: &OtherUses) {
        self.rules.iter().for_each(|limiter| limiter.add_uses(others));
    }

    /// The metrics that hold the totals of connections and requests.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// Removes counts of callers who have not sent requests for a while. Called periodically.
    pub fn sweep(&self) {
        self.rules.iter().for_each(|limiter| limiter.sweep());
    }

    /// A permit for a connection, or `None` if a limit is reached, which it records in the metrics. `is_shared` says
    /// that many clients use this address, such as a proxy's; then no limit per address applies. At the limit on all
    /// connections, `make_room` asks an idle connection to close, and returns whether there is one.
    pub fn admit_connection(
        self: &Arc<Admission>,
        address: IpAddr,
        is_shared: bool,
        make_room: impl FnOnce() -> bool,
    ) -> Option<ConnectionPermit> {
        let before = self.metrics.connections.inc();
        let mut permit = ConnectionPermit { admission: Arc::clone(self), network: None, _late: None };
        if !is_shared && !permit.count_for(address) {
            return None;
        }
        if usize::try_from(before).is_ok_and(|before| before >= self.limits.connections) && !make_room() {
            self.metrics.record_connection_end(CloseCause::ConnectionsLimit);
            return None;
        }
        if !self.counts.memory.is_exhausted() {
            return Some(permit);
        }
        permit._late = self.counts.memory.admit_late_connection();
        if permit._late.is_none() {
            self.metrics.record_connection_end(CloseCause::MemoryLimit);
            return None;
        }
        Some(permit)
    }

    /// The limit on memory.
    pub fn memory(&self) -> &MemoryLimit {
        &self.counts.memory
    }

    /// Hands free slots to waiting requests, whatever made them free. Called periodically.
    pub fn serve_waiting(&self) {
        self.queues.iter().filter_map(|queue| queue.fair_queue.as_ref()).for_each(FairQueue::serve_waiting);
    }

    /// A permit for a request, which counts toward the total only: see [`RequestPermit::count_for`].
    /// Boxed, as it is passed on many times.
    pub fn admit_request(self: &Arc<Admission>) -> Result<Box<RequestPermit>, LimitExceeded> {
        let permit = Box::new(RequestPermit::new(Arc::clone(self)));
        let before = self.metrics.requests_in_flight.inc();
        if usize::try_from(before).is_ok_and(|before| before >= self.limits.requests) {
            return Err(LimitExceeded::Total);
        }
        if self.counts.memory.is_exhausted() {
            return Err(LimitExceeded::Memory);
        }
        Ok(permit)
    }
}

/// The right to keep one connection open. Dropping it releases the counts.
#[derive(Debug)]
pub struct ConnectionPermit {
    admission: Arc<Admission>,
    /// `None`: no limit per address applies.
    network: Option<u64>,
    /// It was opened while memory was exhausted.
    _late: Option<LateConnection>,
}

impl ConnectionPermit {
    /// Counts the connection toward the limit of an address, which it does once. Returns false if the limit is reached,
    /// which it records in the metrics.
    pub fn count_for(&mut self, address: IpAddr) -> bool {
        let Admission { counts, limits, metrics, .. } = &*self.admission;
        let network = counts.connections.hash_key(&network(address));
        debug_assert!(self.network.is_none());
        if !counts.connections.try_increment(network, limits.connections_per_address) {
            metrics.record_connection_end(CloseCause::AddressLimit);
            return false;
        }
        self.network = Some(network);
        true
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        if let Some(network) = self.network {
            self.admission.counts.connections.decrement(network);
        }
        self.admission.metrics.connections.dec();
    }
}

/// The unit in which addresses are counted: an IPv4 address, or an IPv6 /64 network, as one client can use every
/// address in it.
pub fn network(address: IpAddr) -> (u8, u64) {
    match address.to_canonical() {
        IpAddr::V4(address) => (4, u64::from(address.to_bits())),
        IpAddr::V6(address) => (6, (address.to_bits() >> 64) as u64),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;

    /// A limit without a queue.
    fn queue(requests: usize) -> QueueOptions {
        let timeout = std::time::Duration::from_secs(1);
        QueueOptions { requests: Some(requests), requests_per_endpoint: None, queue: 0, timeout }
    }

    async fn wait(permit: &mut RequestPermit, upstream: usize) -> Result<(), QueueError> {
        permit.wait_for_slot(upstream, &endpoint_load::tests::endpoints(1), None).await.map(drop)
    }

    fn admission() -> Arc<Admission> {
        let limits = LimitOptions {
            connections: 3,
            connections_per_address: 2,
            requests: 3,
            requests_per_identity: 2,
            ..LimitOptions::unlimited()
        };
        Arc::new(Admission::new(limits, &[], Vec::new(), Arc::default()))
    }

    fn connect(admission: &Arc<Admission>, address: &str) -> Option<ConnectionPermit> {
        admission.admit_connection(address.parse().expect("an address"), false, || false)
    }

    fn request(
        admission: &Arc<Admission>,
        caller: &str,
        kind: RequestKind,
    ) -> Result<Box<RequestPermit>, LimitExceeded> {
        let mut permit = admission.admit_request()?;
        permit.count_for(&caller, kind).map(|()| permit)
    }

    #[test]
    fn an_idle_connection_makes_room_for_a_new_one() {
        let admission = admission();
        let open: Vec<_> = ["10.0.0.1", "10.0.0.2", "10.0.0.3"].map(|address| connect(&admission, address)).into();
        assert!(open.iter().all(Option::is_some));
        let address = |text: &str| text.parse().expect("an address");
        assert!(admission.admit_connection(address("10.0.0.4"), false, || false).is_none());
        assert!(admission.admit_connection(address("10.0.0.4"), false, || true).is_some());
        assert!(connect(&admission, "10.0.0.1").is_none(), "the total is checked");
        let more = admission.admit_connection(address("10.0.0.1"), false, || true);
        assert!(more.is_some());
        assert!(admission.admit_connection(address("10.0.0.1"), false, || panic!("no room is needed")).is_none());
    }

    #[test]
    fn a_connection_can_be_counted_for_its_client_later() {
        let admission = admission();
        let shared = || admission.admit_connection([10, 0, 0, 9].into(), true, || false).expect("a permit");
        let (mut one, mut two) = (shared(), shared());
        let client = "192.0.2.1".parse().expect("an address");
        assert!(one.count_for(client) && two.count_for(client));
        let mut three = shared();
        assert!(!three.count_for(client), "two connections for each address");
        drop((one, three));
        assert!(shared().count_for(client));
    }

    #[test]
    fn connections_are_limited_per_address_and_in_total() {
        let admission = admission();
        let connect = |address: &str| connect(&admission, address);
        let (first, _second) = (connect("10.0.0.1"), connect("::ffff:10.0.0.1"));
        assert!(first.is_some() && connect("10.0.0.1").is_none());
        let other = connect("2001:db8::1");
        assert!(other.is_some() && connect("10.0.0.3").is_none(), "the total is three");
        drop(first);
        assert!(connect("10.0.0.1").is_some());
        drop(other);
        assert_eq!(admission.metrics().connections.get(), 1);
        let _both = (connect("2001:db8::1"), connect("2001:db8::ffff"));
        assert!(connect("2001:db8::2").is_none(), "one /64 is one client");
    }

    #[test]
    fn requests_are_limited_per_caller_and_in_total() {
        let admission = admission();
        let request = |caller: &str| request(&admission, caller, RequestKind::Query);
        let both = (request("a").expect("a permit"), request("a").expect("a permit"));
        assert_eq!(request("a").expect_err("too many"), LimitExceeded::Caller);
        let _other = request("b").expect("a permit");
        assert_eq!(request("c").expect_err("too many"), LimitExceeded::Total);
        drop(both);
        assert!(request("a").is_ok());
        assert_eq!(admission.metrics().requests_in_flight.get(), 1);
        assert_eq!(admission.counts.requests.counts.len(), 1, "counts of zero are removed");
    }

    #[test]
    fn requests_in_flight_share_the_memory_for_responses() {
        let admission = admission();
        let one = admission.admit_request().expect("a permit");
        assert_eq!(one.response_memory(), u64::MAX);
        admission.memory().record_usage(0, 400);
        assert_eq!(one.response_memory(), 100);
        let _two = admission.admit_request().expect("a permit");
        assert_eq!(one.response_memory(), 50);
    }

    #[test]
    fn abandoned_requests_count_for_their_caller_and_not_toward_the_total() {
        let admission = admission();
        let request = |caller: &str| request(&admission, caller, RequestKind::Query);
        let abandon = |caller: &str| {
            let mut permit = request(caller).expect("a permit");
            permit.abandon();
            permit
        };
        let mut abandoned: Vec<_> = ["a", "a", "b"].map(abandon).into();
        assert_eq!(request("a").expect_err("too many"), LimitExceeded::Caller);
        assert_eq!(admission.metrics().requests_in_flight.get(), 0);
        // As many again as the limit, and no more.
        abandoned.extend(["b", "c", "c"].map(abandon));
        assert_eq!(request("d").expect_err("too many"), LimitExceeded::Total);
        abandoned.truncate(3);
        assert!(request("d").is_ok());
        drop(abandoned);
        assert_eq!(admission.metrics().requests_in_flight.get(), 0);
        assert_eq!(
            (admission.counts.abandoned.load(Ordering::Relaxed), admission.counts.requests.counts.len()),
            (0, 0)
        );
    }

    #[test]
    fn requests_without_an_identity_have_half_of_the_total() {
        let limits = LimitOptions { requests: 4, ..LimitOptions::unlimited() };
        let admission = Arc::new(Admission::new(limits, &[], Vec::new(), Arc::default()));
        let request = || {
            let mut permit = admission.admit_request()?;
            permit.begin_authentication().map(|()| permit)
        };
        let (mut first, second) = (request().expect("a permit"), request().expect("a permit"));
        assert_eq!(request().expect_err("too many"), LimitExceeded::Unauthenticated);
        assert!(admission.admit_request().is_ok(), "a request that does not wait");
        first.end_authentication();
        let third = request().expect("one is authenticated");
        drop((second, third));
        assert!(request().is_ok());
        drop(first);
        assert_eq!(admission.counts.unauthenticated.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn new_limits_keep_the_counts() {
        let old = admission();
        let (one, two) = (connect(&old, "10.0.0.1"), connect(&old, "10.0.0.1"));
        assert!(one.is_some() && two.is_some() && connect(&old, "10.0.0.1").is_none());
        let limits = LimitOptions { connections: 9, connections_per_address: 3, ..LimitOptions::unlimited() };
        let new = Arc::new(old.with_limits(limits, &[], Vec::new()));
        let third = connect(&new, "10.0.0.1");
        assert!(third.is_some() && connect(&new, "10.0.0.1").is_none());
        drop((one, two, third));
        assert_eq!((new.metrics().connections.get(), new.counts.connections.counts.len()), (0, 0));
    }

    #[tokio::test]
    async fn each_upstream_has_its_own_queue_which_new_limits_keep() {
        let one = |name: &str, requests| (name.to_owned(), Some(queue(requests)));
        let queues = vec![one("default", 1), one("other", 1), ("unlimited".to_owned(), None)];
        let old = Arc::new(Admission::new(LimitOptions::unlimited(), &[], queues, Arc::default()));
        let mut permits: Vec<_> = (0..3).map(|_| old.admit_request().expect("a permit")).collect();
        for _ in 0..2 {
            assert_eq!(wait(&mut permits[0], 0).await, Ok(()), "it keeps its slot");
        }
        assert_eq!(wait(&mut permits[1], 0).await, Err(QueueError::Full));
        permits[0].release_slot();
        assert_eq!(wait(&mut permits[0], 0).await, Ok(()), "it asks again");
        assert_eq!(wait(&mut permits[1], 0).await, Err(QueueError::Full));
        assert_eq!(wait(&mut permits[1], 1).await, Ok(()), "a different upstream");
        assert_eq!(wait(&mut permits[2], 2).await, Ok(()), "no limit");
        let queues = vec![one("default", 2), one("new", 1), one("other", 1)];
        let new = Arc::new(old.with_limits(LimitOptions::unlimited(), &[], queues));
        let mut permit = new.admit_request().expect("a permit");
        assert_eq!(wait(&mut permit, 2).await, Err(QueueError::Full), "the same queue at a different index");
        assert_eq!(wait(&mut permit, 0).await, Ok(()), "one slot more");
        let mut other = new.admit_request().expect("a permit");
        assert_eq!(wait(&mut other, 0).await, Err(QueueError::Full), "the slots in use are counted");
        permits[0].release_slot();
        assert_eq!(wait(&mut other, 0).await, Ok(()), "a slot of the request before the change is free again");
    }

    #[tokio::test]
    async fn event_streams_have_a_limit_of_their_own_and_no_slot() {
        let limits = LimitOptions { requests_per_identity: 1, streams_per_identity: 2, ..LimitOptions::unlimited() };
        let admission = Arc::new(Admission::new(limits, &[], vec![("a".to_owned(), Some(queue(1)))], Arc::default()));
        let request = |kind| request(&admission, "alice", kind);
        let mut streams =
            [request(RequestKind::EventStream), request(RequestKind::EventStream)].map(|s| s.expect("two"));
        assert_eq!(request(RequestKind::EventStream).expect_err("three"), LimitExceeded::CallerStreams);
        for stream in &mut streams {
            assert_eq!(wait(stream, 0).await, Ok(()));
        }
        let mut query = request(RequestKind::Query).expect("one query");
        assert_eq!(wait(&mut query, 0).await, Ok(()));
        assert_eq!(request(RequestKind::Query).expect_err("two"), LimitExceeded::Caller);
        drop((streams, query));
        assert_eq!((admission.counts.requests.counts.len(), admission.counts.streams.counts.len()), (0, 0));
    }
}
