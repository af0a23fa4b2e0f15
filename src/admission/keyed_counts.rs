//! Counts of connections or requests, one for each client or caller.

use std::hash::{BuildHasher, Hash, RandomState};

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;

use crate::base::identity_hasher::IdentityHasher;

/// A count for each key. Keys are hashes under a random secret of this process.
///
/// SECURITY: without the secret, a client could choose a name whose hash collides with that of a different client,
/// and use up that client's limit.
#[derive(Debug, Default)]
pub(super) struct KeyedCounts {
    hasher: RandomState,
    /// No count is zero.
    pub(super) counts: DashMap<u64, usize, IdentityHasher>,
}

impl KeyedCounts {
    pub(super) fn hash_key(&self, key: &impl Hash) -> u64 {
        self.hasher.hash_one(key)
    }

    /// Increments the count of `key` unless it has reached `max`.
    pub(super) fn try_increment(&self, key: u64, max: usize) -> bool {
        match self.counts.entry(key) {
            Entry::Occupied(entry) if *entry.get() >= max => false,
            Entry::Occupied(mut entry) => {
                *entry.get_mut() += 1;
                true
            }
            Entry::Vacant(entry) => {
                entry.insert(1);
                true
            }
        }
    }

    pub(super) fn decrement(&self, key: u64) {
        if let Entry::Occupied(mut entry) = self.counts.entry(key) {
            *entry.get_mut() -= 1;
            if *entry.get() == 0 {
                entry.remove();
            }
        }
    }
}
