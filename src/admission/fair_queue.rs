//! Whose turn it is, where the backend takes only so many requests at once. Those beyond wait, and callers take turns: who
//! sends two hundred at once holds up nobody but himself.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::base::identity_hasher::IdentityHasher;
use crate::config::QueueOptions;
use crate::observability::metrics::Metrics;

/// Who is served, and who waits.
#[derive(Debug)]
pub struct FairQueue {
    limits: QueueOptions,
    metrics: Arc<Metrics>,
    queue: Mutex<QueueState>,
}

/// A request may go to the backend until this is dropped.
#[derive(Debug)]
pub struct Slot(Option<Arc<FairQueue>>);

/// Why a request has no turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueError {
    /// As many wait as may.
    Full,
    /// It waited for too long.
    Timeout,
}

#[derive(Debug, Default)]
struct QueueState {
    /// Requests that have their turn.
    slots_in_use: usize,
    waiting: usize,
    /// Those of each caller, in the order in which they came.
    by_caller: HashMap<u64, VecDeque<Waiter>, IdentityHasher>,
    /// Callers that wait, in the order in which they are served.
    round_robin: VecDeque<u64>,
    next_id: u64,
}

#[derive(Debug)]
struct Waiter {
    id: u64,
    slot_sender: oneshot::Sender<Slot>,
}

impl FairQueue {
    /// Nobody is served.
    pub fn new(limits: QueueOptions, metrics: Arc<Metrics>) -> Arc<FairQueue> {
        Arc::new(FairQueue { limits, metrics, queue: Mutex::default() })
    }

    /// A turn at once, if nobody waits and there is room.
    pub fn try_slot(self: &Arc<FairQueue>) -> Option<Slot> {
        let mut queue = self.queue.lock();
        self.try_slot_locked(&mut queue)
    }

    /// Nobody waits while there is room.
    fn try_slot_locked(self: &Arc<FairQueue>, queue: &mut QueueState) -> Option<Slot> {
        let is_free = queue.slots_in_use < self.limits.requests;
        is_free.then(|| {
            queue.slots_in_use += 1;
            Slot(Some(Arc::clone(self)))
        })
    }

    /// Waits for the caller's turn.
    pub async fn wait_for_slot(self: &Arc<FairQueue>, caller: u64) -> Result<Slot, QueueError> {
        let (place, called) = match self.enqueue(caller)? {
            Enqueued::Served(turn) => return Ok(turn),
            Enqueued::Queued(place, called) => (place, called),
        };
        let outcome = match timeout(self.limits.timeout, called).await {
            Ok(called) => called.map_err(|_| QueueError::Full),
            Err(_) => Err(QueueError::Timeout),
        };
        drop(place);
        outcome
    }

    /// At the end of the caller's line. Where as many wait as may, the longest line gives way to a shorter one.
    fn enqueue(self: &Arc<FairQueue>, caller: u64) -> Result<Enqueued<'_>, QueueError> {
        let mut queue = self.queue.lock();
        // Between the look before and now there may have come room.
        if let Some(turn) = self.try_slot_locked(&mut queue) {
            return Ok(Enqueued::Served(turn));
        }
        if queue.waiting >= self.limits.queue {
            queue.evict_for(caller).ok_or(QueueError::Full)?;
        }
        let (call, called) = oneshot::channel();
        let number = queue.push(caller, call);
        self.update_metric(&queue);
        Ok(Enqueued::Queued(QueueEntry { turns: self, caller, id: number }, called))
    }

    /// Gives a turn that has ended to who is next.
    fn release_slot(self: &Arc<FairQueue>) {
        loop {
            let call = {
                let mut queue = self.queue.lock();
                let Some(call) = queue.pop() else {
                    queue.slots_in_use -= 1;
                    return;
                };
                self.update_metric(&queue);
                call
            };
            match call.send(Slot(Some(Arc::clone(self)))) {
                Ok(()) => return,
                // It has just gone away: the turn is the next one's.
                Err(mut unheard) => unheard.0 = None,
            }
        }
    }

    fn update_metric(&self, queue: &QueueState) {
        self.metrics.requests_queued.set(i64::try_from(queue.waiting).unwrap_or(i64::MAX));
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(turns) = self.0.take() {
            turns.release_slot();
        }
    }
}

enum Enqueued<'a> {
    Served(Slot),
    Queued(QueueEntry<'a>, oneshot::Receiver<Slot>),
}

/// A place in the queue, given up when dropped.
struct QueueEntry<'a> {
    turns: &'a FairQueue,
    caller: u64,
    id: u64,
}

impl Drop for QueueEntry<'_> {
    fn drop(&mut self) {
        let mut queue = self.turns.queue.lock();
        queue.remove(self.caller, self.id);
        self.turns.update_metric(&queue);
    }
}

impl QueueState {
    fn push(&mut self, caller: u64, call: oneshot::Sender<Slot>) -> u64 {
        let number = self.next_id;
        self.next_id += 1;
        let line = self.by_caller.entry(caller).or_default();
        if line.is_empty() {
            self.round_robin.push_back(caller);
        }
        line.push_back(Waiter { id: number, slot_sender: call });
        self.waiting += 1;
        number
    }

