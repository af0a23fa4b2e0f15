//! A server that came back without what it was given: replicas put back what they know.
//!
//! A restart without persistence loses all, a failover the last moment. Else this replica would go on giving a login a token
//! that no other replica takes.

use std::sync::Arc;

use redis::{SetExpiry, SetOptions, cmd, pipe};
use tracing::info;

use crate::store::redis::connection::Connection;
use crate::store::redis::tokens::FoundLogin;
use crate::store::redis::{Outcome, Session};
use crate::store::wire::KeptToken;
use crate::store::{NewToken, TokenId};

/// So many tokens are asked about at once.
const PAGE: usize = 500;

impl Session {
    /// Looks for each token in memory whether the store has it, and writes those that it lost.
    ///
    /// SECURITY: with the time at which they were minted, so that a revocation that is known anywhere still covers them.
    pub(super) async fn put_back(&self) -> Outcome<()> {
        let memory = Arc::clone(&self.shared.memory);
        let all = tokio::task::spawn_blocking(move || {
            let mut all: Vec<(TokenId, u8)> = Vec::new();
            memory.for_each(|id, record| all.push((*id, record.salt)));
            all
        });
        let Ok(all) = all.await else { return Ok(()) };
        let mut lost = 0;
        for page in all.chunks(PAGE) {
            for id in self.missing(page).await? {
                lost += usize::from(self.put_one_back(id).await?);
            }
        }
        if lost > 0 {
            info!(tokens = lost, "the token store had lost tokens, which are there again");
        }
        Ok(())
    }

    async fn missing(&self, page: &[(TokenId, u8)]) -> Outcome<Vec<TokenId>> {
        let mut connection = self.connection()?;
        let keys = page.iter().map(|(id, salt)| self.token_key(*salt, id));
        let mut there: Vec<bool> = Vec::with_capacity(page.len());
        if let Connection::Cluster(cluster) = &mut connection {
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
    async fn put_one_back(&self, id: TokenId) -> Outcome<bool> {
        let memory = &self.shared.memory;
        let Some(record) = memory.peek(&id) else { return Ok(false) };
        let token = NewToken {
            login: record.login,
            user: record.user.clone(),
            upstream_key: record.upstream_key().cloned(),
            salt: record.salt,
        };
        let expires = self.shared.calendar.stamp(record.expires);
        let kept = KeptToken { id, seed: record.seed, minted: record.minted, expires, token };
        if !self.lives(&kept) {
            return Ok(false);
        }
        let options = SetOptions::default()
            .conditional_set(redis::ExistenceCheck::NX)
            .with_expiration(SetExpiry::PX(self.keep_for(expires)));
        let key = self.token_key(record.salt, &id);
        let value = self.value_of(&kept, record.salt, &key);
        let written: Option<String> = self.query(cmd("SET").arg(&key).arg(value).arg(options)).await?;
        if memory.is_current(&record) && record.salt == 0 {
            self.claim(&kept, &FoundLogin::default()).await?;
        }
        Ok(written.is_some())
    }
}
