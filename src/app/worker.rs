//! A worker thread: a runtime, listeners, upstream connections and clients of its own.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::LocalOptions;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::oneshot;
use tokio::task::{JoinError, JoinSet};
use tokio::time::sleep;
use tracing::debug;

use crate::admin::health::Started;
use crate::admission::Admission;
use crate::auth::Auth;
use crate::base::current::InForce;
use crate::base::shutdown::{Phase, Signal};
use crate::config::Config;
use crate::downstream::listener;
use crate::downstream::reaper::Reaper;
use crate::downstream::{Service, Terms, serve};
use crate::gateway::Gateway;
use crate::gateway::recent_rejections::Recorder;
use crate::tls::ServerTls;
use crate::upstream::{Backends, Upstream};

/// What a worker thread is given.
pub struct Worker {
    pub revision: Arc<Revision>,
    pub number: usize,
    pub refusals: Recorder,
    pub listeners: Vec<(std::net::TcpListener, Option<ServerTls>)>,
    pub started: Started,
    pub signal: Signal,
    pub orders: UnboundedReceiver<Order>,
}

/// A configuration, with all that was made of it for every worker.
pub struct Revision {
    pub config: Arc<Config>,
    pub auth: Arc<Auth>,
    pub admission: Arc<Admission>,
    /// The same as before where nothing about them has changed: connections to them go on being used.
    pub backends: Arc<Backends>,
}

/// What a worker is told by the thread that supervises it.
pub enum Order {
    /// To say that it is alive.
    Answer(oneshot::Sender<()>),
    /// To answer requests by another configuration from now on, and to say when that is so.
    Take(Arc<Revision>, oneshot::Sender<()>),
}

impl Worker {
    /// Serves until the signal says otherwise. Returns how many connections had to be cut.
    pub fn run(self) -> io::Result<usize> {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build_local(LocalOptions::default())?;
        runtime.block_on(self.serve())
    }

    async fn serve(self) -> io::Result<usize> {
        let Worker { revision, number, refusals, listeners, started, signal, orders } = self;
        let metrics = Arc::clone(revision.admission.metrics());
        let reaper = Rc::new(Reaper::new(revision.config.timeouts, metrics));
        let backends = Arc::clone(&revision.backends);
        let upstream = upstream(&revision, number);
        let terms = InForce::new(Rc::new(terms(&revision, upstream.clone(), refusals.clone())));
        drop(revision);
        let mut accepting = JoinSet::new();
        for (listener, tls) in listeners {
            let service = Rc::new(Service { terms: terms.clone(), tls });
            let listener = TcpListener::from_std(listener)?;
            accepting.spawn_local(accept(listener, service, Rc::clone(&reaper), signal.clone()));
        }
        started.one_more();
        let taking =
            Taking { terms: terms.clone(), number, backends, upstream, refusals, reaper: Rc::clone(&reaper) };
        tokio::select! {
            () = obey(orders, taking) => unreachable!("it never ends"),
            () = keep_tidy(&terms, &reaper) => unreachable!("it never ends"),
            failure = failed(&mut accepting) => Err(io::Error::other(failure)),
            left = leave(signal, &reaper) => Ok(left),
        }
    }
}

/// A way to the backends for the calling thread.
fn upstream(revision: &Revision, worker: usize) -> Upstream {
    let metrics = Arc::clone(revision.admission.metrics());
    Upstream::new(Arc::clone(&revision.backends), worker, metrics)
}

fn terms(revision: &Revision, upstream: Upstream, refusals: Recorder) -> Terms {
    let Revision { config, auth, admission, .. } = revision;
    let gateway = Gateway::new(config, Arc::clone(auth), upstream, Arc::clone(admission), refusals);
    Terms {
        gateway: Rc::new(gateway),
        trusted_proxies: config.trusted_proxies.clone(),
        proxy_protocol: config.listen.proxy_protocol,
        timeouts: config.timeouts,
        limits: config.limits,
        admission: Arc::clone(admission),
    }
}

/// What another configuration changes in a worker.
struct Taking {
    terms: InForce<Rc<Terms>>,
    number: usize,
    backends: Arc<Backends>,
    upstream: Upstream,
    refusals: Recorder,
    reaper: Rc<Reaper>,
}

impl Taking {
    /// Requests that are being answered keep what they began with; it is gone when they are.
    fn take(&mut self, revision: &Revision) {
        if !Arc::ptr_eq(&self.backends, &revision.backends) {
            self.backends = Arc::clone(&revision.backends);
            self.upstream = upstream(revision, self.number);
        }
        let terms = terms(revision, self.upstream.clone(), self.refusals.clone());
        self.reaper.set_timeouts(revision.config.timeouts);
        drop(self.terms.replace(Rc::new(terms)));
    }
}

/// Does as it is told. Never ends.
async fn obey(mut orders: UnboundedReceiver<Order>, mut taking: Taking) {
    while let Some(order) = orders.recv().await {
        let done = match order {
            Order::Answer(done) => done,
            Order::Take(revision, done) => {
                taking.take(&revision);
                done
            }
        };
        let _ = done.send(());
    }
    std::future::pending::<()>().await;
}

/// Waits for an accepting task to panic. They end by themselves with the drain.
async fn failed(accepting: &mut JoinSet<()>) -> JoinError {
    while let Some(ended) = accepting.join_next().await {
        if let Err(failure) = ended {
            return failure;
        }
    }
    std::future::pending().await
}

/// Accepts connections until the drain begins.
async fn accept(listener: TcpListener, service: Rc<Service>, reaper: Rc<Reaper>, mut signal: Signal) {
    let take = |(stream, peer): (TcpStream, SocketAddr)| {
        let terms = service.terms.now();
        if let Some(place) = terms.admission.connection(peer.ip(), terms.trusts(peer.ip())) {
            tokio::task::spawn_local(serve(Rc::clone(&service), stream, peer, reaper.register(place)));
        }
    };
    let metrics = Arc::clone(service.terms.now().admission.metrics());
    let failures = &metrics.accept_failures;
    loop {
        tokio::select! {
            () = signal.reached(Phase::Draining) => break,
            connection = listener::accept(&listener, failures) => take(connection),
        }
    }
    // The kernel has finished the handshakes of those who wait in the backlog: closing now would reset them.
    tokio::task::yield_now().await;
    while let Some(Ok(connection)) = now(|cx| listener.poll_accept(cx)).await {
        take(connection);
    }
}

/// The result, if it is there at once.
async fn now<T>(mut poll: impl FnMut(&mut std::task::Context<'_>) -> Poll<T>) -> Option<T> {
    poll_fn(|cx| match poll(cx) {
        Poll::Ready(result) => Poll::Ready(Some(result)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

async fn keep_tidy(terms: &InForce<Rc<Terms>>, reaper: &Reaper) {
    loop {
        // Timeouts, and with them the interval, may become others.
        sleep(reaper.interval()).await;
        reaper.sweep();
        terms.now().gateway.sweep();
    }
}

/// Waits for the drain, then for the connections, then for nothing. Returns how many were cut.
async fn leave(mut signal: Signal, reaper: &Reaper) -> usize {
    signal.reached(Phase::Draining).await;
    // Lets the accepting tasks empty their backlogs first.
    tokio::task::yield_now().await;
    tokio::task::yield_now().await;
    reaper.close_all();
    debug!(connections = reaper.len(), "draining");
    tokio::select! {
        () = reaper.emptied() => 0,
        () = signal.reached(Phase::Aborted) => {
            let left = reaper.len();
            reaper.cut_all();
            // One turn for each to end by itself.
            tokio::task::yield_now().await;
            left
        }
    }
}
