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
use crate::upstream::origin::Origin;

/// No address stays out of use for longer at a time.
const LONGEST_EJECTION: Duration = Duration::from_secs(300);

/// An address that was in use for so long since it was out is given the first, short time again.
const FORGIVEN: Duration = Duration::from_secs(300);

/// One address of a backend.
pub struct Endpoint {
    /// Whose address.
    pub origin: Arc<Origin>,
    pub address: SocketAddr,
    standing: AtomicU8,
    /// Failures since the last answer.
    strikes: AtomicU32,
    /// Requests that went elsewhere before it had the whole time to take their connection, since it last did.
    impatient: AtomicU32,
    health: Mutex<Health>,
    tallies: Box<[Tally]>,
    failures: AtomicU64,
    ejections: AtomicU64,
    /// Its name does not mean it any more.
    gone: AtomicBool,
    /// Tells who looks after it that it went out of use, or is gone.
    pub changed: Notify,
    /// Tells the same that it may take no connections any more.
    pub doubted: Notify,
}

/// Whether requests go there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Yes.
    InUse,
    /// One at a time, until it has answered one.
    OnTrial,
    /// No.
    OutOfUse,
}

/// What went wrong with an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// No connection.
    Connect,
    /// None in time.
    ConnectTimeout,
    /// A connection that ended without an answer.
    Closed,
    /// An answer that is none.
    Invalid,
    /// No answer to anybody for as long as one may take.
    Silent,
    /// 502, 503 or 504.
    Status,
    /// The checks of `upstream.health_path`.
    Check,
}

impl Failure {
    /// How operators are told.
    pub fn word(self) -> &'static str {
        match self {
            Failure::Connect => "connect_failed",
            Failure::ConnectTimeout => "connect_timeout",
            Failure::Closed => "closed_without_answer",
            Failure::Invalid => "invalid_answer",
            Failure::Silent => "response_timeout",
            Failure::Status => "status_502_503_504",
            Failure::Check => "health_check_failed",
        }
    }

    /// Whether a connection that succeeds shows that it is over.
    pub fn is_of_connecting(self) -> bool {
        matches!(self, Failure::Connect | Failure::ConnectTimeout)
    }
}

/// Since when it is how it is, and why.
#[derive(Clone, Copy, Debug)]
pub struct Health {
    pub why: Option<Failure>,
    /// Out of use until then, at least.
    pub until: Option<Instant>,
    /// For people.
    pub since: SystemTime,
    /// When it came back the last time, and how often it went out of use until then without being forgiven.
    returned: Option<Instant>,
    in_a_row: u32,
}

/// What one worker counts. Nobody else writes here, so that no two cores ever wait for one another.
#[derive(Default)]
#[repr(align(128))]
pub struct Tally {
    /// Requests that were begun and whose answer has not ended.
    pub in_flight: OwnCount,
    /// Connections.
    pub open: OwnCount,
    /// Answers, whatever their status.
    pub answers: OwnCount,
}

/// A number that one thread writes and all may read.
#[derive(Default)]
pub struct OwnCount(AtomicU64);

impl OwnCount {
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    pub fn add(&self) {
        self.0.store(self.get().wrapping_add(1), Ordering::Relaxed);
    }

    pub fn take(&self) {
        self.0.store(self.get().saturating_sub(1), Ordering::Relaxed);
    }
}

/// What all workers have counted.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    pub in_flight: u64,
    pub open: u64,
    pub answers: u64,
    pub failures: u64,
    pub ejections: u64,
}

impl Endpoint {
    pub fn new(origin: Arc<Origin>, address: SocketAddr, workers: usize) -> Arc<Endpoint> {
        let health = Health { why: None, until: None, since: SystemTime::now(), returned: None, in_a_row: 0 };
        Arc::new(Endpoint {
            origin,
            address,
            standing: AtomicU8::new(Standing::InUse as u8),
            strikes: AtomicU32::new(0),
            impatient: AtomicU32::new(0),
            health: Mutex::new(health),
            tallies: (0..workers).map(|_| Tally::default()).collect(),
            failures: AtomicU64::new(0),
            ejections: AtomicU64::new(0),
            gone: AtomicBool::new(false),
            changed: Notify::new(),
            doubted: Notify::new(),
        })
    }

