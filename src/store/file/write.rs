//! What is acknowledged only when it is on the disk.

use redb::ReadableTable;

use crate::base::secret::Secret;
use crate::store::file::{
    FileResult, FileStore, LOGINS, OpenFileStore, PendingMint, SealedTable, TOKENS, millis, open_if_closed,
    seal_context, split_value,
};
use crate::store::wire::{StoredLogin, StoredToken};
use crate::store::{Revocation, Seed, Timestamp, TokenId, Unavailable};

impl OpenFileStore {
    /// Keeps tokens, and answers when they are on the disk.
    pub(super) fn mint(&mut self, mints: Vec<PendingMint>) -> FileResult<()> {
        if mints.is_empty() {
            return Ok(());
        }
        match self.write_mints(&mints) {
            Ok(seeds) => {
                for (mint, seed) in mints.into_iter().zip(seeds) {
                    let _ = mint.reply.send(Ok(seed));
                }
                Ok(())
            }
            Err(error) => {
                for mint in mints {
                    let _ = mint.reply.send(Err(Unavailable));
                }
                Err(error)
            }
        }
    }

    fn write_mints(&mut self, mints: &[PendingMint]) -> FileResult<Vec<Seed>> {
        let mut seeds = Vec::with_capacity(mints.len());
        let mut kept = Vec::with_capacity(mints.len());
        let store = &self.store;
        let write = open_if_closed(&mut self.database, store)?.begin_write()?;
        {
            let (mut tokens, mut logins) = (write.open_table(TOKENS)?, write.open_table(LOGINS)?);
            for mint in mints {
                if let Some(seed) = store.reusable_seed(mint, &mut tokens, &logins, &mut kept)? {
                    seeds.push(seed);
                    continue;
                }
                let now = store.store_clock.now();
                let expires = Timestamp(now.0.saturating_add(millis(store.memory.limits().ttl)));
                let token = StoredToken {
                    id: mint.id,
                    seed: mint.seed,
                    minted: now,
                    expires,
                    token: mint.token.clone(),
                };
                let (name, value) = store.seal_token(&token, 0, now);
                tokens.insert(&name.0, value.as_slice())?;
                let name = store.keys.login_name(&mint.token.login);
                let login = StoredLogin { seed: mint.seed, id: mint.id };
                let sealed = store.keys.seal(0, &seal_context(b'l', &name.0), &login.encode());
                logins.insert(&name.0, sealed.as_slice())?;
                seeds.push(mint.seed);
                kept.push(token);
            }
        }
        write.commit()?;
        for token in kept {
            let id = token.id;
            store.memory.insert_minted(id, store.token_record(token, 0));
        }
        Ok(seeds)
    }

    pub(super) fn revoke(&mut self, what: &Revocation) -> FileResult<()> {
        let store = &self.store;
        let mut ending = Vec::new();
        store.memory.for_each(|id, record| {
            if what.covers(id, &record.user) {
                ending.push((
                    *id,
                    store.keys.token_name(record.salt, id),
                    store.keys.login_name(&record.login),
                ));
            }
        });
        // SECURITY: first, so that they end here even where the disk does not do its part.
        for (id, _, _) in &ending {
            store.memory.remove(id);
        }
        let write = open_if_closed(&mut self.database, store)?.begin_write()?;
        {
            let (mut tokens, mut logins) = (write.open_table(TOKENS)?, write.open_table(LOGINS)?);
            for (_, token, login) in &ending {
                tokens.remove(&token.0)?;
                // One that has a newer token besides gets a new one: no harm in that.
                logins.remove(&login.0)?;
            }
        }
        Ok(write.commit()?)
    }

    pub(super) fn set_upstream_key(&mut self, id: &TokenId, key: Secret) -> FileResult<()> {
        let store = &self.store;
        let Some(record) = store.memory.peek(id) else { return Ok(()) };
        let write = open_if_closed(&mut self.database, store)?.begin_write()?;
        {
            let mut tokens = write.open_table(TOKENS)?;
            store.write_upstream_key(&mut tokens, id, record.salt, &key)?;
        }
        write.commit()?;
        store.memory.set_upstream_key(id, key);
        Ok(())
    }
}

impl FileStore {
    /// The seed of the login's token, if it has one that may be handed out: on the disk, or about to be.
    fn reusable_seed(
        &self,
        mint: &PendingMint,
        tokens: &mut SealedTable<'_>,
        logins: &impl ReadableTable<&'static [u8; 16], &'static [u8]>,
        new: &mut [StoredToken],
    ) -> FileResult<Option<Seed>> {
        if let Some(other) = new.iter().rev().find(|other| other.token.login == mint.token.login) {
            return Ok(Some(other.seed));
        }
        let name = self.keys.login_name(&mint.token.login);
        let Some(sealed) = logins.get(&name.0)? else { return Ok(None) };
        let opened = self.keys.open(&seal_context(b'l', &name.0), sealed.value());
        let Some(login) = opened.and_then(|(_, text)| StoredLogin::decode(&text)) else { return Ok(None) };
        let now = self.store_clock.tick(self.store_clock.now());
        let Some(record) = self.memory.find_at(&login.id, now) else { return Ok(None) };
        if !self.memory.can_be_issued(&record) {
            return Ok(None);
        }
        if let Some(key) = &mint.token.upstream_key
            && record.upstream_key() != Some(key)
        {
            self.write_upstream_key(tokens, &login.id, record.salt, key)?;
            self.memory.set_upstream_key(&login.id, key.clone());
        }
        Ok(Some(login.seed))
    }

    fn write_upstream_key(
        &self,
        tokens: &mut SealedTable<'_>,
        id: &TokenId,
        salt: u8,
        key: &Secret,
    ) -> FileResult<()> {
        let name = self.keys.token_name(salt, id);
        let value = tokens.get(&name.0)?.map(|value| value.value().to_vec());
        let Some((last_used, _, sealed)) = value.as_deref().and_then(split_value) else { return Ok(()) };
        if let Some((salt, mut kept)) = self.unseal_token(&name.0, sealed) {
            kept.token.upstream_key = Some(key.clone());
            let (name, value) = self.seal_token(&kept, salt, last_used);
            tokens.insert(&name.0, value.as_slice())?;
        }
        Ok(())
    }
}
