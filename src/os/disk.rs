//! Files that grow: whether they can be written, and the space that is left for them.

use std::fs::{self, OpenOptions};
use std::io;
use std::path::Path;

use rustix::fs::{Access, access};

/// Whether this process can write to the file, or create it. Creates and changes nothing.
pub fn check_writable(path: &Path) -> io::Result<()> {
    match fs::metadata(path) {
        Ok(file) if file.is_file() => OpenOptions::new().append(true).open(path).map(drop),
        Ok(_) => Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file; name a different file")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            access(folder_of(path), Access::WRITE_OK | Access::EXEC_OK).map_err(io::Error::from)
        }
        Err(error) => Err(error),
    }
}

/// The bytes that this process can still write to the file system of a file.
pub fn free_space(path: &Path) -> io::Result<u64> {
    let file_system = rustix::fs::statvfs(folder_of(path))?;
    Ok(file_system.f_bavail.saturating_mul(file_system.f_frsize))
}

/// The folder of a file.
pub fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_or_its_folder_must_be_writable() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name);
        fs::write(path("file"), "x").expect("written");
        assert!(check_writable(&path("file")).is_ok());
        assert!(check_writable(&path("new")).is_ok() && !path("new").exists());
        let kind = |name: &str| check_writable(&path(name)).expect_err(name).kind();
        assert_eq!(kind("missing/file"), io::ErrorKind::NotFound);
        assert_eq!(kind("file/file"), io::ErrorKind::NotADirectory);
        assert_eq!(kind(""), io::ErrorKind::InvalidInput);
        assert_eq!(fs::read(path("file")).expect("read"), b"x");
    }
}
