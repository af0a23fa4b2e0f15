//! Tokens in the memory of this process: all of them, or those that it has seen of a shared store.
//!
//! A bounded concurrent map with lifetimes. It knows neither the persistent store nor how tokens are made.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::base::clock::{Clock, Tick};
use crate::base::secret::Secret;
use crate::base::user_name::UserName;
use crate::store::deny_list::DenyList;
use crate::store::ended_tokens::{EndedTokens, TokenEnd};
use crate::store::token_limits::{AtomicTokenLimits, TokenLimits};
use crate::store::token_set::TokenSet;
use crate::store::user_index::UserIndex;
use crate::store::{LoginId, NewToken, Seed, Timestamp, TokenId, TokenRecord};

/// A concurrent map of live tokens, bounded in number and time.
#[derive(Debug)]
pub struct MemoryStore {
    tokens: TokenSet,
    /// The same tokens, by their users.
    by_user: UserIndex,
    /// The tokens by insertion. If all are minted here, they expire in the same sequence, as all have the same
    /// lifetime. A token from a different replica may expire before older entries; its entry then stays until it is
    /// the oldest.
    eviction_queue: Mutex<EvictionQueue>,
    /// Live tokens that were evicted since the start of the process.
    evicted: AtomicU64,
    /// Calls of `revoke_if` that have ended.
    revocations: AtomicU64,
    ended: Mutex<EndedTokens>,
    deny_list: DenyList,
    limits: AtomicTokenLimits,
    clock: Clock,
}

#[derive(Debug, Default)]
struct EvictionQueue {
    /// The oldest first. Removed tokens keep their entry until it is the oldest, or until a walk removes it; they do
    /// not count toward the maximum.
    ids: VecDeque<TokenId>,
    /// Insertions since the last walk over all entries.
    mints_since_walk: usize,
}

/// With the map full, all entries are searched once per `max` / 16 insertions, which costs at most 16 visited entries
/// per insertion.
const MAX_VISITS_PER_MINT: usize = 16;

/// The entries of removed tokens that may stay in the eviction queue, besides one for each token.
const MIN_STALE_ENTRIES: usize = 1024;

/// Large enough that a sweep blocks few lookups at a time.
const SHARD_COUNT: usize = 256;

impl MemoryStore {
    /// An empty store.
    pub fn new(limits: TokenLimits, clock: Clock) -> MemoryStore {
        MemoryStore {
            tokens: TokenSet::new(SHARD_COUNT),
            by_user: UserIndex::new(SHARD_COUNT),
            eviction_queue: Mutex::default(),
            evicted: AtomicU64::new(0),
            revocations: AtomicU64::new(0),
            ended: Mutex::default(),
            deny_list: DenyList::default(),
            limits: AtomicTokenLimits::new(limits),
            clock,
        }
    }

    /// The denied users and credentials. It is here because every driver has the memory.
    pub(super) fn deny_list(&self) -> &DenyList {
        &self.deny_list
    }

    /// The active limits.
    pub fn limits(&self) -> TokenLimits {
        self.limits.load()
    }

    /// Replaces the limits. Existing tokens keep their expiry; the new idle lifetime applies to them too.
    pub fn set_limits(&self, limits: TokenLimits) {
        self.limits.set(limits);
        let mut queue = self.eviction_queue.lock();
        if self.len() > limits.max {
            self.evict_down_to(&mut queue, limits.max);
        }
    }

    /// The token with this id, if it is live at `now`, the current time. Records a use.
    pub fn find(&self, id: &TokenId, now: Tick) -> Option<Arc<TokenRecord>> {
        let record = self.peek(id)?;
        if !self.is_live(&record, now) {
            return None;
        }
        record.touch(now, self.limits.idle_ttl());
        Some(record)
    }

    /// The token with this id, live or expired. Records no use.
    pub fn peek(&self, id: &TokenId) -> Option<Arc<TokenRecord>> {
        self.tokens.get(id)
    }

