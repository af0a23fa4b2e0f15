//! Stores what the gateway must remember about tokens. It knows tokens by their hash only, and never sees a password.
//!
//! [`Store`] is the interface. In front is always the memory of this process, which serves known tokens without
//! waiting; behind it may be a file, or a Redis that replicas share, driven by a thread of its own. Revocation is in
//! `revocation.rs`.

mod deny_list;
mod driver;
mod ended_tokens;
mod file;
mod held_token;
mod keys;
mod listing;
mod memory;
mod rate_uses;
mod record;
mod redis;
mod revocation;
mod salt_usage;
mod stop;
mod time;
mod token_id;
mod token_limits;
mod token_set;
mod user_index;
mod wire;

use std::hash::{Hash, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use parking_lot::Mutex;
use tracing::warn;
use zeroize::Zeroizing;

use crate::base::clock::{Clock, Tick};
use crate::base::secret::Secret;
use crate::base::user_name::UserName;
use crate::config::{Config, Problem, StoreKind};
use crate::observability::metrics::StoreMetrics;

use driver::{DriverHandle, LoginWait, PersistentStore, PreparedDriver};
use keys::StoreKeys;
use salt_usage::SaltUsageCounter;
use time::StoreClock;

pub use deny_list::{ActiveDenial, DeniedSubject};
pub use driver::RunningDriver;
pub use ended_tokens::TokenEnd;
pub use held_token::HeldToken;
pub use keys::{KeyNumber, KeyRing, PRIMARY_KEY, hmac_tag};
pub use listing::{TokenFilter, TokenListing, TokenSummary};
pub use memory::MemoryStore;
pub use rate_uses::{OtherUses, RateUse};
pub use record::{NewToken, TokenBinding, TokenRecord};
pub use redis::{RedisFailure, check as check_redis};
pub use revocation::{MAX_DENIAL, Revocation};
pub use salt_usage::{SaltName, SaltUsage};
pub use stop::{ActiveStop, StopKind, StopNote, StopTarget};
pub use time::Timestamp;
pub use token_id::{Fingerprint, TokenId};
pub use token_limits::TokenLimits;

/// Identifies a login: a keyed hash of user name and password.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoginId(pub [u8; 16]);

/// Eight bytes of it, as [`crate::base::identity_hasher`] requires.
impl Hash for LoginId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let [a, b, c, d, e, f, g, h, ..] = self.0;
        state.write_u64(u64::from_le_bytes([a, b, c, d, e, f, g, h]));
    }
}

/// The random part of a token, which together with the login makes the token; see `auth::token`.
pub type Seed = [u8; 20];

/// The store of all tokens.
pub struct Store {
    memory: Arc<MemoryStore>,
    store_clock: Arc<StoreClock>,
    clock: Clock,
    /// `None`: tokens are in memory only.
    driver: Option<DriverHandle>,
    /// The driver before [`Store::start`].
    prepared: Mutex<Option<PreparedDriver>>,
    /// Set by [`Store::start`] if there is a driver.
    metrics: OnceLock<StoreMetrics>,
    /// Used only without a driver.
    salt_usage: SaltUsageCounter,
    key_ring: KeyRing,
    /// The number of evictions at the last sweep.
    logged_evictions: AtomicU64,
}

/// The live token with an id, or why there is none.
pub type FetchedToken = Result<Arc<TokenRecord>, TokenEnd>;

/// The store is unavailable: it is unknown whether the token is live.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the token store is unavailable")]
pub struct Unavailable;

/// Why a store does not start.
#[derive(Debug, thiserror::Error)]
pub enum StoreStartError {
    /// The file cannot be used.
    #[error("store.path: {0}")]
    File(String),
    /// The thread cannot be started.
    #[error("cannot start the thread of the token store")]
    Thread(#[source] std::io::Error),
}

/// A wrong credential or a new token, which replicas report to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CredentialFailure {
    /// The limit that it counts toward.
    pub kind: u8,
    /// A keyed hash of the address or user that it counts against.
    pub bucket: u64,
}

/// Called with each failure that a different replica reports.
pub type OnFailure = Box<dyn Fn(CredentialFailure) + Send>;

