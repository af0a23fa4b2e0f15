//! When tokens and salts were last used: told now and then, never with a request.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use redis::{Cmd, cmd, pipe};
use tokio::time::{Instant, sleep};

use crate::base::clock::Tick;
use crate::store::keys::RecordName;
use crate::store::redis::connection::RedisConnection;
use crate::store::redis::tokens::millis;
use crate::store::redis::{RedisSession, StoreCommandResult};
use crate::store::{SaltUsage, Timestamp, TokenId, salt_usage};

/// So often uses are told where nothing ends for want of use.
const MAX_TOKEN_WRITE_INTERVAL: Duration = Duration::from_secs(300);

/// So many tokens are told of at once.
const PAGE: usize = 500;

/// A user's use of a salt is not told again before that.
const SALT_USE_RESOLUTION_MS: u64 = 60_000;

/// So often uses of salts are told.
const SALT_WRITE_INTERVAL: Duration = Duration::from_secs(2);

/// Before the next attempt.
const RETRY_DELAY: Duration = Duration::from_millis(500);

/// More users than that within a grain are told of again.
const MAX_WRITTEN_SALT_USES: usize = 100_000;

/// What was used and not told yet.
pub struct PendingUses {
    tokens_written_at: Tick,
    salt_uses: HashMap<(u8, RecordName), Timestamp>,
    written_salt_uses: HashMap<(u8, RecordName), Timestamp>,
}

impl PendingUses {
    pub fn new(now: Tick) -> PendingUses {
        PendingUses { tokens_written_at: now, salt_uses: HashMap::new(), written_salt_uses: HashMap::new() }
    }

    /// A salt opened a user's bearer.
    pub fn add_salt_use(&mut self, salt: u8, user: RecordName, now: Timestamp) {
        let told = self.written_salt_uses.get(&(salt, user)).copied().unwrap_or_default();
        if now.0.saturating_sub(told.0) >= SALT_USE_RESOLUTION_MS {
            self.salt_uses.insert((salt, user), now);
        }
    }
}

/// A token that was used.
struct TokenUse {
    id: TokenId,
    salt: u8,
    when: Tick,
    expires: Tick,
}

impl RedisSession {
    /// How often uses of tokens are told.
    pub(super) fn token_write_interval(&self) -> Duration {
        let idle = self.context.memory.limits().idle_ttl;
        idle.map_or(MAX_TOKEN_WRITE_INTERVAL, |idle| {
            (idle / 16).clamp(Duration::from_millis(100), MAX_TOKEN_WRITE_INTERVAL)
        })
    }

    /// Tells what is used, now and then. Never ends.
    pub(super) async fn run_usage_writer(&self) {
        let interval = self.token_write_interval();
        let mut tokens_due = Instant::now() + interval;
        loop {
            let reconnected = tokio::select! {
                () = sleep(interval.min(SALT_WRITE_INTERVAL)) => false,
                () = self.reconnected.notified() => true,
            };
            let outcome = if reconnected {
                self.restore_lost_tokens().await.inspect_err(|_| self.reconnected.notify_one())
            } else if Instant::now() >= tokens_due {
                tokens_due = Instant::now() + interval;
                self.write_uses().await
            } else {
                self.write_salt_uses().await
            };
            if outcome.is_err() {
                // Told next time; the beat has noticed by itself.
                sleep(RETRY_DELAY).await;
            }
        }
    }

    /// Tells what was used since the last time.
    pub(super) async fn write_uses(&self) -> StoreCommandResult<()> {
        self.write_salt_uses().await?;
        let mut connection = self.connection()?;
        let (since, now) = (self.pending_uses.borrow().tokens_written_at, self.context.clock.now());
        let memory = Arc::clone(&self.context.memory);
        let search = move || {
            let mut used = Vec::new();
            memory.for_each(|id, record| {
                if record.last_used() >= since {
                    let (when, expires) = (record.last_used(), record.expires);
                    used.push(TokenUse { id: *id, salt: record.salt, when, expires });
                }
            });
            used
        };
        let Ok(used) = tokio::task::spawn_blocking(search).await else { return Ok(()) };
        for page in used.chunks(PAGE) {
            self.touch_page(&mut connection, page).await?;
        }
        self.pending_uses.borrow_mut().tokens_written_at = now;
        Ok(())
    }

