//! Tokens in a Redis or Valkey that replicas share: one server, Sentinels or a cluster.
//!
//! | key, after `store.prefix` | holds |
//! | --- | --- |
//! | `t:<name>` | a token: when it was last used, then all of it, sealed |
//! | `l:<name>` | the token that a login is given: seed and hash, sealed |
//! | `notices` | a stream of revocations and changes, sealed |
//! | `failures` | a stream of wrong credentials, sealed |
//! | `salt:<salt>` | who used a salt when: keyed hashes of users |
//!
//! A token is written before the login points to it, and a login is taken over by comparing what it holds. So all replicas
//! give the same login the same token, whatever happens in between, and no step needs two keys at once, which a cluster
//! would not do.

mod connection;
mod event_log;
mod heartbeat;
mod listing;
mod repair;
mod tokens;
mod usage;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::metrics::gauge::Gauge;
use redis::{Cmd, FromRedisValue, RedisError, Script, ServerErrorKind};
use tokio::sync::{Notify, mpsc};
use tokio::task::spawn_local;
use tokio::time::timeout;
use tracing::{error, warn};

use crate::base::clock::Clock;
use crate::base::single_flight::SingleFlight;
use crate::config::{Problem, RedisOptions, StoreOptions};
use crate::store::driver::{Availability, Command};
use crate::store::keys::StoreKeys;
use crate::store::memory::MemoryStore;
use crate::store::revocation::Revocations;
use crate::store::time::StoreClock;
use crate::store::{LoginId, OnFailure, Seed, TokenId, TokenRecord, Unavailable};

use connection::RedisConnection;
use event_log::EventLog;
use usage::PendingUses;

/// How to reach it, and how long to wait for it.
#[derive(Clone)]
pub struct RedisStoreOptions {
    pub redis: RedisOptions,
    pub store: StoreOptions,
}

/// What belongs to the whole store.
pub struct StoreContext {
    pub keys: StoreKeys,
    pub memory: Arc<MemoryStore>,
    pub store_clock: Arc<StoreClock>,
    pub clock: Clock,
}

/// A Redis that nobody has connected to yet.
pub struct RedisStore {
    options: RedisStoreOptions,
    context: StoreContext,
}

/// Why a command has no result.
#[derive(Debug, thiserror::Error)]
pub(super) enum StoreCommandError {
    #[error("there is no connection")]
    NoConnection,
    #[error("{0}")]
    Redis(#[from] RedisError),
    #[error("no answer within store.timeout")]
    Timeout,
    #[error("it was revoked while it was being made")]
    Revoked,
    #[error("what it holds cannot be read")]
    Unreadable,
}

type StoreCommandResult<T> = Result<T, StoreCommandError>;

/// Gives the login that stands at the key another token, unless somebody else did first; the token that it has then.
/// `ARGV`: what was found there, what is to be there, for how many milliseconds.
const CLAIM: &str = "local found = redis.call('GET', KEYS[1])
if found == false or found == ARGV[1] then
  redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
  return ARGV[2]
end
return found";

/// Notes when a token was last used, and that it may go unused for so many milliseconds more, if any are given; 0 if there
/// is no such token. A plain SETRANGE would make one.
const TOUCH: &str = "if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
redis.call('SETRANGE', KEYS[1], 0, ARGV[1])
if ARGV[2] ~= '' and tonumber(ARGV[2]) > redis.call('PTTL', KEYS[1]) then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
return 1";

/// A connected store, on its thread.
struct RedisSession {
    options: RedisStoreOptions,
    context: StoreContext,
    availability: Arc<Availability>,
    up: Gauge,
    on_failure: OnFailure,
    connection: RefCell<Option<RedisConnection>>,
    /// The connection is of no use any more: another one is needed, now.
    connection_lost: Notify,
    /// Another connection than the first one was made: the server may have lost something.
    reconnected: Notify,
    /// Why, for the log.
    down_reason: RefCell<String>,
    was_up: Cell<bool>,
    revocations: RefCell<Revocations>,
    /// How often tokens were ended here.
    revocation_count: Cell<u64>,
    event_log: RefCell<EventLog>,
    pending_uses: RefCell<PendingUses>,
    fetches: SingleFlight<TokenId, Result<Option<Arc<TokenRecord>>, Unavailable>>,
    mints: SingleFlight<LoginId, Result<Seed, Unavailable>>,
    claim: Script,
    touch: Script,
}

impl RedisStore {
    /// Looks at the files that the options name.
    pub fn new(options: RedisStoreOptions, shared: StoreContext) -> Result<RedisStore, Problem> {
        connection::check_certificates(&options.redis)?;
        Ok(RedisStore { options, context: shared })
    }

