//! Restores tokens that the server has lost: replicas write back those that they know.
//!
//! A restart without persistence loses all data, a failover the latest writes, and an eviction single tokens. Without
//! the repair, this replica would keep accepting a token that the other replicas reject. A replica that misses a token
//! asks for it, with an event, and this one is restored before the others.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use redis::{Cmd, ExistenceCheck, SetExpiry, SetOptions, Value};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};
use tracing::info;

use crate::base::clock::millis;
use crate::store::TokenId;
use crate::store::keys::{KeyNumber, PRIMARY_KEY};
use crate::store::redis::events::StoreEvent;
use crate::store::redis::{RedisSession, StoreResult, redis_command};
use crate::store::wire::StoredToken;

/// The number of tokens in one round trip.
const PAGE: usize = 500;

/// The delay after a failure; the repair then continues where it stopped.
const RETRY_DELAY: Duration = Duration::from_millis(500);

/// The time that other replicas have for restoring a token that a client uses here.
const MAX_WAIT: Duration = Duration::from_secs(5);

/// A token that is missing is requested again after this time.
const FORGET_AFTER: Duration = Duration::from_secs(60);

/// With an idle lifetime most missing tokens are idle, so the wait is limited to this time after a loss of data.
const LOSS_PERIOD: Duration = Duration::from_secs(30);

/// Only holders of tokens can cause entries.
const MAX_WANTED: usize = 100_000;

/// The tokens to restore, and those that this replica misses.
#[derive(Default)]
pub struct Repair {
    queue: RefCell<VecDeque<(TokenId, KeyNumber)>>,
    /// True if all tokens in memory have to be added to the queue.
    needs_all: Cell<bool>,
    wake: Notify,
    /// When the last loss of data became possible: by a new connection, or a different epoch.
    last_loss: Cell<Option<Instant>>,
    /// Since when a token is missed.
    wanted: RefCell<HashMap<TokenId, Instant>>,
}

impl RedisSession {
    /// Checks all tokens in memory, and restores those that the store lacks.
    pub(super) fn restore_all(&self) {
        self.repair.last_loss.set(Some(Instant::now()));
        self.repair.needs_all.set(true);
        self.repair.wake.notify_one();
    }

    /// Checks this token before the others.
    pub(super) fn restore_soon(&self, id: TokenId, key: KeyNumber) {
        let is_known = self.context.memory.peek(&id).is_some() || self.context.memory.expiry_of_revoked(&id).is_some();
        if is_known {
            self.repair.queue.borrow_mut().push_front((id, key));
            self.repair.wake.notify_one();
        }
    }

    /// Asks the other replicas for a token that the store lacks. False if they have had time to restore it.
    pub(super) fn ask_for(&self, id: TokenId, key: KeyNumber) -> bool {
        let is_after_loss = self.repair.last_loss.get().is_some_and(|at| at.elapsed() < LOSS_PERIOD);
        if self.context.memory.limits().idle_ttl.is_some() && !is_after_loss {
            return false;
        }
        let mut wanted = self.repair.wanted.borrow_mut();
        if wanted.len() >= MAX_WANTED {
            wanted.retain(|_, since| since.elapsed() < MAX_WAIT);
        }
        let since = wanted.get(&id).copied().filter(|since| since.elapsed() < FORGET_AFTER);
        if since.is_none() && wanted.len() < MAX_WANTED {
            wanted.insert(id, Instant::now());
            self.pending_events.borrow_mut().add(StoreEvent::Wanted(id, key));
        }
        since.is_none_or(|since| since.elapsed() < MAX_WAIT)
    }

