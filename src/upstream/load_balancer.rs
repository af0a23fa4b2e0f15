//! Chooses the endpoint of a request among the endpoints that one worker sees, each with its own connection pool. It
//! knows nothing about requests or responses.

use std::cell::{Cell, RefCell};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::UnboundedSender;

use crate::admission::RequestPermit;
use crate::upstream::abandoned::AbandonedRequest;
use crate::upstream::backends::Backends;
use crate::upstream::connection::UpstreamConnection;
use crate::upstream::endpoint::{Endpoint, EndpointCounters, EndpointState};
use crate::upstream::origin::EndpointAddress;
use crate::upstream::pool::ConnectionPool;

/// An endpoint with one worker's connection pool.
pub struct WorkerEndpoint {
    pub endpoint: Arc<Endpoint>,
    worker: usize,
    pub pool: ConnectionPool,
    removed: Cell<bool>,
    /// Receives requests whose clients have left; `None`: their connections are closed.
    pub abandoned: Option<UnboundedSender<AbandonedRequest>>,
}

impl WorkerEndpoint {
    pub fn counters(&self) -> &EndpointCounters {
        self.endpoint.counters_of(self.worker)
    }

    fn in_flight(&self) -> u64 {
        self.counters().in_flight.get()
    }

    /// Returns whether a request may be sent there. While probing, one at a time.
    fn is_available(&self) -> bool {
        match self.endpoint.state() {
            EndpointState::Healthy => true,
            EndpointState::Probing => self.in_flight() == 0,
            EndpointState::Ejected => false,
        }
    }
}

/// Counts a request of an endpoint, from the choice of the endpoint to the end of the response.
pub struct UpstreamInFlight {
    pub target: Rc<WorkerEndpoint>,
    /// The endpoint's responses to this worker when the request started.
    responses_before: u64,
    /// The endpoint was ejected when it was chosen, as there was no other one.
    pub was_ejected: bool,
    /// The permit of the request; `None` for requests of the gateway itself.
    pub permit: Option<Box<RequestPermit>>,
}

impl UpstreamInFlight {
    pub fn new(target: Rc<WorkerEndpoint>, permit: Option<Box<RequestPermit>>) -> UpstreamInFlight {
        let counters = target.counters();
        counters.in_flight.add(1);
        let responses_before = counters.responses.get();
        let was_ejected = target.endpoint.state() == EndpointState::Ejected;
        UpstreamInFlight { target, responses_before, was_ejected, permit }
    }

    /// Counts the request for a different endpoint.
    pub fn move_to(&mut self, target: Rc<WorkerEndpoint>) {
        *self = UpstreamInFlight::new(target, self.permit.take());
    }

    /// The number of responses to other requests of this worker since this request started.
    pub fn responses_since(&self) -> u64 {
        self.target.counters().responses.get().wrapping_sub(self.responses_before)
    }

