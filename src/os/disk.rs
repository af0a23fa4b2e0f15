//! The space on a file system.

use std::io;
use std::path::Path;

/// The bytes that this process can still write to the file system of a folder.
pub fn free_space(folder: &Path) -> io::Result<u64> {
    let file_system = rustix::fs::statvfs(folder)?;
    Ok(file_system.f_bavail.saturating_mul(file_system.f_frsize))
}
