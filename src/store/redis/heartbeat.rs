//! Polls the store four times a second, which shows whether it is available and delivers the changes by other
//! replicas.
//!
//! Each poll reads the server's time, its role, and the new entries of both streams. Polling cannot miss a revocation,
//! as a message that is published once could.

use std::time::Duration;

use redis::aio::ConnectionLike;
use redis::cluster_routing::{RoutingInfo, SingleNodeRoutingInfo};
use redis::{Value, cmd, pipe};
use tokio::time::{Instant, sleep, timeout};

use crate::store::Timestamp;
use crate::store::redis::connection::{RedisConnection, connect};
use crate::store::redis::event_log::{EventLog, StreamEntries};
use crate::store::redis::{RedisSession, StoreError, StoreResult, parse};

/// Revocations by other replicas take effect within this time and one round trip.
const HEARTBEAT_INTERVAL: Duration = Duration::from_millis(250);

const RECONNECT_DELAY: Duration = Duration::from_millis(200);

/// For finding a server, connecting, logging in, and reading the event log.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// The connection is dropped after this number of heartbeats without a response: a single one may be due to a short
/// pause of the machine.
const MAX_MISSED_HEARTBEATS: usize = 2;

/// The interval for reading the whole event log again, to find entries whose ids are older than those read before.
const REREAD_INTERVAL: Duration = Duration::from_secs(30);

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
        self.event_log.borrow_mut().rewind();
        self.poll_store(&mut connection).await?;
        self.repair_log(&mut connection).await?;
        Ok(connection)
    }

    /// Makes the connection available to commands, and polls until it fails.
    async fn watch_connection(&self, mut connection: RedisConnection) {
        *self.connection.borrow_mut() = Some(connection.clone());
        if !self.context.memory.is_empty() {
            self.reconnected.notify_one();
        }
        self.availability.mark_fresh(self.context.store_clock.now_tick());
        self.report_up();
        let mut missed = 0;
        let mut last_reread = Instant::now();
        loop {
            tokio::select! {
                () = sleep(if missed == 0 { HEARTBEAT_INTERVAL } else { Duration::ZERO }) => {}
                () = self.availability.check_requested() => {}
                () = self.connection_lost.notified() => return,
            }
            if last_reread.elapsed() >= REREAD_INTERVAL {
                last_reread = Instant::now();
                self.event_log.borrow_mut().rewind();
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

    /// Reads and applies all new entries, and writes those of this replica.
    async fn poll_store(&self, connection: &mut RedisConnection) -> StoreResult<()> {
        loop {
            let (events, failures) = self.with_timeout(self.read_new_entries(connection)).await?;
            let is_complete = events.len() < EventLog::PAGE && failures.len() < EventLog::PAGE;
            self.apply_events(events).await;
            self.apply_failures(failures);
            if is_complete {
                break;
            }
        }
        let publish = async {
            if self.event_log.borrow().has_unpublished() {
                self.repair_log(connection).await?;
            }
            self.publish_failures(connection).await
        };
        self.with_timeout(publish).await
    }

    async fn read_new_entries(&self, connection: &mut RedisConnection) -> StoreResult<(StreamEntries, StreamEntries)> {
        let (event_key, failure_key) = (self.redis_key("notices", ""), self.redis_key("failures", ""));
        let (events_from, failures_from) = self.event_log.borrow().positions(self.context.store_clock.now());
        let (time, events, failures) = match connection {
            RedisConnection::One(one) => {
                let (time, role, events, failures): ((u64, u64), Vec<Value>, StreamEntries, StreamEntries) = pipe()
                    .cmd("TIME")
                    .cmd("ROLE")
                    .cmd("XRANGE")
                    .arg((&event_key, events_from, "+", "COUNT", EventLog::PAGE))
                    .cmd("XRANGE")
                    .arg((&failure_key, failures_from, "+", "COUNT", EventLog::PAGE))
                    .query_async(one)
                    .await?;
                ensure_primary(role)?;
                (time, events, failures)
            }
            RedisConnection::Cluster(cluster) => {
                let any_primary = RoutingInfo::SingleNode(SingleNodeRoutingInfo::RandomPrimary);
                let time = cluster.route_command(cmd("TIME"), any_primary).await?;
                let events = read_stream(cluster, &event_key, &events_from).await?;
                let failures = read_stream(cluster, &failure_key, &failures_from).await?;
                (parse(time)?, events, failures)
            }
        };
        // The response has been under way for a moment, so this clock is never ahead of the server's.
        let (seconds, micros): (u64, u64) = time;
        self.context.store_clock.set_now(Timestamp(seconds * 1000 + micros / 1000));
        Ok((events, failures))
    }
}

async fn read_stream(connection: &mut impl ConnectionLike, key: &str, from: &str) -> StoreResult<StreamEntries> {
    Ok(cmd("XRANGE").arg((key, from, "+", "COUNT", EventLog::PAGE)).query_async(connection).await?)
}

/// SECURITY: a Redis replica may be behind its primary, so it may not know a revocation yet. It accepts no writes
/// either.
fn ensure_primary(role: Vec<Value>) -> StoreResult<()> {
    let name = role.into_iter().next().map(parse::<String>).transpose()?;
    match name.as_deref() {
        Some("master") => Ok(()),
        _ => Err(StoreError::Redis((redis::ErrorKind::Client, "the server is not a primary").into())),
    }
}
