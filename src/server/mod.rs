//! The whole gateway: bound, then running, then drained. The only place that puts concrete parts together.

mod upkeep;
mod worker;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::{JoinSet, LocalSet};
use tokio::time::sleep;
use tracing::{error, info, warn};

use crate::admin::{self, Readiness};
use crate::admission::Admission;
use crate::auth::Auth;
use crate::clock::Clock;
use crate::config::sources::list;
use crate::config::{Config, Problem, VerifierOptions};
use crate::descriptors;
use crate::gateway::refusals::Refusals;
use crate::listener;
use crate::metrics::Metrics;
use crate::shutdown::{self, Controller, Phase};
use crate::store;
use crate::tls::{self, Reloader, ServerTls, TlsError, UpstreamTls};

use upkeep::{keep_files, keep_issuers_keys, sweep};
use worker::Worker;

/// Why the gateway does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Files that the configuration names.
    #[error("the configuration cannot be used:{}", list(.0))]
    Files(Vec<Problem>),
    /// An address.
    #[error("{key}: cannot listen on {address}")]
    Bind {
        /// The option.
        key: &'static str,
        /// Its value.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The store of tokens.
    #[error(transparent)]
    Store(#[from] store::StartError),
    /// A thread or runtime.
    #[error("cannot start threads")]
    Threads(#[source] io::Error),
}

/// How the gateway ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// As asked; so many connections were cut after the grace period.
    Drained {
        /// Connections whose requests did not end in time.
        cut: usize,
    },
    /// At once, as asked a second time.
    Aborted,
    /// A worker ended that should not have.
    Broken,
}

/// Where the gateway listens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    /// HTTPS.
    pub https: Option<SocketAddr>,
    /// Plain HTTP.
    pub http: Option<SocketAddr>,
    /// Health endpoints.
    pub admin: Option<SocketAddr>,
}

/// Asks a running gateway to end: the first call drains, the second one ends at once. Or to read its files again.
#[derive(Clone, Debug)]
pub struct Stop {
    end: UnboundedSender<()>,
    reload: Arc<Notify>,
}

/// The gateway's end of [`Stop`].
pub struct Stopped {
    end: UnboundedReceiver<()>,
    reload: Arc<Notify>,
}

/// A way to ask for the end.
pub fn stop() -> (Stop, Stopped) {
    let (sender, receiver) = unbounded_channel();
    let reload = Arc::<Notify>::default();
    (Stop { end: sender, reload: Arc::clone(&reload) }, Stopped { end: receiver, reload })
}

impl Stop {
    /// Asks. Nothing happens if the gateway has ended already.
    pub fn ask(&self) {
        let _ = self.end.send(());
    }

    /// Has certificates, keys, authorities and users read again, even if they look the same.
    pub fn reload(&self) {
        self.reload.notify_one();
    }
}

impl Stopped {
    async fn asked(&mut self) {
        if self.end.recv().await.is_none() {
            std::future::pending::<()>().await;
        }
    }
}

/// All that comes from files, loaded and checked.
struct Parts {
    auth: Arc<Auth>,
    tls: Option<(Reloader, ServerTls)>,
    certificate_pem: Option<String>,
    upstream_tls: Option<UpstreamTls>,
}

/// Loads what the configuration names, and tells all that is wrong with it; listens on nothing.
pub fn check(config: &Config) -> Result<(), StartError> {
    load(config, &Clock::system()).map(drop)
}

fn load(config: &Config, clock: &Clock) -> Result<Parts, StartError> {
    let mut problems = Vec::new();
    let told = |error: &TlsError| Problem::new(error.option(), error.to_string());
    let auth = Auth::new(config, clock).map_err(|found| problems.extend(found)).ok();
    let upstream_tls = config.upstream.url.tls.then(|| tls::upstream_tls(&config.upstream)).transpose();
    let upstream_tls = upstream_tls.map_err(|error| problems.push(told(&error))).ok();
    let server_tls = server_tls(config).map_err(|error| problems.push(told(&error))).ok();
    match (auth, upstream_tls, server_tls) {
        (Some(auth), Some(upstream_tls), Some((tls, certificate_pem))) => {
            Ok(Parts { auth: Arc::new(auth), tls, certificate_pem, upstream_tls })
        }
        _ => Err(StartError::Files(problems)),
    }
}

/// How to speak TLS with clients, if at all; and the certificate, if it was made here.
type OwnTls = (Option<(Reloader, ServerTls)>, Option<String>);

fn server_tls(config: &Config) -> Result<OwnTls, TlsError> {
    let Some(address) = config.listen.https else { return Ok((None, None)) };
    let own = if config.tls.certificates.is_empty() {
        let names: Vec<_> = tls::name_of(address.ip()).into_iter().chain(host_name()).collect();
        Some(tls::self_signed(&names)?)
    } else {
        None
    };
    let pem = own.as_ref().map(|own| own.certificate_pem.clone());
    Ok((Some(Reloader::start(config.tls.clone(), own)?), pem))
}

