//! How many files and sockets the process may have open.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::os::splice::MOST_PIPES;

/// Kept back for listeners, the log, files that are read anew, name lookups and idle upstream connections, and for pipes.
const RESERVE: u64 = 64 + 2 * MOST_PIPES as u64;

/// Raises the limit as far as it goes, and says how many clients can be connected at once then.
///
/// Each may need a second descriptor, for the connection to the backend. Whoever takes in more clients than that
/// leaves those who are in without an answer.
pub fn most_clients() -> usize {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let current = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(_) => limit.current,
    };
    clients(current)
}

fn clients(descriptors: Option<u64>) -> usize {
    let Some(descriptors) = descriptors else { return usize::MAX };
    usize::try_from(descriptors.saturating_sub(RESERVE) / 2).unwrap_or(usize::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_client_may_need_two() {
        assert_eq!(clients(Some(256)), 64);
        assert_eq!(clients(Some(1024)), 448);
        assert_eq!(clients(Some(10)), 1);
        assert_eq!(clients(None), usize::MAX);
    }

    #[test]
    fn the_limit_is_raised() {
        let most = most_clients();
        let limit = getrlimit(Resource::Nofile);
        assert_eq!(limit.current, limit.maximum);
        assert_eq!(most, clients(limit.maximum));
    }
}
