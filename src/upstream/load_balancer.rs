//! One address as one worker sees it: its idle connections, and the choice among several.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crate::upstream::backends::Backends;
use crate::upstream::connection::UpstreamConnection;
use crate::upstream::endpoint::{Endpoint, EndpointCounters, EndpointState};
use crate::upstream::pool::ConnectionPool;

/// A worker's connections to one address.
pub struct WorkerEndpoint {
    pub endpoint: Arc<Endpoint>,
    worker: usize,
    pub pool: ConnectionPool,
    removed: Cell<bool>,
}

impl WorkerEndpoint {
    pub fn counters(&self) -> &EndpointCounters {
        self.endpoint.counters_of(self.worker)
    }

    fn in_flight(&self) -> u64 {
        self.counters().in_flight.get()
    }

    /// Whether a request may go there. On trial that is one at a time.
    fn is_available(&self) -> bool {
        match self.endpoint.state() {
            EndpointState::Healthy => true,
            EndpointState::Probing => self.in_flight() == 0,
            EndpointState::Ejected => false,
        }
    }
}

/// A request's place at an address, from when it was chosen to the end of the answer.
pub struct UpstreamInFlight {
    pub target: Rc<WorkerEndpoint>,
    /// How many answers had come from there before.
    responses_before: u64,
}

impl UpstreamInFlight {
    pub fn new(target: Rc<WorkerEndpoint>) -> UpstreamInFlight {
        let tally = target.counters();
        tally.in_flight.increment();
        let responses_before = tally.responses.get();
        UpstreamInFlight { target, responses_before }
    }

    /// How many answers have come from there to other requests of this worker since.
    pub fn responses_since(&self) -> u64 {
        self.target.counters().responses.get().wrapping_sub(self.responses_before)
    }

    /// Gives back a connection on which one request was sent whole and one answer read whole.
    pub fn return_connection(self, connection: Box<UpstreamConnection>) {
        if !self.target.removed.get() {
            self.target.pool.return_connection(connection);
        }
    }
}

impl Drop for UpstreamInFlight {
    fn drop(&mut self) {
        self.target.counters().in_flight.decrement();
    }
}

/// All addresses, as one worker sees them.
pub struct LoadBalancer {
    backends: Arc<Backends>,
    worker: usize,
    idle_timeout: Duration,
    generation: Cell<u64>,
    targets: RefCell<Vec<Rc<WorkerEndpoint>>>,
}

impl LoadBalancer {
    pub fn new(backends: Arc<Backends>, worker: usize) -> LoadBalancer {
        let idle_timeout = backends.options.idle_timeout;
        let lanes = LoadBalancer {
            backends,
            worker,
            idle_timeout,
            generation: Cell::new(0),
            targets: RefCell::default(),
        };
        lanes.refresh();
        lanes
    }

    /// The address for the next request, other than those that were tried for it.
    ///
    /// Of two that are chosen by chance the one with fewer requests of this worker in flight. Each worker sees a fair
    /// sample of all clients, so that its own requests tell it enough, and none has to look at what the others write.
    pub fn choose(&self, tried: &[Rc<WorkerEndpoint>]) -> Option<Rc<WorkerEndpoint>> {
        if self.generation.get() != self.backends.generation() {
            self.refresh();
        }
        let lanes = self.targets.borrow();
        if let [only] = &lanes[..] {
            let is_open = only.endpoint.state() != EndpointState::Ejected && tried.is_empty();
            return is_open.then(|| Rc::clone(only));
        }
        let untried = |lane: &&Rc<WorkerEndpoint>| !tried.iter().any(|other| Rc::ptr_eq(other, lane));
        let open = |lane: &&Rc<WorkerEndpoint>| lane.is_available() && untried(lane);
        let on_trial =
            |lane: &&Rc<WorkerEndpoint>| lane.endpoint.state() == EndpointState::Probing && untried(lane);
        // Rather one on trial that has requests already than none.
        less_loaded_of_two(&lanes, open).or_else(|| less_loaded_of_two(&lanes, on_trial))
    }

    /// How many there are to choose from beside those that were tried.
    pub fn available_besides(&self, tried: &[Rc<WorkerEndpoint>]) -> usize {
        let untried = |lane: &&Rc<WorkerEndpoint>| !tried.iter().any(|other| Rc::ptr_eq(other, lane));
        self.targets.borrow().iter().filter(untried).filter(|lane| lane.is_available()).count()
    }

    /// Takes over new addresses and leaves others.
    fn refresh(&self) {
        self.generation.set(self.backends.generation());
        let endpoints = self.backends.endpoints();
        let mut lanes = self.targets.borrow_mut();
        let mut old = std::mem::take(&mut *lanes);
        for endpoint in endpoints.iter() {
            let known = old.iter().position(|lane| Arc::ptr_eq(&lane.endpoint, endpoint));
            lanes.push(match known {
                Some(at) => old.swap_remove(at),
                None => Rc::new(WorkerEndpoint {
                    endpoint: Arc::clone(endpoint),
                    worker: self.worker,
                    pool: ConnectionPool::new(self.idle_timeout),
                    removed: Cell::new(false),
                }),
            });
        }
        // Idle connections end here, busy ones with their requests.
        for lane in old {
            lane.removed.set(true);
            lane.pool.clear();
        }
    }

    /// Closes connections that idled too long, or whose address is gone.
    pub fn close_expired(&self) {
        if self.generation.get() != self.backends.generation() {
            self.refresh();
        }
        for lane in self.targets.borrow().iter() {
            lane.pool.close_expired();
        }
    }
}

fn less_loaded_of_two(
    lanes: &[Rc<WorkerEndpoint>],
    may_be: impl Fn(&&Rc<WorkerEndpoint>) -> bool,
) -> Option<Rc<WorkerEndpoint>> {
    let count = lanes.iter().filter(&may_be).count();
    let nth = |n: usize| lanes.iter().filter(&may_be).nth(n);
    let lane = match count {
        0 => return None,
        1 => nth(0)?,
        _ => {
            let first = fastrand::usize(..count);
            let second = (first + fastrand::usize(1..count)) % count;
            let (first, second) = (nth(first)?, nth(second)?);
            if second.in_flight() < first.in_flight() { second } else { first }
        }
    };
    Some(Rc::clone(lane))
}
