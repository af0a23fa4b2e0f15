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

use driver::{Behind, Commands, Prepared};
use keys::StoreKeys;
use mint_guard::Acceptance;
use parking_lot::Mutex;
use salt_usage::SaltUses;
use time::Calendar;

pub use driver::Running;
pub use keys::{derived, salt_name};
pub use listing::{Filter, Listing, TokenLine};
pub use memory::{Limits, MemoryStore};
pub use mint_guard::Proof;
pub use record::{NewToken, TokenRecord};
pub use revocation::Revocation;
pub use salt_usage::SaltUse;
pub use time::Stamp;
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
    calendar: Arc<Calendar>,
    clock: Clock,
    /// What is behind the memory, if anything is.
    behind: Option<Commands>,
    /// What [`Store::start`] starts.
    prepared: Mutex<Option<Prepared>>,
    /// Who is told how the store behind does.
    told: OnceLock<StoreMetrics>,
    /// Who used which salt, where nothing behind keeps that.
    salt_uses: SaltUses,
    /// Which logins may have a token kept.
    acceptance: Acceptance,
}

/// The store cannot be asked: nothing is known of the token, neither that it lives nor that it has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the token store does not answer")]
pub struct Unavailable;

/// Why a store does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Its file.
    #[error("store.path: {0}")]
    File(String),
    /// Its thread.
    #[error("the store's thread cannot be started")]
    Thread(#[source] std::io::Error),
}

/// A wrong credential that replicas tell each other of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Failure {
    /// Which of the limits it counts against.
    pub kind: u8,
    /// A keyed hash of whom it counts against.
    pub bucket: u64,
}

/// Hears of the failures that other replicas saw.
pub type OnFailure = Box<dyn Fn(Failure) + Send>;

impl Store {
    /// As the configuration has it. Files that it names are read; nothing is opened, and nobody is connected to, before
    /// [`Store::start`].
    pub fn new(config: &Config, clock: &Clock) -> Result<Store, Problem> {
        let tokens = &config.tokens;
        let limits = Limits { ttl: tokens.ttl, idle_ttl: tokens.idle_ttl, max: tokens.max };
        let mut store = Store::memory(limits, clock.clone());
        let keys = || StoreKeys::new(&config.salts);
        let (memory, calendar) = (Arc::clone(&store.memory), Arc::clone(&store.calendar));
        let behind = match &config.store.kind {
            StoreKind::Memory => return Ok(store),
            StoreKind::File(path) => {
                Behind::File(file::FileStore::new(path.clone(), keys(), memory, calendar))
            }
            StoreKind::Redis(options) => {
                let shared = redis::Shared { keys: keys(), memory, calendar, clock: clock.clone() };
                let options = redis::Options { redis: (**options).clone(), store: config.store.clone() };
                Behind::Redis(Box::new(redis::RedisStore::new(options, shared)?))
            }
        };
        let (commands, prepared) = driver::prepare(behind, &config.store);
        store.behind = Some(commands);
        store.prepared = Mutex::new(Some(prepared));
        Ok(store)
    }

    /// Tokens in the memory of this process alone.
    pub fn memory(limits: Limits, clock: Clock) -> Store {
        Store {
            memory: Arc::new(MemoryStore::new(limits, clock.clone())),
            calendar: Arc::new(Calendar::new(clock.clone())),
            clock,
            behind: None,
            prepared: Mutex::default(),
            told: OnceLock::new(),
            salt_uses: SaltUses::default(),
            acceptance: Acceptance::default(),
        }
    }

    /// Opens what is behind the memory, and starts its thread; `None` if nothing is. `metrics` show how it does.
    pub fn start(
        &self,
        metrics: &StoreMetrics,
        on_failure: OnFailure,
    ) -> Result<Option<Running>, StartError> {
        let prepared = self.prepared.lock().take();
        match prepared {
            None => {
                metrics.up.set(1);
                Ok(None)
            }
            Some(prepared) => {
                let _ = self.told.set(metrics.clone());
                prepared.start(metrics.up.clone(), on_failure).map(Some)
            }
        }
    }

    /// The live token with this name, if it is known here, noting its use. Never waits.
    pub fn find(&self, id: &TokenId) -> Option<Arc<TokenRecord>> {
        let now = self.clock.now();
        let record = self.memory.find_at(id, now)?;
        // SECURITY: what is known here is worth nothing once it was too long ago that the store could have said otherwise.
        self.behind.as_ref().is_none_or(|behind| behind.link.vouches(now)).then_some(record)
    }

    /// The live token with this name, that [`Store::find`] does not know: others may have minted it. `salt` is the number
    /// of the salt that made it.
    pub async fn fetch(&self, id: &TokenId, salt: u8) -> Result<Option<Arc<TokenRecord>>, Unavailable> {
        match &self.behind {
            None => Ok(None),
            Some(behind) => self.noted("fetch", behind.fetch(*id, salt)).await,
        }
    }

    /// The seed of the login's live token, if it is known here and has a tenth of its life before it. Never waits.
    pub fn seed_of(&self, login: &LoginId, id_of: impl Fn(&Seed) -> TokenId) -> Option<Seed> {
        let vouched = self.behind.as_ref().is_none_or(|behind| behind.link.vouches(self.clock.now()));
        vouched.then(|| self.memory.seed_of(login, id_of)).flatten()
    }

    /// What proves a login that is verified from now on, by the verifier of this number.
    pub fn proof(&self, verifier: u64) -> Proof {
        self.acceptance.proof(verifier)
    }

