//! Stops an ontology, a user or a route, and lists what is stopped. Access control is in `access`.
//!
//! ```text
//! GET  /stops    {"stops": [{kind, name, why, since, until}], "memory_only": false}
//! POST /stop     {"kind": "ontology", "name": NAME, "why": TEXT, "seconds": N}
//!                {"status": "success", "until": T, "memory_only": false}
//! POST /resume   {"kind": "ontology", "name": NAME}    {"status": "success", "was_stopped": true}
//! ```
//!
//! Times are in seconds since the Unix epoch; `until` is null without an end. Without `seconds` it lasts until it is
//! resumed, at most 30 days.

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use tracing::warn;

use crate::admin::AdminContext;
use crate::admin::routes::{AdminError, Call, CallResult, report_scope};
use crate::gateway::snapshot::Snapshot;
use crate::observability::log::label;
use crate::store::{ActiveStop, MAX_DENIAL, StopKind, StopNote, StopTarget};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StopRequest {
    kind: String,
    name: String,
    /// Required by `stop`.
    why: Option<String>,
    seconds: Option<u64>,
}

/// Lists what is stopped.
pub fn list(admin: &AdminContext) -> Value {
    let snapshot = admin.snapshot.get();
    let store = snapshot.auth.store();
    let stops: Vec<_> = store.stops().iter().map(stop_json).collect();
    json!({ "stops": stops, "memory_only": store.is_memory_only() })
}

fn stop_json(stop: &ActiveStop) -> Value {
    json!({
        "kind": stop.target.kind.as_str(),
        "name": stop.target.name(),
        "why": &*stop.note.why,
        "since": stop.note.since.unix_seconds(),
        "until": stop.note.has_end.then(|| stop.until.unix_seconds()),
    })
}

/// Stops what the body names.
pub async fn stop(call: Call<'_>) -> CallResult {
    let request = parse_request(&call.body)?;
    let target = target(&request, &call.admin.snapshot.get())?;
    call.note(label!("stopped"), &target);
    let why = request.why.filter(|why| StopNote::is_valid_text(why)).ok_or_else(|| {
        AdminError::bad_request("\"why\" must be a text of 1 to 500 bytes on one line: clients receive it")
    })?;
    call.note(label!("why"), &why);
    let duration = request.seconds.map(Duration::from_secs);
    if let Some(duration) = duration {
        if duration.is_zero() || duration > MAX_DENIAL {
            return Err(AdminError::bad_request("\"seconds\" (--for) must be at least 1 s and at most 30 days"));
        }
        call.note(label!("stopped_for"), &humantime::format_duration(duration));
    }
    let snapshot = call.admin.snapshot.get();
    let stopped = snapshot.auth.store().stop(target.clone(), &why, duration).await;
    warn!(stopped = %target, why, "stopped by an operator");
    let until = report_scope(&call, stopped)?;
    let until = duration.is_some().then(|| until.unix_seconds());
    Ok(json!({ "status": "success", "until": until, "memory_only": snapshot.auth.store().is_memory_only() }))
}

/// Ends a stop.
pub async fn resume(call: Call<'_>) -> CallResult {
    let request = parse_request(&call.body)?;
    let target = target_of_any_name(&request)?;
    call.note(label!("stopped"), &target);
    let snapshot = call.admin.snapshot.get();
    let store = snapshot.auth.store();
    let was_stopped = store.find_stop(|| Some(target.clone())).is_some();
    let resumed = store.resume(target.clone()).await;
    if was_stopped {
        warn!(stopped = %target, "resumed by an operator");
    }
    report_scope(&call, resumed)?;
    Ok(json!({ "status": "success", "was_stopped": was_stopped }))
}

fn parse_request(body: &[u8]) -> Result<StopRequest, AdminError> {
    serde_json::from_slice(body).map_err(|_| {
        AdminError::bad_request(
            "the body must be {\"kind\": …, \"name\": …}, to stop also with \"why\" and an optional \"seconds\"",
        )
    })
}

fn target_of_any_name(request: &StopRequest) -> Result<StopTarget, AdminError> {
    let kind = StopKind::parse(&request.kind)
        .ok_or_else(|| AdminError::bad_request("\"kind\" must be ontology, user or route"))?;
    StopTarget::new(kind, &request.name)
        .ok_or_else(|| AdminError::bad_request("\"name\" must have 1 to 256 bytes without control characters"))
}

/// The routes are known, so a misspelled one is an error. Ontologies and users are not.
fn target(request: &StopRequest, snapshot: &Snapshot) -> Result<StopTarget, AdminError> {
    let target = target_of_any_name(request)?;
    let mut names: Vec<_> = snapshot.config.routes.iter().map(|route| route.name.as_str()).collect();
    names.push("get_token");
    if target.kind == StopKind::Route && !names.contains(&target.name()) {
        return Err(AdminError::bad_request(format!("unknown route; the routes are {}", names.join(", "))));
    }
    Ok(target)
}
