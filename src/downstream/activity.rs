//! What a connection is doing, and what it is told to do.
//!
//! It notes since when it waits, and for what; the worker's [`super::reaper`] looks at the notes of all of them.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::Waker;
use std::time::{Duration, Instant};

use crate::base::clock;
use crate::config::Timeouts;
use crate::observability::metrics::Cause;

/// What the reaper wants of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// End after the requests in flight.
    Close,
    /// End at once.
    Cut,
}

/// What a connection notes about itself.
pub struct Activity {
    begun: Instant,
    in_flight: Cell<u32>,
    /// One for each request in flight, found again by its number. HTTP/1.1 has one at a time.
    deliveries: RefCell<Vec<Delivery>>,
    requests: Cell<u64>,
    idle_since: Cell<Instant>,
    rests: Cell<bool>,
    /// When a part of a request's head had come, until the rest did. Not noted for HTTP/2, whose frames need not belong
    /// to a request.
    head_since: Cell<Option<Instant>>,
    is_multiplexed: Cell<bool>,
    write_blocked_since: Cell<Option<Instant>>,
    lingers: Cell<bool>,
    leaving_since: Cell<Option<Instant>>,
    closing_since: Cell<Option<Instant>>,
    /// When the client last took or sent something after it was asked to close.
    moved: Cell<Option<Instant>>,
    order: Cell<Option<Order>>,
    waker: RefCell<Option<Waker>>,
}

/// How far an answer's body is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Delivery {
    /// No request has this number now.
    Free,
    /// The client waits for the backend.
    Awaited,
    /// The client was given a part then, and has not made room for the next one.
    Offered(Instant),
}

/// A connection that is asked to leave before its first request came gets so long to send it: the client has just
/// connected and counts on an answer.
const FIRST_REQUEST_GRACE: Duration = Duration::from_secs(2);

/// A connection without a request that was asked to close gets so long to do it. HTTP/2 asks the client first, and a
/// silent client would keep it for ever.
const CLOSE_GRACE: Duration = Duration::from_secs(2);

/// And so long, where it still takes or sends something.
const LONGEST_ENDING: Duration = Duration::from_secs(15);

/// Requests that follow each other sooner are served without the connection getting its memory anew.
const RESTS_AFTER: Duration = Duration::from_millis(500);

impl Activity {
    /// One that no reaper looks at.
    #[cfg(test)]
    pub fn unwatched() -> Activity {
        Activity::new(Instant::now())
    }

    pub(super) fn new(now: Instant) -> Activity {
        Activity {
            begun: now,
            in_flight: Cell::new(0),
            deliveries: RefCell::default(),
            requests: Cell::new(0),
            idle_since: Cell::new(now),
            rests: Cell::new(false),
            head_since: Cell::new(None),
            is_multiplexed: Cell::new(false),
            write_blocked_since: Cell::new(None),
            lingers: Cell::new(false),
            leaving_since: Cell::new(None),
            closing_since: Cell::new(None),
            moved: Cell::new(None),
            order: Cell::new(None),
            waker: RefCell::new(None),
        }
    }

    /// From here on the connection speaks HTTP/2.
    pub fn multiplexed(&self) {
        self.is_multiplexed.set(true);
    }

    /// A part of a request's head has come, and not yet all of it.
    pub fn head_begun(&self) {
        if self.head_since.get().is_none() {
            self.head_since.set(Some(Instant::now()));
        }
    }

    /// The client took bytes, or did not.
    pub fn write_blocked(&self, blocked: bool) {
        if !blocked {
            self.write_blocked_since.set(None);
        } else if self.write_blocked_since.get().is_none() {
            self.write_blocked_since.set(Some(Instant::now()));
        }
    }

    /// The client took or sent something.
    pub fn moved(&self) {
        if self.closing_since.get().is_some() {
            self.moved.set(Some(Instant::now()));
        }
    }

