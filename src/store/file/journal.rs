//! A small file next to the token file, for revocations while the disk is full. Its blocks are reserved at start, so
//! that they can be written then.
//!
//! Entries are sealed, each after its length in two bytes. A length of zero ends the list.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The size of the file. A revocation has about 100 bytes.
const SIZE: usize = 64 * 1024;

/// An open journal.
pub struct RevocationJournal {
    file: File,
    /// Where the next entry begins.
    end: usize,
}

impl RevocationJournal {
    /// Opens or creates the journal of this token file, and returns its entries.
    pub fn open(token_file: &Path) -> io::Result<(RevocationJournal, Vec<Vec<u8>>)> {
        let mut path = token_file.as_os_str().to_owned();
        path.push(".revoked");
        let path = PathBuf::from(path);
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
        let mut content = vec![0; SIZE];
        let length = usize::try_from(file.metadata()?.len()).unwrap_or(SIZE).min(SIZE);
        file.read_exact_at(&mut content[..length], 0)?;
        if length < SIZE {
            // Written, not only extended: a hole would need space later.
            file.write_all_at(&content, 0)?;
            file.sync_all()?;
        }
        let (entries, end) = parse(&content);
        Ok((RevocationJournal { file, end }, entries))
    }

    /// Appends an entry, and waits for the disk.
    pub fn append(&mut self, entry: &[u8]) -> io::Result<()> {
        let length = u16::try_from(entry.len()).map_err(io::Error::other)?;
        // The entry, and the zero after it.
        let bytes = [&length.to_be_bytes()[..], entry, &[0; 2]].concat();
        if self.end + bytes.len() > SIZE {
            return Err(io::Error::new(io::ErrorKind::StorageFull, "the journal of revocations is full"));
        }
        self.file.write_all_at(&bytes, u64::try_from(self.end).map_err(io::Error::other)?)?;
        self.file.sync_data()?;
        self.end += bytes.len() - 2;
        Ok(())
    }

    /// Removes all entries: the token file has them now.
    pub fn clear(&mut self) -> io::Result<()> {
        if self.end > 0 {
            self.file.write_all_at(&[0; 2], 0)?;
            self.file.sync_data()?;
            self.end = 0;
        }
        Ok(())
    }
}

/// The entries, and where the next one begins.
fn parse(content: &[u8]) -> (Vec<Vec<u8>>, usize) {
    let (mut entries, mut end) = (Vec::new(), 0);
    while let Some(length) = content[end..].first_chunk::<2>().map(|bytes| usize::from(u16::from_be_bytes(*bytes)))
        && length > 0
        && let Some(entry) = content.get(end + 2..end + 2 + length)
    {
        entries.push(entry.to_vec());
        end += 2 + length;
    }
    (entries, end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_survive_until_they_are_cleared() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("tokens");
        let open = || RevocationJournal::open(&path).expect("opened");
        assert!(open().1.is_empty());
        for entry in [&b"one"[..], b"two"] {
            open().0.append(entry).expect("written");
        }
        let (mut journal, entries) = open();
        assert_eq!(entries, [b"one", b"two"]);
        journal.clear().expect("written");
        assert!(open().1.is_empty());
        journal.append(b"x").expect("written");
        assert_eq!(open().1, [b"x"]);
        let large = vec![7; 1000];
        let count = (0..100).take_while(|_| journal.append(&large).is_ok()).count();
        assert_eq!(count, 65, "it never grows");
        assert_eq!(open().1.len(), 66);
        assert_eq!(std::fs::metadata(folder.path().join("tokens.revoked")).expect("there").len(), SIZE as u64);
    }
}
