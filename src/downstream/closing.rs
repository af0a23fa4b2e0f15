//! When and how a connection closes: the worker's [`super::reaper`] decides by the times in the [`Activity`], and the
//! connection takes the request to close. It knows nothing about sockets or protocols.

use std::cell::{Cell, OnceCell, RefCell};
use std::task::Waker;
use std::time::{Duration, Instant};

use crate::config::Timeouts;
use crate::downstream::activity::{Activity, QUIESCENT_AFTER};
use crate::observability::metrics::CloseCause;

/// Time for the first request of a connection that was opened just before the drain: its client expects a response.
const FIRST_REQUEST_TIMEOUT: Duration = Duration::from_secs(2);

/// Time without progress after which a closing connection without requests is aborted. HTTP/2 waits for the client to
/// close, and an inactive client would keep the connection open forever.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Maximum time to close for a connection that still makes progress.
const MAX_CLOSE_DURATION: Duration = Duration::from_secs(15);

/// The way in which a connection is to be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseMode {
    /// After the requests in flight.
    Graceful,
    /// Immediately.
    Abort,
}

/// How a connection is to close. Most connections are idle, and only few of those are closing, so the times are
/// allocated with the first change.
#[derive(Default)]
pub struct Closing {
    times: OnceCell<Box<Cell<ClosingTimes>>>,
    must_linger: Cell<bool>,
    must_reset: Cell<bool>,
    request: Cell<Option<CloseMode>>,
    waker: RefCell<Option<Waker>>,
}

#[derive(Clone, Copy, Default)]
struct ClosingTimes {
    /// Set once the gateway will shut down: the next response is the last, and an idle connection closes at this time.
    close_idle_at: Option<Instant>,
    draining_since: Option<Instant>,
    since: Option<Instant>,
    /// When the client last read or sent data after the connection began to close.
    last_progress: Option<Instant>,
    /// Why the gateway aborts requests in flight.
    abort_reason: Option<&'static str>,
}

impl Closing {
    /// Records that the client read or sent data.
    pub fn record_progress(&self) {
        if self.is_closing() {
            self.update(|times| times.last_progress = Some(Instant::now()));
        }
    }

    /// Closes the connection after the requests in flight, unless it is closing already.
    pub fn close_gracefully(&self) {
        if !self.is_closing() {
            self.request(CloseMode::Graceful);
        }
    }

    /// Returns whether the next response is the last, and announces that.
    pub fn is_announced(&self) -> bool {
        let times = self.times();
        times.draining_since.is_some() || times.close_idle_at.is_some()
    }

    fn is_closing(&self) -> bool {
        self.times().since.is_some()
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
    pub fn require_reset(&self) {
        self.must_reset.set(true);
    }

    /// Returns whether the socket must be reset when it is closed.
    pub fn must_reset(&self) -> bool {
        self.must_reset.get()
    }

    /// Wakes this task when the connection is to be closed.
    pub fn register_waker(&self, waker: &Waker) {
        let mut slot = self.waker.borrow_mut();
        if !slot.as_ref().is_some_and(|current| current.will_wake(waker)) {
            *slot = Some(waker.clone());
        }
    }

    /// Takes the request to close the connection, if there is one.
    pub fn take_request(&self) -> Option<CloseMode> {
        self.request.take()
    }

    /// The reason in the log for the requests that the connection has in flight when it is aborted.
    pub fn abort_reason(&self) -> Option<&'static str> {
        self.times().abort_reason
    }

    /// Sets what is logged for the requests in flight if the connection is aborted.
    pub fn set_abort_reason(&self, reason: &'static str) {
        self.update(|times| times.abort_reason = Some(reason));
    }

    /// Asks the connection to close.
    pub fn request(&self, mode: CloseMode) {
        if !self.is_closing() {
            self.update(|times| times.since = Some(Instant::now()));
        }
        self.request.set(Some(mode));
        self.wake();
    }

    /// Wakes the task of the connection.
    pub fn wake(&self) {
        if let Some(waker) = self.waker.borrow().as_ref() {
            waker.wake_by_ref();
        }
    }

    fn times(&self) -> ClosingTimes {
        self.times.get().map(|times| times.get()).unwrap_or_default()
    }

    fn update(&self, change: impl FnOnce(&mut ClosingTimes)) {
        let cell = self.times.get_or_init(Box::default);
        let mut times = cell.get();
        change(&mut times);
        cell.set(times);
    }
}

impl Activity {
    /// The next response announces that the connection closes after it. An idle connection closes at this time.
    pub fn announce_close(&self, close_idle_at: Instant) {
        self.closing.update(|times| times.close_idle_at = Some(close_idle_at));
        if self.in_flight.get() > 0 {
            self.closing.close_gracefully();
        }
    }

