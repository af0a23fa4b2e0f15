//! How much memory is used, and how much there is: the limit of the control group (cgroup v1 or v2), as containers and
//! services have one. It knows nothing about what uses it.

use std::fs;
use std::path::{Path, PathBuf};

/// Part of the control group's limit that is used by default. The rest is for what grows between two readings, such as
/// the buffers of sockets.
const DEFAULT_PERCENT: u64 = 85;

/// A limit of at least this size means that there is none.
const UNLIMITED: u64 = 1 << 60;

/// The files of a memory controller.
struct Controller {
    /// Where its control groups are.
    mount: &'static str,
    /// The line of `/proc/self/cgroup` has this between the colons.
    name: &'static str,
    limit: &'static str,
    usage: &'static str,
    /// The key in `memory.stat` of files in memory, which the kernel drops when it needs memory.
    cache: &'static str,
}

const CONTROLLERS: [Controller; 2] = [
    Controller { mount: "/sys/fs/cgroup", name: "", limit: "memory.max", usage: "memory.current", cache: "file" },
    Controller {
        mount: "/sys/fs/cgroup/memory",
        name: "memory",
        limit: "memory.limit_in_bytes",
        usage: "memory.usage_in_bytes",
        cache: "total_cache",
    },
];

/// Where the memory in use is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemoryUsage {
    /// The memory of this process, where no control group limits it.
    Process,
    /// The memory of a control group, with that of the kernel for its sockets.
    ControlGroup {
        /// Its folder.
        folder: PathBuf,
        /// The file with the bytes in use.
        usage: &'static str,
        /// The key in `memory.stat` of what does not count.
        cache: &'static str,
    },
}

impl MemoryUsage {
    /// Finds the control group that limits this process most, and the limit to use by default.
    pub fn detect() -> (MemoryUsage, Option<u64>) {
        let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let found =
            CONTROLLERS.iter().find_map(|controller| find_limit(controller, Path::new(controller.mount), &groups));
        match found {
            Some((limit, usage)) => (usage, Some(limit / 100 * DEFAULT_PERCENT)),
            None => (MemoryUsage::Process, None),
        }
    }

    /// The bytes in use; `None` if they cannot be read.
    pub fn read(&self) -> Option<u64> {
        match self {
            MemoryUsage::Process => {
                let pages: u64 = fs::read_to_string("/proc/self/statm").ok()?.split(' ').nth(1)?.parse().ok()?;
                Some(pages * rustix::param::page_size() as u64)
            }
            MemoryUsage::ControlGroup { folder, usage, cache } => {
                let used = read_number(&folder.join(usage))?;
                let cached = fs::read_to_string(folder.join("memory.stat")).ok().and_then(|stat| {
                    let line = stat.lines().find_map(|line| line.strip_prefix(cache)?.strip_prefix(' '));
                    line?.parse::<u64>().ok()
                });
                Some(used.saturating_sub(cached.unwrap_or_default()))
            }
        }
    }
}

/// The lowest limit among the control group of this process and the groups around it. In a container its folder may be
/// visible as the mount itself only.
fn find_limit(controller: &Controller, mount: &Path, groups: &str) -> Option<(u64, MemoryUsage)> {
    let path = groups.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        parts.next()?.split(',').any(|name| name == controller.name).then(|| parts.next()).flatten()
    })?;
    let own = mount.join(path.trim_start_matches('/'));
    let folders = own.ancestors().take_while(|folder| folder.starts_with(mount));
    let limits = folders.filter_map(|folder| {
        let limit = read_number(&folder.join(controller.limit)).filter(|limit| *limit < UNLIMITED)?;
        let folder = folder.to_owned();
        Some((limit, MemoryUsage::ControlGroup { folder, usage: controller.usage, cache: controller.cache }))
    });
    limits.min_by_key(|(limit, _)| *limit)
}

fn read_number(file: &Path) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Compared with what the kernel says in a different unit: other tests change the memory all the time.
    #[test]
    fn the_memory_of_the_process_is_read() {
        let resident = || {
            let status = fs::read_to_string("/proc/self/status").expect("there is /proc");
            let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("it has memory");
            line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10
        };
        let is_between = || {
            let before = resident();
            let read = MemoryUsage::Process.read().expect("there is /proc");
            let after = resident();
            (before.min(after).saturating_sub(1 << 20)..=before.max(after) + (1 << 20)).contains(&read)
        };
        assert!((0..1000).any(|_| is_between()), "{:?} is not {}", MemoryUsage::Process.read(), resident());
    }

    #[test]
    fn the_lowest_limit_around_the_process_counts() {
        let mount = tempfile::tempdir().expect("a folder");
        let folder = |path: &str| mount.path().join(path);
        fs::create_dir_all(folder("pods/one")).expect("made");
        let write = |path: &str, text: &str| fs::write(folder(path), text).expect("written");
        let find = |controller: usize, groups: &str| find_limit(&CONTROLLERS[controller], mount.path(), groups);
        write("pods/one/memory.max", "max\n");
        write("pods/memory.max", "536870912\n");
        write("memory.max", "1073741824\n");
        let (limit, usage) = find(0, "12:cpu:/\n0::/pods/one\n").expect("a limit");
        let MemoryUsage::ControlGroup { folder: found, .. } = &usage else { panic!("{usage:?}") };
        assert_eq!((limit, found), (536_870_912, &folder("pods")));
        write("pods/memory.current", "100000\n");
        write("pods/memory.stat", "anon 70000\nfile 20000\nfile_mapped 5\n");
        assert_eq!(usage.read(), Some(80_000));
        // A folder of the host that the container does not see.
        assert_eq!(find(0, "0::/elsewhere/two\n").expect("the mount's").0, 1_073_741_824);
        assert_eq!(find(1, "4:cpu,memory:/\n"), None);
        write("memory.limit_in_bytes", "9223372036854771712\n");
        assert_eq!(find(1, "4:cpu,memory:/\n"), None, "no limit");
        write("memory.limit_in_bytes", "1000\n");
        assert_eq!(find(1, "4:cpu,memory:/\n").expect("a limit").0, 1000);
    }
}