    /// The first one of the caller whose turn it is; the caller's others wait until the round comes by again.
    fn pop(&mut self) -> Option<oneshot::Sender<Slot>> {
        let caller = self.round_robin.pop_front()?;
        let line = self.by_caller.get_mut(&caller)?;
        let first = line.pop_front()?;
        self.waiting -= 1;
        match line.is_empty() {
            true => drop(self.by_caller.remove(&caller)),
            false => self.round_robin.push_back(caller),
        }
        Some(first.slot_sender)
    }

    /// Sends the last one of the longest line away, if the caller's is shorter by two at least: it hears of it by its
    /// sender's end.
    fn evict_for(&mut self, caller: u64) -> Option<()> {
        let own = self.by_caller.get(&caller).map_or(0, VecDeque::len);
        let longest = self.by_caller.values_mut().max_by_key(|line| line.len())?;
        if longest.len() < own + 2 {
            return None;
        }
        longest.pop_back()?;
        self.waiting -= 1;
        Some(())
    }

    /// Nothing, if it is not there any more.
    fn remove(&mut self, caller: u64, number: u64) {
        let Some(line) = self.by_caller.get_mut(&caller) else { return };
        let Ok(at) = line.binary_search_by_key(&number, |waiting| waiting.id) else { return };
        line.remove(at);
        self.waiting -= 1;
        if line.is_empty() {
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

    fn turns(requests: usize, queue: usize, patience: Duration) -> Arc<FairQueue> {
        FairQueue::new(QueueOptions { requests, queue, timeout: patience }, Arc::default())
    }

    type Waited = Pin<Box<dyn Future<Output = Result<Slot, QueueError>>>>;

    /// Somebody who waits.
    struct Asking {
        caller: u64,
        waiting: Option<Waited>,
    }

    impl Asking {
        fn of(caller: u64, turns: &Arc<FairQueue>) -> Asking {
            let turns = Arc::clone(turns);
            let mut asking =
                Asking { caller, waiting: Some(Box::pin(async move { turns.wait_for_slot(caller).await })) };
            assert!(asking.outcome().is_none(), "it has to wait");
            asking
        }

        /// What became of it, once.
        fn outcome(&mut self) -> Option<Result<Slot, QueueError>> {
            let polled = self.waiting.as_mut()?.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            let Poll::Ready(outcome) = polled else { return None };
            self.waiting = None;
            Some(outcome)
        }
    }

    #[tokio::test]
    async fn callers_take_turns_whoever_has_asked_how_often() {
        let turns = turns(1, 100, LONG);
        let mut turn = turns.try_slot().expect("nobody is there");
        assert!(turns.try_slot().is_none());
        let mut all: Vec<_> = [1, 1, 1, 1, 1, 2, 2].map(|caller| Asking::of(caller, &turns)).into();
        let mut order = Vec::new();
        while order.len() < 7 {
            drop(turn);
            let served = all.iter_mut().find_map(|asking| Some((asking.caller, asking.outcome()?)));
            let (caller, outcome) = served.expect("somebody is next");
            order.push(caller);
            turn = outcome.expect("a turn");
        }
        assert_eq!(order, [1, 2, 1, 2, 1, 1, 1]);
        drop(turn);
        assert!(turns.try_slot().is_some(), "all is as it was");
        let queue = turns.queue.lock();
        assert!(
            queue.by_caller.is_empty()
                && queue.round_robin.is_empty()
                && queue.waiting == 0
                && queue.slots_in_use == 0
        );
    }

    #[tokio::test]
    async fn the_longest_line_gives_way_where_no_more_may_wait() {
        let turns = turns(1, 3, LONG);
        let _served = turns.try_slot().expect("nobody is there");
        let mut first: Vec<_> = (0..3).map(|_| Asking::of(1, &turns)).collect();
        assert_eq!(turns.wait_for_slot(1).await.map(drop), Err(QueueError::Full), "of the same caller");
        let _other = Asking::of(2, &turns);
        assert!(first[0].outcome().is_none() && first[1].outcome().is_none());
        assert_eq!(first[2].outcome().map(|outcome| outcome.map(drop)), Some(Err(QueueError::Full)));
        assert_eq!(
            turns.wait_for_slot(2).await.map(drop),
            Err(QueueError::Full),
            "lines are as even as they can be"
        );
    }

    #[tokio::test]
    async fn who_leaves_or_waits_for_too_long_is_in_nobodys_way() {
        let turns = turns(1, 10, Duration::from_millis(20));
        let served = turns.try_slot().expect("nobody is there");
        assert_eq!(turns.wait_for_slot(1).await.map(drop), Err(QueueError::Timeout));
        let left = Asking::of(1, &turns);
        let mut heard_too_late = Asking::of(2, &turns);
        drop(left);
        // Its turn comes, and it does not live to hear of it.
        drop(served);
        assert!(heard_too_late.waiting.take().is_some());
        assert!(turns.try_slot().is_some(), "the turn came back");
        assert_eq!(turns.queue.lock().waiting, 0);
    }

    #[tokio::test]
    async fn nobody_waits_where_that_is_off() {
        let turns = turns(2, 0, LONG);
        let _served = (turns.try_slot(), turns.try_slot());
        assert_eq!(turns.wait_for_slot(1).await.map(drop), Err(QueueError::Full));
    }
}
