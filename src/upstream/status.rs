//! The status of the backends for operators: a cheap snapshot that any thread can take at any time.

use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;

use crate::base::clock;
use crate::observability::metrics::EndpointCounts;
use crate::upstream::backends::Backends;
use crate::upstream::endpoint::{Endpoint, EndpointFailure, EndpointState};
use crate::upstream::origin::UpstreamOrigin;

/// The status of the backends of all upstreams. Times are in seconds since the Unix epoch.
#[derive(Clone, Debug, Serialize)]
pub struct UpstreamStatus {
    /// True if at least one endpoint of each upstream accepts requests.
    pub usable: bool,
    /// All endpoints of all backends.
    pub endpoints: Vec<EndpointStatus>,
    /// Endpoints that get no new requests, because their name does not resolve to them any longer or the configuration
    /// has changed, and that still have connections.
    pub removed: Vec<EndpointStatus>,
    /// All backends whose host is a DNS name.
    pub names: Vec<NameStatus>,
}

/// The status of one endpoint.
#[derive(Clone, Debug, Serialize)]
pub struct EndpointStatus {
    /// The name of the upstream.
    pub upstream: String,
    /// The backend's name, as in `upstream.url`.
    pub authority: String,
    /// The IP address and port.
    pub address: String,
    /// `usable`, `trial` (probing: one request at a time until one gets a response), `ejected` (by failed requests) or
    /// `unhealthy` (by failed health checks).
    pub state: &'static str,
    /// The last failure, if the state is not `usable`.
    pub why: Option<&'static str>,
    /// When the state last changed.
    pub since: u64,
    /// Minimum number of seconds until the next probe.
    pub tried_in: Option<u64>,
    /// Open connections that wait for a request.
    pub idle: u64,
    /// What is counted.
    #[serde(flatten)]
    pub counts: EndpointCounts,
}

/// The status of one DNS name.
#[derive(Clone, Debug, Serialize)]
pub struct NameStatus {
    /// The name of the upstream.
    pub upstream: String,
    /// The name without the port.
    pub host: String,
    /// When it was last resolved successfully.
    pub resolved: Option<u64>,
    /// The error of the last lookup, if it failed.
    pub failing: Option<String>,
    /// The number of failed lookups.
    pub failures: u64,
}

impl UpstreamStatus {
    /// Takes a snapshot of all endpoints and names.
    pub fn of_all(upstreams: &[Arc<Backends>]) -> UpstreamStatus {
        let status = upstreams.iter().map(|backends| backends.status());
        let empty = UpstreamStatus { usable: true, endpoints: Vec::new(), removed: Vec::new(), names: Vec::new() };
        status.fold(empty, |mut all, one| {
            all.usable &= one.usable;
            all.endpoints.extend(one.endpoints);
            all.removed.extend(one.removed);
            all.names.extend(one.names);
            all
        })
    }
}

impl Backends {
    /// Takes a snapshot of the endpoints and names of one upstream.
    pub fn status(&self) -> UpstreamStatus {
        let (endpoints, upstream) = (self.endpoints(), &self.options.name);
        let names = self.origins().iter().filter(|origin| origin.fixed_address().is_none());
        UpstreamStatus {
            usable: self.is_usable(),
            endpoints: endpoints.iter().map(|endpoint| EndpointStatus::new(upstream, endpoint)).collect(),
            removed: self.removed().iter().map(|endpoint| EndpointStatus::new(upstream, endpoint)).collect(),
            names: names.map(|origin| NameStatus::new(upstream, origin)).collect(),
        }
    }

    /// The name of the upstream.
    pub fn name(&self) -> &str {
        &self.options.name
    }
}

impl EndpointStatus {
    /// The labels of its metrics: the upstream, the backend and the address.
    pub fn names(&self) -> [&str; 3] {
        [&self.upstream, &self.authority, &self.address]
    }

    /// Returns whether the endpoint accepts requests, if only one at a time.
    pub fn is_usable(&self) -> bool {
        matches!(self.state, "usable" | "trial")
    }

    fn new(upstream: &str, endpoint: &Endpoint) -> EndpointStatus {
        let (endpoint_state, health) = endpoint.state_and_health();
        let counts = endpoint.totals();
        let state = match (endpoint_state, health.failure) {
            (EndpointState::Healthy, _) => "usable",
            (EndpointState::Probing, _) => "trial",
            (EndpointState::Ejected, Some(EndpointFailure::HealthCheck)) => "unhealthy",
            (EndpointState::Ejected, _) => "ejected",
        };
        let tried_in = health.ejected_until.map(|until| until.saturating_duration_since(Instant::now()).as_secs());
        EndpointStatus {
            upstream: upstream.to_owned(),
            authority: endpoint.origin.authority.to_string(),
            address: endpoint.address.to_string(),
            state,
            why: health.failure.map(EndpointFailure::as_str),
            since: clock::since_epoch(health.since).as_secs(),
            tried_in: tried_in.filter(|_| endpoint_state == EndpointState::Ejected),
            idle: counts.open_connections.saturating_sub(counts.in_flight),
            counts,
        }
    }
}

impl NameStatus {
    fn new(upstream: &str, origin: &UpstreamOrigin) -> NameStatus {
        let resolution = origin.resolution();
        NameStatus {
            upstream: upstream.to_owned(),
            host: origin.host.clone(),
            resolved: resolution.resolved_at.map(|at| clock::since_epoch(at).as_secs()),
            failing: resolution.last_error.clone(),
            failures: resolution.failures,
        }
    }
}
