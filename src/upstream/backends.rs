//! All addresses of all backends, once for the process: workers take from here where requests may go, and tell what
//! became of them.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use http::StatusCode;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::config::UpstreamOptions;
use crate::tls::UpstreamTls;
use crate::upstream::UpstreamError;
use crate::upstream::endpoint::{Endpoint, Failure, Standing};
use crate::upstream::origin::Origin;

/// The backends, and which of their addresses are in use.
pub struct Backends {
    pub(super) options: UpstreamOptions,
    origins: Vec<Arc<Origin>>,
    workers: usize,
    endpoints: Mutex<Arc<[Arc<Endpoint>]>>,
    /// Counts how often the addresses changed: what a worker looks at with each request.
    generation: AtomicU64,
    /// The same, for who waits for it.
    changes: watch::Sender<u64>,
}

impl Backends {
    /// With the addresses that need no looking up. `tls` has one entry for each backend; `workers` will ask.
    pub fn new(options: UpstreamOptions, tls: Vec<Option<UpstreamTls>>, workers: usize) -> Arc<Backends> {
        let origins: Vec<_> = options.urls.iter().zip(tls).map(|(url, tls)| Origin::new(url, tls)).collect();
        let known = origins.iter().filter_map(|origin| Some((origin, origin.literal()?)));
        let endpoints: Vec<_> = known
            .map(|(origin, ip)| Endpoint::new(Arc::clone(origin), SocketAddr::new(ip, origin.port), workers))
            .collect();
        Arc::new(Backends {
            options,
            origins,
            workers,
            endpoints: Mutex::new(endpoints.into()),
            generation: AtomicU64::new(0),
            changes: watch::Sender::new(0),
        })
    }

    /// Each backend.
    pub fn origins(&self) -> &[Arc<Origin>] {
        &self.origins
    }

    /// All addresses.
    pub fn endpoints(&self) -> Arc<[Arc<Endpoint>]> {
        Arc::clone(&self.lock())
    }

    /// Another number means other addresses.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Relaxed)
    }

    /// Hears of other addresses.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Whether any request can be sent.
    pub fn is_usable(&self) -> bool {
        self.lock().iter().any(|endpoint| endpoint.standing() != Standing::OutOfUse)
    }

    /// Whether each name was looked up once.
    pub fn are_looked_up(&self) -> bool {
        self.origins.iter().all(|origin| origin.was_looked_up())
    }

    /// A name means these addresses now. What stays is left as it is; what is gone ends with its requests.
    pub(super) fn set_addresses(&self, origin: &Arc<Origin>, found: &[IpAddr]) {
        let mut endpoints = self.lock();
        let is_ours = |endpoint: &&Arc<Endpoint>| Arc::ptr_eq(&endpoint.origin, origin);
        let (kept, left): (Vec<_>, Vec<_>) = endpoints
            .iter()
            .partition(|endpoint| !is_ours(endpoint) || found.contains(&endpoint.address.ip()));
        let is_new =
            |ip: &&IpAddr| !endpoints.iter().filter(is_ours).any(|endpoint| endpoint.address.ip() == **ip);
        let new: Vec<_> = found
            .iter()
            .filter(is_new)
            .map(|ip| Endpoint::new(Arc::clone(origin), SocketAddr::new(*ip, origin.port), self.workers))
            .collect();
        if left.is_empty() && new.is_empty() {
            return;
        }
        let told = |endpoints: &mut dyn Iterator<Item = &Arc<Endpoint>>| {
            endpoints.map(|endpoint| endpoint.address.ip().to_string()).collect::<Vec<_>>().join(" ")
        };
        info!(
            backend = &*origin.authority,
            new = told(&mut new.iter()),
            gone = told(&mut left.iter().copied()),
            "a backend has other addresses"
        );
        let left: Vec<_> = left.into_iter().map(Arc::clone).collect();
        *endpoints = kept.into_iter().map(Arc::clone).chain(new).collect();
        drop(endpoints);
        for endpoint in left {
            endpoint.leave();
        }
        self.tell_of_change();
    }

    /// Tells everybody that there are other addresses, or that it is known that there are none.
    pub(super) fn tell_of_change(&self) {
        let generation = self.generation.fetch_add(1, Ordering::Relaxed) + 1;
        self.changes.send_replace(generation);
    }

    /// An address has answered with this status.
    pub(super) fn answered(&self, endpoint: &Endpoint, status: StatusCode) {
        match status {
            StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT => {
                self.failed(endpoint, Failure::Status);
            }
            _ => endpoint.answered(),
        }
    }

    /// An address has not answered. Many times in a row take it out of use.
    pub(super) fn failed(&self, endpoint: &Endpoint, why: Failure) {
        let strikes = endpoint.struck();
        if why.is_of_connecting() {
            endpoint.origin.doubted.notify_one();
        }
        let most = self.options.health.eject_after;
        if most == 0 || strikes < most {
            return;
        }
        // One decision at a time: two at once could leave too few.
        let endpoints = self.lock();
        if !why.is_of_connecting() && !can_be_spared(endpoint, &endpoints) {
            if strikes == most {
                warn!(
                    backend = &*endpoint.origin.authority, address = %endpoint.address, why = why.word(),
                    "an address of the backend fails, and stays in use: half of the addresses would not be left"
                );
            }
            return;
        }
        if endpoint.eject(why, &self.options.health, Instant::now()) {
            warn!(
                backend = &*endpoint.origin.authority, address = %endpoint.address, why = why.word(), strikes,
                "an address of the backend is out of use"
            );
        }
    }

    /// For a connection, whichever it is.
    pub(super) fn connect_timeout(&self) -> Duration {
        self.options.connect_timeout
    }

    /// Why there is no address for a request.
    pub(super) fn why_there_is_none(&self) -> UpstreamError {
        if !self.lock().is_empty() {
            return UpstreamError::Unavailable;
        }
        let failing = self.origins.iter().find_map(|origin| origin.resolution().failing.clone());
        let why = failing.unwrap_or_else(|| "the name has no address".to_owned());
        UpstreamError::Connect(io::Error::new(io::ErrorKind::NotFound, why))
    }

    /// Nothing that panics happens while it is held.
    fn lock(&self) -> MutexGuard<'_, Arc<[Arc<Endpoint>]>> {
        self.endpoints.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether half of all addresses are in use without this one. What still takes connections may be better than it seems:
/// the requests themselves may be what is wrong.
fn can_be_spared(endpoint: &Endpoint, all: &[Arc<Endpoint>]) -> bool {
    let others = all.iter().filter(|other| !std::ptr::eq(Arc::as_ptr(other), endpoint));
    let in_use = others.filter(|other| other.standing() == Standing::InUse).count();
    in_use > 0 && in_use * 2 >= all.len()
}
