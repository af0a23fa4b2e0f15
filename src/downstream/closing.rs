//! When and why a connection closes. Most connections are idle, and only few of those are closing, so the state is
//! allocated with the first change. It knows nothing about requests.

use std::cell::{Cell, OnceCell};
use std::time::Instant;

/// The state of a connection that is to close now or later.
#[derive(Default)]
pub struct Closing(OnceCell<Box<ClosingState>>);

#[derive(Default)]
pub struct ClosingState {
    /// Set once the gateway will shut down: the next response is the last, and an idle connection closes at this time.
    pub close_idle_at: Cell<Option<Instant>>,
    pub draining_since: Cell<Option<Instant>>,
    pub since: Cell<Option<Instant>>,
    /// When the client last read or sent data after the connection began to close.
    pub last_progress: Cell<Option<Instant>>,
    /// Why the gateway aborts requests in flight.
    pub abort_reason: Cell<Option<&'static str>>,
}

impl Closing {
    /// The state, for changes.
    pub fn state(&self) -> &ClosingState {
        self.0.get_or_init(Box::default)
    }

    pub fn since(&self) -> Option<Instant> {
        self.0.get()?.since.get()
    }

    pub fn draining_since(&self) -> Option<Instant> {
        self.0.get()?.draining_since.get()
    }

    pub fn close_idle_at(&self) -> Option<Instant> {
        self.0.get()?.close_idle_at.get()
    }

    pub fn last_progress(&self) -> Option<Instant> {
        self.0.get()?.last_progress.get()
    }

    pub fn abort_reason(&self) -> Option<&'static str> {
        self.0.get()?.abort_reason.get()
    }
}