    /// The seed of the login's live token, if it can still be issued. Records a use: the client will use the token.
    pub fn find_seed(&self, user: &UserName, login: &LoginId, id_of: impl Fn(&Seed) -> TokenId) -> Option<Seed> {
        let seed = self.by_user.current(user, login)?.seed;
        let record = self.find(&id_of(&seed), self.clock.now())?;
        self.can_be_issued(&record).then_some(seed)
    }

    /// True if a tenth of the lifetime remains: a client that requests a token must be able to use it for a while.
    pub fn can_be_issued(&self, record: &TokenRecord) -> bool {
        record.expires.since(self.clock.now()) >= self.limits.ttl() / 10
    }

    /// Inserts a token for its login and returns its seed. If a different thread was faster, returns the seed of the
    /// token that it inserted.
    pub fn insert(&self, token: NewToken, seed: Seed, minted: Timestamp, id_of: impl Fn(&Seed) -> TokenId) -> Seed {
        // The lock serializes minting; lookups never take it.
        let mut queue = self.eviction_queue.lock();
        if let Some(other) = self.find_seed(&token.user, &token.login, &id_of) {
            return other;
        }
        let now = self.clock.now();
        let record = TokenRecord::new(id_of(&seed), token, seed, minted, now, now.after(self.limits.ttl()));
        let record = self.insert_locked(&mut queue, record);
        self.by_user.set_current(&record);
        seed
    }

    /// Inserts a token that its login receives from now on.
    pub fn insert_minted(&self, record: TokenRecord) {
        let mut queue = self.eviction_queue.lock();
        let record = self.insert_locked(&mut queue, record);
        self.by_user.set_current(&record);
    }

    /// Inserts a token minted at some earlier time. If its login has a different token, which may be newer, the login
    /// keeps receiving that one.
    pub fn insert_fetched(&self, record: TokenRecord) -> Arc<TokenRecord> {
        let mut queue = self.eviction_queue.lock();
        let current = self.by_user.current(&record.user, &record.login);
        let has_other = current.is_some_and(|current| current.seed != record.seed);
        let record = self.insert_locked(&mut queue, record);
        if !has_other {
            self.by_user.set_current(&record);
        }
        record
    }

    fn insert_locked(&self, queue: &mut EvictionQueue, record: TokenRecord) -> Arc<TokenRecord> {
        queue.mints_since_walk = queue.mints_since_walk.saturating_add(1);
        let max = self.limits.max();
        if self.len() >= max {
            self.evict_down_to(queue, max - 1);
        }
        let record = Arc::new(record);
        match self.tokens.insert(Arc::clone(&record)) {
            Some(older) => self.by_user.remove(&older),
            None => {
                queue.ids.push_back(record.id);
                self.make_room_for_user(&record.user);
            }
        }
        self.by_user.add(&record);
        self.remove_from_index_if_gone(&record);
        if queue.ids.len() > 2 * self.len() + MIN_STALE_ENTRIES {
            queue.ids.retain(|id| self.tokens.get(id).is_some());
        }
        record
    }

    /// A different thread may have removed the token before it was added to the index.
    fn remove_from_index_if_gone(&self, record: &Arc<TokenRecord>) {
        if !self.tokens.get(&record.id).is_some_and(|current| Arc::ptr_eq(&current, record)) {
            self.by_user.remove(record);
        }
    }

    /// Evicts the oldest tokens of a user who is about to get one more than the maximum.
    ///
    /// SECURITY: a client that gets many tokens for one user evicts only tokens of that user.
    fn make_room_for_user(&self, user: &UserName) {
        let max = self.limits.max_per_user();
        if max == 0 {
            return;
        }
        let tokens = self.by_user.tokens_of(user);
        let now = self.clock.now();
        let excess = (tokens.len() + 1).saturating_sub(max);
        tokens.iter().take(excess).for_each(|record| self.evict(&record.id, now));
    }

    fn evict(&self, id: &TokenId, now: Tick) {
        if let Some(record) = self.remove(id)
            && self.is_live(&record, now)
        {
            self.evicted.fetch_add(1, Ordering::Relaxed);
            self.ended.lock().add(*id, TokenEnd::Evicted, record.expires);
        }
    }

