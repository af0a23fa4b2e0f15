//! Chooses the endpoint of a request among the endpoints that one worker sees, each with its own connection pool. It
//! knows nothing about requests or responses.

use std::cell::{Cell, Ref, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use tokio::sync::mpsc::UnboundedSender;

use crate::admission::{EndpointLoad, RequestPermit};
use crate::upstream::abandoned::AbandonedRequest;
use crate::upstream::backends::Backends;
use crate::upstream::connection::UpstreamConnection;
use crate::upstream::endpoint::{Endpoint, EndpointCounters, EndpointState};
use crate::upstream::pool::ConnectionPool;
use crate::upstream::selection::{Candidate, select};

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
}

impl Candidate for Rc<WorkerEndpoint> {
    fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Each worker sees a fair sample of all clients, so its own counters are enough, and it does not have to read those of
    /// other workers.
    fn in_flight(&self) -> u64 {
        self.counters().in_flight.get()
    }
}

/// Counts a request of an endpoint, from the choice of the endpoint to the end of the response.
pub struct UpstreamInFlight {
    pub target: Rc<WorkerEndpoint>,
    /// The endpoint's responses to this worker when the request started.
    responses_before: u64,
    /// The endpoint was ejected when it was chosen, as there was no other one.
    pub was_ejected: bool,
    has_response: bool,
    /// The permit of the request; `None` for requests of the gateway itself.
    pub permit: Option<Box<RequestPermit>>,
}

impl UpstreamInFlight {
    pub fn new(target: Rc<WorkerEndpoint>, permit: Option<Box<RequestPermit>>) -> UpstreamInFlight {
        let counters = target.counters();
        counters.in_flight.add(1);
        let responses_before = counters.responses.get();
        let was_ejected = target.endpoint.state() == EndpointState::Ejected;
        UpstreamInFlight { target, responses_before, was_ejected, has_response: false, permit }
    }

    /// Counts the response, whose head has arrived.
    pub fn begin_response(&mut self) {
        self.has_response = true;
        self.target.counters().responses.increment();
        self.target.counters().responding.increment();
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
        let counters = self.target.counters();
        counters.in_flight.decrement();
        if self.has_response {
            counters.responding.decrement();
        }
    }
}

/// All endpoints as one worker sees them.
pub struct LoadBalancer {
    backends: Arc<Backends>,
    worker: usize,
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
        let (generation, targets) = (Cell::new(0), RefCell::default());
        let load_balancer = LoadBalancer { backends, worker, abandoned, generation, targets };
        load_balancer.refresh();
        load_balancer
    }

    /// Chooses an endpoint for a request, other than those in `tried`, with fewer than `limit` slots in use: see [`select`].
    pub fn choose(
        &self,
        tried: &[Rc<WorkerEndpoint>],
        affinity: Option<u64>,
        limit: Option<usize>,
    ) -> Option<Rc<WorkerEndpoint>> {
        let is_untried = |target: &Rc<WorkerEndpoint>| !tried.iter().any(|other| Rc::ptr_eq(other, target));
        let has_room = |target: &Rc<WorkerEndpoint>| limit.is_none_or(|limit| target.endpoint.load.in_use() < limit);
        select(&self.targets(), affinity, is_untried, has_room).map(Rc::clone)
    }

    /// The endpoint for which a slot counts; `None` if it has been removed.
    pub fn find(&self, load: &Arc<EndpointLoad>) -> Option<Rc<WorkerEndpoint>> {
        self.targets().iter().find(|target| Arc::ptr_eq(&target.endpoint.load, load)).map(Rc::clone)
    }

    /// The current endpoints.
    fn targets(&self) -> Ref<'_, Vec<Rc<WorkerEndpoint>>> {
        if self.generation.get() != self.backends.generation() {
            self.refresh();
        }
        self.targets.borrow()
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
                    pool: ConnectionPool::new(self.backends.options.idle_timeout),
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
        for target in self.targets().iter() {
            target.pool.close_expired();
        }
    }
}
