//! Limits the number of concurrent requests to the backends, and queues the others fairly.
//!
//! Callers are served round robin, so a caller that sends two hundred requests at once delays only its own. The queue
//! knows callers as hashes, and nothing else about a request.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::admission::endpoint_load::{EndpointChoice, EndpointChooser, EndpointLoad, EndpointPermit};
use crate::base::identity_hasher::IdentityHasher;
use crate::config::QueueOptions;
use crate::observability::metrics::Metrics;

/// The number of choosers that are called once: that of new requests, and those of requests that could not connect to an
/// endpoint.
const MAX_FULL_CHOOSERS: usize = 8;

/// A fixed number of slots, in total, for each endpoint, or both, and the requests that wait for one.
#[derive(Debug)]
pub struct FairQueue {
    metrics: Arc<Metrics>,
    state: Mutex<QueueState>,
}

/// The right to have a request at a backend. Dropping it passes the slot on to the next waiting request.
///
/// Without a queue only inside [`FairQueue::serve_next`], for a handover that failed.
#[derive(Debug)]
pub struct Slot {
    queue: Option<Arc<FairQueue>>,
    /// `None`: the number of requests of each endpoint is not limited, or no endpoint was known.
    endpoint: Option<EndpointPermit>,
}

/// A request for a slot.
#[derive(Clone, Copy, Debug)]
pub struct SlotRequest<'a> {
    /// The hash of an identity.
    pub caller: u64,
    /// See [`EndpointChooser::choose`].
    pub affinity: Option<u64>,
    /// The endpoints to which the request may be sent.
    pub endpoints: &'a Arc<dyn EndpointChooser>,
}

/// Why a request received no slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueError {
    /// The queue is full, or the request was evicted from it in favor of a caller with fewer waiting requests.
    Full,
    /// The request waited for the whole queue timeout.
    Timeout,
}

#[derive(Debug)]
struct QueueState {
    limits: QueueOptions,
    slots_in_use: usize,
    /// The sum over all callers.
    waiting: usize,
    /// The waiting requests of each caller, the oldest first. No entry is empty.
    by_caller: HashMap<u64, VecDeque<Waiter>, IdentityHasher>,
    /// The callers in `by_caller`; the next one to be served is first.
    round_robin: VecDeque<u64>,
    next_id: u64,
    /// The part of the metric that this queue has contributed.
    reported: i64,
}

#[derive(Debug)]
struct Waiter {
    id: u64,
    affinity: Option<u64>,
    endpoints: Arc<dyn EndpointChooser>,
    /// Delivers the slot. Dropping it means [`QueueError::Full`].
    slot_sender: oneshot::Sender<Slot>,
}

impl FairQueue {
    /// All slots are free.
    pub fn new(limits: QueueOptions, metrics: Arc<Metrics>) -> Arc<FairQueue> {
        let state = QueueState {
            limits,
            slots_in_use: 0,
            waiting: 0,
            by_caller: HashMap::default(),
            round_robin: VecDeque::new(),
            next_id: 0,
            reported: 0,
        };
        Arc::new(FairQueue { metrics, state: Mutex::new(state) })
    }

    /// Changes the limits. Slots in use stay counted, and requests that wait keep their places and their timeout.
    pub fn set_limits(self: &Arc<FairQueue>, limits: QueueOptions) {
        self.state.lock().limits = limits;
        self.serve_waiting();
    }

    /// A free slot, or `None`. While requests wait there is none, so this never overtakes one.
    pub fn try_slot(self: &Arc<FairQueue>, request: SlotRequest<'_>) -> Option<Slot> {
        let mut state = self.state.lock();
        if state.waiting > 0 { None } else { self.try_slot_locked(&mut state, request) }
    }

    fn try_slot_locked(self: &Arc<FairQueue>, state: &mut QueueState, request: SlotRequest<'_>) -> Option<Slot> {
        if !state.has_free_slot() {
            return None;
        }
        let endpoint =
            state.limits.requests_per_endpoint.map(|limit| request.endpoints.choose(request.affinity, limit));
        let endpoint = match endpoint {
            Some(EndpointChoice::AllFull) => return None,
            Some(EndpointChoice::Endpoint(permit)) => Some(permit),
            Some(EndpointChoice::NoEndpoint) | None => None,
        };
        state.slots_in_use += 1;
        Some(Slot { queue: Some(Arc::clone(self)), endpoint })
    }

