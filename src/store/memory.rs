//! Tokens in the memory of this process: all there are, or those that it has seen of a store beyond.

use std::borrow::Borrow;
use std::collections::VecDeque;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use dashmap::{DashMap, Entry};
use parking_lot::Mutex;

use crate::base::clock::{Clock, Tick};
use crate::base::identity_hasher::IdentityHasher;
use crate::base::secret::Secret;
use crate::store::{LoginId, Seed, TokenId, TokenRecord};

/// Lifetimes and size.
#[derive(Clone, Copy, Debug)]
pub struct TokenLimits {
    /// Absolute lifetime of a token.
    pub ttl: Duration,
    /// Lifetime without use.
    pub idle_ttl: Option<Duration>,
    /// Most tokens kept; beyond it the oldest ends.
    pub max: usize,
}

/// The limits as all threads see them: written seldom, read with each lookup.
#[derive(Debug)]
struct AtomicTokenLimits {
    /// Nanoseconds.
    ttl: AtomicU64,
    /// Nanoseconds; [`NEVER`] for none.
    idle_ttl: AtomicU64,
    max: AtomicUsize,
}

/// Five hundred years.
const NO_IDLE_TTL: u64 = u64::MAX;

impl AtomicTokenLimits {
    fn new(limits: TokenLimits) -> AtomicTokenLimits {
        let all = AtomicTokenLimits {
            ttl: AtomicU64::new(0),
            idle_ttl: AtomicU64::new(0),
            max: AtomicUsize::new(0),
        };
        all.set(limits);
        all
    }

    fn set(&self, limits: TokenLimits) {
        let nanos = |span: Duration| u64::try_from(span.as_nanos()).unwrap_or(NO_IDLE_TTL - 1);
        self.ttl.store(nanos(limits.ttl), Ordering::Relaxed);
        self.idle_ttl.store(limits.idle_ttl.map_or(NO_IDLE_TTL, nanos), Ordering::Relaxed);
        self.max.store(limits.max, Ordering::Relaxed);
    }

    fn load(&self) -> TokenLimits {
        TokenLimits { ttl: self.ttl(), idle_ttl: self.idle_ttl(), max: self.max() }
    }

    fn ttl(&self) -> Duration {
        Duration::from_nanos(self.ttl.load(Ordering::Relaxed))
    }

    fn idle_ttl(&self) -> Option<Duration> {
        let nanos = self.idle_ttl.load(Ordering::Relaxed);
        (nanos != NO_IDLE_TTL).then(|| Duration::from_nanos(nanos))
    }

    fn max(&self) -> usize {
        self.max.load(Ordering::Relaxed)
    }
}

/// A concurrent map of live tokens, bounded in number and time.
#[derive(Debug)]
pub struct MemoryStore {
    tokens: DashMap<TokenId, Arc<TokenRecord>, IdentityHasher>,
    /// The token that a login is given. A set in all but name: one whose elements can be replaced.
    logins: DashMap<RecordByLogin, (), IdentityHasher>,
    /// In the order of coming, which is the order of expiry too where all tokens are minted here, as all live equally
    /// long. One that came from elsewhere may end before those ahead of it: it is dead then, but keeps its place.
    order: Mutex<MintOrder>,
    limits: AtomicTokenLimits,
    clock: Clock,
}

/// A token that is found by its login, which it holds: a key beside it would be as large as the rest of its place.
#[derive(Debug)]
struct RecordByLogin(Arc<TokenRecord>);

impl Borrow<LoginId> for RecordByLogin {
    fn borrow(&self) -> &LoginId {
        &self.0.login
    }
}

impl PartialEq for RecordByLogin {
    fn eq(&self, other: &RecordByLogin) -> bool {
        self.0.login == other.0.login
    }
}

impl Eq for RecordByLogin {}

impl Hash for RecordByLogin {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.login.hash(state);
    }
}

/// Tokens in the order of coming.
#[derive(Debug, Default)]
struct MintOrder {
    ids: VecDeque<TokenId>,
    /// Mints since all places were last looked at.
    mints_since_walk: usize,
}

