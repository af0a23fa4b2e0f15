//! Tokens in a file, for one process. Every token that it has returned survives a crash.
//!
//! All tokens are in memory too, so no lookup reads the file. Concurrent logins are written together, with one wait
//! for the disk. The last use of a token, and the removal of expired ones, are written later in small batches.

mod database;
mod deferred_writes;
mod entries;
mod journal;
mod marks;
mod write;

use std::collections::{HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::metrics::gauge::Gauge;
use redb::ReadableTable;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tracing::{error, info, warn};

use crate::base::clock::Tick;
use crate::base::remedy::with_remedy;
use crate::store::driver::{Command, ReplySender};
use crate::store::keys::{KeyNumber, RecordName, StoreKeys};
use crate::store::listing::list_memory;
use crate::store::memory::MemoryStore;
use crate::store::revocation::Revocations;
use crate::store::time::StoreClock;
use crate::store::wire::StoredToken;
use crate::store::{NewToken, SaltName, Seed, Timestamp, TokenId, Unavailable};

use database::{FileResult, LOGINS, MARKS, OLD_TABLES, SALTS, TOKENS, TokenDatabase};
use entries::split_value;
use journal::RevocationJournal;
use marks::FileMarks;

/// Maximum number of commands that share one write.
const MAX_BATCH: usize = 1000;

/// The pause between two batches of deferred writes, in which logins can use the disk.
const DEFERRED_BATCH_INTERVAL: Duration = Duration::from_millis(50);

/// The maximum delay of deferred writes, used where tokens have no idle lifetime.
const MAX_DEFERRED_INTERVAL: Duration = Duration::from_secs(60);

/// After a failed write, the next attempt follows after this time at the latest.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// The context of the sealed entries of the journal.
const JOURNAL_CONTEXT: &[u8] = b"journal";

/// A file that has not been opened yet.
pub struct FileStore {
    path: PathBuf,
    keys: StoreKeys,
    memory: Arc<MemoryStore>,
    store_clock: Arc<StoreClock>,
}

/// An open file, whose tokens are in memory.
pub struct OpenFileStore {
    store: FileStore,
    database: TokenDatabase,
    journal: RevocationJournal,
    marks: FileMarks,
    /// No token in the file was minted later. A wall clock that was set back can be behind it.
    last_minted: Timestamp,
    /// True if the last commit failed.
    is_failing: bool,
    /// The uses of salts that are not in the file yet.
    pending_salt_uses: HashMap<(SaltName, RecordName), Timestamp>,
    /// The tokens whose last use is not in the file yet.
    pending_uses: VecDeque<PendingUse>,
    /// When to collect `pending_uses` again. Not before all of them are written.
    deferred_due: Instant,
    /// When to write the next batch of them.
    next_batch: Instant,
    /// Uses before this tick are in the file, or in `pending_uses`.
    uses_written_at: Tick,
    /// The name of the last token that the search for expired tokens has visited; `None`: it starts over.
    expiry_cursor: Option<[u8; 16]>,
}

/// A token whose last use is to be written.
struct PendingUse {
    id: TokenId,
    key: KeyNumber,
}

/// A new token that waits for the disk.
struct PendingMint {
    token: NewToken,
    seed: Seed,
    id: TokenId,
    reply: ReplySender<Seed>,
}

impl FileStore {
    /// Does nothing before [`FileStore::open`].
    pub fn new(path: PathBuf, keys: StoreKeys, memory: Arc<MemoryStore>, store_clock: Arc<StoreClock>) -> FileStore {
        FileStore { path, keys, memory, store_clock }
    }

    /// Opens the file and loads its tokens into memory. The error is a message for operators.
    pub fn open(self) -> Result<OpenFileStore, String> {
        let mut database = TokenDatabase::open(self.path.clone())?;
        let (journal, entries) = RevocationJournal::open(&self.path)
            .map_err(|error| format!("cannot open {}.revoked: {}", self.path.display(), with_remedy(error)))?;
        let (marks, last_minted) = self
            .load(&mut database, self.read_revocations(&entries))
            .map_err(|error| format!("cannot read {}: {error}", self.path.display()))?;
        let deferred_due = Instant::now() + self.deferred_interval();
        let mut opened = OpenFileStore {
            uses_written_at: self.store_clock.now_tick(),
            store: self,
            database,
            journal,
            marks,
            last_minted,
            is_failing: false,
            pending_salt_uses: HashMap::new(),
            pending_uses: VecDeque::new(),
            deferred_due,
            next_batch: deferred_due,
            expiry_cursor: None,
        };
        // If the disk is full now, the journal keeps what it has.
        let written = opened.write_marks();
        let _ = opened.check(written);
        Ok(opened)
    }

    /// The revocations in the journal.
    fn read_revocations(&self, entries: &[Vec<u8>]) -> Revocations {
        let mut revocations = Revocations::default();
        for entry in entries {
            if let Some((revocation, at)) = self.open_revocation(JOURNAL_CONTEXT, entry) {
                revocations.add(&revocation, at);
            }
        }
        revocations
    }

    /// Loads the tokens. Returns the marks, and when the last token was minted.
    fn load(&self, database: &mut TokenDatabase, journal: Revocations) -> FileResult<(FileMarks, Timestamp)> {
        let (marks, (mut tokens, unreadable)) = database.write(|write| {
            write.open_table(LOGINS)?;
            write.open_table(SALTS)?;
            for table in OLD_TABLES {
                write.delete_table(table)?;
            }
            let marks = self.load_marks(&write.open_table(MARKS)?, journal)?;
            Ok((marks, self.live_tokens(&write.open_table(TOKENS)?)?))
        })?;
        let last_minted = tokens.last().map(|(_, stored)| stored.minted).unwrap_or_default();
        // SECURITY: also those that were in the file but not in memory, such as evicted ones, or ones whose key was not
        // configured at the time.
        tokens.retain(|(_, StoredToken { id, token, minted, .. })| {
            *minted > marks.revocations.latest_covering(id, &token.user)
        });
        let count = tokens.len();
        for (last_used, mut stored) in tokens {
            // A wall clock that was set back must not extend the lifetime of tokens.
            stored.limit_lifetime(&self.store_clock, self.memory.limits().ttl);
            let record = stored.into_record(&self.store_clock);
            record.set_last_used(self.store_clock.tick(last_used));
            self.memory.insert_minted(record);
        }
        info!(path = %self.path.display(), tokens = count, "token file opened");
        if unreadable > 0 {
            warn!(
                tokens = unreadable,
                "tokens in the file cannot be used: they were made with keys that are not in store.key"
            );
        }
        Ok((marks, last_minted))
    }

    /// The live tokens with their last use, the oldest first, and the number of tokens that no key opens.
    fn live_tokens(
        &self,
        table: &impl ReadableTable<&'static [u8; 16], &'static [u8]>,
    ) -> FileResult<(Vec<(Timestamp, StoredToken)>, usize)> {
        let (now, idle_ttl) = (self.store_clock.now(), self.memory.limits().idle_ttl);
        let (mut tokens, mut unreadable) = (Vec::new(), 0);
        for entry in table.iter()? {
            let (name, value) = entry?;
            let Some((last_used, expires, sealed)) = split_value(value.value()) else { continue };
            // The last use in the file may be out of date by the interval.
            let is_idle = idle_ttl.is_some_and(|ttl| last_used.after(ttl + self.deferred_interval()) <= now);
            if expires <= now || is_idle {
                continue;
            }
            match self.unseal_token(name.value(), sealed) {
                Some(stored) => tokens.push((last_used, stored)),
                None => unreadable += 1,
            }
        }
        tokens.sort_by_key(|(_, stored)| stored.minted);
        Ok((tokens, unreadable))
    }

    /// The delay of deferred writes.
    fn deferred_interval(&self) -> Duration {
        self.memory.limits().write_interval(MAX_DEFERRED_INTERVAL)
    }
}

impl OpenFileStore {
    /// Executes commands until all senders are gone.
    pub async fn serve(mut self, mut commands: mpsc::Receiver<Command>, up: Gauge) {
        loop {
            let wake = if self.pending_uses.is_empty() { self.deferred_due } else { self.next_batch };
            let commits = self.database.commits;
            let result = tokio::select! {
                command = commands.recv() => {
                    let Some(command) = command else { break };
                    let mut batch = vec![command];
                    while batch.len() < MAX_BATCH && let Ok(more) = commands.try_recv() {
                        batch.push(more);
                    }
                    self.run_batch(batch)
                }
                () = sleep_until(wake) => self.write_due(),
            };
            self.report(&up, result, commits);
        }
        let _ = self.write_marks();
        while !self.pending_uses.is_empty() && self.write_deferred().is_ok() {}
        // Those since then.
        self.deferred_due = Instant::now();
        while self.write_deferred().is_ok() && !self.pending_uses.is_empty() {}
    }

    /// Executes the writes that are due. What fails is due again after [`RETRY_INTERVAL`].
    fn write_due(&mut self) -> FileResult<()> {
        let result = self.write_marks().and_then(|()| self.write_deferred());
        if result.is_err() {
            self.deferred_due = Instant::now() + RETRY_INTERVAL;
            self.next_batch = self.deferred_due;
        }
        self.check(result)
    }

    /// Shows whether the last commit succeeded. Commands that commit nothing do not change that.
    fn report(&mut self, up: &Gauge, result: FileResult<()>, commits_before: u64) {
        match result {
            Err(error) => {
                if !std::mem::replace(&mut self.is_failing, true) {
                    let path = self.store.path.display();
                    let error = match error {
                        redb::Error::Io(error) => with_remedy(error).to_string(),
                        other => other.to_string(),
                    };
                    error!(
                        "cannot write to the token file {path}: {error}. New tokens are rejected with 503; known tokens \
                         keep working"
                    );
                }
            }
            Ok(()) if self.database.commits > commits_before => {
                if std::mem::take(&mut self.is_failing) {
                    info!("the token file can be written again");
                }
            }
            Ok(()) => {}
        }
        up.set(i64::from(!self.is_failing));
    }

    /// After an error, the database must be opened again, and the next attempt follows soon.
    fn check<T>(&mut self, result: FileResult<T>) -> FileResult<T> {
        if result.is_err() {
            self.database.opened = None;
            let retry = Instant::now() + RETRY_INTERVAL;
            self.deferred_due = self.deferred_due.min(retry);
            self.next_batch = self.next_batch.min(retry);
        }
        result
    }

    /// An error of one command does not affect the others. Returns the first one.
    fn run_batch(&mut self, commands: Vec<Command>) -> FileResult<()> {
        let (mut mints, mut result) = (Vec::new(), Ok(()));
        for command in commands {
            match command {
                Command::Mint { token, seed, id, reply, .. } => {
                    mints.push(PendingMint { token, seed, id, reply });
                }
                other => {
                    // Commands take effect in sequence.
                    let minted = self.mint(std::mem::take(&mut mints));
                    result = result.and(self.check(minted));
                    let done = self.run(other);
                    result = result.and(self.check(done));
                }
            }
        }
        let minted = self.mint(mints);
        result.and(self.check(minted))
    }

    fn run(&mut self, command: Command) -> FileResult<()> {
        match command {
            Command::Mint { .. } => unreachable!("run_batch has taken it"),
            // The file has no tokens that are not in memory.
            Command::Fetch { id, reply, .. } => {
                let memory = &self.store.memory;
                let found = memory.find(&id, self.store.store_clock.now_tick());
                let _ = reply.send(Ok(found.ok_or_else(|| memory.end_of(&id))));
            }
            Command::List { filter, reply } => {
                let _ = reply.send(Ok(list_memory(&self.store.memory, &self.store.store_clock, &filter)));
            }
            Command::RecordSaltUse { salt, user } => {
                let user = self.store.keys.hashed_user(&user);
                self.pending_salt_uses.insert((salt, user), self.store.store_clock.now());
            }
            // There are no replicas.
            Command::PublishFailure(_) => {}
            Command::Revoke { revocation, reply } => {
                let (count, result) = self.revoke(&revocation);
                let _ = reply.send(count);
                return result;
            }
            Command::SetUpstreamKey { id, key, reply } => {
                return send_reply(reply, self.set_upstream_key(&id, &key));
            }
            Command::SaltUsage { salts, reply } => return send_reply(reply, self.salt_usage(&salts)),
        }
        Ok(())
    }
}

/// Replies with the result, and returns the error.
fn send_reply<T>(reply: ReplySender<T>, result: FileResult<T>) -> FileResult<()> {
    let (result, error) = match result {
        Ok(value) => (Ok(value), Ok(())),
        Err(error) => (Err(Unavailable), Err(error)),
    };
    let _ = reply.send(result);
    error
}
