//! What may be late, in small portions: when tokens and salts were last used, and that tokens have ended.

use redb::{ReadableDatabase, ReadableTable};
use tokio::time::Instant;

use crate::store::file::{
    DEFERRED_BATCH_INTERVAL, FileResult, FileStore, LOGINS, OpenFileStore, PendingUse, SALTS, SealedTable,
    TOKENS, millis, open_if_closed, seal_context, split_value,
};
use crate::store::wire::StoredLogin;
use crate::store::{SaltUsage, Timestamp, salt_usage};

/// Tokens that are seen to in one portion.
const BATCH_SIZE: usize = 1000;

impl OpenFileStore {
    pub(super) fn salt_usage(&mut self) -> FileResult<Vec<SaltUsage>> {
        self.write_salt_uses()?;
        let store = &self.store;
        let since = store.store_clock.now().0.saturating_sub(millis(salt_usage::USAGE_WINDOW));
        let table = open_if_closed(&mut self.database, store)?.begin_read()?.open_table(SALTS)?;
        let mut uses = Vec::new();
        for name in store.keys.salt_names() {
            let mut all = SaltUsage::default();
            for entry in table.range((name, &[0; 16])..=(name, &[0xff; 16]))? {
                let last = Timestamp(entry?.1.value());
                all.last_used = all.last_used.max(Some(last));
                all.users += u64::from(last.0 >= since);
            }
            uses.push(all);
        }
        Ok(uses)
    }

    fn write_salt_uses(&mut self) -> FileResult<()> {
        if self.pending_salt_uses.is_empty() {
            return Ok(());
        }
        let store = &self.store;
        let write = open_if_closed(&mut self.database, store)?.begin_write()?;
        {
            let mut table = write.open_table(SALTS)?;
            let names: Vec<&str> = store.keys.salt_names().collect();
            for ((salt, user), when) in &self.pending_salt_uses {
                table.insert((names[usize::from(*salt)], &user.0), when.0)?;
            }
        }
        write.commit()?;
        self.pending_salt_uses.clear();
        Ok(())
    }

    /// A portion of what may be late.
    pub(super) fn write_deferred(&mut self) -> FileResult<()> {
        self.next_batch = Instant::now() + DEFERRED_BATCH_INTERVAL;
        if Instant::now() >= self.deferred_due {
            self.deferred_due = Instant::now() + self.store.deferred_interval();
            self.write_salt_uses()?;
            let (since, now) =
                (self.uses_written_at, self.store.store_clock.tick(self.store.store_clock.now()));
            let errands = &mut self.pending_uses;
            self.store.memory.for_each(|id, record| {
                if record.last_used() > since {
                    errands.push_back(PendingUse { id: *id, salt: record.salt });
                }
            });
            self.uses_written_at = now;
        }
        let store = &self.store;
        let write = open_if_closed(&mut self.database, store)?.begin_write()?;
        {
            let mut tokens = write.open_table(TOKENS)?;
            for PendingUse { id, salt } in self.pending_uses.drain(..self.pending_uses.len().min(BATCH_SIZE))
            {
                let name = store.keys.token_name(salt, &id);
                let value = tokens.get(&name.0)?.map(|value| value.value().to_vec());
                if let (Some(mut value), Some(record)) = (value, store.memory.peek(&id)) {
                    value[..8]
                        .copy_from_slice(&store.store_clock.timestamp(record.last_used()).0.to_be_bytes());
                    tokens.insert(&name.0, value.as_slice())?;
                }
            }
            self.expiry_cursor =
                store.remove_expired(&mut tokens, &mut write.open_table(LOGINS)?, self.expiry_cursor)?;
        }
        Ok(write.commit()?)
    }
}

impl FileStore {
    /// Looks at a portion of the tokens behind `from`, and removes those that live no more; where it came to.
    fn remove_expired(
        &self,
        tokens: &mut SealedTable<'_>,
        logins: &mut SealedTable<'_>,
        from: Option<[u8; 16]>,
    ) -> FileResult<Option<[u8; 16]>> {
        let now = self.store_clock.now();
        let (mut ended, mut last, mut seen) = (Vec::new(), None, 0);
        for entry in tokens.range::<&[u8; 16]>(&from.unwrap_or_default()..)?.take(BATCH_SIZE) {
            let (name, value) = entry?;
            seen += 1;
            last = Some(*name.value());
            let Some((_, expires, sealed)) = split_value(value.value()) else { continue };
            let opened = self.unseal_token(name.value(), sealed);
            // One that another salt made may be of use again, until its time is over.
            let lives =
                opened.as_ref().map_or(expires > now, |(_, kept)| self.memory.peek(&kept.id).is_some());
            if !lives {
                ended.push((*name.value(), opened.map(|(_, kept)| kept)));
            }
        }
        for (name, kept) in ended {
            tokens.remove(&name)?;
            let Some(kept) = kept else { continue };
            let login = self.keys.login_name(&kept.token.login);
            let points_here = logins.get(&login.0)?.is_some_and(|sealed| {
                let opened = self.keys.open(&seal_context(b'l', &login.0), sealed.value());
                opened
                    .and_then(|(_, text)| StoredLogin::decode(&text))
                    .is_some_and(|login| login.id == kept.id)
            });
            if points_here {
                logins.remove(&login.0)?;
            }
        }
        Ok(last.filter(|_| seen == BATCH_SIZE))
    }
}