/// A walk over all places is due again after the `max`-th part of this of mints, so that each mint pays for so many
/// places at most.
const MAX_VISITS_PER_MINT: usize = 16;

/// Enough that a sweep holds up few lookups at a time.
const SHARD_COUNT: usize = 256;

impl MemoryStore {
    /// An empty store.
    pub fn new(limits: TokenLimits, clock: Clock) -> MemoryStore {
        MemoryStore {
            tokens: DashMap::with_hasher_and_shard_amount(IdentityHasher::default(), SHARD_COUNT),
            logins: DashMap::with_hasher_and_shard_amount(IdentityHasher::default(), SHARD_COUNT),
            order: Mutex::default(),
            limits: AtomicTokenLimits::new(limits),
            clock,
        }
    }

    /// Lifetimes and size.
    pub fn limits(&self) -> TokenLimits {
        self.limits.load()
    }

    /// Other ones from now on. A token keeps the end that it was given, and idles by the new ones.
    pub fn set_limits(&self, limits: TokenLimits) {
        self.limits.set(limits);
        let mut order = self.order.lock();
        if order.ids.len() > limits.max {
            self.evict_down_to(&mut order, limits.max);
        }
    }

    /// The live token with this name, noting its use.
    pub fn find(&self, id: &TokenId) -> Option<Arc<TokenRecord>> {
        self.find_at(id, self.clock.now())
    }

    /// The same, where the caller knows the time already.
    pub fn find_at(&self, id: &TokenId, now: Tick) -> Option<Arc<TokenRecord>> {
        let record = Arc::clone(&*self.tokens.get(id)?);
        if !self.is_live(&record, now) {
            return None;
        }
        record.touch(now, self.limits.idle_ttl());
        Some(record)
    }

    /// The token with this name, without noting a use.
    pub fn peek(&self, id: &TokenId) -> Option<Arc<TokenRecord>> {
        self.tokens.get(id).map(|record| Arc::clone(&record))
    }

    /// The seed of the login's live token, if it still has a tenth of its life before it: a client that asks for a
    /// token means to use it, and one about to end would be of no use. Asking counts as a use.
    pub fn find_seed(&self, login: &LoginId, id_of: impl Fn(&Seed) -> TokenId) -> Option<Seed> {
        let seed = self.current_token(login)?.seed;
        let record = self.find(&id_of(&seed))?;
        self.can_be_issued(&record).then_some(seed)
    }

    /// Whether this token is the one that its login is given.
    pub fn is_current_for_login(&self, record: &TokenRecord) -> bool {
        self.current_token(&record.login).is_some_and(|current| std::ptr::eq(&*current, record))
    }

    fn current_token(&self, login: &LoginId) -> Option<Arc<TokenRecord>> {
        self.logins.get(login).map(|current| Arc::clone(&current.key().0))
    }

    /// Whether enough of its life is left.
    pub fn can_be_issued(&self, record: &TokenRecord) -> bool {
        record.expires.since(self.clock.now()) >= self.limits.ttl() / 10
    }

    /// Keeps a token for the login, unless another thread kept one first: then that one's seed is given back.
    pub fn insert(
        &self,
        seed: Seed,
        login: LoginId,
        record: impl FnOnce(Tick, Tick) -> TokenRecord,
        id_of: impl Fn(&Seed) -> TokenId,
    ) -> Seed {
        // The lock makes minting one at a time; lookups never take it.
        let mut order = self.order.lock();
        if let Some(other) = self.find_seed(&login, &id_of) {
            return other;
        }
        let now = self.clock.now();
        self.insert_locked(&mut order, id_of(&seed), record(now, now.after(self.limits.ttl())), false);
        seed
    }

    /// Keeps a token that was minted for its login just now, here or elsewhere.
    pub fn insert_minted(&self, id: TokenId, record: TokenRecord) {
        let mut order = self.order.lock();
        self.insert_locked(&mut order, id, record, false);
    }

