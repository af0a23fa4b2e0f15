//! Restores tokens that the server has lost: replicas write back those that they know.
//!
//! A restart without persistence loses all data, and a failover the latest writes. Without the repair, this replica
//! would keep issuing a token that the other replicas reject.

use std::sync::Arc;

use redis::{ExistenceCheck, cmd};
use tracing::info;

use crate::store::TokenId;
use crate::store::keys::{KeyNumber, PRIMARY_KEY};
use crate::store::redis::tokens::FoundLogin;
use crate::store::redis::{RedisSession, StoreResult};
use crate::store::wire::StoredToken;

/// The number of tokens in one round trip.
const PAGE: usize = 500;

impl RedisSession {
    /// Writes the tokens that are in memory and not in the store.
    ///
    /// SECURITY: they keep the time at which they were minted, so that earlier revocations still cover them.
    pub(super) async fn restore_lost_tokens(&self) -> StoreResult<()> {
        let memory = Arc::clone(&self.context.memory);
        let all = tokio::task::spawn_blocking(move || {
            let mut all: Vec<(TokenId, KeyNumber)> = Vec::new();
            memory.for_each(|id, record| all.push((*id, record.key)));
            all
        });
        let Ok(all) = all.await else { return Ok(()) };
        let mut restored = 0;
        for page in all.chunks(PAGE) {
            let mut connection = self.connection()?;
            let exists = page.iter().map(|(id, key)| {
                let mut command = cmd("EXISTS");
                command.arg(self.token_key(*key, id));
                command
            });
            let exists: Vec<bool> = connection.query_all(exists).await?;
            for ((id, _), _) in page.iter().zip(exists).filter(|(_, exists)| !exists) {
                restored += usize::from(self.restore_token(*id).await?);
            }
        }
        if restored > 0 {
            info!(tokens = restored, "restored tokens that the token store had lost");
        }
        Ok(())
    }

    /// False if it has expired in the meantime, or a different replica has restored it.
    async fn restore_token(&self, id: TokenId) -> StoreResult<bool> {
        let memory = &self.context.memory;
        let Some(record) = memory.peek(&id) else { return Ok(false) };
        let stored = StoredToken::from_record(id, &record, &self.context.store_clock);
        if !self.is_live(&stored) {
            return Ok(false);
        }
        let options = self.new_token_options(&stored).conditional_set(ExistenceCheck::NX);
        let is_written = self.write_token(&stored, options).await?;
        if memory.is_current_for_login(&record) && record.key == PRIMARY_KEY {
            self.claim_login(&stored, &FoundLogin::default()).await?;
        }
        Ok(is_written)
    }
}
