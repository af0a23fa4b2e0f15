//! A file that lines are appended to, and its rotation: by size, or by a program that renames it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use tracing::{error, info, warn};

use crate::base::remedy::with_remedy;

/// Readable for the group, such as that of a log shipper.
const MODE: u32 = 0o640;

/// An open file. Before a line is written, it is opened again if a different program has renamed or removed it, as
/// logrotate does before it sends SIGHUP.
pub struct RotatingFile {
    path: PathBuf,
    file: File,
    size: u64,
    /// 0: no limit.
    max_size: u64,
    keep: usize,
    /// Whether a flush writes to the disk.
    is_durable: bool,
    is_inside_line: bool,
    /// Whether the last write succeeded, and no flush has failed since.
    is_written: bool,
    /// Whether a failure was logged, and not yet its end.
    is_failing: bool,
}

impl RotatingFile {
    /// Opens or creates the file. When it would exceed `max_size` (0: no limit), it is renamed to `path.1`, that one to
    /// `path.2`, and so on; `keep` renamed files are kept. `is_durable`: lines are on the disk when they are confirmed.
    pub fn open(path: &Path, max_size: u64, keep: usize, is_durable: bool) -> io::Result<RotatingFile> {
        let file = open(path)?;
        let size = file.metadata()?.len();
        Ok(RotatingFile {
            path: path.to_owned(),
            file,
            size,
            max_size,
            keep,
            is_durable,
            is_inside_line: false,
            is_written: false,
            is_failing: false,
        })
    }

    /// Logs the first of several failures.
    fn fail(&mut self, error: io::Error) -> io::Error {
        let error = with_remedy(error);
        self.is_written = false;
        if !std::mem::replace(&mut self.is_failing, true) {
            let path = self.path.display();
            error!("cannot write to the audit log {path}: {error}. Its lines are lost until it can be written");
        }
        error
    }

    fn write_lines(&mut self, lines: &[u8]) -> io::Result<usize> {
        if !self.is_inside_line {
            self.prepare(lines.len())?;
        }
        let count = self.file.write(lines)?;
        self.size += u64::try_from(count).unwrap_or(u64::MAX);
        if let Some(last) = lines[..count].last() {
            self.is_inside_line = *last != b'\n';
        }
        Ok(count)
    }

    fn prepare(&mut self, length: usize) -> io::Result<()> {
        let own = self.file.metadata()?;
        if !fs::metadata(&self.path).is_ok_and(|named| (named.dev(), named.ino()) == (own.dev(), own.ino())) {
            self.reopen()?;
        }
        let length = u64::try_from(length).unwrap_or(u64::MAX);
        if self.max_size > 0 && self.size > 0 && self.size.saturating_add(length) > self.max_size {
            match self.rename() {
                Ok(()) => self.reopen()?,
                // Lines in a file that is too large are better than none.
                Err(error) => warn!(path = %self.path.display(), %error, "cannot rotate the audit log"),
            }
        }
        Ok(())
    }

    fn reopen(&mut self) -> io::Result<()> {
        self.file = open(&self.path)?;
        self.size = self.file.metadata()?.len();
        Ok(())
    }

