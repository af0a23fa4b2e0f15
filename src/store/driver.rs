//! The thread that owns the persistent store, and how workers send it commands.
//!
//! Workers are separate threads, and connections and files belong to the store's thread. A worker sends a command and
//! waits for the reply at most for `store.timeout` per step, and not at all while the store is known to be
//! unavailable.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::LocalSet;
use tokio::time::timeout;

use crate::base::clock::Tick;
use crate::base::join_within::join_within;
use crate::base::secret::Secret;
use crate::base::user_name::UserName;
use crate::config::{StoreKind, StoreOptions};
use crate::store::file::FileStore;
use crate::store::keys::KeyNumber;
use crate::store::rate_uses::RateUses;
use crate::store::redis::RedisStore;
use crate::store::{
    CredentialFailure, FetchedToken, NewToken, OnFailure, Revocation, SaltName, SaltUsage, Seed, StoreStartError,
    TokenFilter, TokenId, TokenListing, Unavailable,
};

/// If more commands are waiting, the store is overloaded, and further commands fail immediately.
const MAX_QUEUED_COMMANDS: usize = 4096;

/// Admin commands may take longer than requests because they read all tokens.
const ADMIN_TIMEOUT: Duration = Duration::from_secs(30);

/// The maximum number of steps of a command, each of which may take `store.timeout`.
const MAX_STEPS: u32 = 8;

/// The maximum time that the start waits for the first connection. An attempt to connect ends sooner.
const FIRST_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The minimum for `store.timeout` where the store is a file: only logins wait for the disk, which may be slow.
const MIN_FILE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a login waits for the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LoginWait {
    /// The caller can do without a reply.
    Short,
    /// Each step has its timeout.
    Full,
}

/// Receives the result of a command.
pub(super) type ReplySender<T> = oneshot::Sender<Result<T, Unavailable>>;

/// A command for the store's thread.
pub(super) enum Command {
    Fetch {
        id: TokenId,
        key: KeyNumber,
        reply: ReplySender<FetchedToken>,
    },
    /// `known` is the token of the login in memory, with its seed.
    Mint {
        token: NewToken,
        seed: Seed,
        id: TokenId,
        known: Option<(TokenId, Seed)>,
        reply: ReplySender<Seed>,
    },
    SetUpstreamKey {
        id: TokenId,
        key: Secret,
        reply: ReplySender<()>,
    },
    Revoke {
        revocation: Revocation,
        reply: ReplySender<u64>,
    },
    List {
        filter: TokenFilter,
        reply: ReplySender<TokenListing>,
    },
    SaltUsage {
        salts: Vec<SaltName>,
        reply: ReplySender<Vec<SaltUsage>>,
    },
    RecordSaltUse {
        salt: SaltName,
        user: UserName,
    },
    PublishFailure(CredentialFailure),
}

/// The state of the store, as all threads share it: is it available, and are the tokens in memory up to date?
#[derive(Debug)]
pub(super) struct Availability {
    up: AtomicBool,
    /// Until this tick the tokens in memory may be used.
    fresh_until: AtomicU64,
    /// True if the first attempt to connect has ended, with or without success.
    connect_attempted: Mutex<bool>,
    attempt_ended: Condvar,
    /// A command timed out: the store should be checked before the next heartbeat is due.
    check_request: Notify,
    max_stale: Duration,
    /// Used only where replicas share the store.
    pub(super) rate_uses: RateUses,
}

impl Availability {
    fn new(max_stale: Duration) -> Availability {
        Availability {
            up: AtomicBool::new(false),
            fresh_until: AtomicU64::new(0),
            connect_attempted: Mutex::new(false),
            attempt_ended: Condvar::new(),
            check_request: Notify::new(),
            max_stale,
            rate_uses: RateUses::default(),
        }
    }

    /// True if the tokens in memory may be used: the store has reported all changes within `store.max_stale`.
    pub(super) fn is_fresh(&self, now: Tick) -> bool {
        now.raw() <= self.fresh_until.load(Ordering::Relaxed)
    }

    /// The store has just reported all changes.
    pub(super) fn mark_fresh(&self, now: Tick) {
        self.fresh_until.store(now.after(self.max_stale).raw(), Ordering::Relaxed);
        self.up.store(true, Ordering::Release);
        self.mark_attempted();
    }

