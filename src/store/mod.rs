//! What the gateway remembers about tokens: by the token's hash, never by the token.
//!
//! [`Store`] is what others see. In front is always the memory of this process, which answers the requests whose token it
//! knows without waiting; behind it may be a file, or a Redis that replicas share, driven by a thread of its own.

mod driver;
mod file;
mod keys;
mod listing;
mod memory;
mod mint_guard;
mod record;
mod redis;
mod revocation;
mod salt_usage;
mod time;
mod token_id;
mod wire;

use std::collections::HashSet;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use crate::base::clock::Clock;
use crate::base::secret::Secret;
use crate::base::user_name::UserName;
use crate::config::{Config, Problem, StoreKind};
use crate::observability::metrics::StoreMetrics;

use driver::{DriverHandle, PersistentStore, PreparedDriver};
use keys::StoreKeys;
use mint_guard::MintGuard;
use parking_lot::Mutex;
use salt_usage::SaltUsageCounter;
use time::StoreClock;

pub use driver::RunningDriver;
pub use keys::{derive_key, salt_name};
pub use listing::{TokenFilter, TokenListing, TokenSummary};
pub use memory::{MemoryStore, TokenLimits};
pub use mint_guard::LoginProof;
pub use record::{NewToken, TokenRecord};
pub use revocation::Revocation;
pub use salt_usage::SaltUsage;
pub use time::Timestamp;
pub use token_id::{Fingerprint, TokenId};

/// A login as the index knows it: a keyed hash of user name and password.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoginId(pub [u8; 16]);

/// For [`crate::base::identity_hasher`] too.
impl Hash for LoginId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let [a, b, c, d, e, f, g, h, ..] = self.0;
        state.write_u64(u64::from_le_bytes([a, b, c, d, e, f, g, h]));
    }
}

/// The random part that, together with the login itself, makes a token; see `auth::token`.
pub type Seed = [u8; 20];

/// Where tokens are kept.
pub struct Store {
    memory: Arc<MemoryStore>,
    store_clock: Arc<StoreClock>,
    clock: Clock,
    /// What is behind the memory, if anything is.
    driver: Option<DriverHandle>,
    /// What [`Store::start`] starts.
    prepared: Mutex<Option<PreparedDriver>>,
    /// Who is told how the store behind does.
    metrics: OnceLock<StoreMetrics>,
    /// Who used which salt, where nothing behind keeps that.
    salt_usage: SaltUsageCounter,
    /// Which logins may have a token kept.
    mint_guard: MintGuard,
}

/// The store cannot be asked: nothing is known of the token, neither that it lives nor that it has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the token store does not answer")]
pub struct Unavailable;

/// Why a store does not start.
#[derive(Debug, thiserror::Error)]
pub enum StoreStartError {
    /// Its file.
    #[error("store.path: {0}")]
    File(String),
    /// Its thread.
    #[error("the store's thread cannot be started")]
    Thread(#[source] std::io::Error),
}

/// A wrong credential that replicas tell each other of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CredentialFailure {
    /// Which of the limits it counts against.
    pub kind: u8,
    /// A keyed hash of whom it counts against.
    pub bucket: u64,
}

/// Hears of the failures that other replicas saw.
pub type OnFailure = Box<dyn Fn(CredentialFailure) + Send>;

impl Store {
    /// As the configuration has it. Files that it names are read; nothing is opened, and nobody is connected to, before
    /// [`Store::start`].
    pub fn new(config: &Config, clock: &Clock) -> Result<Store, Problem> {
        let tokens = &config.tokens;
        let limits = TokenLimits { ttl: tokens.ttl, idle_ttl: tokens.idle_ttl, max: tokens.max };
        let mut store = Store::in_memory(limits, clock.clone());
        let keys = || StoreKeys::new(&config.salts);
        let (memory, calendar) = (Arc::clone(&store.memory), Arc::clone(&store.store_clock));
        let behind = match &config.store.kind {
            StoreKind::Memory => return Ok(store),
            StoreKind::File(path) => {
                PersistentStore::File(file::FileStore::new(path.clone(), keys(), memory, calendar))
            }
            StoreKind::Redis(options) => {
                let shared =
                    redis::StoreContext { keys: keys(), memory, store_clock: calendar, clock: clock.clone() };
                let options =
                    redis::RedisStoreOptions { redis: (**options).clone(), store: config.store.clone() };
                PersistentStore::Redis(Box::new(redis::RedisStore::new(options, shared)?))
            }
        };
        let (commands, prepared) = driver::prepare(behind, &config.store);
        store.driver = Some(commands);
        store.prepared = Mutex::new(Some(prepared));
        Ok(store)
    }

