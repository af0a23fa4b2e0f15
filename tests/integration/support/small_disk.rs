//! A file system that can be filled.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// A file system of some MiB for the duration of the test. A process holds it in its own mount namespace, so the test
/// does not need root.
pub struct SmallDisk {
    holder: Child,
    folder: tempfile::TempDir,
}

impl SmallDisk {
    pub fn mount(mebibytes: u32) -> SmallDisk {
        let folder = tempfile::tempdir().expect("a folder");
        // Root needs no user namespace, which a system may forbid.
        let script = r#"export PATH=/usr/sbin:/usr/bin:/sbin:/bin; map=-rm; [ "$(id -u)" != 0 ] || map=-m
            exec unshare $map /bin/sh -c 'mount -t tmpfs -o size="$1"m tmpfs "$0" && echo mounted && exec cat' "$0" "$1""#;
        let mut holder = Command::new("/bin/sh")
            .args(["-c", script])
            .arg(folder.path())
            .arg(mebibytes.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("there is a shell");
        let mut told = String::new();
        let output = holder.stdout.take().expect("piped");
        BufReader::new(output).read_line(&mut told).expect("read");
        assert_eq!(told, "mounted\n", "a small tmpfs cannot be mounted here: user namespaces, or root, are needed");
        SmallDisk { holder, folder }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        let folder = self.folder.path().strip_prefix("/").expect("it is absolute");
        Path::new("/proc").join(self.holder.id().to_string()).join("root").join(folder).join(name)
    }

    /// Leaves no space.
    pub fn fill(&self) {
        let mut file = File::create(self.path("filler")).expect("created");
        for size in [64 << 10, 4096, 1] {
            let part = vec![0; size];
            let error = loop {
                if let Err(error) = file.write_all(&part) {
                    break error;
                }
            };
            assert_eq!(error.kind(), ErrorKind::StorageFull);
        }
    }

    /// Frees the space again.
    pub fn free(&self) {
        fs::remove_file(self.path("filler")).expect("removed");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}
