//! What is done for the backends beside the requests, once for the process: names are looked up, addresses are checked, and
//! those that are out of use are tried, so that no request has to be the one that finds out.

use std::collections::HashMap;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{Method, StatusCode, Uri};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use crate::http::h1::request::write_request_start;
use crate::http::h1::response::write_header;
use crate::http::headers::HeaderName;
use crate::upstream::backends::Backends;
use crate::upstream::connect::connect;
use crate::upstream::connection::{UpstreamConnection, UpstreamConnectionGuard};
use crate::upstream::endpoint::{Endpoint, EndpointFailure, EndpointState};
use crate::upstream::exchange::{Upload, UpstreamExchange};
use crate::upstream::name_resolution::{SystemResolver, resolve_periodically};
use crate::upstream::request_body::RequestBody;
use crate::upstream::{OutgoingMessage, UpstreamError};

/// How often an address that takes no connections is tried.
const PROBE_INTERVAL: Duration = Duration::from_millis(250);

/// How often one is checked at least that is out of use by its checks.
const RECOVERY_INTERVAL: Duration = Duration::from_secs(1);

/// Longest trial that is begun while another one goes on.
const QUICK_PROBE_TIMEOUT: Duration = Duration::from_secs(1);

impl Backends {
    /// Looks after names and addresses. Never ends by itself; must be called on a `LocalSet`.
    pub async fn maintain(self: Arc<Backends>) {
        let mut tasks = JoinSet::new();
        for origin in self.origins().iter().filter(|origin| origin.ip_literal().is_none()) {
            tasks.spawn_local(resolve_periodically(Arc::clone(&self), Arc::clone(origin), SystemResolver));
        }
        let mut changes = self.subscribe();
        let mut cared_for = HashMap::new();
        loop {
            changes.borrow_and_update();
            cared_for.retain(|_, endpoint: &mut Arc<Endpoint>| !endpoint.is_removed());
            for endpoint in self.endpoints().iter() {
                let key = Arc::as_ptr(endpoint) as usize;
                if cared_for.insert(key, Arc::clone(endpoint)).is_none() {
                    tasks.spawn_local(watch_endpoint(Arc::clone(&self), Arc::clone(endpoint)));
                }
            }
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return },
                // One that panicked takes the others along: whoever called this sees it end.
                ended = tasks.join_next(), if !tasks.is_empty() => if ended.is_some_and(|end| end.is_err()) { return },
            }
        }
    }
}