    /// Tokens in the memory of this process alone.
    pub fn in_memory(limits: TokenLimits, clock: Clock) -> Store {
        Store {
            memory: Arc::new(MemoryStore::new(limits, clock.clone())),
            store_clock: Arc::new(StoreClock::new(clock.clone())),
            clock,
            driver: None,
            prepared: Mutex::default(),
            metrics: OnceLock::new(),
            salt_usage: SaltUsageCounter::default(),
            mint_guard: MintGuard::default(),
        }
    }

    /// Opens what is behind the memory, and starts its thread; `None` if nothing is. `metrics` show how it does.
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

    /// The live token with this name, if it is known here, noting its use. Never waits.
    pub fn find(&self, id: &TokenId) -> Option<Arc<TokenRecord>> {
        let now = self.clock.now();
        let record = self.memory.find_at(id, now)?;
        // SECURITY: what is known here is worth nothing once it was too long ago that the store could have said otherwise.
        self.driver.as_ref().is_none_or(|behind| behind.availability.is_fresh(now)).then_some(record)
    }

    /// The live token with this name, that [`Store::find`] does not know: others may have minted it. `salt` is the number
    /// of the salt that made it.
    pub async fn fetch(&self, id: &TokenId, salt: u8) -> Result<Option<Arc<TokenRecord>>, Unavailable> {
        match &self.driver {
            None => Ok(None),
            Some(behind) => self.record_operation("fetch", behind.fetch(*id, salt)).await,
        }
    }

    /// The seed of the login's live token, if it is known here and has a tenth of its life before it. Never waits.
    pub fn find_seed(&self, login: &LoginId, id_of: impl Fn(&Seed) -> TokenId) -> Option<Seed> {
        let vouched =
            self.driver.as_ref().is_none_or(|behind| behind.availability.is_fresh(self.clock.now()));
        vouched.then(|| self.memory.find_seed(login, id_of)).flatten()
    }

    /// What proves a login that is verified from now on, by the verifier of this number.
    pub fn proof_for(&self, verifier: u64) -> LoginProof {
        self.mint_guard.proof_for(verifier)
    }

    /// Whether what proved a login still does.
    pub fn is_proof_valid(&self, proof: LoginProof) -> bool {
        self.mint_guard.is_valid(proof)
    }

    /// Keeps a token for the login, unless somebody kept one first: then that one's seed is given back.
    ///
    /// SECURITY: none for a login whose proof does not count any more. Where that is looked at and what is ended exclude each
    /// other: either the token is refused here, or who ends tokens finds it.
    pub async fn insert(
        &self,
        token: NewToken,
        seed: Seed,
        proof: LoginProof,
        id_of: impl Fn(&Seed) -> TokenId,
    ) -> Result<Seed, Unavailable> {
        if let Some(behind) = &self.driver {
            let permit = || self.mint_guard.try_permit(proof, token.salt);
            return self.record_operation("mint", behind.mint(&token, seed, id_of(&seed), permit)).await;
        }
        let login = token.login;
        let Some(_permit) = self.mint_guard.try_permit(proof, token.salt) else { return Err(Unavailable) };
        let record =
            |now, expires| TokenRecord::new(token, seed, self.store_clock.timestamp(now), now, expires);
        Ok(self.memory.insert(seed, login, record, id_of))
    }

    /// Has the backend shown another key instead of a live token from now on; nothing happens if it lives no more.
    pub async fn set_upstream_key(&self, id: &TokenId, key: Secret) -> Result<(), Unavailable> {
        match &self.driver {
            None => drop(self.memory.set_upstream_key(id, key)),
            Some(behind) => {
                self.record_operation("set_upstream_key", behind.set_upstream_key(*id, key)).await?
            }
        }
        Ok(())
    }

