//! Writes when tokens and salts were last used: periodically, never as part of a request.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use redis::{Cmd, cmd};
use tokio::time::{Instant, sleep};

use crate::base::clock::Tick;
use crate::store::keys::{KeyNumber, RecordName};
use crate::store::redis::connection::RedisConnection;
use crate::store::redis::{RedisSession, StoreResult, redis_command};
use crate::store::salt_usage::USAGE_WINDOW;
use crate::store::{SaltName, SaltUsage, Timestamp, TokenId};

/// The interval for writing uses of tokens that have no idle lifetime.
pub(super) const MAX_TOKEN_WRITE_INTERVAL: Duration = Duration::from_secs(300);

/// The number of tokens in one round trip.
const PAGE: usize = 500;

/// A further use of a salt by the same user is not written before that.
const SALT_USE_RESOLUTION_MS: u64 = 60_000;

/// The interval for writing uses of salts.
const SALT_WRITE_INTERVAL: Duration = Duration::from_secs(2);

/// The delay after a failed write.
const RETRY_DELAY: Duration = Duration::from_millis(500);

/// Bounds the memory for the written uses of salts. Beyond it, some uses are written more often.
const MAX_WRITTEN_SALT_USES: usize = 100_000;

/// The uses that have not been written yet.
pub struct PendingUses {
    /// Uses of tokens before this tick are in the store.
    tokens_written_at: Tick,
    /// By the salt and the pseudonym of the user.
    salt_uses: HashMap<(SaltName, RecordName), Timestamp>,
    /// The last use that is in the store.
    written_salt_uses: HashMap<(SaltName, RecordName), Timestamp>,
}

impl PendingUses {
    pub fn new(now: Tick) -> PendingUses {
        PendingUses { tokens_written_at: now, salt_uses: HashMap::new(), written_salt_uses: HashMap::new() }
    }

    /// Records that a salt opened a bearer of a user.
    pub fn add_salt_use(&mut self, salt: SaltName, user: RecordName, now: Timestamp) {
        let written = self.written_salt_uses.get(&(salt, user)).copied().unwrap_or_default();
        if now.millis_since(written) >= SALT_USE_RESOLUTION_MS {
            self.salt_uses.insert((salt, user), now);
        }
    }
}

/// A token that was used.
struct TokenUse {
    id: TokenId,
    key: KeyNumber,
    when: Tick,
    expires: Tick,
}

impl RedisSession {
    /// The interval for writing uses of tokens.
    pub(super) fn token_write_interval(&self) -> Duration {
        self.context.memory.limits().write_interval(MAX_TOKEN_WRITE_INTERVAL)
    }

    /// Writes uses periodically. Never returns.
    pub(super) async fn run_usage_writer(&self) {
        let interval = self.token_write_interval();
        let mut tokens_due = Instant::now() + interval;
        loop {
            sleep(interval.min(SALT_WRITE_INTERVAL)).await;
            let result = if Instant::now() >= tokens_due {
                tokens_due = Instant::now() + interval;
                self.write_uses().await
            } else {
                self.write_salt_uses().await
            };
            if result.is_err() {
                // The next round writes them; the heartbeat detects the failure.
                sleep(RETRY_DELAY).await;
            }
        }
    }

    /// Writes all uses since the last call.
    pub(super) async fn write_uses(&self) -> StoreResult<()> {
        self.write_salt_uses().await?;
        let mut connection = self.connection()?;
        let since = self.pending_uses.borrow().tokens_written_at;
        let now = self.context.store_clock.now_tick();
        let memory = Arc::clone(&self.context.memory);
        let search = move || {
            let mut uses = Vec::new();
            memory.for_each(|id, record| {
                if record.last_used() >= since {
                    let (when, expires) = (record.last_used(), record.expires);
                    uses.push(TokenUse { id: *id, key: record.key, when, expires });
                }
            });
            uses
        };
        let Ok(uses) = tokio::task::spawn_blocking(search).await else { return Ok(()) };
        for page in uses.chunks(PAGE) {
            self.touch_page(&mut connection, page).await?;
        }
        self.pending_uses.borrow_mut().tokens_written_at = now;
        Ok(())
    }

    async fn touch_page(&self, connection: &mut RedisConnection, page: &[TokenUse]) -> StoreResult<()> {
        self.touch.load_async(connection).await?;
        let exists: Vec<u64> = connection.query_all(page.iter().map(|token_use| self.touch_command(token_use))).await?;
        for (token_use, exists) in page.iter().zip(exists) {
            if exists == 0 {
                // The server evicted it, or has lost it.
                self.restore_soon(token_use.id, token_use.key);
            }
        }
        Ok(())
    }

    fn touch_command(&self, token_use: &TokenUse) -> Cmd {
        let store_clock = &self.context.store_clock;
        let (when, expires) = (store_clock.timestamp(token_use.when), store_clock.timestamp(token_use.expires));
        let expiry = self.context.memory.limits().idle_ttl.map(|_| {
            let unused = store_clock.now().millis_since(when);
            self.expiry_millis(expires).saturating_sub(unused).max(1).to_string()
        });
        let key = self.token_key(token_use.key, &token_use.id);
        let last_used = when.0.to_be_bytes();
        redis_command("EVALSHA", (self.touch.get_hash(), 1, key, &last_used[..], expiry.unwrap_or_default()))
    }

    async fn write_salt_uses(&self) -> StoreResult<()> {
        let mut connection = self.connection()?;
        let uses: Vec<_> = self.pending_uses.borrow().salt_uses.iter().map(|(key, when)| (*key, *when)).collect();
        if uses.is_empty() {
            return Ok(());
        }
        let mut by_salt: HashMap<SaltName, Cmd> = HashMap::new();
        for ((salt, user), when) in &uses {
            let command =
                by_salt.entry(*salt).or_insert_with(|| redis_command("ZADD", (self.redis_key("salt:", salt), "GT")));
            command.arg(when.0).arg(user.to_string());
        }
        for command in by_salt.into_values() {
            let _: u64 = command.query_async(&mut connection).await?;
        }
        let mut pending = self.pending_uses.borrow_mut();
        if pending.written_salt_uses.len() > MAX_WRITTEN_SALT_USES {
            pending.written_salt_uses.clear();
        }
        for (key, when) in uses {
            // A use that was recorded while this was writing stays pending.
            if pending.salt_uses.get(&key) == Some(&when) {
                pending.salt_uses.remove(&key);
            }
            pending.written_salt_uses.insert(key, when);
        }
        Ok(())
    }

    /// The usage of each of these salts, by all replicas.
    pub(super) async fn salt_usage(&self, salts: &[SaltName]) -> StoreResult<Vec<SaltUsage>> {
        self.write_salt_uses().await?;
        let mut connection = self.connection()?;
        let since = self.context.store_clock.now().before(USAGE_WINDOW).0;
        let mut all = Vec::new();
        for name in salts {
            let key = self.redis_key("salt:", name);
            let remove_old = redis_command("ZREMRANGEBYSCORE", (&key, "-inf", format!("({since}")));
            let _: u64 = remove_old.query_async(&mut connection).await?;
            let users: u64 = cmd("ZCARD").arg(&key).query_async(&mut connection).await?;
            let last: Vec<(String, f64)> =
                cmd("ZRANGE").arg((&key, 0, 0, "REV", "WITHSCORES")).query_async(&mut connection).await?;
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a current time in ms")]
            let last_used = last.first().map(|(_, score)| Timestamp(*score as u64));
            all.push(SaltUsage { last_used, users });
        }
        Ok(all)
    }
}
