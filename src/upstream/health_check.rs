//! The background tasks for the backends, once for the process: DNS lookups, health checks, and probes of ejected
//! endpoints, so that no client request is needed to find out. It knows nothing about workers or clients.

use std::collections::HashMap;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{Method, StatusCode, Uri};
use tokio::task::JoinSet;
use tokio::time::{interval, sleep, timeout};
use tracing::{info, warn};

use crate::http::h1::request::write_request_start;
use crate::http::h1::response::write_header;
use crate::http::headers::HeaderName;
use crate::upstream::backends::Backends;
use crate::upstream::connect::connect;
use crate::upstream::connection::{UpstreamConnection, UpstreamConnectionGuard};
use crate::upstream::endpoint::{Endpoint, EndpointFailure, EndpointState};
use crate::upstream::exchange::{Upload, UpstreamExchange};
use crate::upstream::name_resolution::resolve_periodically;
use crate::upstream::request_body::RequestBody;
use crate::upstream::silence::SilenceEvent;
use crate::upstream::{OutgoingMessage, UpstreamError};

/// Time between two connection attempts to an endpoint that refuses connections.
const PROBE_INTERVAL: Duration = Duration::from_millis(250);

/// Maximum time between two health checks of an unhealthy endpoint.
const RECOVERY_INTERVAL: Duration = Duration::from_secs(1);

/// Interval of the check for endpoints that do not respond.
const SILENCE_INTERVAL: Duration = Duration::from_secs(1);

/// Timeout of the additional connection attempts during a slow one.
const QUICK_PROBE_TIMEOUT: Duration = Duration::from_secs(1);

impl Backends {
    /// Maintains names and endpoints. Never returns, unless one of its tasks panics; must run on a `LocalSet`.
    pub async fn maintain(self: Arc<Backends>) {
        let mut tasks = JoinSet::new();
        for origin in self.origins().iter().filter(|origin| origin.fixed_address().is_none()) {
            tasks.spawn_local(resolve_periodically(Arc::clone(&self), Arc::clone(origin)));
        }
        let mut changes = self.subscribe();
        let mut watched = HashMap::new();
        let mut ticks = interval(SILENCE_INTERVAL);
        loop {
            changes.borrow_and_update();
            watched.retain(|_, endpoint: &mut Arc<Endpoint>| !endpoint.is_removed());
            for endpoint in self.endpoints().iter() {
                let key = Arc::as_ptr(endpoint) as usize;
                if watched.insert(key, Arc::clone(endpoint)).is_none() {
                    tasks.spawn_local(watch_endpoint(Arc::clone(&self), Arc::clone(endpoint)));
                }
            }
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return },
                _ = ticks.tick() => self.endpoints().iter().for_each(|endpoint| report_silence(endpoint)),
                // A panic in one task ends all of them, and the caller notices.
                ended = tasks.join_next(), if !tasks.is_empty() => if ended.is_some_and(|end| end.is_err()) { return },
            }
        }
    }
}

/// Logs when an endpoint sends no response although requests wait, and the end of that.
fn report_silence(endpoint: &Endpoint) {
    let name = &*endpoint.origin.authority;
    match endpoint.observe_silence() {
        Some(SilenceEvent::Began) => {
            let waiting = endpoint.totals().waiting;
            warn!(
                backend = name, address = %endpoint.address, waiting,
                "endpoint sends no response: it hangs, or all its queries are long"
            );
        }
        Some(SilenceEvent::Ended) => {
            info!(backend = name, address = %endpoint.address, "endpoint has responded, or its requests have ended");
        }
        None => {}
    }
}

/// Checks and probes one endpoint until it is removed.
async fn watch_endpoint(backends: Arc<Backends>, endpoint: Arc<Endpoint>) {
    let mut checks = HealthCheckStreak::default();
    while !endpoint.is_removed() {
        let (state, health) = endpoint.state_and_health();
        let wait = match (state, health.failure) {
            (EndpointState::Ejected, Some(EndpointFailure::HealthCheck)) => {
                backends.options.health.health_interval.min(RECOVERY_INTERVAL)
            }
            (EndpointState::Ejected, _) => {
                let until = health.ejected_until.map(|until| until.saturating_duration_since(Instant::now()));
                until.unwrap_or_default().max(PROBE_INTERVAL)
            }
            _ if backends.options.health.health_path.is_some() => backends.options.health.health_interval,
            _ => Duration::MAX,
        };
        let is_due = tokio::select! {
            () = endpoint.state_changed.notified() => false,
            () = endpoint.probe_requested.notified() => {
                probe_with_full_timeout(&backends, &endpoint).await;
                false
            }
            () = sleep(wait) => true,
        };
        // A notification only changes what to wait for.
        if is_due && !endpoint.is_removed() {
            match state {
                EndpointState::Ejected if health.failure != Some(EndpointFailure::HealthCheck) => {
                    probe_ejected(&backends, &endpoint).await;
                }
                _ => checks.run_check(&backends, &endpoint).await,
            }
        }
    }
}

/// Connects with the full timeout, which requests did not wait for, and ejects the endpoint if that fails.
async fn probe_with_full_timeout(backends: &Backends, endpoint: &Endpoint) {
    let connected = connect(endpoint, backends.options.connect_timeout).await;
    endpoint.reset_short_connect_timeouts();
    if let Err(error) = connected {
        let is_timeout = error.kind() == io::ErrorKind::TimedOut;
        backends.eject_unreachable(
            endpoint,
            if is_timeout { EndpointFailure::ConnectTimeout } else { EndpointFailure::Connect },
        );
    }
}