    /// Replaces the key that the backend receives instead of a token. Does nothing if the token does not exist.
    pub fn set_upstream_key(&self, id: &TokenId, key: &Secret) {
        // Requests that hold the old record finish with the old key.
        while let Some(old) = self.peek(id) {
            let new = Arc::new(old.with_upstream_key(key.clone()));
            if self.tokens.replace(&old, &new) {
                self.by_user.replace(&old, &new);
                self.remove_from_index_if_gone(&new);
                return;
            }
        }
    }

    /// Removes one token. Its entry in the eviction queue stays until it is the oldest.
    pub fn remove(&self, id: &TokenId) -> Option<Arc<TokenRecord>> {
        let record = self.tokens.remove(id)?;
        self.by_user.remove(&record);
        Some(record)
    }

    /// Revokes the tokens for which the predicate is true, shard by shard, and calls `visit` with each that was live.
    pub fn revoke_if(
        &self,
        predicate: impl Fn(&TokenId, &TokenRecord) -> bool,
        mut visit: impl FnMut(&TokenId, &TokenRecord),
    ) {
        let now = self.clock.now();
        self.retain(|id, record| {
            let is_revoked = predicate(id, record);
            if is_revoked {
                self.ended.lock().add(*id, TokenEnd::Revoked, record.expires);
                if self.is_live(record, now) {
                    visit(id, record);
                }
            }
            !is_revoked
        });
        self.revocations.fetch_add(1, Ordering::Release);
    }

    /// A number that is different after each revocation, whichever tokens it covers.
    pub fn revocation_count(&self) -> u64 {
        self.revocations.load(Ordering::Acquire)
    }

    fn retain(&self, mut is_kept: impl FnMut(&TokenId, &Arc<TokenRecord>) -> bool) {
        self.tokens.retain(|record| {
            let is_kept = is_kept(&record.id, record);
            if !is_kept {
                self.by_user.remove(record);
            }
            is_kept
        });
    }

    /// Why this token, which is not in memory, has ended.
    pub fn end_of(&self, id: &TokenId) -> TokenEnd {
        self.ended.lock().end_of(id, self.clock.now())
    }

    /// When this token would have expired, if it was revoked before, as far as is known.
    pub fn expiry_of_revoked(&self, id: &TokenId) -> Option<Tick> {
        self.ended.lock().expiry_of_revoked(id, self.clock.now())
    }

    /// The number of live tokens that were evicted since the start of the process.
    pub fn evicted(&self) -> u64 {
        self.evicted.load(Ordering::Relaxed)
    }

    /// Calls `visit` with every live token, shard by shard.
    pub fn for_each(&self, mut visit: impl FnMut(&TokenId, &Arc<TokenRecord>)) {
        let now = self.clock.now();
        self.tokens.for_each(|record| {
            if self.is_live(record, now) {
                visit(&record.id, record);
            }
        });
    }

    /// Removes expired tokens. Called every ten seconds on the main thread.
    pub fn sweep(&self) {
        let now = self.clock.now();
        while self.evict_expired_batch(now) {}
        if self.limits.idle_ttl().is_some() {
            self.retain(|_, record| self.is_live(record, now));
        }
        self.ended.lock().sweep(now);
    }

    /// The number of tokens, including expired ones before the next sweep.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// True if it holds no tokens.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether a token has neither expired nor become idle.
    pub(super) fn is_live(&self, record: &TokenRecord, now: Tick) -> bool {
        let is_idle = |ttl| now.since(record.last_used()) >= ttl;
        now < record.expires && !self.limits.idle_ttl().is_some_and(is_idle)
    }