    fn rename(&self) -> io::Result<()> {
        for number in (1..self.keep).rev() {
            match fs::rename(self.numbered(number), self.numbered(number + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        fs::rename(&self.path, self.numbered(1))
    }

    fn numbered(&self, number: usize) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(format!(".{number}"));
        name.into()
    }
}

fn open(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().append(true).create(true).mode(MODE).open(path)?;
    if file.metadata()?.is_file() {
        return Ok(file);
    }
    Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"))
}

impl Write for RotatingFile {
    fn write(&mut self, lines: &[u8]) -> io::Result<usize> {
        match self.write_lines(lines) {
            // The caller repeats the write.
            Err(error) if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => Err(error),
            Err(error) => Err(self.fail(error)),
            Ok(count) => {
                self.is_written = true;
                Ok(count)
            }
        }
    }

    /// Logs the end of the failures: a disk may accept lines that it cannot store, or the beginning of a line only.
    fn flush(&mut self) -> io::Result<()> {
        if self.is_durable {
            self.file.sync_data().map_err(|error| self.fail(error))?;
        }
        if self.is_failing && self.is_written {
            self.is_failing = false;
            info!("the audit log {} can be written again", self.path.display());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsRawFd, OwnedFd};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_file_is_rotated_by_size_and_a_number_of_files_is_kept() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("audit");
        let read = |name: &str| fs::read_to_string(folder.path().join(name)).ok();
        let mut file = RotatingFile::open(&path, 8, 2, true).expect("opened");
        for line in ["one\n", "two\n", "three\n", "four\n", "a long line\n"] {
            assert_eq!(file.write(line.as_bytes()).expect("written"), line.len());
        }
        file.flush().expect("synced");
        assert_eq!(read("audit").as_deref(), Some("a long line\n"));
        assert_eq!(read("audit.1").as_deref(), Some("four\n"));
        assert_eq!(read("audit.2").as_deref(), Some("three\n"));
        assert_eq!(read("audit.3"), None);
        drop(file);
        let mut file = RotatingFile::open(&path, 8, 2, false).expect("opened");
        file.write_all(b"x\n").expect("written");
        assert_eq!((read("audit").as_deref(), read("audit.1").as_deref()), (Some("x\n"), Some("a long line\n")));
    }

    #[test]
    fn a_renamed_or_removed_file_is_opened_again() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("audit");
        let mut file = RotatingFile::open(&path, 0, 1, false).expect("opened");
        file.write_all(b"one\n").expect("written");
        fs::rename(&path, folder.path().join("old")).expect("renamed");
        file.write_all(b"two\n").expect("written");
        assert_eq!(fs::read_to_string(&path).expect("read"), "two\n");
        fs::remove_file(&path).expect("removed");
        file.write_all(b"three\n").expect("written");
        assert_eq!(fs::read_to_string(&path).expect("read"), "three\n");
        assert_eq!(fs::read_to_string(folder.path().join("old")).expect("read"), "one\n");
    }

    #[test]
    fn failures_end_with_a_flush_after_a_write_that_succeeded() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut file = RotatingFile::open(&folder.path().join("audit"), 0, 1, true).expect("opened");
        let replace = |file: &mut RotatingFile, path: &Path| {
            file.path = path.to_owned();
            file.file = OpenOptions::new().append(true).open(path).expect("opened");
        };
        let real = file.path.clone();
        // It accepts each write, and cannot be synced.
        replace(&mut file, Path::new("/dev/null"));
        for _ in 0..2 {
            file.write_all(b"one\n").expect("written");
            file.flush().expect_err("not synced");
            assert!(file.is_failing);
            file.write_all(b"two\n").expect("written");
            assert!(file.is_failing, "a write is not a recovery");
        }
        file.flush().expect_err("not synced");
        replace(&mut file, &real);
        file.flush().expect("synced");
        assert!(file.is_failing, "what the failed flush did not store is lost");
        file.write_all(b"three\n").expect("written");
        file.flush().expect("synced");
        assert!(!file.is_failing);
        // It is full.
        replace(&mut file, Path::new("/dev/full"));
        file.is_durable = false;
        file.write_all(b"four\n").expect_err("not written");
        file.flush().expect("nothing to do");
        assert!(file.is_failing, "a flush after a write that failed is not a recovery");
    }

    #[test]
    fn a_write_that_is_repeated_is_no_failure() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut file = RotatingFile::open(&folder.path().join("audit"), 0, 1, false).expect("opened");
        let (output, _reader) = UnixStream::pair().expect("sockets");
        output.set_nonblocking(true).expect("set");
        file.path = format!("/proc/self/fd/{}", output.as_raw_fd()).into();
        file.file = File::from(OwnedFd::from(output));
        let error = std::iter::repeat_with(|| file.write(&[b'\n'; 4096])).find_map(Result::err).expect("it is full");
        assert_eq!((error.kind(), file.is_failing), (io::ErrorKind::WouldBlock, false));
    }
}
