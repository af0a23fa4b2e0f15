//! What the backends' names mean: looked up in the background, again and again, never by a request.
//!
//! The system's resolver does not say for how long an answer is good, so names are looked up every
//! `upstream.resolve_interval`, and sooner where an address does not take connections. While a name cannot be looked up,
//! what was known stays in use.

use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::net::lookup_host;
use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};

use crate::upstream::backends::Backends;
use crate::upstream::origin::Origin;

/// Between two questions for one name, whatever the reason.
const SOONEST: Duration = Duration::from_secs(1);

/// Who is asked.
pub trait Resolver {
    /// All addresses of a name.
    fn look_up(&self, host: &str) -> Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>>>>;
}

/// `getaddrinfo`, on a thread that nobody waits for otherwise.
pub struct SystemResolver;

impl Resolver for SystemResolver {
    fn look_up(&self, host: &str) -> Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>>>> {
        let host = host.to_owned();
        Box::pin(async move { Ok(lookup_host((host, 0)).await?.map(|address| address.ip()).collect()) })
    }
}

/// Looks up one name for as long as the task lives.
pub async fn keep_resolved(backends: Arc<Backends>, origin: Arc<Origin>, resolver: impl Resolver) {
    loop {
        let begun = Instant::now();
        let found = resolver.look_up(&origin.host).await;
        let is_known = take(&backends, &origin, found);
        let pause = if is_known { backends.options.resolve_interval } else { SOONEST };
        let next = begun + pause.max(SOONEST.min(backends.options.resolve_interval));
        tokio::select! {
            () = sleep_until(next) => {}
            () = backends.doubted.notified() => sleep_until(next.min(begun + SOONEST)).await,
        }
    }
}

/// Takes an answer over, or keeps what there was. Says whether the name was found.
fn take(backends: &Backends, origin: &Arc<Origin>, found: io::Result<Vec<IpAddr>>) -> bool {
    let found = found.and_then(|mut found| {
        found.sort_unstable();
        found.dedup();
        let none = || io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        if found.is_empty() { Err(none()) } else { Ok(found) }
    });
    match found {
        Ok(found) => {
            let failed = {
                let mut resolution = origin.resolution();
                resolution.found = Some(SystemTime::now());
                resolution.failing.take()
            };
            if failed.is_some() {
                info!(host = origin.host, "a backend's name can be looked up again");
            }
            backends.set_addresses(origin, &found);
            true
        }
        Err(error) => {
            let was_failing = {
                let mut resolution = origin.resolution();
                resolution.failures += 1;
                resolution.failing.replace(error.to_string()).is_some()
            };
            if !was_failing {
                warn!(
                    host = origin.host, %error,
                    "a backend's name cannot be looked up; its addresses stay as they were"
                );
                // Who waits for the first address need not wait longer.
                backends.tell_of_change();
            }
            false
        }
    }
}
