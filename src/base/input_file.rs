//! Reads the files that an operator names: configuration, secrets, certificates. It never blocks on a file that no
//! process writes, and does not know what the files contain.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::OFlags;
use zeroize::Zeroizing;

use crate::base::remedy::with_remedy;

/// Time for the process at the other end of a pipe, as in `--config <(command)`.
const PIPE_TIMEOUT: Duration = Duration::from_secs(5);

/// How often a pipe without data is read.
const PIPE_INTERVAL: Duration = Duration::from_millis(10);

/// Maximum number of bytes from a pipe.
const MAX_PIPE_BYTES: u64 = 16 << 20;

/// Reads a file that contains text. The error has a remedy if one is known.
pub fn read_text(path: &Path) -> io::Result<Zeroizing<String>> {
    let mut bytes = read(path)?;
    String::from_utf8(std::mem::take(&mut *bytes)).map(Zeroizing::new).map_err(|error| {
        drop(Zeroizing::new(error.into_bytes()));
        with_remedy(io::Error::new(ErrorKind::InvalidData, "stream did not contain valid UTF-8"))
    })
}

/// Reads a file. The error has a remedy if one is known.
pub fn read(path: &Path) -> io::Result<Zeroizing<Vec<u8>>> {
    read_within(path, PIPE_TIMEOUT).map_err(with_remedy)
}

/// Opens a regular file. The error has no remedy.
pub fn open_regular(path: &Path) -> io::Result<File> {
    if fs::metadata(path)?.is_file() { File::open(path) } else { Err(not_regular()) }
}

fn not_regular() -> io::Error {
    io::Error::new(ErrorKind::InvalidInput, "it is not a regular file; name a different file")
}

fn read_within(path: &Path, pipe_timeout: Duration) -> io::Result<Zeroizing<Vec<u8>>> {
    let metadata = fs::metadata(path)?;
    let kind = metadata.file_type();
    // Reading a folder fails with an error of its own. A device such as /dev/zero has no end.
    if !(kind.is_file() || kind.is_dir() || kind.is_fifo()) {
        return Err(not_regular());
    }
    if kind.is_fifo() {
        return read_pipe(path, pipe_timeout);
    }
    let mut file = File::open(path)?;
    // SECURITY: allocated once, because a buffer that grows leaves copies of a secret in memory.
    let mut bytes = Zeroizing::new(Vec::with_capacity(usize::try_from(metadata.len()).unwrap_or(0).saturating_add(1)));
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn read_pipe(path: &Path, timeout: Duration) -> io::Result<Zeroizing<Vec<u8>>> {
    // Without this flag, opening a pipe waits until a process opens its other end.
    let pipe = OpenOptions::new().read(true).custom_flags(OFlags::NONBLOCK.bits().cast_signed()).open(path)?;
    let deadline = Instant::now() + timeout;
    let mut bytes = Zeroizing::new(Vec::new());
    let mut limited = pipe.take(MAX_PIPE_BYTES);
    loop {
        match limited.read_to_end(&mut bytes) {
            Ok(_) if limited.limit() == 0 => {
                return Err(io::Error::new(ErrorKind::FileTooLarge, "the pipe has no end"));
            }
            Ok(_) if !bytes.is_empty() => return Ok(bytes),
            // No process has opened the other end yet.
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        if Instant::now() >= deadline {
            let message =
                format!("it is a pipe to which no process has written within {timeout:?}; name a regular file");
            return Err(io::Error::new(ErrorKind::TimedOut, message));
        }
        thread::sleep(PIPE_INTERVAL);
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn pipe(folder: &tempfile::TempDir) -> std::path::PathBuf {
        let path = folder.path().join("pipe");
        assert!(Command::new("mkfifo").arg(&path).status().expect("mkfifo").success());
        path
    }

    #[test]
    fn a_pipe_is_read_to_its_end() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = pipe(&folder);
        thread::scope(|scope| {
            scope.spawn(|| fs::write(&path, "x".repeat(200_000)).expect("written"));
            assert_eq!(*read_text(&path).expect("read"), "x".repeat(200_000));
        });
    }

    #[test]
    fn files_without_an_end_are_rejected() {
        let folder = tempfile::tempdir().expect("a folder");
        let error = read_within(&pipe(&folder), Duration::from_millis(50)).expect_err("silent").to_string();
        assert!(error.starts_with("it is a pipe") && error.ends_with("name a regular file"), "{error}");
        for path in ["/dev/zero", "/dev/tty0"].map(Path::new).into_iter().filter(|path| path.exists()) {
            let error = read(path).expect_err("a device").to_string();
            assert!(error.contains("not a regular file"), "{error}");
        }
        assert!(open_regular(&pipe(&tempfile::tempdir().expect("a folder"))).is_err());
        assert!(read(folder.path()).expect_err("a folder").to_string().contains("name a file, not a folder"));
    }
}