impl Store {
    /// A store for this configuration. It reads the files that the configuration names. It opens and connects to
    /// nothing before [`Store::start`].
    pub fn new(config: &Config, clock: &Clock) -> Result<Store, Problem> {
        let tokens = &config.tokens;
        let limits = TokenLimits::new(tokens);
        let mut store = Store::in_memory(limits, KeyRing::from_options(&config.store.keys), clock.clone());
        let keys = || StoreKeys::new(&store.key_ring);
        let (memory, store_clock) = (Arc::clone(&store.memory), Arc::clone(&store.store_clock));
        let persistent = match &config.store.kind {
            StoreKind::Memory => return Ok(store),
            StoreKind::File(path) => {
                PersistentStore::File(file::FileStore::new(path.clone(), keys(), memory, store_clock))
            }
            StoreKind::Redis(options) => {
                let context = redis::StoreContext { keys: keys(), memory, store_clock };
                let redis = redis::RedisStore::new((**options).clone(), config.store.clone(), context)?;
                PersistentStore::Redis(Box::new(redis))
            }
        };
        let (driver, prepared) = driver::prepare(persistent, &config.store);
        store.driver = Some(driver);
        store.prepared = Mutex::new(Some(prepared));
        Ok(store)
    }

    /// A store in the memory of this process only.
    pub fn in_memory(limits: TokenLimits, key_ring: KeyRing, clock: Clock) -> Store {
        Store {
            memory: Arc::new(MemoryStore::new(limits, clock.clone())),
            store_clock: Arc::new(StoreClock::new(clock.clone())),
            clock,
            driver: None,
            prepared: Mutex::default(),
            metrics: OnceLock::new(),
            salt_usage: SaltUsageCounter::default(),
            key_ring,
            logged_evictions: AtomicU64::new(0),
        }
    }

    /// Opens the persistent store and starts its thread. `None` if tokens are in memory only, or it has been started.
    pub fn start(
        &self,
        metrics: &StoreMetrics,
        on_failure: OnFailure,
    ) -> Result<Option<RunningDriver>, StoreStartError> {
        let prepared = self.prepared.lock().take();
        match prepared {
            None => {
                metrics.up.set(1);
                Ok(None)
            }
            Some(prepared) => {
                let _ = self.metrics.set(metrics.clone());
                prepared.start(metrics.up.clone(), on_failure).map(Some)
            }
        }
    }

    /// The live token with this id, if this process knows it. Records a use. Never waits.
    pub fn find(&self, id: &TokenId) -> Option<Arc<TokenRecord>> {
        let now = self.clock.now();
        let record = self.memory.find(id, now)?;
        self.is_fresh(now).then_some(record)
    }

    /// SECURITY: the memory may be used only while the store could have reported a revocation recently.
    fn is_fresh(&self, now: Tick) -> bool {
        self.driver.as_ref().is_none_or(|driver| driver.availability.is_fresh(now))
    }

    /// Whether replicas share the tokens, so that one that is not in memory may be valid.
    fn is_shared(&self) -> bool {
        self.driver.as_ref().is_some_and(|driver| driver.is_shared)
    }

    /// The token with this id that [`Store::find`] did not find: a different replica may have minted it. `key` is the
    /// key that made it.
    pub async fn fetch(&self, id: &TokenId, key: KeyNumber) -> Result<FetchedToken, Unavailable> {
        match &self.driver {
            None => Ok(Err(self.memory.end_of(id))),
            Some(driver) => self.record_operation("fetch", driver.fetch(*id, key)).await,
        }
    }

    /// The current time, by the clock that all replicas share.
    pub fn now(&self) -> Timestamp {
        self.store_clock.now()
    }

    /// The keys that make tokens and protect stored data.
    pub fn key_ring(&self) -> &KeyRing {
        &self.key_ring
    }

    /// The seed of the login's live token, if this process knows it and a tenth of its lifetime remains. Never waits.
    ///
    /// While replicas share a store, [`Store::insert`] finds it: the store may have lost the token, and then the other
    /// replicas would reject it.
    pub fn find_seed(&self, user: &UserName, login: &LoginId, id_of: impl Fn(&Seed) -> TokenId) -> Option<Seed> {
        let is_shared = self.driver.as_ref().is_some_and(|driver| {
            let availability = &driver.availability;
            availability.is_up() && !availability.is_authoritative()
        });
        (!is_shared).then(|| self.known_seed(user, login, id_of)).flatten()
    }

    /// True if this process knows a live token of the login, so that it will not receive a new one.
    pub fn knows_login(&self, user: &UserName, login: &LoginId, id_of: impl Fn(&Seed) -> TokenId) -> bool {
        self.known_seed(user, login, id_of).is_some()
    }

    fn known_seed(&self, user: &UserName, login: &LoginId, id_of: impl Fn(&Seed) -> TokenId) -> Option<Seed> {
        self.is_fresh(self.clock.now()).then(|| self.memory.find_seed(user, login, id_of)).flatten()
    }

