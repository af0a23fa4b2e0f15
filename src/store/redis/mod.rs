//! Tokens in a Redis or Valkey that replicas share: one server, Sentinel or a cluster.
//!
//! | key, after `store.prefix` | value |
//! | --- | --- |
//! | `t:<name>` | a token: its last use (8 bytes), then the sealed token, or a sealed tombstone if it was revoked |
//! | `l:<name>` | the token that a login receives: seed and id, sealed |
//! | `marks` | a hash of revocations: since when the tokens of a user, or all, are valid, sealed |
//! | `events` | a sorted set of recent changes, sealed |
//! | `attempts` | a sorted set of recent credential failures, and of requests under `limits.rules`, sealed |
//! | `epoch` | a random value, by which replicas detect that the server has lost its data |
//! | `salt:<salt>` | a sorted set of the pseudonyms of users by their last use of the salt |
//!
//! A token is written before its login refers to it, and a login is replaced by compare-and-set. So all replicas give
//! a login the same token, even if a step fails. No step uses two keys, which a cluster would not allow.

mod check;
mod connection;
mod event_feed;
mod events;
mod heartbeat;
mod listing;
mod marks;
mod repair;
mod revoke;
mod tokens;
mod usage;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::metrics::gauge::Gauge;
use redis::{Cmd, FromRedisValue, RedisError, Script, ServerErrorKind, ToRedisArgs, Value, from_redis_value};
use tokio::sync::{Notify, mpsc};
use tokio::task::spawn_local;
use tokio::time::{Instant, timeout};
use tracing::{error, info, warn};

use crate::base::single_flight::SingleFlight;
use crate::config::{Problem, RedisOptions, StoreOptions};
use crate::store::driver::{Availability, Command};
use crate::store::keys::StoreKeys;
use crate::store::memory::MemoryStore;
use crate::store::revocation::{Revocation, Revocations};
use crate::store::time::StoreClock;
use crate::store::{FetchedToken, LoginId, OnFailure, Seed, Timestamp, TokenId, Unavailable};

pub use check::{RedisFailure, check};
use connection::RedisConnection;
use event_feed::EventFeed;
use events::PendingEvents;
use repair::Repair;
use usage::PendingUses;

/// The parts that the Redis store shares with [`crate::store::Store`].
pub struct StoreContext {
    pub keys: StoreKeys,
    pub memory: Arc<MemoryStore>,
    pub store_clock: Arc<StoreClock>,
}

/// A Redis store that has not connected yet.
pub struct RedisStore {
    redis_options: RedisOptions,
    options: StoreOptions,
    context: StoreContext,
}

/// Why a command has no result.
#[derive(Debug, thiserror::Error)]
pub(super) enum StoreError {
    #[error("not connected")]
    NoConnection,
    #[error("{0}")]
    Redis(#[from] RedisError),
    #[error("no response within store.timeout")]
    Timeout,
    #[error("the token was revoked while it was created")]
    Revoked,
    #[error("the value cannot be read")]
    Unreadable,
    #[error("the token is not in the store, and another replica may restore it")]
    Missing,
}

type StoreResult<T> = Result<T, StoreError>;

/// Compare-and-set for a login. It sets the key to `ARGV[2]` for `ARGV[3]` milliseconds if the key does not exist or
/// holds `ARGV[1]`. It returns what the key then holds.
const CLAIM: &str = "local found = redis.call('GET', KEYS[1])
if found == false or found == ARGV[1] then
  redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
  return ARGV[2]
end
return found";

/// Writes the last use of a token (`ARGV[1]`), and extends its expiry to `ARGV[2]` milliseconds from now unless that
/// is empty. It returns 0 if the token does not exist, which a plain SETRANGE would create.
const TOUCH: &str = "if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
redis.call('SETRANGE', KEYS[1], 0, ARGV[1])
if ARGV[2] ~= '' and tonumber(ARGV[2]) > redis.call('PTTL', KEYS[1]) then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
return 1";

/// The timeout of the last write when the gateway shuts down.
const FINAL_WRITE_TIMEOUT: Duration = Duration::from_secs(1);

/// The state of the store's thread.
struct RedisSession {
    redis_options: RedisOptions,
    options: StoreOptions,
    context: StoreContext,
    availability: Arc<Availability>,
    up: Gauge,
    on_failure: OnFailure,
    connection: RefCell<Option<RedisConnection>>,
    /// The number of connections so far.
    connection_number: Cell<u64>,
    /// The connection failed: a new one is needed immediately.
    connection_lost: Notify,
    /// Why the store is unavailable, for the log.
    down_reason: RefCell<String>,
    was_up: Cell<bool>,
    /// When a failed command was last logged.
    last_warning: Cell<Option<Instant>>,
    revocations: RefCell<Revocations>,
    /// Revocations whose tokens may still be in memory.
    unapplied: RefCell<Vec<(Revocation, Timestamp)>>,
    /// The revocations that the store has, as far as is known.
    marks_in_store: RefCell<Revocations>,
    has_unwritten_marks: Cell<bool>,
    /// The store lacked marks when they were read: a failover, or an eviction, has lost them.
    lacks_marks: Cell<bool>,
    /// The number of revocations by this replica.
    revocation_count: Cell<u64>,
    feeds: RefCell<[EventFeed; 2]>,
    pending_events: RefCell<PendingEvents>,
    /// The last value of `epoch`; `None` before the first connection.
    epoch: RefCell<Option<String>>,
    repair: Repair,
    pending_uses: RefCell<PendingUses>,
    fetches: SingleFlight<TokenId, Result<FetchedToken, Unavailable>>,
    mints: SingleFlight<LoginId, Result<Seed, Unavailable>>,
    claim: Script,
    touch: Script,
    read_events: Script,
    write_event: Script,
}

/// A failed command is logged at most once in this time, as a full server causes many.
const WARNING_INTERVAL: Duration = Duration::from_secs(10);

impl RedisStore {
    /// Reads the certificate files that the options name. The error is about them.
    pub fn new(
        redis_options: RedisOptions,
        options: StoreOptions,
        context: StoreContext,
    ) -> Result<RedisStore, Problem> {
        connection::check_certificates(&redis_options)?;
        Ok(RedisStore { redis_options, options, context })
    }

