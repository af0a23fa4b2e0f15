//! The recent rejections, for operators who look for the cause of one. It does not decide, and no request reads it.
//!
//! A flood of rejected requests is common, so a record is cheap and needs no memory beyond that of the newest
//! thousand: each worker overwrites the oldest record in its own ring. Only a query of an operator contends for the
//! lock of a ring.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde::Serialize;

use crate::base::clock;
use crate::base::user_name::UserName;
use crate::gateway::access_record::AccessRecord;
use crate::gateway::get_token;
use crate::gateway::rejection::{Rejection, RejectionEntry};
use crate::observability::phase::Phase;
use crate::store::Fingerprint;

/// Maximum number of records of all workers together.
const MAX_RECORDS: usize = 1000;

/// Minimum number of records of each worker, even if there are many workers.
const MIN_RECORDS_PER_WORKER: usize = 100;

/// A request that was rejected, and why. At most about a kilobyte, as the texts that a client chooses are truncated as
/// in the access log.
///
/// SECURITY: no header value except the ids, no query, no body.
#[derive(Clone, Debug)]
pub struct RejectionRecord {
    /// When it was rejected, since the Unix epoch.
    pub time: Duration,
    /// From the head of the request to the rejection.
    pub elapsed: Duration,
    // UTF-8 is checked only when an operator reads the texts, which is rare.
    request_id: Vec<u8>,
    trace_id: [u8; 32],
    /// The address of the client, which may be behind trusted proxies.
    pub client: IpAddr,
    method: Vec<u8>,
    path: Vec<u8>,
    route: Vec<u8>,
    /// Status, reason, rules and remedy.
    pub entry: &'static RejectionEntry,
    /// The phase that rejected the request.
    pub phase: Phase,
    /// The request header that is at fault.
    pub header: Option<&'static str>,
    /// Details where one reason has several causes.
    pub detail: Option<Box<str>>,
    /// The user, if the identity was already proven.
    pub user: Option<UserName>,
    /// The fingerprint of the key, if the identity was already proven.
    pub key: Option<Fingerprint>,
}

/// The decision of one phase about a request that was finally rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PhaseOutcome {
    /// The request proceeded to the next phase.
    Passed,
    /// The request was rejected.
    Refused,
}

/// The rings of all workers.
#[derive(Debug)]
pub struct RecentRejections {
    rings: Box<[Mutex<RejectionRing>]>,
}

#[derive(Debug)]
struct RejectionRing {
    /// The next record overwrites `records[next]`, or is appended until the ring is full.
    records: Vec<RejectionRecord>,
    next: usize,
    capacity: usize,
}

/// Records the rejections of one worker.
#[derive(Clone, Debug)]
pub struct RejectionRecorder {
    rejections: Arc<RecentRejections>,
    worker: usize,
}

impl RecentRejections {
    /// One empty ring for each worker.
    pub fn new(workers: usize) -> Arc<RecentRejections> {
        let capacity = MAX_RECORDS.div_ceil(workers.max(1)).max(MIN_RECORDS_PER_WORKER);
        let ring = || Mutex::new(RejectionRing { records: Vec::new(), next: 0, capacity });
        Arc::new(RecentRejections { rings: (0..workers.max(1)).map(|_| ring()).collect() })
    }

    /// For the worker with this number, counted from 0.
    pub fn recorder(self: &Arc<RecentRejections>, worker: usize) -> RejectionRecorder {
        RejectionRecorder { rejections: Arc::clone(self), worker: worker % self.rings.len() }
    }

    /// At most `max` records that satisfy `is_wanted`, the newest first.
    pub fn newest(&self, max: usize, is_wanted: impl Fn(&RejectionRecord) -> bool) -> Vec<RejectionRecord> {
        let mut records = Vec::new();
        for ring in &self.rings {
            records.extend(ring.lock().newest().filter(|record| is_wanted(record)).take(max).cloned());
        }
        records.sort_by_key(|record| std::cmp::Reverse(record.time));
        records.truncate(max);
        records
    }

    /// Maximum number of records.
    pub fn capacity(&self) -> usize {
        self.rings.iter().map(|ring| ring.lock().capacity).sum()
    }
}

impl RejectionRecorder {
    /// Records that the request of `request` was rejected.
    pub fn record(&self, rejection: &Rejection, request: &AccessRecord) {
        self.rejections.rings[self.worker].lock().record(rejection, request);
    }
}

impl RejectionRing {
    fn record(&mut self, rejection: &Rejection, request: &AccessRecord) {
        let context = &request.context;
        // Read again, as the request may have waited: for a slot, for its body, or until an operator cancelled it.
        let elapsed = clock::now().duration_since(context.started_at);
        let mut old = self.records.get_mut(self.next);
        // The buffers of the oldest record are reused, so that a flood allocates nothing.
        let mut reuse = |buffer: fn(&mut RejectionRecord) -> &mut Vec<u8>, text: &[u8]| {
            let mut bytes = old.as_deref_mut().map(|old| std::mem::take(buffer(old))).unwrap_or_default();
            bytes.clear();
            bytes.extend_from_slice(text);
            bytes
        };
        let record = RejectionRecord {
            time: clock::unix_time(),
            elapsed,
            request_id: reuse(|old| &mut old.request_id, context.request_id_bytes()),
            trace_id: *context.trace_id(),
            client: context.origin.address,
            method: reuse(|old| &mut old.method, request.method().as_bytes()),
            path: reuse(|old| &mut old.path, request.path().as_bytes()),
            route: reuse(|old| &mut old.route, request.route.name().as_bytes()),
            entry: rejection.entry(),
            phase: rejection.phase(request.route.name()),
            header: rejection.header(),
            detail: rejection.detail().map(Into::into),
            user: request.user.clone(),
            key: request.key,
        };
        match old {
            Some(old) => *old = record,
            None => self.records.push(record),
        }
        self.next = (self.next + 1) % self.capacity;
    }

