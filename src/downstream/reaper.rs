//! The one timer a worker has to end connections that do nothing.
//!
//! A timer for each connection would be armed and disarmed with every request; instead each connection notes when it began
//! to wait, and the worker's [`Reaper`] looks at all of them now and then.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::admission::ConnectionPermit;
use crate::base::clock;
use crate::config::Timeouts;
use crate::downstream::activity::{Activity, CloseMode};
use crate::observability::metrics::Metrics;

/// All connections of a worker.
pub struct Reaper {
    connections: RefCell<HashMap<u64, Weak<Activity>>>,
    next_id: Cell<u64>,
    is_draining: Cell<bool>,
    became_empty: Notify,
    timeouts: Cell<Timeouts>,
    metrics: Arc<Metrics>,
}

/// A connection's place with the reaper; leaves when dropped.
pub struct Registration {
    reaper: Rc<Reaper>,
    id: u64,
    /// What the connection notes.
    pub activity: Rc<Activity>,
    _permit: ConnectionPermit,
}

impl Reaper {
    /// No connections yet.
    pub fn new(timeouts: Timeouts, metrics: Arc<Metrics>) -> Reaper {
        Reaper {
            connections: RefCell::default(),
            next_id: Cell::new(0),
            is_draining: Cell::new(false),
            became_empty: Notify::new(),
            timeouts: Cell::new(timeouts),
            metrics,
        }
    }

    /// How often to call [`Reaper::sweep`]: no timeout is overrun by more than a quarter.
    pub fn interval(&self) -> Duration {
        let Timeouts { header, idle, write, .. } = self.timeouts.get();
        (header.min(idle).min(write) / 4).clamp(Duration::from_millis(10), Duration::from_secs(1))
    }

    /// Other timeouts from now on, for open connections too.
    pub fn set_timeouts(&self, timeouts: Timeouts) {
        self.timeouts.set(timeouts);
    }

    /// A place for a new connection.
    pub fn register(self: &Rc<Reaper>, place: ConnectionPermit) -> Registration {
        let now = Instant::now();
        let activity = Rc::new(Activity::new(now));
        if self.is_draining.get() {
            activity.begin_drain(now);
        }
        let number = self.next_id.replace(self.next_id.get() + 1);
        self.connections.borrow_mut().insert(number, Rc::downgrade(&activity));
        Registration { reaper: Rc::clone(self), id: number, activity, _permit: place }
    }

    /// Looks at all connections.
    pub fn sweep(&self) {
        let (now, timeouts) = (clock::now(), self.timeouts.get());
        self.for_each(|activity| {
            if let Some((order, cause)) = activity.check_timeouts(now, &timeouts) {
                if let Some(cause) = cause {
                    self.metrics.record_connection_end(cause);
                }
                activity.request_close(order);
            }
            activity.update_quiescence(now);
        });
    }

    /// Asks all connections, those to come included, to end when they have answered.
    pub fn begin_drain(&self) {
        self.is_draining.set(true);
        let now = Instant::now();
        self.for_each(|activity| activity.begin_drain(now));
    }

    /// Ends all connections at once.
    pub fn abort_all(&self) {
        self.for_each(|activity| activity.request_close(CloseMode::Abort));
    }

    /// Waits until there are no connections.
    pub async fn wait_until_empty(&self) {
        while !self.is_empty() {
            self.became_empty.notified().await;
        }
    }

    /// How many connections there are.
    pub fn len(&self) -> usize {
        self.connections.borrow().len()
    }

    /// Whether there are none.
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
        self.reaper.connections.borrow_mut().remove(&self.id);
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
    use crate::downstream::activity::tests::{SECOND, timeouts};

    fn permit() -> ConnectionPermit {
        let admission = Arc::new(Admission::new(LimitOptions::unlimited(), Arc::default()));
        admission.admit_connection([127, 0, 0, 1].into(), false).expect("a place")
    }

    #[test]
    fn asked_to_leave_a_connection_closes_after_its_requests() {
        let reaper = Rc::new(Reaper::new(timeouts(), Arc::default()));
        let used = reaper.register(permit());
        drop(used.activity.begin_request());
        let fresh = reaper.register(permit());
        reaper.begin_drain();
        assert_eq!(used.activity.take_close_request(), Some(CloseMode::Graceful));
        assert_eq!(fresh.activity.take_close_request(), None, "its first request is waited for");
        let later = fresh.activity.check_timeouts(Instant::now() + 2 * SECOND, &timeouts());
        assert_eq!(later.map(|(order, _)| order), Some(CloseMode::Abort), "but not for long");
        let _request = fresh.activity.begin_request();
        assert_eq!(fresh.activity.take_close_request(), Some(CloseMode::Graceful));
        drop((used, fresh));
        assert!(reaper.is_empty());
    }
}
