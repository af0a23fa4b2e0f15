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

/// What a worker thread is given.
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

/// What a worker is told by the thread that supervises it.
pub enum WorkerCommand {
    /// To say that it is alive.
    Ping(oneshot::Sender<()>),
    /// To answer requests by another configuration from now on, and to say when that is so.
    Apply(Arc<Snapshot>, oneshot::Sender<()>),
}

impl Worker {
    /// Serves until the signal says otherwise. Returns how many connections had to be cut.
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
            () = run_commands(orders, taking) => unreachable!("it never ends"),
            () = sweep_periodically(&terms, &reaper) => unreachable!("it never ends"),
            failure = acceptor_failed(&mut accepting) => Err(io::Error::other(failure)),
            left = drain(signal, &reaper) => Ok(left),
        }
    }
}

/// A way to the backends for the calling thread.
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

/// What another configuration changes in a worker.
struct ConfigUpdater {
    serving: Current<Rc<ServingConfig>>,
    number: usize,
    backends: Arc<Backends>,
    upstream: UpstreamClient,
    rejections: RejectionRecorder,
    reaper: Rc<Reaper>,
}

impl ConfigUpdater {
    /// Requests that are being answered keep what they began with; it is gone when they are.
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

/// Does as it is told. Never ends.
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

/// Waits for an accepting task to panic. They end by themselves with the drain.
async fn acceptor_failed(accepting: &mut JoinSet<()>) -> JoinError {
    while let Some(ended) = accepting.join_next().await {
        if let Err(failure) = ended {
            return failure;
        }
    }
    std::future::pending().await
}

/// Accepts connections until the drain begins.
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
    // The kernel has finished the handshakes of those who wait in the backlog: closing now would reset them.
    tokio::task::yield_now().await;
    while let Some(Ok(connection)) = poll_once(|cx| listener.poll_accept(cx)).await {
        take(connection);
    }
}

/// The result, if it is there at once.
async fn poll_once<T>(mut poll: impl FnMut(&mut std::task::Context<'_>) -> Poll<T>) -> Option<T> {
    poll_fn(|cx| match poll(cx) {
        Poll::Ready(result) => Poll::Ready(Some(result)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

async fn sweep_periodically(terms: &Current<Rc<ServingConfig>>, reaper: &Reaper) {
    loop {
        // Timeouts, and with them the interval, may become others.
        sleep(reaper.interval()).await;
        reaper.sweep();
        terms.get().gateway.sweep_pools();
    }
}

/// Waits for the drain, then for the connections, then for nothing. Returns how many were cut.
async fn drain(mut signal: ShutdownSignal, reaper: &Reaper) -> usize {
    signal.wait_for(ShutdownPhase::Draining).await;
    // Lets the accepting tasks empty their backlogs first.
    tokio::task::yield_now().await;
    tokio::task::yield_now().await;
    reaper.begin_drain();
    debug!(connections = reaper.len(), "draining");
    tokio::select! {
        () = reaper.wait_until_empty() => 0,
        () = signal.wait_for(ShutdownPhase::Aborted) => {
            let left = reaper.len();
            reaper.abort_all();
            // One turn for each to end by itself.
            tokio::task::yield_now().await;
            left
        }
    }
}
