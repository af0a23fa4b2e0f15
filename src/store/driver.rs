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
    Failure, Filter, Listing, NewToken, OnFailure, Revocation, SaltUse, Seed, StartError, TokenId,
    TokenRecord, Unavailable,
};

/// More commands than that waiting is a store that does not keep up: further ones are refused at once.
const MOST_WAITING: usize = 4096;

/// What operators ask for may take longer than what requests do: it looks at all tokens.
const OPERATORS_PATIENCE: Duration = Duration::from_secs(30);

/// Steps that making a token takes at most, each of which may take `store.timeout`. One that does not is the last one.
const MOST_STEPS: u32 = 8;

/// A request of a process that has just started waits for the first connection, but not forever.
const FIRST_CONTACT: Duration = Duration::from_secs(1);

/// Where an answer goes.
pub(super) type Reply<T> = oneshot::Sender<Result<T, Unavailable>>;

/// What the thread is asked for.
pub(super) enum Command {
    Fetch { id: TokenId, salt: u8, reply: Reply<Option<Arc<TokenRecord>>> },
    Mint { token: NewToken, seed: Seed, id: TokenId, reply: Reply<Seed> },
    SetUpstreamKey { id: TokenId, key: Secret, reply: Reply<()> },
    Revoke { what: Revocation, reply: Reply<()> },
    List { filter: Filter, reply: Reply<Listing> },
    SaltUses { reply: Reply<Vec<SaltUse>> },
    NoteSaltUse { salt: u8, user: UserName },
    Failure(Failure),
}

/// Whether the store answers, as all threads see it.
#[derive(Debug)]
pub(super) struct Link {
    up: AtomicBool,
    /// Until this tick what is known here may be believed.
    vouched_until: AtomicU64,
    /// Whether the first attempt to reach it has come to an end.
    tried: watch::Sender<bool>,
    /// Somebody waited in vain: the store should be looked at before its time.
    suspected: Notify,
    max_stale: Duration,
}

impl Link {
    fn new(max_stale: Duration) -> Link {
        Link {
            up: AtomicBool::new(false),
            vouched_until: AtomicU64::new(0),
            tried: watch::Sender::new(false),
            suspected: Notify::new(),
            max_stale,
        }
    }

    /// Whether what is known here may be believed.
    pub(super) fn vouches(&self, now: Tick) -> bool {
        now.raw() <= self.vouched_until.load(Ordering::Relaxed)
    }

    /// The store has just told all that is new.
    pub(super) fn heard_from(&self, now: Tick) {
        self.vouched_until.store(now.after(self.max_stale).raw(), Ordering::Relaxed);
        self.up.store(true, Ordering::Release);
        self.tried();
    }

    /// What is known here is all there is, so it can always be believed.
    pub(super) fn is_all_there_is(&self) {
        self.vouched_until.store(u64::MAX, Ordering::Relaxed);
        self.up.store(true, Ordering::Release);
        self.tried();
    }

    /// The store does not answer.
    pub(super) fn down(&self) {
        self.up.store(false, Ordering::Release);
        self.tried();
    }

    fn tried(&self) {
        self.tried.send_if_modified(|tried| !std::mem::replace(tried, true));
    }

    /// Whether the store answers, as far as is known. A process that has just started finds out first: its clients come
    /// with tokens that it does not know yet.
    async fn answers(&self) -> bool {
        if !self.is_up() && !*self.tried.borrow() {
            let _ = timeout(FIRST_CONTACT, self.tried.subscribe().wait_for(|tried| *tried)).await;
        }
        self.is_up()
    }

    fn is_up(&self) -> bool {
        self.up.load(Ordering::Acquire)
    }

    /// Somebody has waited in vain.
    pub(super) fn suspect(&self) {
        self.suspected.notify_one();
    }

    /// Waits until somebody has waited in vain.
    pub(super) async fn suspected(&self) {
        self.suspected.notified().await;
    }
}

/// The workers' end.
pub(super) struct Commands {
    sender: mpsc::Sender<Command>,
    pub(super) link: Arc<Link>,
    timeout: Duration,
}

impl Commands {
    pub(super) async fn fetch(&self, id: TokenId, salt: u8) -> Result<Option<Arc<TokenRecord>>, Unavailable> {
        self.ask(1, |reply| Command::Fetch { id, salt, reply }).await
    }

    /// `permit` is taken while the command is sent: what ends the token, if anything, is sent after it.
    pub(super) async fn mint<P>(
        &self,
        token: &NewToken,
        seed: Seed,
        id: TokenId,
        permit: impl FnOnce() -> Option<P>,
    ) -> Result<Seed, Unavailable> {
        if !self.link.answers().await {
            return Err(Unavailable);
        }
        let answer = {
            let Some(_permit) = permit() else { return Err(Unavailable) };
            self.send(|reply| Command::Mint { token: token.clone(), seed, id, reply })?
        };
        self.in_time(MOST_STEPS, answer).await
    }

    pub(super) async fn set_upstream_key(&self, id: TokenId, key: Secret) -> Result<(), Unavailable> {
        self.ask(MOST_STEPS, |reply| Command::SetUpstreamKey { id, key, reply }).await
    }

