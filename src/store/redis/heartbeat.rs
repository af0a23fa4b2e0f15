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

use crate::store::Stamp;
use crate::store::redis::connection::{Connection, connect};
use crate::store::redis::event_log::{Entries, Notices};
use crate::store::redis::{Failed, Outcome, Session};

/// Between two beats. What is revoked elsewhere ends here after this and a moment.
const BEAT: Duration = Duration::from_millis(250);

/// Between two attempts to connect.
const AGAIN: Duration = Duration::from_millis(200);

/// To find a server and log in, all together.
const CONNECT: Duration = Duration::from_secs(3);

/// So many beats in a row must be missed: one may be a moment in which the machine did something else.
const MISSES: usize = 2;

/// How often the whole log of notices is read again, for what came in out of order.
const REREAD: Duration = Duration::from_secs(30);

impl Session {
    /// Connects, beats until that fails, and again. Never ends.
    pub(super) async fn beat_forever(&self) {
        for attempt in 0.. {
            match timeout(CONNECT, self.connected(attempt)).await {
                Ok(Ok(connection)) => self.beat_on(connection).await,
                Ok(Err(failed)) => *self.reason.borrow_mut() = failed.to_string(),
                Err(_) => "it took too long to connect".clone_into(&mut self.reason.borrow_mut()),
            }
            self.connection.borrow_mut().take();
            self.link.down();
            self.tell(false);
            sleep(AGAIN).await;
        }
    }

    /// A connection, and everything known that the store has to say.
    async fn connected(&self, attempt: usize) -> Outcome<Connection> {
        let mut connection = connect(&self.options.redis, attempt).await?;
        self.notices.borrow_mut().begin_anew();
        self.beat(&mut connection).await?;
        self.heal_log(&mut connection).await?;
        Ok(connection)
    }

    async fn beat_on(&self, mut connection: Connection) {
        *self.connection.borrow_mut() = Some(connection.clone());
        if !self.shared.memory.is_empty() {
            self.reconnected.notify_one();
        }
        self.link.heard_from(self.shared.clock.now());
        self.tell(true);
        let mut misses = 0;
        let mut read_all = tokio::time::Instant::now();
        loop {
            tokio::select! {
                () = sleep(if misses == 0 { BEAT } else { Duration::ZERO }) => {}
                () = self.link.suspected() => {}
                () = self.broken.notified() => return,
            }
            if read_all.elapsed() >= REREAD {
                read_all = tokio::time::Instant::now();
                self.notices.borrow_mut().begin_anew();
            }
            match self.beat(&mut connection).await {
                Ok(()) => {
                    misses = 0;
                    self.link.heard_from(self.shared.clock.now());
                }
                Err(Failed::Late) if misses + 1 < MISSES => misses += 1,
                Err(failed) => {
                    *self.reason.borrow_mut() = failed.to_string();
                    return;
                }
            }
        }
    }

    /// Asks what is new, and takes it to heart.
    async fn beat(&self, connection: &mut Connection) -> Outcome<()> {
        loop {
            let (new, failed) = timeout(self.options.store.timeout, self.ask(connection))
                .await
                .map_err(|_| Failed::Late)??;
            let more = new.len() == Notices::PAGE || failed.len() == Notices::PAGE;
            self.heed(new).await;
            self.count(failed);
            if !more {
                break;
            }
        }
        let telling = async {
            if self.notices.borrow().is_untold() {
                self.heal_log(connection).await?;
            }
            self.tell_failures(connection).await
        };
        timeout(self.options.store.timeout, telling).await.map_err(|_| Failed::Late)?
    }

    async fn ask(&self, connection: &mut Connection) -> Outcome<(Entries, Entries)> {
        let (notices, failures) = (self.key("notices", ""), self.key("failures", ""));
        let (from, since) = self.notices.borrow().positions(self.shared.calendar.now());
        let (time, new, failed) = match connection {
            Connection::One(one) => {
                let (time, role, new, failed): ((u64, u64), Vec<Value>, Entries, Entries) = pipe()
                    .cmd("TIME")
                    .cmd("ROLE")
                    .cmd("XRANGE")
                    .arg((&notices, from, "+", "COUNT", Notices::PAGE))
                    .cmd("XRANGE")
                    .arg((&failures, since, "+", "COUNT", Notices::PAGE))
                    .query_async(one)
                    .await?;
                is_primary(role)?;
                (time, new, failed)
            }
            Connection::Cluster(cluster) => {
                let anyone = RoutingInfo::SingleNode(SingleNodeRoutingInfo::RandomPrimary);
                let time = from_redis_value(cluster.route_command(cmd("TIME"), anyone).await?);
                let new = range(cluster, &notices, &from).await?;
                let failed = range(cluster, &failures, &since).await?;
                (time.map_err(redis::RedisError::from)?, new, failed)
            }
        };
        // The answer was true a moment ago; so this never runs ahead of the server's clock.
        let (seconds, micros) = time;
        self.shared.calendar.tie(Stamp(seconds * 1000 + micros / 1000));
        Ok((new, failed))
    }
}

async fn range(connection: &mut impl ConnectionLike, key: &str, from: &str) -> Outcome<Entries> {
    Ok(cmd("XRANGE").arg((key, from, "+", "COUNT", Notices::PAGE)).query_async(connection).await?)
}

/// SECURITY: a server that follows another one may be behind it, and takes no writes.
fn is_primary(role: Vec<Value>) -> Outcome<()> {
    let word = role
        .into_iter()
        .next()
        .map(from_redis_value::<String>)
        .transpose()
        .map_err(redis::RedisError::from)?;
    match word.as_deref() {
        Some("master") => Ok(()),
        _ => Err(Failed::Redis((redis::ErrorKind::Client, "the server is not a primary one").into())),
    }
}
