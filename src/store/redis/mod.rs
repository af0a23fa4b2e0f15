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
use crate::store::driver::{Command, Link};
use crate::store::keys::StoreKeys;
use crate::store::memory::MemoryStore;
use crate::store::revocation::Revocations;
use crate::store::time::Calendar;
use crate::store::{LoginId, OnFailure, Seed, TokenId, TokenRecord, Unavailable};

use connection::Connection;
use event_log::Notices;
use usage::Uses;

/// How to reach it, and how long to wait for it.
#[derive(Clone)]
pub struct Options {
    pub redis: RedisOptions,
    pub store: StoreOptions,
}

/// What belongs to the whole store.
pub struct Shared {
    pub keys: StoreKeys,
    pub memory: Arc<MemoryStore>,
    pub calendar: Arc<Calendar>,
    pub clock: Clock,
}

/// A Redis that nobody has connected to yet.
pub struct RedisStore {
    options: Options,
    shared: Shared,
}

/// Why a command has no result.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failed {
    #[error("there is no connection")]
    NoConnection,
    #[error("{0}")]
    Redis(#[from] RedisError),
    #[error("no answer within store.timeout")]
    Late,
    #[error("it was revoked while it was being made")]
    Overtaken,
    #[error("what it holds cannot be read")]
    Unreadable,
}

type Outcome<T> = Result<T, Failed>;

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
struct Session {
    options: Options,
    shared: Shared,
    link: Arc<Link>,
    up: Gauge,
    on_failure: OnFailure,
    connection: RefCell<Option<Connection>>,
    /// The connection is of no use any more: another one is needed, now.
    broken: Notify,
    /// Another connection than the first one was made: the server may have lost something.
    reconnected: Notify,
    /// Why, for the log.
    reason: RefCell<String>,
    was_up: Cell<bool>,
    revocations: RefCell<Revocations>,
    /// How often tokens were ended here.
    endings: Cell<u64>,
    notices: RefCell<Notices>,
    uses: RefCell<Uses>,
    fetches: SingleFlight<TokenId, Result<Option<Arc<TokenRecord>>, Unavailable>>,
    mints: SingleFlight<LoginId, Result<Seed, Unavailable>>,
    claim: Script,
    touch: Script,
}

impl RedisStore {
    /// Looks at the files that the options name.
    pub fn new(options: Options, shared: Shared) -> Result<RedisStore, Problem> {
        connection::check(&options.redis)?;
        Ok(RedisStore { options, shared })
    }

    /// Serves commands until nobody can send one any more. Must run on a `LocalSet`.
    pub async fn serve(
        self,
        mut commands: mpsc::Receiver<Command>,
        link: Arc<Link>,
        up: Gauge,
        on_failure: OnFailure,
    ) {
        let session = Rc::new(Session {
            uses: RefCell::new(Uses::new(self.shared.clock.now())),
            options: self.options,
            shared: self.shared,
            link,
            up,
            on_failure,
            connection: RefCell::default(),
            broken: Notify::new(),
            reconnected: Notify::new(),
            reason: RefCell::default(),
            was_up: Cell::new(true),
            revocations: RefCell::default(),
            endings: Cell::default(),
            notices: RefCell::default(),
            fetches: SingleFlight::new(Err(Unavailable)),
            mints: SingleFlight::new(Err(Unavailable)),
            claim: Script::new(CLAIM),
            touch: Script::new(TOUCH),
        });
        let serving = async {
            while let Some(command) = commands.recv().await {
                session.take(command);
            }
        };
        tokio::select! {
            () = serving => {}
            () = session.beat_forever() => {}
            () = session.note_uses_forever() => {}
        }
        // What was used since is told, so that it does not idle out. A store that does not answer now has had its chance.
        let _ = timeout(Duration::from_secs(1), session.note_uses()).await;
    }
}