    /// Restores tokens when that is needed. Never returns.
    pub(super) async fn run_repair(&self) {
        let mut restored = 0;
        loop {
            if self.repair.needs_all.take() {
                self.queue_all().await;
            }
            let page: Vec<_> = {
                let mut queue = self.repair.queue.borrow_mut();
                let count = queue.len().min(PAGE);
                queue.drain(..count).collect()
            };
            if page.is_empty() {
                if restored > 0 {
                    info!(tokens = restored, "restored tokens that the token store had lost");
                    restored = 0;
                }
                self.repair.wake.notified().await;
                continue;
            }
            match self.restore_page(&page).await {
                Ok(count) => restored += count,
                Err(_) => {
                    page.into_iter().rev().for_each(|token| self.repair.queue.borrow_mut().push_front(token));
                    sleep(RETRY_DELAY).await;
                }
            }
        }
    }

    async fn queue_all(&self) {
        let memory = Arc::clone(&self.context.memory);
        let all = tokio::task::spawn_blocking(move || {
            let mut all = VecDeque::new();
            memory.for_each(|id, record| all.push_back((*id, record.key)));
            all
        });
        if let Ok(all) = all.await {
            // SECURITY: revocations are restored with the marks; the tombstones only tell clients why.
            self.repair.queue.borrow_mut().extend(all);
        }
    }

    /// Restores those of these tokens that the store lacks, in three round trips. Returns their number.
    async fn restore_page(&self, page: &[(TokenId, KeyNumber)]) -> StoreResult<usize> {
        let mut connection = self.connection()?;
        let exists = page.iter().map(|(id, key)| redis_command("EXISTS", self.token_key(*key, id)));
        let exists: Vec<bool> = connection.query_all(exists).await?;
        let missing: Vec<_> = page.iter().zip(exists).filter(|(_, exists)| !exists).map(|(token, _)| *token).collect();
        let writes: Vec<_> = missing.iter().filter_map(|(id, key)| self.restore_command(*id, *key)).collect();
        if writes.is_empty() {
            return Ok(0);
        }
        let written: Vec<Value> = connection.query_all(writes.into_iter()).await?;
        let claims: Vec<_> = missing.iter().filter_map(|(id, _)| self.claim_of(*id)).collect();
        if !claims.is_empty() {
            let _: Vec<Value> = connection.query_all(claims.into_iter()).await?;
        }
        Ok(written.iter().filter(|value| !matches!(value, Value::Nil)).count())
    }

    /// Writes the token, or its tombstone, unless a different replica has restored it.
    ///
    /// SECURITY: a token keeps the time at which it was minted, so that earlier revocations still cover it.
    fn restore_command(&self, id: TokenId, key: KeyNumber) -> Option<Cmd> {
        let redis_key = self.token_key(key, &id);
        let (value, options) = match self.context.memory.peek(&id) {
            Some(record) => {
                let stored = StoredToken::from_record(id, &record, &self.context.store_clock);
                if !self.is_live(&stored) {
                    return None;
                }
                (self.seal_token(&stored, &redis_key), self.new_token_options(&stored))
            }
            None => {
                let expires = self.context.store_clock.timestamp(self.context.memory.expiry_of_revoked(&id)?);
                let left = expires.millis_since(self.context.store_clock.now()).clamp(1, millis(self.ttl()));
                (self.tombstone(key, &redis_key), SetOptions::default().with_expiration(SetExpiry::PX(left)))
            }
        };
        Some(redis_command("SET", (redis_key, value, options.conditional_set(ExistenceCheck::NX))))
    }

    /// Gives its login the token again, unless the login has one.
    fn claim_of(&self, id: TokenId) -> Option<Cmd> {
        let record = self.context.memory.peek(&id)?;
        if !record.is_current() || record.key != PRIMARY_KEY {
            return None;
        }
        Some(self.claim_command(&StoredToken::from_record(id, &record, &self.context.store_clock)))
    }

    /// Restores the login's token that this replica knows. False if it is not live any more.
    pub(super) async fn restore_known(&self, id: TokenId) -> StoreResult<bool> {
        let Some(record) = self.context.memory.peek(&id) else { return Ok(false) };
        let stored = StoredToken::from_record(id, &record, &self.context.store_clock);
        if !self.is_live(&stored) {
            return Ok(false);
        }
        self.restore_page(&[(id, record.key)]).await?;
        Ok(true)
    }
}