/// The name that Kubernetes and most shells give a machine.
fn host_name() -> Option<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    let name = name.trim();
    (!name.is_empty()).then(|| name.to_owned())
}

/// A gateway that listens, but does not answer yet.
pub struct Bound {
    config: Arc<Config>,
    parts: Parts,
    addresses: Addresses,
    https: Vec<std::net::TcpListener>,
    http: Vec<std::net::TcpListener>,
    admin: Option<std::net::TcpListener>,
    metrics: Arc<Metrics>,
    store: Option<store::Running>,
    refusals: Arc<Refusals>,
}

/// Loads what the configuration names, and listens.
pub fn bind(config: Config, clock: &Clock) -> Result<Bound, StartError> {
    let parts = load(&config, clock)?;
    let https = listen("listen.https", config.listen.https, config.workers)?;
    let http = listen("listen.http", config.listen.http, config.workers)?;
    let admin = listen("listen.admin", config.listen.admin, 1)?.pop();
    let address = |listener: Option<&std::net::TcpListener>| listener.and_then(|l| l.local_addr().ok());
    let addresses = Addresses {
        https: address(https.first()),
        http: address(http.first()),
        admin: address(admin.as_ref()),
    };
    let metrics = Arc::<Metrics>::default();
    let store = parts.auth.start_store(&metrics.store_up)?;
    let refusals = Refusals::new(config.workers);
    Ok(Bound { config: Arc::new(config), parts, addresses, https, http, admin, metrics, store, refusals })
}

fn listen(
    key: &'static str,
    address: Option<SocketAddr>,
    count: usize,
) -> Result<Vec<std::net::TcpListener>, StartError> {
    match address {
        None => Ok(Vec::new()),
        Some(address) => {
            listener::bind(address, count).map_err(|source| StartError::Bind { key, address, source })
        }
    }
}

/// Workers that were told to cut everything get so long to do it.
const LAST_WORDS: Duration = Duration::from_secs(1);

impl Bound {
    /// Where it listens; ports that were given as 0 are the real ones here.
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// The certificate that was made at start, if one was.
    pub fn certificate_pem(&self) -> Option<&str> {
        self.parts.certificate_pem.as_deref()
    }

    /// Serves until asked to stop, and drains. The calling thread looks after the others.
    pub fn run(mut self, stopped: Stopped) -> Result<Ended, StartError> {
        self.announce();
        let (controller, signal) = shutdown::channel();
        let readiness = Readiness::new(self.config.workers, signal.clone());
        let mut limits = self.config.limits;
        let most = descriptors::most_clients();
        if most < limits.connections {
            warn!(
                connections = most,
                "limits.connections is more than the limit of open files allows (ulimit -n)"
            );
            limits.connections = most;
        }
        let admission = Arc::new(Admission::new(limits, Arc::clone(&self.metrics)));
        let (ended, ends) = unbounded_channel();
        let mut workers = Vec::with_capacity(self.config.workers);
        for number in 0..self.config.workers {
            let worker = Worker {
                config: Arc::clone(&self.config),
                auth: Arc::clone(&self.parts.auth),
                admission: Arc::clone(&admission),
                refusals: self.refusals.recorder(number),
                upstream_tls: self.parts.upstream_tls.clone(),
                listeners: self.listeners_of_one_worker(),
                readiness: readiness.clone(),
                signal: signal.clone(),
            };
            workers.push(spawn(number, worker, ended.clone()).map_err(StartError::Threads)?);
        }
        drop(ended);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(StartError::Threads)?;
        drop(admission);
        let mut store = self.store.take();
        let supervision = self.supervise(controller, readiness, &mut store, stopped, ends);
        let end = LocalSet::new().block_on(&runtime, supervision)?;
        if end == Ended::Aborted {
            return Ok(end);
        }
        let end = collect(workers, end);
        // All who could ask it anything are gone.
        if store.is_some_and(|store| !store.finish(LAST_WORDS)) {
            error!("the token store did not end");
        }
        Ok(end)
    }

    fn listeners_of_one_worker(&mut self) -> Vec<(std::net::TcpListener, Option<ServerTls>)> {
        let mut listeners = Vec::with_capacity(2);
        listeners.extend(self.http.pop().map(|listener| (listener, None)));
        let tls = self.parts.tls.as_ref().map(|(_, tls)| tls);
        listeners.extend(self.https.pop().map(|listener| (listener, tls.cloned())));
        listeners
    }

