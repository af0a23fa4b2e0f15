//! The most recent rejections as JSON, with their causes and remedies. Access control is in `access`.
//!
//! ```text
//! GET /refusals[?limit=N][&reason=WORD][&user=NAME]   {"refusals": [{time, request_id, …}], "kept": 1000}
//! GET /explain/REQUEST_ID                             the same with "trace": [{step, outcome}] for each
//! ```
//!
//! Times are in seconds since the Unix epoch. The newest come first. Several requests may have the same id, because
//! clients choose it.

use std::time::Duration;

use http::StatusCode;
use serde_json::{Value, json};

use crate::admin::queries::millis;
use crate::admin::routes::{AdminError, Call, CallResult};
use crate::base::client_address;
use crate::base::percent::decode_query_value;
use crate::gateway::recent_rejections::RejectionRecord;
use crate::gateway::rejection::Rejection;

const DEFAULT_LIMIT: usize = 100;

/// Maximum number of rejections with the same request id: clients choose ids, and may repeat them.
const MAX_PER_REQUEST_ID: usize = 20;

/// Lists the most recent rejections that match the query.
pub fn list(call: &Call<'_>) -> CallResult {
    let (mut limit, mut reason, mut user) = (DEFAULT_LIMIT, None, None);
    for (name, value) in call.parameters() {
        match (name, value.parse()) {
            ("limit", Ok(number @ 1..)) => limit = number,
            ("reason", _) if !Rejection::examples().iter().any(|known| known.reason() == value) => {
                let message = "no rejection has this reason; the first table of docs/errors.md lists them";
                return Err(AdminError::bad_request(message));
            }
            ("reason", _) => reason = Some(value),
            ("user", _) => user = Some(value),
            _ => {
                let message = "invalid parameter; use limit (a number from 1), reason and user";
                return Err(AdminError::bad_request(message));
            }
        }
    }
    let matches = |rejection: &RejectionRecord| {
        let is_of = |name: &str| rejection.user.as_ref().is_some_and(|user| user.as_str() == name);
        reason.as_deref().is_none_or(|reason| reason == rejection.entry.reason) && user.as_deref().is_none_or(is_of)
    };
    let recent = &call.admin.recent_rejections;
    let rejections: Vec<_> = recent.newest(limit, matches).iter().map(rejection_json).collect();
    Ok(json!({ "refusals": rejections, "kept": recent.capacity() }))
}

/// Lists the rejections with the request id in the path, with the steps that each request passed.
pub fn explain(call: &Call<'_>) -> CallResult {
    // In a path, `+` is a literal plus sign.
    let id = decode_query_value(&call.rest.replace('+', "%2B"));
    let recent = &call.admin.recent_rejections;
    let rejections = recent.newest(MAX_PER_REQUEST_ID, |rejection| rejection.request_id() == id);
    if rejections.is_empty() {
        let message = format!(
            "none of the last {} rejections has this request id: the request was not rejected, or it is older, or a \
             different replica rejected it. See the access log.",
            recent.capacity()
        );
        return Err(AdminError::new(StatusCode::NOT_FOUND, message));
    }
    Ok(json!({ "refusals": rejections.iter().map(rejection_json_with_trace).collect::<Vec<_>>() }))
}

/// A rejection as JSON, without the steps.
pub fn rejection_json(rejection: &RejectionRecord) -> Value {
    json!({
        "time": seconds(rejection.time),
        "after_ms": millis(rejection.elapsed),
        "request_id": rejection.request_id(),
        "trace_id": rejection.trace_id(),
        "client": client_address::to_text(rejection.client),
        "method": rejection.method(),
        "path": rejection.path(),
        "route": rejection.route(),
        "user": rejection.user.as_ref().map(ToString::to_string),
        "key": rejection.key.map(|key| key.to_string()),
        "status": rejection.entry.status.as_u16(),
        "reason": rejection.entry.reason,
        "step": rejection.phase,
        "field": rejection.header,
        "rules": rejection.entry.rules,
        "detail": rejection.detail,
        "advice": rejection.entry.remedy,
    })
}

fn rejection_json_with_trace(rejection: &RejectionRecord) -> Value {
    let mut document = rejection_json(rejection);
    document["trace"] = rejection.trace().map(|(phase, result)| json!({ "step": phase, "outcome": result })).collect();
    document
}

/// Rounded to microseconds.
fn seconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e6
}