    /// Removes at most a hundred expired tokens, so that minting never waits long for the lock. False when none is
    /// left.
    fn evict_expired_batch(&self, now: Tick) -> bool {
        let mut queue = self.eviction_queue.lock();
        for _ in 0..100 {
            let Some(id) = queue.ids.front() else { return false };
            let is_live = self.tokens.get(id).is_some_and(|record| self.is_live(&record, now));
            if is_live {
                return false;
            }
            if let Some(id) = queue.ids.pop_front() {
                self.remove(&id);
            }
        }
        true
    }

    /// Evicts expired tokens, and then the oldest live ones, until at most `max` are left.
    fn evict_down_to(&self, queue: &mut EvictionQueue, max: usize) {
        let now = self.clock.now();
        // Only the idle lifetime makes tokens expire in a different sequence, so only then is a walk needed. Between
        // two walks, a token that has just become idle may outlive an older one that is in use: otherwise a client
        // that mints at the maximum again and again would cause a walk each time.
        if self.limits.idle_ttl().is_some()
            && queue.mints_since_walk.saturating_mul(MAX_VISITS_PER_MINT) >= self.limits.max()
        {
            queue.mints_since_walk = 0;
            queue.ids.retain(|id| {
                let is_live = self.tokens.get(id).is_some_and(|record| self.is_live(&record, now));
                if !is_live {
                    self.remove(id);
                }
                is_live
            });
        }
        while self.len() > max {
            let Some(id) = queue.ids.pop_front() else { return };
            self.evict(&id, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn store(idle_ttl: Option<Duration>, max: usize) -> (MemoryStore, Clock) {
        let clock = Clock::manual(0);
        (MemoryStore::new(TokenLimits { ttl: HOUR, idle_ttl, max, max_per_user: 0 }, clock.clone()), clock)
    }

    fn id_of(seed: &Seed) -> TokenId {
        TokenId::from_token(seed)
    }

    fn insert(store: &MemoryStore, login: u8, seed: u8) -> Seed {
        insert_for(store, &format!("user-{login}"), login, seed)
    }

    fn insert_for(store: &MemoryStore, user: &str, login: u8, seed: u8) -> Seed {
        store.insert(NewToken::example(user, login), [seed; 20], Timestamp(0), id_of)
    }

    fn find(store: &MemoryStore, seed: u8) -> Option<Arc<TokenRecord>> {
        store.find(&id_of(&[seed; 20]), store.clock.now())
    }

    fn is_live(store: &MemoryStore, seed: u8) -> bool {
        find(store, seed).is_some()
    }

    #[test]
    fn a_user_with_too_many_tokens_loses_its_oldest() {
        let (store, clock) = store(None, 10);
        store.set_limits(TokenLimits { max_per_user: 2, ..store.limits() });
        let of = |user, seed| {
            clock.advance(Duration::from_millis(1));
            insert_for(&store, user, seed, seed);
        };
        of("alice", 1);
        for seed in 2..9 {
            of("mallory", seed);
        }
        let live: Vec<_> = (1..9).filter(|seed| is_live(&store, *seed)).collect();
        assert_eq!((live, store.evicted()), (vec![1, 7, 8], 5));
        assert_eq!(store.end_of(&id_of(&[2; 20])), TokenEnd::Evicted);
        store.remove(&id_of(&[8; 20]));
        of("mallory", 9);
        assert!(is_live(&store, 7) && is_live(&store, 9), "a removed token does not count");
        clock.advance(HOUR);
        store.sweep();
        of("mallory", 10);
        assert_eq!(store.by_user.len(), 1);
    }

    #[test]
    fn a_login_keeps_its_token_while_it_lives() {
        let (store, clock) = store(None, 10);
        assert_eq!(insert(&store, 1, 1), [1; 20]);
        assert_eq!(insert(&store, 1, 2), [1; 20], "it keeps the first one");
        assert_eq!(insert(&store, 2, 3), [3; 20], "a different login has its own");
        clock.advance(HOUR);
        assert!(!is_live(&store, 1));
        assert_eq!(insert(&store, 1, 4), [4; 20]);
    }

    #[test]
    fn a_token_in_the_last_tenth_of_its_lifetime_is_valid_but_not_issued_again() {
        let (store, clock) = store(None, 10);
        insert(&store, 1, 1);
        clock.advance(HOUR * 95 / 100);
        assert_eq!(insert(&store, 1, 2), [2; 20]);
        assert!(is_live(&store, 1) && is_live(&store, 2));
        clock.advance(HOUR * 10 / 100);
        store.sweep();
        assert!(!is_live(&store, 1) && is_live(&store, 2));
        assert_eq!(insert(&store, 1, 3), [2; 20], "the sweep of the old token kept the login of the new one");
    }

    #[test]
    fn use_extends_the_idle_lifetime_but_not_the_absolute_lifetime() {
        let (store, clock) = store(Some(HOUR / 4), 10);
        insert(&store, 1, 1);
        for _ in 0..5 {
            clock.advance(HOUR / 6);
            assert!(is_live(&store, 1));
        }
        clock.advance(HOUR / 6);
        assert!(!is_live(&store, 1), "absolute lifetime");

        insert(&store, 2, 2);
        clock.advance(HOUR / 4);
        assert!(!is_live(&store, 2), "idle lifetime");
        store.sweep();
        assert!(store.is_empty());
    }

    #[test]
    fn at_the_maximum_the_oldest_token_is_evicted() {
        let (store, _) = store(None, 3);
        for n in 1..=5 {
            insert(&store, n, n);
        }
        assert_eq!(store.len(), 3);
        assert!(!is_live(&store, 1) && !is_live(&store, 2));
        assert!(is_live(&store, 3) && is_live(&store, 4) && is_live(&store, 5));
    }

    #[test]
    fn at_the_maximum_an_idle_token_is_evicted_before_an_older_one_in_use() {
        let (store, clock) = store(Some(HOUR / 4), 2);
        insert(&store, 1, 1);
        insert(&store, 2, 2);
        for _ in 0..3 {
            clock.advance(HOUR / 10);
            assert!(is_live(&store, 1));
        }
        insert(&store, 3, 3);
        assert!(is_live(&store, 1) && is_live(&store, 3) && !is_live(&store, 2));
    }

    #[test]
    fn replacing_the_upstream_key_changes_nothing_else() {
        let (store, clock) = store(Some(HOUR / 4), 10);
        insert(&store, 1, 1);
        let key = || find(&store, 1).and_then(|record| record.upstream_key().cloned());
        assert_eq!(key(), None);
        clock.advance(HOUR / 8);
        store.set_upstream_key(&id_of(&[1; 20]), &Secret::new("tk_upstream".into()));
        assert_eq!(key(), Some(Secret::new("tk_upstream".into())));
        assert!(!format!("{:?}", find(&store, 1)).contains("tk_upstream"));
        clock.advance(HOUR / 4);
        store.set_upstream_key(&id_of(&[1; 20]), &Secret::new("tk_upstream".into()));
        assert_eq!(key(), None, "replacing the key is not a use, so it has become idle");
        store.set_upstream_key(&id_of(&[2; 20]), &Secret::new("tk_upstream".into()));
        assert_eq!(store.len(), 1, "an unknown token is not created");
    }

    #[test]
    fn a_full_store_of_tokens_in_use_is_not_walked_for_every_mint() {
        let (store, _) = store(Some(HOUR / 4), 160);
        let walks = (0..=255_u8).map(|n| {
            insert(&store, n, n);
            store.eviction_queue.lock().mints_since_walk == 0
        });
        // The first walk is when the store is full; then one every ten mints.
        assert_eq!(walks.filter(|walked| *walked).count(), 10);
        assert_eq!(store.len(), 160);
    }

    #[test]
    fn a_sweep_removes_expired_tokens_only() {
        let (store, clock) = store(None, 1000);
        for n in 0..200 {
            insert(&store, n, n);
        }
        clock.advance(HOUR / 2);
        for n in 200..=255 {
            insert(&store, n, n);
        }
        clock.advance(HOUR / 2);
        store.sweep();
        assert_eq!(store.len(), 56);
        assert!(store.by_user.len() == 56 && store.eviction_queue.lock().ids.len() == 56);
    }

    #[test]
    fn removing_a_token_removes_its_login_unless_that_has_a_newer_token() {
        let (store, clock) = store(None, 10);
        insert(&store, 1, 1);
        clock.advance(HOUR * 95 / 100);
        insert(&store, 1, 2);
        insert(&store, 2, 3);
        store.remove(&id_of(&[1; 20]));
        assert_eq!(insert(&store, 1, 4), [2; 20], "the newer one stays");
        store.revoke_if(|_, record| record.user.as_str() == "user-2", |_, _| {});
        assert!(is_live(&store, 2) && !is_live(&store, 3));
        assert_eq!(insert(&store, 2, 5), [5; 20]);
        clock.advance(HOUR);
        store.sweep();
        assert!(store.is_empty() && store.by_user.len() == 0);
        assert!(store.eviction_queue.lock().ids.is_empty());
    }

    #[test]
    fn a_fetched_token_does_not_replace_the_one_that_its_login_receives() {
        let (store, clock) = store(None, 10);
        let fetch = |seed: u8, login: u8| {
            let now = clock.now();
            let (token, seed) = (NewToken::example(&format!("user-{login}"), login), [seed; 20]);
            let record = TokenRecord::new(id_of(&seed), token, seed, Timestamp(0), now, now.after(HOUR));
            store.insert_fetched(record)
        };
        insert(&store, 1, 1);
        fetch(2, 1);
        assert!(is_live(&store, 1) && is_live(&store, 2));
        assert_eq!(insert(&store, 1, 3), [1; 20]);
        fetch(4, 2);
        fetch(4, 2);
        assert_eq!(insert(&store, 2, 5), [4; 20]);
        assert_eq!(store.eviction_queue.lock().ids.len(), 3, "fetched twice, it has one entry");
    }

    #[test]
    fn a_revoked_token_does_not_count_toward_the_maximum() {
        let (store, clock) = store(None, 10);
        for n in 0..5 {
            insert(&store, n, n);
        }
        let mut revoked = Vec::new();
        let is_old = |_: &TokenId, record: &TokenRecord| record.login.0[0] < 5;
        store.revoke_if(is_old, |id, _| revoked.push(*id));
        assert_eq!((revoked.len(), store.len()), (5, 0));
        for n in 10..20 {
            insert(&store, n, n);
        }
        assert!((10..20).all(|n| is_live(&store, n)), "none had to make place for a revoked one");
        assert_eq!((store.evicted(), store.end_of(&id_of(&[3; 20]))), (0, TokenEnd::Revoked));
        insert(&store, 20, 20);
        assert_eq!((store.evicted(), store.end_of(&id_of(&[10; 20]))), (1, TokenEnd::Evicted));
        store.revoke_if(|id, _| *id == id_of(&[20; 20]), |_, _| {});
        assert_eq!(store.end_of(&id_of(&[20; 20])), TokenEnd::Revoked);
        clock.advance(HOUR);
        assert_eq!(store.end_of(&id_of(&[20; 20])), TokenEnd::Expired);
    }

    #[test]
    fn entries_of_removed_tokens_do_not_pile_up() {
        let (store, _) = store(None, 10);
        for n in 0..3 * MIN_STALE_ENTRIES {
            insert(&store, 1, n.to_le_bytes()[0]);
            store.revoke_if(|_, _| true, |_, _| {});
        }
        assert!(store.eviction_queue.lock().ids.len() <= MIN_STALE_ENTRIES + 2);
    }

    #[test]
    fn concurrent_mints_for_one_login_agree() {
        let (store, _) = store(None, 1000);
        let seeds: Vec<Seed> = std::thread::scope(|scope| {
            let store = &store;
            let threads: Vec<_> = (0..8).map(|n| scope.spawn(move || insert(store, 1, n))).collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
        });
        assert!(seeds.iter().all(|seed| *seed == seeds[0]), "{seeds:?}");
        assert_eq!(store.len(), 1);
    }
}
