//! The state of one connection, with the times that its timeouts depend on, and the request to close it. The connection
//! updates it; the worker's [`super::reaper`] checks the timeouts. It knows nothing about sockets or protocols.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::Waker;
use std::time::{Duration, Instant};

use crate::base::clock;
use crate::config::Timeouts;
use crate::downstream::closing::Closing;
use crate::downstream::in_flight_request::InFlightRequest;
use crate::downstream::response_slot::{ReadDebt, ResponseSlot, abort_blocked};
use crate::observability::metrics::CloseCause;

/// The way in which a connection is to be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseMode {
    /// After the requests in flight.
    Graceful,
    /// Immediately.
    Abort,
}

/// The state of one connection, on one thread.
pub struct Activity {
    opened_at: Instant,
    in_flight: Cell<u32>,
    /// The responses of the requests in flight, by index. HTTP/1.1 has one at a time.
    pub(super) responses: RefCell<Vec<ResponseSlot>>,
    request_count: Cell<u64>,
    idle_since: Cell<Instant>,
    is_quiescent: Cell<bool>,
    /// When the first part of a request's head arrived, until the head is complete. Not recorded for HTTP/2, whose
    /// frames need not belong to a request.
    head_started_at: Cell<Option<Instant>>,
    /// The handshake is complete.
    is_established: Cell<bool>,
    is_multiplexed: Cell<bool>,
    pub(super) write_blocked_since: Cell<Option<Instant>>,
    /// The blocked write must be tried again.
    must_retry_write: Cell<bool>,
    /// Of the socket, for the requests in flight.
    pub(super) reading: Cell<ReadDebt>,
    must_linger: Cell<bool>,
    must_reset: Cell<bool>,
    closing: Closing,
    close_request: Cell<Option<CloseMode>>,
    waker: RefCell<Option<Waker>>,
}

/// Time for the first request of a connection that was opened just before the drain: its client expects a response.
const FIRST_REQUEST_TIMEOUT: Duration = Duration::from_secs(2);

/// Time without progress after which a closing connection without requests is aborted. HTTP/2 waits for the client to
/// close, and an inactive client would keep the connection open forever.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Maximum time to close for a connection that still makes progress.
const MAX_CLOSE_DURATION: Duration = Duration::from_secs(15);

/// A blocked write is tried again after this share of `timeouts.write`, until the socket is full. From then on, what
/// the socket accepts is what its client has read.
const WRITE_RETRY_SHARE: u32 = 8;

/// Idle time after which a connection releases its memory. Requests that follow each other sooner reuse it.
const QUIESCENT_AFTER: Duration = Duration::from_millis(500);

