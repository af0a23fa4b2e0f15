//! The whole gateway: bound, then running, then drained. The only place that puts concrete parts together.

mod components;
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
use tracing::{error, info, warn};

use crate::admin::control::ControlReceiver;
use crate::admission::Admission;
use crate::base::clock::Clock;
use crate::base::shutdown;
use crate::config::changes::LoadedSettings;
use crate::config::sources::format_problems;
use crate::config::{Config, Problem, Settings, Sources, VerifierOptions};
use crate::gateway::recent_rejections::RecentRejections;
use crate::observability::metrics::Metrics;
use crate::os::sd_notify::ServiceManager;
use crate::os::socket_activation::PassedSockets;
use crate::store;

use components::{Components, effective_limits, load};
use sockets::Sockets;
use supervisor::Supervisor;
use worker::Snapshot;
use workers::Workers;

pub use components::check;
pub use sockets::Addresses;

/// Why the gateway does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Files that the configuration names.
    #[error("the configuration cannot be used:{}", format_problems(.0))]
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
    /// A socket of the service manager's that the configuration does not want.
    #[error(
        "the service manager passes a socket for {0}, which is off; give it an address, or take the socket unit away"
    )]
    SocketForDisabledListener(&'static str),
    /// The store of tokens.
    #[error(transparent)]
    Store(#[from] store::StoreStartError),
    /// A thread or runtime.
    #[error("cannot start threads")]
    Threads(#[source] io::Error),
}

/// How the gateway ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunOutcome {
    /// As asked; so many connections were cut after the grace period.
    Drained {
        /// Connections whose requests did not end in time.
        cut: usize,
    },
    /// At once, as asked a second time.
    Aborted,
    /// A worker ended that should not have.
    Failed,
}

/// What the process was given by who started it.
#[derive(Debug, Default)]
pub struct Inherited {
    /// Sockets that listen already.
    pub sockets: PassedSockets,
    /// Who is told how the gateway is.
    pub service_manager: ServiceManager,
    /// What the configuration was read from, and what was read, so that it can be read again.
    pub config_source: Option<(Sources, Settings)>,
}

/// A gateway that listens, but does not answer yet.
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
}

/// Loads what the configuration names, and listens.
pub fn bind(config: Config, clock: &Clock) -> Result<Bound, StartError> {
    bind_inherited(config, Inherited::default(), clock)
}

/// The same, with what the process was given.
pub fn bind_inherited(config: Config, given: Inherited, clock: &Clock) -> Result<Bound, StartError> {
    // What the files hold is noted before they are read: a later state of theirs is a change.
    let source = given.config_source.map(|(sources, settings)| (sources, LoadedSettings::new(settings)));
    let parts = load(&config, clock)?;
    let sockets = Sockets::open(&config.listen, given.sockets, config.workers)?;
    let metrics = Arc::<Metrics>::default();
    let store = parts.auth.start_store(&metrics.store)?;
    let refusals = RecentRejections::new(config.workers);
    Ok(Bound {
        config: Arc::new(config),
        components: parts,
        sockets,
        service_manager: given.service_manager,
        config_source: source,
        clock: clock.clone(),
        metrics,
        store,
        rejections: refusals,
    })
}

/// Workers that were told to cut everything get so long to do it.
const ABORT_TIMEOUT: Duration = Duration::from_secs(1);

impl Bound {
    /// Where it listens; ports that were given as 0 are the real ones here.
    pub fn addresses(&self) -> Addresses {
        self.sockets.addresses
    }

    /// The certificate that was made at start, if one was.
    pub fn certificate_pem(&self) -> Option<&str> {
        self.components.certificate_pem.as_deref()
    }

    /// Serves until asked to stop, and drains. The calling thread looks after the others.
    pub fn run(mut self, orders: ControlReceiver) -> Result<RunOutcome, StartError> {
        self.log_start();
        let (controller, signal) = shutdown::channel();
        let admission = Admission::new(effective_limits(&self.config), Arc::clone(&self.metrics));
        let revision = Arc::new(Snapshot {
            config: Arc::clone(&self.config),
            auth: Arc::clone(&self.components.auth),
            admission: Arc::new(admission),
            backends: Arc::clone(&self.components.backends),
        });
        let sockets = std::mem::take(&mut self.sockets.per_worker);
        let (crew, threads) =
            Workers::start(&self, &revision, sockets, &signal).map_err(StartError::Threads)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(StartError::Threads)?;
        let mut store = self.store.take();
        let supervision =
            Supervisor { controller, signal, workers: crew, snapshot: revision, store: &mut store, orders };
        let end = LocalSet::new().block_on(&runtime, supervision.run(self))?;
        if end == RunOutcome::Aborted {
            return Ok(end);
        }
        let end = workers::join_all(threads, end);
        // All who could ask it anything are gone.
        if store.is_some_and(|store| !store.join_within(ABORT_TIMEOUT)) {
            error!("the token store did not end");
        }
        Ok(end)
    }

    fn log_start(&self) {
        let config = &self.config;
        let Addresses { https, http, admin } = self.addresses();
        info!(
            version = env!("CARGO_PKG_VERSION"),
            https = display_address(https),
            http = display_address(http),
            admin = display_address(admin),
            workers = config.workers,
            keys = self.components.auth.known_key_count(),
            "timbr-gateway started"
        );
        if self.components.certificate_pem.is_some() {
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
}

fn display_address(address: Option<SocketAddr>) -> String {
    address.map_or("off".to_owned(), |address| address.to_string())
}
