//! One address of a backend, shared by all workers: its health and its counters. It knows nothing about connections or
//! the other endpoints.
//!
//! Each worker has its own counters, which readers add up. Shared state is written only when the health of the endpoint
//! changes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::admission::EndpointLoad;
use crate::base::counter::SingleWriterCounter;
use crate::base::label_values::label_values;
use crate::config::HealthOptions;
use crate::observability::metrics::EndpointCounts;
use crate::upstream::origin::{EndpointAddress, UpstreamOrigin};
use crate::upstream::silence::{Silence, SilenceEvent};

/// Maximum duration of one ejection.
const MAX_EJECTION: Duration = Duration::from_secs(300);

/// After this time without an ejection, the next one has the initial duration again.
const EJECTION_RESET_AFTER: Duration = Duration::from_secs(300);

pub struct Endpoint {
    /// The backend to which this address belongs.
    pub origin: Arc<UpstreamOrigin>,
    pub address: EndpointAddress,
    /// The slots in use for this address, if their number is limited.
    pub load: Arc<EndpointLoad>,
    state: AtomicU8,
    /// Failures since the last response.
    consecutive_failures: AtomicU32,
    /// Connection attempts that timed out before `upstream.connect_timeout`, since the last attempt with the full
    /// timeout.
    short_connect_timeouts: AtomicU32,
    health: Mutex<EndpointHealth>,
    counters: Box<[EndpointCounters]>,
    failures: AtomicU64,
    ejections: AtomicU64,
    silence: Mutex<Silence>,
    /// True if the name no longer resolves to this address.
    removed: AtomicBool,
    /// Wakes the health checker: the endpoint was ejected or removed.
    pub state_changed: Notify,
    /// Wakes the health checker: the endpoint may not accept connections.
    pub probe_requested: Notify,
}

/// The state of an endpoint: which requests the load balancer sends there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndpointState {
    /// Accepts requests.
    Healthy,
    /// Accepts one request at a time per worker, or more if no other endpoint is available.
    Probing,
    /// Accepts no requests.
    Ejected,
}

label_values! {
    /// The kind of failure of an endpoint. The words are in logs and in `GET /upstreams`.
    EndpointFailure {
        /// A connection attempt failed.
        Connect = "connect_failed",
        /// A connection attempt timed out.
        ConnectTimeout = "connect_timeout",
        /// The connection was closed without a response.
        Closed = "closed_without_answer",
        /// The response was not valid HTTP.
        InvalidResponse = "invalid_answer",
        /// The endpoint sent no response to any request within the response timeout.
        ResponseTimeout = "response_timeout",
        /// The status was 502, 503 or 504.
        ErrorStatus = "status_502_503_504",
        /// The health check of `upstream.health_path` failed.
        HealthCheck = "health_check_failed",
    }
}

impl EndpointFailure {
    /// Returns whether a successful connection shows that the problem is solved.
    pub fn is_connect_failure(self) -> bool {
        matches!(self, EndpointFailure::Connect | EndpointFailure::ConnectTimeout)
    }
}

/// The current state of an endpoint: since when, and why.
#[derive(Clone, Copy, Debug)]
pub struct EndpointHealth {
    pub failure: Option<EndpointFailure>,
    /// Earliest end of the ejection.
    pub ejected_until: Option<Instant>,
    /// Wall clock time, for operators.
    pub since: SystemTime,
    /// The end of the last ejection, and the number of consecutive ejections before it.
    restored_at: Option<Instant>,
    consecutive_ejections: u32,
}

/// The counters of one worker. Only that worker writes them, so that cores never contend for a cache line.
#[derive(Default)]
#[repr(align(128))]
pub struct EndpointCounters {
    /// Requests whose responses are not complete.
    pub in_flight: SingleWriterCounter,
    /// Those of them whose responses have begun.
    pub responding: SingleWriterCounter,
    pub open_connections: SingleWriterCounter,
    /// Responses of any status.
    pub responses: SingleWriterCounter,
    /// Requests in flight whose clients have left.
    pub abandoned: SingleWriterCounter,
    /// Requests whose clients left before the response was complete.
    pub abandonments: SingleWriterCounter,
}

impl Endpoint {
    /// `load` is that of the same address before, if there was one: its requests may still be in flight.
    pub fn new(
        origin: Arc<UpstreamOrigin>,
        address: EndpointAddress,
        workers: usize,
        load: Option<&Arc<EndpointLoad>>,
    ) -> Arc<Endpoint> {
        let health = EndpointHealth {
            failure: None,
            ejected_until: None,
            since: SystemTime::now(),
            restored_at: None,
            consecutive_ejections: 0,
        };
        Arc::new(Endpoint {
            origin,
            address,
            load: load.cloned().unwrap_or_default(),
            state: AtomicU8::new(EndpointState::Healthy as u8),
            consecutive_failures: AtomicU32::new(0),
            short_connect_timeouts: AtomicU32::new(0),
            health: Mutex::new(health),
            counters: (0..workers).map(|_| EndpointCounters::default()).collect(),
            failures: AtomicU64::new(0),
            ejections: AtomicU64::new(0),
            silence: Mutex::default(),
            removed: AtomicBool::new(false),
            state_changed: Notify::new(),
            probe_requested: Notify::new(),
        })
    }