    /// Keeps a token that was minted at some time. Its login may have a newer one; that one stays the one it is given.
    pub fn insert_fetched(&self, id: TokenId, record: TokenRecord) -> Arc<TokenRecord> {
        let mut order = self.order.lock();
        let has_another =
            self.current_token(&record.login).is_some_and(|current| current.seed != record.seed);
        self.insert_locked(&mut order, id, record, has_another)
    }

    fn insert_locked(
        &self,
        order: &mut MintOrder,
        id: TokenId,
        record: TokenRecord,
        has_another: bool,
    ) -> Arc<TokenRecord> {
        order.mints_since_walk = order.mints_since_walk.saturating_add(1);
        let max = self.limits.max();
        if order.ids.len() >= max {
            self.evict_down_to(order, max - 1);
        }
        let record = Arc::new(record);
        let had_a_place = self.tokens.insert(id, Arc::clone(&record)).is_some();
        if !has_another {
            match self.logins.entry(RecordByLogin(Arc::clone(&record))) {
                Entry::Occupied(older) => drop(older.replace_entry(())),
                Entry::Vacant(free) => drop(free.insert(())),
            }
        }
        if !had_a_place {
            order.ids.push_back(id);
        }
        record
    }

    /// Has the backend shown another key instead of a live token; `None` if it lives no more.
    pub fn set_upstream_key(&self, id: &TokenId, key: Secret) -> Option<Arc<TokenRecord>> {
        // Requests that have the old one in their hands end with it.
        let (old, new) = {
            let mut record = self.tokens.get_mut(id)?;
            let new = Arc::new(record.with_upstream_key(Some(key)));
            (std::mem::replace(&mut *record, Arc::clone(&new)), new)
        };
        if let Entry::Occupied(current) = self.logins.entry(RecordByLogin(Arc::clone(&new)))
            && Arc::ptr_eq(&current.key().0, &old)
        {
            current.replace_entry(());
        }
        Some(new)
    }

    /// Forgets one token. Its place is given back when its time comes.
    pub fn remove(&self, id: &TokenId) {
        if let Some((_, record)) = self.tokens.remove(id) {
            self.remove_login_of(&record);
        }
    }

    /// Forgets the tokens that `ends` says, shard by shard; gives back how many.
    pub fn remove_if(&self, ends: impl Fn(&TokenId, &TokenRecord) -> bool) -> usize {
        let mut removed = 0;
        self.tokens.retain(|id, record| {
            let stays = !ends(id, record);
            if !stays {
                removed += 1;
                self.remove_login_of(record);
            }
            stays
        });
        removed
    }

    /// Shows all live tokens, shard by shard.
    pub fn for_each(&self, mut show: impl FnMut(&TokenId, &Arc<TokenRecord>)) {
        let now = self.clock.now();
        for entry in &self.tokens {
            if self.is_live(entry.value(), now) {
                show(entry.key(), entry.value());
            }
        }
    }

    /// Forgets tokens that have ended. Called now and then, off the path of requests.
    pub fn sweep(&self) {
        let now = self.clock.now();
        while self.evict_expired_batch(now) {}
        if self.limits.idle_ttl().is_some() {
            // A dead token's place in `order` is given back when its time comes, or room is needed.
            self.remove_if(|_, record| !self.is_live(record, now));
        }
    }

