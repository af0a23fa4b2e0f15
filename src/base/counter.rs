//! A counter that one thread writes and any thread may read. It does not check which thread writes.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counts without a locked instruction, because a shared counter would move its cache line between processors with each
/// addition. A second thread that writes at the same time would lose updates, and do no other harm.
#[derive(Debug, Default)]
pub struct SingleWriterCounter(AtomicU64);

impl SingleWriterCounter {
    /// Adds `count`. Only the owning thread may call this.
    pub fn add(&self, count: u64) {
        self.0.store(self.get().wrapping_add(count), Ordering::Relaxed);
    }

    /// Adds 1. Only the owning thread may call this.
    pub fn increment(&self) {
        self.add(1);
    }

    /// Subtracts 1, but stops at 0. Only the owning thread may call this.
    pub fn decrement(&self) {
        self.0.store(self.get().saturating_sub(1), Ordering::Relaxed);
    }

    /// The current value, from any thread.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
