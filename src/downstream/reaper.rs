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

use crate::admission::ConnectionPlace;
use crate::base::clock;
use crate::config::Timeouts;
use crate::downstream::activity::{Activity, Order};
use crate::observability::metrics::Metrics;

/// All connections of a worker.
pub struct Reaper {
    connections: RefCell<HashMap<u64, Weak<Activity>>>,
    next: Cell<u64>,
    leaving: Cell<bool>,
    emptied: Notify,
    timeouts: Cell<Timeouts>,
    metrics: Arc<Metrics>,
}

/// A connection's place with the reaper; leaves when dropped.
pub struct Registration {
    reaper: Rc<Reaper>,
    number: u64,
    /// What the connection notes.
    pub activity: Rc<Activity>,
    _place: ConnectionPlace,
}

impl Reaper {
    /// No connections yet.
    pub fn new(timeouts: Timeouts, metrics: Arc<Metrics>) -> Reaper {
        Reaper {
            connections: RefCell::default(),
            next: Cell::new(0),
            leaving: Cell::new(false),
            emptied: Notify::new(),
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
    pub fn register(self: &Rc<Reaper>, place: ConnectionPlace) -> Registration {
        let now = Instant::now();
        let activity = Rc::new(Activity::new(now));
        if self.leaving.get() {
            activity.leave(now);
        }
        let number = self.next.replace(self.next.get() + 1);
        self.connections.borrow_mut().insert(number, Rc::downgrade(&activity));
        Registration { reaper: Rc::clone(self), number, activity, _place: place }
    }

    /// Looks at all connections.
    pub fn sweep(&self) {
        let (now, timeouts) = (clock::now(), self.timeouts.get());
        self.each(|activity| {
            if let Some((order, cause)) = activity.judge(now, &timeouts) {
                if let Some(cause) = cause {
                    self.metrics.connection_ended(cause);
                }
                activity.give(order);
            }
            activity.rest(now);
        });
    }

    /// Asks all connections, those to come included, to end when they have answered.
    pub fn close_all(&self) {
        self.leaving.set(true);
        let now = Instant::now();
        self.each(|activity| activity.leave(now));
    }

    /// Ends all connections at once.
    pub fn cut_all(&self) {
        self.each(|activity| activity.give(Order::Cut));
    }

    /// Waits until there are no connections.
    pub async fn emptied(&self) {
        while !self.is_empty() {
            self.emptied.notified().await;
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

    fn each(&self, act: impl Fn(&Activity)) {
        for activity in self.connections.borrow().values().filter_map(Weak::upgrade) {
            act(&activity);
        }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.reaper.connections.borrow_mut().remove(&self.number);
        if self.reaper.is_empty() {
            self.reaper.emptied.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::Admission;
    use crate::config::Limits;
    use crate::downstream::activity::tests::{SECOND, timeouts};

    fn place() -> ConnectionPlace {
        let admission = Arc::new(Admission::new(Limits::none(), Arc::default()));
        admission.connection([127, 0, 0, 1].into(), false).expect("a place")
    }

    #[test]
    fn asked_to_leave_a_connection_closes_after_its_requests() {
        let reaper = Rc::new(Reaper::new(timeouts(), Arc::default()));
        let used = reaper.register(place());
        drop(used.activity.request());
        let fresh = reaper.register(place());
        reaper.close_all();
        assert_eq!(used.activity.take_order(), Some(Order::Close));
        assert_eq!(fresh.activity.take_order(), None, "its first request is waited for");
        let later = fresh.activity.judge(Instant::now() + 2 * SECOND, &timeouts());
        assert_eq!(later.map(|(order, _)| order), Some(Order::Cut), "but not for long");
        let _request = fresh.activity.request();
        assert_eq!(fresh.activity.take_order(), Some(Order::Close));
        drop((used, fresh));
        assert!(reaper.is_empty());
    }
}
