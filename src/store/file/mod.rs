//! Tokens in a file, for one process: what it has said it keeps outlives its end, however that comes.
//!
//! All tokens are in memory too, so no lookup touches the file. Logins that come together are written together, with one
//! wait for the disk. What may be late is written late and in small portions: when a token was last used, and that it has
//! ended.

mod deferred_writes;
mod write;

use std::collections::{HashMap, VecDeque};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::metrics::gauge::Gauge;
use redb::backends::FileBackend;
use redb::{Database, DatabaseError, ReadableTable, Table, TableDefinition};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tracing::{error, info, warn};

use crate::base::clock::Tick;
use crate::store::driver::{Command, ReplySender};
use crate::store::keys::{RecordName, StoreKeys};
use crate::store::listing::list_memory;
use crate::store::memory::MemoryStore;
use crate::store::time::StoreClock;
use crate::store::wire::StoredToken;
use crate::store::{NewToken, Seed, Timestamp, TokenId, TokenRecord, Unavailable};

/// Name of a token -> when it was last used, when it ends, and all of it, sealed.
const TOKENS: TableDefinition<'_, &[u8; 16], &[u8]> = TableDefinition::new("tokens 1");
/// Name of a login -> the token that it is given, sealed.
const LOGINS: TableDefinition<'_, &[u8; 16], &[u8]> = TableDefinition::new("logins 1");
/// Name of a salt and of a user -> when that one's bearer was last opened with it.
const SALTS: TableDefinition<'_, (&str, &[u8; 16]), u64> = TableDefinition::new("salts 1");

/// Logins that are written together.
const MAX_BATCH: usize = 1000;

/// Between two portions, so that logins find the disk free.
const DEFERRED_BATCH_INTERVAL: Duration = Duration::from_millis(50);

/// What may be late is at most so late, where nothing ends for want of use.
const MAX_DEFERRED_INTERVAL: Duration = Duration::from_secs(60);

/// The library's memory for pages of the file.
const PAGE_CACHE_BYTES: usize = 16 * 1024 * 1024;

/// A file that is not open yet.
pub struct FileStore {
    path: PathBuf,
    keys: StoreKeys,
    memory: Arc<MemoryStore>,
    store_clock: Arc<StoreClock>,
}

/// An open file, whose tokens are in memory.
pub struct OpenFileStore {
    store: FileStore,
    /// `None` after a failure, until it can be opened again.
    database: Option<Database>,
    pending_salt_uses: HashMap<(u8, RecordName), Timestamp>,
    pending_uses: VecDeque<PendingUse>,
    deferred_due: Instant,
    next_batch: Instant,
    uses_written_at: Tick,
    expiry_cursor: Option<[u8; 16]>,
}

/// A token whose last use is to be written.
struct PendingUse {
    id: TokenId,
    salt: u8,
}

/// A login that waits for the disk.
struct PendingMint {
    token: NewToken,
    seed: Seed,
    id: TokenId,
    reply: ReplySender<Seed>,
}

type FileResult<T> = Result<T, redb::Error>;

/// The salt that made a token, when it was last used, and the token.
type LiveToken = (u8, Timestamp, StoredToken);

/// A table of sealed values by name.
type SealedTable<'a> = Table<'a, &'static [u8; 16], &'static [u8]>;

impl FileStore {
    /// Nothing is touched before [`FileStore::open`].
    pub fn new(
        path: PathBuf,
        keys: StoreKeys,
        memory: Arc<MemoryStore>,
        store_clock: Arc<StoreClock>,
    ) -> FileStore {
        FileStore { path, keys, memory, store_clock }
    }

    /// Opens the file, and takes its tokens into memory. The error is a sentence.
    pub fn open(self) -> Result<OpenFileStore, String> {
        let database = self.open_database()?;
        self.load(&database).map_err(|error| format!("{} cannot be read: {error}", self.path.display()))?;
        let errands_due = Instant::now() + self.deferred_interval();
        Ok(OpenFileStore {
            uses_written_at: self.store_clock.tick(self.store_clock.now()),
            store: self,
            database: Some(database),
            pending_salt_uses: HashMap::new(),
            pending_uses: VecDeque::new(),
            deferred_due: errands_due,
            next_batch: errands_due,
            expiry_cursor: None,
        })
    }

