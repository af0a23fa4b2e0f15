//! When and why a connection closes. Most connections are idle, and only few of those are closing, so the state is
//! allocated with the first change. It knows nothing about requests.

use std::cell::{Cell, OnceCell};
use std::time::Instant;

/// The state of a connection that is to close now or later.
#[derive(Default)]
pub struct Closing(OnceCell<Box<Cell<ClosingState>>>);

#[derive(Clone, Copy, Default)]
pub struct ClosingState {
    /// Set once the gateway will shut down: the next response is the last, and an idle connection closes at this time.
    pub close_idle_at: Option<Instant>,
    pub draining_since: Option<Instant>,
    pub since: Option<Instant>,
    /// When the client last read or sent data after the connection began to close.
    pub last_progress: Option<Instant>,
    /// Why the gateway aborts requests in flight.
    pub abort_reason: Option<&'static str>,
}

impl Closing {
    pub fn get(&self) -> ClosingState {
        self.0.get().map(|state| state.get()).unwrap_or_default()
    }

    pub fn update(&self, change: impl FnOnce(&mut ClosingState)) {
        let cell = self.0.get_or_init(Box::default);
        let mut state = cell.get();
        change(&mut state);
        cell.set(state);
    }
}