    /// Ends tokens before their time, everywhere. Once this says so, none of them gets in here any more, and within a
    /// second none at other replicas. `Unavailable` means that only here they have ended: others hear of it when the store
    /// answers again, unless this process ends before.
    pub async fn revoke(&self, what: Revocation) -> Result<(), Unavailable> {
        match &self.driver {
            None => {
                self.memory.remove_if(|id, record| what.covers(id, &record.user));
                Ok(())
            }
            Some(behind) => self.record_operation("revoke", behind.revoke(what)).await,
        }
    }

    /// Ends all tokens of these users, here at once, and elsewhere as soon as can be.
    pub fn revoke_users(&self, users: &HashSet<String>) {
        self.mint_guard.invalidate_proofs();
        self.memory.remove_if(|_, record| users.contains(record.user.as_str()));
        if let Some(behind) = &self.driver {
            for user in users.iter().filter_map(|user| UserName::parse(user.as_bytes()).ok()) {
                behind.revoke_in_background(Revocation::User(user));
            }
        }
    }

    /// Ends all tokens, in the same way.
    pub fn revoke_all(&self) {
        self.mint_guard.invalidate_proofs();
        self.memory.remove_if(|_, _| true);
        if let Some(behind) = &self.driver {
            behind.revoke_in_background(Revocation::All);
        }
    }

    /// Keeps tokens of logins by this verifier alone from now on.
    pub fn set_verifier(&self, number: u64) {
        self.mint_guard.set_verifier(number);
    }

    /// Live tokens.
    pub async fn list(&self, filter: TokenFilter) -> Result<TokenListing, Unavailable> {
        match &self.driver {
            None => Ok(listing::list_memory(&self.memory, &self.store_clock, &filter)),
            Some(behind) => self.record_operation("list", behind.list(filter)).await,
        }
    }

    /// Tells other replicas of a failure, if there are any. Never waits.
    pub fn publish_failure(&self, failure: CredentialFailure) {
        if let Some(behind) = &self.driver {
            behind.publish_failure(failure);
        }
    }

    /// Notes that the salt with this number opened a bearer of the user's. Never waits.
    pub fn record_salt_use(&self, salt: u8, user: &UserName) {
        match &self.driver {
            None => self.salt_usage.record(salt, user, self.store_clock.now()),
            Some(behind) => behind.record_salt_use(salt, user),
        }
    }

    /// Who used the salts with these numbers, which are all. Where nothing is behind the memory, since this process began.
    pub async fn salt_usage(&self, salts: &[u8]) -> Result<Vec<SaltUsage>, Unavailable> {
        match &self.driver {
            None => Ok(self.salt_usage.usage_of(salts, self.store_clock.now())),
            Some(behind) => behind.salt_usage().await,
        }
    }

    /// Notes what the store behind takes, and whether it answers.
    async fn record_operation<T>(
        &self,
        operation: &'static str,
        asking: impl Future<Output = Result<T, Unavailable>>,
    ) -> Result<T, Unavailable> {
        let begun = Instant::now();
        let answer = asking.await;
        if let Some(metrics) = self.metrics.get() {
            metrics.record_operation(operation, answer.is_ok(), begun.elapsed());
        }
        answer
    }

    /// How many tokens are in memory.
    pub fn token_count(&self) -> usize {
        self.memory.len()
    }

    /// Takes other lifetimes and another size from now on.
    pub fn set_limits(&self, limits: TokenLimits) {
        self.memory.set_limits(limits);
    }

    /// Ends the tokens of all salts but these, where nothing is behind the memory; elsewhere salts change with a restart.
    ///
    /// SECURITY: a salt that was taken away may be in wrong hands; what it made ends with it, and what it makes in a
    /// request that is under way is not kept.
    pub fn retain_salts(&self, numbers: &[u8]) {
        if self.driver.is_some() {
            return;
        }
        self.mint_guard.set_salts(numbers);
        self.memory.remove_if(|_, record| !numbers.contains(&record.salt));
    }

    /// Whether nothing outlives the process.
    pub fn is_memory_only(&self) -> bool {
        self.driver.is_none()
    }

    /// Forgets what has ended. Called now and then, off the path of requests.
    pub fn sweep(&self) {
        self.memory.sweep();
    }
}
