//! The query journal: the statements that run now, and statistics of the last hour, in bounded memory. It decides
//! nothing; the only effect it has on a request is that an operator can cancel one.
//!
//! Each worker writes its own list of running queries, for which only an operator contends. The statistics are shared:
//! their lock is held for about as long as that of the log, which each statement takes as well.

mod cancellation;
mod client_family;
mod statistics;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use http::StatusCode;
use parking_lot::Mutex;

use crate::base::clock;
use crate::base::label_values::label_values;
use crate::http::statement::{StatementClass, StatementFingerprint};
use crate::observability::metrics::QueryMetrics;

pub use cancellation::Cancellation;
pub use client_family::client_family;
use statistics::QueryStatistics;
pub use statistics::{QueryTotals, STATISTICS_PERIOD, StatisticsKey, TopList, TopRow};

label_values! {
    /// How much of the text of a statement the journal has.
    QueryText {
        /// Nothing.
        None = "none",
        /// The text without its literals.
        Fingerprint = "fingerprint",
        /// The text as it was sent.
        Full = "full",
    }
}

/// What is known of a statement before it is sent.
#[derive(Clone, Debug)]
pub struct QueryFacts {
    /// The proven user; empty on routes without credentials.
    pub user: Box<str>,
    /// The user to act as, if the client named one.
    pub acts_as: Option<Box<str>>,
    /// The upstream of the route.
    pub upstream: Arc<str>,
    /// The ontology that the request names; empty if it names none.
    pub ontology: Box<str>,
    /// Its class.
    pub class: StatementClass,
    /// The hash of the statement without its literals.
    pub fingerprint: Option<StatementFingerprint>,
    /// The text, as far as the configuration allows it.
    pub text: Option<Box<str>>,
    /// The kind of client.
    pub client: &'static str,
}

/// A statement that has ended.
#[derive(Clone, Debug)]
pub struct CompletedQuery {
    /// What was known before it was sent.
    pub facts: Arc<QueryFacts>,
    /// The id of the request.
    pub request_id: Box<str>,
    /// When it ended, since the Unix epoch.
    pub ended: Duration,
    /// Time in the queue for the backend.
    pub queued: Duration,
    /// From the head of the request to the head of the response; `None` without one.
    pub to_head: Option<Duration>,
    /// From the head of the request to the end of the response.
    pub total: Duration,
    /// Bytes of the response body that were sent.
    pub sent: u64,
    /// The status of the response.
    pub status: StatusCode,
    /// Why the gateway rejected it or cut its response short; empty otherwise.
    pub reason: &'static str,
}

impl CompletedQuery {
    /// Whether the client did not receive a complete, successful response.
    pub fn is_error(&self) -> bool {
        !self.reason.is_empty() || self.status.is_client_error() || self.status.is_server_error()
    }
}

label_values! {
    /// What a running query does.
    QueryState {
        /// It waits for a slot.
        Queued = "queued",
        /// The backend works on it, or the client reads its response.
        Running = "running",
        /// The client has left, or an operator has cancelled it, and the backend may still work on it.
        Abandoned = "abandoned",
    }
}

/// A statement that occupies the backend or its queue.
#[derive(Debug)]
pub struct RunningQuery {
    /// What is known of it.
    pub facts: Arc<QueryFacts>,
    /// The id of the request. A client may have chosen it, so several may have the same.
    pub request_id: Box<str>,
    /// When the head of the request had been read.
    pub since: Instant,
    state: AtomicU8,
    cancellation: Arc<Cancellation>,
}

impl RunningQuery {
    /// What it does.
    pub fn state(&self) -> QueryState {
        QueryState::ALL[usize::from(self.state.load(Ordering::Relaxed))]
    }

    /// Changes what it does.
    pub fn set_state(&self, state: QueryState) {
        self.state.store(state as u8, Ordering::Relaxed);
    }
}

type RunningQueries = Mutex<HashMap<u64, Arc<RunningQuery>>>;

/// The running queries and the statistics of all workers.
#[derive(Debug)]
pub struct QueryJournal {
    /// One for each worker.
    running: Box<[RunningQueries]>,
    next_number: AtomicU64,
    statistics: Mutex<QueryStatistics>,
    metrics: QueryMetrics,
}

/// Writes the queries of one worker.
#[derive(Clone, Debug)]
pub struct QueryRecorder {
    journal: Arc<QueryJournal>,
    worker: usize,
}

/// Lists a query as running until it is dropped.
#[derive(Debug)]
pub struct RunningQueryGuard {
    recorder: QueryRecorder,
    number: u64,
}

