//! Enforces the timeouts of all client connections of a worker with one timer.
//!
//! A timer per connection would have to be set and cancelled with every request. Instead each connection records the
//! times in its [`Activity`], and the worker's [`Reaper`] checks all of them periodically.

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

/// All client connections of a worker.
pub struct Reaper {
    connections: RefCell<HashMap<u64, Weak<Activity>>>,
    next_id: Cell<u64>,
    is_draining: Cell<bool>,
    became_empty: Notify,
    timeouts: Cell<Timeouts>,
    metrics: Arc<Metrics>,
}

/// The registration of a connection with the reaper, until it is dropped.
pub struct Registration {
    reaper: Rc<Reaper>,
    id: u64,
    /// The state of the connection.
    pub activity: Rc<Activity>,
    _permit: ConnectionPermit,
}

impl Reaper {
    /// A reaper without connections.
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

    /// The interval at which [`Reaper::sweep`] must be called, so that no timeout is exceeded by more than a quarter.
    pub fn interval(&self) -> Duration {
        let Timeouts { header, idle, write, .. } = self.timeouts.get();
        (header.min(idle).min(write) / 4).clamp(Duration::from_millis(10), Duration::from_secs(1))
    }

    /// Changes the timeouts, for open connections too.
    pub fn set_timeouts(&self, timeouts: Timeouts) {
        self.timeouts.set(timeouts);
    }

    /// Registers a new connection.
    pub fn register(self: &Rc<Reaper>, permit: ConnectionPermit) -> Registration {
        let now = Instant::now();
        let activity = Rc::new(Activity::new(now));
        if self.is_draining.get() {
            activity.begin_drain(now);
        }
        let id = self.next_id.replace(self.next_id.get() + 1);
        self.connections.borrow_mut().insert(id, Rc::downgrade(&activity));
        Registration { reaper: Rc::clone(self), id, activity, _permit: permit }
    }

    /// Checks the timeouts of all connections.
    pub fn sweep(&self) {
        let (now, timeouts) = (clock::now(), self.timeouts.get());
        self.for_each(|activity| {
            activity.abort_blocked_responses(now, timeouts.write);
            if let Some((order, cause)) = activity.check_timeouts(now, &timeouts) {
                if let Some(cause) = cause {
                    self.metrics.record_connection_end(cause);
                }
                activity.request_close(order);
            }
            activity.update_quiescence(now);
        });
    }

    /// Closes all connections, including those that are still to be accepted, after their requests in flight.
    pub fn begin_drain(&self) {
        self.is_draining.set(true);
        let now = Instant::now();
        self.for_each(|activity| activity.begin_drain(now));
    }

    /// Closes all connections immediately.
    pub fn abort_all(&self) {
        self.for_each(|activity| activity.request_close(CloseMode::Abort));
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
        let admission = Arc::new(Admission::new(LimitOptions::unlimited(), &[], Vec::new(), Arc::default()));
        admission.admit_connection([127, 0, 0, 1].into(), false).expect("a permit")
    }

    #[test]
    fn a_draining_connection_closes_after_its_requests() {
        let reaper = Rc::new(Reaper::new(timeouts(), Arc::default()));
        let used = reaper.register(permit());
        drop(used.activity.begin_request());
        let fresh = reaper.register(permit());
        reaper.begin_drain();
        assert_eq!(used.activity.take_close_request(), Some(CloseMode::Graceful));
        assert_eq!(fresh.activity.take_close_request(), None, "it may still send its first request");
        let later = fresh.activity.check_timeouts(Instant::now() + 2 * SECOND, &timeouts());
        assert_eq!(later.map(|(order, _)| order), Some(CloseMode::Abort), "but only for a short time");
        let _request = fresh.activity.begin_request();
        assert_eq!(fresh.activity.take_close_request(), Some(CloseMode::Graceful));
        drop((used, fresh));
        assert!(reaper.is_empty());
    }
}
