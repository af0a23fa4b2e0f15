//! Whether the store answers, and what is new there.
//!
//! Four times a second everything is asked for that a replica must not miss. That is at once the heartbeat, the way in which
//! revocations arrive, and the server's time. One question that comes again and again cannot be missed, as a message that is
//! sent once can.

use std::time::Duration;

use redis::aio::ConnectionLike;
use redis::cluster_routing::{RoutingInfo, SingleNodeRoutingInfo};
use redis::{Value, cmd, from_redis_value, pipe};
use tokio::time::{sleep, timeout};

use crate::store::Timestamp;
use crate::store::redis::connection::{RedisConnection, connect};
use crate::store::redis::event_log::{EventLog, StreamEntries};
use crate::store::redis::{RedisSession, StoreCommandError, StoreCommandResult};

/// Between two beats. What is revoked elsewhere ends here after this and a moment.
const HEARTBEAT_INTERVAL: Duration = Duration::from_millis(250);

/// Between two attempts to connect.
const RECONNECT_DELAY: Duration = Duration::from_millis(200);

/// To find a server and log in, all together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// So many beats in a row must be missed: one may be a moment in which the machine did something else.
const MAX_MISSED_HEARTBEATS: usize = 2;

/// How often the whole log of notices is read again, for what came in out of order.
const REREAD_INTERVAL: Duration = Duration::from_secs(30);

impl RedisSession {
    /// Connects, beats until that fails, and again. Never ends.
    pub(super) async fn run_heartbeat(&self) {
        for attempt in 0.. {
            match timeout(CONNECT_TIMEOUT, self.connect_and_sync(attempt)).await {
                Ok(Ok(connection)) => self.watch_connection(connection).await,
                Ok(Err(failed)) => *self.down_reason.borrow_mut() = failed.to_string(),
                Err(_) => "it took too long to connect".clone_into(&mut self.down_reason.borrow_mut()),
            }
            self.connection.borrow_mut().take();
            self.availability.mark_down();
            self.report_state(false);
            sleep(RECONNECT_DELAY).await;
        }
    }

    /// A connection, and everything known that the store has to say.
    async fn connect_and_sync(&self, attempt: usize) -> StoreCommandResult<RedisConnection> {
        let mut connection = connect(&self.options.redis, attempt).await?;
        self.event_log.borrow_mut().rewind();
        self.poll_store(&mut connection).await?;
        self.repair_log(&mut connection).await?;
        Ok(connection)
    }

    async fn watch_connection(&self, mut connection: RedisConnection) {
        *self.connection.borrow_mut() = Some(connection.clone());
        if !self.context.memory.is_empty() {
            self.reconnected.notify_one();
        }
        self.availability.mark_fresh(self.context.clock.now());
        self.report_state(true);
        let mut misses = 0;
        let mut read_all = tokio::time::Instant::now();
        loop {
            tokio::select! {
                () = sleep(if misses == 0 { HEARTBEAT_INTERVAL } else { Duration::ZERO }) => {}
                () = self.availability.check_requested() => {}
                () = self.connection_lost.notified() => return,
            }
            if read_all.elapsed() >= REREAD_INTERVAL {
                read_all = tokio::time::Instant::now();
                self.event_log.borrow_mut().rewind();
            }
            match self.poll_store(&mut connection).await {
                Ok(()) => {
                    misses = 0;
                    self.availability.mark_fresh(self.context.clock.now());
                }
                Err(StoreCommandError::Timeout) if misses + 1 < MAX_MISSED_HEARTBEATS => misses += 1,
                Err(failed) => {
                    *self.down_reason.borrow_mut() = failed.to_string();
                    return;
                }
            }
        }
    }

    /// Asks what is new, and takes it to heart.
    async fn poll_store(&self, connection: &mut RedisConnection) -> StoreCommandResult<()> {
        loop {
            let (new, failed) = timeout(self.options.store.timeout, self.read_new_entries(connection))
                .await
                .map_err(|_| StoreCommandError::Timeout)??;
            let more = new.len() == EventLog::PAGE || failed.len() == EventLog::PAGE;
            self.apply_events(new).await;
            self.apply_failures(failed);
            if !more {
                break;
            }
        }
        let telling = async {
            if self.event_log.borrow().has_unpublished() {
                self.repair_log(connection).await?;
            }
            self.publish_failures(connection).await
        };
        timeout(self.options.store.timeout, telling).await.map_err(|_| StoreCommandError::Timeout)?
    }

    async fn read_new_entries(
        &self,
        connection: &mut RedisConnection,
    ) -> StoreCommandResult<(StreamEntries, StreamEntries)> {
        let (notices, failures) = (self.redis_key("notices", ""), self.redis_key("failures", ""));
        let (from, since) = self.event_log.borrow().positions(self.context.store_clock.now());
        let (time, new, failed) = match connection {
            RedisConnection::One(one) => {
                let (time, role, new, failed): ((u64, u64), Vec<Value>, StreamEntries, StreamEntries) =
                    pipe()
                        .cmd("TIME")
                        .cmd("ROLE")
                        .cmd("XRANGE")
                        .arg((&notices, from, "+", "COUNT", EventLog::PAGE))
                        .cmd("XRANGE")
                        .arg((&failures, since, "+", "COUNT", EventLog::PAGE))
                        .query_async(one)
                        .await?;
                ensure_primary(role)?;
                (time, new, failed)
            }
            RedisConnection::Cluster(cluster) => {
                let anyone = RoutingInfo::SingleNode(SingleNodeRoutingInfo::RandomPrimary);
                let time = from_redis_value(cluster.route_command(cmd("TIME"), anyone).await?);
                let new = read_stream(cluster, &notices, &from).await?;
                let failed = read_stream(cluster, &failures, &since).await?;
                (time.map_err(redis::RedisError::from)?, new, failed)
            }
        };
        // The answer was true a moment ago; so this never runs ahead of the server's clock.
        let (seconds, micros) = time;
        self.context.store_clock.set_now(Timestamp(seconds * 1000 + micros / 1000));
        Ok((new, failed))
    }
}

async fn read_stream(
    connection: &mut impl ConnectionLike,
    key: &str,
    from: &str,
) -> StoreCommandResult<StreamEntries> {
    Ok(cmd("XRANGE").arg((key, from, "+", "COUNT", EventLog::PAGE)).query_async(connection).await?)
}

/// SECURITY: a server that follows another one may be behind it, and takes no writes.
fn ensure_primary(role: Vec<Value>) -> StoreCommandResult<()> {
    let word = role
        .into_iter()
        .next()
        .map(from_redis_value::<String>)
        .transpose()
        .map_err(redis::RedisError::from)?;
    match word.as_deref() {
        Some("master") => Ok(()),
        _ => Err(StoreCommandError::Redis(
            (redis::ErrorKind::Client, "the server is not a primary one").into(),
        )),
    }
}