    async fn touch_page(
        &self,
        connection: &mut RedisConnection,
        page: &[TokenUse],
    ) -> StoreCommandResult<()> {
        self.touch.load_async(connection).await?;
        let mut there: Vec<u64> = Vec::with_capacity(page.len());
        match connection {
            RedisConnection::One(one) => {
                let mut all = pipe();
                for used in page {
                    all.add_command(self.touch_command(used));
                }
                there = all.query_async(one).await?;
            }
            // Each may be on another server.
            RedisConnection::Cluster(cluster) => {
                for used in page {
                    there.push(self.touch_command(used).query_async(cluster).await?);
                }
            }
        }
        for (used, there) in page.iter().zip(there) {
            if there == 0 {
                // Another replica's idea of its life was shorter, or the server has made room.
                self.context.memory.remove(&used.id);
            }
        }
        Ok(())
    }

    fn touch_command(&self, used: &TokenUse) -> Cmd {
        let calendar = &self.context.store_clock;
        let (when, expires) = (calendar.timestamp(used.when), calendar.timestamp(used.expires));
        let idle = self.context.memory.limits().idle_ttl.map(|_| {
            let unused = calendar.now().0.saturating_sub(when.0);
            self.expiry_millis(expires).saturating_sub(unused).max(1).to_string()
        });
        let mut command = cmd("EVALSHA");
        command.arg(self.touch.get_hash()).arg(1).arg(self.token_key(used.salt, &used.id));
        command.arg(&when.0.to_be_bytes()[..]).arg(idle.unwrap_or_default());
        command
    }

    async fn write_salt_uses(&self) -> StoreCommandResult<()> {
        let mut connection = self.connection()?;
        let uses: Vec<_> =
            self.pending_uses.borrow().salt_uses.iter().map(|(who, when)| (*who, *when)).collect();
        if uses.is_empty() {
            return Ok(());
        }
        for (salt, name) in (0..).zip(self.context.keys.salt_names()) {
            let mut command = cmd("ZADD");
            command.arg(self.redis_key("salt:", name)).arg("GT");
            let of_this = uses.iter().filter(|((other, _), _)| *other == salt);
            let count = of_this.clone().count();
            for ((_, user), when) in of_this {
                command.arg(when.0).arg(user.to_string());
            }
            if count > 0 {
                let _: u64 = command.query_async(&mut connection).await?;
            }
        }
        let mut own = self.pending_uses.borrow_mut();
        if own.written_salt_uses.len() > MAX_WRITTEN_SALT_USES {
            own.written_salt_uses.clear();
        }
        for (who, when) in uses {
            // One that was used again meanwhile is told of again.
            if own.salt_uses.get(&who) == Some(&when) {
                own.salt_uses.remove(&who);
            }
            own.written_salt_uses.insert(who, when);
        }
        Ok(())
    }

    /// Who used which salt.
    pub(super) async fn salt_usage(&self) -> StoreCommandResult<Vec<SaltUsage>> {
        self.write_salt_uses().await?;
        let mut connection = self.connection()?;
        let since = self.context.store_clock.now().0.saturating_sub(millis(salt_usage::USAGE_WINDOW));
        let mut all = Vec::new();
        for name in self.context.keys.salt_names() {
            let key = self.redis_key("salt:", name);
            let mut forget = cmd("ZREMRANGEBYSCORE");
            let _: u64 = forget.arg((&key, "-inf", format!("({since}"))).query_async(&mut connection).await?;
            let users: u64 = cmd("ZCARD").arg(&key).query_async(&mut connection).await?;
            let last: Vec<(String, f64)> =
                cmd("ZRANGE").arg((&key, 0, 0, "REV", "WITHSCORES")).query_async(&mut connection).await?;
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a time in this age")]
            let last = last.first().map(|(_, score)| Timestamp(*score as u64));
            all.push(SaltUsage { last_used: last, users });
        }
        Ok(all)
    }
}