    fn open_database(&self) -> Result<Database, String> {
        let path = self.path.display();
        let file = self.open_file().map_err(|error| format!("{path} cannot be opened: {error}"))?;
        let mode = file.metadata().map_or(0, |metadata| metadata.mode()) & 0o777;
        if mode & 0o077 != 0 {
            // SECURITY: what is in it is sealed, but when who was here is nobody else's concern either.
            return Err(format!("{path} is open to others (mode {mode:04o}); `chmod 600 {path}`"));
        }
        let backend = FileBackend::new(file).map_err(|error| self.open_error(error))?;
        let opened = Database::builder().set_cache_size(PAGE_CACHE_BYTES).create_with_backend(backend);
        opened.map_err(|error| self.open_error(error))
    }

    fn open_error(&self, error: DatabaseError) -> String {
        let path = self.path.display();
        match error {
            DatabaseError::DatabaseAlreadyOpen => {
                format!(
                    "{path} is in use by another process; each gateway needs a file of its own, or a Redis to share"
                )
            }
            other => format!("{path} cannot be used: {other}"),
        }
    }

    fn open_file(&self) -> io::Result<File> {
        OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&self.path)
    }

    fn load(&self, database: &Database) -> FileResult<()> {
        let write = database.begin_write()?;
        let (tokens, unreadable) = self.live_tokens(&write.open_table(TOKENS)?)?;
        write.open_table(LOGINS)?;
        write.open_table(SALTS)?;
        write.commit()?;
        let count = tokens.len();
        for (salt, last_used, mut kept) in tokens {
            // A clock that was set back must not make tokens live longer.
            let longest = self.store_clock.now().0.saturating_add(millis(self.memory.limits().ttl));
            kept.expires = kept.expires.min(Timestamp(longest));
            let id = kept.id;
            let record = self.token_record(kept, salt);
            record.set_last_used(self.store_clock.tick(last_used));
            self.memory.insert_minted(id, record);
        }
        info!(path = %self.path.display(), tokens = count, "tokens are kept in a file");
        if unreadable > 0 {
            warn!(
                tokens = unreadable,
                "tokens in the file were made with salts that are not in use: they do not work"
            );
        }
        Ok(())
    }

    /// The tokens that live, the oldest first, and how many cannot be read.
    fn live_tokens(
        &self,
        table: &impl ReadableTable<&'static [u8; 16], &'static [u8]>,
    ) -> FileResult<(Vec<LiveToken>, usize)> {
        let (now, idle) = (self.store_clock.now(), self.memory.limits().idle_ttl);
        let (mut tokens, mut unreadable) = (Vec::new(), 0);
        for entry in table.iter()? {
            let (name, value) = entry?;
            let Some((last_used, expires, sealed)) = split_value(value.value()) else { continue };
            let idled = idle.is_some_and(|idle| {
                last_used.0.saturating_add(millis(idle + self.deferred_interval())) <= now.0
            });
            if expires <= now || idled {
                continue;
            }
            match self.unseal_token(name.value(), sealed) {
                Some((salt, kept)) => tokens.push((salt, last_used, kept)),
                None => unreadable += 1,
            }
        }
        tokens.sort_by_key(|(_, _, kept)| kept.minted);
        Ok((tokens, unreadable))
    }

    fn token_record(&self, kept: StoredToken, salt: u8) -> TokenRecord {
        let (now, expires) =
            (self.store_clock.tick(self.store_clock.now()), self.store_clock.tick(kept.expires));
        TokenRecord::new(kept.token, kept.seed, kept.minted, now, expires).with_salt(salt)
    }

    fn unseal_token(&self, name: &[u8; 16], sealed: &[u8]) -> Option<(u8, StoredToken)> {
        let (salt, text) = self.keys.open(&seal_context(b't', name), sealed)?;
        Some((salt, StoredToken::decode(&text)?))
    }

    fn seal_token(&self, kept: &StoredToken, salt: u8, last_used: Timestamp) -> (RecordName, Vec<u8>) {
        let name = self.keys.token_name(salt, &kept.id);
        let sealed = self.keys.seal(salt, &seal_context(b't', &name.0), &kept.encode());
        (name, [&last_used.0.to_be_bytes()[..], &kept.expires.0.to_be_bytes(), &sealed].concat())
    }

    /// How late what may be late is.
    fn deferred_interval(&self) -> Duration {
        let idle = self.memory.limits().idle_ttl;
        idle.map_or(MAX_DEFERRED_INTERVAL, |idle| {
            (idle / 16).clamp(Duration::from_millis(100), MAX_DEFERRED_INTERVAL)
        })
    }
}

