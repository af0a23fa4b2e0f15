//! Idle connections of one worker thread, the most recently used on top.

use std::cell::RefCell;
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};

use hyper::client::conn::http1::SendRequest;
use tokio::time::timeout;

use crate::upstream::body::RequestBody;
use crate::upstream::connect::Connection;

/// A connection that was idle for longer is looked at by the kernel before it is used again; below, the event loop
/// has just seen it alive.
const TRUSTED_IDLE: Duration = Duration::from_millis(50);

/// How long a connection may take to come to rest after the last byte of an answer was read.
const SETTLE: Duration = Duration::from_secs(1);

pub struct Pool {
    idle: RefCell<Vec<Idle>>,
    idle_timeout: Duration,
}

struct Idle {
    connection: Connection,
    since: Instant,
}

impl Pool {
    pub fn new(idle_timeout: Duration) -> Pool {
        Pool { idle: RefCell::default(), idle_timeout }
    }

    /// A connection that can be reused, if there is one.
    pub fn take(self: &Rc<Pool>) -> Option<Lease> {
        loop {
            let Idle { connection, since } = self.idle.borrow_mut().pop()?;
            if self.is_usable(&connection, since) {
                return Some(self.lease(connection));
            }
        }
    }

    /// Takes charge of a connection that is in use.
    pub fn lease(self: &Rc<Pool>, connection: Connection) -> Lease {
        Lease { connection: Some(connection), pool: Rc::downgrade(self) }
    }

    /// Closes what idled too long or was closed by the backend.
    pub fn sweep(&self) {
        let fresh =
            |idle: &Idle| idle.since.elapsed() < self.idle_timeout && !idle.connection.sender.is_closed();
        self.idle.borrow_mut().retain(fresh);
    }

    fn is_usable(&self, connection: &Connection, since: Instant) -> bool {
        let age = since.elapsed();
        age < self.idle_timeout
            && connection.sender.is_ready()
            && (age < TRUSTED_IDLE || connection.socket.is_quiet(connection.encrypted))
    }

    fn put(&self, connection: Connection) {
        self.idle.borrow_mut().push(Idle { connection, since: Instant::now() });
    }
}

/// A connection in use. Dropped, it is closed; [`Lease::release`] gives it back.
pub struct Lease {
    connection: Option<Connection>,
    pool: Weak<Pool>,
}

impl Lease {
    pub fn sender(&mut self) -> &mut SendRequest<RequestBody> {
        &mut self.connection.as_mut().expect("only release takes it, and consumes the lease").sender
    }

    /// Gives the connection back after the whole answer was read.
    pub fn release(mut self) {
        let Some(mut connection) = self.connection.take() else { return };
        let Some(pool) = self.pool.upgrade() else { return };
        if connection.sender.is_ready() {
            pool.put(connection);
        } else if !connection.sender.is_closed() {
            // Its task has yet to notice the end of the answer, or still writes a body that the backend has
            // answered early. Bounded, as the latter may never end.
            tokio::task::spawn_local(async move {
                if let Ok(Ok(())) = timeout(SETTLE, connection.sender.ready()).await {
                    pool.put(connection);
                }
            });
        }
    }
}