impl Session {
    fn take(self: &Rc<Session>, command: Command) {
        let session = Rc::clone(self);
        match command {
            Command::Fetch { id, salt, reply } => {
                if let Some(leader) = self.fetches.join(id, reply) {
                    spawn_local(async move { leader.finish(session.judged(session.fetch(id, salt).await)) });
                }
            }
            Command::Mint { token, seed, id, reply } => {
                if let Some(leader) = self.mints.join(token.login, reply) {
                    let endings = self.endings.get();
                    spawn_local(async move {
                        leader.finish(session.judged(session.mint(token, seed, id, endings).await));
                    });
                }
            }
            Command::SetUpstreamKey { id, key, reply } => {
                spawn_local(
                    async move { reply.send(session.judged(session.set_upstream_key(id, key).await)) },
                );
            }
            Command::Revoke { what, reply } => {
                self.endings.set(self.endings.get() + 1);
                spawn_local(async move { reply.send(session.judged(session.revoke(what).await)) });
            }
            Command::List { filter, reply } => {
                spawn_local(async move { reply.send(session.judged(session.list(filter).await)) });
            }
            Command::SaltUses { reply } => {
                spawn_local(async move { reply.send(session.judged(session.salt_uses().await)) });
            }
            Command::NoteSaltUse { salt, user } => {
                let user = self.shared.keys.user(&user);
                self.uses.borrow_mut().salt(salt, user, self.shared.calendar.now());
            }
            Command::Failure(failure) => self.notices.borrow_mut().failed(failure),
        }
    }

    fn judged<T>(&self, outcome: Outcome<T>) -> Result<T, Unavailable> {
        outcome.map_err(|failed| {
            match &failed {
                Failed::Redis(error) if is_lost(error) => self.lose(error),
                // Whether that was a moment or the end is for the next beat to tell.
                Failed::Late => self.link.suspect(),
                Failed::NoConnection | Failed::Overtaken => {}
                Failed::Redis(_) | Failed::Unreadable => {
                    warn!("the token store cannot do what it is asked for: {failed}");
                }
            }
            Unavailable
        })
    }

    /// The result of a command, if it comes in time.
    async fn query<T: FromRedisValue>(&self, command: &Cmd) -> Outcome<T> {
        let mut connection = self.connection()?;
        self.in_time(command.query_async(&mut connection)).await
    }

    /// Each step of an operation has its own time: a store that is slow, but in time, does all there is to do; one that does
    /// not answer is found out at the first step.
    async fn in_time<T>(&self, step: impl Future<Output = Result<T, RedisError>>) -> Outcome<T> {
        Ok(timeout(self.options.store.timeout, step).await.map_err(|_| Failed::Late)??)
    }

    fn connection(&self) -> Outcome<Connection> {
        self.connection.borrow().clone().ok_or(Failed::NoConnection)
    }

    /// The connection is of no use any more. A cluster's knows by itself which server is; losing all for the sake of one
    /// would be worse, and the next beat tells whether it is about all.
    fn lose(&self, error: &RedisError) {
        if matches!(*self.connection.borrow(), Some(Connection::Cluster(_))) {
            self.link.suspect();
            return;
        }
        if self.connection.borrow_mut().take().is_some() {
            *self.reason.borrow_mut() = error.to_string();
            self.link.down();
            self.broken.notify_one();
        }
    }

    fn key(&self, kind: &str, name: impl std::fmt::Display) -> String {
        format!("{}{kind}{name}", self.options.redis.prefix)
    }

    /// What is to be said once, when it becomes true.
    fn tell(&self, up: bool) {
        self.up.set(i64::from(up));
        if self.was_up.replace(up) == up {
            return;
        }
        if up {
            tracing::info!("the token store answers again");
        } else {
            let reason = self.reason.borrow();
            error!(
                max_stale = ?self.options.store.max_stale,
                "the token store does not answer: {reason}. Tokens that are known here go on working for so long; others \
                 and new ones get 503"
            );
        }
    }
}

/// Whether another connection might do what this one does not: it broke, or leads to a server that is none any more.
fn is_lost(error: &RedisError) -> bool {
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