/// Returns whether an endpoint accepts connections. The first attempt has the full timeout; more attempts start in the
/// meantime, because a restarted backend may have lost the packets of the first.
async fn can_connect(endpoint: &Arc<Endpoint>, limit: Duration) -> bool {
    let mut first = pin!(connect(endpoint, limit));
    // Attempts of the last second: at most four.
    let mut quick = JoinSet::new();
    loop {
        tokio::select! {
            outcome = &mut first => return outcome.is_ok(),
            Some(Ok(true)) = quick.join_next() => return true,
            () = sleep(PROBE_INTERVAL) => {
                let endpoint = Arc::clone(endpoint);
                quick.spawn_local(async move { connect(&endpoint, QUICK_PROBE_TIMEOUT).await.is_ok() });
            }
        }
    }
}

/// Probes an endpoint that was ejected by requests.
async fn probe_ejected(backends: &Backends, endpoint: &Arc<Endpoint>) {
    let (_, health) = endpoint.state_and_health();
    if !can_connect(endpoint, backends.options.connect_timeout).await {
        return;
    }
    if let Some(path) = &backends.options.health.health_path
        && send_health_check(backends, endpoint, path).await.is_err()
    {
        // From now on the health checks decide when it is healthy.
        return endpoint.set_failure(EndpointFailure::HealthCheck);
    }
    // After a connection failure, a connection is enough; after other failures, it shows nothing.
    let on_trial = !health.failure.is_some_and(EndpointFailure::is_connect_failure);
    let state = if on_trial { EndpointState::Probing } else { EndpointState::Healthy };
    if endpoint.restore(state, &backends.options.health, Instant::now()) {
        info!(
            backend = &*endpoint.origin.authority, address = %endpoint.address, on_trial,
            "endpoint restored"
        );
    }
}

/// The most recent health checks with the same result.
#[derive(Default)]
struct HealthCheckStreak {
    failed: u32,
    succeeded: u32,
    /// The endpoint's number of ejections when this streak started.
    ejections: u64,
}

impl HealthCheckStreak {
    async fn run_check(&mut self, backends: &Backends, endpoint: &Arc<Endpoint>) {
        let Some(path) = &backends.options.health.health_path else { return };
        let options = &backends.options.health;
        if self.ejections != endpoint.ejections() {
            // Checks from before the ejection do not count.
            *self = HealthCheckStreak { ejections: endpoint.ejections(), ..HealthCheckStreak::default() };
        }
        let outcome = send_health_check(backends, endpoint, path).await;
        match &outcome {
            Ok(()) => (self.failed, self.succeeded) = (0, self.succeeded.saturating_add(1)),
            Err(_) => (self.failed, self.succeeded) = (self.failed.saturating_add(1), 0),
        }
        let state = endpoint.state();
        let name = &*endpoint.origin.authority;
        match outcome {
            Ok(()) if state == EndpointState::Ejected && self.succeeded >= options.healthy_after => {
                endpoint.restore(EndpointState::Healthy, options, Instant::now());
                info!(backend = name, address = %endpoint.address, "endpoint restored: health checks succeed");
            }
            Err(why) if state != EndpointState::Ejected && self.failed >= options.unhealthy_after => {
                endpoint.eject(EndpointFailure::HealthCheck, options, Instant::now());
                warn!(
                    backend = name, address = %endpoint.address, path, why,
                    "endpoint ejected: health checks fail"
                );
            }
            _ => {}
        }
    }
}

/// Sends a health check on a new connection. SECURITY: it carries no data of any client.
async fn send_health_check(backends: &Backends, endpoint: &Arc<Endpoint>, path: &str) -> Result<(), String> {
    let check = async {
        let limit = backends.options.connect_timeout;
        let stream = connect(endpoint, limit).await.map_err(|error| error.to_string())?;
        let mut connection = UpstreamConnection::new(stream, UpstreamConnectionGuard::uncounted());
        let mut upload = Upload::new(health_check_message(path), &endpoint.origin.authority);
        let mut exchange = UpstreamExchange::new(&mut connection, &mut upload, &Method::GET);
        let head = std::future::poll_fn(|cx| exchange.poll(cx, &mut false)).await;
        head.map(|head| head.status).map_err(|error: UpstreamError| error.to_string())
    };
    match timeout(backends.options.health.health_interval, check).await {
        Ok(Ok(status)) if is_healthy(status) => Ok(()),
        Ok(Ok(status)) => Err(format!("status {status}")),
        Ok(Err(error)) => Err(error),
        Err(_) => Err("timeout".to_owned()),
    }
}

fn is_healthy(status: StatusCode) -> bool {
    status.is_success() || status.is_redirection()
}

fn health_check_message(path: &str) -> OutgoingMessage {
    let uri: Uri = path.parse().expect("the configuration checked it");
    let mut head = Vec::new();
    write_request_start(&mut head, &Method::GET, &uri);
    write_header(&mut head, HeaderName::Host, b"");
    let host_offset = Some(head.len());
    write_header(&mut head, HeaderName::UserAgent, b"timbr-gateway");
    write_header(&mut head, HeaderName::Accept, b"*/*");
    write_header(&mut head, HeaderName::Connection, b"close");
    OutgoingMessage { method: Method::GET, head, host_offset, body: RequestBody::empty() }
}
