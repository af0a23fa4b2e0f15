//! What may be late, in small portions: when tokens and salts were last used, and that tokens have ended.

use redb::{ReadableDatabase, ReadableTable};
use tokio::time::Instant;

use crate::store::file::{
    FileStore, LOGINS, Opened, Outcome, PAUSE, SALTS, Sealed, TOKENS, Used, millis, open, parts, place,
};
use crate::store::wire::KeptLogin;
use crate::store::{SaltUse, Stamp, salt_usage};

/// Tokens that are seen to in one portion.
const PORTION: usize = 1000;

impl Opened {
    pub(super) fn salt_uses(&mut self) -> Outcome<Vec<SaltUse>> {
        self.note_salts()?;
        let store = &self.store;
        let since = store.calendar.now().0.saturating_sub(millis(salt_usage::PERIOD));
        let table = open(&mut self.database, store)?.begin_read()?.open_table(SALTS)?;
        let mut uses = Vec::new();
        for name in store.keys.salts() {
            let mut all = SaltUse::default();
            for entry in table.range((name, &[0; 16])..=(name, &[0xff; 16]))? {
                let last = Stamp(entry?.1.value());
                all.last = all.last.max(Some(last));
                all.users += u64::from(last.0 >= since);
            }
            uses.push(all);
        }
        Ok(uses)
    }

    fn note_salts(&mut self) -> Outcome<()> {
        if self.salts.is_empty() {
            return Ok(());
        }
        let store = &self.store;
        let write = open(&mut self.database, store)?.begin_write()?;
        {
            let mut table = write.open_table(SALTS)?;
            let names: Vec<&str> = store.keys.salts().collect();
            for ((salt, user), when) in &self.salts {
                table.insert((names[usize::from(*salt)], &user.0), when.0)?;
            }
        }
        write.commit()?;
        self.salts.clear();
        Ok(())
    }

    /// A portion of what may be late.
    pub(super) fn run_errands(&mut self) -> Outcome<()> {
        self.next_portion = Instant::now() + PAUSE;
        if Instant::now() >= self.errands_due {
            self.errands_due = Instant::now() + self.store.interval();
            self.note_salts()?;
            let (since, now) = (self.told, self.store.calendar.tick(self.store.calendar.now()));
            let errands = &mut self.errands;
            self.store.memory.for_each(|id, record| {
                if record.last_used() > since {
                    errands.push_back(Used { id: *id, salt: record.salt });
                }
            });
            self.told = now;
        }
        let store = &self.store;
        let write = open(&mut self.database, store)?.begin_write()?;
        {
            let mut tokens = write.open_table(TOKENS)?;
            for Used { id, salt } in self.errands.drain(..self.errands.len().min(PORTION)) {
                let name = store.keys.token(salt, &id);
                let value = tokens.get(&name.0)?.map(|value| value.value().to_vec());
                if let (Some(mut value), Some(record)) = (value, store.memory.peek(&id)) {
                    value[..8].copy_from_slice(&store.calendar.stamp(record.last_used()).0.to_be_bytes());
                    tokens.insert(&name.0, value.as_slice())?;
                }
            }
            self.looked_at =
                store.forget_ended(&mut tokens, &mut write.open_table(LOGINS)?, self.looked_at)?;
        }
        Ok(write.commit()?)
    }
}

impl FileStore {
    /// Looks at a portion of the tokens behind `from`, and removes those that live no more; where it came to.
    fn forget_ended(
        &self,
        tokens: &mut Sealed<'_>,
        logins: &mut Sealed<'_>,
        from: Option<[u8; 16]>,
    ) -> Outcome<Option<[u8; 16]>> {
        let now = self.calendar.now();
        let (mut ended, mut last, mut seen) = (Vec::new(), None, 0);
        for entry in tokens.range::<&[u8; 16]>(&from.unwrap_or_default()..)?.take(PORTION) {
            let (name, value) = entry?;
            seen += 1;
            last = Some(*name.value());
            let Some((_, expires, sealed)) = parts(value.value()) else { continue };
            let opened = self.open_token(name.value(), sealed);
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
            let login = self.keys.login(&kept.token.login);
            let points_here = logins.get(&login.0)?.is_some_and(|sealed| {
                let opened = self.keys.open(&place(b'l', &login.0), sealed.value());
                opened.and_then(|(_, text)| KeptLogin::read(&text)).is_some_and(|login| login.id == kept.id)
            });
            if points_here {
                logins.remove(&login.0)?;
            }
        }
        Ok(last.filter(|_| seen == PORTION))
    }
}