impl Activity {
    /// An activity that is not registered with a reaper.
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
            is_established: Cell::new(false),
            is_multiplexed: Cell::new(false),
            write_blocked_since: Cell::new(None),
            must_retry_write: Cell::new(false),
            reading: Cell::default(),
            must_linger: Cell::new(false),
            must_reset: Cell::new(false),
            closing: Closing::default(),
            close_request: Cell::new(None),
            waker: RefCell::new(None),
        }
    }

    /// Marks the connection as HTTP/2.
    pub fn set_multiplexed(&self) {
        self.is_multiplexed.set(true);
    }

    /// Records that the handshake is complete: the time for the first request begins.
    pub fn record_handshake(&self) {
        self.idle_since.set(Instant::now());
        self.is_established.set(true);
    }

    /// Records that the first part of a request's head has arrived.
    pub fn record_head_started(&self) {
        if self.head_started_at.get().is_none() {
            self.head_started_at.set(Some(Instant::now()));
        }
    }

    /// Records whether the last write was blocked because the client does not read.
    pub fn set_write_blocked(&self, blocked: bool) {
        if !blocked {
            if let Some(since) = self.write_blocked_since.take() {
                self.update_reading(|reading| reading.add_pause(since));
            }
        } else if self.write_blocked_since.get().is_none() {
            self.write_blocked_since.set(Some(Instant::now()));
        }
    }

    /// Has a write tried again that has been blocked for a while.
    pub(super) fn retry_blocked_write(&self, now: Instant, limit: Duration) {
        if self.write_blocked_since.get().is_some_and(|since| now.duration_since(since) >= limit / WRITE_RETRY_SHARE) {
            self.must_retry_write.set(true);
            self.wake();
        }
    }

    /// Returns whether a blocked write must be tried again, whatever the event loop has reported.
    pub fn must_retry_write(&self) -> bool {
        self.must_retry_write.get()
    }

    /// Records that the socket accepts nothing more.
    pub fn end_write_retry(&self) {
        self.must_retry_write.set(false);
    }

    /// Records that the socket has accepted this number of bytes.
    pub fn record_written(&self, bytes: usize) {
        self.update_reading(|reading| reading.bytes += bytes as u64);
    }

    fn update_reading(&self, change: impl FnOnce(&mut ReadDebt)) {
        let mut reading = self.reading.get();
        change(&mut reading);
        self.reading.set(reading);
    }

    /// Records that the client sends data of its request while it does not read the response.
    pub fn record_upload_progress(&self) {
        if self.write_blocked_since.get().is_some() {
            self.write_blocked_since.set(Some(Instant::now()));
        }
    }

    /// Records that the client read or sent data.
    pub fn record_progress(&self) {
        if self.closing.get().since.is_some() {
            self.closing.update(|state| state.last_progress = Some(Instant::now()));
        }
    }

    /// Number of requests in flight.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.get()
    }

    /// The time since the connection was accepted.
    pub fn age(&self) -> Duration {
        self.opened_at.elapsed()
    }

    /// Number of requests since the connection was opened.
    pub fn request_count(&self) -> u64 {
        self.request_count.get()
    }

    /// Closes the connection after the requests in flight, unless it is closing already.
    pub fn close_gracefully(&self) {
        if self.closing.get().since.is_none() {
            self.request_close(CloseMode::Graceful);
        }
    }

    /// Requires a lingering close: the client may still be sending when its last response is written.
    pub fn require_linger(&self) {
        self.must_linger.set(true);
    }

    /// Returns whether the socket must be read before it is closed.
    pub fn must_linger(&self) -> bool {
        self.must_linger.get()
    }

    /// Requires that the kernel discards what the client has not read when the socket is closed. Otherwise it would keep
    /// up to 4 MiB for a client that does not read, for minutes.
    pub(super) fn require_reset(&self) {
        self.must_reset.set(true);
    }

    /// Returns whether the socket must be reset when it is closed.
    pub fn must_reset(&self) -> bool {
        self.must_reset.get()
    }

    /// Returns whether no request has arrived for a while, so that the memory for requests can be released.
    pub fn is_quiescent(&self) -> bool {
        self.is_quiescent.get()
    }

    /// Records that a request's head is complete. The request ends when the guard is dropped.
    pub fn begin_request(self: &Rc<Activity>) -> InFlightRequest {
        self.head_started_at.set(None);
        self.is_quiescent.set(false);
        if self.in_flight.get() == 0 {
            self.reading.set(ReadDebt::default());
        }
        self.in_flight.set(self.in_flight.get() + 1);
        self.request_count.set(self.request_count.get() + 1);
        if self.closing.get().draining_since.is_some() || self.closing.get().close_idle_at.is_some() {
            self.close_gracefully();
        }
        InFlightRequest::new(Rc::clone(self))
    }

    /// Records the end of a request.
    pub(super) fn end_request(&self) {
        self.in_flight.set(self.in_flight.get() - 1);
        if self.in_flight.get() == 0 {
            // The clock was read a moment ago, for the access log.
            self.idle_since.set(clock::recent());
        }
    }

    /// Wakes this task when the connection is to be closed.
    pub fn register_waker(&self, waker: &Waker) {
        let mut slot = self.waker.borrow_mut();
        if !slot.as_ref().is_some_and(|current| current.will_wake(waker)) {
            *slot = Some(waker.clone());
        }
    }

    /// Takes the request to close the connection, if there is one.
    pub fn take_close_request(&self) -> Option<CloseMode> {
        self.close_request.take()
    }

    /// The reason in the log for the requests that the connection has in flight when it is aborted.
    pub fn abort_reason(&self) -> Option<&'static str> {
        self.closing.get().abort_reason
    }

    /// Sets what is logged for the requests in flight if the connection is aborted.
    pub(super) fn set_abort_reason(&self, reason: &'static str) {
        self.closing.update(|state| state.abort_reason = Some(reason));
    }

    pub(super) fn request_close(&self, mode: CloseMode) {
        if self.closing.get().since.is_none() {
            self.closing.update(|state| state.since = Some(Instant::now()));
        }
        self.close_request.set(Some(mode));
        self.wake();
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.borrow().as_ref() {
            waker.wake_by_ref();
        }
    }

    /// Closes the connection to release its memory, if no request is in flight: gracefully after a request, and otherwise
    /// immediately. Returns whether it begins to close.
    pub(super) fn close_if_idle(&self, now: Instant) -> bool {
        let has_pending_head = self.head_started_at.get().is_some();
        // A new connection has a moment to send its first request, which is rejected, and a client to receive the end of
        // its response.
        let is_recent = now.duration_since(self.idle_since.get()) < FIRST_REQUEST_TIMEOUT;
        if self.in_flight.get() > 0 || self.closing.get().since.is_some() || (is_recent && !has_pending_head) {
            return false;
        }
        self.require_reset();
        if self.request_count.get() > 0 && !has_pending_head {
            self.require_linger();
            self.request_close(CloseMode::Graceful);
        } else {
            self.request_close(CloseMode::Abort);
        }
        true
    }

    /// Marks the connection as quiescent if no request has arrived for a while.
    pub(super) fn update_quiescence(&self, now: Instant) {
        let is_idle = self.in_flight.get() == 0 && self.request_count.get() > 0;
        if is_idle && !self.is_quiescent.get() && now.duration_since(self.idle_since.get()) >= QUIESCENT_AFTER {
            self.is_quiescent.set(true);
            drop(self.responses.take());
            self.wake();
        }
    }

    /// The next response announces that the connection closes after it. An idle connection closes at this time.
    pub(super) fn announce_close(&self, close_idle_at: Instant) {
        self.closing.update(|state| state.close_idle_at = Some(close_idle_at));
        if self.in_flight.get() > 0 {
            self.close_gracefully();
        }
    }

    /// Since when the connection is idle and could be closed for a new one; `None` if it is in use.
    pub(super) fn idle_since(&self, now: Instant) -> Option<Instant> {
        let idle_since = self.idle_since.get();
        let is_idle = self.in_flight.get() == 0
            && self.head_started_at.get().is_none()
            && self.write_blocked_since.get().is_none()
            && self.closing.get().since.is_none();
        // A client that has just connected or received a response is about to send a request.
        (is_idle && now.duration_since(idle_since) >= QUIESCENT_AFTER).then_some(idle_since)
    }

    /// Closes an idle connection as fast as possible.
    pub(super) fn close_idle(&self) {
        // HTTP/2 would wait for the client.
        self.request_close(if self.is_multiplexed.get() { CloseMode::Abort } else { CloseMode::Graceful });
    }

    /// Starts the drain: the connection closes after its requests in flight.
    pub(super) fn begin_drain(&self, now: Instant) {
        if self.closing.get().draining_since.is_none() {
            self.closing.update(|state| state.draining_since = Some(now));
            if self.request_count.get() > 0 {
                self.request_close(CloseMode::Graceful);
            }
        }
    }

    /// Compares what the client has read since the last update with this rate, in bytes per second.
    pub(super) fn update_read_debts(&self, min_rate: u64) {
        self.update_reading(|reading| reading.update(min_rate));
        for slot in self.responses.borrow_mut().iter_mut() {
            slot.reading.update(min_rate);
        }
    }

    /// See [`abort_blocked`].
    pub(super) fn abort_blocked_responses(&self, now: Instant, limit: Duration) {
        abort_blocked(&mut self.responses.borrow_mut(), now, limit);
    }

    /// Returns how to close the connection if a timeout has expired, with the cause if the client is responsible.
    pub(super) fn check_timeouts(&self, now: Instant, timeouts: &Timeouts) -> Option<(CloseMode, Option<CloseCause>)> {
        let has_expired = |since: Option<Instant>, limit| since.is_some_and(|since| now.duration_since(since) >= limit);
        let pause_limit = timeouts.write.saturating_sub(self.reading.get().debt);
        if has_expired(self.write_blocked_since.get(), pause_limit) {
            return Some((CloseMode::Abort, Some(CloseCause::WriteTimeout)));
        }
        // An HTTP/1 connection checks its age itself, when it responds to a request.
        if self.is_multiplexed.get()
            && self.closing.get().since.is_none()
            && timeouts.connection_age.is_some_and(|age| has_expired(Some(self.opened_at), age))
        {
            return Some((CloseMode::Graceful, Some(CloseCause::MaxAge)));
        }
        if self.in_flight.get() > 0 {
            return None;
        }
        if has_expired(self.head_started_at.get(), timeouts.header) {
            return Some((CloseMode::Abort, Some(CloseCause::HeaderTimeout)));
        }
        if self.request_count.get() == 0 && has_expired(self.closing.get().draining_since, FIRST_REQUEST_TIMEOUT) {
            return Some((CloseMode::Abort, None));
        }
        match self.closing.get().since {
            // A slow client that still reads the end of a response is not idle; the write timeout limits it.
            _ if self.write_blocked_since.get().is_some() => None,
            None if self.is_quiescent.get() && self.closing.get().close_idle_at.is_some_and(|at| now >= at) => {
                Some((CloseMode::Graceful, None))
            }
            None => {
                let (limit, cause) = match self.request_count.get() {
                    0 if self.is_established.get() && timeouts.header < timeouts.idle => {
                        (timeouts.header, CloseCause::HeaderTimeout)
                    }
                    _ => (timeouts.idle, CloseCause::IdleTimeout),
                };
                has_expired(Some(self.idle_since.get()), limit).then_some((CloseMode::Graceful, Some(cause)))
            }
            Some(closing_since) => {
                let idle_since = closing_since.max(self.idle_since.get());
                // A client may read the end of an HTTP/2 response in small pieces.
                let last_progress =
                    self.closing.get().last_progress.map_or(idle_since, |last_progress| last_progress.max(idle_since));
                let has_timed_out = has_expired(Some(last_progress), CLOSE_TIMEOUT)
                    || has_expired(Some(idle_since), MAX_CLOSE_DURATION);
                has_timed_out.then_some((CloseMode::Abort, None))
            }
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

    pub fn after(activity: &Activity, seconds: u32) -> Option<CloseMode> {
        activity.check_timeouts(Instant::now() + seconds * SECOND, &timeouts()).map(|(mode, _)| mode)
    }

    #[test]
    fn an_idle_connection_is_closed_and_an_active_one_is_not() {
        let activity = &Rc::new(Activity::unregistered());
        let request = activity.begin_request();
        assert_eq!(after(activity, 3600), None);
        drop(request);
        assert_eq!(after(activity, 4), None);
        assert_eq!(after(activity, 5), Some(CloseMode::Graceful));
    }

    #[test]
    fn the_first_request_has_the_time_of_a_head() {
        let activity = &Rc::new(Activity::unregistered());
        assert_eq!(after(activity, 4), None, "the handshake has a timeout of its own");
        activity.record_handshake();
        assert_eq!(after(activity, 1), None);
        let result = activity.check_timeouts(Instant::now() + 2 * SECOND, &timeouts());
        assert_eq!(result, Some((CloseMode::Graceful, Some(CloseCause::HeaderTimeout))));
        let timeouts = Timeouts { header: 9 * SECOND, ..timeouts() };
        let result = activity.check_timeouts(Instant::now() + 5 * SECOND, &timeouts);
        assert_eq!(result, Some((CloseMode::Graceful, Some(CloseCause::IdleTimeout))));
    }

    #[test]
    fn an_announced_close_follows_the_next_response_or_the_idle_time() {
        let now = Instant::now();
        let [idle, busy, fresh] = [(), (), ()].map(|()| Rc::new(Activity::unregistered()));
        drop(idle.begin_request());
        let request = busy.begin_request();
        for activity in [&idle, &busy, &fresh] {
            activity.announce_close(now + 3 * SECOND);
        }
        assert_eq!(busy.take_close_request(), Some(CloseMode::Graceful));
        drop(request);
        assert_eq!(idle.take_close_request(), None);
        idle.update_quiescence(now + SECOND);
        assert_eq!(after(&idle, 2), None);
        assert_eq!(after(&idle, 4), Some(CloseMode::Graceful));
        assert_eq!(fresh.take_close_request(), None);
        let _request = fresh.begin_request();
        assert_eq!(fresh.take_close_request(), Some(CloseMode::Graceful), "its response announces the close");
    }

    #[test]
    fn a_connection_that_does_not_close_in_time_is_aborted() {
        let activity = &Rc::new(Activity::unregistered());
        activity.request_close(CloseMode::Graceful);
        assert_eq!(after(activity, 1), None);
        assert_eq!(after(activity, 2), Some(CloseMode::Abort));
        let request = activity.begin_request();
        assert_eq!(after(activity, 3600), None, "requests in flight are finished");
        drop(request);
        assert_eq!(after(activity, 1), None);
    }

    #[test]
    fn a_closing_connection_with_progress_is_not_aborted() {
        let activity = &Rc::new(Activity::unregistered());
        let after = |seconds| activity.check_timeouts(Instant::now() + seconds * SECOND, &timeouts());
        activity.record_progress();
        activity.request_close(CloseMode::Graceful);
        // As if it had been closing for a while.
        activity.closing.update(|state| state.since = Instant::now().checked_sub(7 * SECOND));
        activity.idle_since.set(Instant::now().checked_sub(7 * SECOND).expect("the machine has been up for longer"));
        assert_eq!(after(0), Some((CloseMode::Abort, None)), "the progress was before it began to close");
        activity.record_progress();
        assert_eq!(after(1), None);
        assert_eq!(after(2), Some((CloseMode::Abort, None)));
        activity.closing.update(|state| state.since = Instant::now().checked_sub(15 * SECOND));
        activity.idle_since.set(Instant::now().checked_sub(15 * SECOND).expect("the machine has been up for longer"));
        assert_eq!(after(0), Some((CloseMode::Abort, None)), "not forever");
    }

    #[test]
    fn an_incomplete_head_times_out() {
        let activity = &Rc::new(Activity::unregistered());
        activity.record_head_started();
        assert_eq!(after(activity, 1), None);
        assert_eq!(after(activity, 2), Some(CloseMode::Abort));
        drop(activity.begin_request());
        assert_eq!(after(activity, 4), None, "the head is complete");
    }

    #[test]
    fn a_blocked_write_times_out() {
        let activity = &Rc::new(Activity::unregistered());
        let _request = activity.begin_request();
        activity.set_write_blocked(true);
        assert_eq!(after(activity, 3), Some(CloseMode::Abort));
        activity.set_write_blocked(false);
        assert_eq!(after(activity, 3), None);
    }

    #[test]
    fn a_client_that_still_reads_a_response_is_not_idle() {
        let activity = &Rc::new(Activity::unregistered());
        drop(activity.begin_request());
        activity.set_write_blocked(true);
        let timeouts = Timeouts { write: 9 * SECOND, ..timeouts() };
        assert_eq!(activity.check_timeouts(Instant::now() + 8 * SECOND, &timeouts), None);
        let result = activity.check_timeouts(Instant::now() + 9 * SECOND, &timeouts);
        assert_eq!(result, Some((CloseMode::Abort, Some(CloseCause::WriteTimeout))));
    }
}
