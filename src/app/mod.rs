//! The whole gateway: bound, then running, then drained. It is the only place that assembles the concrete components.

pub mod audit;
mod components;
mod graceful_shutdown;
mod liveness;
mod maintenance;
mod reload;
mod sockets;
mod supervisor;
mod worker;
mod workers;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::LocalSet;
use tracing::{error, info};

use crate::admin::control::ControlReceiver;
use crate::admission::Admission;
use crate::auth::Auth;
use crate::base::clock::Clock;
use crate::base::shutdown_phase;
use crate::config::changes::LoadedSettings;
use crate::config::sources::format_problems;
use crate::config::{Config, Problem, Settings, Sources};
use crate::gateway::recent_rejections::RecentRejections;
use crate::gateway::snapshot::Snapshot;
use crate::observability::metrics::Metrics;
use crate::observability::queries::QueryJournal;
use crate::os::sd_notify::ServiceManager;
use crate::os::socket_activation::PassedSockets;
use crate::store;

use components::{Components, effective_limits, load};
use sockets::Sockets;
use supervisor::Supervisor;
use workers::Workers;

pub use audit::check_syslog;
pub use components::check;
pub use sockets::Addresses;

/// Why the gateway cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Files of the configuration are missing or invalid.
    #[error("the configuration cannot be used:{}", format_problems(.0))]
    Files(Vec<Problem>),
    /// An address cannot be bound.
    #[error("{key}: cannot listen on {address}")]
    Bind {
        /// Key of the option.
        key: &'static str,
        /// Its value: an address or the path of a socket.
        address: String,
        /// The error, with what to do about it.
        source: io::Error,
    },
    /// The service manager passed a socket for a listener that is disabled.
    #[error(
        "the service manager passes a socket for {0}, which is disabled; set an address, or remove the socket unit"
    )]
    SocketForDisabledListener(&'static str),
    /// The token store cannot start.
    #[error(transparent)]
    Store(#[from] store::StoreStartError),
    /// A thread or a runtime cannot be created.
    #[error("cannot start threads")]
    Threads(#[source] io::Error),
}

/// The way in which the gateway stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunOutcome {
    /// After a drain.
    Drained {
        /// Number of connections that were aborted because their requests did not end in time.
        cut: usize,
    },
    /// Immediately, on a second request to stop.
    Aborted,
    /// A thread or task of the gateway ended unexpectedly.
    Failed,
}

/// State inherited from the process's environment.
#[derive(Debug, Default)]
pub struct Inherited {
    /// Listening sockets of the service manager.
    pub sockets: PassedSockets,
    /// The service manager, which receives status notifications.
    pub service_manager: ServiceManager,
    /// The sources of the configuration and the settings loaded from them, for reloads. `None`: it cannot be reloaded.
    pub config_source: Option<(Sources, Settings)>,
}

/// A gateway that listens, but does not accept connections yet.
pub struct Bound {
    config: Arc<Config>,
    components: Components,
    sockets: Sockets,
    service_manager: ServiceManager,
    config_source: Option<(Sources, LoadedSettings)>,
    clock: Clock,
    metrics: Arc<Metrics>,
    store: Option<store::RunningDriver>,
    rejections: Arc<RecentRejections>,
    queries: Arc<QueryJournal>,
}

/// Loads the files of the configuration, and binds the listeners.
pub fn bind(config: Config, clock: &Clock) -> Result<Bound, StartError> {
    bind_inherited(config, Inherited::default(), clock)
}

/// Like [`bind`], with inherited state.
pub fn bind_inherited(config: Config, inherited: Inherited, clock: &Clock) -> Result<Bound, StartError> {
    // The contents of the files are hashed before they are loaded, so that any later change is detected.
    let config_source = inherited.config_source.map(|(sources, settings)| (sources, LoadedSettings::new(settings)));
    let components = load(&config, clock)?;
    let sockets = Sockets::open(&config.listen, &config.admin, inherited.sockets, config.workers)?;
    let metrics = Arc::<Metrics>::default();
    let store = components.auth.start_store(&metrics.store)?;
    let rejections = RecentRejections::new(config.workers);
    let queries = QueryJournal::new(config.workers, metrics.queries.clone());
    Ok(Bound {
        config: Arc::new(config),
        components,
        sockets,
        service_manager: inherited.service_manager,
        config_source,
        clock: clock.clone(),
        metrics,
        store,
        rejections,
        queries,
    })
}

/// Time for the workers and the store to stop after all connections were aborted.
const ABORT_TIMEOUT: Duration = Duration::from_secs(1);

impl Bound {
    /// The bound addresses, with the assigned port in place of port 0.
    pub fn addresses(&self) -> Addresses {
        self.sockets.addresses
    }

    /// The self-signed certificate that was created at start, if any.
    pub fn certificate_pem(&self) -> Option<&str> {
        self.components.certificate_pem.as_deref()
    }

    /// The tokens and the verifier.
    pub fn auth(&self) -> &Arc<Auth> {
        &self.components.auth
    }

    /// Serves until it is stopped, and drains. The calling thread becomes the supervisor.
    pub fn run(mut self, requests: ControlReceiver) -> Result<RunOutcome, StartError> {
        self.log_start();
        let (controller, signal) = shutdown_phase::channel();
        let config = &self.config;
        let limits = effective_limits(config);
        let admission = Admission::new(limits, &config.limit_rules, config.queues(), Arc::clone(&self.metrics));
        let admission = match self.components.auth.store().caller_key() {
            Some(secret) => admission.shared(&secret),
            None => admission,
        };
        let snapshot = Arc::new(Snapshot {
            config: Arc::clone(&self.config),
            auth: Arc::clone(&self.components.auth),
            admission: Arc::new(admission),
            upstreams: Arc::clone(&self.components.upstreams),
        });
        let sockets = std::mem::take(&mut self.sockets.per_worker);
        let (workers, threads) = Workers::start(&self, &snapshot, sockets, &signal).map_err(StartError::Threads)?;
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(StartError::Threads)?;
        let mut store = self.store.take();
        let supervisor = Supervisor { controller, signal, workers, snapshot, store: &mut store, requests };
        let outcome = LocalSet::new().block_on(&runtime, supervisor.run(self))?;
        if outcome == RunOutcome::Aborted {
            return Ok(outcome);
        }
        let outcome = workers::join_all(threads, outcome);
        // Nothing uses the store any more.
        if store.is_some_and(|store| !store.join_within(ABORT_TIMEOUT)) {
            error!("the token store did not stop");
        }
        Ok(outcome)
    }

    fn log_start(&self) {
        let config = &self.config;
        let Addresses { https, http, admin } = self.addresses();
        info!(
            version = env!("CARGO_PKG_VERSION"),
            https = display_address(https),
            http = display_address(http),
            http_socket = config.listen.http_socket.as_ref().map(|(path, _)| tracing::field::display(path.display())),
            admin = display_address(admin),
            workers = config.workers,
            keys = self.components.auth.known_key_count(),
            "timbr-gateway started"
        );
    }
}

fn display_address(address: Option<SocketAddr>) -> String {
    address.map_or("off".to_owned(), |address| address.to_string())
}