    /// Stores a token for the login and returns its seed. If the login has received a token in the meantime, returns
    /// the seed of that one.
    pub async fn insert(
        &self,
        token: NewToken,
        seed: Seed,
        id_of: impl Fn(&Seed) -> TokenId,
    ) -> Result<Seed, Unavailable> {
        if let Some(driver) = &self.driver {
            let known = self.known_seed(&token.user, &token.login, &id_of);
            // A token that the client has in any case needs no store. A new key for the backend does.
            let fallback = known.filter(|_| token.upstream_key.is_none());
            let known = known.map(|seed| (id_of(&seed), seed));
            let wait = if fallback.is_some() { LoginWait::Short } else { LoginWait::Full };
            let minting = driver.mint(token, (seed, id_of(&seed)), known, wait);
            return self.record_operation("mint", minting).await.or_else(|error| fallback.ok_or(error));
        }
        let minted = self.store_clock.timestamp(self.clock.now());
        Ok(self.memory.insert(token, seed, minted, id_of))
    }

    /// Replaces the key that the backend receives instead of a token. Does nothing if the token is not live.
    pub async fn set_upstream_key(&self, id: &TokenId, key: Secret) -> Result<(), Unavailable> {
        match &self.driver {
            None => self.memory.set_upstream_key(id, &key),
            Some(driver) => {
                self.record_operation("set_upstream_key", driver.set_upstream_key(*id, key)).await?;
            }
        }
        Ok(())
    }

    /// Lists live tokens.
    pub async fn list(&self, filter: TokenFilter) -> Result<TokenListing, Unavailable> {
        match &self.driver {
            None => Ok(listing::list_memory(&self.memory, &self.store_clock, &filter)),
            Some(driver) => self.record_operation("list", driver.list(filter)).await,
        }
    }

    /// Reports a failure to the other replicas, if there are any. Never waits.
    pub fn publish_failure(&self, failure: CredentialFailure) {
        if let Some(driver) = &self.driver {
            driver.publish_failure(failure);
        }
    }

    /// The key for the hashes of callers in [`RateUse`]; `None` if no replicas share the store.
    pub fn caller_key(&self) -> Option<Zeroizing<[u8; 32]>> {
        let driver = self.driver.as_ref()?;
        driver.is_shared.then(|| self.key_ring.derive_primary("limit rules 1"))
    }

    /// Reports what this replica has admitted under rules to the others, and returns what is known of them. `None` if no
    /// replicas share the store. Never waits.
    pub fn exchange_rate_uses(&self, own: Vec<RateUse>) -> Option<OtherUses> {
        let driver = self.driver.as_ref().filter(|driver| driver.is_shared)?;
        Some(driver.availability.rate_uses.exchange(own))
    }

    /// Records that this salt opened a bearer of this user. Never waits.
    pub fn record_salt_use(&self, salt: SaltName, user: &UserName) {
        match &self.driver {
            None => self.salt_usage.record(salt, user, self.store_clock.now()),
            Some(driver) => driver.record_salt_use(salt, user),
        }
    }

    /// The usage of each of these salts, in the same sequence. Without a persistent store: since this process started.
    pub async fn salt_usage(&self, salts: &[SaltName]) -> Result<Vec<SaltUsage>, Unavailable> {
        match &self.driver {
            None => Ok(self.salt_usage.usage_of(salts, self.store_clock.now())),
            Some(driver) => driver.salt_usage(salts).await,
        }
    }

    /// Records the duration and the result of an operation of the persistent store.
    async fn record_operation<T>(
        &self,
        operation: &'static str,
        result: impl Future<Output = Result<T, Unavailable>>,
    ) -> Result<T, Unavailable> {
        let start = Instant::now();
        let result = result.await;
        if let Some(metrics) = self.metrics.get() {
            metrics.record_operation(operation, result.is_ok(), start.elapsed());
        }
        result
    }

    /// The number of tokens in memory.
    pub fn token_count(&self) -> usize {
        self.memory.len()
    }

    /// Replaces the lifetimes and the maximum number of tokens.
    pub fn set_limits(&self, limits: TokenLimits) {
        self.memory.set_limits(limits);
    }

    /// True if tokens are in memory only, so that they end with the process.
    pub fn is_memory_only(&self) -> bool {
        self.driver.is_none()
    }

    /// The number of live tokens that were evicted from memory since the start of the process.
    pub fn evicted_count(&self) -> u64 {
        self.memory.evicted()
    }

    /// Removes expired tokens from memory, and logs evictions. Called every ten seconds on the main thread.
    pub fn sweep(&self) {
        self.memory.sweep();
        self.memory.deny_list().sweep(self.store_clock.now());
        let evicted = self.memory.evicted();
        let new = evicted - self.logged_evictions.swap(evicted, Ordering::Relaxed);
        if new > 0 {
            let TokenLimits { max, max_per_user, .. } = self.memory.limits();
            warn!(
                tokens = new,
                max, max_per_user, "live tokens were evicted from memory: tokens.max or tokens.max_per_user is reached"
            );
        }
    }
}