    /// Waits for a slot, at most for the queue timeout.
    pub async fn wait_for_slot(self: &Arc<FairQueue>, request: SlotRequest<'_>) -> Result<Slot, QueueError> {
        let (entry, slot) = match self.enqueue(request)? {
            Enqueued::Served(slot) => return Ok(slot),
            Enqueued::Queued(entry, slot) => (entry, slot),
        };
        let limit = self.state.lock().limits.timeout;
        let result = match timeout(limit, slot).await {
            Ok(slot) => slot.map_err(|_| QueueError::Full),
            Err(_) => Err(QueueError::Timeout),
        };
        drop(entry);
        result
    }

    /// Adds a request to its caller's queue. If the queue is full, it may evict a request of the caller with the most.
    fn enqueue(self: &Arc<FairQueue>, request: SlotRequest<'_>) -> Result<Enqueued<'_>, QueueError> {
        self.serve_waiting();
        let mut state = self.state.lock();
        // A slot may have become free since the caller tried, and those that still wait need a different endpoint.
        if let Some(slot) = self.try_slot_locked(&mut state, request) {
            return Ok(Enqueued::Served(slot));
        }
        if state.waiting >= state.limits.queue {
            state.evict_for(request.caller)?;
        }
        let (slot_sender, slot) = oneshot::channel();
        let id = state.push(request, slot_sender);
        self.update_metric(&mut state);
        Ok(Enqueued::Queued(QueueEntry { queue: self, caller: request.caller, id }, slot))
    }

    /// Hands free slots to waiting requests. Needed when an endpoint has recovered or is new; the end of a request does it
    /// for its own slot.
    pub fn serve_waiting(self: &Arc<FairQueue>) {
        while self.serve_next(self.state.lock()) {}
    }

    /// Hands a slot that was given back to the next request, or frees it.
    fn release_slot(self: &Arc<FairQueue>) {
        let mut state = self.state.lock();
        state.slots_in_use -= 1;
        self.serve_next(state);
    }

    /// Hands a free slot to the next request that can use it. Returns whether there is one.
    fn serve_next<'a>(self: &'a Arc<FairQueue>, mut state: MutexGuard<'a, QueueState>) -> bool {
        loop {
            if !state.has_free_slot() {
                return false;
            }
            let Some((slot_sender, endpoint)) = state.pop() else { return false };
            state.slots_in_use += 1;
            self.update_metric(&mut state);
            drop(state);
            let Err(mut unused) = slot_sender.send(Slot { queue: Some(Arc::clone(self)), endpoint }) else {
                return true;
            };
            // The request was cancelled in the meantime: this loop passes the slot on, not its drop.
            unused.queue = None;
            drop(unused);
            state = self.state.lock();
            state.slots_in_use -= 1;
        }
    }

    /// The metric is the sum over the queues of all upstreams.
    fn update_metric(&self, state: &mut QueueState) {
        let waiting = i64::try_from(state.waiting).unwrap_or(i64::MAX);
        let before = std::mem::replace(&mut state.reported, waiting);
        self.metrics.requests_queued.inc_by(waiting - before);
    }
}

impl Slot {
    /// The endpoint for which the slot counts; `None` if it counts for none.
    pub fn endpoint(&self) -> Option<&Arc<EndpointLoad>> {
        self.endpoint.as_ref().map(EndpointPermit::load)
    }

    /// The queue that has granted it.
    pub fn queue(&self) -> Option<&Arc<FairQueue>> {
        self.queue.as_ref()
    }

    /// The limit for each endpoint, if there is one.
    pub fn endpoint_limit(&self) -> Option<usize> {
        self.queue.as_ref()?.state.lock().limits.requests_per_endpoint
    }

    /// Counts the slot for a different endpoint. Returns false if that is full.
    pub fn move_to(&mut self, load: &Arc<EndpointLoad>) -> bool {
        let (Some(queue), Some(limit)) = (&self.queue, self.endpoint_limit()) else { return true };
        let Some(permit) = load.try_acquire(limit) else { return false };
        self.endpoint = Some(permit);
        queue.serve_waiting();
        true
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        // First, as the next request may be sent there.
        self.endpoint = None;
        if let Some(queue) = self.queue.take() {
            queue.release_slot();
        }
    }
}

enum Enqueued<'a> {
    Served(Slot),
    Queued(QueueEntry<'a>, oneshot::Receiver<Slot>),
}

/// Removes a request from the queue when its future is dropped or times out.
struct QueueEntry<'a> {
    queue: &'a FairQueue,
    caller: u64,
    id: u64,
}

impl Drop for QueueEntry<'_> {
    fn drop(&mut self) {
        let mut state = self.queue.state.lock();
        state.remove(self.caller, self.id);
        self.queue.update_metric(&mut state);
    }
}

