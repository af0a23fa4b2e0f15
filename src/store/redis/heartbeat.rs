//! Polls the store four times a second, which shows whether it is available and delivers the changes by other
//! replicas.
//!
//! Each poll reads the server's time, its role, whether it still has its data, and the new events. Polling cannot miss a
//! revocation, as a message that is published once could.

use std::time::{Duration, Instant};

use aws_lc_rs::rand;
use redis::aio::ConnectionLike;
use redis::{Value, cmd, pipe};
use tokio::time::{sleep, timeout};

use crate::base::hex;
use crate::store::redis::connection::{RedisConnection, connect};
use crate::store::redis::event_feed::ReadEvents;
use crate::store::redis::{RedisSession, StoreError, StoreResult, is_connection_error, parse, redis_command};

/// Revocations by other replicas take effect within this time and one round trip.
const HEARTBEAT_INTERVAL: Duration = Duration::from_millis(250);

const RECONNECT_DELAY: Duration = Duration::from_millis(200);

/// For finding a server, connecting, logging in, and reading the marks.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// The connection is dropped after this number of heartbeats without a response: a single one may be due to a short
/// pause of the machine.
const MAX_MISSED_HEARTBEATS: usize = 2;

impl RedisSession {
    /// Connects, polls until the connection fails, and connects again. Never returns.
    pub(super) async fn run_heartbeat(&self) {
        for attempt in 0.. {
            match timeout(CONNECT_TIMEOUT, self.connect_and_sync(attempt)).await {
                Ok(Ok(connection)) => self.watch_connection(connection).await,
                Ok(Err(error)) => *self.down_reason.borrow_mut() = error.to_string(),
                Err(_) => "connecting took too long".clone_into(&mut self.down_reason.borrow_mut()),
            }
            self.connection.borrow_mut().take();
            self.availability.mark_down();
            self.report_down();
            sleep(RECONNECT_DELAY).await;
        }
    }

    /// A connection, after all events have been exchanged.
    async fn connect_and_sync(&self, attempt: usize) -> StoreResult<RedisConnection> {
        let mut connection = connect(&self.redis_options, attempt).await?;
        for script in [&self.claim, &self.touch, &self.read_events, &self.write_event] {
            self.with_timeout(script.load_async(&mut connection)).await?;
        }
        let read = self.read_store(&mut connection).await?;
        // SECURITY: a revocation is in the marks before its event, so none is missed.
        self.read_marks(&mut connection).await?;
        self.apply_events(read).await;
        self.write_pending(&mut connection).await?;
        Ok(connection)
    }

    /// Makes the connection available to commands, and polls until it fails.
    async fn watch_connection(&self, mut connection: RedisConnection) {
        *self.connection.borrow_mut() = Some(connection.clone());
        self.connection_number.update(|number| number + 1);
        // A failover may have lost some tokens.
        self.restore_all();
        self.availability.mark_fresh(self.context.store_clock.now_tick());
        self.report_up();
        let mut missed = 0;
        loop {
            tokio::select! {
                () = sleep(if missed == 0 { HEARTBEAT_INTERVAL } else { Duration::ZERO }) => {}
                () = self.availability.check_requested() => {}
                () = self.connection_lost.notified() => {
                    // Otherwise the notification is about an earlier connection.
                    if self.connection.borrow().is_none() {
                        return;
                    }
                }
            }
            match self.poll_store(&mut connection).await {
                Ok(()) => {
                    missed = 0;
                    self.availability.mark_fresh(self.context.store_clock.now_tick());
                }
                Err(StoreError::Timeout) if missed + 1 < MAX_MISSED_HEARTBEATS => missed += 1,
                Err(error) => {
                    *self.down_reason.borrow_mut() = error.to_string();
                    return;
                }
            }
        }
    }

    /// Reads and applies what is new, and writes what could not be written before.
    async fn poll_store(&self, connection: &mut RedisConnection) -> StoreResult<()> {
        let read = self.read_store(connection).await?;
        if read.has_gap {
            self.read_marks(connection).await?;
        }
        self.apply_events(read).await;
        self.write_pending(connection).await
    }

