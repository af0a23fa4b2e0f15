//! What one connection does, with the times that its timeouts depend on. The connection records it; [`super::closing`]
//! decides by it. It knows nothing about sockets or protocols.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::base::clock;
use crate::downstream::closing::Closing;
use crate::downstream::in_flight_request::InFlightRequest;
use crate::downstream::response_slot::{ReadDebt, ResponseSlot, abort_blocked};

/// The state of one connection, on one thread.
pub struct Activity {
    pub(super) opened_at: Instant,
    pub(super) in_flight: Cell<u32>,
    /// The responses of the requests in flight, by index. HTTP/1.1 has one at a time.
    pub(super) responses: RefCell<Vec<ResponseSlot>>,
    pub(super) request_count: Cell<u64>,
    pub(super) idle_since: Cell<Instant>,
    pub(super) is_quiescent: Cell<bool>,
    /// When the first part of a request's head arrived, until the head is complete. Not recorded for HTTP/2, whose
    /// frames need not belong to a request.
    pub(super) head_started_at: Cell<Option<Instant>>,
    /// The handshake is complete.
    pub(super) is_established: Cell<bool>,
    pub(super) is_multiplexed: Cell<bool>,
    pub(super) write_blocked_since: Cell<Option<Instant>>,
    /// The blocked write must be tried again.
    must_retry_write: Cell<bool>,
    /// Of the socket, for the requests in flight.
    pub(super) reading: Cell<ReadDebt>,
    pub closing: Closing,
}

/// A blocked write is tried again after this share of `timeouts.write`, until the socket is full. From then on, what
/// the socket accepts is what its client has read.
const WRITE_RETRY_SHARE: u32 = 8;

/// Idle time after which a connection releases its memory. Requests that follow each other sooner reuse it.
pub(super) const QUIESCENT_AFTER: Duration = Duration::from_millis(500);

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
            closing: Closing::default(),
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
            self.closing.wake();
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
        if self.closing.is_announced() {
            self.closing.close_gracefully();
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

    /// Marks the connection as quiescent if no request has arrived for a while.
    pub(super) fn update_quiescence(&self, now: Instant) {
        let is_idle = self.in_flight.get() == 0 && self.request_count.get() > 0;
        if is_idle && !self.is_quiescent.get() && now.duration_since(self.idle_since.get()) >= QUIESCENT_AFTER {
            self.is_quiescent.set(true);
            drop(self.responses.take());
            self.closing.wake();
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
}