impl QueueState {
    fn has_free_slot(&self) -> bool {
        self.limits.requests.is_none_or(|limit| self.slots_in_use < limit)
    }

    fn push(&mut self, request: SlotRequest<'_>, slot_sender: oneshot::Sender<Slot>) -> u64 {
        let SlotRequest { caller, affinity, endpoints } = request;
        let id = self.next_id;
        self.next_id += 1;
        let waiters = self.by_caller.entry(caller).or_default();
        if waiters.is_empty() {
            self.round_robin.push_back(caller);
        }
        waiters.push_back(Waiter { id, affinity, endpoints: Arc::clone(endpoints), slot_sender });
        self.waiting += 1;
        id
    }

    /// The oldest request of the next caller, or with a limit for each endpoint, the next request that has an endpoint.
    /// Its caller then moves to the end of the round.
    fn pop(&mut self) -> Option<(oneshot::Sender<Slot>, Option<EndpointPermit>)> {
        let (turn, index, endpoint) = match self.limits.requests_per_endpoint {
            Some(limit) => self.find_with_endpoint(limit)?,
            None => (0, 0, None),
        };
        let caller = self.round_robin.remove(turn)?;
        let waiters = self.by_caller.get_mut(&caller)?;
        let waiter = waiters.remove(index)?;
        self.waiting -= 1;
        match waiters.is_empty() {
            true => drop(self.by_caller.remove(&caller)),
            false => self.round_robin.push_back(caller),
        }
        Some((waiter.slot_sender, endpoint))
    }

    /// The first request, in the order of service, whose endpoint is not full: its caller's and its own position.
    fn find_with_endpoint(&self, limit: usize) -> Option<(usize, usize, Option<EndpointPermit>)> {
        // One request without affinity shows for all others with the same chooser that their endpoints are full.
        let mut full: [Option<&Arc<dyn EndpointChooser>>; MAX_FULL_CHOOSERS] = [None; MAX_FULL_CHOOSERS];
        for (turn, caller) in self.round_robin.iter().enumerate() {
            for (index, waiter) in self.by_caller.get(caller)?.iter().enumerate() {
                let is_unbound = waiter.affinity.is_none();
                let is_full = || full.iter().map_while(|full| *full).any(|full| Arc::ptr_eq(full, &waiter.endpoints));
                if is_unbound && is_full() {
                    continue;
                }
                match waiter.endpoints.choose(waiter.affinity, limit) {
                    EndpointChoice::Endpoint(permit) => return Some((turn, index, Some(permit))),
                    EndpointChoice::NoEndpoint => return Some((turn, index, None)),
                    EndpointChoice::AllFull if is_unbound => {
                        if let Some(free) = full.iter_mut().find(|full| full.is_none()) {
                            *free = Some(&waiter.endpoints);
                        }
                    }
                    EndpointChoice::AllFull => {}
                }
            }
        }
        None
    }

    /// Evicts the newest request of the caller with the most, if `caller` has at least two fewer.
    fn evict_for(&mut self, caller: u64) -> Result<(), QueueError> {
        let own = self.by_caller.get(&caller).map_or(0, VecDeque::len);
        let longest = self.by_caller.values_mut().max_by_key(|waiters| waiters.len());
        let longest = longest.filter(|waiters| waiters.len() >= own + 2).ok_or(QueueError::Full)?;
        longest.pop_back();
        self.waiting -= 1;
        Ok(())
    }

    /// Does nothing if the request has been served or evicted.
    fn remove(&mut self, caller: u64, id: u64) {
        let Some(waiters) = self.by_caller.get_mut(&caller) else { return };
        let Ok(index) = waiters.binary_search_by_key(&id, |waiter| waiter.id) else { return };
        waiters.remove(index);
        self.waiting -= 1;
        if waiters.is_empty() {
            self.by_caller.remove(&caller);
            self.round_robin.retain(|other| *other != caller);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Context, Poll, Waker};
    use std::time::Duration;

    use super::*;
    use crate::admission::endpoint_load::tests::{FakeEndpoints, endpoints};

    const LONG: Duration = Duration::from_secs(3600);

    fn fair_queue(requests: usize, queue: usize, timeout: Duration) -> Arc<FairQueue> {
        let limits = QueueOptions { requests: Some(requests), requests_per_endpoint: None, queue, timeout };
        FairQueue::new(limits, Arc::default())
    }

    fn fair_queue_per_endpoint(limit: usize) -> Arc<FairQueue> {
        let limits = QueueOptions { requests: None, requests_per_endpoint: Some(limit), queue: 100, timeout: LONG };
        FairQueue::new(limits, Arc::default())
    }

    fn request(caller: u64, affinity: Option<u64>, endpoints: &Arc<dyn EndpointChooser>) -> SlotRequest<'_> {
        SlotRequest { caller, affinity, endpoints }
    }