    /// Since when the connection is idle and could be closed for a new one; `None` if it is in use.
    pub fn idle_since(&self, now: Instant) -> Option<Instant> {
        let idle_since = self.idle_since.get();
        let is_idle = self.in_flight.get() == 0
            && self.head_started_at.get().is_none()
            && self.write_blocked_since.get().is_none()
            && !self.closing.is_closing();
        // A client that has just connected or received a response is about to send a request.
        (is_idle && now.duration_since(idle_since) >= QUIESCENT_AFTER).then_some(idle_since)
    }

    /// Closes an idle connection as fast as possible.
    pub fn close_idle(&self) {
        // HTTP/2 would wait for the client.
        self.closing.request(if self.is_multiplexed.get() { CloseMode::Abort } else { CloseMode::Graceful });
    }

    /// Starts the drain: the connection closes after its requests in flight.
    pub fn begin_drain(&self, now: Instant) {
        if self.closing.times().draining_since.is_none() {
            self.closing.update(|times| times.draining_since = Some(now));
            if self.request_count.get() > 0 {
                self.closing.request(CloseMode::Graceful);
            }
        }
    }

    /// Closes the connection to release its memory, if no request is in flight: gracefully after a request, and otherwise
    /// immediately. Returns whether it begins to close.
    pub fn close_if_idle(&self, now: Instant) -> bool {
        let has_pending_head = self.head_started_at.get().is_some();
        // A new connection has a moment to send its first request, which is rejected, and a client to receive the end of
        // its response.
        let is_recent = now.duration_since(self.idle_since.get()) < FIRST_REQUEST_TIMEOUT;
        if self.in_flight.get() > 0 || self.closing.is_closing() || (is_recent && !has_pending_head) {
            return false;
        }
        self.closing.require_reset();
        if self.request_count.get() > 0 && !has_pending_head {
            self.closing.require_linger();
            self.closing.request(CloseMode::Graceful);
        } else {
            self.closing.request(CloseMode::Abort);
        }
        true
    }

    /// Returns how to close the connection if a timeout has expired, with the cause if the client is responsible.
    pub fn check_timeouts(&self, now: Instant, timeouts: &Timeouts) -> Option<(CloseMode, Option<CloseCause>)> {
        let closing = self.closing.times();
        let has_expired = |since: Option<Instant>, limit| since.is_some_and(|since| now.duration_since(since) >= limit);
        let pause_limit = timeouts.write.saturating_sub(self.reading.get().debt);
        if has_expired(self.write_blocked_since.get(), pause_limit) {
            return Some((CloseMode::Abort, Some(CloseCause::WriteTimeout)));
        }
        // An HTTP/1 connection checks its age itself, when it responds to a request.
        if self.is_multiplexed.get()
            && closing.since.is_none()
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
        if self.request_count.get() == 0 && has_expired(closing.draining_since, FIRST_REQUEST_TIMEOUT) {
            return Some((CloseMode::Abort, None));
        }
        match closing.since {
            // A slow client that still reads the end of a response is not idle; the write timeout limits it.
            _ if self.write_blocked_since.get().is_some() => None,
            None if self.is_quiescent.get() && closing.close_idle_at.is_some_and(|at| now >= at) => {
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
                let last_progress = closing.last_progress.max(Some(idle_since));
                let has_timed_out =
                    has_expired(last_progress, CLOSE_TIMEOUT) || has_expired(Some(idle_since), MAX_CLOSE_DURATION);
                has_timed_out.then_some((CloseMode::Abort, None))
            }
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::rc::Rc;

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
        assert_eq!(busy.closing.take_request(), Some(CloseMode::Graceful));
        drop(request);
        assert_eq!(idle.closing.take_request(), None);
        idle.update_quiescence(now + SECOND);
        assert_eq!(after(&idle, 2), None);
        assert_eq!(after(&idle, 4), Some(CloseMode::Graceful));
        assert_eq!(fresh.closing.take_request(), None);
        let _request = fresh.begin_request();
        assert_eq!(fresh.closing.take_request(), Some(CloseMode::Graceful), "its response announces the close");
    }

    #[test]
    fn a_connection_that_does_not_close_in_time_is_aborted() {
        let activity = &Rc::new(Activity::unregistered());
        activity.closing.request(CloseMode::Graceful);
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
        activity.closing.record_progress();
        activity.closing.request(CloseMode::Graceful);
        // As if it had been closing for a while.
        activity.closing.update(|times| times.since = Instant::now().checked_sub(7 * SECOND));
        activity.idle_since.set(Instant::now().checked_sub(7 * SECOND).expect("the machine has been up for longer"));
        assert_eq!(after(0), Some((CloseMode::Abort, None)), "the progress was before it began to close");
        activity.closing.record_progress();
        assert_eq!(after(1), None);
        assert_eq!(after(2), Some((CloseMode::Abort, None)));
        activity.closing.update(|times| times.since = Instant::now().checked_sub(15 * SECOND));
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
