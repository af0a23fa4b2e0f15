//! Writes that may be delayed, in small batches: last uses of tokens and salts, and the removal of expired tokens.

use redb::{ReadableDatabase, ReadableTable};
use tokio::time::Instant;

use crate::store::file::{
    DEFERRED_BATCH_INTERVAL, FileResult, FileStore, LOGINS, OpenFileStore, PendingUse, SALTS, SealedTable, TOKENS,
    open_if_closed, split_value,
};
use crate::store::salt_usage::USAGE_WINDOW;
use crate::store::{SaltName, SaltUsage, Timestamp};

/// The number of tokens in a batch.
const BATCH_SIZE: usize = 1000;

impl OpenFileStore {
    pub(super) fn salt_usage(&mut self, salts: &[SaltName]) -> FileResult<Vec<SaltUsage>> {
        self.write_salt_uses()?;
        let store = &self.store;
        let since = store.store_clock.now().before(USAGE_WINDOW);
        let table = open_if_closed(&mut self.database, store)?.begin_read()?.open_table(SALTS)?;
        let mut all = Vec::new();
        for salt in salts {
            let name = salt.to_string();
            let name = name.as_str();
            let mut usage = SaltUsage::default();
            for entry in table.range((name, &[0; 16])..=(name, &[0xff; 16]))? {
                let last_used = Timestamp(entry?.1.value());
                usage.last_used = usage.last_used.max(Some(last_used));
                usage.users += u64::from(last_used >= since);
            }
            all.push(usage);
        }
        Ok(all)
    }

    fn write_salt_uses(&mut self) -> FileResult<()> {
        if self.pending_salt_uses.is_empty() {
            return Ok(());
        }
        let store = &self.store;
        let write = open_if_closed(&mut self.database, store)?.begin_write()?;
        {
            let mut table = write.open_table(SALTS)?;
            for ((salt, user), when) in &self.pending_salt_uses {
                table.insert((salt.to_string().as_str(), &user.0), when.0)?;
            }
        }
        write.commit()?;
        self.commits += 1;
        self.pending_salt_uses.clear();
        Ok(())
    }

    /// Writes a batch of last uses, and removes a batch of expired tokens.
    pub(super) fn write_deferred(&mut self) -> FileResult<()> {
        self.next_batch = Instant::now() + DEFERRED_BATCH_INTERVAL;
        if Instant::now() >= self.deferred_due {
            self.deferred_due = Instant::now() + self.store.deferred_interval();
            self.write_salt_uses()?;
            let (since, now) = (self.uses_written_at, self.store.store_clock.now_tick());
            let pending_uses = &mut self.pending_uses;
            self.store.memory.for_each(|id, record| {
                if record.last_used() > since {
                    pending_uses.push_back(PendingUse { id: *id, key: record.key });
                }
            });
            self.uses_written_at = now;
        }
        let store = &self.store;
        let write = open_if_closed(&mut self.database, store)?.begin_write()?;
        {
            let mut tokens = write.open_table(TOKENS)?;
            let count = self.pending_uses.len().min(BATCH_SIZE);
            for PendingUse { id, key } in self.pending_uses.drain(..count) {
                let name = store.keys.token_name(key, &id);
                let value = tokens.get(&name.0)?.map(|value| value.value().to_vec());
                if let (Some(mut value), Some(record)) = (value, store.memory.peek(&id)) {
                    let last_used = store.store_clock.timestamp(record.last_used());
                    value[..8].copy_from_slice(&last_used.0.to_be_bytes());
                    tokens.insert(&name.0, value.as_slice())?;
                }
            }
            self.expiry_cursor =
                store.remove_expired(&mut tokens, &mut write.open_table(LOGINS)?, self.expiry_cursor)?;
        }
        write.commit()?;
        self.commits += 1;
        Ok(())
    }
}

impl FileStore {
    /// Visits a batch of tokens from the cursor on, and removes the expired ones. Returns the next cursor.
    fn remove_expired(
        &self,
        tokens: &mut SealedTable<'_>,
        logins: &mut SealedTable<'_>,
        cursor: Option<[u8; 16]>,
    ) -> FileResult<Option<[u8; 16]>> {
        let now = self.store_clock.now();
        let (mut expired, mut last, mut visited) = (Vec::new(), None, 0);
        for entry in tokens.range::<&[u8; 16]>(&cursor.unwrap_or_default()..)?.take(BATCH_SIZE) {
            let (name, value) = entry?;
            visited += 1;
            last = Some(*name.value());
            let Some((_, expires, sealed)) = split_value(value.value()) else { continue };
            let stored = self.unseal_token(name.value(), sealed);
            let is_live = match &stored {
                Some(stored) => self.memory.peek(&stored.id).is_some(),
                // The key that made it may be configured again before it expires.
                None => expires > now,
            };
            if !is_live {
                expired.push((*name.value(), stored));
            }
        }
        for (name, stored) in expired {
            tokens.remove(&name)?;
            let Some(stored) = stored else { continue };
            let login_name = self.keys.login_name(&stored.token.login);
            let is_current = logins.get(&login_name.0)?.is_some_and(|sealed| {
                self.unseal_login(&login_name, sealed.value()).is_some_and(|login| login.id == stored.id)
            });
            if is_current {
                logins.remove(&login_name.0)?;
            }
        }
        Ok(last.filter(|_| visited == BATCH_SIZE))
    }
}
