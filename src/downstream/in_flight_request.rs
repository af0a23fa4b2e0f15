//! A request in flight on a connection. It records whether the response waits for the backend or for the client.

use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Instant;

use crate::downstream::activity::Activity;
use crate::downstream::response_slot::{ResponseProgress, ResponseSlot};

/// A request in flight, and how far its client has read the response. It ends when it is dropped.
pub struct InFlightRequest {
    activity: Rc<Activity>,
    index: usize,
}

impl InFlightRequest {
    /// Takes a free index, or adds one.
    pub(super) fn new(activity: Rc<Activity>) -> InFlightRequest {
        let slot = ResponseSlot { progress: ResponseProgress::WaitingForBackend, ..ResponseSlot::default() };
        let mut slots = activity.responses.borrow_mut();
        let index = slots.iter().position(|slot| slot.progress == ResponseProgress::Unused).unwrap_or(slots.len());
        if index == slots.len() {
            slots.push(slot);
        } else {
            slots[index] = slot;
        }
        drop(slots);
        InFlightRequest { activity, index }
    }

    /// Records that the client can receive more of the response.
    pub fn record_waiting_for_backend(&self) {
        self.record_read(0);
        self.set_progress(ResponseProgress::WaitingForBackend);
    }

    /// Records that the client has to make room for the response. In HTTP/2, a client can stop reading one stream while
    /// its socket still accepts data.
    pub fn record_waiting_for_client(&self) {
        if self.progress() == ResponseProgress::WaitingForBackend {
            self.set_progress(ResponseProgress::WaitingForClient(Instant::now()));
        }
    }

    /// Records that a part of the response has left.
    pub fn record_progress(&self, bytes: usize) {
        self.record_read(bytes);
        self.restart_pause();
    }

    /// Records that the client sends data of its request while it does not read the response.
    pub fn record_upload_progress(&self) {
        self.restart_pause();
    }

    fn record_read(&self, bytes: usize) {
        let slot = &mut self.activity.responses.borrow_mut()[self.index];
        slot.reading.bytes += bytes as u64;
        if let ResponseProgress::WaitingForClient(since) = slot.progress {
            slot.reading.add_pause(since);
        }
    }

    fn restart_pause(&self) {
        if let ResponseProgress::WaitingForClient(_) = self.progress() {
            self.set_progress(ResponseProgress::WaitingForClient(Instant::now()));
        }
    }

    /// Ready when the client did not make room in time.
    pub fn poll_timed_out(&self, cx: &Context<'_>) -> Poll<()> {
        let mut slots = self.activity.responses.borrow_mut();
        let slot = &mut slots[self.index];
        if slot.progress == ResponseProgress::TimedOut {
            return Poll::Ready(());
        }
        if !slot.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            slot.waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }

    fn progress(&self) -> ResponseProgress {
        self.activity.responses.borrow()[self.index].progress
    }

    fn set_progress(&self, progress: ResponseProgress) {
        let slot = &mut self.activity.responses.borrow_mut()[self.index];
        if slot.progress != ResponseProgress::TimedOut {
            slot.progress = progress;
        }
    }
}

impl Drop for InFlightRequest {
    fn drop(&mut self) {
        self.activity.responses.borrow_mut()[self.index] = ResponseSlot::default();
        self.activity.end_request();
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;
    use crate::downstream::closing::CloseMode;
    use crate::downstream::closing::tests::{SECOND, after, timeouts};
    use crate::downstream::response_slot::ReadDebt;

    #[test]
    fn single_bytes_do_not_keep_a_response_alive() {
        const RATE: u64 = 100;
        let ago = |seconds: u32| Some(Instant::now() - seconds * SECOND);
        let activity = &Rc::new(Activity::unregistered());
        let request = activity.begin_request();
        let slot = || activity.responses.borrow_mut();
        for (bytes, expected) in [(1, Some(CloseMode::Abort)), (250, None)] {
            activity.reading.set(ReadDebt::default());
            slot()[0].reading = ReadDebt::default();
            for _ in 0..2 {
                activity.write_blocked_since.set(ago(2));
                activity.set_write_blocked(false);
                activity.record_written(bytes);
                slot()[0].progress = ResponseProgress::WaitingForClient(Instant::now() - 2 * SECOND);
                request.record_progress(bytes);
                activity.update_read_debts(RATE);
            }
            activity.set_write_blocked(true);
            assert_eq!(after(activity, 0), expected, "{bytes} bytes");
            assert_eq!(after(activity, 3), Some(CloseMode::Abort), "after the write timeout");
            activity.abort_blocked_responses(Instant::now(), timeouts().write);
            assert_eq!(request.progress() == ResponseProgress::TimedOut, expected.is_some(), "{bytes} bytes");
            slot()[0].progress = ResponseProgress::WaitingForBackend;
        }
    }

    #[test]
    fn a_blocked_response_times_out_alone() {
        let activity = &Rc::new(Activity::unregistered());
        let is_timed_out = |request: &InFlightRequest, seconds| {
            activity.abort_blocked_responses(Instant::now() + seconds * SECOND, timeouts().write);
            request.poll_timed_out(&Context::from_waker(Waker::noop())).is_ready()
        };
        let (first, second) = (activity.begin_request(), activity.begin_request());
        first.record_waiting_for_client();
        assert!(!is_timed_out(&first, 2));
        first.record_waiting_for_backend();
        assert!(!is_timed_out(&first, 3600), "a different timeout limits the pauses of the backend");
        first.record_waiting_for_client();
        second.record_waiting_for_client();
        assert!(is_timed_out(&first, 3));
        assert!(!is_timed_out(&second, 2), "it may have waited for the first one only");
        assert!(is_timed_out(&second, 3));
        first.record_waiting_for_backend();
        assert!(is_timed_out(&first, 0), "it stays aborted");
        assert_eq!(after(activity, 3600), None, "the connection stays open");
        drop(first);
        assert_eq!(activity.begin_request().index, 0, "its index is reused");
    }
}
