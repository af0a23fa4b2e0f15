//! One address as one worker sees it: its idle connections, and the choice among several.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crate::upstream::backends::Backends;
use crate::upstream::connection::Connection;
use crate::upstream::endpoint::{Endpoint, Standing, Tally};
use crate::upstream::pool::Pool;

/// A worker's connections to one address.
pub struct Lane {
    pub endpoint: Arc<Endpoint>,
    worker: usize,
    pub pool: Pool,
    gone: Cell<bool>,
}

impl Lane {
    pub fn tally(&self) -> &Tally {
        self.endpoint.tally(self.worker)
    }

    fn in_flight(&self) -> u64 {
        self.tally().in_flight.get()
    }

    /// Whether a request may go there. On trial that is one at a time.
    fn is_open(&self) -> bool {
        match self.endpoint.standing() {
            Standing::InUse => true,
            Standing::OnTrial => self.in_flight() == 0,
            Standing::OutOfUse => false,
        }
    }
}

/// A request's place at an address, from when it was chosen to the end of the answer.
pub struct InFlight {
    pub lane: Rc<Lane>,
    /// How many answers had come from there before.
    answers_before: u64,
}

impl InFlight {
    pub fn at(lane: Rc<Lane>) -> InFlight {
        let tally = lane.tally();
        tally.in_flight.add();
        let answers_before = tally.answers.get();
        InFlight { lane, answers_before }
    }

    /// How many answers have come from there to other requests of this worker since.
    pub fn answers_since(&self) -> u64 {
        self.lane.tally().answers.get().wrapping_sub(self.answers_before)
    }

    /// Gives back a connection on which one request was sent whole and one answer read whole.
    pub fn keep(self, connection: Box<Connection>) {
        if !self.lane.gone.get() {
            self.lane.pool.put(connection);
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.lane.tally().in_flight.take();
    }
}

/// All addresses, as one worker sees them.
pub struct Lanes {
    backends: Arc<Backends>,
    worker: usize,
    idle_timeout: Duration,
    seen: Cell<u64>,
    lanes: RefCell<Vec<Rc<Lane>>>,
}

impl Lanes {
    pub fn new(backends: Arc<Backends>, worker: usize) -> Lanes {
        let idle_timeout = backends.options.idle_timeout;
        let lanes = Lanes { backends, worker, idle_timeout, seen: Cell::new(0), lanes: RefCell::default() };
        lanes.look();
        lanes
    }

    /// The address for the next request, other than those that were tried for it.
    ///
    /// Of two that are chosen by chance the one with fewer requests of this worker in flight. Each worker sees a fair
    /// sample of all clients, so that its own requests tell it enough, and none has to look at what the others write.
    pub fn choose(&self, tried: &[Rc<Lane>]) -> Option<Rc<Lane>> {
        if self.seen.get() != self.backends.generation() {
            self.look();
        }
        let lanes = self.lanes.borrow();
        if let [only] = &lanes[..] {
            let is_open = only.endpoint.standing() != Standing::OutOfUse && tried.is_empty();
            return is_open.then(|| Rc::clone(only));
        }
        let untried = |lane: &&Rc<Lane>| !tried.iter().any(|other| Rc::ptr_eq(other, lane));
        let open = |lane: &&Rc<Lane>| lane.is_open() && untried(lane);
        let on_trial = |lane: &&Rc<Lane>| lane.endpoint.standing() == Standing::OnTrial && untried(lane);
        // Rather one on trial that has requests already than none.
        fewer_of_two(&lanes, open).or_else(|| fewer_of_two(&lanes, on_trial))
    }

    /// How many there are to choose from beside those that were tried.
    pub fn open_beside(&self, tried: &[Rc<Lane>]) -> usize {
        let untried = |lane: &&Rc<Lane>| !tried.iter().any(|other| Rc::ptr_eq(other, lane));
        self.lanes.borrow().iter().filter(untried).filter(|lane| lane.is_open()).count()
    }

    /// Takes over new addresses and leaves others.
    fn look(&self) {
        self.seen.set(self.backends.generation());
        let endpoints = self.backends.endpoints();
        let mut lanes = self.lanes.borrow_mut();
        let mut old = std::mem::take(&mut *lanes);
        for endpoint in endpoints.iter() {
            let known = old.iter().position(|lane| Arc::ptr_eq(&lane.endpoint, endpoint));
            lanes.push(match known {
                Some(at) => old.swap_remove(at),
                None => Rc::new(Lane {
                    endpoint: Arc::clone(endpoint),
                    worker: self.worker,
                    pool: Pool::new(self.idle_timeout),
                    gone: Cell::new(false),
                }),
            });
        }
        // Idle connections end here, busy ones with their requests.
        for lane in old {
            lane.gone.set(true);
            lane.pool.clear();
        }
    }

    /// Closes connections that idled too long, or whose address is gone.
    pub fn sweep(&self) {
        if self.seen.get() != self.backends.generation() {
            self.look();
        }
        for lane in self.lanes.borrow().iter() {
            lane.pool.sweep();
        }
    }
}

fn fewer_of_two(lanes: &[Rc<Lane>], may_be: impl Fn(&&Rc<Lane>) -> bool) -> Option<Rc<Lane>> {
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
