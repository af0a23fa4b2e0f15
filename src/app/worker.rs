//! A worker thread with its own runtime, listeners, clients and upstream connections. It applies snapshots that the supervisor sends,
//! and does not know where they come from.

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

use crate::admin::health::StartupCounter;
use crate::admission::Admission;
use crate::auth::Auth;
use crate::base::current::Current;
use crate::base::shutdown::{ShutdownPhase, ShutdownSignal};
use crate::config::Config;
use crate::downstream::listener;
use crate::downstream::reaper::Reaper;
use crate::downstream::{Service, ServingConfig, serve};
use crate::gateway::Gateway;
use crate::gateway::recent_rejections::RejectionRecorder;
use crate::tls::ServerTls;
use crate::upstream::{Backends, UpstreamClient};

/// The initial state of a worker thread.
pub struct Worker {
    pub snapshot: Arc<Snapshot>,
    pub number: usize,
    pub rejections: RejectionRecorder,
    pub listeners: Vec<(std::net::TcpListener, Option<ServerTls>)>,
    pub started: StartupCounter,
    pub signal: ShutdownSignal,
    pub commands: UnboundedReceiver<WorkerCommand>,
}

/// A configuration, with all that was made of it for every worker.
pub struct Snapshot {
    pub config: Arc<Config>,
    pub auth: Arc<Auth>,
    pub admission: Arc<Admission>,
    /// The same as before where nothing about them has changed: connections to them go on being used.
    pub backends: Arc<Backends>,
}

/// A command of the supervisor to a worker. The worker replies when it is done.
pub enum WorkerCommand {
    /// Only reply.
    Ping(oneshot::Sender<()>),
    /// Use this snapshot for new requests.
    Apply(Arc<Snapshot>, oneshot::Sender<()>),
}

impl Worker {
    /// Serves until the drain. Returns the number of aborted connections.
    pub fn run(self) -> io::Result<usize> {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build_local(LocalOptions::default())?;
        runtime.block_on(self.serve())
    }

    async fn serve(self) -> io::Result<usize> {
        let Worker {
            snapshot: revision,
            number,
            rejections: refusals,
            listeners,
            started,
            signal,
            commands: orders,
        } = self;
        let metrics = Arc::clone(revision.admission.metrics());
        let reaper = Rc::new(Reaper::new(revision.config.timeouts, metrics));
        let backends = Arc::clone(&revision.backends);
        let upstream = new_upstream(&revision, number);
        let terms = Current::new(Rc::new(serving_config(&revision, upstream.clone(), refusals.clone())));
        drop(revision);
        let mut accepting = JoinSet::new();
        for (listener, tls) in listeners {
            let service = Rc::new(Service { serving: terms.clone(), tls });
            let listener = TcpListener::from_std(listener)?;
            accepting.spawn_local(accept_connections(listener, service, Rc::clone(&reaper), signal.clone()));
        }
        started.record_started();
        let taking = ConfigUpdater {
            serving: terms.clone(),
            number,
            backends,
            upstream,
            rejections: refusals,
            reaper: Rc::clone(&reaper),
        };
        tokio::select! {
            () = run_commands(orders, taking) => unreachable!("it runs forever"),
            () = sweep_periodically(&terms, &reaper) => unreachable!("it runs forever"),
            failure = acceptor_failed(&mut accepting) => Err(io::Error::other(failure)),
            left = drain(signal, &reaper) => Ok(left),
        }
    }
}

/// The upstream client of the calling thread.
fn new_upstream(revision: &Snapshot, worker: usize) -> UpstreamClient {
    let metrics = Arc::clone(revision.admission.metrics());
    UpstreamClient::new(Arc::clone(&revision.backends), worker, metrics)
}

fn serving_config(
    revision: &Snapshot,
    upstream: UpstreamClient,
    refusals: RejectionRecorder,
) -> ServingConfig {
    let Snapshot { config, auth, admission, .. } = revision;
    let gateway = Gateway::new(config, Arc::clone(auth), upstream, Arc::clone(admission), refusals);
    ServingConfig {
        gateway: Rc::new(gateway),
        trusted_proxies: config.trusted_proxies.clone(),
        proxy_protocol: config.listen.proxy_protocol,
        timeouts: config.timeouts,
        limits: config.limits,
        admission: Arc::clone(admission),
    }
}