    fn announce(&self) {
        let config = &self.config;
        let shown = |address: Option<SocketAddr>| address.map_or("off".to_owned(), |a| a.to_string());
        info!(
            version = env!("CARGO_PKG_VERSION"),
            https = shown(self.addresses.https),
            http = shown(self.addresses.http),
            admin = shown(self.addresses.admin),
            workers = config.workers,
            keys = self.parts.auth.known_keys(),
            "timbr-gateway started"
        );
        if self.parts.certificate_pem.is_some() {
            warn!(
                "no tls.cert_file: HTTPS uses a self-signed certificate made just now, which clients cannot verify"
            );
        }
        if config.auth.verifier == VerifierOptions::SaltHolder {
            warn!(
                "auth.verifier=salt-holder: passwords are not checked; whoever holds API_AUTH_SALT can get a \
                 token for any user"
            );
        }
    }

    /// Waits for the end to be asked for, and sees to it that it comes.
    async fn supervise(
        self,
        controller: Controller,
        readiness: Readiness,
        store: &mut Option<store::Running>,
        mut stopped: Stopped,
        mut ends: UnboundedReceiver<usize>,
    ) -> Result<Ended, StartError> {
        // Neither ever ends by itself; if one does, that is a panic.
        let mut helpers = JoinSet::new();
        let metrics = self.metrics;
        if let Some(listener) = self.admin {
            let listener = TcpListener::from_std(listener).map_err(StartError::Threads)?;
            let auth = Arc::clone(&self.parts.auth);
            helpers.spawn_local(admin::serve(listener, readiness, Arc::clone(&metrics), auth, self.refusals));
        }
        let reloader = self.parts.tls.map(|(reloader, _)| reloader);
        let auth = Arc::clone(&self.parts.auth);
        helpers.spawn_local(keep_files(reloader, auth, Arc::clone(&stopped.reload), metrics));
        helpers.spawn_local(keep_issuers_keys(Arc::clone(&self.parts.auth)));
        helpers.spawn_local(sweep(Arc::clone(&self.parts.auth)));
        let drain = self.config.drain;

        let broken = tokio::select! {
            () = stopped.asked() => false,
            worker = ends.recv() => {
                error!(worker, "a worker has ended by itself; the gateway ends too");
                true
            }
            () = ended(store) => {
                error!("the token store's thread has ended by itself; the gateway ends too");
                true
            }
            _ = helpers.join_next() => {
                error!("a task that looks after the others has ended by itself; the gateway ends too");
                true
            }
        };
        info!("shutting down: no longer ready");
        controller.advance(Phase::Leaving);
        if !broken {
            tokio::select! {
                () = sleep(drain.delay) => {}
                () = stopped.asked() => return Ok(Ended::Aborted),
            }
        }
        info!(timeout = ?drain.timeout, "draining: no new connections");
        controller.advance(Phase::Draining);
        tokio::select! {
            () = all_ended(&mut ends) => {}
            () = sleep(drain.timeout) => warn!("drain.timeout is over: cutting what still runs"),
            () = stopped.asked() => return Ok(Ended::Aborted),
        }
        controller.advance(Phase::Aborted);
        let _ = tokio::time::timeout(LAST_WORDS, all_ended(&mut ends)).await;
        Ok(if broken { Ended::Broken } else { Ended::Drained { cut: 0 } })
    }
}

/// Waits for the end of the store's thread, if there is one.
async fn ended(store: &mut Option<store::Running>) {
    match store {
        Some(store) => store.ended().await,
        None => std::future::pending().await,
    }
}

async fn all_ended(ends: &mut UnboundedReceiver<usize>) {
    while ends.recv().await.is_some() {}
}

type WorkerThread = JoinHandle<io::Result<usize>>;

/// Starts a worker; `ended` hears of its end, however it comes.
fn spawn(number: usize, worker: Worker, ended: UnboundedSender<usize>) -> io::Result<WorkerThread> {
    struct Farewell(usize, UnboundedSender<usize>);
    impl Drop for Farewell {
        fn drop(&mut self) {
            let _ = self.1.send(self.0);
        }
    }
    std::thread::Builder::new().name(format!("worker-{number}")).spawn(move || {
        let _farewell = Farewell(number, ended);
        worker.run()
    })
}

/// What the workers have to say at the end.
fn collect(workers: Vec<WorkerThread>, end: Ended) -> Ended {
    let mut total = 0;
    let mut broken = end == Ended::Broken;
    for worker in workers {
        if !ends_soon(&worker) {
            error!("a worker did not end");
            broken = true;
            continue;
        }
        match worker.join() {
            Ok(Ok(cut)) => total += cut,
            Ok(Err(error)) => {
                error!(%error, "a worker failed");
                broken = true;
            }
            Err(_) => {
                error!("a worker panicked");
                broken = true;
            }
        }
    }
    info!(cut = total, "stopped");
    if broken { Ended::Broken } else { Ended::Drained { cut: total } }
}

/// A worker says farewell a moment before its thread is gone. One that is stuck is left behind: the process is about
/// to end, and must.
fn ends_soon(worker: &WorkerThread) -> bool {
    for _ in 0..100 {
        if worker.is_finished() {
            return true;
        }
        std::thread::sleep(LAST_WORDS / 100);
    }
    false
}