    /// Copies state and counters from the same address of an earlier configuration.
    pub fn copy_state_from(&self, old: &Endpoint) {
        let (state, health) = old.state_and_health();
        *self.health.lock() = health;
        self.state.store(state as u8, Ordering::Relaxed);
        let copy = |new: &AtomicU32, old: &AtomicU32| {
            new.store(old.load(Ordering::Relaxed), Ordering::Relaxed);
        };
        copy(&self.consecutive_failures, &old.consecutive_failures);
        copy(&self.short_connect_timeouts, &old.short_connect_timeouts);
        let EndpointCounts { failures, ejections, .. } = old.totals();
        self.failures.store(failures, Ordering::Relaxed);
        self.ejections.store(ejections, Ordering::Relaxed);
    }

    /// The current state, without a lock.
    pub fn state(&self) -> EndpointState {
        match self.state.load(Ordering::Relaxed) {
            0 => EndpointState::Healthy,
            1 => EndpointState::Probing,
            _ => EndpointState::Ejected,
        }
    }

    /// The counters of one worker.
    pub fn counters_of(&self, worker: usize) -> &EndpointCounters {
        &self.counters[worker]
    }

    /// Adds up the counters of all workers.
    pub fn totals(&self) -> EndpointCounts {
        let sum = |counter: fn(&EndpointCounters) -> &SingleWriterCounter| {
            self.counters.iter().map(|counters| counter(counters).get()).sum()
        };
        let in_flight: u64 = sum(|counters| &counters.in_flight);
        EndpointCounts {
            waiting: in_flight.saturating_sub(sum(|counters| &counters.responding)),
            silent_seconds: self.silence.lock().duration(Instant::now()).as_secs(),
            in_flight,
            open_connections: sum(|counters| &counters.open_connections),
            responses: sum(|counters| &counters.responses),
            abandoned: sum(|counters| &counters.abandoned),
            abandonments: sum(|counters| &counters.abandonments),
            failures: self.failures.load(Ordering::Relaxed),
            ejections: self.ejections(),
        }
    }

    /// Notices whether requests wait without any response. Called periodically.
    pub fn observe_silence(&self) -> Option<SilenceEvent> {
        let counts = self.totals();
        self.silence.lock().observe(&counts, Instant::now())
    }

    /// The number of ejections.
    pub fn ejections(&self) -> u64 {
        self.ejections.load(Ordering::Relaxed)
    }

    /// Records a response: resets the failures, and ends probing. A response to a request that was sent although the
    /// endpoint was ejected ends the ejection too, unless health checks decide about it.
    pub fn record_success(&self, was_ejected: bool) {
        if self.consecutive_failures.load(Ordering::Relaxed) != 0 {
            self.consecutive_failures.store(0, Ordering::Relaxed);
        }
        if self.state() == EndpointState::Healthy {
            return;
        }
        let mut health = self.health.lock();
        let ends_ejection = was_ejected && health.failure != Some(EndpointFailure::HealthCheck);
        match self.state() {
            EndpointState::Ejected if ends_ejection => {
                (health.ejected_until, health.restored_at) = (None, Some(Instant::now()));
                self.set_state(&mut health, EndpointState::Healthy, None);
            }
            EndpointState::Probing => self.set_state(&mut health, EndpointState::Healthy, None),
            EndpointState::Ejected | EndpointState::Healthy => {}
        }
    }

    /// Records a failure. Returns the number of consecutive failures.
    pub fn record_failure(&self) -> u32 {
        self.failures.fetch_add(1, Ordering::Relaxed);
        self.consecutive_failures.fetch_add(1, Ordering::Relaxed).saturating_add(1)
    }

    /// Records a connection attempt that timed out before the full timeout. Returns the number of such attempts.
    pub fn record_short_connect_timeout(&self) -> u32 {
        self.failures.fetch_add(1, Ordering::Relaxed);
        self.short_connect_timeouts.fetch_add(1, Ordering::Relaxed).saturating_add(1)
    }

    /// Call this after a connection attempt with the full timeout.
    pub fn reset_short_connect_timeouts(&self) {
        self.short_connect_timeouts.store(0, Ordering::Relaxed);
    }

    /// Ejects the endpoint. Returns false if it is already ejected. A connection failure ends with the first successful
    /// connection; other failures have a minimum duration.
    pub fn eject(&self, failure: EndpointFailure, options: &HealthOptions, now: Instant) -> bool {
        let mut health = self.health.lock();
        if self.state() == EndpointState::Ejected {
            return false;
        }
        if health.restored_at.is_some_and(|restored| now.duration_since(restored) > EJECTION_RESET_AFTER) {
            health.consecutive_ejections = 0;
        }
        health.ejected_until = match failure {
            EndpointFailure::Connect | EndpointFailure::ConnectTimeout | EndpointFailure::HealthCheck => None,
            _ => {
                let doubled = options.eject_time.saturating_mul(1 << health.consecutive_ejections.min(16));
                health.consecutive_ejections += 1;
                Some(now + doubled.min(MAX_EJECTION.max(options.eject_time)))
            }
        };
        self.ejections.fetch_add(1, Ordering::Relaxed);
        self.set_state(&mut health, EndpointState::Ejected, Some(failure));
        drop(health);
        self.state_changed.notify_one();
        true
    }