    /// Takes over what is known of the same address under other options, and goes on with its counters.
    pub fn is_as(&self, old: &Endpoint) {
        let (standing, health) = old.health_now();
        *self.health() = health;
        self.standing.store(standing as u8, Ordering::Relaxed);
        let copy = |new: &AtomicU32, old: &AtomicU32| {
            new.store(old.load(Ordering::Relaxed), Ordering::Relaxed);
        };
        copy(&self.strikes, &old.strikes);
        copy(&self.impatient, &old.impatient);
        let Counts { failures, ejections, .. } = old.counts();
        self.failures.store(failures, Ordering::Relaxed);
        self.ejections.store(ejections, Ordering::Relaxed);
    }

    /// Whether requests go there.
    pub fn standing(&self) -> Standing {
        match self.standing.load(Ordering::Relaxed) {
            0 => Standing::InUse,
            1 => Standing::OnTrial,
            _ => Standing::OutOfUse,
        }
    }

    /// Where a worker counts.
    pub fn tally(&self, worker: usize) -> &Tally {
        &self.tallies[worker]
    }

    /// The counts of all.
    pub fn counts(&self) -> Counts {
        let sum = |count: fn(&Tally) -> &OwnCount| self.tallies.iter().map(|tally| count(tally).get()).sum();
        Counts {
            in_flight: sum(|tally| &tally.in_flight),
            open: sum(|tally| &tally.open),
            answers: sum(|tally| &tally.answers),
            failures: self.failures.load(Ordering::Relaxed),
            ejections: self.ejections(),
        }
    }

    /// How often it went out of use.
    pub fn ejections(&self) -> u64 {
        self.ejections.load(Ordering::Relaxed)
    }

    /// It has answered.
    pub fn answered(&self) {
        if self.strikes.load(Ordering::Relaxed) != 0 {
            self.strikes.store(0, Ordering::Relaxed);
        }
        if self.standing() == Standing::OnTrial {
            let mut health = self.health();
            if self.standing() == Standing::OnTrial {
                self.set(&mut health, Standing::InUse, None);
            }
        }
    }

    /// It has not. Says how often in a row.
    pub fn struck(&self) -> u32 {
        self.failures.fetch_add(1, Ordering::Relaxed);
        self.strikes.fetch_add(1, Ordering::Relaxed).saturating_add(1)
    }

    /// It was not given the whole time to take a connection, and has not. Says how often that was.
    pub fn not_waited_for(&self) -> u32 {
        self.failures.fetch_add(1, Ordering::Relaxed);
        self.impatient.fetch_add(1, Ordering::Relaxed).saturating_add(1)
    }

    /// With the whole time it was found out whether it takes connections.
    pub fn was_waited_for(&self) {
        self.impatient.store(0, Ordering::Relaxed);
    }

    /// Takes it out of use; false if it is already. A failure to connect is over as soon as it connects, others have
    /// their time.
    pub fn eject(&self, why: Failure, options: &HealthOptions, now: Instant) -> bool {
        let mut health = self.health();
        if self.standing() == Standing::OutOfUse {
            return false;
        }
        if health.returned.is_some_and(|returned| now.duration_since(returned) > FORGIVEN) {
            health.in_a_row = 0;
        }
        health.until = match why {
            Failure::Connect | Failure::ConnectTimeout | Failure::Check => None,
            _ => {
                let doubled = options.eject_time.saturating_mul(1 << health.in_a_row.min(16));
                health.in_a_row += 1;
                Some(now + doubled.min(LONGEST_EJECTION.max(options.eject_time)))
            }
        };
        self.ejections.fetch_add(1, Ordering::Relaxed);
        self.set(&mut health, Standing::OutOfUse, Some(why));
        drop(health);
        self.changed.notify_one();
        true
    }