    /// How many requests are being answered.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.get()
    }

    /// How many requests there were.
    pub fn requests(&self) -> u64 {
        self.requests.get()
    }

    /// Asks for an end in good order, from within.
    pub fn close(&self) {
        if self.closing_since.get().is_none() {
            self.give(Order::Close);
        }
    }

    /// The client may still be sending when its last answer is written.
    pub fn linger(&self) {
        self.lingers.set(true);
    }

    /// Whether the client must be read from before its socket is closed.
    pub fn lingers(&self) -> bool {
        self.lingers.get()
    }

    /// Whether no request has come for a while, so that what serves them can be put away.
    pub fn rests(&self) -> bool {
        self.rests.get()
    }

    /// A request's head is complete; the request ends when the guard is dropped.
    pub fn request(self: &Rc<Activity>) -> InFlight {
        self.head_since.set(None);
        self.rests.set(false);
        self.in_flight.set(self.in_flight.get() + 1);
        self.requests.set(self.requests.get() + 1);
        if self.leaving_since.get().is_some() {
            self.give(Order::Close);
        }
        let mut deliveries = self.deliveries.borrow_mut();
        let number =
            deliveries.iter().position(|delivery| *delivery == Delivery::Free).unwrap_or(deliveries.len());
        if number == deliveries.len() {
            deliveries.push(Delivery::Free);
        }
        deliveries[number] = Delivery::Awaited;
        drop(deliveries);
        InFlight { activity: Rc::clone(self), number }
    }

    /// Has this task woken when there is an order.
    pub fn wake_for_orders(&self, waker: &Waker) {
        let mut slot = self.waker.borrow_mut();
        if !slot.as_ref().is_some_and(|current| current.will_wake(waker)) {
            *slot = Some(waker.clone());
        }
    }

    /// The order that has come, once.
    pub fn take_order(&self) -> Option<Order> {
        self.order.take()
    }

    pub(super) fn give(&self, order: Order) {
        if self.closing_since.get().is_none() {
            self.closing_since.set(Some(Instant::now()));
        }
        self.order.set(Some(order));
        self.wake();
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.borrow().as_ref() {
            waker.wake_by_ref();
        }
    }

    /// Lets the connection rest, if no request has come for a while.
    pub(super) fn rest(&self, now: Instant) {
        let is_idle = self.in_flight.get() == 0 && self.requests.get() > 0;
        if is_idle && !self.rests.get() && now.duration_since(self.idle_since.get()) >= RESTS_AFTER {
            self.rests.set(true);
            self.wake();
        }
    }

    /// Asks the connection to end when it has answered.
    pub(super) fn leave(&self, now: Instant) {
        if self.leaving_since.get().is_none() {
            self.leaving_since.set(Some(now));
            if self.requests.get() > 0 {
                self.give(Order::Close);
            }
        }
    }

    /// What the reaper wants, and the cause if it is the client's doing.
    pub(super) fn judge(&self, now: Instant, timeouts: &Timeouts) -> Option<(Order, Option<Cause>)> {
        let over =
            |since: Option<Instant>, limit| since.is_some_and(|since| now.duration_since(since) >= limit);
        let untaken = |delivery: &Delivery| match delivery {
            Delivery::Offered(since) => over(Some(*since), timeouts.write),
            _ => false,
        };
        if over(self.write_blocked_since.get(), timeouts.write)
            || self.deliveries.borrow().iter().any(untaken)
        {
            return Some((Order::Cut, Some(Cause::WriteTimeout)));
        }
        // An HTTP/1 connection sees to its age itself, with the answer to a request.
        if self.is_multiplexed.get()
            && self.closing_since.get().is_none()
            && timeouts.connection_age.is_some_and(|age| over(Some(self.begun), age))
        {
            return Some((Order::Close, Some(Cause::Age)));
        }
        if self.in_flight.get() > 0 {
            return None;
        }
        if over(self.head_since.get(), timeouts.header) {
            return Some((Order::Cut, Some(Cause::HeaderTimeout)));
        }
        if self.requests.get() == 0 && over(self.leaving_since.get(), FIRST_REQUEST_GRACE) {
            return Some((Order::Cut, None));
        }
        match self.closing_since.get() {
            // A slow client that is still taking the end of an answer is at work; the write timeout bounds it.
            _ if self.write_blocked_since.get().is_some() => None,
            None => over(Some(self.idle_since.get()), timeouts.idle)
                .then_some((Order::Close, Some(Cause::IdleTimeout))),
            Some(asked) => {
                let idle_since = asked.max(self.idle_since.get());
                // The end of an HTTP/2 answer may be taken bit by bit.
                let moved = self.moved.get().map_or(idle_since, |moved| moved.max(idle_since));
                let ends = over(Some(moved), CLOSE_GRACE) || over(Some(idle_since), LONGEST_ENDING);
                ends.then_some((Order::Cut, None))
            }
        }
    }
}

/// A request that is being answered.
pub struct InFlight {
    activity: Rc<Activity>,
    number: usize,
}

impl InFlight {
    /// The client has room for more of the answer.
    pub fn awaited(&self) {
        self.note(Delivery::Awaited);
    }

    /// A part of the answer was handed on. Within HTTP/2 a client can leave it untaken though its socket takes bytes.
    pub fn offered(&self) {
        self.note(Delivery::Offered(Instant::now()));
    }