    /// The memory holds all tokens, so they can always be used.
    pub(super) fn mark_authoritative(&self) {
        self.fresh_until.store(u64::MAX, Ordering::Relaxed);
        self.up.store(true, Ordering::Release);
        self.mark_attempted();
    }

    /// The store is unavailable.
    pub(super) fn mark_down(&self) {
        self.up.store(false, Ordering::Release);
        self.rate_uses.set_written(false, Instant::now());
        self.mark_attempted();
    }

    fn mark_attempted(&self) {
        *self.connect_attempted.lock() = true;
        self.attempt_ended.notify_all();
    }

    /// SECURITY: before the first request. Keys and JWTs need no token, so until the store has been read, one of a denied
    /// user would be accepted, and nothing would be stopped.
    fn wait_for_first_attempt(&self) {
        let mut attempted = self.connect_attempted.lock();
        self.attempt_ended.wait_while_for(&mut attempted, |attempted| !*attempted, FIRST_CONNECT_TIMEOUT);
    }

    /// True if the store is available, as far as is known.
    pub(super) fn is_up(&self) -> bool {
        self.up.load(Ordering::Acquire)
    }

    /// Requests a check of the store, as a command has timed out.
    pub(super) fn request_check(&self) {
        self.check_request.notify_one();
    }

    /// True if the memory holds all tokens, and not only those that this process has seen.
    pub(super) fn is_authoritative(&self) -> bool {
        self.fresh_until.load(Ordering::Relaxed) == u64::MAX
    }

    /// Waits for a request to check the store.
    pub(super) async fn check_requested(&self) {
        self.check_request.notified().await;
    }
}

/// Sends commands to the store's thread. Shared by all workers.
pub(super) struct DriverHandle {
    sender: mpsc::Sender<Command>,
    pub(super) availability: Arc<Availability>,
    /// Whether replicas share the store.
    pub(super) is_shared: bool,
    /// For one step of a command.
    timeout: Duration,
}

type ReplyReceiver<T> = oneshot::Receiver<Result<T, Unavailable>>;

impl DriverHandle {
    pub(super) async fn fetch(&self, id: TokenId, key: KeyNumber) -> Result<FetchedToken, Unavailable> {
        self.request(self.timeout, |reply| Command::Fetch { id, key, reply }).await
    }

    pub(super) async fn mint(
        &self,
        token: NewToken,
        (seed, id): (Seed, TokenId),
        known: Option<(TokenId, Seed)>,
        wait: LoginWait,
    ) -> Result<Seed, Unavailable> {
        let limit = match wait {
            LoginWait::Short => self.timeout / 2,
            LoginWait::Full => self.timeout * MAX_STEPS,
        };
        self.request(limit, |reply| Command::Mint { token, seed, id, known, reply }).await
    }

    pub(super) async fn set_upstream_key(&self, id: TokenId, key: Secret) -> Result<(), Unavailable> {
        self.request(self.timeout * MAX_STEPS, |reply| Command::SetUpstreamKey { id, key, reply }).await
    }

    /// Sends the command even while the store is unavailable: at this replica the revocation takes effect in any case.
    pub(super) async fn revoke(&self, revocation: Revocation) -> Result<u64, Unavailable> {
        let reply = self.send(|reply| Command::Revoke { revocation, reply })?;
        self.await_reply(ADMIN_TIMEOUT, reply).await
    }

    pub(super) async fn list(&self, filter: TokenFilter) -> Result<TokenListing, Unavailable> {
        self.request(ADMIN_TIMEOUT, |reply| Command::List { filter, reply }).await
    }

    pub(super) async fn salt_usage(&self, salts: &[SaltName]) -> Result<Vec<SaltUsage>, Unavailable> {
        let salts = salts.to_vec();
        self.request(ADMIN_TIMEOUT, |reply| Command::SaltUsage { salts, reply }).await
    }

    /// If the queue is full, the next use is recorded instead.
    pub(super) fn record_salt_use(&self, salt: SaltName, user: &UserName) {
        let _ = self.sender.try_send(Command::RecordSaltUse { salt, user: user.clone() });
    }

