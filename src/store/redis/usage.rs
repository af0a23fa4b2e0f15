//! When tokens and salts were last used: told now and then, never with a request.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use redis::{Cmd, cmd, pipe};
use tokio::time::{Instant, sleep};

use crate::base::clock::Tick;
use crate::store::keys::Name;
use crate::store::redis::connection::Connection;
use crate::store::redis::tokens::millis;
use crate::store::redis::{Outcome, Session};
use crate::store::{SaltUse, Stamp, TokenId, salt_usage};

/// So often uses are told where nothing ends for want of use.
const SELDOM: Duration = Duration::from_secs(300);

/// So many tokens are told of at once.
const PAGE: usize = 500;

/// A user's use of a salt is not told again before that.
const SALT_GRAIN: u64 = 60_000;

/// So often uses of salts are told.
const SALT_INTERVAL: Duration = Duration::from_secs(2);

/// Before the next attempt.
const AFTER_FAILURE: Duration = Duration::from_millis(500);

/// More users than that within a grain are told of again.
const MOST_TOLD: usize = 100_000;

/// What was used and not told yet.
pub struct Uses {
    tokens_told: Tick,
    salts: HashMap<(u8, Name), Stamp>,
    salts_told: HashMap<(u8, Name), Stamp>,
}

impl Uses {
    pub fn new(now: Tick) -> Uses {
        Uses { tokens_told: now, salts: HashMap::new(), salts_told: HashMap::new() }
    }

    /// A salt opened a user's bearer.
    pub fn salt(&mut self, salt: u8, user: Name, now: Stamp) {
        let told = self.salts_told.get(&(salt, user)).copied().unwrap_or_default();
        if now.0.saturating_sub(told.0) >= SALT_GRAIN {
            self.salts.insert((salt, user), now);
        }
    }
}

/// A token that was used.
struct Used {
    id: TokenId,
    salt: u8,
    when: Tick,
    expires: Tick,
}

impl Session {
    /// How often uses of tokens are told.
    pub(super) fn use_interval(&self) -> Duration {
        let idle = self.shared.memory.limits().idle_ttl;
        idle.map_or(SELDOM, |idle| (idle / 16).clamp(Duration::from_millis(100), SELDOM))
    }

    /// Tells what is used, now and then. Never ends.
    pub(super) async fn note_uses_forever(&self) {
        let interval = self.use_interval();
        let mut tokens_due = Instant::now() + interval;
        loop {
            let reconnected = tokio::select! {
                () = sleep(interval.min(SALT_INTERVAL)) => false,
                () = self.reconnected.notified() => true,
            };
            let outcome = if reconnected {
                self.put_back().await.inspect_err(|_| self.reconnected.notify_one())
            } else if Instant::now() >= tokens_due {
                tokens_due = Instant::now() + interval;
                self.note_uses().await
            } else {
                self.note_salts().await
            };
            if outcome.is_err() {
                // Told next time; the beat has noticed by itself.
                sleep(AFTER_FAILURE).await;
            }
        }
    }

    /// Tells what was used since the last time.
    pub(super) async fn note_uses(&self) -> Outcome<()> {
        self.note_salts().await?;
        let mut connection = self.connection()?;
        let (since, now) = (self.uses.borrow().tokens_told, self.shared.clock.now());
        let memory = Arc::clone(&self.shared.memory);
        let search = move || {
            let mut used = Vec::new();
            memory.for_each(|id, record| {
                if record.last_used() >= since {
                    let (when, expires) = (record.last_used(), record.expires);
                    used.push(Used { id: *id, salt: record.salt, when, expires });
                }
            });
            used
        };
        let Ok(used) = tokio::task::spawn_blocking(search).await else { return Ok(()) };
        for page in used.chunks(PAGE) {
            self.touch(&mut connection, page).await?;
        }
        self.uses.borrow_mut().tokens_told = now;
        Ok(())
    }

    async fn touch(&self, connection: &mut Connection, page: &[Used]) -> Outcome<()> {
        self.touch.load_async(connection).await?;
        let mut there: Vec<u64> = Vec::with_capacity(page.len());
        match connection {
            Connection::One(one) => {
                let mut all = pipe();
                for used in page {
                    all.add_command(self.touch_of(used));
                }
                there = all.query_async(one).await?;
            }
            // Each may be on another server.
            Connection::Cluster(cluster) => {
                for used in page {
                    there.push(self.touch_of(used).query_async(cluster).await?);
                }
            }
        }
        for (used, there) in page.iter().zip(there) {
            if there == 0 {
                // Another replica's idea of its life was shorter, or the server has made room.
                self.shared.memory.remove(&used.id);
            }
        }
        Ok(())
    }

    fn touch_of(&self, used: &Used) -> Cmd {
        let calendar = &self.shared.calendar;
        let (when, expires) = (calendar.stamp(used.when), calendar.stamp(used.expires));
        let idle = self.shared.memory.limits().idle_ttl.map(|_| {
            let unused = calendar.now().0.saturating_sub(when.0);
            self.keep_for(expires).saturating_sub(unused).max(1).to_string()
        });
        let mut command = cmd("EVALSHA");
        command.arg(self.touch.get_hash()).arg(1).arg(self.token_key(used.salt, &used.id));
        command.arg(&when.0.to_be_bytes()[..]).arg(idle.unwrap_or_default());
        command
    }

    async fn note_salts(&self) -> Outcome<()> {
        let mut connection = self.connection()?;
        let uses: Vec<_> = self.uses.borrow().salts.iter().map(|(who, when)| (*who, *when)).collect();
        if uses.is_empty() {
            return Ok(());
        }
        for (salt, name) in (0..).zip(self.shared.keys.salts()) {
            let mut command = cmd("ZADD");
            command.arg(self.key("salt:", name)).arg("GT");
            let of_this = uses.iter().filter(|((other, _), _)| *other == salt);
            let count = of_this.clone().count();
            for ((_, user), when) in of_this {
                command.arg(when.0).arg(user.to_string());
            }
            if count > 0 {
                let _: u64 = command.query_async(&mut connection).await?;
            }
        }
        let mut own = self.uses.borrow_mut();
        if own.salts_told.len() > MOST_TOLD {
            own.salts_told.clear();
        }
        for (who, when) in uses {
            // One that was used again meanwhile is told of again.
            if own.salts.get(&who) == Some(&when) {
                own.salts.remove(&who);
            }
            own.salts_told.insert(who, when);
        }
        Ok(())
    }

    /// Who used which salt.
    pub(super) async fn salt_uses(&self) -> Outcome<Vec<SaltUse>> {
        self.note_salts().await?;
        let mut connection = self.connection()?;
        let since = self.shared.calendar.now().0.saturating_sub(millis(salt_usage::PERIOD));
        let mut all = Vec::new();
        for name in self.shared.keys.salts() {
            let key = self.key("salt:", name);
            let mut forget = cmd("ZREMRANGEBYSCORE");
            let _: u64 = forget.arg((&key, "-inf", format!("({since}"))).query_async(&mut connection).await?;
            let users: u64 = cmd("ZCARD").arg(&key).query_async(&mut connection).await?;
            let last: Vec<(String, f64)> =
                cmd("ZRANGE").arg((&key, 0, 0, "REV", "WITHSCORES")).query_async(&mut connection).await?;
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a time in this age")]
            let last = last.first().map(|(_, score)| Stamp(*score as u64));
            all.push(SaltUse { last, users });
        }
        Ok(all)
    }
}
