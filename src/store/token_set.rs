//! A concurrent set of tokens, by their ids. It knows neither their users nor their lifetimes.

use std::borrow::Borrow;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use dashmap::{DashMap, Entry};

use crate::base::identity_hasher::IdentityHasher;
use crate::store::{TokenId, TokenRecord};

/// The tokens, in shards that are locked one at a time.
#[derive(Debug)]
pub struct TokenSet {
    /// A map only because its elements must be replaceable.
    tokens: DashMap<RecordById, (), IdentityHasher>,
    /// The size of `tokens`, whose own count visits every shard.
    count: AtomicUsize,
}

/// A token, found by the id that it holds: a separate key would triple the size of the entry.
#[derive(Debug)]
struct RecordById(Arc<TokenRecord>);

impl Borrow<TokenId> for RecordById {
    fn borrow(&self) -> &TokenId {
        &self.0.id
    }
}

impl PartialEq for RecordById {
    fn eq(&self, other: &RecordById) -> bool {
        self.0.id == other.0.id
    }
}

impl Eq for RecordById {}

impl Hash for RecordById {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.id.hash(state);
    }
}

impl TokenSet {
    /// An empty set.
    pub fn new(shards: usize) -> TokenSet {
        let tokens = DashMap::with_hasher_and_shard_amount(IdentityHasher::default(), shards);
        TokenSet { tokens, count: AtomicUsize::new(0) }
    }

    /// The number of tokens.
    pub fn len(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// The token with this id.
    pub fn get(&self, id: &TokenId) -> Option<Arc<TokenRecord>> {
        self.tokens.get(id).map(|entry| Arc::clone(&entry.key().0))
    }

    /// Inserts a token, and returns the one with its id that it replaces.
    pub fn insert(&self, record: Arc<TokenRecord>) -> Option<Arc<TokenRecord>> {
        match self.tokens.entry(RecordById(record)) {
            Entry::Occupied(older) => Some(older.replace_entry(()).0.0),
            Entry::Vacant(vacant) => {
                drop(vacant.insert(()));
                self.count.fetch_add(1, Ordering::Relaxed);
                None
            }
        }
    }

    /// Replaces a token by one with its id. Returns false if a different thread has removed or replaced it.
    pub fn replace(&self, old: &Arc<TokenRecord>, new: &Arc<TokenRecord>) -> bool {
        match self.tokens.entry(RecordById(Arc::clone(new))) {
            Entry::Occupied(entry) if Arc::ptr_eq(&entry.key().0, old) => {
                entry.replace_entry(());
                true
            }
            _ => false,
        }
    }

    /// Removes a token.
    pub fn remove(&self, id: &TokenId) -> Option<Arc<TokenRecord>> {
        let (RecordById(record), ()) = self.tokens.remove(id)?;
        self.count.fetch_sub(1, Ordering::Relaxed);
        Some(record)
    }

    /// Removes the tokens for which the predicate is false, shard by shard.
    pub fn retain(&self, mut is_kept: impl FnMut(&Arc<TokenRecord>) -> bool) {
        self.tokens.retain(|RecordById(record), ()| {
            let is_kept = is_kept(record);
            if !is_kept {
                self.count.fetch_sub(1, Ordering::Relaxed);
            }
            is_kept
        });
    }

    /// Calls `visit` with every token, shard by shard.
    pub fn for_each(&self, mut visit: impl FnMut(&Arc<TokenRecord>)) {
        self.tokens.iter().for_each(|entry| visit(&entry.key().0));
    }
}
