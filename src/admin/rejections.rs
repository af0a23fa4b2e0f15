//! Why requests were refused lately, for operators on this machine.
//!
//! ```text
//! GET /refusals[?limit=N][&reason=WORD][&user=NAME]   {"refusals": [{time, request_id, …}], "kept": 1000}
//! GET /explain/REQUEST_ID                             {"refusals": [{…, trace: [{step, outcome}]}]}
//! ```
//!
//! Times are seconds since the Unix epoch. The newest come first. Several requests may have one id, as clients choose it.

use http::StatusCode;
use serde_json::{Value, json};

use crate::admin::api::AdminError as No;
use crate::base::percent::decode_query_value;
use crate::gateway::recent_rejections::{RecentRejections, RejectionRecord};

/// Refusals that are shown where no limit is given.
const DEFAULT_LIMIT: usize = 100;

/// Of one id; more of them are one client's habit.
const MAX_PER_REQUEST_ID: usize = 20;

/// The last ones that the query asks for.
pub fn list(query: &str, refusals: &RecentRejections) -> Result<Value, No> {
    let (mut most, mut reason, mut user) = (DEFAULT_LIMIT, None, None);
    for (name, value) in
        query.split('&').filter(|pair| !pair.is_empty()).map(|p| p.split_once('=').unwrap_or((p, "")))
    {
        match (name, value.parse()) {
            ("limit", Ok(limit @ 1..)) => most = limit,
            ("reason", _) => reason = Some(decode_query_value(value)),
            ("user", _) => user = Some(decode_query_value(value)),
            _ => {
                let told = "this takes limit, a number from 1, reason, a word, and user, a name";
                return Err((StatusCode::BAD_REQUEST, told.to_owned()));
            }
        }
    }
    let wanted = |refusal: &RejectionRecord| {
        let of_user = |name: &str| refusal.user.as_ref().is_some_and(|user| user.as_str() == name);
        reason.as_deref().is_none_or(|reason| reason == refusal.entry.reason)
            && user.as_deref().is_none_or(of_user)
    };
    let lines: Vec<_> = refusals.newest(most, wanted).iter().map(rejection_json).collect();
    Ok(json!({ "refusals": lines, "kept": refusals.capacity() }))
}

/// Those with this id, and the way that each took.
pub fn explain(escaped_id: &str, refusals: &RecentRejections) -> Result<Value, No> {
    // In a path `+` is itself.
    let id = decode_query_value(&escaped_id.replace('+', "%2B"));
    let found = refusals.newest(MAX_PER_REQUEST_ID, |refusal| refusal.request_id() == id);
    if found.is_empty() {
        let told = format!(
            "none of the last {} refusals has this id: the request was not refused, or longer ago, or by another \
             gateway. The access log has it.",
            refusals.capacity()
        );
        return Err((StatusCode::NOT_FOUND, told));
    }
    Ok(json!({ "refusals": found.iter().map(rejection_json_with_trace).collect::<Vec<_>>() }))
}

/// What is known of a refusal, but for its trace.
pub fn rejection_json(refusal: &RejectionRecord) -> Value {
    json!({
        "time": seconds(refusal.time),
        "after_ms": seconds(refusal.elapsed) * 1000.0,
        "request_id": refusal.request_id(),
        "trace_id": refusal.trace_id(),
        "client": refusal.client.to_string(),
        "method": refusal.method,
        "path": refusal.path,
        "route": refusal.route,
        "user": refusal.user.as_ref().map(ToString::to_string),
        "key": refusal.key.map(|key| key.to_string()),
        "status": refusal.entry.status.as_u16(),
        "reason": refusal.entry.reason,
        "step": refusal.phase,
        "field": refusal.header,
        "rules": refusal.entry.rules,
        "detail": refusal.detail,
        "advice": refusal.entry.remedy,
    })
}

fn rejection_json_with_trace(refusal: &RejectionRecord) -> Value {
    let mut told = rejection_json(refusal);
    told["trace"] =
        refusal.trace().map(|(phase, result)| json!({ "step": phase, "outcome": result })).collect();
    told
}

/// To the microsecond.
fn seconds(span: std::time::Duration) -> f64 {
    (span.as_secs_f64() * 1e6).round() / 1e6
}