    /// Returns a connection on which one request was sent completely and one response was read completely.
    pub fn return_connection(&self, connection: Box<UpstreamConnection>) {
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

/// All endpoints as one worker sees them.
pub struct LoadBalancer {
    backends: Arc<Backends>,
    worker: usize,
    idle_timeout: Duration,
    abandoned: Option<UnboundedSender<AbandonedRequest>>,
    generation: Cell<u64>,
    targets: RefCell<Vec<Rc<WorkerEndpoint>>>,
}

impl LoadBalancer {
    /// `abandoned` receives requests whose clients have left; with `None` their connections are closed.
    pub fn new(
        backends: Arc<Backends>,
        worker: usize,
        abandoned: Option<UnboundedSender<AbandonedRequest>>,
    ) -> LoadBalancer {
        let idle_timeout = backends.options.idle_timeout;
        let (generation, targets) = (Cell::new(0), RefCell::default());
        let load_balancer = LoadBalancer { backends, worker, idle_timeout, abandoned, generation, targets };
        load_balancer.refresh();
        load_balancer
    }

    /// Chooses an endpoint for a request, other than those in `tried`.
    ///
    /// Power of two choices: of two random endpoints, the one with fewer requests of this worker in flight. Each worker
    /// sees a fair sample of all clients, so its own counters are enough, and it does not have to read those of other
    /// workers.
    ///
    /// With `affinity`, the healthy endpoint that belongs to this hash.
    pub fn choose(&self, tried: &[Rc<WorkerEndpoint>], affinity: Option<u64>) -> Option<Rc<WorkerEndpoint>> {
        if self.generation.get() != self.backends.generation() {
            self.refresh();
        }
        let targets = self.targets.borrow();
        if let [only] = &targets[..] {
            return tried.is_empty().then(|| Rc::clone(only));
        }
        let untried = |target: &&Rc<WorkerEndpoint>| !tried.iter().any(|other| Rc::ptr_eq(other, target));
        let available = |target: &&Rc<WorkerEndpoint>| target.is_available() && untried(target);
        let probing =
            |target: &&Rc<WorkerEndpoint>| target.endpoint.state() == EndpointState::Probing && untried(target);
        if let Some(affinity) = affinity {
            let healthy = |target: &&Rc<WorkerEndpoint>| target.endpoint.state() == EndpointState::Healthy;
            let candidates = targets.iter().filter(|target| healthy(target) && untried(target));
            if let Some(target) = candidates.max_by_key(|target| rendezvous_weight(affinity, &target.endpoint.address))
            {
                return Some(Rc::clone(target));
            }
        }
        // If no endpoint is available, use a probing one that already has a request, and at last an ejected one. It may
        // have recovered, and rejecting the request would help no one.
        less_loaded_of_two(&targets, available)
            .or_else(|| less_loaded_of_two(&targets, probing))
            .or_else(|| less_loaded_of_two(&targets, untried))
    }

    /// The number of available endpoints other than those in `tried`.
    pub fn available_besides(&self, tried: &[Rc<WorkerEndpoint>]) -> usize {
        let untried = |target: &&Rc<WorkerEndpoint>| !tried.iter().any(|other| Rc::ptr_eq(other, target));
        self.targets.borrow().iter().filter(untried).filter(|target| target.is_available()).count()
    }

    /// Adds new endpoints and drops removed ones.
    fn refresh(&self) {
        self.generation.set(self.backends.generation());
        let endpoints = self.backends.endpoints();
        let mut targets = self.targets.borrow_mut();
        let mut old = std::mem::take(&mut *targets);
        for endpoint in endpoints.iter() {
            let known = old.iter().position(|target| Arc::ptr_eq(&target.endpoint, endpoint));
            targets.push(match known {
                Some(index) => old.swap_remove(index),
                None => Rc::new(WorkerEndpoint {
                    endpoint: Arc::clone(endpoint),
                    worker: self.worker,
                    pool: ConnectionPool::new(self.idle_timeout),
                    removed: Cell::new(false),
                    abandoned: self.abandoned.clone(),
                }),
            });
        }
        // Close idle connections now; busy ones are closed with their requests.
        for target in old {
            target.removed.set(true);
            target.pool.clear();
        }
    }

    /// Closes connections that exceeded the idle timeout, and those of removed endpoints.
    pub fn close_expired(&self) {
        if self.generation.get() != self.backends.generation() {
            self.refresh();
        }
        for target in self.targets.borrow().iter() {
            target.pool.close_expired();
        }
    }
}

/// Rendezvous hashing: of all endpoints, the one with the highest weight belongs to a hash. When an endpoint appears or
/// disappears, only the hashes that belong to it change their endpoint.
fn rendezvous_weight(affinity: u64, address: &EndpointAddress) -> u64 {
    // Without random keys, so that all workers and replicas agree.
    let mut hasher = DefaultHasher::new();
    match address {
        EndpointAddress::Tcp(address) => (affinity, address).hash(&mut hasher),
        EndpointAddress::Unix(path) => (affinity, path).hash(&mut hasher),
    }
    hasher.finish()
}

fn less_loaded_of_two(
    targets: &[Rc<WorkerEndpoint>],
    is_candidate: impl Fn(&&Rc<WorkerEndpoint>) -> bool,
) -> Option<Rc<WorkerEndpoint>> {
    let count = targets.iter().filter(&is_candidate).count();
    let nth = |n: usize| targets.iter().filter(&is_candidate).nth(n);
    let target = match count {
        0 => return None,
        1 => nth(0)?,
        _ => {
            let first = fastrand::usize(..count);
            let second = (first + fastrand::usize(1..count)) % count;
            let (first, second) = (nth(first)?, nth(second)?);
            if second.in_flight() < first.in_flight() { second } else { first }
        }
    };
    Some(Rc::clone(target))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_hashes_of_a_removed_endpoint_move() {
        let addresses: Vec<_> = (1..=4).map(|host| EndpointAddress::Tcp(([10, 0, 0, host], 8000).into())).collect();
        let chosen = |affinity: u64, among: &[EndpointAddress]| {
            among.iter().max_by_key(|address| rendezvous_weight(affinity, address)).expect("not empty").clone()
        };
        for affinity in 0..400 {
            let (before, after) = (chosen(affinity, &addresses), chosen(affinity, &addresses[1..]));
            assert!(before == after || before == addresses[0], "{affinity}");
        }
        for address in &addresses {
            let share = (0..400).filter(|affinity| chosen(*affinity, &addresses) == *address).count();
            assert!((60..140).contains(&share), "{share} of 400 for {address}");
        }
    }
}
