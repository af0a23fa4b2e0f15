//! Tokens in the memory of this process.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use dashmap::DashMap;

use crate::clock::{Clock, Tick};
use crate::secret::Secret;
use crate::store::{LoginId, Seed, TokenId, TokenRecord};

/// Lifetimes and size.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Absolute lifetime of a token.
    pub ttl: Duration,
    /// Lifetime without use.
    pub idle_ttl: Option<Duration>,
    /// Most tokens kept; beyond it the oldest ends.
    pub max: usize,
}

/// A concurrent map of live tokens, bounded in number and time.
#[derive(Debug)]
pub struct MemoryStore {
    tokens: DashMap<TokenId, Arc<TokenRecord>>,
    logins: DashMap<LoginId, Seed>,
    /// In the order of minting, which is the order of expiry too, as all tokens live equally long.
    order: Mutex<Order>,
    limits: Limits,
    clock: Clock,
}

/// Tokens in the order of minting.
#[derive(Debug, Default)]
struct Order {
    places: VecDeque<(TokenId, LoginId, Seed)>,
    /// Mints since all places were last looked at.
    since_walk: usize,
}

/// A walk over all places is due again after the `max`-th part of this of mints, so that each mint pays for so many
/// places at most.
const PLACES_A_MINT: usize = 16;

/// Enough that a sweep holds up few lookups at a time.
const SHARDS: usize = 256;

impl MemoryStore {
    /// An empty store.
    pub fn new(limits: Limits, clock: Clock) -> MemoryStore {
        MemoryStore {
            tokens: DashMap::with_shard_amount(SHARDS),
            logins: DashMap::with_shard_amount(SHARDS),
            order: Mutex::default(),
            limits,
            clock,
        }
    }

    /// The live token with this name, noting its use.
    pub fn find(&self, id: &TokenId) -> Option<Arc<TokenRecord>> {
        let record = Arc::clone(&*self.tokens.get(id)?);
        let now = self.clock.now();
        if !self.is_live(&record, now) {
            return None;
        }
        if let Some(idle_ttl) = self.limits.idle_ttl {
            record.touch(now, idle_ttl);
        }
        Some(record)
    }

    /// The seed of the login's live token, if it still has a tenth of its life before it: a client that asks for a
    /// token means to use it, and one about to end would be of no use. Asking counts as a use.
    pub fn seed_of(&self, login: &LoginId, id_of: impl Fn(&Seed) -> TokenId) -> Option<Seed> {
        let seed = *self.logins.get(login)?;
        let record = self.find(&id_of(&seed))?;
        let left = record.expires.since(self.clock.now());
        (left >= self.limits.ttl / 10).then_some(seed)
    }

    /// Keeps a token for the login, unless another thread kept one first: then that one's seed is given back.
    pub fn insert(
        &self,
        login: LoginId,
        seed: Seed,
        record: impl FnOnce(Tick, Tick) -> TokenRecord,
        id_of: impl Fn(&Seed) -> TokenId,
    ) -> Seed {
        // The lock makes minting one at a time; lookups never take it.
        let mut order = self.order.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(other) = self.seed_of(&login, &id_of) {
            return other;
        }
        order.since_walk = order.since_walk.saturating_add(1);
        if order.places.len() >= self.limits.max {
            self.make_room(&mut order);
        }
        let now = self.clock.now();
        let id = id_of(&seed);
        self.tokens.insert(id, Arc::new(record(now, now.after(self.limits.ttl))));
        self.logins.insert(login, seed);
        order.places.push_back((id, login, seed));
        seed
    }

    /// Has the backend shown another key instead of a live token; nothing happens if it lives no more.
    pub fn set_upstream_key(&self, id: &TokenId, key: Secret) {
        if let Some(mut record) = self.tokens.get_mut(id) {
            // Requests that have the old one in their hands end with it.
            let renewed = TokenRecord::new(record.user.clone(), record.last_used(), record.expires);
            *record = Arc::new(renewed.with_upstream_key(Some(key)));
        }
    }

    /// Forgets tokens that have ended. Called now and then, off the path of requests.
    pub fn sweep(&self) {
        let now = self.clock.now();
        while self.end_some_expired(now) {}
        if self.limits.idle_ttl.is_some() {
            // Shard by shard. A dead token's place in `order` is given back when its time comes, or room is needed.
            self.tokens.retain(|_, record| self.is_live(record, now));
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
        now < record.expires && !self.limits.idle_ttl.is_some_and(idle)
    }

    /// Ends at most a hundred expired tokens, so that minting never waits long for the lock; false when none is left.
    fn end_some_expired(&self, now: Tick) -> bool {
        let mut order = self.order.lock().unwrap_or_else(PoisonError::into_inner);
        for _ in 0..100 {
            let Some((id, _, _)) = order.places.front() else { return false };
            let live = self.tokens.get(id).is_some_and(|record| self.is_live(&record, now));
            if live {
                return false;
            }
            self.end_oldest(&mut order);
        }
        true
    }

    /// Forgets what has ended; if that is nothing, the oldest that lives.
    fn make_room(&self, order: &mut Order) {
        let now = self.clock.now();
        // Only idling makes tokens end out of order. Between two walks a token that has just idled out may outlive an
        // older one that is in use: who mints at the cap again and again must not make each mint a walk.
        if self.limits.idle_ttl.is_some() && order.since_walk.saturating_mul(PLACES_A_MINT) >= self.limits.max
        {
            order.since_walk = 0;
            order.places.retain(|(id, login, seed)| {
                let live = self.tokens.get(id).is_some_and(|record| self.is_live(&record, now));
                if !live {
                    self.tokens.remove(id);
                    self.logins.remove_if(login, |_, current| current == seed);
                }
                live
            });
        }
        while order.places.len() >= self.limits.max {
            self.end_oldest(order);
        }
    }

    fn end_oldest(&self, order: &mut Order) {
        if let Some((id, login, seed)) = order.places.pop_front() {
            self.tokens.remove(&id);
            // The login may have a newer token by now; that one stays.
            self.logins.remove_if(&login, |_, current| *current == seed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::user_name::UserName;

    const HOUR: Duration = Duration::from_secs(3600);

    fn store(idle_ttl: Option<Duration>, max: usize) -> (MemoryStore, Clock) {
        let clock = Clock::manual(0);
        (MemoryStore::new(Limits { ttl: HOUR, idle_ttl, max }, clock.clone()), clock)
    }

    fn id_of(seed: &Seed) -> TokenId {
        TokenId::of(seed)
    }

    fn insert(store: &MemoryStore, login: u8, seed: u8) -> Seed {
        let user = UserName::parse(format!("user-{login}").as_bytes()).expect("valid");
        let record = |minted, expires| TokenRecord::new(user, minted, expires);
        store.insert(LoginId([login; 16]), [seed; 20], record, id_of)
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
            store.order.lock().expect("no panic").since_walk == 0
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
        assert!(store.logins.len() == 56 && store.order.lock().expect("no panic").places.len() == 56);
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