    /// Whether what proved a login still does.
    pub fn accepts(&self, proof: Proof) -> bool {
        self.acceptance.accepts(proof)
    }

    /// Keeps a token for the login, unless somebody kept one first: then that one's seed is given back.
    ///
    /// SECURITY: none for a login whose proof does not count any more. Where that is looked at and what is ended exclude each
    /// other: either the token is refused here, or who ends tokens finds it.
    pub async fn insert(
        &self,
        token: NewToken,
        seed: Seed,
        proof: Proof,
        id_of: impl Fn(&Seed) -> TokenId,
    ) -> Result<Seed, Unavailable> {
        if let Some(behind) = &self.behind {
            let permit = || self.acceptance.permit(proof, token.salt);
            return self.noted("mint", behind.mint(&token, seed, id_of(&seed), permit)).await;
        }
        let login = token.login;
        let Some(_permit) = self.acceptance.permit(proof, token.salt) else { return Err(Unavailable) };
        let record = |now, expires| TokenRecord::new(token, seed, self.calendar.stamp(now), now, expires);
        Ok(self.memory.insert(seed, login, record, id_of))
    }

    /// Has the backend shown another key instead of a live token from now on; nothing happens if it lives no more.
    pub async fn set_upstream_key(&self, id: &TokenId, key: Secret) -> Result<(), Unavailable> {
        match &self.behind {
            None => drop(self.memory.set_upstream_key(id, key)),
            Some(behind) => self.noted("set_upstream_key", behind.set_upstream_key(*id, key)).await?,
        }
        Ok(())
    }

    /// Ends tokens before their time, everywhere. Once this says so, none of them gets in here any more, and within a
    /// second none at other replicas. `Unavailable` means that only here they have ended: others hear of it when the store
    /// answers again, unless this process ends before.
    pub async fn revoke(&self, what: Revocation) -> Result<(), Unavailable> {
        match &self.behind {
            None => {
                self.memory.remove_those(|id, record| what.covers(id, &record.user));
                Ok(())
            }
            Some(behind) => self.noted("revoke", behind.revoke(what)).await,
        }
    }

    /// Ends all tokens of these users, here at once, and elsewhere as soon as can be.
    pub fn end_of(&self, users: &HashSet<String>) {
        self.acceptance.end();
        self.memory.remove_those(|_, record| users.contains(record.user.as_str()));
        if let Some(behind) = &self.behind {
            for user in users.iter().filter_map(|user| UserName::parse(user.as_bytes()).ok()) {
                behind.end(Revocation::User(user));
            }
        }
    }

    /// Ends all tokens, in the same way.
    pub fn end_all(&self) {
        self.acceptance.end();
        self.memory.remove_those(|_, _| true);
        if let Some(behind) = &self.behind {
            behind.end(Revocation::All);
        }
    }

    /// Keeps tokens of logins by this verifier alone from now on.
    pub fn only_verifier(&self, number: u64) {
        self.acceptance.only_verifier(number);
    }

    /// Live tokens.
    pub async fn list(&self, filter: Filter) -> Result<Listing, Unavailable> {
        match &self.behind {
            None => Ok(listing::of_memory(&self.memory, &self.calendar, &filter)),
            Some(behind) => self.noted("list", behind.list(filter)).await,
        }
    }

    /// Tells other replicas of a failure, if there are any. Never waits.
    pub fn tell_failure(&self, failure: Failure) {
        if let Some(behind) = &self.behind {
            behind.tell_failure(failure);
        }
    }

    /// Notes that the salt with this number opened a bearer of the user's. Never waits.
    pub fn note_salt_use(&self, salt: u8, user: &UserName) {
        match &self.behind {
            None => self.salt_uses.note(salt, user, self.calendar.now()),
            Some(behind) => behind.note_salt_use(salt, user),
        }
    }

    /// Who used the salts with these numbers, which are all. Where nothing is behind the memory, since this process began.
    pub async fn salt_uses(&self, salts: &[u8]) -> Result<Vec<SaltUse>, Unavailable> {
        match &self.behind {
            None => Ok(self.salt_uses.of(salts, self.calendar.now())),
            Some(behind) => behind.salt_uses().await,
        }
    }

    /// Notes what the store behind takes, and whether it answers.
    async fn noted<T>(
        &self,
        operation: &'static str,
        asking: impl Future<Output = Result<T, Unavailable>>,
    ) -> Result<T, Unavailable> {
        let begun = Instant::now();
        let answer = asking.await;
        if let Some(metrics) = self.told.get() {
            metrics.operation(operation, answer.is_ok(), begun.elapsed());
        }
        answer
    }

    /// How many tokens are in memory.
    pub fn tokens(&self) -> usize {
        self.memory.len()
    }

    /// Takes other lifetimes and another size from now on.
    pub fn set_limits(&self, limits: Limits) {
        self.memory.set_limits(limits);
    }

    /// Ends the tokens of all salts but these, where nothing is behind the memory; elsewhere salts change with a restart.
    ///
    /// SECURITY: a salt that was taken away may be in wrong hands; what it made ends with it, and what it makes in a
    /// request that is under way is not kept.
    pub fn keep_salts(&self, numbers: &[u8]) {
        if self.behind.is_some() {
            return;
        }
        self.acceptance.only_salts(numbers);
        self.memory.remove_those(|_, record| !numbers.contains(&record.salt));
    }

    /// Whether nothing outlives the process.
    pub fn is_memory_alone(&self) -> bool {
        self.behind.is_none()
    }

    /// Forgets what has ended. Called now and then, off the path of requests.
    pub fn sweep(&self) {
        self.memory.sweep();
    }
}