    /// Reads the state of the store and the new events, in one round trip unless it is a cluster.
    async fn read_store(&self, connection: &mut RedisConnection) -> StoreResult<ReadEvents> {
        let (epoch_key, marks_key) = (self.redis_key("epoch", ""), self.redis_key("marks", ""));
        let [changes, failures] = self.read_commands();
        let read = async {
            let (epoch, has_marks, pages): (Option<String>, bool, [Value; 2]) = match connection {
                RedisConnection::One(one) => {
                    let (role, epoch, has_marks, changes, failures) = pipe()
                        .cmd("ROLE")
                        .cmd("GET")
                        .arg(&epoch_key)
                        .cmd("EXISTS")
                        .arg(&marks_key)
                        .add_command(changes)
                        .add_command(failures)
                        .query_async(one)
                        .await?;
                    ensure_primary(role)?;
                    (epoch, has_marks, [changes, failures])
                }
                RedisConnection::Cluster(cluster) => {
                    let epoch = cmd("GET").arg(&epoch_key).query_async(cluster).await?;
                    let has_marks = cmd("EXISTS").arg(&marks_key).query_async(cluster).await?;
                    let changes = cluster.req_packed_command(&changes).await?;
                    (epoch, has_marks, [changes, cluster.req_packed_command(&failures).await?])
                }
            };
            Ok::<_, StoreError>((epoch, has_marks, self.finish_read(connection, pages).await?))
        };
        let (epoch, has_marks, read) = self.with_timeout(read).await?;
        // An eviction may have removed only the marks.
        let epoch = epoch.filter(|_| has_marks || self.marks_in_store.borrow().is_empty());
        // The response has been under way for a moment, so this clock is never ahead of the server's.
        self.context.store_clock.set_now(read.now());
        self.check_epoch(connection, &epoch_key, epoch).await?;
        Ok(read)
    }

    /// Detects that the server has lost its data without closing the connection: a random value in it is
    /// a different one, or missing. The first replica that misses it writes a new one.
    async fn check_epoch(&self, connection: &mut RedisConnection, key: &str, found: Option<String>) -> StoreResult<()> {
        let is_known = found.is_some() && found == *self.epoch.borrow();
        if is_known {
            return Ok(());
        }
        let epoch = match found {
            Some(epoch) => epoch,
            None => {
                let set = redis_command("SET", (key, random_epoch(), "NX"));
                // A full server keeps none; then it is not known whether it has lost data.
                match self.with_timeout(set.query_async::<Value>(connection)).await {
                    Err(StoreError::Redis(error)) if !is_connection_error(&error) => return Ok(()),
                    other => drop(other?),
                }
                self.with_timeout(cmd("GET").arg(key).query_async::<Option<String>>(connection))
                    .await?
                    .unwrap_or_default()
            }
        };
        let has_lost_data = self.epoch.borrow().is_some();
        if has_lost_data {
            self.read_marks(connection).await?;
            self.restore_all();
        }
        // SECURITY: known only now. If the marks could not be read, the next poll reads them.
        *self.epoch.borrow_mut() = Some(epoch);
        Ok(())
    }

    /// Makes all replicas read the marks again, this one included.
    pub(super) async fn renew_epoch(&self, connection: &mut RedisConnection) -> StoreResult<()> {
        let set = redis_command("SET", (self.redis_key("epoch", ""), random_epoch()));
        self.with_timeout(set.query_async::<Value>(connection)).await.map(drop)
    }

    /// Writes marks and events that could not be written before. A server that is full, or does not permit it, is not
    /// lost: then they stay pending.
    async fn write_pending(&self, connection: &mut RedisConnection) -> StoreResult<()> {
        let write = async {
            self.write_missing_marks(connection).await?;
            self.publish_pending(connection).await
        };
        let written = self.with_timeout(write).await;
        self.availability.rate_uses.set_written(written.is_ok(), Instant::now());
        match written {
            Err(StoreError::Redis(error)) if !is_connection_error(&error) => {
                self.warn_of_failure(&StoreError::Redis(error));
                Ok(())
            }
            other => other,
        }
    }
}

fn random_epoch() -> String {
    let mut random = [0; 16];
    rand::fill(&mut random).expect("the system's random source works");
    hex::encode(&random)
}

/// SECURITY: a Redis replica may be behind its primary, so it may not know a revocation yet. It accepts no writes
/// either.
pub(super) fn ensure_primary(role: Vec<Value>) -> StoreResult<()> {
    let name = role.into_iter().next().map(parse::<String>).transpose()?;
    match name.as_deref() {
        Some("master") => Ok(()),
        _ => Err(StoreError::Redis((redis::ErrorKind::Client, "the server is not a primary").into())),
    }
}
