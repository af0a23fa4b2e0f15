//! Maps whose keys are hashes already, and need no other one.

use std::hash::{BuildHasherDefault, Hasher};

/// For maps from keys of which nobody can choose many that fall together: keyed hashes, or cryptographic ones of what
/// only the gateway or its operator puts in.
pub type IdentityHasher = BuildHasherDefault<PrecomputedHash>;

/// Takes the one number that a key gives for its hash.
#[derive(Clone, Copy, Default)]
pub struct PrecomputedHash(u64);

impl Hasher for PrecomputedHash {
    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("such a key gives one number of 64 bits");
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
