//! The idle connections of one worker thread to one endpoint, last in, first out. It knows nothing about requests.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use bytes::BytesMut;

use crate::upstream::connection::{IdleCheck, UpstreamConnection};

/// A connection that was idle for longer is checked with a system call before it is reused; below, the event loop has
/// just polled it.
const KERNEL_CHECK_AFTER: Duration = Duration::from_millis(50);

pub struct ConnectionPool {
    idle: RefCell<Vec<IdleConnection>>,
    idle_timeout: Duration,
}

struct IdleConnection {
    connection: Box<UpstreamConnection>,
    since: Instant,
}

impl ConnectionPool {
    pub fn new(idle_timeout: Duration) -> ConnectionPool {
        ConnectionPool { idle: RefCell::default(), idle_timeout }
    }

    /// Takes a connection that can be reused. `now` is the current time.
    pub fn take_connection(&self, now: Instant) -> Option<Box<UpstreamConnection>> {
        loop {
            let IdleConnection { mut connection, since } = self.idle.borrow_mut().pop()?;
            let age = now.saturating_duration_since(since);
            let check = if age >= KERNEL_CHECK_AFTER { IdleCheck::Kernel } else { IdleCheck::EventLoop };
            if age < self.idle_timeout.min(connection.max_idle) && connection.is_quiet(check) {
                return Some(connection);
            }
        }
    }

    /// Adds a connection on which one request was sent completely and one response was read completely.
    ///
    /// SECURITY: bytes after the end of a response belong to no request; such a connection is never reused.
    pub fn return_connection(&self, mut connection: Box<UpstreamConnection>) {
        if connection.unread.is_empty() {
            // An idle connection holds no buffer.
            connection.unread = BytesMut::new();
            self.idle.borrow_mut().push(IdleConnection { connection, since: Instant::now() });
        }
    }

    /// Closes all idle connections.
    pub fn clear(&self) {
        self.idle.borrow_mut().clear();
    }

    /// Closes connections that exceeded the idle timeout or were closed by the backend.
    pub fn close_expired(&self) {
        let is_usable = |idle: &mut IdleConnection| {
            idle.since.elapsed() < self.idle_timeout.min(idle.connection.max_idle)
                && idle.connection.is_quiet(IdleCheck::EventLoop)
        };
        self.idle.borrow_mut().retain_mut(is_usable);
    }
}
