//! Enforces the timeouts of all client connections of a worker with one timer.
//!
//! A timer per connection would have to be set and cancelled with every request. Instead each connection records the
//! times in its [`Activity`], and the worker's [`Reaper`] checks all of them periodically.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::IpAddr;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::admission::{ConnectionPermit, MemoryLimit};
use crate::base::clock;
use crate::config::Timeouts;
use crate::downstream::activity::Activity;
use crate::downstream::closing::CloseMode;
use crate::observability::metrics::{CloseCause, Metrics};

/// Share of the idle connections that make room for new ones, so that the search is rare: one of this many.
const MAKE_ROOM_SHARE: usize = 100;

/// `timeouts.write` while memory is exhausted. What a client does not read, the kernel keeps: up to 4 MiB of a response, and
/// as much that the backend sends.
const WRITE_TIMEOUT_WITHOUT_MEMORY: Duration = Duration::from_secs(5);

/// The reason in the log for requests in flight that the end of `drain.timeout` aborts.
const DRAIN_TIMEOUT: &str = "drain_timeout";

/// The reason in the log for requests in flight that `timeouts.write` aborts.
const WRITE_TIMEOUT: &str = "write_timeout";

/// All client connections of a worker.
pub struct Reaper {
    /// By address, which no other connection has while this one is listed.
    connections: RefCell<HashMap<*const Activity, Weak<Activity>>>,
    /// When an idle connection that is opened now closes, once the gateway will shut down.
    close_idle_at: Cell<Option<Instant>>,
    is_draining: Cell<bool>,
    became_empty: Notify,
    timeouts: Cell<Timeouts>,
    /// `limits.response_rate`.
    min_read_rate: Cell<u64>,
    metrics: Arc<Metrics>,
}

/// The registration of a connection with the reaper, until it is dropped.
pub struct Registration {
    reaper: Rc<Reaper>,
    /// The state of the connection.
    pub activity: Rc<Activity>,
    permit: ConnectionPermit,
}

impl Registration {
    /// Counts the connection for a client behind a proxy. Returns false if the client has too many.
    pub fn count_for(&mut self, client: IpAddr) -> bool {
        self.permit.count_for(client)
    }
}

impl Reaper {
    /// A reaper without connections. `min_read_rate` is that at which clients must read responses, in bytes per second.
    pub fn new(timeouts: Timeouts, min_read_rate: u64, metrics: Arc<Metrics>) -> Reaper {
        Reaper {
            connections: RefCell::default(),
            close_idle_at: Cell::new(None),
            is_draining: Cell::new(false),
            became_empty: Notify::new(),
            timeouts: Cell::new(timeouts),
            min_read_rate: Cell::new(min_read_rate),
            metrics,
        }
    }

    /// The interval at which [`Reaper::sweep`] must be called, so that no timeout is exceeded by more than a quarter.
    pub fn interval(&self) -> Duration {
        let Timeouts { header, idle, write, .. } = self.timeouts.get();
        (header.min(idle).min(write) / 4).clamp(Duration::from_millis(10), Duration::from_secs(1))
    }

    /// Changes the limits, for open connections too.
    pub fn set_limits(&self, timeouts: Timeouts, min_read_rate: u64) {
        self.timeouts.set(timeouts);
        self.min_read_rate.set(min_read_rate);
    }

    /// Registers a new connection.
    pub fn register(self: &Rc<Reaper>, permit: ConnectionPermit) -> Registration {
        let now = Instant::now();
        let activity = Rc::new(Activity::new(now));
        if let Some(at) = self.close_idle_at.get() {
            activity.announce_close(at);
        }
        if self.is_draining.get() {
            activity.begin_drain(now);
        }
        self.connections.borrow_mut().insert(Rc::as_ptr(&activity), Rc::downgrade(&activity));
        Registration { reaper: Rc::clone(self), activity, permit }
    }

    /// Checks the timeouts of all connections. While memory is exhausted, it closes idle connections too, and clients that
    /// do not read have less time.
    pub fn sweep(&self, memory: &MemoryLimit) {
        let (now, mut timeouts) = (clock::now(), self.timeouts.get());
        let is_memory_exhausted = memory.is_exhausted();
        if is_memory_exhausted {
            timeouts.write = timeouts.write.min(WRITE_TIMEOUT_WITHOUT_MEMORY);
        }
        self.for_each(|activity| {
            activity.update_read_debts(self.min_read_rate.get());
            activity.retry_blocked_write(now, timeouts.write);
            activity.abort_blocked_responses(now, timeouts.write);
            if let Some((mode, cause)) = activity.check_timeouts(now, &timeouts) {
                if let Some(cause) = cause {
                    self.metrics.record_connection_end(cause);
                }
                if cause == Some(CloseCause::WriteTimeout) {
                    activity.closing.set_abort_reason(WRITE_TIMEOUT);
                    activity.closing.require_reset();
                }
                activity.closing.request(mode);
            }
            if is_memory_exhausted && activity.close_if_idle(now) {
                self.metrics.record_connection_end(CloseCause::MemoryLimit);
            }
            activity.update_quiescence(now);
        });
    }