    /// Ends the ejection: the endpoint is `Healthy` or `Probing` from now on. Returns false if it is not ejected.
    pub fn restore(&self, state: EndpointState, options: &HealthOptions, now: Instant) -> bool {
        let mut health = self.health.lock();
        if self.state() != EndpointState::Ejected {
            return false;
        }
        let (failures, failure) = match state {
            // The first failure while probing ejects the endpoint again.
            EndpointState::Probing => (options.eject_after.saturating_sub(1), health.failure),
            _ => (0, None),
        };
        self.consecutive_failures.store(failures, Ordering::Relaxed);
        health.ejected_until = None;
        health.restored_at = Some(now);
        self.set_state(&mut health, state, failure);
        true
    }

    /// Changes the cause of the current ejection.
    pub fn set_failure(&self, failure: EndpointFailure) {
        let mut health = self.health.lock();
        if self.state() == EndpointState::Ejected {
            health.failure = Some(failure);
        }
    }

    fn set_state(&self, health: &mut EndpointHealth, state: EndpointState, failure: Option<EndpointFailure>) {
        health.failure = failure;
        health.since = SystemTime::now();
        self.state.store(state as u8, Ordering::Relaxed);
    }

    /// The state, since when, and why.
    pub fn state_and_health(&self) -> (EndpointState, EndpointHealth) {
        let health = self.health.lock();
        (self.state(), *health)
    }

    /// Call this when the name no longer resolves to this address.
    pub fn mark_removed(&self) {
        self.removed.store(true, Ordering::Release);
        self.state_changed.notify_one();
    }

    pub fn is_removed(&self) -> bool {
        self.removed.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPTIONS: HealthOptions = HealthOptions {
        health_path: None,
        health_interval: Duration::from_secs(5),
        unhealthy_after: 3,
        healthy_after: 2,
        eject_after: 5,
        eject_time: Duration::from_secs(5),
    };

    fn endpoint() -> Arc<Endpoint> {
        let address = EndpointAddress::Tcp(([127, 0, 0, 1], 80).into());
        Endpoint::new(UpstreamOrigin::plain("backend", 80), address, 2, None)
    }

    fn ejection_seconds(endpoint: &Endpoint, now: Instant) -> Option<u64> {
        endpoint.state_and_health().1.ejected_until.map(|until| (until - now).as_secs())
    }

    #[test]
    fn ejections_grow_up_to_a_maximum_and_are_reset_later() {
        let (endpoint, mut now) = (endpoint(), Instant::now());
        for expected in [5, 10, 20, 40, 80, 160, 300, 300] {
            assert!(endpoint.eject(EndpointFailure::Closed, &OPTIONS, now));
            assert!(!endpoint.eject(EndpointFailure::Closed, &OPTIONS, now), "once");
            assert_eq!(ejection_seconds(&endpoint, now), Some(expected));
            now += Duration::from_secs(expected);
            assert!(endpoint.restore(EndpointState::Probing, &OPTIONS, now));
        }
        now += EJECTION_RESET_AFTER + Duration::from_secs(1);
        assert!(endpoint.eject(EndpointFailure::Closed, &OPTIONS, now));
        assert_eq!(ejection_seconds(&endpoint, now), Some(5));
        assert_eq!(endpoint.totals().ejections, 9);
    }

    #[test]
    fn a_connect_failure_has_no_minimum_ejection_time() {
        let (endpoint, now) = (endpoint(), Instant::now());
        assert!(endpoint.eject(EndpointFailure::Connect, &OPTIONS, now));
        assert_eq!((endpoint.state(), ejection_seconds(&endpoint, now)), (EndpointState::Ejected, None));
        assert!(
            endpoint.restore(EndpointState::Healthy, &OPTIONS, now)
                && !endpoint.restore(EndpointState::Healthy, &OPTIONS, now)
        );
        assert_eq!(endpoint.state(), EndpointState::Healthy);
        assert!(endpoint.state_and_health().1.failure.is_none());
    }

    #[test]
    fn a_response_to_a_request_that_was_sent_in_spite_of_an_ejection_ends_it() {
        for (failure, expected) in [
            (EndpointFailure::Connect, EndpointState::Healthy),
            (EndpointFailure::ErrorStatus, EndpointState::Healthy),
            (EndpointFailure::HealthCheck, EndpointState::Ejected),
        ] {
            let endpoint = endpoint();
            assert!(endpoint.eject(failure, &OPTIONS, Instant::now()));
            endpoint.record_success(false);
            assert_eq!(endpoint.state(), EndpointState::Ejected, "it was sent before the ejection");
            endpoint.record_success(true);
            assert_eq!(endpoint.state(), expected, "{failure:?}");
        }
    }
}
