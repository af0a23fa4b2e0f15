//! One address of a backend, as all workers know it: whether it is in use, and what it has answered.
//!
//! Each worker counts in a place of its own; who wants to know adds them up. What is shared is written only when
//! something goes wrong or comes right again.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;

use crate::config::HealthOptions;
use crate::upstream::origin::UpstreamOrigin;

/// No address stays out of use for longer at a time.
const MAX_EJECTION: Duration = Duration::from_secs(300);

/// An address that was in use for so long since it was out is given the first, short time again.
const EJECTION_RESET_AFTER: Duration = Duration::from_secs(300);

/// One address of a backend.
pub struct Endpoint {
    /// Whose address.
    pub origin: Arc<UpstreamOrigin>,
    pub address: SocketAddr,
    state: AtomicU8,
    /// Failures since the last answer.
    consecutive_failures: AtomicU32,
    /// Requests that went elsewhere before it had the whole time to take their connection, since it last did.
    short_connect_timeouts: AtomicU32,
    health: Mutex<EndpointHealth>,
    counters: Box<[EndpointCounters]>,
    failures: AtomicU64,
    ejections: AtomicU64,
    /// Its name does not mean it any more.
    removed: AtomicBool,
    /// Tells who looks after it that it went out of use, or is gone.
    pub state_changed: Notify,
    /// Tells the same that it may take no connections any more.
    pub probe_requested: Notify,
}

/// Whether requests go there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndpointState {
    /// Yes.
    Healthy,
    /// One at a time, until it has answered one.
    Probing,
    /// No.
    Ejected,
}

/// What went wrong with an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndpointFailure {
    /// No connection.
    Connect,
    /// None in time.
    ConnectTimeout,
    /// A connection that ended without an answer.
    Closed,
    /// An answer that is none.
    InvalidResponse,
    /// No answer to anybody for as long as one may take.
    ResponseTimeout,
    /// 502, 503 or 504.
    ErrorStatus,
    /// The checks of `upstream.health_path`.
    HealthCheck,
}

impl EndpointFailure {
    /// How operators are told.
    pub fn as_str(self) -> &'static str {
        match self {
            EndpointFailure::Connect => "connect_failed",
            EndpointFailure::ConnectTimeout => "connect_timeout",
            EndpointFailure::Closed => "closed_without_answer",
            EndpointFailure::InvalidResponse => "invalid_answer",
            EndpointFailure::ResponseTimeout => "response_timeout",
            EndpointFailure::ErrorStatus => "status_502_503_504",
            EndpointFailure::HealthCheck => "health_check_failed",
        }
    }

    /// Whether a connection that succeeds shows that it is over.
    pub fn is_connect_failure(self) -> bool {
        matches!(self, EndpointFailure::Connect | EndpointFailure::ConnectTimeout)
    }
}

/// Since when it is how it is, and why.
#[derive(Clone, Copy, Debug)]
pub struct EndpointHealth {
    pub failure: Option<EndpointFailure>,
    /// Out of use until then, at least.
    pub ejected_until: Option<Instant>,
    /// For people.
    pub since: SystemTime,
    /// When it came back the last time, and how often it went out of use until then without being forgiven.
    restored_at: Option<Instant>,
    consecutive_ejections: u32,
}

/// What one worker counts. Nobody else writes here, so that no two cores ever wait for one another.
#[derive(Default)]
#[repr(align(128))]
pub struct EndpointCounters {
    /// Requests that were begun and whose answer has not ended.
    pub in_flight: EndpointCounter,
    /// Connections.
    pub open_connections: EndpointCounter,
    /// Answers, whatever their status.
    pub responses: EndpointCounter,
}

/// A number that one thread writes and all may read.
#[derive(Default)]
pub struct EndpointCounter(AtomicU64);

impl EndpointCounter {
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    pub fn increment(&self) {
        self.0.store(self.get().wrapping_add(1), Ordering::Relaxed);
    }

    pub fn decrement(&self) {
        self.0.store(self.get().saturating_sub(1), Ordering::Relaxed);
    }
}

/// What all workers have counted.
#[derive(Clone, Copy, Debug, Default)]
pub struct EndpointTotals {
    pub in_flight: u64,
    pub open_connections: u64,
    pub responses: u64,
    pub failures: u64,
    pub ejections: u64,
}

