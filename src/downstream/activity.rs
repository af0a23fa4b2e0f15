//! What a connection is doing, and what it is told to do.
//!
//! It notes since when it waits, and for what; the worker's [`super::reaper`] looks at the notes of all of them.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::Waker;
use std::time::{Duration, Instant};

use crate::base::clock;
use crate::config::Timeouts;
use crate::observability::metrics::CloseCause;

/// What the reaper wants of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseMode {
    /// End after the requests in flight.
    Graceful,
    /// End at once.
    Abort,
}

/// What a connection notes about itself.
pub struct Activity {
    opened_at: Instant,
    in_flight: Cell<u32>,
    /// One for each request in flight, found again by its number. HTTP/1.1 has one at a time.
    responses: RefCell<Vec<ResponseProgress>>,
    request_count: Cell<u64>,
    idle_since: Cell<Instant>,
    is_quiescent: Cell<bool>,
    /// When a part of a request's head had come, until the rest did. Not noted for HTTP/2, whose frames need not belong
    /// to a request.
    head_started_at: Cell<Option<Instant>>,
    is_multiplexed: Cell<bool>,
    write_blocked_since: Cell<Option<Instant>>,
    must_linger: Cell<bool>,
    draining_since: Cell<Option<Instant>>,
    closing_since: Cell<Option<Instant>>,
    /// When the client last took or sent something after it was asked to close.
    last_progress: Cell<Option<Instant>>,
    close_request: Cell<Option<CloseMode>>,
    waker: RefCell<Option<Waker>>,
}

/// How far an answer's body is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ResponseProgress {
    /// No request has this number now.
    Unused,
    /// The client waits for the backend.
    WaitingForBackend,
    /// The client was given a part then, and has not made room for the next one.
    WaitingForClient(Instant),
}

/// A connection that is asked to leave before its first request came gets so long to send it: the client has just
/// connected and counts on an answer.
const FIRST_REQUEST_TIMEOUT: Duration = Duration::from_secs(2);

/// A connection without a request that was asked to close gets so long to do it. HTTP/2 asks the client first, and a
/// silent client would keep it for ever.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// And so long, where it still takes or sends something.
const MAX_CLOSE_DURATION: Duration = Duration::from_secs(15);

/// Requests that follow each other sooner are served without the connection getting its memory anew.
const QUIESCENT_AFTER: Duration = Duration::from_millis(500);

impl Activity {
    /// One that no reaper looks at.
    #[cfg(test)]
    pub fn unregistered() -> Activity {
        Activity::new(Instant::now())
    }

    pub(super) fn new(now: Instant) -> Activity {
        Activity {
            opened_at: now,
            in_flight: Cell::new(0),
            responses: RefCell::default(),
            request_count: Cell::new(0),
            idle_since: Cell::new(now),
            is_quiescent: Cell::new(false),
            head_started_at: Cell::new(None),
            is_multiplexed: Cell::new(false),
            write_blocked_since: Cell::new(None),
            must_linger: Cell::new(false),
            draining_since: Cell::new(None),
            closing_since: Cell::new(None),
            last_progress: Cell::new(None),
            close_request: Cell::new(None),
            waker: RefCell::new(None),
        }
    }

    /// From here on the connection speaks HTTP/2.
    pub fn set_multiplexed(&self) {
        self.is_multiplexed.set(true);
    }

    /// A part of a request's head has come, and not yet all of it.
    pub fn record_head_started(&self) {
        if self.head_started_at.get().is_none() {
            self.head_started_at.set(Some(Instant::now()));
        }
    }

    /// The client took bytes, or did not.
    pub fn set_write_blocked(&self, blocked: bool) {
        if !blocked {
            self.write_blocked_since.set(None);
        } else if self.write_blocked_since.get().is_none() {
            self.write_blocked_since.set(Some(Instant::now()));
        }
    }

    /// The client took or sent something.
    pub fn record_progress(&self) {
        if self.closing_since.get().is_some() {
            self.last_progress.set(Some(Instant::now()));
        }
    }