impl QueryJournal {
    /// Without queries.
    pub fn new(workers: usize, metrics: QueryMetrics) -> Arc<QueryJournal> {
        Arc::new(QueryJournal {
            running: (0..workers.max(1)).map(|_| RunningQueries::default()).collect(),
            next_number: AtomicU64::new(0),
            statistics: Mutex::default(),
            metrics,
        })
    }

    /// For the worker with this number, counted from 0.
    pub fn recorder(self: &Arc<QueryJournal>, worker: usize) -> QueryRecorder {
        QueryRecorder { journal: Arc::clone(self), worker: worker % self.running.len() }
    }

    /// The running queries, the oldest first.
    pub fn running(&self) -> Vec<Arc<RunningQuery>> {
        let mut all: Vec<_> =
            self.running.iter().flat_map(|one| one.lock().values().cloned().collect::<Vec<_>>()).collect();
        all.sort_by_key(|query| query.since);
        all
    }

    /// Cancels all queries with this request id that are queued or running, and returns them.
    pub fn cancel(&self, request_id: &str, why: &Arc<str>) -> Vec<Arc<RunningQuery>> {
        let is_wanted = |query: &Arc<RunningQuery>| {
            *query.request_id == *request_id
                && query.state() != QueryState::Abandoned
                && query.cancellation.cancel(Arc::clone(why))
        };
        self.running().into_iter().filter(is_wanted).collect()
    }

    /// The slowest statements that ended within [`STATISTICS_PERIOD`], the slowest first.
    pub fn slowest(&self, limit: usize) -> Vec<CompletedQuery> {
        self.statistics.lock().slowest(clock::now(), limit)
    }

    /// The users, ontologies or fingerprints with the longest total duration within [`STATISTICS_PERIOD`].
    pub fn top(&self, by: StatisticsKey, limit: usize) -> TopList {
        self.statistics.lock().top(clock::now(), by, limit)
    }
}

impl QueryRecorder {
    /// Lists a query until the guard is dropped.
    pub fn begin(
        &self,
        facts: Arc<QueryFacts>,
        request_id: &str,
        since: Instant,
        cancellation: Arc<Cancellation>,
    ) -> (Arc<RunningQuery>, RunningQueryGuard) {
        let state = AtomicU8::new(QueryState::Queued as u8);
        let query = Arc::new(RunningQuery { facts, request_id: request_id.into(), since, state, cancellation });
        let number = self.journal.next_number.fetch_add(1, Ordering::Relaxed);
        self.running().lock().insert(number, Arc::clone(&query));
        (query, RunningQueryGuard { recorder: self.clone(), number })
    }

    /// Adds a statement that has ended to the metrics and the statistics.
    pub fn record(&self, query: CompletedQuery) {
        self.journal.metrics.record(&query.facts.ontology, query.is_error(), query.total, query.sent);
        self.journal.statistics.lock().record(clock::recent(), query);
    }

    fn running(&self) -> &RunningQueries {
        &self.journal.running[self.worker]
    }
}

impl Drop for RunningQueryGuard {
    fn drop(&mut self) {
        self.recorder.running().lock().remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn facts(user: &str) -> QueryFacts {
        QueryFacts {
            user: user.into(),
            acts_as: None,
            upstream: "default".into(),
            ontology: "sales".into(),
            class: StatementClass::Read,
            fingerprint: None,
            text: None,
            client: "other",
        }
    }

    #[test]
    fn queries_of_all_workers_are_listed_and_cancelled_until_they_end() {
        let journal = QueryJournal::new(2, QueryMetrics::default());
        let began = Instant::now();
        let begin = |worker, id: &str, after| {
            journal.recorder(worker).begin(
                Arc::new(facts("alice")),
                id,
                began + Duration::from_secs(after),
                Arc::default(),
            )
        };
        let (_second, _second_guard) = begin(0, "b", 1);
        let (first, first_guard) = begin(1, "a", 0);
        let ids = || journal.running().iter().map(|query| query.request_id.to_string()).collect::<Vec<_>>();
        assert_eq!(ids(), ["a", "b"]);
        assert_eq!(first.state(), QueryState::Queued);
        assert_eq!(journal.cancel("a", &"too slow".into()).len(), 1);
        assert!(journal.cancel("a", &"again".into()).is_empty(), "it is cancelled once");
        assert!(journal.cancel("unknown", &"".into()).is_empty());
        drop(first_guard);
        assert_eq!(ids(), ["b"]);
    }

    #[test]
    fn an_abandoned_query_cannot_be_cancelled() {
        let journal = QueryJournal::new(1, QueryMetrics::default());
        let (query, _guard) = journal.recorder(0).begin(Arc::new(facts("alice")), "a", Instant::now(), Arc::default());
        query.set_state(QueryState::Abandoned);
        assert!(journal.cancel("a", &"".into()).is_empty());
        assert_eq!(journal.running()[0].state().as_str(), "abandoned");
    }
}
