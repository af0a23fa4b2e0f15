//! Writes that may be delayed, in small batches: last uses of tokens and salts, and the removal of expired tokens.

use redb::ReadableTable;
use tokio::time::Instant;

use crate::store::file::database::{FileResult, LOGINS, SALTS, SealedTable, TOKENS};
use crate::store::file::entries::split_value;
use crate::store::file::{DEFERRED_BATCH_INTERVAL, FileStore, OpenFileStore, PendingUse};
use crate::store::salt_usage::USAGE_WINDOW;
use crate::store::{SaltName, SaltUsage, Timestamp};

/// The number of tokens in a batch.
const BATCH_SIZE: usize = 1000;

impl OpenFileStore {
    pub(super) fn salt_usage(&mut self, salts: &[SaltName]) -> FileResult<Vec<SaltUsage>> {
        self.write_salt_uses()?;
        let since = self.store.store_clock.now().before(USAGE_WINDOW);
        let table = self.database.begin_read()?.open_table(SALTS)?;
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
        self.database.write(|write| {
            let mut table = write.open_table(SALTS)?;
            for ((salt, user), when) in &self.pending_salt_uses {
                table.insert((salt.to_string().as_str(), &user.0), when.0)?;
            }
            Ok(())
        })?;
        self.pending_salt_uses.clear();
        Ok(())
    }

    /// Writes a batch of last uses, and removes a batch of expired tokens.
    pub(super) fn write_deferred(&mut self) -> FileResult<()> {
        self.next_batch = Instant::now() + DEFERRED_BATCH_INTERVAL;
        // Otherwise a disk that stays full would make the list grow.
        if self.pending_uses.is_empty() && Instant::now() >= self.deferred_due {
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
        let count = self.pending_uses.len().min(BATCH_SIZE);
        self.expiry_cursor = self.database.write(|write| {
            let mut tokens = write.open_table(TOKENS)?;
            for PendingUse { id, key } in self.pending_uses.iter().take(count) {
                let name = store.keys.token_name(*key, id);
                let value = tokens.get(&name.0)?.map(|value| value.value().to_vec());
                if let (Some(mut value), Some(record)) = (value, store.memory.peek(id)) {
                    let last_used = store.store_clock.timestamp(record.last_used());
                    value[..8].copy_from_slice(&last_used.0.to_be_bytes());
                    tokens.insert(&name.0, value.as_slice())?;
                }
            }
            store.remove_expired(&mut tokens, &mut write.open_table(LOGINS)?, self.expiry_cursor)
        })?;
        self.pending_uses.drain(..count);
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

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    use redb::backends::InMemoryBackend;
    use redb::{Database, StorageBackend};
    use tokio::sync::oneshot;

    use super::*;
    use crate::base::clock::Clock;
    use crate::config::StoreKey;
    use crate::store::file::PendingMint;
    use crate::store::keys::{KeyRing, PRIMARY_KEY, StoreKeys};
    use crate::store::memory::MemoryStore;
    use crate::store::time::StoreClock;
    use crate::store::token_limits::TokenLimits;
    use crate::store::{NewToken, TokenId};

    /// Accepts no write while it is full.
    #[derive(Debug, Default)]
    struct Disk {
        memory: InMemoryBackend,
        is_full: Arc<AtomicBool>,
    }

    impl Disk {
        fn check(&self) -> io::Result<()> {
            let is_full = self.is_full.load(Ordering::Relaxed);
            if is_full { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
        }
    }

    impl StorageBackend for Disk {
        fn len(&self) -> io::Result<u64> {
            self.memory.len()
        }

        fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
            self.memory.read(offset, out)
        }

        fn set_len(&self, len: u64) -> io::Result<()> {
            self.check()?;
            self.memory.set_len(len)
        }

        fn sync_data(&self) -> io::Result<()> {
            self.check()
        }

        fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
            self.check()?;
            self.memory.write(offset, data)
        }
    }

    fn full_disk() -> Database {
        let disk = Disk::default();
        let is_full = Arc::clone(&disk.is_full);
        let database = Database::builder().create_with_backend(disk).expect("created");
        is_full.store(true, Ordering::Relaxed);
        database
    }

    #[test]
    fn a_failed_write_is_repeated_after_a_pause_and_loses_no_use() {
        let folder = tempfile::tempdir().expect("a folder");
        let clock = Clock::manual(1_000);
        let limits = TokenLimits { ttl: Duration::from_secs(3600), idle_ttl: None, max: 10, max_per_user: 0 };
        let memory = Arc::new(MemoryStore::new(limits, clock.clone()));
        let keys = StoreKeys::new(&KeyRing::new(&[StoreKey::random()]));
        let store_clock = Arc::new(StoreClock::new(clock.clone()));
        let path = folder.path().join("tokens");
        let mut store = FileStore::new(path, keys, Arc::clone(&memory), store_clock).open().expect("opened");
        let id = TokenId::from_token(b"x");
        let token = NewToken::example("alice", 3);
        let reply = oneshot::channel().0;
        store.mint(vec![PendingMint { token, seed: [7; 20], id, reply }]).expect("written");

        for _ in 0..2 {
            clock.advance(Duration::from_secs(60));
            assert!(memory.find(&id, clock.now()).is_some());
            store.database.opened = Some(full_disk());
            store.deferred_due = Instant::now();
            store.next_batch = store.deferred_due;
            assert!(store.write_due().is_err());
            let soon = Instant::now() + Duration::from_millis(500);
            assert!(store.deferred_due > soon && store.next_batch > soon, "the disk is not tried without a pause");
            assert_eq!(store.pending_uses.len(), 1, "the use is still to be written, once");
        }
        store.write_due().expect("written");
        assert!(store.pending_uses.is_empty());
        let name = store.store.keys.token_name(PRIMARY_KEY, &id);
        let read = store.database.begin_read().expect("read");
        let value = read.open_table(TOKENS).expect("a table").get(&name.0).expect("read").expect("the token");
        let (last_used, ..) = split_value(value.value()).expect("complete");
        assert_eq!(last_used, Timestamp(1_120_000));
    }
}