    /// If the queue is full, the failure counts at this replica only.
    pub(super) fn publish_failure(&self, failure: CredentialFailure) {
        let _ = self.sender.try_send(Command::PublishFailure(failure));
    }

    async fn request<T>(
        &self,
        limit: Duration,
        command: impl FnOnce(ReplySender<T>) -> Command,
    ) -> Result<T, Unavailable> {
        if !self.availability.is_up() {
            return Err(Unavailable);
        }
        let reply = self.send(command)?;
        self.await_reply(limit, reply).await
    }

    /// SECURITY: without a reply in time the store counts as unavailable, so the client is not let in.
    async fn await_reply<T>(&self, limit: Duration, reply: ReplyReceiver<T>) -> Result<T, Unavailable> {
        let Ok(reply) = timeout(limit, reply).await else {
            self.availability.request_check();
            return Err(Unavailable);
        };
        reply.unwrap_or(Err(Unavailable))
    }

    fn send<T>(&self, command: impl FnOnce(ReplySender<T>) -> Command) -> Result<ReplyReceiver<T>, Unavailable> {
        let (sender, receiver) = oneshot::channel();
        self.sender.try_send(command(sender)).map_err(|_| Unavailable)?;
        Ok(receiver)
    }
}

/// A store that outlives the process.
pub(super) enum PersistentStore {
    File(FileStore),
    Redis(Box<RedisStore>),
}

/// A thread that has not been started yet.
pub(super) struct PreparedDriver {
    store: PersistentStore,
    commands: mpsc::Receiver<Command>,
    availability: Arc<Availability>,
}

/// The handle for the workers, and the thread to start later.
pub(super) fn prepare(store: PersistentStore, options: &StoreOptions) -> (DriverHandle, PreparedDriver) {
    let (sender, commands) = mpsc::channel(MAX_QUEUED_COMMANDS);
    let availability = Arc::new(Availability::new(options.max_stale));
    let is_file = matches!(options.kind, StoreKind::File(_));
    let timeout = if is_file { options.timeout.max(MIN_FILE_TIMEOUT) } else { options.timeout };
    let handle = DriverHandle { sender, availability: Arc::clone(&availability), is_shared: !is_file, timeout };
    (handle, PreparedDriver { store, commands, availability })
}

/// The running thread. It ends when the [`super::Store`] has been dropped.
pub struct RunningDriver {
    thread: JoinHandle<()>,
    ended: oneshot::Receiver<()>,
}

impl RunningDriver {
    /// Waits for the end of the thread, which is a defect while there is a [`super::Store`]. To be awaited only once.
    pub async fn wait_until_ended(&mut self) {
        let _ = (&mut self.ended).await;
    }

    /// Waits for the deferred writes and the end of the thread. False if that takes longer than `limit`, or it
    /// panicked.
    pub fn join_within(self, limit: Duration) -> bool {
        join_within(self.thread, limit).is_some_and(|ended| ended.is_ok())
    }
}

impl PreparedDriver {
    /// Opens a file, or tries to connect to Redis. `up` is 1 while the store is available.
    pub(super) fn start(self, up: Gauge, on_failure: OnFailure) -> Result<RunningDriver, StoreStartError> {
        let PreparedDriver { store, commands, availability } = self;
        // Dropped at the end of the thread, even after a panic.
        let (ended_sender, ended) = oneshot::channel::<()>();
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(StoreStartError::Thread)?;
        let builder = std::thread::Builder::new().name("store".to_owned());
        let first_attempt = Arc::clone(&availability);
        let thread = match store {
            PersistentStore::File(store) => {
                let store = store.open().map_err(StoreStartError::File)?;
                availability.mark_authoritative();
                up.set(1);
                builder.spawn(move || {
                    let _ended_sender = ended_sender;
                    runtime.block_on(store.serve(commands, up));
                })
            }
            PersistentStore::Redis(store) => builder.spawn(move || {
                let _ended_sender = ended_sender;
                LocalSet::new().block_on(&runtime, store.serve(commands, availability, up, on_failure));
            }),
        };
        let thread = thread.map_err(StoreStartError::Thread)?;
        first_attempt.wait_for_first_attempt();
        Ok(RunningDriver { thread, ended })
    }
}
