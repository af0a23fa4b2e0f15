//! The limit on open files and sockets. It knows nothing about what uses them, except how many descriptors a client may
//! need.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::os::splice::MAX_PIPES;

/// Reserved for listeners, the log, reloaded files, name resolution, idle upstream connections, and pipes.
const RESERVED_DESCRIPTORS: u64 = 64 + 2 * MAX_PIPES as u64;

/// Raises the soft limit to the hard limit, and returns how many clients can be connected at the same time.
///
/// Each client may need a second descriptor, for the connection to the backend. With more clients than that, requests
/// of connected clients would fail.
pub fn raise_to_max() -> usize {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let current = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(_) => limit.current,
    };
    max_clients(current)
}

fn max_clients(descriptors: Option<u64>) -> usize {
    let Some(descriptors) = descriptors else { return usize::MAX };
    usize::try_from(descriptors.saturating_sub(RESERVED_DESCRIPTORS) / 2).unwrap_or(usize::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_client_may_need_two_descriptors() {
        assert_eq!(max_clients(Some(256)), 64);
        assert_eq!(max_clients(Some(1024)), 448);
        assert_eq!(max_clients(Some(10)), 1);
        assert_eq!(max_clients(None), usize::MAX);
    }

    #[test]
    fn the_limit_is_raised() {
        let clients = raise_to_max();
        let limit = getrlimit(Resource::Nofile);
        assert_eq!(limit.current, limit.maximum);
        assert_eq!(clients, max_clients(limit.maximum));
    }
}