impl Endpoint {
    pub fn new(origin: Arc<UpstreamOrigin>, address: SocketAddr, workers: usize) -> Arc<Endpoint> {
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
            state: AtomicU8::new(EndpointState::Healthy as u8),
            consecutive_failures: AtomicU32::new(0),
            short_connect_timeouts: AtomicU32::new(0),
            health: Mutex::new(health),
            counters: (0..workers).map(|_| EndpointCounters::default()).collect(),
            failures: AtomicU64::new(0),
            ejections: AtomicU64::new(0),
            removed: AtomicBool::new(false),
            state_changed: Notify::new(),
            probe_requested: Notify::new(),
        })
    }

    /// Takes over what is known of the same address under other options, and goes on with its counters.
    pub fn copy_state_from(&self, old: &Endpoint) {
        let (standing, health) = old.state_and_health();
        *self.health() = health;
        self.state.store(standing as u8, Ordering::Relaxed);
        let copy = |new: &AtomicU32, old: &AtomicU32| {
            new.store(old.load(Ordering::Relaxed), Ordering::Relaxed);
        };
        copy(&self.consecutive_failures, &old.consecutive_failures);
        copy(&self.short_connect_timeouts, &old.short_connect_timeouts);
        let EndpointTotals { failures, ejections, .. } = old.totals();
        self.failures.store(failures, Ordering::Relaxed);
        self.ejections.store(ejections, Ordering::Relaxed);
    }

    /// Whether requests go there.
    pub fn state(&self) -> EndpointState {
        match self.state.load(Ordering::Relaxed) {
            0 => EndpointState::Healthy,
            1 => EndpointState::Probing,
            _ => EndpointState::Ejected,
        }
    }

    /// Where a worker counts.
    pub fn counters_of(&self, worker: usize) -> &EndpointCounters {
        &self.counters[worker]
    }

    /// The counts of all.
    pub fn totals(&self) -> EndpointTotals {
        let sum = |count: fn(&EndpointCounters) -> &EndpointCounter| {
            self.counters.iter().map(|tally| count(tally).get()).sum()
        };
        EndpointTotals {
            in_flight: sum(|tally| &tally.in_flight),
            open_connections: sum(|tally| &tally.open_connections),
            responses: sum(|tally| &tally.responses),
            failures: self.failures.load(Ordering::Relaxed),
            ejections: self.ejections(),
        }
    }

    /// How often it went out of use.
    pub fn ejections(&self) -> u64 {
        self.ejections.load(Ordering::Relaxed)
    }

    /// It has answered.
    pub fn record_success(&self) {
        if self.consecutive_failures.load(Ordering::Relaxed) != 0 {
            self.consecutive_failures.store(0, Ordering::Relaxed);
        }
        if self.state() == EndpointState::Probing {
            let mut health = self.health();
            if self.state() == EndpointState::Probing {
                self.set_state(&mut health, EndpointState::Healthy, None);
            }
        }
    }

    /// It has not. Says how often in a row.
    pub fn record_failure(&self) -> u32 {
        self.failures.fetch_add(1, Ordering::Relaxed);
        self.consecutive_failures.fetch_add(1, Ordering::Relaxed).saturating_add(1)
    }

    /// It was not given the whole time to take a connection, and has not. Says how often that was.
    pub fn record_short_connect_timeout(&self) -> u32 {
        self.failures.fetch_add(1, Ordering::Relaxed);
        self.short_connect_timeouts.fetch_add(1, Ordering::Relaxed).saturating_add(1)
    }

    /// With the whole time it was found out whether it takes connections.
    pub fn reset_short_connect_timeouts(&self) {
        self.short_connect_timeouts.store(0, Ordering::Relaxed);
    }

    /// Takes it out of use; false if it is already. A failure to connect is over as soon as it connects, others have
    /// their time.
    pub fn eject(&self, why: EndpointFailure, options: &HealthOptions, now: Instant) -> bool {
        let mut health = self.health();
        if self.state() == EndpointState::Ejected {
            return false;
        }
        if health.restored_at.is_some_and(|returned| now.duration_since(returned) > EJECTION_RESET_AFTER) {
            health.consecutive_ejections = 0;
        }
        health.ejected_until = match why {
            EndpointFailure::Connect | EndpointFailure::ConnectTimeout | EndpointFailure::HealthCheck => None,
            _ => {
                let doubled = options.eject_time.saturating_mul(1 << health.consecutive_ejections.min(16));
                health.consecutive_ejections += 1;
                Some(now + doubled.min(MAX_EJECTION.max(options.eject_time)))
            }
        };
        self.ejections.fetch_add(1, Ordering::Relaxed);
        self.set_state(&mut health, EndpointState::Ejected, Some(why));
        drop(health);
        self.state_changed.notify_one();
        true
    }

    /// Puts it back into use; on trial where only an answer shows that it is well. Says whether it was out of use.
    pub fn restore(&self, on_trial: bool, options: &HealthOptions, now: Instant) -> bool {
        let mut health = self.health();
        if self.state() != EndpointState::Ejected {
            return false;
        }
        // One more failure is enough then.
        let strikes = if on_trial { options.eject_after.saturating_sub(1) } else { 0 };
        self.consecutive_failures.store(strikes, Ordering::Relaxed);
        let why = if on_trial { health.failure } else { None };
        health.ejected_until = None;
        health.restored_at = Some(now);
        self.set_state(
            &mut health,
            if on_trial { EndpointState::Probing } else { EndpointState::Healthy },
            why,
        );
        true
    }

    /// It is out of use for another reason than before.
    pub fn set_failure(&self, why: EndpointFailure) {
        let mut health = self.health();
        if self.state() == EndpointState::Ejected {
            health.failure = Some(why);
        }
    }

    fn set_state(&self, health: &mut EndpointHealth, standing: EndpointState, why: Option<EndpointFailure>) {
        health.failure = why;
        health.since = SystemTime::now();
        self.state.store(standing as u8, Ordering::Relaxed);
    }

    /// Since when, and why.
    pub fn state_and_health(&self) -> (EndpointState, EndpointHealth) {
        let health = self.health();
        (self.state(), *health)
    }

    /// Its name does not mean it any more.
    pub fn mark_removed(&self) {
        self.removed.store(true, Ordering::Release);
        self.state_changed.notify_one();
    }

    pub fn is_removed(&self) -> bool {
        self.removed.load(Ordering::Acquire)
    }

    fn health(&self) -> MutexGuard<'_, EndpointHealth> {
        self.health.lock()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPTIONS: HealthOptions = HealthOptions {
        path: None,
        interval: Duration::from_secs(5),
        unhealthy_after: 3,
        healthy_after: 2,
        eject_after: 5,
        eject_time: Duration::from_secs(5),
    };

    fn endpoint() -> Arc<Endpoint> {
        Endpoint::new(UpstreamOrigin::plain("backend", 80), SocketAddr::from(([127, 0, 0, 1], 80)), 2)
    }

    fn time_out(endpoint: &Endpoint, now: Instant) -> Option<u64> {
        endpoint.state_and_health().1.ejected_until.map(|until| (until - now).as_secs())
    }

    #[test]
    fn ejections_grow_up_to_a_maximum_and_are_reset_later() {
        let (endpoint, mut now) = (endpoint(), Instant::now());
        for expected in [5, 10, 20, 40, 80, 160, 300, 300] {
            assert!(endpoint.eject(EndpointFailure::Closed, &OPTIONS, now));
            assert!(!endpoint.eject(EndpointFailure::Closed, &OPTIONS, now), "once");
            assert_eq!(time_out(&endpoint, now), Some(expected));
            now += Duration::from_secs(expected);
            assert!(endpoint.restore(true, &OPTIONS, now));
        }
        now += EJECTION_RESET_AFTER + Duration::from_secs(1);
        assert!(endpoint.eject(EndpointFailure::Closed, &OPTIONS, now));
        assert_eq!(time_out(&endpoint, now), Some(5));
        assert_eq!(endpoint.totals().ejections, 9);
    }

    #[test]
    fn a_connect_failure_has_no_minimum_ejection_time() {
        let (endpoint, now) = (endpoint(), Instant::now());
        assert!(endpoint.eject(EndpointFailure::Connect, &OPTIONS, now));
        assert_eq!((endpoint.state(), time_out(&endpoint, now)), (EndpointState::Ejected, None));
        assert!(endpoint.restore(false, &OPTIONS, now) && !endpoint.restore(false, &OPTIONS, now));
        assert_eq!(endpoint.state(), EndpointState::Healthy);
        assert!(endpoint.state_and_health().1.failure.is_none());
    }

    #[test]
    fn a_probing_endpoint_recovers_with_one_response_and_fails_with_one_failure() {
        let (endpoint, now) = (endpoint(), Instant::now());
        assert!(
            endpoint.eject(EndpointFailure::InvalidResponse, &OPTIONS, now)
                && endpoint.restore(true, &OPTIONS, now)
        );
        assert_eq!(endpoint.state(), EndpointState::Probing);
        assert_eq!(endpoint.record_failure(), OPTIONS.eject_after);
        endpoint.record_success();
        assert_eq!(endpoint.state(), EndpointState::Healthy);
        assert_eq!(endpoint.record_failure(), 1, "strikes count from the last answer");
    }

    #[test]
    fn counters_of_workers_add_up() {
        let endpoint = endpoint();
        endpoint.counters_of(0).in_flight.increment();
        endpoint.counters_of(1).in_flight.increment();
        endpoint.counters_of(1).in_flight.decrement();
        endpoint.counters_of(1).responses.increment();
        let counts = endpoint.totals();
        assert_eq!((counts.in_flight, counts.responses, counts.failures), (1, 1, 0));
    }
}
