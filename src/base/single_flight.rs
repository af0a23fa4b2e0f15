//! One operation for all callers that ask for the same thing at the same time.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::Hash;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::oneshot;

type Waiting<K, V> = Arc<Mutex<HashMap<K, Vec<oneshot::Sender<V>>>>>;

/// Operations in flight by key.
pub struct SingleFlight<K, V> {
    waiting: Waiting<K, V>,
    /// Sent if an operation is dropped without a result.
    lost: V,
}

/// The duty to perform an operation. Dropped, it releases everybody who waits, and the next caller starts a new one.
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

    /// Has `reply` wait for the operation with this key. `Some` if it is not in flight: the caller performs it.
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
    /// Sends the result to all who wait.
    pub fn finish(mut self, result: V) {
        self.result = result;
    }
}

impl<K: Eq + Hash, V: Clone> Drop for Leader<K, V> {
    fn drop(&mut self) {
        let waiting = self.waiting.lock().remove(&self.key);
        for reply in waiting.into_iter().flatten() {
            // A caller that has gone away needs no result.
            let _ = reply.send(self.result.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_caller_leads_and_a_lost_operation_releases_everybody() {
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
