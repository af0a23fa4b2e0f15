//! What one worker counts, in cells that only its thread writes.

use std::marker::PhantomData;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::ThreadId;
use std::time::Duration;

use parking_lot::Mutex;

use crate::observability::metrics::histogram::{Cell, Durations, Histogram};
use crate::observability::metrics::route::{Answered, RouteCells, RouteSum};

/// A closed set of a label's values.
macro_rules! words {
    ($(#[$about:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $word:literal,)* }) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$doc])* $variant,)* }

        impl $name {
            /// All of them, as they are numbered.
            pub const ALL: &'static [$name] = &[$($name::$variant,)*];

            /// The label's value.
            pub fn word(self) -> &'static str {
                match self { $($name::$variant => $word,)* }
            }
        }
    };
}

words! {
    /// A step on the way to knowing who calls, of those that take time.
    Step {
        /// A bearer is opened.
        Bearer = "bearer",
        /// The verifier says whether a password is right.
        Verifier = "verifier",
        /// The store is asked for a token, or keeps one.
        Store = "store",
        /// The backend is asked about a key that the gateway did not mint.
        ForeignCheck = "foreign_check",
        /// A JWT's signature and claims are checked.
        Jwt = "jwt",
    }
}

words! {
    /// How such a step ended.
    Outcome {
        /// With a yes.
        Ok = "ok",
        /// With a no.
        Refused = "refused",
        /// Nobody could say.
        Unavailable = "unavailable",
        /// Too many ask, or one asks too often.
        Busy = "busy",
    }
}

words! {
    /// What a client's connection speaks.
    Protocol {
        /// HTTP/1.0 or 1.1.
        Http1 = "http/1",
        /// HTTP/2.
        Http2 = "http/2",
    }
}

words! {
    /// The version that a TLS handshake came to.
    TlsVersion {
        /// TLS 1.2.
        Tls12 = "1.2",
        /// TLS 1.3.
        Tls13 = "1.3",
    }
}

words! {
    /// Why a handshake failed.
    HandshakeFailure {
        /// It took too long.
        Timeout = "timeout",
        /// The client went away.
        Closed = "closed",
        /// The client said no: it does not trust our certificate, for one.
        Alert = "client_alert",
        /// There is no version, suite or protocol that both know.
        Incompatible = "incompatible",
        /// The client showed no certificate, or one that is not accepted.
        Certificate = "client_certificate",
        /// What came is no TLS, or not as it must be.
        Malformed = "malformed",
        /// The PROXY protocol's header is missing or wrong, or the peer may not send one.
        ProxyProtocol = "proxy_protocol",
        /// Anything else.
        Other = "other",
    }
}

#[derive(Debug)]
pub struct WorkerCells {
    /// Who may write.
    pub owner: ThreadId,
    routes: Mutex<Vec<Arc<RouteCells>>>,
    steps: [[Durations; Outcome::ALL.len()]; Step::ALL.len()],
    opened: [Cell; Protocol::ALL.len()],
    closed: [Cell; Protocol::ALL.len()],
    /// By version, and whether a session was resumed.
    handshakes: [[Cell; 2]; TlsVersion::ALL.len()],
    handshake_failures: [Cell; HandshakeFailure::ALL.len()],
    handshake: Durations,
}

impl WorkerCells {
    pub fn new(owner: ThreadId) -> WorkerCells {
        WorkerCells {
            owner,
            routes: Mutex::default(),
            steps: Default::default(),
            opened: Default::default(),
            closed: Default::default(),
            handshakes: Default::default(),
            handshake_failures: Default::default(),
            handshake: Durations::default(),
        }
    }

    fn route(&self, name: &str) -> Arc<RouteCells> {
        let mut routes = self.routes.lock();
        if let Some(known) = routes.iter().find(|route| *route.name == *name) {
            return Arc::clone(known);
        }
        let route = Arc::new(RouteCells::new(name));
        routes.push(Arc::clone(&route));
        route
    }

