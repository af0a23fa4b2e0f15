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

use crate::admin::control::Orders;
use crate::admission::Admission;
use crate::base::clock::Clock;
use crate::base::shutdown;
use crate::config::changes::Reading;
use crate::config::sources::list;
use crate::config::{Config, Problem, Settings, Sources, VerifierOptions};
use crate::gateway::recent_rejections::Refusals;
use crate::observability::metrics::Metrics;
use crate::os::sd_notify::ServiceManager;
use crate::os::socket_activation::PassedSockets;
use crate::store;

use components::{Parts, limits, load};
use sockets::Sockets;
use supervisor::Supervision;
use worker::Revision;
use workers::Crew;

pub use components::check;
pub use sockets::Addresses;

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
    /// A socket of the service manager's that the configuration does not want.
    #[error(
        "the service manager passes a socket for {0}, which is off; give it an address, or take the socket unit away"
    )]
    PassedWhatIsOff(&'static str),
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

/// What the process was given by who started it.
#[derive(Debug, Default)]
pub struct Given {
    /// Sockets that listen already.
    pub sockets: PassedSockets,
    /// Who is told how the gateway is.
    pub manager: ServiceManager,
    /// What the configuration was read from, and what was read, so that it can be read again.
    pub source: Option<(Sources, Settings)>,
}

/// A gateway that listens, but does not answer yet.
pub struct Bound {
    config: Arc<Config>,
    parts: Parts,
    sockets: Sockets,
    manager: ServiceManager,
    source: Option<(Sources, Reading)>,
    clock: Clock,
    metrics: Arc<Metrics>,
    store: Option<store::Running>,
    refusals: Arc<Refusals>,
}

/// Loads what the configuration names, and listens.
pub fn bind(config: Config, clock: &Clock) -> Result<Bound, StartError> {
    bind_with(config, Given::default(), clock)
}

/// The same, with what the process was given.
pub fn bind_with(config: Config, given: Given, clock: &Clock) -> Result<Bound, StartError> {
    // What the files hold is noted before they are read: a later state of theirs is a change.
    let source = given.source.map(|(sources, settings)| (sources, Reading::of(settings)));
    let parts = load(&config, clock)?;
    let sockets = Sockets::open(&config.listen, given.sockets, config.workers)?;
    let metrics = Arc::<Metrics>::default();
    let store = parts.auth.start_store(&metrics.store)?;
    let refusals = Refusals::new(config.workers);
    Ok(Bound {
        config: Arc::new(config),
        parts,
        sockets,
        manager: given.manager,
        source,
        clock: clock.clone(),
        metrics,
        store,
        refusals,
    })
}

/// Workers that were told to cut everything get so long to do it.
const LAST_WORDS: Duration = Duration::from_secs(1);

impl Bound {
    /// Where it listens; ports that were given as 0 are the real ones here.
    pub fn addresses(&self) -> Addresses {
        self.sockets.addresses
    }

    /// The certificate that was made at start, if one was.
    pub fn certificate_pem(&self) -> Option<&str> {
        self.parts.certificate_pem.as_deref()
    }

    /// Serves until asked to stop, and drains. The calling thread looks after the others.
    pub fn run(mut self, orders: Orders) -> Result<Ended, StartError> {
        self.announce();
        let (controller, signal) = shutdown::channel();
        let admission = Admission::new(limits(&self.config), Arc::clone(&self.metrics));
        let revision = Arc::new(Revision {
            config: Arc::clone(&self.config),
            auth: Arc::clone(&self.parts.auth),
            admission: Arc::new(admission),
            backends: Arc::clone(&self.parts.backends),
        });
        let sockets = std::mem::take(&mut self.sockets.of_workers);
        let (crew, threads) = Crew::start(&self, &revision, sockets, &signal).map_err(StartError::Threads)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(StartError::Threads)?;
        let mut store = self.store.take();
        let supervision = Supervision { controller, signal, crew, revision, store: &mut store, orders };
        let end = LocalSet::new().block_on(&runtime, supervision.of(self))?;
        if end == Ended::Aborted {
            return Ok(end);
        }
        let end = workers::collect(threads, end);
        // All who could ask it anything are gone.
        if store.is_some_and(|store| !store.finish(LAST_WORDS)) {
            error!("the token store did not end");
        }
        Ok(end)
    }

    fn announce(&self) {
        let config = &self.config;
        let Addresses { https, http, admin } = self.addresses();
        info!(
            version = env!("CARGO_PKG_VERSION"),
            https = shown(https),
            http = shown(http),
            admin = shown(admin),
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
}

fn shown(address: Option<SocketAddr>) -> String {
    address.map_or("off".to_owned(), |address| address.to_string())
}
