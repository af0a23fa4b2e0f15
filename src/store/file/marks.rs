//! Revocations and the deny list in the file: since when tokens are valid, and who is denied until when. A revocation does
//! not remove tokens from the file: its mark covers them when the file is loaded.

use std::time::Duration;

use redb::ReadableTable;

use crate::store::file::database::{FileResult, MARKS, PROBE, SealedTable};
use crate::store::file::entries::seal_context;
use crate::store::file::{FileStore, OpenFileStore};
use crate::store::revocation::{MAX_DENIAL, Revocation, Revocations};
use crate::store::time::Timestamp;

/// The marks of an open file.
pub(super) struct FileMarks {
    pub(super) revocations: Revocations,
    /// Those that are not in the file yet.
    unwritten: Vec<(Revocation, Timestamp)>,
    /// The names of those in the file that have no effect any more.
    outdated: Vec<[u8; 16]>,
}

impl FileMarks {
    /// Adds a revocation that is made now, and returns its time. No token in the file was minted after `last_minted`.
    pub(super) fn add(&mut self, revocation: &Revocation, now: Timestamp, last_minted: Timestamp) -> Timestamp {
        let at = self.revocations.next_time(revocation, now.max(last_minted));
        self.revocations.add(revocation, at);
        self.unwritten.push((revocation.clone(), at));
        at
    }
}

impl FileStore {
    /// Adds the marks of the table to those of the journal, and applies the deny list.
    pub(super) fn load_marks(
        &self,
        table: &impl ReadableTable<&'static [u8; 16], &'static [u8]>,
        mut revocations: Revocations,
    ) -> FileResult<FileMarks> {
        let (now, mut found) = (self.store_clock.now(), Vec::new());
        for entry in table.iter()? {
            let (name, sealed) = entry?;
            let name = *name.value();
            if let Some((revocation, at)) = self.open_revocation(&seal_context(b'd', &name), sealed.value()) {
                revocations.add(&revocation, at);
                found.push((name, revocation, at));
            }
        }
        revocations.remove_outdated(now, self.mark_retention());
        let (mut written, mut outdated) = (Revocations::default(), Vec::new());
        for (name, revocation, at) in found {
            let is_latest = at == revocations.time_of(&revocation) && !revocation.has_ended(now);
            // One under an older key is written again: that key may be removed from the configuration.
            if is_latest && name == self.keys.mark_name(&revocation.mark_id()).0 {
                written.add(&revocation, at);
            } else {
                outdated.push(name);
            }
        }
        let mut unwritten: Vec<_> = revocations.iter().filter(|(revocation, _)| !revocation.has_ended(now)).collect();
        unwritten.iter().for_each(|(revocation, _)| revocation.apply_denial(&self.memory));
        unwritten.retain(|(revocation, at)| written.time_of(revocation) < *at);
        Ok(FileMarks { revocations, unwritten, outdated })
    }

    /// Every token that an older mark covers has expired. `tokens.ttl` may have been longer.
    pub(super) fn mark_retention(&self) -> Duration {
        self.memory.limits().ttl.max(MAX_DENIAL)
    }

    /// Replaces an earlier mark of the same revocation.
    fn insert_mark(&self, table: &mut SealedTable<'_>, revocation: &Revocation, at: Timestamp) -> FileResult<()> {
        let name = self.keys.mark_name(&revocation.mark_id());
        table.insert(&name.0, self.seal_revocation(&seal_context(b'd', &name.0), revocation, at).as_slice())?;
        Ok(())
    }
}

impl OpenFileStore {
    /// Writes the marks that are not in the file. Writes nothing if there are none, unless the last write failed.
    pub(super) fn write_marks(&mut self) -> FileResult<()> {
        let FileMarks { unwritten, outdated, .. } = &mut self.marks;
        if unwritten.is_empty() && outdated.is_empty() && !self.is_failing {
            return Ok(());
        }
        self.database.write(|write| {
            let mut marks = write.open_table(MARKS)?;
            for name in &*outdated {
                marks.remove(name)?;
            }
            for (revocation, at) in &*unwritten {
                self.store.insert_mark(&mut marks, revocation, *at)?;
            }
            if self.is_failing {
                write.open_table(PROBE)?.insert("", [0; 1024].as_slice())?;
            }
            Ok(())
        })?;
        (*unwritten, *outdated) = (Vec::new(), Vec::new());
        self.journal.clear().map_err(redb::Error::Io)
    }
}