    /// Serves commands until nobody can send one any more. Must run on a `LocalSet`.
    pub async fn serve(
        self,
        mut commands: mpsc::Receiver<Command>,
        link: Arc<Availability>,
        up: Gauge,
        on_failure: OnFailure,
    ) {
        let session = Rc::new(RedisSession {
            pending_uses: RefCell::new(PendingUses::new(self.context.clock.now())),
            options: self.options,
            context: self.context,
            availability: link,
            up,
            on_failure,
            connection: RefCell::default(),
            connection_lost: Notify::new(),
            reconnected: Notify::new(),
            down_reason: RefCell::default(),
            was_up: Cell::new(true),
            revocations: RefCell::default(),
            revocation_count: Cell::default(),
            event_log: RefCell::default(),
            fetches: SingleFlight::new(Err(Unavailable)),
            mints: SingleFlight::new(Err(Unavailable)),
            claim: Script::new(CLAIM),
            touch: Script::new(TOUCH),
        });
        let serving = async {
            while let Some(command) = commands.recv().await {
                session.dispatch(command);
            }
        };
        tokio::select! {
            () = serving => {}
            () = session.run_heartbeat() => {}
            () = session.run_usage_writer() => {}
        }
        // What was used since is told, so that it does not idle out. A store that does not answer now has had its chance.
        let _ = timeout(Duration::from_secs(1), session.write_uses()).await;
    }
}

impl RedisSession {
    fn dispatch(self: &Rc<RedisSession>, command: Command) {
        let session = Rc::clone(self);
        match command {
            Command::Fetch { id, salt, reply } => {
                if let Some(leader) = self.fetches.join(id, reply) {
                    spawn_local(async move {
                        leader.finish(session.handle_failure(session.fetch(id, salt).await))
                    });
                }
            }
            Command::Mint { token, seed, id, reply } => {
                if let Some(leader) = self.mints.join(token.login, reply) {
                    let endings = self.revocation_count.get();
                    spawn_local(async move {
                        leader.finish(session.handle_failure(session.mint(token, seed, id, endings).await));
                    });
                }
            }
            Command::SetUpstreamKey { id, key, reply } => {
                spawn_local(async move {
                    reply.send(session.handle_failure(session.set_upstream_key(id, key).await))
                });
            }
            Command::Revoke { what, reply } => {
                self.revocation_count.set(self.revocation_count.get() + 1);
                spawn_local(async move { reply.send(session.handle_failure(session.revoke(what).await)) });
            }
            Command::List { filter, reply } => {
                spawn_local(async move { reply.send(session.handle_failure(session.list(filter).await)) });
            }
            Command::SaltUsage { reply } => {
                spawn_local(async move { reply.send(session.handle_failure(session.salt_usage().await)) });
            }
            Command::RecordSaltUse { salt, user } => {
                let user = self.context.keys.hashed_user(&user);
                self.pending_uses.borrow_mut().add_salt_use(salt, user, self.context.store_clock.now());
            }
            Command::Failure(failure) => self.event_log.borrow_mut().add_failure(failure),
        }
    }

    fn handle_failure<T>(&self, outcome: StoreCommandResult<T>) -> Result<T, Unavailable> {
        outcome.map_err(|failed| {
            match &failed {
                StoreCommandError::Redis(error) if is_connection_error(error) => self.drop_connection(error),
                // Whether that was a moment or the end is for the next beat to tell.
                StoreCommandError::Timeout => self.availability.request_check(),
                StoreCommandError::NoConnection | StoreCommandError::Revoked => {}
                StoreCommandError::Redis(_) | StoreCommandError::Unreadable => {
                    warn!("the token store cannot do what it is asked for: {failed}");
                }
            }
            Unavailable
        })
    }

    /// The result of a command, if it comes in time.
    async fn query<T: FromRedisValue>(&self, command: &Cmd) -> StoreCommandResult<T> {
        let mut connection = self.connection()?;
        self.with_timeout(command.query_async(&mut connection)).await
    }

    /// Each step of an operation has its own time: a store that is slow, but in time, does all there is to do; one that does
    /// not answer is found out at the first step.
    async fn with_timeout<T>(
        &self,
        step: impl Future<Output = Result<T, RedisError>>,
    ) -> StoreCommandResult<T> {
        Ok(timeout(self.options.store.timeout, step).await.map_err(|_| StoreCommandError::Timeout)??)
    }

    fn connection(&self) -> StoreCommandResult<RedisConnection> {
        self.connection.borrow().clone().ok_or(StoreCommandError::NoConnection)
    }

    /// The connection is of no use any more. A cluster's knows by itself which server is; losing all for the sake of one
    /// would be worse, and the next beat tells whether it is about all.
    fn drop_connection(&self, error: &RedisError) {
        if matches!(*self.connection.borrow(), Some(RedisConnection::Cluster(_))) {
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
        format!("{}{kind}{name}", self.options.redis.prefix)
    }

    /// What is to be said once, when it becomes true.
    fn report_state(&self, up: bool) {
        self.up.set(i64::from(up));
        if self.was_up.replace(up) == up {
            return;
        }
        if up {
            tracing::info!("the token store answers again");
        } else {
            let reason = self.down_reason.borrow();
            error!(
                max_stale = ?self.options.store.max_stale,
                "the token store does not answer: {reason}. Tokens that are known here go on working for so long; others \
                 and new ones get 503"
            );
        }
    }
}

/// Whether another connection might do what this one does not: it broke, or leads to a server that is none any more.
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
