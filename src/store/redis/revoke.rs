//! Revokes tokens: marks them, removes them from the memory, and puts tombstones into their places in the store.

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::sync::Arc;

use redis::{ExistenceCheck, SetExpiry, SetOptions, Value};

use crate::store::keys::KeyNumber;
use crate::store::redis::events::StoreEvent;
use crate::store::redis::{RedisSession, StoreResult, redis_command};
use crate::store::revocation::Revocation;
use crate::store::wire::StoredToken;
use crate::store::{Timestamp, TokenId};

/// The number of tombstones in one round trip.
const PAGE: usize = 500;

/// The tokens that a revocation has ended.
#[derive(Default)]
struct EndedTokenIds {
    ids: HashSet<(TokenId, KeyNumber)>,
    /// When the last of them was minted, by the clock of a replica that may be ahead of this one's.
    latest: Timestamp,
}

impl RedisSession {
    /// Revokes tokens, here and at the other replicas. Returns the number of live tokens that this ended.
    ///
    /// SECURITY: first here, so that it takes effect even if the store is unavailable. The mark and the event are
    /// written later then, by the heartbeat.
    pub(super) async fn revoke(&self, revocation: Revocation) -> StoreResult<u64> {
        let at = self.revocations.borrow().next_time(&revocation, self.context.store_clock.now());
        let local = self.local_tokens(&revocation).await;
        self.add_revocation(revocation.clone(), at);
        self.remove_revoked().await;
        let published = self.publish_revocation(&revocation, at).await;
        // A fingerprint names one token.
        let ended = match &revocation {
            Revocation::Token(_) if !local.ids.is_empty() => local,
            Revocation::Deny(..) => local,
            _ => self.stored_tokens(&revocation, at, local).await?,
        };
        if ended.latest > at {
            // SECURITY: minted by a replica whose clock is ahead.
            self.add_revocation(revocation.clone(), ended.latest);
            self.remove_revoked().await;
            self.publish_revocation(&revocation, ended.latest).await?;
        }
        self.bury(&ended.ids).await?;
        published?;
        Ok(u64::try_from(ended.ids.len()).unwrap_or(u64::MAX))
    }

    /// Writes the mark before the event: a replica that reads the event can rely on it.
    async fn publish_revocation(&self, revocation: &Revocation, at: Timestamp) -> StoreResult<()> {
        let marked = self.write_mark(revocation, at).await;
        let published = self.publish(StoreEvent::Revoked(revocation.clone(), at)).await;
        marked.and(published)
    }

    /// The live tokens in memory that the revocation covers.
    async fn local_tokens(&self, revocation: &Revocation) -> EndedTokenIds {
        let (memory, revocation) = (Arc::clone(&self.context.memory), revocation.clone());
        let search = move || {
            let mut found = EndedTokenIds::default();
            memory.for_each(|id, record| {
                if revocation.covers(id, &record.user) {
                    found.ids.insert((*id, record.key));
                    found.latest = found.latest.max(record.minted());
                }
            });
            found
        };
        tokio::task::spawn_blocking(search).await.unwrap_or_default()
    }

    /// Adds the live tokens in the store that the revocation at this time covers. Those that were minted since are
    /// not revoked, unless by a clock that is ahead: then they may be older.
    async fn stored_tokens(
        &self,
        revocation: &Revocation,
        at: Timestamp,
        mut found: EndedTokenIds,
    ) -> StoreResult<EndedTokenIds> {
        self.for_each_token(|stored, _| {
            let now = self.context.store_clock.now();
            let is_covered = revocation.covers(&stored.id, &stored.token.user) && now < stored.expires;
            if is_covered && (stored.minted <= at || stored.minted > now) {
                found.ids.insert((stored.id, stored.token.key));
                found.latest = found.latest.max(stored.minted);
            }
            ControlFlow::Continue(())
        })
        .await?;
        Ok(found)
    }

    /// Puts tombstones into the places of tokens, for the rest of their lives.
    async fn bury(&self, ids: &HashSet<(TokenId, KeyNumber)>) -> StoreResult<()> {
        let mut connection = self.connection()?;
        let ids: Vec<_> = ids.iter().collect();
        for page in ids.chunks(PAGE) {
            let tombstones = page.iter().map(|(id, key)| {
                let redis_key = self.token_key(*key, id);
                let options =
                    SetOptions::default().with_expiration(SetExpiry::KEEPTTL).conditional_set(ExistenceCheck::XX);
                redis_command("SET", (&redis_key, self.tombstone(*key, &redis_key), options))
            });
            if connection.query_all::<Value>(tombstones).await.is_err() {
                // A full server stores nothing, but removes.
                let removals = page.iter().map(|(id, key)| redis_command("DEL", self.token_key(*key, id)));
                let _: Vec<u64> = connection.query_all(removals).await?;
            }
        }
        Ok(())
    }

    /// The value in the place of a revoked token.
    pub(super) fn tombstone(&self, key: KeyNumber, redis_key: &str) -> Vec<u8> {
        let sealed = StoredToken::seal_tombstone(&self.context.keys, key, redis_key.as_bytes());
        [&[0; 8][..], &sealed].concat()
    }

    /// SECURITY: comes before [`RedisSession::remove_revoked`]. From here on, no covered token is added to the
    /// memory, so that the search cannot miss one.
    pub(super) fn add_revocation(&self, revocation: Revocation, at: Timestamp) {
        if self.revocations.borrow_mut().add(&revocation, at) {
            revocation.apply_denial(&self.context.memory);
            self.unapplied.borrow_mut().push((revocation, at));
        }
    }

    /// Removes revoked tokens from memory, on a separate thread. If that fails, the next call does it.
    pub(super) async fn remove_revoked(&self) {
        let unapplied = self.unapplied.borrow().clone();
        if unapplied.is_empty() {
            return;
        }
        let applied = unapplied.clone();
        let memory = Arc::clone(&self.context.memory);
        let search = move || {
            let is_revoked = |id: &TokenId, record: &crate::store::TokenRecord| {
                unapplied.iter().any(|(revocation, at)| record.minted() <= *at && revocation.covers(id, &record.user))
            };
            memory.revoke_if(is_revoked, |_, _| {});
        };
        if tokio::task::spawn_blocking(search).await.is_err() {
            return;
        }
        // Concurrent calls may have applied and removed some of them.
        self.unapplied.borrow_mut().retain(|revocation| !applied.contains(revocation));
    }
}
