//! The thread that drives what is behind the memory, and how workers speak with it.
//!
//! Workers are threads of their own; connections and files are not theirs. They send a command and wait for its answer, no
//! longer than `store.timeout`, and not at all while the store is known not to answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::LocalSet;
use tokio::time::timeout;
use tracing::error;

use crate::base::clock::Tick;
use crate::base::join_within::join_within;
use crate::base::secret::Secret;
use crate::base::user_name::UserName;
use crate::config::{StoreKind, StoreOptions};
use crate::store::file::FileStore;
use crate::store::redis::RedisStore;
use crate::store::{
    CredentialFailure, NewToken, OnFailure, Revocation, SaltUsage, Seed, StoreStartError, TokenFilter,
    TokenId, TokenListing, TokenRecord, Unavailable,
};

/// More commands than that waiting is a store that does not keep up: further ones are refused at once.
const MAX_QUEUED_COMMANDS: usize = 4096;

/// What operators ask for may take longer than what requests do: it looks at all tokens.
const ADMIN_TIMEOUT: Duration = Duration::from_secs(30);

/// Steps that making a token takes at most, each of which may take `store.timeout`. One that does not is the last one.
const MAX_STEPS: u32 = 8;

/// A request of a process that has just started waits for the first connection, but not forever.
const FIRST_CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// Where an answer goes.
pub(super) type ReplySender<T> = oneshot::Sender<Result<T, Unavailable>>;

/// What the thread is asked for.
pub(super) enum Command {
    Fetch { id: TokenId, salt: u8, reply: ReplySender<Option<Arc<TokenRecord>>> },
    Mint { token: NewToken, seed: Seed, id: TokenId, reply: ReplySender<Seed> },
    SetUpstreamKey { id: TokenId, key: Secret, reply: ReplySender<()> },
    Revoke { what: Revocation, reply: ReplySender<()> },
    List { filter: TokenFilter, reply: ReplySender<TokenListing> },
    SaltUsage { reply: ReplySender<Vec<SaltUsage>> },
    RecordSaltUse { salt: u8, user: UserName },
    Failure(CredentialFailure),
}

/// Whether the store answers, as all threads see it.
#[derive(Debug)]
pub(super) struct Availability {
    up: AtomicBool,
    /// Until this tick what is known here may be believed.
    fresh_until: AtomicU64,
    /// Whether the first attempt to reach it has come to an end.
    connect_attempted: watch::Sender<bool>,
    /// Somebody waited in vain: the store should be looked at before its time.
    check_request: Notify,
    max_stale: Duration,
}

impl Availability {
    fn new(max_stale: Duration) -> Availability {
        Availability {
            up: AtomicBool::new(false),
            fresh_until: AtomicU64::new(0),
            connect_attempted: watch::Sender::new(false),
            check_request: Notify::new(),
            max_stale,
        }
    }

    /// Whether what is known here may be believed.
    pub(super) fn is_fresh(&self, now: Tick) -> bool {
        now.raw() <= self.fresh_until.load(Ordering::Relaxed)
    }

    /// The store has just told all that is new.
    pub(super) fn mark_fresh(&self, now: Tick) {
        self.fresh_until.store(now.after(self.max_stale).raw(), Ordering::Relaxed);
        self.up.store(true, Ordering::Release);
        self.mark_attempted();
    }

    /// What is known here is all there is, so it can always be believed.
    pub(super) fn mark_authoritative(&self) {
        self.fresh_until.store(u64::MAX, Ordering::Relaxed);
        self.up.store(true, Ordering::Release);
        self.mark_attempted();
    }

    /// The store does not answer.
    pub(super) fn mark_down(&self) {
        self.up.store(false, Ordering::Release);
        self.mark_attempted();
    }

    fn mark_attempted(&self) {
        self.connect_attempted.send_if_modified(|tried| !std::mem::replace(tried, true));
    }