    /// How many requests are being answered.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.get()
    }

    /// How many requests there were.
    pub fn request_count(&self) -> u64 {
        self.request_count.get()
    }

    /// Asks for an end in good order, from within.
    pub fn close_gracefully(&self) {
        if self.closing_since.get().is_none() {
            self.request_close(CloseMode::Graceful);
        }
    }

    /// The client may still be sending when its last answer is written.
    pub fn require_linger(&self) {
        self.must_linger.set(true);
    }

    /// Whether the client must be read from before its socket is closed.
    pub fn must_linger(&self) -> bool {
        self.must_linger.get()
    }

    /// Whether no request has come for a while, so that what serves them can be put away.
    pub fn is_quiescent(&self) -> bool {
        self.is_quiescent.get()
    }

    /// A request's head is complete; the request ends when the guard is dropped.
    pub fn begin_request(self: &Rc<Activity>) -> InFlightRequest {
        self.head_started_at.set(None);
        self.is_quiescent.set(false);
        self.in_flight.set(self.in_flight.get() + 1);
        self.request_count.set(self.request_count.get() + 1);
        if self.draining_since.get().is_some() {
            self.request_close(CloseMode::Graceful);
        }
        let mut deliveries = self.responses.borrow_mut();
        let number = deliveries
            .iter()
            .position(|delivery| *delivery == ResponseProgress::Unused)
            .unwrap_or(deliveries.len());
        if number == deliveries.len() {
            deliveries.push(ResponseProgress::Unused);
        }
        deliveries[number] = ResponseProgress::WaitingForBackend;
        drop(deliveries);
        InFlightRequest { activity: Rc::clone(self), index: number }
    }

    /// Has this task woken when there is an order.
    pub fn register_waker(&self, waker: &Waker) {
        let mut slot = self.waker.borrow_mut();
        if !slot.as_ref().is_some_and(|current| current.will_wake(waker)) {
            *slot = Some(waker.clone());
        }
    }

    /// The order that has come, once.
    pub fn take_close_request(&self) -> Option<CloseMode> {
        self.close_request.take()
    }

    pub(super) fn request_close(&self, order: CloseMode) {
        if self.closing_since.get().is_none() {
            self.closing_since.set(Some(Instant::now()));
        }
        self.close_request.set(Some(order));
        self.wake();
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.borrow().as_ref() {
            waker.wake_by_ref();
        }
    }

    /// Lets the connection rest, if no request has come for a while.
    pub(super) fn update_quiescence(&self, now: Instant) {
        let is_idle = self.in_flight.get() == 0 && self.request_count.get() > 0;
        if is_idle && !self.is_quiescent.get() && now.duration_since(self.idle_since.get()) >= QUIESCENT_AFTER
        {
            self.is_quiescent.set(true);
            self.wake();
        }
    }

    /// Asks the connection to end when it has answered.
    pub(super) fn begin_drain(&self, now: Instant) {
        if self.draining_since.get().is_none() {
            self.draining_since.set(Some(now));
            if self.request_count.get() > 0 {
                self.request_close(CloseMode::Graceful);
            }
        }
    }

    /// What the reaper wants, and the cause if it is the client's doing.
    pub(super) fn check_timeouts(
        &self,
        now: Instant,
        timeouts: &Timeouts,
    ) -> Option<(CloseMode, Option<CloseCause>)> {
        let over =
            |since: Option<Instant>, limit| since.is_some_and(|since| now.duration_since(since) >= limit);
        let untaken = |delivery: &ResponseProgress| match delivery {
            ResponseProgress::WaitingForClient(since) => over(Some(*since), timeouts.write),
            _ => false,
        };
        if over(self.write_blocked_since.get(), timeouts.write) || self.responses.borrow().iter().any(untaken)
        {
            return Some((CloseMode::Abort, Some(CloseCause::WriteTimeout)));
        }
        // An HTTP/1 connection sees to its age itself, with the answer to a request.
        if self.is_multiplexed.get()
            && self.closing_since.get().is_none()
            && timeouts.connection_age.is_some_and(|age| over(Some(self.opened_at), age))
        {
            return Some((CloseMode::Graceful, Some(CloseCause::MaxAge)));
        }
        if self.in_flight.get() > 0 {
            return None;
        }
        if over(self.head_started_at.get(), timeouts.header) {
            return Some((CloseMode::Abort, Some(CloseCause::HeaderTimeout)));
        }
        if self.request_count.get() == 0 && over(self.draining_since.get(), FIRST_REQUEST_TIMEOUT) {
            return Some((CloseMode::Abort, None));
        }
        match self.closing_since.get() {
            // A slow client that is still taking the end of an answer is at work; the write timeout bounds it.
            _ if self.write_blocked_since.get().is_some() => None,
            None => over(Some(self.idle_since.get()), timeouts.idle)
                .then_some((CloseMode::Graceful, Some(CloseCause::IdleTimeout))),
            Some(asked) => {
                let idle_since = asked.max(self.idle_since.get());
                // The end of an HTTP/2 answer may be taken bit by bit.
                let moved = self.last_progress.get().map_or(idle_since, |moved| moved.max(idle_since));
                let ends = over(Some(moved), CLOSE_TIMEOUT) || over(Some(idle_since), MAX_CLOSE_DURATION);
                ends.then_some((CloseMode::Abort, None))
            }
        }
    }
}

/// A request that is being answered.
pub struct InFlightRequest {
    activity: Rc<Activity>,
    index: usize,
}

impl InFlightRequest {
    /// The client has room for more of the answer.
    pub fn record_waiting_for_backend(&self) {
        self.set_progress(ResponseProgress::WaitingForBackend);
    }

