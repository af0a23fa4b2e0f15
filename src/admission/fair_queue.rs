//! Limits the number of concurrent requests to the backends, and queues the others fairly.
//!
//! Callers are served round robin, so a caller that sends two hundred requests at once delays only its own. The queue
//! knows callers as hashes, and nothing else about a request.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::base::identity_hasher::IdentityHasher;
use crate::config::QueueOptions;
use crate::observability::metrics::Metrics;

/// A fixed number of slots, and the requests that wait for one.
#[derive(Debug)]
pub struct FairQueue {
    limits: QueueOptions,
    metrics: Arc<Metrics>,
    state: Mutex<QueueState>,
}

/// The right to have a request at a backend. Dropping it passes the slot on to the next waiting request.
///
/// `None` only inside [`FairQueue::release_slot`], for a handover that failed.
#[derive(Debug)]
pub struct Slot(Option<Arc<FairQueue>>);

/// Why a request received no slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueError {
    /// The queue is full, or the request was evicted from it in favor of a caller with fewer waiting requests.
    Full,
    /// The request waited for the whole queue timeout.
    Timeout,
}

#[derive(Debug, Default)]
struct QueueState {
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
    /// Delivers the slot. Dropping it means [`QueueError::Full`].
    slot_sender: oneshot::Sender<Slot>,
}

impl FairQueue {
    /// All slots are free.
    pub fn new(limits: QueueOptions, metrics: Arc<Metrics>) -> Arc<FairQueue> {
        Arc::new(FairQueue { limits, metrics, state: Mutex::default() })
    }

    /// A free slot, or `None`. Requests wait only while all slots are in use, so this never overtakes one.
    pub fn try_slot(self: &Arc<FairQueue>) -> Option<Slot> {
        self.try_slot_locked(&mut self.state.lock())
    }

    fn try_slot_locked(self: &Arc<FairQueue>, state: &mut QueueState) -> Option<Slot> {
        let is_free = state.slots_in_use < self.limits.requests;
        is_free.then(|| {
            state.slots_in_use += 1;
            Slot(Some(Arc::clone(self)))
        })
    }

    /// Waits for a slot, at most for the queue timeout. `caller` is the hash of an identity.
    pub async fn wait_for_slot(self: &Arc<FairQueue>, caller: u64) -> Result<Slot, QueueError> {
        let (entry, slot) = match self.enqueue(caller)? {
            Enqueued::Served(slot) => return Ok(slot),
            Enqueued::Queued(entry, slot) => (entry, slot),
        };
        let result = match timeout(self.limits.timeout, slot).await {
            Ok(slot) => slot.map_err(|_| QueueError::Full),
            Err(_) => Err(QueueError::Timeout),
        };
        drop(entry);
        result
    }

