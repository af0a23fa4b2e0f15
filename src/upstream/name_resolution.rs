//! Resolves the backends' names in the background, never as part of a request.
//!
//! The system's resolver does not report a TTL, so each name is resolved every `upstream.resolve_interval`, and sooner
//! if an endpoint refuses connections. While lookups fail, the previous addresses stay active.

use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::net::lookup_host;
use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};

use crate::upstream::backends::Backends;
use crate::upstream::origin::UpstreamOrigin;

/// Minimum time between two lookups of a name.
const MIN_LOOKUP_INTERVAL: Duration = Duration::from_secs(1);

/// Resolves names; a trait so that tests can script the results.
pub trait Resolver {
    /// Returns all addresses of a name.
    fn look_up(&self, host: &str) -> Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>>>>;
}

/// `getaddrinfo` on a blocking thread.
pub struct SystemResolver;

impl Resolver for SystemResolver {
    fn look_up(&self, host: &str) -> Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>>>> {
        let host = host.to_owned();
        Box::pin(async move { Ok(lookup_host((host, 0)).await?.map(|address| address.ip()).collect()) })
    }
}

/// Resolves one name until the task is dropped.
pub async fn resolve_periodically(backends: Arc<Backends>, origin: Arc<UpstreamOrigin>, resolver: impl Resolver) {
    loop {
        let started = Instant::now();
        let result = resolver.look_up(&origin.host).await;
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
    use std::cell::RefCell;
    use std::collections::VecDeque;
    use std::rc::Rc;

    use tokio::task::LocalSet;

    use super::*;
    use crate::config::{Sources, load};

    type LookupResults = Rc<RefCell<VecDeque<io::Result<Vec<IpAddr>>>>>;

    /// Returns the scripted results one by one, then errors.
    struct ScriptedResolver(LookupResults);

    impl Resolver for ScriptedResolver {
        fn look_up(&self, host: &str) -> Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>>>> {
            assert_eq!(host, "backend.test");
            let next = self.0.borrow_mut().pop_front();
            Box::pin(async move { next.unwrap_or_else(|| Err(io::Error::other("the script has ended"))) })
        }
    }

    fn backends() -> Arc<Backends> {
        let variables = [
            ("API_AUTH_SALT", "cw_0x689RpI-jtRR7oE8h_eQsKImvJapLeSbXpwF4e4="),
            ("TIMBR_GATEWAY_UPSTREAM_URL", "http://backend.test:8000"),
            ("TIMBR_GATEWAY_UPSTREAM_RESOLVE_INTERVAL", "5ms"),
        ];
        let environment = variables.map(|(name, value)| (name.into(), value.into())).into();
        let (config, _) = load(&Sources { environment, ..Sources::default() }).expect("valid");
        Backends::new(config.upstream, vec![None], 1)
    }

    fn addresses(backends: &Backends) -> Vec<String> {
        backends.endpoints().iter().map(|endpoint| endpoint.address.to_string()).collect()
    }

    #[tokio::test]
    async fn addresses_follow_the_name_and_stay_while_lookups_fail() {
        let backends = backends();
        let origin = Arc::clone(&backends.origins()[0]);
        let ips = |list: &[&str]| -> io::Result<Vec<IpAddr>> {
            Ok(list.iter().map(|ip| ip.parse().expect("an address")).collect())
        };
        let answers = LookupResults::default();
        let script = |answer| answers.borrow_mut().push_back(answer);
        script(Err(io::Error::other("down")));
        script(ips(&["10.0.0.2", "10.0.0.1", "10.0.0.2"]));
        script(ips(&["10.0.0.1", "10.0.0.3"]));
        script(ips(&[]));
        script(Err(io::Error::other("down")));
        let mut changes = backends.subscribe();
        let local = LocalSet::new();
        local.spawn_local(resolve_periodically(Arc::clone(&backends), Arc::clone(&origin), ScriptedResolver(answers)));
        local
            .run_until(async {
                // The name has no address: requests do not wait any longer.
                changes.changed().await.expect("the sender exists");
                assert!(backends.has_looked_up_all_names() && addresses(&backends).is_empty());
                changes.changed().await.expect("the sender exists");
                assert_eq!(addresses(&backends), ["10.0.0.1:8000", "10.0.0.2:8000"]);
                let [kept, left] = [0, 1].map(|at| Arc::clone(&backends.endpoints()[at]));
                changes.changed().await.expect("the sender exists");
                assert_eq!(addresses(&backends), ["10.0.0.1:8000", "10.0.0.3:8000"]);
                assert!(Arc::ptr_eq(&backends.endpoints()[0], &kept), "a known endpoint is kept");
                assert!(left.is_removed() && !kept.is_removed());
                while origin.resolution().failures < 4 {
                    tokio::time::sleep(std::time::Duration::from_millis(1)).await;
                }
                assert_eq!(addresses(&backends), ["10.0.0.1:8000", "10.0.0.3:8000"], "known addresses stay");
            })
            .await;
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
