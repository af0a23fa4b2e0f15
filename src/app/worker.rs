//! A worker thread with its own runtime, listeners, clients and upstream connections. It applies snapshots that the
//! supervisor sends, and does not know where they come from.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use tokio::net::TcpStream;
use tokio::runtime::LocalOptions;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::oneshot;
use tokio::task::coop::unconstrained;
use tokio::task::{JoinError, JoinSet};
use tokio::time::sleep;
use tracing::debug;

use crate::admin::health::StartupCounter;
use crate::base::current::Current;
use crate::base::shutdown_phase::{ShutdownPhase, ShutdownSignal};
use crate::config::Config;
use crate::downstream::listener::{self, BoundListener, ClientListener};
use crate::downstream::reaper::Reaper;
use crate::downstream::{Service, ServingConfig, serve};
use crate::gateway::Gateway;
use crate::gateway::recent_rejections::RejectionRecorder;
use crate::gateway::snapshot::Snapshot;
use crate::observability::queries::QueryRecorder;
use crate::tls::ServerTls;
use crate::upstream::{Backends, UpstreamClient};

/// The initial state of a worker thread.
pub struct Worker {
    pub snapshot: Arc<Snapshot>,
    pub number: usize,
    pub recorders: Recorders,
    pub listeners: Vec<(BoundListener, Option<ServerTls>)>,
    pub started: StartupCounter,
    pub signal: ShutdownSignal,
    pub commands: UnboundedReceiver<WorkerCommand>,
}

/// What a worker writes about its requests for operators.
#[derive(Clone)]
pub struct Recorders {
    pub rejections: RejectionRecorder,
    pub queries: QueryRecorder,
}

/// A command of the supervisor to a worker. The worker replies when it is done.
pub enum WorkerCommand {
    /// Only reply.
    Heartbeat(oneshot::Sender<()>),
    /// Use this snapshot for new requests.
    Apply(Arc<Snapshot>, oneshot::Sender<()>),
}

impl Worker {
    /// Serves until the drain. Returns the number of aborted connections.
    pub fn run(self) -> io::Result<usize> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build_local(LocalOptions::default())?;
        runtime.block_on(self.serve())
    }

    async fn serve(self) -> io::Result<usize> {
        let Worker { snapshot, number, recorders, listeners, started, signal, commands } = self;
        let metrics = Arc::clone(snapshot.admission.metrics());
        let Config { timeouts, limits, .. } = &*snapshot.config;
        let reaper = Rc::new(Reaper::new(*timeouts, limits.response_rate, metrics));
        let upstreams = upstream_clients(&snapshot, number, &[]);
        let serving = Current::new(Rc::new(serving_config(&snapshot, &upstreams, recorders.clone())));
        drop(snapshot);
        let mut accept_tasks = JoinSet::new();
        for (listener, tls) in listeners {
            let service = Rc::new(Service { serving: serving.clone(), tls });
            let listener = listener.register()?;
            accept_tasks.spawn_local(accept_connections(listener, service, Rc::clone(&reaper), signal.clone()));
        }
        started.record_started();
        let updater =
            ConfigUpdater { serving: serving.clone(), number, upstreams, recorders, reaper: Rc::clone(&reaper) };
        tokio::select! {
            () = run_commands(commands, updater) => unreachable!("it runs forever"),
            () = sweep_periodically(&serving, &reaper) => unreachable!("it runs forever"),
            failure = acceptor_failed(&mut accept_tasks) => Err(io::Error::other(failure)),
            aborted = drain(signal, &serving, &reaper) => Ok(aborted),
        }
    }
}

/// The clients of the calling thread for each upstream: those of `current` whose backends have not changed, and new
/// ones.
fn upstream_clients(snapshot: &Snapshot, worker: usize, current: &[UpstreamClient]) -> Vec<UpstreamClient> {
    let client = |backends: &Arc<Backends>| match current.iter().find(|client| client.is_for(backends)) {
        Some(client) => client.clone(),
        None => UpstreamClient::new(Arc::clone(backends), worker, Arc::clone(snapshot.admission.metrics())),
    };
    snapshot.upstreams.iter().map(client).collect()
}

fn serving_config(snapshot: &Snapshot, upstreams: &[UpstreamClient], recorders: Recorders) -> ServingConfig {
    let Snapshot { config, auth, admission, .. } = snapshot;
    let Recorders { rejections, queries } = recorders;
    let clients = upstreams.to_vec();
    let gateway = Gateway::new(config, Arc::clone(auth), clients, Arc::clone(admission), rejections, queries);
    ServingConfig { gateway: Rc::new(gateway), config: Arc::clone(config), admission: Arc::clone(admission) }
}

