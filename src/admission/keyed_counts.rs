//! Counts of connections or requests, one for each client or caller.

use std::fmt;
#[expect(deprecated, reason = "the only keyed hash of the standard library whose key can be chosen")]
use std::hash::SipHasher;
use std::hash::{BuildHasher, Hash, Hasher, RandomState};

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;

use crate::base::identity_hasher::IdentityHasher;

/// A count for each key. Keys are hashes under a secret: a random one of this process, or one that replicas share.
///
/// SECURITY: without the secret, a client could choose a name whose hash collides with that of a different client,
/// and use up that client's limit.
#[derive(Debug, Default)]
pub(super) struct KeyedCounts {
    hasher: RandomState,
    shared_secret: Option<SharedSecret>,
    /// No count is zero.
    pub(super) counts: DashMap<u64, usize, IdentityHasher>,
}

/// SECURITY: its `Debug` does not show it.
struct SharedSecret(u64, u64);

impl fmt::Debug for SharedSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SharedSecret")
    }
}

impl KeyedCounts {
    /// With a secret that replicas share, so that they give a key the same hash.
    pub(super) fn with_secret(secret: &[u8; 32]) -> KeyedCounts {
        let word = |at: usize| u64::from_le_bytes(*secret[at..].first_chunk().expect("32 bytes"));
        KeyedCounts { shared_secret: Some(SharedSecret(word(0), word(8))), ..KeyedCounts::default() }
    }

    /// Whether replicas give a key the same hash.
    pub(super) fn is_shared(&self) -> bool {
        self.shared_secret.is_some()
    }

    pub(super) fn hash_key(&self, key: &impl Hash) -> u64 {
        let Some(SharedSecret(one, two)) = &self.shared_secret else { return self.hasher.hash_one(key) };
        #[expect(deprecated, reason = "see above")]
        let mut hasher = SipHasher::new_with_keys(*one, *two);
        key.hash(&mut hasher);
        hasher.finish()
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
