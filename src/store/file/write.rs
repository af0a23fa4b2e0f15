//! Writes that must be on the disk before the reply: new tokens, revocations, and new upstream keys.

use redb::ReadableTable;
use tracing::error;

use crate::base::secret::Secret;
use crate::store::file::database::{FileResult, LOGINS, SealedTable, TOKENS};
use crate::store::file::entries::{seal_context, split_value};
use crate::store::file::{FileStore, JOURNAL_CONTEXT, OpenFileStore, PendingMint};
use crate::store::keys::KeyNumber;
use crate::store::revocation::revoke_in_memory;
use crate::store::wire::StoredToken;
use crate::store::{Revocation, Seed, TokenId, Unavailable};

impl OpenFileStore {
    /// Writes new tokens, and replies when they are on the disk.
    pub(super) fn mint(&mut self, mints: Vec<PendingMint>) -> FileResult<()> {
        if mints.is_empty() {
            return Ok(());
        }
        let (seeds, result): (Vec<Result<Seed, Unavailable>>, _) = match self.write_mints(&mints) {
            Ok(seeds) => (seeds.into_iter().map(Ok).collect(), Ok(())),
            Err(error) => (vec![Err(Unavailable); mints.len()], Err(error)),
        };
        for (mint, seed) in mints.into_iter().zip(seeds) {
            let _ = mint.reply.send(seed);
        }
        result
    }

    fn write_mints(&mut self, mints: &[PendingMint]) -> FileResult<Vec<Seed>> {
        let mut seeds = Vec::with_capacity(mints.len());
        let mut new_tokens = Vec::with_capacity(mints.len());
        let store = &self.store;
        self.database.write(|write| {
            let (mut tokens, mut logins) = (write.open_table(TOKENS)?, write.open_table(LOGINS)?);
            for mint in mints {
                if let Some(seed) = store.reusable_seed(mint, &mut tokens, &logins, &new_tokens)? {
                    seeds.push(seed);
                    continue;
                }
                let now = store.store_clock.now();
                let stored = StoredToken {
                    id: mint.id,
                    seed: mint.seed,
                    minted: self.marks.revocations.mint_time(&mint.id, &mint.token.user, now),
                    expires: now.after(store.memory.limits().ttl),
                    token: mint.token.clone(),
                };
                let (name, value) = store.seal_token(&stored, now);
                tokens.insert(&name.0, value.as_slice())?;
                let name = store.keys.login_name(&mint.token.login);
                let sealed = stored.login().seal(&store.keys, &seal_context(b'l', &name.0));
                logins.insert(&name.0, sealed.as_slice())?;
                seeds.push(mint.seed);
                new_tokens.push(stored);
            }
            Ok(())
        })?;
        for stored in new_tokens {
            self.last_minted = self.last_minted.max(stored.minted);
            store.memory.insert_minted(stored.into_record(&store.store_clock));
        }
        Ok(seeds)
    }

    /// Returns the number of live tokens that this ended, and the error of the file if there is one.
    ///
    /// SECURITY: from memory first, so that the tokens end even if the disk fails. What cannot be written to the file is
    /// written to the journal, so that it survives a crash, and is retried.
    pub(super) fn revoke(&mut self, revocation: &Revocation) -> (Result<u64, Unavailable>, FileResult<()>) {
        let count = revoke_in_memory(&self.store.memory, revocation);
        let now = self.store.store_clock.now();
        let at = self.marks.add(revocation, now, self.last_minted);
        self.marks.revocations.remove_outdated(now, self.store.mark_retention());
        match self.write_marks() {
            Ok(()) => (Ok(count), Ok(())),
            Err(error) => {
                let sealed = self.store.seal_revocation(JOURNAL_CONTEXT, revocation, at);
                let journaled = self.journal.append(&sealed).inspect_err(|error| {
                    error!("cannot write a revocation: {error}. It is in effect until the process ends");
                });
                (journaled.map(|()| count).map_err(|_| Unavailable), Err(error))
            }
        }
    }

    pub(super) fn set_upstream_key(&mut self, id: &TokenId, key: &Secret) -> FileResult<()> {
        let store = &self.store;
        let Some(record) = store.memory.peek(id) else { return Ok(()) };
        self.database.write(|write| store.write_upstream_key(&mut write.open_table(TOKENS)?, id, record.key, key))?;
        store.memory.set_upstream_key(id, key);
        Ok(())
    }
}

impl FileStore {
    /// The seed of the token that the login has, in the file or in this batch, if it can still be issued.
    fn reusable_seed(
        &self,
        mint: &PendingMint,
        tokens: &mut SealedTable<'_>,
        logins: &impl ReadableTable<&'static [u8; 16], &'static [u8]>,
        new_tokens: &[StoredToken],
    ) -> FileResult<Option<Seed>> {
        if let Some(other) = new_tokens.iter().rev().find(|other| other.token.login == mint.token.login) {
            return Ok(Some(other.seed));
        }
        let name = self.keys.login_name(&mint.token.login);
        let Some(sealed) = logins.get(&name.0)? else { return Ok(None) };
        let Some(login) = self.unseal_login(&name, sealed.value()) else { return Ok(None) };
        let record = self.memory.find(&login.id, self.store_clock.now_tick());
        let Some(record) = record.filter(|record| self.memory.can_be_issued(record)) else { return Ok(None) };
        if let Some(key) = &mint.token.upstream_key
            && record.upstream_key() != Some(key)
        {
            self.write_upstream_key(tokens, &login.id, record.key, key)?;
            self.memory.set_upstream_key(&login.id, key);
        }
        Ok(Some(login.seed))
    }

    fn write_upstream_key(
        &self,
        tokens: &mut SealedTable<'_>,
        id: &TokenId,
        number: KeyNumber,
        key: &Secret,
    ) -> FileResult<()> {
        let name = self.keys.token_name(number, id);
        let value = tokens.get(&name.0)?.map(|value| value.value().to_vec());
        let Some((last_used, _, sealed)) = value.as_deref().and_then(split_value) else { return Ok(()) };
        if let Some(mut stored) = self.unseal_token(&name.0, sealed) {
            stored.token.upstream_key = Some(key.clone());
            let (name, value) = self.seal_token(&stored, last_used);
            tokens.insert(&name.0, value.as_slice())?;
        }
        Ok(())
    }
}