/// The state of a worker that a new snapshot changes.
struct ConfigUpdater {
    serving: Current<Rc<ServingConfig>>,
    number: usize,
    backends: Arc<Backends>,
    upstream: UpstreamClient,
    rejections: RejectionRecorder,
    reaper: Rc<Reaper>,
}

impl ConfigUpdater {
    /// Applies a snapshot to new requests. Requests in flight keep the previous one, which is dropped when they end.
    fn apply(&mut self, revision: &Snapshot) {
        if !Arc::ptr_eq(&self.backends, &revision.backends) {
            self.backends = Arc::clone(&revision.backends);
            self.upstream = new_upstream(revision, self.number);
        }
        let terms = serving_config(revision, self.upstream.clone(), self.rejections.clone());
        self.reaper.set_timeouts(revision.config.timeouts);
        drop(self.serving.replace(Rc::new(terms)));
    }
}

/// Runs the commands of the supervisor. Never returns.
async fn run_commands(mut orders: UnboundedReceiver<WorkerCommand>, mut taking: ConfigUpdater) {
    while let Some(order) = orders.recv().await {
        let done = match order {
            WorkerCommand::Ping(done) => done,
            WorkerCommand::Apply(revision, done) => {
                taking.apply(&revision);
                done
            }
        };
        let _ = done.send(());
    }
    std::future::pending::<()>().await;
}

/// Waits for an accept task to panic. A normal end, with the drain, is ignored.
async fn acceptor_failed(accepting: &mut JoinSet<()>) -> JoinError {
    while let Some(ended) = accepting.join_next().await {
        if let Err(failure) = ended {
            return failure;
        }
    }
    std::future::pending().await
}

/// Accepts connections until the drain.
async fn accept_connections(
    listener: TcpListener,
    service: Rc<Service>,
    reaper: Rc<Reaper>,
    mut signal: ShutdownSignal,
) {
    let take = |(stream, peer): (TcpStream, SocketAddr)| {
        let terms = service.serving.get();
        if let Some(place) = terms.admission.admit_connection(peer.ip(), terms.is_trusted_proxy(peer.ip())) {
            tokio::task::spawn_local(serve(Rc::clone(&service), stream, peer, reaper.register(place)));
        }
    };
    let metrics = Arc::clone(service.serving.get().admission.metrics());
    let failures = &metrics.accept_failures;
    loop {
        tokio::select! {
            () = signal.wait_for(ShutdownPhase::Draining) => break,
            connection = listener::accept(&listener, failures) => take(connection),
        }
    }
    // Connections in the accept queue have completed their TCP handshake; closing the listener would reset them.
    tokio::task::yield_now().await;
    while let Some(Ok(connection)) = poll_once(|cx| listener.poll_accept(cx)).await {
        take(connection);
    }
}

/// Polls once, and returns the result if it is ready.
async fn poll_once<T>(mut poll: impl FnMut(&mut std::task::Context<'_>) -> Poll<T>) -> Option<T> {
    poll_fn(|cx| match poll(cx) {
        Poll::Ready(result) => Poll::Ready(Some(result)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

async fn sweep_periodically(terms: &Current<Rc<ServingConfig>>, reaper: &Reaper) {
    loop {
        // A reload may change the timeouts, and so the interval.
        sleep(reaper.interval()).await;
        reaper.sweep();
        terms.get().gateway.sweep_pools();
    }
}

/// Waits for the drain and for the end of all connections. Returns the number of connections that were aborted.
async fn drain(mut signal: ShutdownSignal, reaper: &Reaper) -> usize {
    signal.wait_for(ShutdownPhase::Draining).await;
    // Let the accept tasks empty their queues first.
    tokio::task::yield_now().await;
    tokio::task::yield_now().await;
    reaper.begin_drain();
    debug!(connections = reaper.len(), "draining");
    tokio::select! {
        () = reaper.wait_until_empty() => 0,
        () = signal.wait_for(ShutdownPhase::Aborted) => {
            let left = reaper.len();
            reaper.abort_all();
            // Let each connection's task end.
            tokio::task::yield_now().await;
            left
        }
    }
}
