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

use crate::admin::api::Refusal as No;
use crate::base::percent::decode_query_value;
use crate::gateway::recent_rejections::{Refusal, Refusals};

/// Refusals that are shown where no limit is given.
const USUAL: usize = 100;

/// Of one id; more of them are one client's habit.
const MOST_OF_ONE_ID: usize = 20;

/// The last ones that the query asks for.
pub fn list(query: &str, refusals: &Refusals) -> Result<Value, No> {
    let (mut most, mut reason, mut user) = (USUAL, None, None);
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
    let wanted = |refusal: &Refusal| {
        let of_user = |name: &str| refusal.user.as_ref().is_some_and(|user| user.as_str() == name);
        reason.as_deref().is_none_or(|reason| reason == refusal.entry.reason)
            && user.as_deref().is_none_or(of_user)
    };
    let lines: Vec<_> = refusals.newest(most, wanted).iter().map(told).collect();
    Ok(json!({ "refusals": lines, "kept": refusals.capacity() }))
}

/// Those with this id, and the way that each took.
pub fn explain(escaped_id: &str, refusals: &Refusals) -> Result<Value, No> {
    // In a path `+` is itself.
    let id = decode_query_value(&escaped_id.replace('+', "%2B"));
    let found = refusals.newest(MOST_OF_ONE_ID, |refusal| refusal.request_id() == id);
    if found.is_empty() {
        let told = format!(
            "none of the last {} refusals has this id: the request was not refused, or longer ago, or by another \
             gateway. The access log has it.",
            refusals.capacity()
        );
        return Err((StatusCode::NOT_FOUND, told));
    }
    Ok(json!({ "refusals": found.iter().map(explained).collect::<Vec<_>>() }))
}

/// What is known of a refusal, but for its trace.
pub fn told(refusal: &Refusal) -> Value {
    json!({
        "time": seconds(refusal.at),
        "after_ms": seconds(refusal.after) * 1000.0,
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
        "field": refusal.field,
        "rules": refusal.entry.rules,
        "detail": refusal.detail,
        "advice": refusal.entry.remedy,
    })
}

fn explained(refusal: &Refusal) -> Value {
    let mut told = told(refusal);
    told["trace"] =
        refusal.trace().map(|(phase, result)| json!({ "step": phase, "outcome": result })).collect();
    told
}

/// To the microsecond.
fn seconds(span: std::time::Duration) -> f64 {
    (span.as_secs_f64() * 1e6).round() / 1e6
}