    /// Puts it back into use; on trial where only an answer shows that it is well. Says whether it was out of use.
    pub fn restore(&self, on_trial: bool, options: &HealthOptions, now: Instant) -> bool {
        let mut health = self.health();
        if self.standing() != Standing::OutOfUse {
            return false;
        }
        // One more failure is enough then.
        let strikes = if on_trial { options.eject_after.saturating_sub(1) } else { 0 };
        self.strikes.store(strikes, Ordering::Relaxed);
        let why = if on_trial { health.why } else { None };
        health.until = None;
        health.returned = Some(now);
        self.set(&mut health, if on_trial { Standing::OnTrial } else { Standing::InUse }, why);
        true
    }

    /// It is out of use for another reason than before.
    pub fn blame(&self, why: Failure) {
        let mut health = self.health();
        if self.standing() == Standing::OutOfUse {
            health.why = Some(why);
        }
    }

    fn set(&self, health: &mut Health, standing: Standing, why: Option<Failure>) {
        health.why = why;
        health.since = SystemTime::now();
        self.standing.store(standing as u8, Ordering::Relaxed);
    }

    /// Since when, and why.
    pub fn health_now(&self) -> (Standing, Health) {
        let health = self.health();
        (self.standing(), *health)
    }

    /// Its name does not mean it any more.
    pub fn leave(&self) {
        self.gone.store(true, Ordering::Release);
        self.changed.notify_one();
    }

    pub fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }

    fn health(&self) -> MutexGuard<'_, Health> {
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
        Endpoint::new(Origin::plain("backend", 80), SocketAddr::from(([127, 0, 0, 1], 80)), 2)
    }

    fn time_out(endpoint: &Endpoint, now: Instant) -> Option<u64> {
        endpoint.health_now().1.until.map(|until| (until - now).as_secs())
    }

    #[test]
    fn each_time_out_of_use_is_longer_up_to_a_bound_and_forgiven_later() {
        let (endpoint, mut now) = (endpoint(), Instant::now());
        for expected in [5, 10, 20, 40, 80, 160, 300, 300] {
            assert!(endpoint.eject(Failure::Closed, &OPTIONS, now));
            assert!(!endpoint.eject(Failure::Closed, &OPTIONS, now), "once");
            assert_eq!(time_out(&endpoint, now), Some(expected));
            now += Duration::from_secs(expected);
            assert!(endpoint.restore(true, &OPTIONS, now));
        }
        now += FORGIVEN + Duration::from_secs(1);
        assert!(endpoint.eject(Failure::Closed, &OPTIONS, now));
        assert_eq!(time_out(&endpoint, now), Some(5));
        assert_eq!(endpoint.counts().ejections, 9);
    }

    #[test]
    fn what_does_not_connect_has_no_time_to_sit_out() {
        let (endpoint, now) = (endpoint(), Instant::now());
        assert!(endpoint.eject(Failure::Connect, &OPTIONS, now));
        assert_eq!((endpoint.standing(), time_out(&endpoint, now)), (Standing::OutOfUse, None));
        assert!(endpoint.restore(false, &OPTIONS, now) && !endpoint.restore(false, &OPTIONS, now));
        assert_eq!(endpoint.standing(), Standing::InUse);
        assert!(endpoint.health_now().1.why.is_none());
    }

    #[test]
    fn on_trial_an_answer_acquits_and_a_failure_is_enough() {
        let (endpoint, now) = (endpoint(), Instant::now());
        assert!(endpoint.eject(Failure::Invalid, &OPTIONS, now) && endpoint.restore(true, &OPTIONS, now));
        assert_eq!(endpoint.standing(), Standing::OnTrial);
        assert_eq!(endpoint.struck(), OPTIONS.eject_after);
        endpoint.answered();
        assert_eq!(endpoint.standing(), Standing::InUse);
        assert_eq!(endpoint.struck(), 1, "strikes count from the last answer");
    }

    #[test]
    fn workers_counts_add_up() {
        let endpoint = endpoint();
        endpoint.tally(0).in_flight.add();
        endpoint.tally(1).in_flight.add();
        endpoint.tally(1).in_flight.take();
        endpoint.tally(1).answers.add();
        let counts = endpoint.counts();
        assert_eq!((counts.in_flight, counts.answers, counts.failures), (1, 1, 0));
    }
}
