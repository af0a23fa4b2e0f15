//! Joins a thread with a timeout, which the standard library does not support.

use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// Joins a thread that ends within `timeout`. Otherwise returns `None`, and the thread keeps running.
pub fn join_within<T>(thread: JoinHandle<T>, timeout: Duration) -> Option<thread::Result<T>> {
    let deadline = Instant::now() + timeout;
    while !thread.is_finished() {
        if Instant::now() >= deadline {
            return None;
        }
        thread::sleep(POLL_INTERVAL);
    }
    Some(thread.join())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stuck_thread_is_left_behind() {
        assert_eq!(join_within(thread::spawn(|| 1), Duration::from_secs(10)).map(Result::ok), Some(Some(1)));
        let stuck = thread::spawn(thread::park);
        let handle = stuck.thread().clone();
        assert!(join_within(stuck, Duration::from_millis(20)).is_none());
        handle.unpark();
    }
}
