//! Whose turn it is, where the backend takes only so many requests at once. Those beyond wait, and callers take turns: who
//! sends two hundred at once holds up nobody but himself.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::base::identity_hasher::Prehashed;
use crate::config::TurnLimits;
use crate::observability::metrics::Metrics;

/// Who is served, and who waits.
#[derive(Debug)]
pub struct Turns {
    limits: TurnLimits,
    metrics: Arc<Metrics>,
    queue: Mutex<Queue>,
}

/// A request may go to the backend until this is dropped.
#[derive(Debug)]
pub struct Turn(Option<Arc<Turns>>);

/// Why a request has no turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoTurn {
    /// As many wait as may.
    Full,
    /// It waited for too long.
    TooLate,
}

#[derive(Debug, Default)]
struct Queue {
    /// Requests that have their turn.
    served: usize,
    waiting: usize,
    /// Those of each caller, in the order in which they came.
    lines: HashMap<u64, VecDeque<Waiting>, Prehashed>,
    /// Callers that wait, in the order in which they are served.
    round: VecDeque<u64>,
    next_number: u64,
}

#[derive(Debug)]
struct Waiting {
    number: u64,
    call: oneshot::Sender<Turn>,
}

impl Turns {
    /// Nobody is served.
    pub fn new(limits: TurnLimits, metrics: Arc<Metrics>) -> Arc<Turns> {
        Arc::new(Turns { limits, metrics, queue: Mutex::default() })
    }

    /// A turn at once, if nobody waits and there is room.
    pub fn at_once(self: &Arc<Turns>) -> Option<Turn> {
        let mut queue = self.queue.lock();
        self.begin(&mut queue)
    }

    /// Nobody waits while there is room.
    fn begin(self: &Arc<Turns>, queue: &mut Queue) -> Option<Turn> {
        let is_free = queue.served < self.limits.requests;
        is_free.then(|| {
            queue.served += 1;
            Turn(Some(Arc::clone(self)))
        })
    }

    /// Waits for the caller's turn.
    pub async fn wait(self: &Arc<Turns>, caller: u64) -> Result<Turn, NoTurn> {
        let (place, called) = match self.line_up(caller)? {
            Lined::Free(turn) => return Ok(turn),
            Lined::Up(place, called) => (place, called),
        };
        let outcome = match timeout(self.limits.patience, called).await {
            Ok(called) => called.map_err(|_| NoTurn::Full),
            Err(_) => Err(NoTurn::TooLate),
        };
        drop(place);
        outcome
    }

    /// At the end of the caller's line. Where as many wait as may, the longest line gives way to a shorter one.
    fn line_up(self: &Arc<Turns>, caller: u64) -> Result<Lined<'_>, NoTurn> {
        let mut queue = self.queue.lock();
        // Between the look before and now there may have come room.
        if let Some(turn) = self.begin(&mut queue) {
            return Ok(Lined::Free(turn));
        }
        if queue.waiting >= self.limits.queue {
            queue.shorten_for(caller).ok_or(NoTurn::Full)?;
        }
        let (call, called) = oneshot::channel();
        let number = queue.add(caller, call);
        self.tell(&queue);
        Ok(Lined::Up(Place { turns: self, caller, number }, called))
    }

    /// Gives a turn that has ended to who is next.
    fn pass_on(self: &Arc<Turns>) {
        loop {
            let call = {
                let mut queue = self.queue.lock();
                let Some(call) = queue.pop() else {
                    queue.served -= 1;
                    return;
                };
                self.tell(&queue);
                call
            };
            match call.send(Turn(Some(Arc::clone(self)))) {
                Ok(()) => return,
                // It has just gone away: the turn is the next one's.
                Err(mut unheard) => unheard.0 = None,
            }
        }
    }

    fn tell(&self, queue: &Queue) {
        self.metrics.requests_queued.set(i64::try_from(queue.waiting).unwrap_or(i64::MAX));
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(turns) = self.0.take() {
            turns.pass_on();
        }
    }
}

enum Lined<'a> {
    Free(Turn),
    Up(Place<'a>, oneshot::Receiver<Turn>),
}

/// A place in the queue, given up when dropped.
struct Place<'a> {
    turns: &'a Turns,
    caller: u64,
    number: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut queue = self.turns.queue.lock();
        queue.remove(self.caller, self.number);
        self.turns.tell(&queue);
    }
}

impl Queue {
    fn add(&mut self, caller: u64, call: oneshot::Sender<Turn>) -> u64 {
        let number = self.next_number;
        self.next_number += 1;
        let line = self.lines.entry(caller).or_default();
        if line.is_empty() {
            self.round.push_back(caller);
        }
        line.push_back(Waiting { number, call });
        self.waiting += 1;
        number
    }