    /// Whether the store answers, as far as is known. A process that has just started finds out first: its clients come
    /// with tokens that it does not know yet.
    async fn is_available(&self) -> bool {
        if !self.is_up() && !*self.connect_attempted.borrow() {
            let _ =
                timeout(FIRST_CONNECT_TIMEOUT, self.connect_attempted.subscribe().wait_for(|tried| *tried))
                    .await;
        }
        self.is_up()
    }

    fn is_up(&self) -> bool {
        self.up.load(Ordering::Acquire)
    }

    /// Somebody has waited in vain.
    pub(super) fn request_check(&self) {
        self.check_request.notify_one();
    }

    /// Waits until somebody has waited in vain.
    pub(super) async fn check_requested(&self) {
        self.check_request.notified().await;
    }
}

/// The workers' end.
pub(super) struct DriverHandle {
    sender: mpsc::Sender<Command>,
    pub(super) availability: Arc<Availability>,
    timeout: Duration,
}

impl DriverHandle {
    pub(super) async fn fetch(&self, id: TokenId, salt: u8) -> Result<Option<Arc<TokenRecord>>, Unavailable> {
        self.request(1, |reply| Command::Fetch { id, salt, reply }).await
    }

    /// `permit` is taken while the command is sent: what ends the token, if anything, is sent after it.
    pub(super) async fn mint<P>(
        &self,
        token: &NewToken,
        seed: Seed,
        id: TokenId,
        permit: impl FnOnce() -> Option<P>,
    ) -> Result<Seed, Unavailable> {
        if !self.availability.is_available().await {
            return Err(Unavailable);
        }
        let answer = {
            let Some(_permit) = permit() else { return Err(Unavailable) };
            self.send(|reply| Command::Mint { token: token.clone(), seed, id, reply })?
        };
        self.await_reply(MAX_STEPS, answer).await
    }

    pub(super) async fn set_upstream_key(&self, id: TokenId, key: Secret) -> Result<(), Unavailable> {
        self.request(MAX_STEPS, |reply| Command::SetUpstreamKey { id, key, reply }).await
    }

    pub(super) async fn revoke(&self, what: Revocation) -> Result<(), Unavailable> {
        // Also while the store does not answer: here it ends at once.
        await_admin_reply(self.send(|reply| Command::Revoke { what, reply })?).await
    }

    /// Ends tokens without waiting for it.
    pub(super) fn revoke_in_background(&self, what: Revocation) {
        if self.send(|reply| Command::Revoke { what, reply }).is_err() {
            error!("tokens were ended here, but the token store could not be told: revoke them again");
        }
    }

    pub(super) async fn list(&self, filter: TokenFilter) -> Result<TokenListing, Unavailable> {
        self.request_admin(|reply| Command::List { filter, reply }).await
    }

    pub(super) async fn salt_usage(&self) -> Result<Vec<SaltUsage>, Unavailable> {
        self.request_admin(|reply| Command::SaltUsage { reply }).await
    }

    pub(super) fn record_salt_use(&self, salt: u8, user: &UserName) {
        // One that does not get through is told again with the next use.
        let _ = self.sender.try_send(Command::RecordSaltUse { salt, user: user.clone() });
    }

    pub(super) fn publish_failure(&self, failure: CredentialFailure) {
        // One that does not get through was counted here all the same.
        let _ = self.sender.try_send(Command::Failure(failure));
    }

    /// SECURITY: no answer in time is no answer. Who asks is told so, and lets nobody in.
    async fn request<T>(
        &self,
        steps: u32,
        command: impl FnOnce(ReplySender<T>) -> Command,
    ) -> Result<T, Unavailable> {
        if !self.availability.is_available().await {
            return Err(Unavailable);
        }
        let answer = self.send(command)?;
        self.await_reply(steps, answer).await
    }

    async fn await_reply<T>(
        &self,
        steps: u32,
        answer: oneshot::Receiver<Result<T, Unavailable>>,
    ) -> Result<T, Unavailable> {
        timeout(self.timeout * steps, answer).await.map_or_else(
            |_| {
                self.availability.request_check();
                Err(Unavailable)
            },
            |answer| answer.unwrap_or(Err(Unavailable)),
        )
    }

