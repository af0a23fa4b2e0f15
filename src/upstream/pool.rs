//! Idle connections of one worker thread to one address, the most recently used on top.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use bytes::BytesMut;

use crate::upstream::connection::UpstreamConnection;

/// A connection that was idle for longer is looked at by the kernel before it is used again; below, the event loop
/// has just seen it alive.
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

    /// A connection that can be reused, if there is one. `now` is when it is to be used.
    pub fn take_connection(&self, now: Instant) -> Option<Box<UpstreamConnection>> {
        loop {
            let IdleConnection { mut connection, since } = self.idle.borrow_mut().pop()?;
            let age = now.saturating_duration_since(since);
            if age < self.idle_timeout && connection.is_quiet(age >= KERNEL_CHECK_AFTER) {
                return Some(connection);
            }
        }
    }

    /// Takes back a connection on which one request was sent whole and one answer read whole.
    ///
    /// SECURITY: bytes behind an answer belong to nobody's request; such a connection is never used again.
    pub fn return_connection(&self, mut connection: Box<UpstreamConnection>) {
        if connection.unread.is_empty() {
            // What waits owns no memory.
            connection.unread = BytesMut::new();
            self.idle.borrow_mut().push(IdleConnection { connection, since: Instant::now() });
        }
    }

    /// Closes all.
    pub fn clear(&self) {
        self.idle.borrow_mut().clear();
    }

    /// Closes what idled too long or was closed by the backend.
    pub fn close_expired(&self) {
        let fresh = |idle: &mut IdleConnection| {
            idle.since.elapsed() < self.idle_timeout && idle.connection.is_quiet(false)
        };
        self.idle.borrow_mut().retain_mut(fresh);
    }
}
