//! Finds the tokens of a user, and the one that each login receives. It decides nothing, and knows no lifetimes.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use hashbrown::HashTable;
use parking_lot::{Mutex, MutexGuard};

use crate::base::user_name::UserName;
use crate::store::{LoginId, TokenRecord};

/// All tokens in memory, by the hash of their user.
///
/// A table without keys, because a key would cost more than an entry. The tokens of one user are next to each other, so
/// the time of each operation grows with their number, which `tokens.max_per_user` limits.
#[derive(Debug)]
pub struct UserIndex {
    shards: Box<[Mutex<HashTable<Arc<TokenRecord>>>]>,
    /// SECURITY: secret, so that a client cannot choose names with the hash of a different user.
    hasher: RandomState,
}

impl UserIndex {
    /// An empty index.
    pub fn new(shard_count: usize) -> UserIndex {
        UserIndex { shards: (0..shard_count).map(|_| Mutex::default()).collect(), hasher: RandomState::new() }
    }

    /// Adds a token, which its login does not receive yet.
    pub fn add(&self, record: &Arc<TokenRecord>) {
        let (hash, mut shard) = self.shard_of(&record.user);
        shard.insert_unique(hash, Arc::clone(record), |record| self.hasher.hash_one(&record.user));
    }

    /// Removes a token, if it is here.
    pub fn remove(&self, record: &Arc<TokenRecord>) {
        let (hash, mut shard) = self.shard_of(&record.user);
        if let Ok(entry) = shard.find_entry(hash, |other| Arc::ptr_eq(other, record)) {
            entry.remove();
        }
    }

    /// Replaces a token by a changed copy, if it is here.
    pub fn replace(&self, old: &Arc<TokenRecord>, new: &Arc<TokenRecord>) {
        let (hash, mut shard) = self.shard_of(&old.user);
        if let Some(entry) = shard.find_mut(hash, |other| Arc::ptr_eq(other, old)) {
            *entry = Arc::clone(new);
        }
    }

    /// The token that the login receives.
    pub fn current(&self, user: &UserName, login: &LoginId) -> Option<Arc<TokenRecord>> {
        let (hash, shard) = self.shard_of(user);
        shard.find(hash, |record| record.login == *login && record.is_current()).cloned()
    }

    /// Makes this token, which is here, the one that its login receives.
    pub fn set_current(&self, record: &Arc<TokenRecord>) {
        let (hash, shard) = self.shard_of(&record.user);
        for other in shard.iter_hash(hash).filter(|other| other.login == record.login) {
            other.set_current(Arc::ptr_eq(other, record));
        }
    }

    /// The tokens of a user, the oldest first. Those of the same millisecond have any order.
    pub fn tokens_of(&self, user: &UserName) -> Vec<Arc<TokenRecord>> {
        let (hash, shard) = self.shard_of(user);
        let mut tokens: Vec<_> = shard.iter_hash(hash).filter(|record| record.user == *user).cloned().collect();
        drop(shard);
        tokens.sort_by_key(|record| (record.minted(), record.expires));
        tokens
    }

    /// The number of tokens.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().len()).sum()
    }

    fn shard_of(&self, user: &UserName) -> (u64, MutexGuard<'_, HashTable<Arc<TokenRecord>>>) {
        let hash = self.hasher.hash_one(user);
        // The table uses the lowest and the highest bits.
        let index = (hash >> 32) as usize % self.shards.len();
        (hash, self.shards[index].lock())
    }
}
