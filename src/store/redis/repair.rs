//! A server that came back without what it was given: replicas put back what they know.
//!
//! A restart without persistence loses all, a failover the last moment. Else this replica would go on giving a login a token
//! that no other replica takes.

use std::sync::Arc;

use redis::{SetExpiry, SetOptions, cmd, pipe};
use tracing::info;

use crate::store::redis::connection::RedisConnection;
use crate::store::redis::tokens::FoundLogin;
use crate::store::redis::{RedisSession, StoreCommandResult};
use crate::store::wire::StoredToken;
use crate::store::{NewToken, TokenId};

/// So many tokens are asked about at once.
const PAGE: usize = 500;

impl RedisSession {
    /// Looks for each token in memory whether the store has it, and writes those that it lost.
    ///
    /// SECURITY: with the time at which they were minted, so that a revocation that is known anywhere still covers them.
    pub(super) async fn restore_lost_tokens(&self) -> StoreCommandResult<()> {
        let memory = Arc::clone(&self.context.memory);
        let all = tokio::task::spawn_blocking(move || {
            let mut all: Vec<(TokenId, u8)> = Vec::new();
            memory.for_each(|id, record| all.push((*id, record.salt)));
            all
        });
        let Ok(all) = all.await else { return Ok(()) };
        let mut lost = 0;
        for page in all.chunks(PAGE) {
            for id in self.find_missing(page).await? {
                lost += usize::from(self.restore_token(id).await?);
            }
        }
        if lost > 0 {
            info!(tokens = lost, "the token store had lost tokens, which are there again");
        }
        Ok(())
    }

    async fn find_missing(&self, page: &[(TokenId, u8)]) -> StoreCommandResult<Vec<TokenId>> {
        let mut connection = self.connection()?;
        let keys = page.iter().map(|(id, salt)| self.token_key(*salt, id));
        let mut there: Vec<bool> = Vec::with_capacity(page.len());
        if let RedisConnection::Cluster(cluster) = &mut connection {
            // Each may be on another server.
            for key in keys {
                there.push(cmd("EXISTS").arg(key).query_async(cluster).await?);
            }
        } else {
            let mut all = pipe();
            for key in keys {
                all.cmd("EXISTS").arg(key);
            }
            there = all.query_async(&mut connection).await?;
        }
        Ok(page.iter().zip(there).filter(|(_, there)| !there).map(|((id, _), _)| *id).collect())
    }

    /// False if it has ended meanwhile, or another replica was faster.
    async fn restore_token(&self, id: TokenId) -> StoreCommandResult<bool> {
        let memory = &self.context.memory;
        let Some(record) = memory.peek(&id) else { return Ok(false) };
        let token = NewToken {
            login: record.login,
            user: record.user.clone(),
            upstream_key: record.upstream_key().cloned(),
            salt: record.salt,
        };
        let expires = self.context.store_clock.timestamp(record.expires);
        let kept = StoredToken { id, seed: record.seed, minted: record.minted, expires, token };
        if !self.is_live(&kept) {
            return Ok(false);
        }
        let options = SetOptions::default()
            .conditional_set(redis::ExistenceCheck::NX)
            .with_expiration(SetExpiry::PX(self.expiry_millis(expires)));
        let key = self.token_key(record.salt, &id);
        let value = self.seal_token(&kept, record.salt, &key);
        let written: Option<String> = self.query(cmd("SET").arg(&key).arg(value).arg(options)).await?;
        if memory.is_current_for_login(&record) && record.salt == 0 {
            self.claim_login(&kept, &FoundLogin::default()).await?;
        }
        Ok(written.is_some())
    }
}