    fn try_slot(queue: &Arc<FairQueue>) -> Option<Slot> {
        queue.try_slot(request(0, None, &endpoints(1)))
    }

    async fn wait(queue: &Arc<FairQueue>, caller: u64) -> Result<(), QueueError> {
        queue.wait_for_slot(request(caller, None, &endpoints(1))).await.map(drop)
    }

    type SlotFuture = Pin<Box<dyn Future<Output = Result<Slot, QueueError>>>>;

    /// A request in the queue.
    struct QueuedRequest {
        caller: u64,
        future: Option<SlotFuture>,
    }

    impl QueuedRequest {
        fn new(caller: u64, queue: &Arc<FairQueue>) -> QueuedRequest {
            QueuedRequest::with_endpoints(caller, None, queue, &endpoints(1))
        }

        fn with_endpoints(
            caller: u64,
            affinity: Option<u64>,
            queue: &Arc<FairQueue>,
            endpoints: &Arc<dyn EndpointChooser>,
        ) -> QueuedRequest {
            let (queue, endpoints) = (Arc::clone(queue), Arc::clone(endpoints));
            let future: SlotFuture =
                Box::pin(async move { queue.wait_for_slot(request(caller, affinity, &endpoints)).await });
            let mut request = QueuedRequest { caller, future: Some(future) };
            assert!(request.result().is_none(), "it has to wait");
            request
        }

        /// The result, once.
        fn result(&mut self) -> Option<Result<Slot, QueueError>> {
            let polled = self.future.as_mut()?.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            let Poll::Ready(result) = polled else { return None };
            self.future = None;
            Some(result)
        }
    }

    #[tokio::test]
    async fn callers_are_served_round_robin() {
        let queue = fair_queue(1, 100, LONG);
        let mut slot = try_slot(&queue).expect("the only slot is free");
        assert!(try_slot(&queue).is_none());
        let mut requests: Vec<_> = [1, 1, 1, 1, 1, 2, 2].map(|caller| QueuedRequest::new(caller, &queue)).into();
        let mut served_callers = Vec::new();
        while served_callers.len() < 7 {
            drop(slot);
            let served = requests.iter_mut().find_map(|request| Some((request.caller, request.result()?)));
            let (caller, result) = served.expect("a request is served");
            served_callers.push(caller);
            slot = result.expect("a slot");
        }
        assert_eq!(served_callers, [1, 2, 1, 2, 1, 1, 1]);
        drop(slot);
        assert!(try_slot(&queue).is_some(), "the slot is free again");
        let state = queue.state.lock();
        assert!(state.by_caller.is_empty() && state.round_robin.is_empty());
        assert_eq!((state.waiting, state.slots_in_use), (0, 0));
    }

    #[tokio::test]
    async fn a_full_queue_evicts_a_request_of_the_caller_with_the_most() {
        let queue = fair_queue(1, 3, LONG);
        let _served = try_slot(&queue).expect("the only slot is free");
        let mut first: Vec<_> = (0..3).map(|_| QueuedRequest::new(1, &queue)).collect();
        assert_eq!(wait(&queue, 1).await, Err(QueueError::Full), "of the same caller");
        let _other = QueuedRequest::new(2, &queue);
        assert!(first[0].result().is_none() && first[1].result().is_none());
        assert_eq!(first[2].result().map(|result| result.map(drop)), Some(Err(QueueError::Full)));
        assert_eq!(wait(&queue, 2).await, Err(QueueError::Full), "two and one is even enough");
    }

    #[tokio::test]
    async fn cancelled_and_timed_out_requests_free_their_entry_and_their_slot() {
        let queue = fair_queue(1, 10, Duration::from_millis(20));
        let served = try_slot(&queue).expect("the only slot is free");
        assert_eq!(wait(&queue, 1).await, Err(QueueError::Timeout));
        let cancelled = QueuedRequest::new(1, &queue);
        let mut cancelled_after_handover = QueuedRequest::new(2, &queue);
        drop(cancelled);
        // Its slot is delivered, and it is dropped before it is polled again.
        drop(served);
        assert!(cancelled_after_handover.future.take().is_some());
        assert!(try_slot(&queue).is_some(), "the slot came back");
        assert_eq!(queue.state.lock().waiting, 0);
    }