    /// A part of the answer was handed on. Within HTTP/2 a client can leave it untaken though its socket takes bytes.
    pub fn record_waiting_for_client(&self) {
        self.set_progress(ResponseProgress::WaitingForClient(Instant::now()));
    }

    fn set_progress(&self, delivery: ResponseProgress) {
        self.activity.responses.borrow_mut()[self.index] = delivery;
    }
}

impl Drop for InFlightRequest {
    fn drop(&mut self) {
        self.set_progress(ResponseProgress::Unused);
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

    fn after(activity: &Activity, seconds: u32) -> Option<CloseMode> {
        activity.check_timeouts(Instant::now() + seconds * SECOND, &timeouts()).map(|(order, _)| order)
    }

    #[test]
    fn an_idle_connection_is_closed_and_one_at_work_is_not() {
        let activity = &Rc::new(Activity::unregistered());
        assert_eq!(after(activity, 4), None);
        assert_eq!(after(activity, 5), Some(CloseMode::Graceful));
        let request = activity.begin_request();
        assert_eq!(after(activity, 3600), None);
        drop(request);
        assert_eq!(after(activity, 4), None);
    }

    #[test]
    fn one_that_does_not_close_when_asked_is_cut() {
        let activity = &Rc::new(Activity::unregistered());
        activity.request_close(CloseMode::Graceful);
        assert_eq!(after(activity, 1), None);
        assert_eq!(after(activity, 2), Some(CloseMode::Abort));
        let request = activity.begin_request();
        assert_eq!(after(activity, 3600), None, "what is in flight is finished");
        drop(request);
        assert_eq!(after(activity, 1), None);
    }

    #[test]
    fn one_that_still_takes_the_end_of_an_answer_is_not_cut() {
        let activity = &Rc::new(Activity::unregistered());
        let after = |seconds| activity.check_timeouts(Instant::now() + seconds * SECOND, &timeouts());
        activity.record_progress();
        activity.request_close(CloseMode::Graceful);
        // As if it had been asked a while ago.
        activity.closing_since.set(Instant::now().checked_sub(7 * SECOND));
        activity.idle_since.set(Instant::now().checked_sub(7 * SECOND).expect("the machine runs for longer"));
        assert_eq!(after(0), Some((CloseMode::Abort, None)), "it moved before it was asked");
        activity.record_progress();
        assert_eq!(after(1), None);
        assert_eq!(after(2), Some((CloseMode::Abort, None)));
        activity.closing_since.set(Instant::now().checked_sub(15 * SECOND));
        activity
            .idle_since
            .set(Instant::now().checked_sub(15 * SECOND).expect("the machine runs for longer"));
        assert_eq!(after(0), Some((CloseMode::Abort, None)), "not for ever");
    }

    #[test]
    fn a_head_that_has_begun_must_end() {
        let activity = &Rc::new(Activity::unregistered());
        activity.record_head_started();
        assert_eq!(after(activity, 1), None);
        assert_eq!(after(activity, 2), Some(CloseMode::Abort));
        drop(activity.begin_request());
        assert_eq!(after(activity, 4), None, "it has come whole");
    }

    #[test]
    fn an_answer_that_is_not_taken_ends_the_connection() {
        let activity = &Rc::new(Activity::unregistered());
        let _request = activity.begin_request();
        activity.set_write_blocked(true);
        assert_eq!(after(activity, 3), Some(CloseMode::Abort));
        activity.set_write_blocked(false);
        assert_eq!(after(activity, 3), None);
    }

    #[test]
    fn who_still_takes_the_end_of_an_answer_is_not_idle() {
        let activity = &Rc::new(Activity::unregistered());
        drop(activity.begin_request());
        activity.set_write_blocked(true);
        let patient = Timeouts { write: 9 * SECOND, ..timeouts() };
        assert_eq!(activity.check_timeouts(Instant::now() + 8 * SECOND, &patient), None);
        let why = activity.check_timeouts(Instant::now() + 9 * SECOND, &patient);
        assert_eq!(why, Some((CloseMode::Abort, Some(CloseCause::WriteTimeout))));
    }

    #[test]
    fn one_answer_among_many_that_is_not_taken_ends_the_connection() {
        let activity = &Rc::new(Activity::unregistered());
        let (first, second) = (activity.begin_request(), activity.begin_request());
        first.record_waiting_for_client();
        assert_eq!(after(activity, 2), None);
        second.record_waiting_for_backend();
        assert_eq!(after(activity, 3), Some(CloseMode::Abort));
        first.record_waiting_for_backend();
        assert_eq!(after(activity, 3600), None, "the backend's pauses are another timeout's concern");
        first.record_waiting_for_client();
        drop(first);
        assert_eq!(after(activity, 3600), None);
        assert_eq!(activity.begin_request().index, 0, "its number is free again");
    }
}
