//! The query journal as JSON, and the command that cancels a query. Access control is in `access`.
//!
//! ```text
//! GET  /queries/running                {"queries": [{request_id, user, …, state, since, running_ms}]}
//! GET  /queries/slow[?limit=N]         {"queries": [{request_id, user, …, status, total_ms}]}
//! GET  /queries/top[?by=KEY][&limit=N] {"by": "user", "rows": [{key, count, …}], "other": {count, …}}
//! POST /queries/cancel                 {"request_id": ID, "why": TEXT}
//!                                      {"status": "success", "cancelled": N, "users": [NAME], "abandoned": N}
//! ```
//!
//! Times are in seconds since the Unix epoch. The statistics cover the last hour, and this gateway only.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::admin::routes::{AdminError, Call, CallResult};
use crate::base::clock;
use crate::observability::log::label;
use crate::observability::queries::{
    CompletedQuery, QueryFacts, QueryState, QueryTotals, RunningQuery, StatisticsKey, TopRow,
};

const DEFAULT_LIMIT: usize = 20;

/// Maximum bytes of an operator's words, which the client receives.
const MAX_WHY: usize = 500;

/// Lists what is queued, running or abandoned, the oldest first.
pub fn running(call: &Call<'_>) -> CallResult {
    require_journal(call)?;
    clock::now();
    let queries: Vec<_> = call.admin.queries.running().iter().map(|query| running_json(query)).collect();
    Ok(json!({ "queries": queries }))
}

/// Lists the slowest statements of the last hour.
pub fn slow(call: &Call<'_>) -> CallResult {
    require_journal(call)?;
    let (_, limit) = parameters(call)?;
    let queries: Vec<_> = call.admin.queries.slowest(limit).iter().map(completed_json).collect();
    Ok(json!({ "queries": queries }))
}

/// Lists the users, ontologies or fingerprints with the longest total duration in the last hour.
pub fn top(call: &Call<'_>) -> CallResult {
    require_journal(call)?;
    let (by, limit) = parameters(call)?;
    let list = call.admin.queries.top(by, limit);
    let rows: Vec<_> = list.rows.iter().map(row_json).collect();
    Ok(json!({ "by": by.as_str(), "rows": rows, "other": totals_json(&list.other) }))
}

fn require_journal(call: &Call<'_>) -> Result<(), AdminError> {
    if call.admin.snapshot.get().config.journal.is_some() {
        return Ok(());
    }
    let message = "the query journal is off; journal.enabled turns it on (a reload is enough)";
    Err(AdminError::new(StatusCode::CONFLICT, message))
}

fn parameters(call: &Call<'_>) -> Result<(StatisticsKey, usize), AdminError> {
    let (mut by, mut limit) = (StatisticsKey::User, DEFAULT_LIMIT);
    for (name, value) in call.parameters() {
        match (name, value.parse(), StatisticsKey::parse(&value)) {
            ("limit", Ok(number @ 1..), _) => limit = number,
            ("by", _, Some(key)) => by = key,
            _ => {
                let message = "invalid parameter; use limit (a number from 1) and by (user, ontology or fingerprint)";
                return Err(AdminError::bad_request(message));
            }
        }
    }
    Ok((by, limit))
}

/// The body of a cancellation.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CancelRequest {
    request_id: String,
    #[serde(default)]
    why: String,
}

/// Cancels the queries with a request id, as if their clients had left.
pub fn cancel(call: &Call<'_>) -> CallResult {
    require_journal(call)?;
    let request: CancelRequest = serde_json::from_slice(&call.body)
        .map_err(|_| AdminError::bad_request("the body must be {\"request_id\": …}, with an optional \"why\""))?;
    if request.why.len() > MAX_WHY || request.why.chars().any(char::is_control) {
        let message = format!("why must be one line of at most {MAX_WHY} bytes");
        return Err(AdminError::bad_request(message));
    }
    call.note(label!("request_id"), &request.request_id);
    call.note(label!("why"), &request.why);
    let abandoned =
        |query: &&Arc<RunningQuery>| *query.request_id == *request.request_id && query.state() == QueryState::Abandoned;
    let abandoned = call.admin.queries.running().iter().filter(abandoned).count();
    let cancelled = call.admin.queries.cancel(&request.request_id, &request.why.into());
    let users: BTreeSet<&str> = cancelled.iter().map(|query| &*query.facts.user).collect();
    let names: Vec<_> = users.iter().copied().collect();
    call.note(label!("query_user"), &names.join(", "));
    call.note(label!("cancelled"), &cancelled.len());
    Ok(json!({ "status": "success", "cancelled": cancelled.len(), "users": users, "abandoned": abandoned }))
}

fn facts_json(facts: &QueryFacts, request_id: &str) -> Value {
    json!({
        "request_id": request_id,
        "user": facts.user,
        "acts_as": facts.acts_as,
        "client_family": facts.client,
        "upstream": *facts.upstream,
        "ontology": facts.ontology,
        "class": facts.class.as_str(),
        "fingerprint": facts.fingerprint.map(|fingerprint| fingerprint.to_string()),
        "text": facts.text,
    })
}

fn running_json(query: &RunningQuery) -> Value {
    let mut document = facts_json(&query.facts, &query.request_id);
    let running = clock::recent().saturating_duration_since(query.since);
    document["state"] = query.state().as_str().into();
    document["since"] = clock::unix_time().saturating_sub(running).as_secs().into();
    document["running_ms"] = millis(running);
    document
}

fn completed_json(query: &CompletedQuery) -> Value {
    let mut document = facts_json(&query.facts, &query.request_id);
    document["ended"] = query.ended.as_secs().into();
    document["status"] = query.status.as_u16().into();
    document["reason"] = query.reason.into();
    document["sent"] = query.sent.into();
    document["queue_ms"] = millis(query.queued);
    document["head_ms"] = query.to_head.map_or(Value::Null, millis);
    document["total_ms"] = millis(query.total);
    document
}

fn row_json(row: &TopRow) -> Value {
    let mut document = totals_json(&row.totals);
    document["key"] = (*row.key).into();
    document["text"] = row.label.as_deref().into();
    document
}

fn totals_json(totals: &QueryTotals) -> Value {
    json!({
        "count": totals.count,
        "errors": totals.errors,
        "total_ms": millis(totals.total),
        "mean_ms": millis(totals.mean()),
        "max_ms": millis(totals.max),
        "sent": totals.sent,
    })
}

/// Milliseconds with three decimals, as in the log.
pub(super) fn millis(duration: Duration) -> Value {
    ((duration.as_secs_f64() * 1e6).round() / 1e3).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn milliseconds_have_three_decimals() {
        assert_eq!(millis(Duration::from_nanos(2_465_123)).to_string(), "2.465");
    }
}
