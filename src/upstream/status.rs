//! How the backends are doing, for operators: cheap enough to be asked for at any time, from any thread.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde::Serialize;

use crate::upstream::backends::Backends;
use crate::upstream::endpoint::{Endpoint, EndpointFailure, EndpointState};
use crate::upstream::origin::UpstreamOrigin;

/// All backends at one moment. Times are seconds since the Unix epoch.
#[derive(Clone, Debug, Serialize)]
pub struct UpstreamStatus {
    /// Whether any request can be sent.
    pub usable: bool,
    /// Each address of each backend.
    pub endpoints: Vec<EndpointStatus>,
    /// Each backend whose name is looked up.
    pub names: Vec<NameStatus>,
}

/// One address.
#[derive(Clone, Debug, Serialize)]
pub struct EndpointStatus {
    /// The backend's name, as in `upstream.url`.
    pub authority: String,
    /// Where it is.
    pub address: String,
    /// `usable`, `trial` (one request at a time until it answers one), `ejected` (by what requests met) or `unhealthy` (by
    /// its checks).
    pub state: &'static str,
    /// Why, if it is not usable.
    pub why: Option<&'static str>,
    /// Since when.
    pub since: u64,
    /// Seconds until it is tried again, at least.
    pub tried_in: Option<u64>,
    /// Requests that were sent and whose answers have not ended.
    pub in_flight: u64,
    /// Connections that are open.
    pub open: u64,
    /// Connections of these that wait for a request.
    pub idle: u64,
    /// Answers, whatever their status.
    pub answers: u64,
    /// Requests without an answer, and answers with 502, 503 or 504.
    pub failures: u64,
    /// How often it was taken out of use.
    pub ejections: u64,
}

/// A name that is looked up.
#[derive(Clone, Debug, Serialize)]
pub struct NameStatus {
    /// The name.
    pub host: String,
    /// When it was found the last time.
    pub resolved: Option<u64>,
    /// Why not, if it was not found since.
    pub failing: Option<String>,
    /// How often it was not found.
    pub failures: u64,
}

impl Backends {
    /// How they are doing.
    pub fn status(&self) -> UpstreamStatus {
        let endpoints = self.endpoints();
        let names = self.origins().iter().filter(|origin| origin.ip_literal().is_none());
        UpstreamStatus {
            usable: self.is_usable(),
            endpoints: endpoints.iter().map(|endpoint| EndpointStatus::new(endpoint)).collect(),
            names: names.map(|origin| NameStatus::new(origin)).collect(),
        }
    }
}

impl EndpointStatus {
    /// Whether requests go there, be it one at a time.
    pub fn is_usable(&self) -> bool {
        matches!(self.state, "usable" | "trial")
    }

    fn new(endpoint: &Endpoint) -> EndpointStatus {
        let (standing, health) = endpoint.state_and_health();
        let counts = endpoint.totals();
        let state = match (standing, health.failure) {
            (EndpointState::Healthy, _) => "usable",
            (EndpointState::Probing, _) => "trial",
            (EndpointState::Ejected, Some(EndpointFailure::HealthCheck)) => "unhealthy",
            (EndpointState::Ejected, _) => "ejected",
        };
        let tried_in =
            health.ejected_until.map(|until| until.saturating_duration_since(Instant::now()).as_secs());
        EndpointStatus {
            authority: endpoint.origin.authority.to_string(),
            address: endpoint.address.to_string(),
            state,
            why: health.failure.map(EndpointFailure::as_str),
            since: unix_seconds(health.since),
            tried_in: tried_in.filter(|_| standing == EndpointState::Ejected),
            in_flight: counts.in_flight,
            open: counts.open_connections,
            idle: counts.open_connections.saturating_sub(counts.in_flight),
            answers: counts.responses,
            failures: counts.failures,
            ejections: counts.ejections,
        }
    }
}

impl NameStatus {
    fn new(origin: &UpstreamOrigin) -> NameStatus {
        let resolution = origin.resolution();
        NameStatus {
            host: origin.host.clone(),
            resolved: resolution.resolved_at.map(unix_seconds),
            failing: resolution.last_error.clone(),
            failures: resolution.failures,
        }
    }
}

fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
