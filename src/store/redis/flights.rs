//! One question for all who ask the same at once.

use std::cell::RefCell;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::Hash;
use std::rc::Rc;

use crate::store::Unavailable;
use crate::store::driver::Reply;

/// Who waits for what.
pub struct Flights<K, T>(Rc<RefCell<HashMap<K, Vec<Reply<T>>>>>);

/// A question on its way. Whatever becomes of it, those who wait are answered and the next one may ask again.
pub struct Flight<K: Eq + Hash, T: Clone> {
    waiting: Rc<RefCell<HashMap<K, Vec<Reply<T>>>>>,
    key: K,
    answer: Result<T, Unavailable>,
}

impl<K: Eq + Hash + Copy, T: Clone> Flights<K, T> {
    /// Nobody waits.
    pub fn new() -> Flights<K, T> {
        Flights(Rc::default())
    }

    /// Has `reply` wait for the answer about `key`. The first one to wait is to see to it that there is one.
    pub fn join(&self, key: K, reply: Reply<T>) -> Option<Flight<K, T>> {
        match self.0.borrow_mut().entry(key) {
            Entry::Occupied(mut waiting) => {
                waiting.get_mut().push(reply);
                None
            }
            Entry::Vacant(place) => {
                place.insert(vec![reply]);
                Some(Flight { waiting: Rc::clone(&self.0), key, answer: Err(Unavailable) })
            }
        }
    }
}

impl<K: Eq + Hash, T: Clone> Flight<K, T> {
    /// Answers all who wait.
    pub fn land(mut self, answer: Result<T, Unavailable>) {
        self.answer = answer;
    }
}

impl<K: Eq + Hash, T: Clone> Drop for Flight<K, T> {
    fn drop(&mut self) {
        let waiting = self.waiting.borrow_mut().remove(&self.key);
        for reply in waiting.into_iter().flatten() {
            // Who does not wait any more has been answered otherwise.
            let _ = reply.send(self.answer.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    #[test]
    fn the_first_one_asks_for_all_and_a_flight_that_is_lost_leaves_nobody_waiting() {
        let flights = Flights::new();
        let (replies, mut answers): (Vec<_>, Vec<_>) = (0..3).map(|_| oneshot::channel()).unzip();
        let mut flying = replies.into_iter().map(|reply| flights.join(1, reply));
        let first = flying.next().flatten().expect("it is the first");
        assert!(flying.all(|flight| flight.is_none()));
        first.land(Ok("there"));
        assert!(answers.iter_mut().all(|answer| answer.try_recv() == Ok(Ok("there"))));

        let (reply, mut answer) = oneshot::channel();
        drop(flights.join(1, reply).expect("it is the first again"));
        assert_eq!(answer.try_recv(), Ok(Err(Unavailable)));
    }
}