    /// Closes the connections that have been idle for the longest time. Returns whether there are any.
    pub fn make_room(&self) -> bool {
        let now = clock::now();
        let connections = self.connections.borrow();
        let all = connections.values().filter_map(Weak::upgrade);
        let mut idle: Vec<_> = all.filter_map(|activity| Some((activity.idle_since(now)?, activity))).collect();
        let Some(last) = (idle.len() / MAKE_ROOM_SHARE).max(1).min(idle.len()).checked_sub(1) else { return false };
        idle.select_nth_unstable_by_key(last, |(since, _)| *since);
        for (_, activity) in &idle[..=last] {
            self.metrics.record_connection_end(CloseCause::MadeRoom);
            activity.close_idle();
        }
        true
    }

    /// Announces that the gateway will drain after `delay`: each connection closes after its next response. Idle
    /// connections close one after the other until then, so that their clients do not reconnect all at once.
    pub fn announce_drain(&self, delay: Duration) {
        let now = Instant::now();
        self.close_idle_at.set(Some(now + delay));
        self.for_each(|activity| activity.announce_close(now + delay.mul_f64(fastrand::f64())));
    }

    /// Closes all connections, including those that are still to be accepted, after their requests in flight.
    pub fn begin_drain(&self) {
        self.is_draining.set(true);
        let now = Instant::now();
        self.for_each(|activity| activity.begin_drain(now));
    }

    /// Closes all connections immediately, because `drain.timeout` has passed.
    pub fn abort_all(&self) {
        self.for_each(|activity| {
            activity.closing.set_abort_reason(DRAIN_TIMEOUT);
            activity.closing.request(CloseMode::Abort);
        });
    }

    /// Waits until all connections have ended.
    pub async fn wait_until_empty(&self) {
        while !self.is_empty() {
            self.became_empty.notified().await;
        }
    }

    /// Number of open connections.
    pub fn len(&self) -> usize {
        self.connections.borrow().len()
    }

    /// Returns whether no connection is open.
    pub fn is_empty(&self) -> bool {
        self.connections.borrow().is_empty()
    }

    fn for_each(&self, act: impl Fn(&Activity)) {
        for activity in self.connections.borrow().values().filter_map(Weak::upgrade) {
            act(&activity);
        }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.reaper.connections.borrow_mut().remove(&Rc::as_ptr(&self.activity));
        if self.reaper.is_empty() {
            self.reaper.became_empty.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::Admission;
    use crate::config::LimitOptions;
    use crate::downstream::closing::tests::{SECOND, timeouts};

    fn permit() -> ConnectionPermit {
        let admission = Arc::new(Admission::new(LimitOptions::unlimited(), &[], Vec::new(), Arc::default()));
        admission.admit_connection([127, 0, 0, 1].into(), false, || false).expect("a permit")
    }

    #[test]
    fn the_longest_idle_connection_makes_room() {
        let reaper = Rc::new(Reaper::new(timeouts(), 1, Arc::default()));
        let [old, busy, started, new] = [(), (), (), ()].map(|()| reaper.register(permit()));
        assert!(!reaper.make_room(), "all of them have just been opened");
        std::thread::sleep(SECOND);
        let _request = busy.activity.begin_request();
        started.activity.record_head_started();
        // As for the access log, before a request ends.
        clock::now();
        drop(new.activity.begin_request());
        assert!(reaper.make_room());
        let closing = [&old, &busy, &started, &new].map(|registration| registration.activity.closing.take_request());
        assert_eq!(closing, [Some(CloseMode::Graceful), None, None, None]);
        assert!(!reaper.make_room());
    }

    #[test]
    fn an_announced_drain_closes_idle_connections_one_after_the_other() {
        let reaper = Rc::new(Reaper::new(timeouts(), 1, Arc::default()));
        let all: Vec<_> = (0..100).map(|_| reaper.register(permit())).collect();
        for one in &all {
            drop(one.activity.begin_request());
        }
        reaper.announce_drain(4 * SECOND);
        let start = Instant::now();
        let closed_after = |seconds: u32| {
            let now = start + seconds * SECOND;
            all.iter().for_each(|one| one.activity.update_quiescence(now));
            all.iter().filter(|one| one.activity.check_timeouts(now, &timeouts()).is_some()).count()
        };
        let counts = [1, 2, 3, 4].map(closed_after);
        assert!(counts[0] > 0 && counts[0] < counts[1] && counts[1] < counts[2] && counts[3] == 100, "{counts:?}");
    }

    #[test]
    fn a_draining_connection_closes_after_its_requests() {
        let reaper = Rc::new(Reaper::new(timeouts(), 1, Arc::default()));
        let used = reaper.register(permit());
        drop(used.activity.begin_request());
        let fresh = reaper.register(permit());
        reaper.begin_drain();
        assert_eq!(used.activity.closing.take_request(), Some(CloseMode::Graceful));
        assert_eq!(fresh.activity.closing.take_request(), None, "it may still send its first request");
        let later = fresh.activity.check_timeouts(Instant::now() + 2 * SECOND, &timeouts());
        assert_eq!(later.map(|(mode, _)| mode), Some(CloseMode::Abort), "but only for a short time");
        let _request = fresh.activity.begin_request();
        assert_eq!(fresh.activity.closing.take_request(), Some(CloseMode::Graceful));
        drop((used, fresh));
        assert!(reaper.is_empty());
    }
}