/// Looks after one address until it is gone.
async fn watch_endpoint(backends: Arc<Backends>, endpoint: Arc<Endpoint>) {
    let mut checks = HealthCheckStreak::default();
    while !endpoint.is_removed() {
        let (standing, health) = endpoint.state_and_health();
        let wait = match (standing, health.failure) {
            (EndpointState::Ejected, Some(EndpointFailure::HealthCheck)) => {
                backends.options.health.interval.min(RECOVERY_INTERVAL)
            }
            (EndpointState::Ejected, _) => {
                let until = health.ejected_until.map(|until| until.saturating_duration_since(Instant::now()));
                until.unwrap_or_default().max(PROBE_INTERVAL)
            }
            _ if backends.options.health.path.is_some() => backends.options.health.interval,
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
        // A change only says that there is something else to wait for.
        if is_due && !endpoint.is_removed() {
            match standing {
                EndpointState::Ejected if health.failure != Some(EndpointFailure::HealthCheck) => {
                    probe_ejected(&backends, &endpoint).await;
                }
                _ => checks.run_check(&backends, &endpoint).await,
            }
        }
    }
}

/// Gives an address the whole time to take a connection, as requests did not, and takes it out of use if it does not.
async fn probe_with_full_timeout(backends: &Backends, endpoint: &Endpoint) {
    let connected = connect(endpoint, backends.connect_timeout()).await;
    endpoint.reset_short_connect_timeouts();
    if let Err(error) = connected {
        let is_late = error.kind() == io::ErrorKind::TimedOut;
        backends.eject_unreachable(
            endpoint,
            if is_late { EndpointFailure::ConnectTimeout } else { EndpointFailure::Connect },
        );
    }
}

/// Whether an address takes connections. One that is begun has the whole time; meanwhile others are begun, for a backend
/// that comes back may know nothing of the first.
async fn can_connect(endpoint: &Arc<Endpoint>, limit: Duration) -> bool {
    let mut patient = pin!(connect(endpoint, limit));
    // Those of the last second, so four at most.
    let mut quick = JoinSet::new();
    loop {
        tokio::select! {
            outcome = &mut patient => return outcome.is_ok(),
            Some(Ok(true)) = quick.join_next() => return true,
            () = sleep(PROBE_INTERVAL) => {
                let endpoint = Arc::clone(endpoint);
                quick.spawn_local(async move { connect(&endpoint, QUICK_PROBE_TIMEOUT).await.is_ok() });
            }
        }
    }
}

/// Tries an address that requests took out of use.
async fn probe_ejected(backends: &Backends, endpoint: &Arc<Endpoint>) {
    let (_, health) = endpoint.state_and_health();
    if !can_connect(endpoint, backends.connect_timeout()).await {
        return;
    }
    if let Some(path) = &backends.options.health.path
        && send_health_check(backends, endpoint, path).await.is_err()
    {
        // From here on its checks say when it is well.
        return endpoint.set_failure(EndpointFailure::HealthCheck);
    }
    // A connection is all that was missing, or it shows nothing.
    let on_trial = !health.failure.is_some_and(EndpointFailure::is_connect_failure);
    if endpoint.restore(on_trial, &backends.options.health, Instant::now()) {
        info!(
            backend = &*endpoint.origin.authority, address = %endpoint.address, on_trial,
            "an address of the backend is in use again"
        );
    }
}

/// The checks of `upstream.health_path`, as far as they agree.
#[derive(Default)]
struct HealthCheckStreak {
    failed: u32,
    succeeded: u32,
    /// How often the address had gone out of use when these were begun.
    ejections: u64,
}

impl HealthCheckStreak {
    async fn run_check(&mut self, backends: &Backends, endpoint: &Arc<Endpoint>) {
        let Some(path) = &backends.options.health.path else { return };
        let options = &backends.options.health;
        if self.ejections != endpoint.ejections() {
            // How it was before says nothing of whether it is well again.
            *self = HealthCheckStreak { ejections: endpoint.ejections(), ..HealthCheckStreak::default() };
        }
        let outcome = send_health_check(backends, endpoint, path).await;
        match &outcome {
            Ok(()) => (self.failed, self.succeeded) = (0, self.succeeded.saturating_add(1)),
            Err(_) => (self.failed, self.succeeded) = (self.failed.saturating_add(1), 0),
        }
        let standing = endpoint.state();
        let name = &*endpoint.origin.authority;
        match outcome {
            Ok(()) if standing == EndpointState::Ejected && self.succeeded >= options.healthy_after => {
                endpoint.restore(false, options, Instant::now());
                info!(backend = name, address = %endpoint.address, "an address of the backend is healthy again");
            }
            Err(why) if standing != EndpointState::Ejected && self.failed >= options.unhealthy_after => {
                endpoint.eject(EndpointFailure::HealthCheck, options, Instant::now());
                warn!(
                    backend = name, address = %endpoint.address, path, why,
                    "an address of the backend is unhealthy and out of use"
                );
            }
            _ => {}
        }
    }
}

/// Asks an address how it is, on a connection of its own. Shows it nothing of any client.
async fn send_health_check(backends: &Backends, endpoint: &Arc<Endpoint>, path: &str) -> Result<(), String> {
    let asking = async {
        let limit = backends.connect_timeout();
        let stream = connect(endpoint, limit).await.map_err(|error| error.to_string())?;
        let mut connection = UpstreamConnection::new(stream, UpstreamConnectionGuard::uncounted());
        let mut upload = Upload::new(health_check_message(path), &endpoint.origin.authority);
        let mut exchange = UpstreamExchange::new(&mut connection, &mut upload, &Method::GET);
        let answer = std::future::poll_fn(|cx| exchange.poll(cx, &mut false)).await;
        answer.map(|head| head.status).map_err(|error: UpstreamError| error.to_string())
    };
    match timeout(backends.options.health.interval, asking).await {
        Ok(Ok(status)) if is_healthy(status) => Ok(()),
        Ok(Ok(status)) => Err(format!("it answered {status}")),
        Ok(Err(error)) => Err(error),
        Err(_) => Err("it did not answer in time".to_owned()),
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
    let host = head.len();
    write_header(&mut head, HeaderName::UserAgent, b"timbr-gateway");
    write_header(&mut head, HeaderName::Accept, b"*/*");
    write_header(&mut head, HeaderName::Connection, b"close");
    OutgoingMessage { method: Method::GET, head, host_offset: host, body: RequestBody::empty() }
}