    /// From the newest to the oldest.
    fn newest(&self) -> impl Iterator<Item = &RejectionRecord> {
        let (newer, older) = self.records.split_at(self.next.min(self.records.len()));
        newer.iter().rev().chain(older.iter().rev())
    }
}

impl RejectionRecord {
    /// The request id. A client may have chosen it, so several requests may have the same.
    pub fn request_id(&self) -> &str {
        text(&self.request_id)
    }

    /// The trace id as hex digits.
    pub fn trace_id(&self) -> &str {
        text(&self.trace_id)
    }

    /// The method; `-` if it could not be read.
    pub fn method(&self) -> &str {
        text(&self.method)
    }

    /// The path without the query.
    pub fn path(&self) -> &str {
        text(&self.path)
    }

    /// The name of the route; empty if no route was found.
    pub fn route(&self) -> &str {
        text(&self.route)
    }

    /// The phases that the request went through, first to last. The last one rejected it.
    pub fn trace(&self) -> impl Iterator<Item = (Phase, PhaseOutcome)> {
        let is_get_token = self.route() == get_token::ROUTE_NAME;
        let path = if is_get_token { Phase::GET_TOKEN_PATH } else { Phase::FORWARD_PATH };
        let passed = path.iter().position(|phase| *phase == self.phase).unwrap_or(0);
        let passed = path[..passed].iter().map(|phase| (*phase, PhaseOutcome::Passed));
        passed.chain([(self.phase, PhaseOutcome::Refused)])
    }
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use http::Method;

    use super::*;
    use crate::config::ProxyHeader;
    use crate::gateway::context::{Peer, RequestContext};
    use crate::http::headers::{HeaderName, Headers};
    use crate::observability::metrics::Metrics;

    fn record(recorder: &RejectionRecorder, id: &str) {
        let mut headers = Headers::new();
        headers.push(HeaderName::XRequestId, id.as_bytes());
        let peer = Rc::new(Peer::new(IpAddr::from([192, 0, 2, 1]), false));
        let (context, worker) =
            (RequestContext::new(peer, &headers, &[], ProxyHeader::XForwardedFor), Metrics::default().worker());
        let request = AccessRecord::new(context, Method::GET, "/timbr/api/query/", &worker.route(""), &worker);
        recorder.record(&Rejection::ApiKeyMissing, &request);
    }

    fn ids(rejections: &RecentRejections, max: usize) -> Vec<String> {
        rejections.newest(max, |_| true).iter().map(|record| record.request_id().to_owned()).collect()
    }

    #[test]
    fn the_newest_come_first_and_the_oldest_are_overwritten() {
        let rejections = RecentRejections::new(1);
        let recorder = rejections.recorder(0);
        for number in 0..MAX_RECORDS + 2 {
            record(&recorder, &format!("id-{number}"));
        }
        assert_eq!(ids(&rejections, 2), ["id-1001", "id-1000"]);
        let all = ids(&rejections, usize::MAX);
        assert_eq!((all.len(), all.last().map(String::as_str)), (MAX_RECORDS, Some("id-2")));
        assert_eq!(rejections.capacity(), MAX_RECORDS);
    }

    #[test]
    fn records_of_all_workers_are_listed() {
        let rejections = RecentRejections::new(2);
        record(&rejections.recorder(0), "a");
        record(&rejections.recorder(1), "b");
        let mut all = ids(&rejections, 10);
        all.sort();
        assert_eq!(all, ["a", "b"]);
        let found = rejections.newest(10, |record| record.request_id() == "b");
        assert_eq!((found.len(), found[0].entry.reason, found[0].method()), (1, "api_key_missing", "GET"));
        assert!(RecentRejections::new(64).capacity() >= 64 * MIN_RECORDS_PER_WORKER);
    }

    #[test]
    fn an_old_record_is_overwritten_completely() {
        let rejections = RecentRejections::new(1000);
        let recorder = rejections.recorder(0);
        for _ in 0..MIN_RECORDS_PER_WORKER {
            record(&recorder, "a-long-id-that-is-overwritten");
        }
        record(&recorder, "b");
        let newest = &rejections.newest(1, |_| true)[0];
        assert_eq!((newest.request_id(), newest.trace_id().len()), ("b", 32));
        assert_eq!(newest.path(), "/timbr/api/query/");
    }

    #[test]
    fn the_trace_ends_with_the_phase_that_rejected() {
        let rejections = RecentRejections::new(1);
        record(&rejections.recorder(0), "a");
        let recorded = &rejections.newest(1, |_| true)[0];
        let trace = |phase, route: &str| {
            let record = RejectionRecord { phase, route: route.into(), ..recorded.clone() };
            record.trace().collect::<Vec<_>>()
        };
        let screened = trace(Phase::Screen, "api");
        let phases: Vec<_> = screened.iter().map(|(phase, _)| *phase).collect();
        assert_eq!(phases, [Phase::Read, Phase::Admission, Phase::Route, Phase::Handshake, Phase::Screen]);
        let refused: Vec<_> = screened.iter().filter(|(_, outcome)| *outcome == PhaseOutcome::Refused).collect();
        assert_eq!(refused, [&(Phase::Screen, PhaseOutcome::Refused)]);
        assert_eq!(trace(Phase::GetToken, get_token::ROUTE_NAME).len(), 5);
        assert_eq!(trace(Phase::Unknown, "api"), [(Phase::Unknown, PhaseOutcome::Refused)]);
    }
}