    /// The first one of the caller whose turn it is; the caller's others wait until the round comes by again.
    fn pop(&mut self) -> Option<oneshot::Sender<Turn>> {
        let caller = self.round.pop_front()?;
        let line = self.lines.get_mut(&caller)?;
        let first = line.pop_front()?;
        self.waiting -= 1;
        match line.is_empty() {
            true => drop(self.lines.remove(&caller)),
            false => self.round.push_back(caller),
        }
        Some(first.call)
    }

    /// Sends the last one of the longest line away, if the caller's is shorter by two at least: it hears of it by its
    /// sender's end.
    fn shorten_for(&mut self, caller: u64) -> Option<()> {
        let own = self.lines.get(&caller).map_or(0, VecDeque::len);
        let longest = self.lines.values_mut().max_by_key(|line| line.len())?;
        if longest.len() < own + 2 {
            return None;
        }
        longest.pop_back()?;
        self.waiting -= 1;
        Some(())
    }

    /// Nothing, if it is not there any more.
    fn remove(&mut self, caller: u64, number: u64) {
        let Some(line) = self.lines.get_mut(&caller) else { return };
        let Ok(at) = line.binary_search_by_key(&number, |waiting| waiting.number) else { return };
        line.remove(at);
        self.waiting -= 1;
        if line.is_empty() {
            self.lines.remove(&caller);
            self.round.retain(|other| *other != caller);
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

    fn turns(requests: usize, queue: usize, patience: Duration) -> Arc<Turns> {
        Turns::new(TurnLimits { requests, queue, patience }, Arc::default())
    }

    type Waited = Pin<Box<dyn Future<Output = Result<Turn, NoTurn>>>>;

    /// Somebody who waits.
    struct Asking {
        caller: u64,
        waiting: Option<Waited>,
    }

    impl Asking {
        fn of(caller: u64, turns: &Arc<Turns>) -> Asking {
            let turns = Arc::clone(turns);
            let mut asking =
                Asking { caller, waiting: Some(Box::pin(async move { turns.wait(caller).await })) };
            assert!(asking.outcome().is_none(), "it has to wait");
            asking
        }

        /// What became of it, once.
        fn outcome(&mut self) -> Option<Result<Turn, NoTurn>> {
            let polled = self.waiting.as_mut()?.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            let Poll::Ready(outcome) = polled else { return None };
            self.waiting = None;
            Some(outcome)
        }
    }

    #[tokio::test]
    async fn callers_take_turns_whoever_has_asked_how_often() {
        let turns = turns(1, 100, LONG);
        let mut turn = turns.at_once().expect("nobody is there");
        assert!(turns.at_once().is_none());
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
        assert!(turns.at_once().is_some(), "all is as it was");
        let queue = turns.queue.lock();
        assert!(queue.lines.is_empty() && queue.round.is_empty() && queue.waiting == 0 && queue.served == 0);
    }

    #[tokio::test]
    async fn the_longest_line_gives_way_where_no_more_may_wait() {
        let turns = turns(1, 3, LONG);
        let _served = turns.at_once().expect("nobody is there");
        let mut first: Vec<_> = (0..3).map(|_| Asking::of(1, &turns)).collect();
        assert_eq!(turns.wait(1).await.map(drop), Err(NoTurn::Full), "of the same caller");
        let _other = Asking::of(2, &turns);
        assert!(first[0].outcome().is_none() && first[1].outcome().is_none());
        assert_eq!(first[2].outcome().map(|outcome| outcome.map(drop)), Some(Err(NoTurn::Full)));
        assert_eq!(turns.wait(2).await.map(drop), Err(NoTurn::Full), "lines are as even as they can be");
    }

    #[tokio::test]
    async fn who_leaves_or_waits_for_too_long_is_in_nobodys_way() {
        let turns = turns(1, 10, Duration::from_millis(20));
        let served = turns.at_once().expect("nobody is there");
        assert_eq!(turns.wait(1).await.map(drop), Err(NoTurn::TooLate));
        let left = Asking::of(1, &turns);
        let mut heard_too_late = Asking::of(2, &turns);
        drop(left);
        // Its turn comes, and it does not live to hear of it.
        drop(served);
        assert!(heard_too_late.waiting.take().is_some());
        assert!(turns.at_once().is_some(), "the turn came back");
        assert_eq!(turns.queue.lock().waiting, 0);
    }

    #[tokio::test]
    async fn nobody_waits_where_that_is_off() {
        let turns = turns(2, 0, LONG);
        let _served = (turns.at_once(), turns.at_once());
        assert_eq!(turns.wait(1).await.map(drop), Err(NoTurn::Full));
    }
}