/// The state of a worker that a new snapshot changes.
struct ConfigUpdater {
    serving: Current<Rc<ServingConfig>>,
    number: usize,
    upstreams: Vec<UpstreamClient>,
    recorders: Recorders,
    reaper: Rc<Reaper>,
}

impl ConfigUpdater {
    /// Applies a snapshot to new requests. Requests in flight keep the previous one, which is dropped when they end.
    fn apply(&mut self, snapshot: &Snapshot) {
        self.upstreams = upstream_clients(snapshot, self.number, &self.upstreams);
        let serving = serving_config(snapshot, &self.upstreams, self.recorders.clone());
        self.reaper.set_limits(snapshot.config.timeouts, snapshot.config.limits.response_rate);
        drop(self.serving.replace(Rc::new(serving)));
    }
}

/// Runs the commands of the supervisor. Never returns.
async fn run_commands(mut commands: UnboundedReceiver<WorkerCommand>, mut updater: ConfigUpdater) {
    while let Some(command) = commands.recv().await {
        let done = match command {
            WorkerCommand::Heartbeat(done) => done,
            WorkerCommand::Apply(snapshot, done) => {
                updater.apply(&snapshot);
                done
            }
        };
        let _ = done.send(());
    }
    std::future::pending::<()>().await;
}

/// Waits for an accept task to panic. A normal end, with the drain, is ignored.
async fn acceptor_failed(accept_tasks: &mut JoinSet<()>) -> JoinError {
    while let Some(result) = accept_tasks.join_next().await {
        if let Err(failure) = result {
            return failure;
        }
    }
    std::future::pending().await
}

/// Accepts connections until the drain.
async fn accept_connections(
    listener: ClientListener,
    service: Rc<Service>,
    reaper: Rc<Reaper>,
    mut signal: ShutdownSignal,
) {
    let start = |(stream, peer): (TcpStream, SocketAddr)| {
        let serving = service.serving.get();
        let (admission, is_shared) = (&serving.admission, serving.is_trusted_proxy(peer.ip()));
        if let Some(permit) = admission.admit_connection(peer.ip(), is_shared, || reaper.make_room()) {
            tokio::task::spawn_local(serve(Rc::clone(&service), stream, peer, reaper.register(permit)));
        }
    };
    let metrics = Arc::clone(service.serving.get().admission.metrics());
    let failures = &metrics.accept_failures;
    loop {
        tokio::select! {
            () = signal.wait_for(ShutdownPhase::Draining) => break,
            connection = listener::accept(&listener, failures) => start(connection),
        }
    }
    // Connections in the accept queue have completed their TCP handshake; closing the listener would reset them.
    tokio::task::yield_now().await;
    // Unconstrained: the runtime would pretend after some of them that the queue is empty.
    unconstrained(poll_fn(|cx| {
        while let Poll::Ready(accepted) = listener.poll_accept(cx) {
            match accepted {
                Ok(connection) => start(connection),
                Err(error) if listener::is_connection_error(&error) => {}
                Err(_) => break,
            }
        }
        Poll::Ready(())
    }))
    .await;
}

async fn sweep_periodically(serving: &Current<Rc<ServingConfig>>, reaper: &Reaper) {
    loop {
        // A reload may change the timeouts, and so the interval.
        sleep(reaper.interval()).await;
        reaper.sweep(serving.get().admission.memory());
        serving.get().gateway.sweep_pools();
    }
}

/// Waits for the drain and for the end of all connections. Returns the number of connections that were aborted.
async fn drain(mut signal: ShutdownSignal, serving: &Current<Rc<ServingConfig>>, reaper: &Reaper) -> usize {
    signal.wait_for(ShutdownPhase::NotReady).await;
    reaper.announce_drain(serving.get().config.drain.delay);
    signal.wait_for(ShutdownPhase::Draining).await;
    // Let the accept tasks empty their queues first.
    tokio::task::yield_now().await;
    tokio::task::yield_now().await;
    reaper.begin_drain();
    debug!(connections = reaper.len(), "draining");
    tokio::select! {
        () = reaper.wait_until_empty() => 0,
        () = signal.wait_for(ShutdownPhase::Aborted) => {
            let aborted = reaper.len();
            reaper.abort_all();
            // Let each connection's task end.
            tokio::task::yield_now().await;
            aborted
        }
    }
}
