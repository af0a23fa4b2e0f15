//! Whether the process uses more memory than it may. It does not measure that itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

/// Maximum number of connections that are opened while memory is exhausted and stay open until their first request has
/// been rejected. Further ones are closed at once, as each one costs memory.
const MAX_LATE_CONNECTIONS: usize = 64;

/// The limit `limits.memory`, shared by all workers.
#[derive(Debug, Default)]
pub struct MemoryLimit {
    is_exhausted: AtomicBool,
    /// In bytes; 0: not known yet.
    limit: AtomicU64,
    late_connections: AtomicUsize,
}

impl MemoryLimit {
    /// Records the bytes in use. Returns whether memory is exhausted, if that has changed. It is available again once a
    /// sixteenth of the limit is free.
    pub fn record_usage(&self, used: u64, limit: u64) -> Option<bool> {
        self.limit.store(limit, Ordering::Relaxed);
        let was_exhausted = self.is_exhausted();
        let is_exhausted = used >= if was_exhausted { limit - limit / 16 } else { limit };
        self.is_exhausted.store(is_exhausted, Ordering::Relaxed);
        (is_exhausted != was_exhausted).then_some(is_exhausted)
    }

    /// The part of the limit for responses that clients do not read. They need it at once if backends respond to many
    /// requests at the same time, before anything is rejected; the rest is for everything else.
    pub(super) fn for_responses(&self) -> u64 {
        match self.limit.load(Ordering::Relaxed) {
            0 => u64::MAX,
            limit => limit / 4,
        }
    }

    /// Returns whether requests are rejected, and idle connections and unread responses end.
    pub fn is_exhausted(&self) -> bool {
        self.is_exhausted.load(Ordering::Relaxed)
    }

    /// A permit for a connection that is opened while memory is exhausted; `None` if there are too many.
    pub(super) fn admit_late_connection(self: &Arc<MemoryLimit>) -> Option<LateConnection> {
        let connection = LateConnection(Arc::clone(self));
        let before = self.late_connections.fetch_add(1, Ordering::Relaxed);
        (before < MAX_LATE_CONNECTIONS).then_some(connection)
    }
}

/// A connection that was opened while memory was exhausted.
#[derive(Debug)]
pub(super) struct LateConnection(Arc<MemoryLimit>);

impl Drop for LateConnection {
    fn drop(&mut self) {
        self.0.late_connections.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_available_again_when_some_of_it_is_free() {
        let memory = MemoryLimit::default();
        let changes = [99, 100, 101, 95, 93, 95, 100].map(|used| memory.record_usage(used, 100));
        assert_eq!(changes, [None, Some(true), None, None, Some(false), None, Some(true)]);
    }

    #[test]
    fn few_connections_are_opened_while_memory_is_exhausted() {
        let memory = Arc::new(MemoryLimit::default());
        let mut open: Vec<_> = (0..MAX_LATE_CONNECTIONS).map(|_| memory.admit_late_connection()).collect();
        assert!(open.iter().all(Option::is_some) && memory.admit_late_connection().is_none());
        open.pop();
        assert!(memory.admit_late_connection().is_some());
    }
}
