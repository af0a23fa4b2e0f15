//! Resolves the backends' names in the background, never as part of a request.
//!
//! The system's resolver does not report a TTL, so each name is resolved every `upstream.resolve_interval`, and sooner
//! if an endpoint refuses connections. While lookups fail, the previous addresses stay active.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::net::lookup_host;
use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};

use crate::upstream::backends::Backends;
use crate::upstream::origin::UpstreamOrigin;

/// Minimum time between two lookups of a name.
const MIN_LOOKUP_INTERVAL: Duration = Duration::from_secs(1);

/// Resolves one name until the task is dropped.
pub async fn resolve_periodically(backends: Arc<Backends>, origin: Arc<UpstreamOrigin>) {
    loop {
        let started = Instant::now();
        // `getaddrinfo` on a blocking thread.
        let found = lookup_host((origin.host.as_str(), 0)).await;
        let result = found.map(|addresses| addresses.map(|address| address.ip()).collect());
        let is_resolved = apply_lookup(&backends, &origin, result);
        let interval = backends.options.resolve_interval;
        let min_interval = MIN_LOOKUP_INTERVAL.min(interval);
        let next = started + if is_resolved { interval } else { min_interval };
        tokio::select! {
            () = sleep_until(next) => {}
            () = origin.lookup_requested.notified() => sleep_until(next.min(started + min_interval)).await,
        }
    }
}

/// Applies the result of a lookup, or keeps the previous addresses if it failed. Returns whether it succeeded.
fn apply_lookup(backends: &Backends, origin: &Arc<UpstreamOrigin>, result: io::Result<Vec<IpAddr>>) -> bool {
    let result = result.and_then(|mut addresses| {
        addresses.sort_unstable();
        addresses.dedup();
        let none = || io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        if addresses.is_empty() { Err(none()) } else { Ok(addresses) }
    });
    match result {
        Ok(addresses) => {
            // Set the addresses first: `has_been_looked_up` promises that they are set.
            backends.set_addresses(origin, &addresses);
            let previous_error = {
                let mut resolution = origin.resolution();
                resolution.resolved_at = Some(SystemTime::now());
                resolution.last_error.take()
            };
            if previous_error.is_some() {
                info!(host = origin.host, "DNS lookups of a backend succeed again");
            }
            true
        }
        Err(error) => {
            let was_failing = {
                let mut resolution = origin.resolution();
                resolution.failures += 1;
                resolution.last_error.replace(error.to_string()).is_some()
            };
            if !was_failing {
                warn!(
                    host = origin.host, %error,
                    "DNS lookup of a backend failed; its previous addresses stay active"
                );
                // Requests that wait for the first address fail now.
                backends.notify_change();
            }
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Sources, load};

    fn backends() -> Arc<Backends> {
        let variables = [
            ("API_AUTH_SALT", "cw_0x689RpI-jtRR7oE8h_eQsKImvJapLeSbXpwF4e4="),
            ("TIMBR_GATEWAY_UPSTREAM_URL", "http://backend.test:8000"),
        ];
        let environment = variables.map(|(name, value)| (name.into(), value.into())).into();
        let (config, _) = load(&Sources { environment, ..Sources::default() }).expect("valid");
        Backends::new(config.upstream, vec![None], 1)
    }

    fn addresses(backends: &Backends) -> Vec<String> {
        backends.endpoints().iter().map(|endpoint| endpoint.address.to_string()).collect()
    }

    #[test]
    fn addresses_follow_the_name_and_stay_while_lookups_fail() {
        let backends = backends();
        let origin = Arc::clone(&backends.origins()[0]);
        let find = |last: &[u8]| {
            let found = last.iter().map(|last| IpAddr::from([10, 0, 0, *last])).collect();
            apply_lookup(&backends, &origin, Ok(found))
        };
        let fail = || apply_lookup(&backends, &origin, Err(io::Error::other("down")));
        assert!(!fail());
        assert!(backends.has_looked_up_all_names() && backends.generation() == 1, "requests do not wait any longer");
        assert!(find(&[2, 1, 2]));
        assert_eq!(addresses(&backends), ["10.0.0.1:8000", "10.0.0.2:8000"]);
        let [kept, left] = [0, 1].map(|at| Arc::clone(&backends.endpoints()[at]));
        assert!(find(&[1, 3]));
        let later = ["10.0.0.1:8000", "10.0.0.3:8000"];
        assert_eq!(addresses(&backends), later);
        assert!(Arc::ptr_eq(&backends.endpoints()[0], &kept), "a known endpoint is kept");
        assert!(left.is_removed() && !kept.is_removed());
        assert!(!find(&[]) && !fail() && !fail());
        assert_eq!((addresses(&backends), origin.resolution().failures), (later.map(String::from).into(), 4));
    }

    #[test]
    fn addresses_are_set_before_the_lookup_is_reported() {
        for _ in 0..2000 {
            let backends = backends();
            let origin = &backends.origins()[0];
            std::thread::scope(|scope| {
                scope.spawn(|| apply_lookup(&backends, origin, Ok(vec![IpAddr::from([10, 0, 0, 1])])));
                while !backends.has_looked_up_all_names() {
                    std::hint::spin_loop();
                }
                assert_eq!((addresses(&backends).len(), backends.generation()), (1, 1));
            });
        }
    }
}
