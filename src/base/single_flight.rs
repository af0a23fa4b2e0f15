//! Deduplicates concurrent operations: the first caller performs the operation, later callers wait for its result.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::Hash;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::oneshot;

type Waiting<K, V> = Arc<Mutex<HashMap<K, Vec<oneshot::Sender<V>>>>>;

/// The operations in flight, by key.
pub struct SingleFlight<K, V> {
    waiting: Waiting<K, V>,
    /// The result of an operation that is dropped without one.
    lost: V,
}

/// Held by the caller that performs the operation. On drop, all waiting callers receive the result, and the next caller
/// starts a new operation.
pub struct Leader<K: Eq + Hash, V: Clone> {
    waiting: Waiting<K, V>,
    key: K,
    result: V,
}

impl<K: Eq + Hash + Copy, V: Clone> SingleFlight<K, V> {
    /// `lost` is the result of an operation that is dropped, for example by a panic.
    pub fn new(lost: V) -> SingleFlight<K, V> {
        SingleFlight { waiting: Arc::default(), lost }
    }

    /// Registers `reply` for the result of the operation with this key. `Some` if the operation is not in flight: then
    /// the caller performs it.
    pub fn join(&self, key: K, reply: oneshot::Sender<V>) -> Option<Leader<K, V>> {
        match self.waiting.lock().entry(key) {
            Entry::Occupied(mut waiting) => {
                waiting.get_mut().push(reply);
                None
            }
            Entry::Vacant(vacant) => {
                vacant.insert(vec![reply]);
                Some(Leader { waiting: Arc::clone(&self.waiting), key, result: self.lost.clone() })
            }
        }
    }
}

impl<K: Eq + Hash, V: Clone> Leader<K, V> {
    /// Sends the result to all waiting callers.
    pub fn finish(mut self, result: V) {
        self.result = result;
    }
}

impl<K: Eq + Hash, V: Clone> Drop for Leader<K, V> {
    fn drop(&mut self) {
        let waiting = self.waiting.lock().remove(&self.key);
        for reply in waiting.into_iter().flatten() {
            // The receiver is dropped if its client has disconnected.
            let _ = reply.send(self.result.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_caller_leads_and_a_lost_operation_releases_all() {
        let flights = SingleFlight::new("lost");
        let (replies, mut results): (Vec<_>, Vec<_>) = (0..3).map(|_| oneshot::channel()).unzip();
        let mut joined = replies.into_iter().map(|reply| flights.join(1, reply));
        let leader = joined.next().flatten().expect("it is the first");
        assert!(joined.all(|leader| leader.is_none()));
        leader.finish("done");
        assert!(results.iter_mut().all(|result| result.try_recv() == Ok("done")));

        let (reply, mut result) = oneshot::channel();
        drop(flights.join(1, reply).expect("it is the first again"));
        assert_eq!(result.try_recv(), Ok("lost"));
    }
}