    pub fn add_to(&self, sum: &mut Sum) {
        for cells in self.routes.lock().iter() {
            let known = sum.routes.iter().position(|route| route.name == *cells.name);
            let at = known.unwrap_or_else(|| {
                sum.routes.push(RouteSum { name: cells.name.to_string(), ..RouteSum::default() });
                sum.routes.len() - 1
            });
            cells.add_to(&mut sum.routes[at]);
        }
        for (sums, cells) in sum.steps.iter_mut().zip(&self.steps) {
            sums.iter_mut().zip(cells).for_each(|(sum, durations)| durations.add_to(sum));
        }
        add(&mut sum.opened, &self.opened);
        add(&mut sum.closed, &self.closed);
        for (sums, cells) in sum.handshakes.iter_mut().zip(&self.handshakes) {
            add(sums, cells);
        }
        add(&mut sum.handshake_failures, &self.handshake_failures);
        self.handshake.add_to(&mut sum.handshake);
    }
}

fn add(sums: &mut [u64], cells: &[Cell]) {
    sums.iter_mut().zip(cells).for_each(|(sum, cell)| *sum += cell.get());
}

/// What all workers have counted.
#[derive(Clone, Debug, Default)]
pub struct Sum {
    /// Requests, by route; the one with the empty name has those of no route.
    pub routes: Vec<RouteSum>,
    pub(super) steps: [[Histogram; Outcome::ALL.len()]; Step::ALL.len()],
    pub(super) opened: [u64; Protocol::ALL.len()],
    pub(super) closed: [u64; Protocol::ALL.len()],
    pub(super) handshakes: [[u64; 2]; TlsVersion::ALL.len()],
    pub(super) handshake_failures: [u64; HandshakeFailure::ALL.len()],
    pub(super) handshake: Histogram,
}

/// The calling thread's cells. It cannot leave the thread, so nobody else writes to them.
#[derive(Clone, Debug)]
#[expect(
    clippy::redundant_allocation,
    reason = "each request has a handle, and counts it without a locked instruction"
)]
pub struct Worker(Rc<Arc<WorkerCells>>);

impl Worker {
    /// SECURITY: only for the owner's thread; what another one added at the same time would be lost.
    pub(super) fn new(cells: Arc<WorkerCells>) -> Worker {
        assert_eq!(cells.owner, std::thread::current().id(), "cells belong to one thread");
        Worker(Rc::new(cells))
    }

    /// Where requests of a route are counted; of none, by the empty name.
    pub fn route(&self, name: &str) -> Rc<Route> {
        Rc::new(Route { cells: self.0.route(name), bound: PhantomData })
    }

    /// A step took so long.
    pub fn step(&self, step: Step, outcome: Outcome, span: Duration) {
        self.0.steps[step as usize][outcome as usize].note(span);
    }

    /// A connection speaks HTTP until the guard is dropped.
    pub fn connection(&self, protocol: Protocol) -> OpenConnection {
        self.0.opened[protocol as usize].add(1);
        OpenConnection { worker: self.clone(), protocol }
    }

    /// A TLS handshake succeeded.
    pub fn handshake(&self, version: TlsVersion, resumed: bool, span: Duration) {
        self.0.handshakes[version as usize][usize::from(resumed)].add(1);
        self.0.handshake.note(span);
    }

    /// A handshake failed.
    pub fn handshake_failed(&self, why: HandshakeFailure) {
        self.0.handshake_failures[why as usize].add(1);
    }
}

/// Counts a connection as open.
#[derive(Debug)]
pub struct OpenConnection {
    worker: Worker,
    protocol: Protocol,
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.worker.0.closed[self.protocol as usize].add(1);
    }
}

/// Where the calling thread counts a route's requests.
#[derive(Debug)]
pub struct Route {
    cells: Arc<RouteCells>,
    bound: PhantomData<Rc<()>>,
}

impl Route {
    /// Its name; empty for no route.
    pub fn name(&self) -> &str {
        &self.cells.name
    }

    /// A request came to its end.
    pub fn note(&self, answered: &Answered<'_>) {
        self.cells.note(answered);
    }

    /// The backend took so long for the head of its answer.
    pub fn note_upstream(&self, span: Duration) {
        self.cells.note_upstream(span);
    }
}