    /// How many tokens are kept, ended ones that were not swept yet included.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether no token is kept.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    fn is_live(&self, record: &TokenRecord, now: Tick) -> bool {
        let idle = |ttl| now.since(record.last_used()) >= ttl;
        now < record.expires && !self.limits.idle_ttl().is_some_and(idle)
    }

    /// Ends at most a hundred expired tokens, so that minting never waits long for the lock; false when none is left.
    fn evict_expired_batch(&self, now: Tick) -> bool {
        let mut order = self.order.lock();
        for _ in 0..100 {
            let Some(id) = order.ids.front() else { return false };
            let live = self.tokens.get(id).is_some_and(|record| self.is_live(&record, now));
            if live {
                return false;
            }
            self.evict_oldest(&mut order);
        }
        true
    }

    /// Forgets what has ended, and then the oldest that live, until there are `most`.
    fn evict_down_to(&self, order: &mut MintOrder, most: usize) {
        let now = self.clock.now();
        // Only idling makes tokens end out of order. Between two walks a token that has just idled out may outlive an
        // older one that is in use: who mints at the cap again and again must not make each mint a walk.
        if self.limits.idle_ttl().is_some()
            && order.mints_since_walk.saturating_mul(MAX_VISITS_PER_MINT) >= self.limits.max()
        {
            order.mints_since_walk = 0;
            order.ids.retain(|id| {
                let live = self.tokens.get(id).is_some_and(|record| self.is_live(&record, now));
                if !live {
                    self.remove(id);
                }
                live
            });
        }
        while order.ids.len() > most {
            self.evict_oldest(order);
        }
    }

    fn evict_oldest(&self, order: &mut MintOrder) {
        if let Some(id) = order.ids.pop_front() {
            self.remove(&id);
        }
    }

    /// The login may have a newer token by now; that one stays.
    fn remove_login_of(&self, record: &Arc<TokenRecord>) {
        self.logins.remove_if(&record.login, |current, ()| Arc::ptr_eq(&current.0, record));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::user_name::UserName;
    use crate::store::{NewToken, Timestamp};

    const HOUR: Duration = Duration::from_secs(3600);

    fn store(idle_ttl: Option<Duration>, max: usize) -> (MemoryStore, Clock) {
        let clock = Clock::manual(0);
        (MemoryStore::new(TokenLimits { ttl: HOUR, idle_ttl, max }, clock.clone()), clock)
    }

    fn id_of(seed: &Seed) -> TokenId {
        TokenId::from_token(seed)
    }

    fn insert(store: &MemoryStore, login: u8, seed: u8) -> Seed {
        let user = UserName::parse(format!("user-{login}").as_bytes()).expect("valid");
        let token = NewToken { login: LoginId([login; 16]), user, upstream_key: None, salt: 0 };
        let record = |now, expires| TokenRecord::new(token, [seed; 20], Timestamp(0), now, expires);
        store.insert([seed; 20], LoginId([login; 16]), record, id_of)
    }

    fn is_live(store: &MemoryStore, seed: u8) -> bool {
        store.find(&id_of(&[seed; 20])).is_some()
    }

    #[test]
    fn a_login_keeps_its_token_while_it_lives() {
        let (store, clock) = store(None, 10);
        assert_eq!(insert(&store, 1, 1), [1; 20]);
        assert_eq!(insert(&store, 1, 2), [1; 20], "the first one stays");
        assert_eq!(insert(&store, 2, 3), [3; 20], "another login has its own");
        clock.advance(HOUR);
        assert!(!is_live(&store, 1));
        assert_eq!(insert(&store, 1, 4), [4; 20]);
    }

    #[test]
    fn a_token_in_its_last_tenth_is_good_but_not_handed_out_again() {
        let (store, clock) = store(None, 10);
        insert(&store, 1, 1);
        clock.advance(HOUR * 95 / 100);
        assert_eq!(insert(&store, 1, 2), [2; 20]);
        assert!(is_live(&store, 1) && is_live(&store, 2));
        clock.advance(HOUR * 10 / 100);
        store.sweep();
        assert!(!is_live(&store, 1) && is_live(&store, 2));
        assert_eq!(insert(&store, 1, 3), [2; 20], "the sweep of the old one left the new one's login");
    }

    #[test]
    fn use_keeps_a_token_from_idling_out_but_not_from_expiring() {
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
    fn at_the_cap_the_oldest_ends() {
        let (store, _) = store(None, 3);
        for n in 1..=5 {
            insert(&store, n, n);
        }
        assert_eq!(store.len(), 3);
        assert!(!is_live(&store, 1) && !is_live(&store, 2));
        assert!(is_live(&store, 3) && is_live(&store, 4) && is_live(&store, 5));
    }

    #[test]
    fn at_the_cap_a_token_that_idled_out_makes_room_before_one_in_use() {
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
    fn the_upstream_key_of_a_live_token_can_be_changed_and_nothing_else_of_it() {
        let (store, clock) = store(Some(HOUR / 4), 10);
        insert(&store, 1, 1);
        let key = || store.find(&id_of(&[1; 20])).and_then(|record| record.upstream_key().cloned());
        assert_eq!(key(), None);
        clock.advance(HOUR / 8);
        store.set_upstream_key(&id_of(&[1; 20]), Secret::new("tk_upstream".into()));
        assert_eq!(key(), Some(Secret::new("tk_upstream".into())));
        assert!(!format!("{:?}", store.find(&id_of(&[1; 20]))).contains("tk_upstream"));
        clock.advance(HOUR / 4);
        store.set_upstream_key(&id_of(&[1; 20]), Secret::new("tk_upstream".into()));
        assert_eq!(key(), None, "that is no use of it, so it has idled out");
        store.set_upstream_key(&id_of(&[2; 20]), Secret::new("tk_upstream".into()));
        assert_eq!(store.len(), 1, "what is not there is not made");
    }

    #[test]
    fn a_full_store_of_tokens_in_use_is_not_walked_with_every_mint() {
        let (store, _) = store(Some(HOUR / 4), 160);
        let walks = (0..=255_u8).map(|n| {
            insert(&store, n, n);
            store.order.lock().mints_since_walk == 0
        });
        // The first one is when the store is full; then one every ten mints.
        assert_eq!(walks.filter(|walked| *walked).count(), 10);
        assert_eq!(store.len(), 160);
    }

    #[test]
    fn a_sweep_forgets_what_has_ended_and_nothing_else() {
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
        assert!(store.logins.len() == 56 && store.order.lock().ids.len() == 56);
    }

    #[test]
    fn what_is_removed_is_gone_and_so_is_its_login_unless_that_has_a_newer_token() {
        let (store, clock) = store(None, 10);
        insert(&store, 1, 1);
        clock.advance(HOUR * 95 / 100);
        insert(&store, 1, 2);
        insert(&store, 2, 3);
        store.remove(&id_of(&[1; 20]));
        assert_eq!(insert(&store, 1, 4), [2; 20], "the newer one stays");
        assert_eq!(store.remove_if(|_, record| record.user.as_str() == "user-2"), 1);
        assert_eq!(insert(&store, 2, 5), [5; 20]);
        clock.advance(HOUR);
        store.sweep();
        assert!(store.is_empty() && store.logins.is_empty());
        assert!(store.order.lock().ids.is_empty());
    }

    #[test]
    fn a_token_found_elsewhere_is_not_handed_out_where_there_is_a_newer_one() {
        let (store, clock) = store(None, 10);
        let found = |seed: u8, login: u8| {
            let user = UserName::parse(b"alice").expect("valid");
            let token = NewToken { login: LoginId([login; 16]), user, upstream_key: None, salt: 0 };
            let now = clock.now();
            let record = TokenRecord::new(token, [seed; 20], Timestamp(0), now, now.after(HOUR));
            store.insert_fetched(id_of(&[seed; 20]), record)
        };
        insert(&store, 1, 1);
        found(2, 1);
        assert!(is_live(&store, 1) && is_live(&store, 2));
        assert_eq!(insert(&store, 1, 3), [1; 20]);
        found(4, 2);
        found(4, 2);
        assert_eq!(insert(&store, 2, 5), [4; 20]);
        assert_eq!(store.order.lock().ids.len(), 3, "found twice, it has one place");
    }

    #[test]
    fn threads_that_mint_for_one_login_at_once_agree() {
        let (store, _) = store(None, 1000);
        let seeds: Vec<Seed> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|n| {
                    scope.spawn({
                        let store = &store;
                        move || insert(store, 1, n)
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
        });
        assert!(seeds.iter().all(|seed| *seed == seeds[0]), "{seeds:?}");
        assert_eq!(store.len(), 1);
    }
}
