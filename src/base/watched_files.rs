//! Detects changes of files while the gateway runs.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use crate::base::clock;

/// Two writes within one clock tick of the file system leave the same timestamp, so a file younger than this is read
/// again.
const MIN_SETTLED_AGE: Duration = Duration::from_secs(2);

/// How often a failure that lasts is reported again.
const REMINDER_INTERVAL: Duration = Duration::from_secs(10 * 60);

/// Identifies one version of a file, after symbolic links are resolved: device, inode, size, mtime and ctime.
/// Kubernetes renews a secret by pointing a link (`..data`) to a new folder, which changes the inode.
type FileStamp = (u64, u64, u64, [i64; 4]);

/// The versions of some files at one moment.
#[derive(Clone)]
pub struct FileStamps {
    /// `None` if one of them cannot be accessed.
    files: Option<Vec<FileStamp>>,
    settled: bool,
}

/// Detects whether files have changed since they were last read successfully.
#[derive(Default)]
pub struct FileWatch {
    seen: Option<Vec<FileStamp>>,
    /// What the last call of [`FileWatch::changed_before`] has found.
    last_found: Option<FileStamps>,
    failure: Option<(String, Instant)>,
}

impl FileWatch {
    /// The current versions, if the files have to be read. Blocks on the file system.
    pub fn changed<'a>(&self, paths: impl Iterator<Item = &'a Path>) -> Option<FileStamps> {
        let stamps = FileStamps::capture(paths);
        let same = stamps.files.is_some() && stamps.files == self.seen;
        (!same).then_some(stamps)
    }

    /// As [`FileWatch::changed`], but only if the versions are those of the call before: a file that is being written may
    /// be valid half-way.
    pub fn changed_before<'a>(&mut self, paths: impl Iterator<Item = &'a Path>) -> Option<FileStamps> {
        let stamps = self.changed(paths)?;
        let last = self.last_found.replace(stamps.clone());
        last.is_some_and(|last| last.files == stamps.files).then_some(stamps)
    }

    /// Call this after the files were read successfully. `stamps` must have been taken before reading, so that a change
    /// during reading is detected. Returns true if they were failing before.
    pub fn record_success(&mut self, stamps: FileStamps) -> bool {
        self.seen = stamps.files.filter(|_| stamps.settled);
        self.failure.take().is_some()
    }

    /// Call this if the files cannot be used; they are read again next time. Returns true if the failure should be
    /// reported: it is new, or the last report is long ago.
    pub fn record_failure(&mut self, message: &str) -> bool {
        self.seen = None;
        let is_repeated = |(before, at): &(String, Instant)| before == message && at.elapsed() < REMINDER_INTERVAL;
        let is_new = !self.failure.as_ref().is_some_and(is_repeated);
        if is_new {
            self.failure = Some((message.to_owned(), Instant::now()));
        }
        is_new
    }

    /// Whether the last attempt to use the files failed.
    pub fn is_failing(&self) -> bool {
        self.failure.is_some()
    }

    /// Forces the next call of [`FileWatch::changed`] to return the files, and reports the next failure.
    pub fn reset(&mut self) {
        *self = FileWatch::default();
    }
}

impl FileStamps {
    /// Whether the last change is long enough ago that nothing is likely to be writing the files.
    pub fn is_settled(&self) -> bool {
        self.settled
    }

    fn capture<'a>(paths: impl Iterator<Item = &'a Path>) -> FileStamps {
        let files: Option<Vec<_>> = paths.map(read_stamp).collect();
        let now = clock::since_epoch(SystemTime::now());
        let limit = i64::try_from(now.saturating_sub(MIN_SETTLED_AGE).as_secs()).unwrap_or(i64::MAX);
        let settled = files.iter().flatten().all(|(_, _, _, [_, _, changed, _])| *changed < limit);
        FileStamps { files, settled }
    }
}

fn read_stamp(path: &Path) -> Option<FileStamp> {
    let data = std::fs::metadata(path).ok()?;
    let times = [data.mtime(), data.mtime_nsec(), data.ctime(), data.ctime_nsec()];
    Some((data.dev(), data.ino(), data.size(), times))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recent_files_and_replaced_links_are_read_again() {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name);
        std::fs::write(at("one"), "1").expect("written");
        std::fs::write(at("two"), "2").expect("written");
        std::os::unix::fs::symlink(at("one"), at("link")).expect("linked");
        let link = at("link");
        let mut watch = FileWatch::default();
        let stamps = watch.changed([&*link].into_iter()).expect("never read");
        assert!(!stamps.settled);
        watch.record_success(stamps);
        let stamps = watch.changed([&*link].into_iter()).expect("it is young");
        watch.record_success(FileStamps { settled: true, ..stamps });
        assert!(watch.changed([&*link].into_iter()).is_none());
        std::fs::remove_file(&link).expect("removed");
        assert!(watch.changed([&*link].into_iter()).is_some(), "it cannot be looked at");
        std::os::unix::fs::symlink(at("two"), &link).expect("linked");
        assert!(watch.changed([&*link].into_iter()).is_some());
    }

    #[test]
    fn a_file_that_is_being_written_is_not_read() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("file");
        let mut watch = FileWatch::default();
        let mut is_read = |content: Option<&str>| {
            if let Some(content) = content {
                std::fs::write(&path, content).expect("written");
            }
            watch.changed_before([&*path].into_iter()).is_some()
        };
        assert!(!is_read(Some("one")) && !is_read(Some("one, two")) && is_read(None));
        assert!(!is_read(Some("three")) && is_read(None));
    }

    #[test]
    fn a_lasting_failure_is_reported_once() {
        let mut watch = FileWatch::default();
        assert!(
            watch.record_failure("a") && !watch.record_failure("a") && watch.record_failure("b") && watch.is_failing()
        );
        watch.reset();
        assert!(watch.record_failure("b"));
        let stamps = FileStamps { files: None, settled: true };
        assert!(watch.record_success(stamps) && !watch.is_failing());
    }
}
