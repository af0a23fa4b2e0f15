//! Who used which salt: what tells when one can be taken away.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use parking_lot::Mutex;

use crate::base::user_name::UserName;
use crate::store::Timestamp;

/// Users are counted for so long.
pub(super) const USAGE_WINDOW: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// More users of a salt are not told apart: it is in use.
const MAX_USERS_PER_SALT: usize = 100_000;

/// Who used a salt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SaltUsage {
    /// When it last opened a bearer that led to a token.
    pub last_used: Option<Timestamp>,
    /// Of how many users in the last thirty days.
    pub users: u64,
}

/// The uses that this process has seen.
#[derive(Default)]
pub(super) struct SaltUsageCounter {
    hasher: RandomState,
    by_salt: Mutex<HashMap<u8, HashMap<u64, Timestamp>>>,
}

impl SaltUsageCounter {
    pub fn record(&self, salt: u8, user: &UserName, now: Timestamp) {
        let user = self.hasher.hash_one(user);
        let mut by_salt = self.by_salt.lock();
        let users = by_salt.entry(salt).or_default();
        if users.len() < MAX_USERS_PER_SALT || users.contains_key(&user) {
            users.insert(user, now);
        } else if let Some(last) = users.values_mut().next() {
            *last = now;
        }
    }

    pub fn usage_of(&self, salts: &[u8], now: Timestamp) -> Vec<SaltUsage> {
        let since = now.0.saturating_sub(u64::try_from(USAGE_WINDOW.as_millis()).unwrap_or(u64::MAX));
        let by_salt = self.by_salt.lock();
        let of = |salt: u8| {
            let users = by_salt.get(&salt)?;
            let recent = users.values().filter(|when| when.0 >= since).count();
            Some(SaltUsage {
                last_used: users.values().max().copied(),
                users: u64::try_from(recent).unwrap_or(u64::MAX),
            })
        };
        salts.iter().map(|salt| of(*salt).unwrap_or_default()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_counted_by_salt_and_for_thirty_days() {
        let user = |name: &str| UserName::parse(name.as_bytes()).expect("valid");
        let uses = SaltUsageCounter::default();
        let day = 24 * 60 * 60 * 1000;
        uses.record(1, &user("alice"), Timestamp(day));
        uses.record(1, &user("alice"), Timestamp(2 * day));
        uses.record(1, &user("bob"), Timestamp(20 * day));
        let of = |now| uses.usage_of(&[0, 1, 2], Timestamp(now));
        let unused = SaltUsage::default();
        assert_eq!(
            of(20 * day),
            [unused, SaltUsage { last_used: Some(Timestamp(20 * day)), users: 2 }, unused]
        );
        assert_eq!(of(40 * day)[1].users, 1);
        assert_eq!(of(60 * day)[1], SaltUsage { last_used: Some(Timestamp(20 * day)), users: 0 });
    }
}