    async fn request_admin<T>(
        &self,
        command: impl FnOnce(ReplySender<T>) -> Command,
    ) -> Result<T, Unavailable> {
        if !self.availability.is_available().await {
            return Err(Unavailable);
        }
        await_admin_reply(self.send(command)?).await
    }

    fn send<T>(
        &self,
        command: impl FnOnce(ReplySender<T>) -> Command,
    ) -> Result<oneshot::Receiver<Result<T, Unavailable>>, Unavailable> {
        let (reply, answer) = oneshot::channel();
        self.sender.try_send(command(reply)).map_err(|_| Unavailable)?;
        Ok(answer)
    }
}

async fn await_admin_reply<T>(answer: oneshot::Receiver<Result<T, Unavailable>>) -> Result<T, Unavailable> {
    timeout(ADMIN_TIMEOUT, answer).await.map_or(Err(Unavailable), |answer| answer.unwrap_or(Err(Unavailable)))
}

/// What can be behind the memory.
pub(super) enum PersistentStore {
    File(FileStore),
    Redis(Box<RedisStore>),
}

/// A thread that is yet to be started.
pub(super) struct PreparedDriver {
    store: PersistentStore,
    commands: mpsc::Receiver<Command>,
    availability: Arc<Availability>,
}

/// The two ends of what is behind the memory.
pub(super) fn prepare(behind: PersistentStore, options: &StoreOptions) -> (DriverHandle, PreparedDriver) {
    let (sender, commands) = mpsc::channel(MAX_QUEUED_COMMANDS);
    let link = Arc::new(Availability::new(options.max_stale));
    // A disk may take its time: nothing waits for it but a login.
    let timeout = if matches!(options.kind, StoreKind::File(_)) {
        file_timeout(options.timeout)
    } else {
        options.timeout
    };
    (
        DriverHandle { sender, availability: Arc::clone(&link), timeout },
        PreparedDriver { store: behind, commands, availability: link },
    )
}

fn file_timeout(timeout: Duration) -> Duration {
    timeout.max(Duration::from_secs(5))
}

/// The thread, which ends when nobody can ask it anything any more.
pub struct RunningDriver {
    thread: JoinHandle<()>,
    ended: Option<oneshot::Receiver<()>>,
}

impl RunningDriver {
    /// Waits for the thread's end, which comes only by a defect while there is a [`super::Store`].
    pub async fn wait_until_ended(&mut self) {
        if let Some(ended) = self.ended.take() {
            let _ = ended.await;
        } else {
            std::future::pending::<()>().await;
        }
    }

    /// Waits until all is written that was still to be written, but not forever.
    pub fn join_within(self, patience: Duration) -> bool {
        join_within(self.thread, patience).is_some_and(|ended| ended.is_ok())
    }
}

impl PreparedDriver {
    pub(super) fn start(self, up: Gauge, on_failure: OnFailure) -> Result<RunningDriver, StoreStartError> {
        let PreparedDriver { store: behind, commands, availability: link } = self;
        let (farewell, ended) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(StoreStartError::Thread)?;
        let builder = std::thread::Builder::new().name("store".to_owned());
        let thread = match behind {
            PersistentStore::File(store) => {
                let opened = store.open().map_err(StoreStartError::File)?;
                link.mark_authoritative();
                up.set(1);
                builder.spawn(move || {
                    let _farewell = farewell;
                    runtime.block_on(opened.serve(commands, up));
                })
            }
            PersistentStore::Redis(store) => builder.spawn(move || {
                let _farewell = farewell;
                LocalSet::new().block_on(&runtime, store.serve(commands, link, up, on_failure));
            }),
        };
        Ok(RunningDriver { thread: thread.map_err(StoreStartError::Thread)?, ended: Some(ended) })
    }
}