    fn note(&self, delivery: Delivery) {
        self.activity.deliveries.borrow_mut()[self.number] = delivery;
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.note(Delivery::Free);
        let left = self.activity.in_flight.get() - 1;
        self.activity.in_flight.set(left);
        if left == 0 {
            // The end of the request's access line has just been read off the clock.
            self.activity.idle_since.set(clock::recent());
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub const SECOND: Duration = Duration::from_secs(1);

    pub fn timeouts() -> Timeouts {
        Timeouts {
            handshake: SECOND,
            header: 2 * SECOND,
            idle: 5 * SECOND,
            body: SECOND,
            write: 3 * SECOND,
            connection_age: None,
        }
    }

    fn after(activity: &Activity, seconds: u32) -> Option<Order> {
        activity.judge(Instant::now() + seconds * SECOND, &timeouts()).map(|(order, _)| order)
    }

    #[test]
    fn an_idle_connection_is_closed_and_one_at_work_is_not() {
        let activity = &Rc::new(Activity::unwatched());
        assert_eq!(after(activity, 4), None);
        assert_eq!(after(activity, 5), Some(Order::Close));
        let request = activity.request();
        assert_eq!(after(activity, 3600), None);
        drop(request);
        assert_eq!(after(activity, 4), None);
    }

    #[test]
    fn one_that_does_not_close_when_asked_is_cut() {
        let activity = &Rc::new(Activity::unwatched());
        activity.give(Order::Close);
        assert_eq!(after(activity, 1), None);
        assert_eq!(after(activity, 2), Some(Order::Cut));
        let request = activity.request();
        assert_eq!(after(activity, 3600), None, "what is in flight is finished");
        drop(request);
        assert_eq!(after(activity, 1), None);
    }

    #[test]
    fn one_that_still_takes_the_end_of_an_answer_is_not_cut() {
        let activity = &Rc::new(Activity::unwatched());
        let after = |seconds| activity.judge(Instant::now() + seconds * SECOND, &timeouts());
        activity.moved();
        activity.give(Order::Close);
        // As if it had been asked a while ago.
        activity.closing_since.set(Instant::now().checked_sub(7 * SECOND));
        activity.idle_since.set(Instant::now().checked_sub(7 * SECOND).expect("the machine runs for longer"));
        assert_eq!(after(0), Some((Order::Cut, None)), "it moved before it was asked");
        activity.moved();
        assert_eq!(after(1), None);
        assert_eq!(after(2), Some((Order::Cut, None)));
        activity.closing_since.set(Instant::now().checked_sub(15 * SECOND));
        activity
            .idle_since
            .set(Instant::now().checked_sub(15 * SECOND).expect("the machine runs for longer"));
        assert_eq!(after(0), Some((Order::Cut, None)), "not for ever");
    }

    #[test]
    fn a_head_that_has_begun_must_end() {
        let activity = &Rc::new(Activity::unwatched());
        activity.head_begun();
        assert_eq!(after(activity, 1), None);
        assert_eq!(after(activity, 2), Some(Order::Cut));
        drop(activity.request());
        assert_eq!(after(activity, 4), None, "it has come whole");
    }

    #[test]
    fn an_answer_that_is_not_taken_ends_the_connection() {
        let activity = &Rc::new(Activity::unwatched());
        let _request = activity.request();
        activity.write_blocked(true);
        assert_eq!(after(activity, 3), Some(Order::Cut));
        activity.write_blocked(false);
        assert_eq!(after(activity, 3), None);
    }

    #[test]
    fn who_still_takes_the_end_of_an_answer_is_not_idle() {
        let activity = &Rc::new(Activity::unwatched());
        drop(activity.request());
        activity.write_blocked(true);
        let patient = Timeouts { write: 9 * SECOND, ..timeouts() };
        assert_eq!(activity.judge(Instant::now() + 8 * SECOND, &patient), None);
        let why = activity.judge(Instant::now() + 9 * SECOND, &patient);
        assert_eq!(why, Some((Order::Cut, Some(Cause::WriteTimeout))));
    }

    #[test]
    fn one_answer_among_many_that_is_not_taken_ends_the_connection() {
        let activity = &Rc::new(Activity::unwatched());
        let (first, second) = (activity.request(), activity.request());
        first.offered();
        assert_eq!(after(activity, 2), None);
        second.awaited();
        assert_eq!(after(activity, 3), Some(Order::Cut));
        first.awaited();
        assert_eq!(after(activity, 3600), None, "the backend's pauses are another timeout's concern");
        first.offered();
        drop(first);
        assert_eq!(after(activity, 3600), None);
        assert_eq!(activity.request().number, 0, "its number is free again");
    }
}