    pub(super) async fn revoke(&self, what: Revocation) -> Result<(), Unavailable> {
        // Also while the store does not answer: here it ends at once.
        patiently(self.send(|reply| Command::Revoke { what, reply })?).await
    }

    /// Ends tokens without waiting for it.
    pub(super) fn end(&self, what: Revocation) {
        if self.send(|reply| Command::Revoke { what, reply }).is_err() {
            error!("tokens were ended here, but the token store could not be told: revoke them again");
        }
    }

    pub(super) async fn list(&self, filter: Filter) -> Result<Listing, Unavailable> {
        self.ask_patiently(|reply| Command::List { filter, reply }).await
    }

    pub(super) async fn salt_uses(&self) -> Result<Vec<SaltUse>, Unavailable> {
        self.ask_patiently(|reply| Command::SaltUses { reply }).await
    }

    pub(super) fn note_salt_use(&self, salt: u8, user: &UserName) {
        // One that does not get through is told again with the next use.
        let _ = self.sender.try_send(Command::NoteSaltUse { salt, user: user.clone() });
    }

    pub(super) fn tell_failure(&self, failure: Failure) {
        // One that does not get through was counted here all the same.
        let _ = self.sender.try_send(Command::Failure(failure));
    }

    /// SECURITY: no answer in time is no answer. Who asks is told so, and lets nobody in.
    async fn ask<T>(&self, steps: u32, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, Unavailable> {
        if !self.link.answers().await {
            return Err(Unavailable);
        }
        let answer = self.send(command)?;
        self.in_time(steps, answer).await
    }

    async fn in_time<T>(
        &self,
        steps: u32,
        answer: oneshot::Receiver<Result<T, Unavailable>>,
    ) -> Result<T, Unavailable> {
        timeout(self.timeout * steps, answer).await.map_or_else(
            |_| {
                self.link.suspect();
                Err(Unavailable)
            },
            |answer| answer.unwrap_or(Err(Unavailable)),
        )
    }

    async fn ask_patiently<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, Unavailable> {
        if !self.link.answers().await {
            return Err(Unavailable);
        }
        patiently(self.send(command)?).await
    }

    fn send<T>(
        &self,
        command: impl FnOnce(Reply<T>) -> Command,
    ) -> Result<oneshot::Receiver<Result<T, Unavailable>>, Unavailable> {
        let (reply, answer) = oneshot::channel();
        self.sender.try_send(command(reply)).map_err(|_| Unavailable)?;
        Ok(answer)
    }
}

async fn patiently<T>(answer: oneshot::Receiver<Result<T, Unavailable>>) -> Result<T, Unavailable> {
    timeout(OPERATORS_PATIENCE, answer)
        .await
        .map_or(Err(Unavailable), |answer| answer.unwrap_or(Err(Unavailable)))
}

/// What can be behind the memory.
pub(super) enum Behind {
    File(FileStore),
    Redis(Box<RedisStore>),
}

/// A thread that is yet to be started.
pub(super) struct Prepared {
    behind: Behind,
    commands: mpsc::Receiver<Command>,
    link: Arc<Link>,
}

/// The two ends of what is behind the memory.
pub(super) fn prepare(behind: Behind, options: &StoreOptions) -> (Commands, Prepared) {
    let (sender, commands) = mpsc::channel(MOST_WAITING);
    let link = Arc::new(Link::new(options.max_stale));
    // A disk may take its time: nothing waits for it but a login.
    let timeout = if matches!(options.kind, StoreKind::File(_)) {
        file_patience(options.timeout)
    } else {
        options.timeout
    };
    (Commands { sender, link: Arc::clone(&link), timeout }, Prepared { behind, commands, link })
}

fn file_patience(timeout: Duration) -> Duration {
    timeout.max(Duration::from_secs(5))
}

/// The thread, which ends when nobody can ask it anything any more.
pub struct Running {
    thread: JoinHandle<()>,
    ended: Option<oneshot::Receiver<()>>,
}

impl Running {
    /// Waits for the thread's end, which comes only by a defect while there is a [`super::Store`].
    pub async fn ended(&mut self) {
        if let Some(ended) = self.ended.take() {
            let _ = ended.await;
        } else {
            std::future::pending::<()>().await;
        }
    }

    /// Waits until all is written that was still to be written, but not forever.
    pub fn finish(self, patience: Duration) -> bool {
        join_within(self.thread, patience).is_some_and(|ended| ended.is_ok())
    }
}

impl Prepared {
    pub(super) fn start(self, up: Gauge, on_failure: OnFailure) -> Result<Running, StartError> {
        let Prepared { behind, commands, link } = self;
        let (farewell, ended) = oneshot::channel();
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(StartError::Thread)?;
        let builder = std::thread::Builder::new().name("store".to_owned());
        let thread = match behind {
            Behind::File(store) => {
                let opened = store.open().map_err(StartError::File)?;
                link.is_all_there_is();
                up.set(1);
                builder.spawn(move || {
                    let _farewell = farewell;
                    runtime.block_on(opened.serve(commands, up));
                })
            }
            Behind::Redis(store) => builder.spawn(move || {
                let _farewell = farewell;
                LocalSet::new().block_on(&runtime, store.serve(commands, link, up, on_failure));
            }),
        };
        Ok(Running { thread: thread.map_err(StartError::Thread)?, ended: Some(ended) })
    }
}