    /// Executes commands until all senders are gone. Must run on a `LocalSet`.
    pub async fn serve(
        self,
        mut commands: mpsc::Receiver<Command>,
        availability: Arc<Availability>,
        up: Gauge,
        on_failure: OnFailure,
    ) {
        let session = Rc::new(RedisSession {
            pending_uses: RefCell::new(PendingUses::new(self.context.store_clock.now_tick())),
            redis_options: self.redis_options,
            options: self.options,
            context: self.context,
            availability,
            up,
            on_failure,
            connection: RefCell::default(),
            connection_number: Cell::default(),
            connection_lost: Notify::new(),
            down_reason: RefCell::default(),
            was_up: Cell::new(true),
            last_warning: Cell::default(),
            revocations: RefCell::default(),
            unapplied: RefCell::default(),
            marks_in_store: RefCell::default(),
            has_unwritten_marks: Cell::default(),
            lacks_marks: Cell::default(),
            revocation_count: Cell::default(),
            feeds: RefCell::new([EventFeed::changes(), EventFeed::failures()]),
            pending_events: RefCell::default(),
            epoch: RefCell::default(),
            repair: Repair::default(),
            fetches: SingleFlight::new(Err(Unavailable)),
            mints: SingleFlight::new(Err(Unavailable)),
            claim: Script::new(CLAIM),
            touch: Script::new(TOUCH),
            read_events: Script::new(event_feed::READ),
            write_event: Script::new(event_feed::WRITE),
        });
        let commands_end = async {
            while let Some(command) = commands.recv().await {
                session.dispatch(command);
            }
        };
        tokio::select! {
            () = commands_end => {}
            () = session.run_heartbeat() => {}
            () = session.run_usage_writer() => {}
            () = session.run_repair() => {}
        }
        // Recent uses are written so that the tokens do not become idle. If the store is unavailable now, they are
        // lost.
        let _ = timeout(FINAL_WRITE_TIMEOUT, session.write_uses()).await;
    }
}

impl RedisSession {
    fn dispatch(self: &Rc<RedisSession>, command: Command) {
        let session = Rc::clone(self);
        let number = self.connection_number.get();
        match command {
            Command::Fetch { id, key, reply } => {
                if let Some(leader) = self.fetches.join(id, reply) {
                    spawn_local(async move {
                        leader.finish(session.handle_failure(number, session.fetch(id, key).await));
                    });
                }
            }
            Command::Mint { token, seed, id, known, reply } => {
                if let Some(leader) = self.mints.join(token.login, reply) {
                    let revocations = self.revocation_count.get();
                    spawn_local(async move {
                        let result = session.mint(token, seed, id, known, revocations).await;
                        leader.finish(session.handle_failure(number, result));
                    });
                }
            }
            Command::SetUpstreamKey { id, key, reply } => {
                spawn_local(async move {
                    reply.send(session.handle_failure(number, session.set_upstream_key(id, key).await))
                });
            }
            Command::Revoke { revocation, reply } => {
                self.revocation_count.set(self.revocation_count.get() + 1);
                spawn_local(
                    async move { reply.send(session.handle_failure(number, session.revoke(revocation).await)) },
                );
            }
            Command::List { filter, reply } => {
                spawn_local(async move { reply.send(session.handle_failure(number, session.list(filter).await)) });
            }
            Command::SaltUsage { salts, reply } => {
                spawn_local(
                    async move { reply.send(session.handle_failure(number, session.salt_usage(&salts).await)) },
                );
            }
            Command::RecordSaltUse { salt, user } => {
                let user = self.context.keys.hashed_user(&user);
                let now = self.context.store_clock.now();
                self.pending_uses.borrow_mut().add_salt_use(salt, user, now);
            }
            Command::PublishFailure(failure) => self.pending_events.borrow_mut().add_failure(failure),
        }
    }