    /// Adds a request to its caller's queue. If the queue is full, it may evict a request of the caller with the most.
    fn enqueue(self: &Arc<FairQueue>, caller: u64) -> Result<Enqueued<'_>, QueueError> {
        let mut state = self.state.lock();
        // A slot may have become free since the caller tried.
        if let Some(slot) = self.try_slot_locked(&mut state) {
            return Ok(Enqueued::Served(slot));
        }
        if state.waiting >= self.limits.queue {
            state.evict_for(caller)?;
        }
        let (slot_sender, slot) = oneshot::channel();
        let id = state.push(caller, slot_sender);
        self.update_metric(&mut state);
        Ok(Enqueued::Queued(QueueEntry { queue: self, caller, id }, slot))
    }

    /// Hands a slot that was given back to the next request, or frees it.
    fn release_slot(self: &Arc<FairQueue>) {
        loop {
            let slot_sender = {
                let mut state = self.state.lock();
                let Some(slot_sender) = state.pop() else {
                    state.slots_in_use -= 1;
                    return;
                };
                self.update_metric(&mut state);
                slot_sender
            };
            match slot_sender.send(Slot(Some(Arc::clone(self)))) {
                Ok(()) => return,
                // The request was cancelled in the meantime: this loop passes the slot on, not its drop.
                Err(mut unused) => unused.0 = None,
            }
        }
    }

    /// The metric is the sum over the queues of all upstreams.
    fn update_metric(&self, state: &mut QueueState) {
        let waiting = i64::try_from(state.waiting).unwrap_or(i64::MAX);
        let before = std::mem::replace(&mut state.reported, waiting);
        self.metrics.requests_queued.inc_by(waiting - before);
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(queue) = self.0.take() {
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
    fn push(&mut self, caller: u64, slot_sender: oneshot::Sender<Slot>) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        let waiters = self.by_caller.entry(caller).or_default();
        if waiters.is_empty() {
            self.round_robin.push_back(caller);
        }
        waiters.push_back(Waiter { id, slot_sender });
        self.waiting += 1;
        id
    }

    /// The oldest request of the next caller. That caller then moves to the end of the round.
    fn pop(&mut self) -> Option<oneshot::Sender<Slot>> {
        let caller = self.round_robin.pop_front()?;
        let waiters = self.by_caller.get_mut(&caller)?;
        let first = waiters.pop_front()?;
        self.waiting -= 1;
        match waiters.is_empty() {
            true => drop(self.by_caller.remove(&caller)),
            false => self.round_robin.push_back(caller),
        }
        Some(first.slot_sender)
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
    use std::task::{Context, Poll, Waker};
    use std::time::Duration;

    use super::*;

    const LONG: Duration = Duration::from_secs(3600);

    fn fair_queue(requests: usize, queue: usize, timeout: Duration) -> Arc<FairQueue> {
        FairQueue::new(QueueOptions { requests, queue, timeout }, Arc::default())
    }

    type SlotFuture = Pin<Box<dyn Future<Output = Result<Slot, QueueError>>>>;

    /// A request in the queue.
    struct QueuedRequest {
        caller: u64,
        future: Option<SlotFuture>,
    }

    impl QueuedRequest {
        fn new(caller: u64, queue: &Arc<FairQueue>) -> QueuedRequest {
            let queue = Arc::clone(queue);
            let future: SlotFuture = Box::pin(async move { queue.wait_for_slot(caller).await });
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
        let mut slot = queue.try_slot().expect("the only slot is free");
        assert!(queue.try_slot().is_none());
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
        assert!(queue.try_slot().is_some(), "the slot is free again");
        let state = queue.state.lock();
        assert!(state.by_caller.is_empty() && state.round_robin.is_empty());
        assert_eq!((state.waiting, state.slots_in_use), (0, 0));
    }

    #[tokio::test]
    async fn a_full_queue_evicts_a_request_of_the_caller_with_the_most() {
        let queue = fair_queue(1, 3, LONG);
        let _served = queue.try_slot().expect("the only slot is free");
        let mut first: Vec<_> = (0..3).map(|_| QueuedRequest::new(1, &queue)).collect();
        assert_eq!(queue.wait_for_slot(1).await.map(drop), Err(QueueError::Full), "of the same caller");
        let _other = QueuedRequest::new(2, &queue);
        assert!(first[0].result().is_none() && first[1].result().is_none());
        assert_eq!(first[2].result().map(|result| result.map(drop)), Some(Err(QueueError::Full)));
        assert_eq!(queue.wait_for_slot(2).await.map(drop), Err(QueueError::Full), "two and one is even enough");
    }

    #[tokio::test]
    async fn cancelled_and_timed_out_requests_free_their_entry_and_their_slot() {
        let queue = fair_queue(1, 10, Duration::from_millis(20));
        let served = queue.try_slot().expect("the only slot is free");
        assert_eq!(queue.wait_for_slot(1).await.map(drop), Err(QueueError::Timeout));
        let cancelled = QueuedRequest::new(1, &queue);
        let mut cancelled_after_handover = QueuedRequest::new(2, &queue);
        drop(cancelled);
        // Its slot is delivered, and it is dropped before it is polled again.
        drop(served);
        assert!(cancelled_after_handover.future.take().is_some());
        assert!(queue.try_slot().is_some(), "the slot came back");
        assert_eq!(queue.state.lock().waiting, 0);
    }

    #[tokio::test]
    async fn a_queue_of_length_zero_rejects_at_once() {
        let queue = fair_queue(2, 0, LONG);
        let _served = (queue.try_slot(), queue.try_slot());
        assert_eq!(queue.wait_for_slot(1).await.map(drop), Err(QueueError::Full));
    }
}
