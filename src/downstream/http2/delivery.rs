//! Follows the bytes of responses from the HTTP/2 library to the socket, so that a response is over when it has left
//! and not when it is queued.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::{Buf, Bytes};

use crate::downstream::frame_meter::FrameState;
use crate::downstream::in_flight_request::InFlightRequest;

/// Bytes of all responses of a connection in the library, at which no more of them is read from the backends.
const MAX_QUEUED: usize = 512 * 1024;

/// Bytes from which a frame is worth two `WINDOW_UPDATE` frames of the client even if its window cut it short.
const MIN_CREDITED: usize = 1024;

/// The responses that a connection has to send.
pub struct SendQueue {
    /// Bytes that the library holds.
    queued: Cell<usize>,
    /// Streams that wait until fewer bytes are queued.
    waiting: RefCell<Vec<Waker>>,
    /// Responses of which every byte is in the write buffer: the next flush delivers them.
    written: RefCell<Vec<Rc<Delivery>>>,
    is_closed: Cell<bool>,
    frames: Rc<FrameState>,
}

/// The progress of one response.
pub struct Delivery {
    queue: Rc<SendQueue>,
    in_flight: InFlightRequest,
    /// Bytes that the library holds.
    unsent: Cell<usize>,
    /// Bytes that left.
    sent: Cell<u64>,
    state: Cell<DeliveryState>,
    waker: RefCell<Option<Waker>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DeliveryState {
    /// More data may follow.
    Open,
    /// The last frame is queued.
    Ended,
    Delivered,
    /// The stream or the connection ended first.
    Failed,
}

impl SendQueue {
    /// Adds the frames that the client may send in response to `frames`.
    pub fn new(frames: Rc<FrameState>) -> SendQueue {
        SendQueue {
            queued: Cell::new(0),
            waiting: RefCell::default(),
            written: RefCell::default(),
            is_closed: Cell::new(false),
            frames,
        }
    }

    /// Ready when more may be queued.
    fn poll_room(&self, cx: &Context<'_>) -> Poll<()> {
        if self.queued.get() < MAX_QUEUED {
            return Poll::Ready(());
        }
        let mut waiting = self.waiting.borrow_mut();
        // A stream may be polled often while it waits.
        if !waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
            waiting.push(cx.waker().clone());
        }
        Poll::Pending
    }

    /// Number of responses that the next flush delivers.
    pub fn written(&self) -> usize {
        self.written.borrow().len()
    }

    /// Records that the write buffer was flushed to the socket.
    pub fn record_flush(&self) {
        for delivery in self.written.take() {
            delivery.finish(DeliveryState::Delivered);
        }
    }

    /// Records that the connection has ended.
    pub fn close(&self) {
        self.is_closed.set(true);
        for delivery in self.written.take() {
            delivery.finish(DeliveryState::Failed);
        }
        self.wake_waiting();
    }

    fn wake_waiting(&self) {
        for waker in self.waiting.take() {
            waker.wake();
        }
    }

    fn remove(&self, bytes: usize) {
        let before = self.queued.get();
        self.queued.set(before - bytes);
        if before >= MAX_QUEUED && before - bytes < MAX_QUEUED {
            self.wake_waiting();
        }
    }
}

impl Delivery {
    /// The response to a request.
    pub fn new(queue: Rc<SendQueue>, in_flight: InFlightRequest) -> Delivery {
        Delivery {
            queue,
            in_flight,
            unsent: Cell::new(0),
            sent: Cell::new(0),
            state: Cell::new(DeliveryState::Open),
            waker: RefCell::default(),
        }
    }

    /// The data of a frame. `is_cut`: it is a part of what there is to send, because the client's window is small.
    ///
    /// SECURITY: a client that opens its window byte by byte earns no credit.
    pub fn queue_data(self: &Rc<Delivery>, bytes: Bytes, is_cut: bool) -> SentData {
        self.unsent.set(self.unsent.get() + bytes.len());
        self.queue.queued.set(self.queue.queued.get() + bytes.len());
        if !is_cut || bytes.len() >= MIN_CREDITED {
            self.queue.frames.add_credit(2);
        }
        SentData { bytes, delivery: Rc::clone(self) }
    }

    /// Records that the last frame is queued.
    pub fn end(self: &Rc<Delivery>) {
        self.state.set(DeliveryState::Ended);
        self.check_end();
    }

    fn check_end(self: &Rc<Delivery>) {
        if self.state.get() != DeliveryState::Ended || self.unsent.get() > 0 {
            return;
        }
        match self.queue.is_closed.get() {
            true => self.finish(DeliveryState::Failed),
            false => self.queue.written.borrow_mut().push(Rc::clone(self)),
        }
    }

    fn finish(&self, state: DeliveryState) {
        self.state.set(state);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Ready when every byte has left (`true`), or cannot leave any more (`false`).
    pub fn poll_delivered(&self, cx: &Context<'_>) -> Poll<bool> {
        match self.state.get() {
            DeliveryState::Delivered => Poll::Ready(true),
            DeliveryState::Failed => Poll::Ready(false),
            DeliveryState::Open | DeliveryState::Ended => {
                *self.waker.borrow_mut() = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    /// Ready when more data of the connection's responses may be queued.
    pub fn poll_room(&self, cx: &Context<'_>) -> Poll<()> {
        self.queue.poll_room(cx)
    }

    /// The request that this responds to.
    pub fn in_flight(&self) -> &InFlightRequest {
        &self.in_flight
    }

    /// Bytes that left.
    pub fn sent(&self) -> u64 {
        self.sent.get()
    }

    fn record_sent(self: &Rc<Delivery>, bytes: usize) {
        self.unsent.set(self.unsent.get() - bytes);
        self.sent.set(self.sent.get() + bytes as u64);
        self.queue.remove(bytes);
        self.in_flight.record_progress(bytes);
        self.check_end();
    }
}

/// The data of a frame. The library advances it as it writes, and drops it unwritten if the stream is reset.
pub struct SentData {
    bytes: Bytes,
    delivery: Rc<Delivery>,
}

impl Buf for SentData {
    fn remaining(&self) -> usize {
        self.bytes.len()
    }

    fn chunk(&self) -> &[u8] {
        &self.bytes
    }

    fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
        if count > 0 {
            self.delivery.record_sent(count);
        }
    }
}

impl Drop for SentData {
    fn drop(&mut self) {
        let unsent = self.bytes.len();
        if unsent > 0 {
            self.delivery.unsent.set(self.delivery.unsent.get() - unsent);
            self.delivery.queue.remove(unsent);
            self.delivery.finish(DeliveryState::Failed);
        }
    }
}
