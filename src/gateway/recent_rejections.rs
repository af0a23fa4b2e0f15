//! The last refusals, for operators who ask why.
//!
//! A flood of requests that are refused is usual, so noting one is cheap and takes no memory beyond what the newest
//! thousand need: each worker writes into a ring of its own, over its oldest entry, and its lock is met by nobody else but
//! an operator's question.

use std::net::{IpAddr, Ipv4Addr};
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

/// So many are kept, of all workers together.
const MAX_RECORDS: usize = 1000;

/// So many are kept of each worker at least, however many there are.
const MIN_RECORDS_PER_WORKER: usize = 100;

/// A request that was refused, and why. About a kilobyte at most, as the texts that a client chooses are cut like those of
/// the access log.
///
/// SECURITY: no value of a field but the ids, no query, no body.
#[derive(Clone, Debug)]
pub struct RejectionRecord {
    /// When, since the Unix epoch.
    pub time: Duration,
    /// How long the request had been there by then.
    pub elapsed: Duration,
    /// The request's id; a client may have chosen it, and others the same.
    request_id: Vec<u8>,
    trace_id: [u8; 32],
    /// The client's address, that of the first one behind trusted proxies.
    pub client: IpAddr,
    /// `-` if it could not be read.
    pub method: String,
    /// Without the query.
    pub path: String,
    /// The route's name; empty if none was found.
    pub route: String,
    /// What is constant for its reason.
    pub entry: &'static RejectionEntry,
    /// The phase that rejected it.
    pub phase: Phase,
    /// The request header that is at fault.
    pub header: Option<&'static str>,
    /// Details where one reason has several causes.
    pub detail: Option<Box<str>>,
    /// Whose request it was, if that was known by then.
    pub user: Option<UserName>,
    /// The key's fingerprint, if that was known by then.
    pub key: Option<Fingerprint>,
}

/// What a phase decided about a request that was rejected in the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PhaseResult {
    /// The request went on to the next phase.
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
    /// The next one goes over `refusals[next]`, or to the end while there is room.
    records: Vec<RejectionRecord>,
    next: usize,
    capacity: usize,
}

/// One worker's way to note refusals.
#[derive(Clone, Debug)]
pub struct RejectionRecorder {
    rejections: Arc<RecentRejections>,
    worker: usize,
}

impl RecentRejections {
    /// Empty rings for so many workers.
    pub fn new(workers: usize) -> Arc<RecentRejections> {
        let most = MAX_RECORDS.div_ceil(workers.max(1)).max(MIN_RECORDS_PER_WORKER);
        let ring = || Mutex::new(RejectionRing { records: Vec::new(), next: 0, capacity: most });
        Arc::new(RecentRejections { rings: (0..workers.max(1)).map(|_| ring()).collect() })
    }

    /// For the worker of this number, counted from 0.
    pub fn recorder(self: &Arc<RecentRejections>, worker: usize) -> RejectionRecorder {
        RejectionRecorder { rejections: Arc::clone(self), worker: worker % self.rings.len() }
    }

    /// The newest ones that `wanted` takes, the newest first.
    pub fn newest(&self, most: usize, wanted: impl Fn(&RejectionRecord) -> bool) -> Vec<RejectionRecord> {
        let mut found = Vec::new();
        for ring in &self.rings {
            found.extend(ring.lock().newest().filter(|refusal| wanted(refusal)).take(most).cloned());
        }
        found.sort_by_key(|refusal| std::cmp::Reverse(refusal.time));
        found.truncate(most);
        found
    }

    /// How many are kept at most.
    pub fn capacity(&self) -> usize {
        self.rings.iter().map(|ring| ring.lock().capacity).sum()
    }
}

impl RejectionRecorder {
    /// Notes that the request of `line` was refused.
    pub fn record(&self, rejection: &Rejection, record: &AccessRecord) {
        self.rejections.rings[self.worker].lock().record(rejection, record);
    }
}

impl RejectionRing {
    fn record(&mut self, rejection: &Rejection, record: &AccessRecord) {
        let context = &record.context;
        if self.next == self.records.len() {
            self.records.push(RejectionRecord::blank());
        }
        let RejectionRecord {
            time: at,
            elapsed: after,
            request_id,
            trace_id,
            client,
            method,
            path,
            route,
            entry,
            phase,
            header: field,
            detail,
            user,
            key,
        } = &mut self.records[self.next];
        self.next = (self.next + 1) % self.capacity;
        *at = clock::unix_time();
        *after = clock::recent().duration_since(context.started_at);
        *client = context.origin.address;
        *entry = rejection.entry();
        *phase = rejection.phase(record.route.name());
        *field = rejection.header();
        *detail = rejection.detail().map(Into::into);
        user.clone_from(&record.user);
        *key = record.key;
        // The texts of the oldest one make room for those of the new one, so that a flood allocates nothing.
        *trace_id = *context.trace_id();
        request_id.clear();
        request_id.extend_from_slice(context.request_id_bytes());
        overwrite(method, record.method());
        overwrite(path, record.path());
        overwrite(route, record.route.name());
    }

    /// From the newest to the oldest.
    fn newest(&self) -> impl Iterator<Item = &RejectionRecord> {
        let (newer, older) = self.records.split_at(self.next.min(self.records.len()));
        newer.iter().rev().chain(older.iter().rev())
    }
}

