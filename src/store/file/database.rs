//! The database in the token file. It knows its tables, but not what their values contain.

use std::fmt;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use redb::backends::FileBackend;
use redb::{
    Database, DatabaseError, ReadTransaction, ReadableDatabase, StorageError, Table, TableDefinition, WriteTransaction,
};

use crate::base::remedy::with_remedy;

/// By the name of a token: its last use, its expiry, and the sealed token; see [`super::entries::split_value`].
pub(super) const TOKENS: TableDefinition<'_, &[u8; 16], &[u8]> = TableDefinition::new("tokens 2");
/// By the name of a login: the token that it receives, sealed.
pub(super) const LOGINS: TableDefinition<'_, &[u8; 16], &[u8]> = TableDefinition::new("logins 2");
/// By the name of a mark: a revocation, or an entry of the deny list, with its time, sealed.
pub(super) const MARKS: TableDefinition<'_, &[u8; 16], &[u8]> = TableDefinition::new("denied 1");
/// By the name of a salt and the pseudonym of a user: the last use.
pub(super) const SALTS: TableDefinition<'_, (&str, &[u8; 16]), u64> = TableDefinition::new("salts 1");

/// Written after a failure, to find out whether the disk has space for a token again.
pub(super) const PROBE: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("probe");

/// Tables of earlier versions, whose values cannot be read any more.
pub(super) const OLD_TABLES: [TableDefinition<'_, &[u8; 16], &[u8]>; 2] =
    [TableDefinition::new("tokens 1"), TableDefinition::new("logins 1")];

/// The database's cache for pages of the file, in bytes.
const PAGE_CACHE_BYTES: usize = 16 * 1024 * 1024;

pub(super) type FileResult<T> = Result<T, redb::Error>;

/// A table of sealed values by name.
pub(super) type SealedTable<'a> = Table<'a, &'static [u8; 16], &'static [u8]>;

/// The database of a token file. After an error it must be closed; its next use opens it again.
pub(super) struct TokenDatabase {
    pub(super) path: PathBuf,
    /// `None` while it is closed.
    pub(super) opened: Option<Database>,
    /// The number of successful commits.
    pub(super) commits: u64,
}

impl TokenDatabase {
    /// Opens or creates the file. The error is a message for operators.
    pub(super) fn open(path: PathBuf) -> Result<TokenDatabase, String> {
        let opened = Some(open(&path)?);
        Ok(TokenDatabase { path, opened, commits: 0 })
    }

    pub(super) fn begin_read(&mut self) -> FileResult<ReadTransaction> {
        Ok(self.database()?.begin_read()?)
    }

    /// Makes these changes in one transaction, and waits for the disk.
    pub(super) fn write<T>(&mut self, change: impl FnOnce(&WriteTransaction) -> FileResult<T>) -> FileResult<T> {
        let transaction = self.database()?.begin_write()?;
        let result = change(&transaction)?;
        transaction.commit()?;
        self.commits += 1;
        Ok(result)
    }

    fn database(&mut self) -> FileResult<&Database> {
        if self.opened.is_none() {
            self.opened = Some(open(&self.path).map_err(|error| redb::Error::Io(io::Error::other(error)))?);
        }
        Ok(self.opened.as_ref().expect("it was opened just now"))
    }
}

fn open(path: &Path) -> Result<Database, String> {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path);
    let file = file.map_err(|error| format!("cannot open {}: {}", path.display(), with_remedy(error)))?;
    let mode = file.metadata().map_or(0, |metadata| metadata.mode()) & 0o777;
    if mode & 0o077 != 0 {
        // SECURITY: the values are sealed, but the file still reveals how many users there are and when they log in.
        let path = path.display();
        return Err(format!("{path} is accessible to other users (mode {mode:04o}); run `chmod 600 {path}`"));
    }
    FileBackend::new(file)
        .and_then(|backend| Database::builder().set_cache_size(PAGE_CACHE_BYTES).create_with_backend(backend))
        .map_err(|error| open_error(path, error))
}

fn open_error(path: &Path, error: DatabaseError) -> String {
    let path = path.display();
    let damaged = |error: &dyn fmt::Display| {
        format!(
            "{path} is not a token file, or it is damaged: {error}. Name a different file, or move this one away; \
             users then have to log in again"
        )
    };
    match error {
        DatabaseError::DatabaseAlreadyOpen => {
            format!("{path} is in use by another process; use a separate file for each gateway, or share a Redis")
        }
        DatabaseError::Storage(StorageError::Corrupted(error)) => damaged(&error),
        DatabaseError::Storage(StorageError::Io(error)) if error.kind() == io::ErrorKind::InvalidData => {
            damaged(&error)
        }
        DatabaseError::Storage(StorageError::Io(error)) => format!("cannot use {path}: {}", with_remedy(error)),
        other => format!("cannot use {path}: {other}"),
    }
}