    /// Reacts to a failed command, and turns the error into what the worker receives. `number` is the one of the
    /// connection that the command began with.
    fn handle_failure<T>(&self, number: u64, result: StoreResult<T>) -> Result<T, Unavailable> {
        result.map_err(|error| {
            match &error {
                StoreError::Redis(error) if is_connection_error(error) => self.drop_connection(number, error),
                // The next heartbeat finds out whether the store is unavailable.
                StoreError::Timeout => self.availability.request_check(),
                StoreError::NoConnection | StoreError::Revoked | StoreError::Missing => {}
                StoreError::Redis(_) | StoreError::Unreadable => self.warn_of_failure(&error),
            }
            Unavailable
        })
    }

    fn warn_of_failure(&self, error: &StoreError) {
        if self.last_warning.get().is_none_or(|last| last.elapsed() >= WARNING_INTERVAL) {
            self.last_warning.set(Some(Instant::now()));
            warn!("a command of the token store failed: {error}");
        }
    }

    /// Executes one step on the current connection.
    async fn query<T: FromRedisValue>(&self, command: &Cmd) -> StoreResult<T> {
        let mut connection = self.connection()?;
        self.with_timeout(command.query_async(&mut connection)).await
    }

    /// Limits one step. Each step of a command has its own timeout: a slow store completes the command, and a store
    /// that hangs is detected at the first step.
    async fn with_timeout<T, E>(&self, step: impl Future<Output = Result<T, E>>) -> StoreResult<T>
    where
        StoreError: From<E>,
    {
        let result = timeout(self.options.timeout, step).await;
        Ok(result.map_err(|_| StoreError::Timeout)??)
    }

    fn connection(&self) -> StoreResult<RedisConnection> {
        self.connection.borrow().clone().ok_or(StoreError::NoConnection)
    }

    /// Drops a connection that failed, unless a newer one has replaced it. A cluster connection stays, because it handles
    /// the failure of one server itself. The next heartbeat finds out whether the current connection has failed.
    fn drop_connection(&self, number: u64, error: &RedisError) {
        let is_older = number != self.connection_number.get();
        if is_older || matches!(*self.connection.borrow(), Some(RedisConnection::Cluster(_))) {
            self.availability.request_check();
            return;
        }
        if self.connection.borrow_mut().take().is_some() {
            *self.down_reason.borrow_mut() = error.to_string();
            self.availability.mark_down();
            self.connection_lost.notify_one();
        }
    }

    fn redis_key(&self, kind: &str, name: impl std::fmt::Display) -> String {
        format!("{}{kind}{name}", self.redis_options.prefix)
    }

    fn report_up(&self) {
        self.up.set(1);
        if !self.was_up.replace(true) {
            info!("the token store is available again");
        }
    }

    fn report_down(&self) {
        self.up.set(0);
        if self.was_up.replace(false) {
            let reason = self.down_reason.borrow();
            error!(
                max_stale = ?self.options.max_stale,
                "the token store is unavailable: {reason}. Known tokens keep working for up to max_stale; unknown and \
                 new tokens are rejected with 503"
            );
        }
    }
}

fn redis_command(name: &str, arguments: impl ToRedisArgs) -> Cmd {
    let mut command = redis::cmd(name);
    command.arg(arguments);
    command
}

fn parse<T: FromRedisValue>(value: Value) -> StoreResult<T> {
    Ok(from_redis_value(value).map_err(RedisError::from)?)
}

/// True if a new connection might help: the old one broke, or its server is no longer a primary.
fn is_connection_error(error: &RedisError) -> bool {
    use redis::ErrorKind;
    error.is_io_error()
        || error.is_unrecoverable_error()
        || matches!(
            error.kind(),
            ErrorKind::Server(
                ServerErrorKind::ReadOnly
                    | ServerErrorKind::MasterDown
                    | ServerErrorKind::BusyLoading
                    | ServerErrorKind::ClusterDown
            ) | ErrorKind::ClusterConnectionNotFound
                | ErrorKind::AuthenticationFailed
        )
}