    #[tokio::test]
    async fn a_queue_of_length_zero_rejects_at_once() {
        let queue = fair_queue(2, 0, LONG);
        let _served = (try_slot(&queue), try_slot(&queue));
        assert_eq!(wait(&queue, 1).await, Err(QueueError::Full));
    }

    #[tokio::test]
    async fn each_endpoint_has_a_limit_and_requests_wait_while_all_are_full() {
        let queue = fair_queue_per_endpoint(1);
        let endpoints = endpoints(2);
        let slot = |affinity| queue.try_slot(request(1, affinity, &endpoints));
        let (first, second) = (slot(None).expect("free"), slot(None).expect("the other endpoint is free"));
        let loads = [&first, &second].map(|slot| Arc::clone(slot.endpoint().expect("it counts")));
        assert!(!Arc::ptr_eq(&loads[0], &loads[1]) && slot(None).is_none());
        let mut waiting = QueuedRequest::with_endpoints(1, None, &queue, &endpoints);
        let mut next = QueuedRequest::with_endpoints(2, None, &queue, &endpoints);
        drop(second);
        let third = waiting.result().expect("served").expect("a slot");
        assert!(Arc::ptr_eq(third.endpoint().expect("it counts"), &loads[1]), "the endpoint that became free");
        assert!(next.result().is_none());
        drop((first, third));
        assert!(next.result().expect("served").is_ok());
        assert_eq!((loads[0].in_use(), loads[1].in_use()), (0, 0));
        assert_eq!(queue.state.lock().slots_in_use, 0);
    }

    #[tokio::test]
    async fn a_request_that_belongs_to_a_full_endpoint_waits_and_delays_no_other_one() {
        let queue = fair_queue_per_endpoint(1);
        let endpoints = endpoints(2);
        let full = queue.try_slot(request(1, Some(0), &endpoints)).expect("free");
        let mut bound = QueuedRequest::with_endpoints(1, Some(0), &queue, &endpoints);
        let mut later = queue.wait_for_slot(request(1, None, &endpoints)).await.expect("the other endpoint is free");
        assert!(!later.move_to(full.endpoint().expect("it counts")), "it is full");
        let mut last = QueuedRequest::with_endpoints(1, None, &queue, &endpoints);
        drop(later);
        assert!(last.result().expect("served").is_ok() && bound.result().is_none());
        drop(full);
        assert!(bound.result().expect("served").is_ok());
    }

    #[derive(Debug)]
    struct CountedEndpoints(Arc<dyn EndpointChooser>, Arc<AtomicUsize>);

    impl EndpointChooser for CountedEndpoints {
        fn choose(&self, affinity: Option<u64>, limit: usize) -> EndpointChoice {
            self.1.fetch_add(1, Ordering::Relaxed);
            self.0.choose(affinity, limit)
        }
    }

    #[tokio::test]
    async fn each_chooser_is_asked_once_while_its_endpoints_are_full() {
        let queue = fair_queue_per_endpoint(1);
        let (endpoints, calls) = (endpoints(1), Arc::<AtomicUsize>::default());
        let choosers = [(); 3].map(|()| -> Arc<dyn EndpointChooser> {
            Arc::new(CountedEndpoints(Arc::clone(&endpoints), Arc::clone(&calls)))
        });
        let _served = queue.try_slot(request(0, None, &endpoints)).expect("free");
        let waiting = |caller: usize| {
            QueuedRequest::with_endpoints(caller as u64 % 7, None, &queue, &choosers[caller % choosers.len()])
        };
        let _waiting: Vec<_> = (0..60).map(waiting).collect();
        calls.store(0, Ordering::Relaxed);
        queue.serve_waiting();
        assert_eq!(calls.load(Ordering::Relaxed), choosers.len());
    }

    #[tokio::test]
    async fn a_request_waits_for_no_endpoint_that_is_unknown_and_counts_once_it_is_known() {
        let queue = fair_queue_per_endpoint(1);
        let mut slot = queue.try_slot(request(1, None, &endpoints(0))).expect("nothing to wait for");
        let load = Arc::<EndpointLoad>::default();
        assert!(slot.endpoint().is_none() && slot.move_to(&load));
        let one: Arc<dyn EndpointChooser> = Arc::new(FakeEndpoints(vec![Arc::clone(&load)]));
        let mut waiting = QueuedRequest::with_endpoints(1, None, &queue, &one);
        assert!(slot.move_to(&Arc::default()));
        assert!(waiting.result().expect("the slot was moved").is_ok());
    }
}
