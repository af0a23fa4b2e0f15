//! How the backends are doing, for operators: cheap enough to be asked for at any time, from any thread.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde::Serialize;

use crate::upstream::backends::Backends;
use crate::upstream::endpoint::{Endpoint, Failure, Standing};
use crate::upstream::origin::Origin;

/// All backends at one moment. Times are seconds since the Unix epoch.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
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
    pub fn status(&self) -> Status {
        let endpoints = self.endpoints();
        let names = self.origins().iter().filter(|origin| origin.literal().is_none());
        Status {
            usable: self.is_usable(),
            endpoints: endpoints.iter().map(|endpoint| EndpointStatus::of(endpoint)).collect(),
            names: names.map(|origin| NameStatus::of(origin)).collect(),
        }
    }
}

impl EndpointStatus {
    /// Whether requests go there, be it one at a time.
    pub fn is_usable(&self) -> bool {
        matches!(self.state, "usable" | "trial")
    }

    fn of(endpoint: &Endpoint) -> EndpointStatus {
        let (standing, health) = endpoint.health_now();
        let counts = endpoint.counts();
        let state = match (standing, health.why) {
            (Standing::InUse, _) => "usable",
            (Standing::OnTrial, _) => "trial",
            (Standing::OutOfUse, Some(Failure::Check)) => "unhealthy",
            (Standing::OutOfUse, _) => "ejected",
        };
        let tried_in = health.until.map(|until| until.saturating_duration_since(Instant::now()).as_secs());
        EndpointStatus {
            authority: endpoint.origin.authority.to_string(),
            address: endpoint.address.to_string(),
            state,
            why: health.why.map(Failure::word),
            since: unix_seconds(health.since),
            tried_in: tried_in.filter(|_| standing == Standing::OutOfUse),
            in_flight: counts.in_flight,
            open: counts.open,
            idle: counts.open.saturating_sub(counts.in_flight),
            answers: counts.answers,
            failures: counts.failures,
            ejections: counts.ejections,
        }
    }
}

impl NameStatus {
    fn of(origin: &Origin) -> NameStatus {
        let resolution = origin.resolution();
        NameStatus {
            host: origin.host.clone(),
            resolved: resolution.found.map(unix_seconds),
            failing: resolution.failing.clone(),
            failures: resolution.failures,
        }
    }
}

fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