impl RejectionRecord {
    /// The request's id; a client may have chosen it, and others the same.
    pub fn request_id(&self) -> &str {
        ascii_text(&self.request_id)
    }

    /// The trace that the request belongs to, as hex digits.
    pub fn trace_id(&self) -> &str {
        ascii_text(&self.trace_id)
    }

    /// The phases that the request went through, in order, the one that rejected it last.
    pub fn trace(&self) -> impl Iterator<Item = (Phase, PhaseResult)> {
        let path =
            if self.route == get_token::ROUTE_NAME { Phase::GET_TOKEN_PATH } else { Phase::FORWARD_PATH };
        let passed = path.iter().position(|phase| *phase == self.phase).unwrap_or(0);
        let passed = path[..passed].iter().map(|phase| (*phase, PhaseResult::Passed));
        passed.chain([(self.phase, PhaseResult::Refused)])
    }

    /// One to be written over.
    fn blank() -> RejectionRecord {
        RejectionRecord {
            time: Duration::ZERO,
            elapsed: Duration::ZERO,
            request_id: Vec::new(),
            trace_id: [b'0'; 32],
            client: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            method: String::new(),
            path: String::new(),
            route: String::new(),
            entry: Rejection::InternalError.entry(),
            phase: Phase::Unknown,
            header: None,
            detail: None,
            user: None,
            key: None,
        }
    }
}

/// Ids are ASCII, as they came or were made. That is looked at when somebody asks, which is seldom.
fn ascii_text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap_or_default()
}

/// Writes `new` over `old`, in its memory.
fn overwrite(old: &mut String, new: &str) {
    old.clear();
    old.push_str(new);
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use http::Method;

    use super::*;
    use crate::gateway::context::{Peer, RequestContext};
    use crate::http::headers::{HeaderName, Headers};
    use crate::observability::metrics::Metrics;

    fn note(recorder: &RejectionRecorder, id: &str) {
        let mut fields = Headers::new();
        fields.push(HeaderName::XRequestId, id.as_bytes());
        let client = Rc::new(Peer::new(IpAddr::from([192, 0, 2, 1]), false));
        let (context, worker) = (RequestContext::new(client, &fields, &[]), Metrics::default().worker());
        let record = AccessRecord::new(context, Method::GET, "/timbr/api/query/", &worker.route(""), &worker);
        recorder.record(&Rejection::ApiKeyMissing, &record);
    }

    fn ids(refusals: &RecentRejections, most: usize) -> Vec<String> {
        refusals.newest(most, |_| true).into_iter().map(|refusal| refusal.request_id().to_owned()).collect()
    }

    #[test]
    fn the_newest_come_first_and_the_oldest_go() {
        let refusals = RecentRejections::new(1);
        let recorder = refusals.recorder(0);
        for number in 0..MAX_RECORDS + 2 {
            note(&recorder, &format!("id-{number}"));
        }
        assert_eq!(ids(&refusals, 2), ["id-1001", "id-1000"]);
        let all = ids(&refusals, usize::MAX);
        assert_eq!((all.len(), all.last().map(String::as_str)), (MAX_RECORDS, Some("id-2")));
        assert_eq!(refusals.capacity(), MAX_RECORDS);
    }

    #[test]
    fn records_of_all_workers_are_listed() {
        let refusals = RecentRejections::new(2);
        note(&refusals.recorder(0), "a");
        note(&refusals.recorder(1), "b");
        let mut all = ids(&refusals, 10);
        all.sort();
        assert_eq!(all, ["a", "b"]);
        let found = refusals.newest(10, |refusal| refusal.request_id() == "b");
        assert_eq!(
            (found.len(), found[0].entry.reason, found[0].method.as_str()),
            (1, "api_key_missing", "GET")
        );
        assert!(RecentRejections::new(64).capacity() >= 64 * MIN_RECORDS_PER_WORKER);
    }

    #[test]
    fn an_old_record_is_overwritten_completely() {
        let refusals = RecentRejections::new(1000);
        let recorder = refusals.recorder(0);
        for _ in 0..MIN_RECORDS_PER_WORKER {
            note(&recorder, "a-long-id-that-is-overwritten");
        }
        note(&recorder, "b");
        let newest = &refusals.newest(1, |_| true)[0];
        assert_eq!((newest.request_id(), newest.trace_id().len()), ("b", 32));
        assert_eq!(newest.path, "/timbr/api/query/");
    }

    #[test]
    fn the_trace_ends_with_the_phase_that_rejected() {
        let trace = |phase, route: &str| {
            let record = RejectionRecord { phase, route: route.to_owned(), ..RejectionRecord::blank() };
            record.trace().collect::<Vec<_>>()
        };
        let screened = trace(Phase::Screen, "api");
        let phases: Vec<_> = screened.iter().map(|(phase, _)| *phase).collect();
        assert_eq!(phases, [Phase::Read, Phase::Admission, Phase::Route, Phase::Handshake, Phase::Screen]);
        let refused: Vec<_> = screened.iter().filter(|(_, result)| *result == PhaseResult::Refused).collect();
        assert_eq!(refused, [&(Phase::Screen, PhaseResult::Refused)]);
        assert_eq!(trace(Phase::GetToken, get_token::ROUTE_NAME).len(), 5);
        assert_eq!(trace(Phase::Unknown, "api"), [(Phase::Unknown, PhaseResult::Refused)]);
    }
}
