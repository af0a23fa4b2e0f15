//! When each salt was last used, and by how many users: operators can then decide to remove a salt.
//!
//! It counts in the memory of this process. The stores behind it have their own counts.

use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use parking_lot::Mutex;

use crate::base::secret::Secret;
use crate::base::user_name::UserName;
use crate::config::StoreKey;
use crate::store::Timestamp;
use crate::store::keys::KeyRing;

/// Users count for this long after their last use.
pub(super) const USAGE_WINDOW: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// Above this number, further users of a salt are not counted: it is in use anyway.
const MAX_USERS_PER_SALT: usize = 100_000;

/// The public name of a salt: 8 hex digits that reveal nothing else about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SaltName([u8; 4]);

impl SaltName {
    /// The name of a salt, which the configuration has validated.
    pub fn new(salt: &Secret) -> SaltName {
        let salt = StoreKey::parse(salt.expose()).expect("a Fernet key has 32 bytes");
        let hash = KeyRing::new(&[salt]).derive_primary("timbr-gateway salt name 1");
        SaltName(*hash.first_chunk().expect("32 bytes"))
    }
}

impl fmt::Display for SaltName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", u32::from_be_bytes(self.0))
    }
}

/// The usage of a salt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SaltUsage {
    /// When it last opened a bearer that led to a token; `None`: never, as far as is known.
    pub last_used: Option<Timestamp>,
    /// The number of its users in the last thirty days.
    pub users: u64,
}

/// Counts the users of each salt.
#[derive(Default)]
pub(super) struct SaltUsageCounter {
    hasher: RandomState,
    /// By the salt and the hash of the user, the last use.
    by_salt: Mutex<HashMap<SaltName, HashMap<u64, Timestamp>>>,
}

impl SaltUsageCounter {
    pub fn record(&self, salt: SaltName, user: &UserName, now: Timestamp) {
        let user = self.hasher.hash_one(user);
        let mut by_salt = self.by_salt.lock();
        let users = by_salt.entry(salt).or_default();
        if users.len() < MAX_USERS_PER_SALT || users.contains_key(&user) {
            users.insert(user, now);
        } else if let Some(last) = users.values_mut().next() {
            *last = now;
        }
    }

    /// The usage of each of these salts, in the same sequence.
    pub fn usage_of(&self, salts: &[SaltName], now: Timestamp) -> Vec<SaltUsage> {
        let since = now.before(USAGE_WINDOW);
        let by_salt = self.by_salt.lock();
        let usage_of_one = |salt: &SaltName| {
            let users = by_salt.get(salt)?;
            let recent = users.values().filter(|last_used| **last_used >= since).count();
            Some(SaltUsage {
                last_used: users.values().max().copied(),
                users: u64::try_from(recent).unwrap_or(u64::MAX),
            })
        };
        salts.iter().map(|salt| usage_of_one(salt).unwrap_or_default()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_counted_by_salt_and_for_thirty_days() {
        let user = |name: &str| UserName::parse(name.as_bytes()).expect("valid");
        let counter = SaltUsageCounter::default();
        let day = 24 * 60 * 60 * 1000;
        counter.record(SaltName([1; 4]), &user("alice"), Timestamp(day));
        counter.record(SaltName([1; 4]), &user("alice"), Timestamp(2 * day));
        counter.record(SaltName([1; 4]), &user("bob"), Timestamp(20 * day));
        let usage_at = |now| counter.usage_of(&[0, 1, 2].map(|n| SaltName([n; 4])), Timestamp(now));
        let unused = SaltUsage::default();
        let last_used = Some(Timestamp(20 * day));
        assert_eq!(usage_at(20 * day), [unused, SaltUsage { last_used, users: 2 }, unused]);
        assert_eq!(usage_at(40 * day)[1].users, 1);
        assert_eq!(usage_at(60 * day)[1], SaltUsage { last_used, users: 0 });
    }
}