impl OpenFileStore {
    /// Serves commands until nobody can send one any more.
    pub async fn serve(mut self, mut commands: mpsc::Receiver<Command>, up: Gauge) {
        loop {
            let wake = if self.pending_uses.is_empty() { self.deferred_due } else { self.next_batch };
            let outcome = tokio::select! {
                command = commands.recv() => {
                    let Some(command) = command else { break };
                    let mut together = vec![command];
                    while together.len() < MAX_BATCH && let Ok(more) = commands.try_recv() {
                        together.push(more);
                    }
                    self.run_batch(together)
                }
                () = sleep_until(wake) => self.write_deferred(),
            };
            up.set(i64::from(outcome.is_ok()));
            if let Err(error) = outcome {
                error!(
                    "the token store's file cannot be written: {error}. New tokens get 503; known ones go on working"
                );
                // After a failure the library wants the file opened anew.
                self.database = None;
            }
        }
        self.deferred_due = Instant::now();
        while self.write_deferred().is_ok() && !self.pending_uses.is_empty() {}
    }

    fn run_batch(&mut self, commands: Vec<Command>) -> FileResult<()> {
        let mut mints = Vec::new();
        for command in commands {
            match command {
                Command::Mint { token, seed, id, reply } => {
                    mints.push(PendingMint { token, seed, id, reply })
                }
                other => {
                    // In the order of their coming.
                    self.mint(std::mem::take(&mut mints))?;
                    self.run(other)?;
                }
            }
        }
        self.mint(mints)
    }

    fn run(&mut self, command: Command) -> FileResult<()> {
        match command {
            Command::Mint { .. } => unreachable!("they are written together"),
            // What is not in memory is not in the file.
            Command::Fetch { reply, .. } => drop(reply.send(Ok(None))),
            Command::List { filter, reply } => {
                let _ = reply.send(Ok(list_memory(&self.store.memory, &self.store.store_clock, &filter)));
            }
            Command::RecordSaltUse { salt, user } => {
                let user = self.store.keys.hashed_user(&user);
                self.pending_salt_uses.insert((salt, user), self.store.store_clock.now());
            }
            // There is nobody to tell.
            Command::Failure(_) => {}
            Command::Revoke { what, reply } => return send_reply(reply, self.revoke(&what)),
            Command::SetUpstreamKey { id, key, reply } => {
                return send_reply(reply, self.set_upstream_key(&id, key));
            }
            Command::SaltUsage { reply } => return send_reply(reply, self.salt_usage()),
        }
        Ok(())
    }
}

/// The database, opened again if it must be.
fn open_if_closed<'a>(database: &'a mut Option<Database>, store: &FileStore) -> FileResult<&'a Database> {
    if database.is_none() {
        *database = Some(store.open_database().map_err(|error| redb::Error::Io(io::Error::other(error)))?);
    }
    Ok(database.as_ref().expect("it was opened just now"))
}

fn send_reply<T>(reply: ReplySender<T>, outcome: FileResult<T>) -> FileResult<()> {
    match outcome {
        Ok(value) => {
            let _ = reply.send(Ok(value));
            Ok(())
        }
        Err(error) => {
            let _ = reply.send(Err(Unavailable));
            Err(error)
        }
    }
}

/// What a value is sealed for: it cannot be moved to another name.
fn seal_context(kind: u8, name: &[u8; 16]) -> [u8; 17] {
    let mut place = [kind; 17];
    place[1..].copy_from_slice(name);
    place
}

/// When a token was last used, when it ends, and what is sealed.
fn split_value(value: &[u8]) -> Option<(Timestamp, Timestamp, &[u8])> {
    let (last_used, rest) = value.split_first_chunk()?;
    let (expires, sealed) = rest.split_first_chunk()?;
    Some((Timestamp(u64::from_be_bytes(*last_used)), Timestamp(u64::from_be_bytes(*expires)), sealed))
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}
