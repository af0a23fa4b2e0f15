//! The part of a request's record that the query journal needs. It exists only for requests that carry a statement, and
//! only while `journal.enabled` is set.
//!
//! A request is recorded once its identity is proven; the access log has what was rejected before. It is listed as
//! running when its body has arrived, until its permit is released: so a query whose client has left is listed as long
//! as the backend works on it.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use crate::admission::RequestPermit;
use crate::base::clock;
use crate::base::truncate::truncate;
use crate::base::user_name::UserName;
use crate::gateway::access_record::AccessRecord;
use crate::gateway::authorize::StatementSource;
use crate::gateway::ontology::requested_ontology;
use crate::gateway::screen::Screened;
use crate::http::headers::HeaderName;
use crate::http::statement::{Statement, StatementClass};
use crate::observability::log::{self, label};
use crate::observability::queries::{
    Cancellation, CompletedQuery, QueryFacts, QueryRecorder, QueryState, QueryText, RunningQuery, client_family,
};

/// Maximum bytes of names in the journal.
const MAX_NAME: usize = 128;

/// Maximum bytes of the text of a statement in the journal.
const MAX_TEXT: usize = 2048;

/// The reason in logs and metrics if an operator cancels a query whose response has begun.
pub const CANCELLED_REASON: &str = "query_cancelled";

/// Records the queries of one worker, as the configuration says.
pub struct QueryObserver {
    /// Writes to the journal.
    pub recorder: QueryRecorder,
    /// How much of their texts.
    pub text: QueryText,
}

/// A statement, from the proof of its identity to the end of its response.
#[derive(Debug)]
pub struct QueryRecord {
    recorder: QueryRecorder,
    text: QueryText,
    /// How its body carries the statement.
    pub source: StatementSource,
    facts: Arc<QueryFacts>,
    cancellation: Arc<Cancellation>,
    /// `None` until its body has arrived.
    running: Option<Arc<RunningQuery>>,
    is_cancelled: bool,
    queued_at: Option<Instant>,
    queued: Option<Duration>,
}

impl QueryObserver {
    /// Begins the record of a request that carries a statement; `None` for any other. `acts_as` is not known yet.
    pub fn begin(
        &self,
        screened: &Screened,
        user: Option<&UserName>,
        upstream: &Arc<str>,
        cancellation: Arc<Cancellation>,
    ) -> Option<Box<QueryRecord>> {
        let source = StatementSource::of_request(screened)?;
        // An ambiguous one is rejected where rules need it.
        let ontology = requested_ontology(screened).ok().flatten().unwrap_or_default();
        let facts = QueryFacts {
            user: truncate(user.map_or("", UserName::as_str), MAX_NAME).into(),
            acts_as: None,
            upstream: Arc::clone(upstream),
            ontology: truncate(&ontology, MAX_NAME).into(),
            class: StatementClass::Unknown,
            fingerprint: None,
            text: None,
            client: client_family(screened.headers().get(HeaderName::UserAgent)),
        };
        Some(Box::new(QueryRecord {
            recorder: self.recorder.clone(),
            text: self.text,
            source,
            facts: Arc::new(facts),
            cancellation,
            running: None,
            is_cancelled: false,
            queued_at: None,
            queued: None,
        }))
    }
}

impl QueryRecord {
    /// The statement has been read: from now on the query is listed, until `permit` is released. It may wait for a slot.
    pub fn begin(
        &mut self,
        statement: &Statement<'_>,
        acts_as: Option<&str>,
        request_id: &str,
        started_at: Instant,
        permit: &mut RequestPermit,
    ) {
        let facts = Arc::make_mut(&mut self.facts);
        facts.acts_as = acts_as.map(|user| truncate(user, MAX_NAME).into());
        if let (true, Some(ontology)) = (facts.ontology.is_empty(), &statement.ontology) {
            facts.ontology = truncate(ontology, MAX_NAME).into();
        }
        facts.class = statement.class;
        facts.fingerprint = statement.fingerprint();
        let text = match self.text {
            QueryText::None => None,
            QueryText::Fingerprint => Some(statement.normalized.trim_end()),
            QueryText::Full => statement.text.as_deref(),
        };
        facts.text = text.filter(|text| !text.is_empty()).map(|text| truncate(text, MAX_TEXT).into());
        let cancellation = Arc::clone(&self.cancellation);
        let (query, guard) = self.recorder.begin(Arc::clone(&self.facts), request_id, started_at, cancellation);
        self.running = Some(query);
        permit.list_query(guard);
        self.queued_at = Some(clock::now());
    }

    /// The query has its slot.
    pub fn leave_queue(&mut self) {
        self.queued = self.queued_at.map(|since| clock::now().duration_since(since));
        self.set_state(QueryState::Running);
    }

    fn set_state(&self, state: QueryState) {
        if let Some(running) = &self.running {
            running.set_state(state);
        }
    }

    /// Whether an operator has cancelled the query.
    pub fn poll_cancelled(&mut self, cx: &mut Context<'_>) -> bool {
        self.is_cancelled = self.is_cancelled || self.cancellation.poll_cancelled(cx).is_ready();
        self.is_cancelled
    }

    /// Writes the line, and adds the statement to the statistics.
    pub fn finish(self, record: &AccessRecord, total: Duration) {
        self.set_state(QueryState::Abandoned);
        // It may have ended in the queue.
        let queued = self.queued.or_else(|| self.queued_at.map(|since| clock::recent().duration_since(since)));
        let completed = CompletedQuery {
            facts: self.facts,
            request_id: record.context.request_id().into(),
            ended: clock::unix_time(),
            queued: queued.unwrap_or_default(),
            to_head: record.to_head,
            total,
            sent: record.sent,
            status: record.status,
            reason: record.reason,
        };
        write_line(&completed);
        self.recorder.record(completed);
    }
}

fn write_line(query: &CompletedQuery) {
    let facts = &query.facts;
    log::write_query(|line| {
        line.word(label!("request_id"), query.request_id.as_bytes());
        line.text(label!("user"), &facts.user);
        if let Some(user) = &facts.acts_as {
            line.text(label!("acts_as"), user);
        }
        line.text(label!("client_family"), facts.client);
        line.text(label!("upstream"), &facts.upstream);
        line.text(label!("ontology"), &facts.ontology);
        line.text(label!("class"), facts.class.as_str());
        if let Some(fingerprint) = facts.fingerprint {
            line.text(label!("fingerprint"), &fingerprint.to_string());
        }
        if let Some(text) = &facts.text {
            line.text(label!("text"), text);
        }
        line.number(label!("status"), query.status.as_u16().into());
        line.text(label!("reason"), query.reason);
        line.number(label!("sent"), query.sent);
        line.millis(label!("queue_ms"), query.queued);
        if let Some(duration) = query.to_head {
            line.millis(label!("head_ms"), duration);
        }
        line.millis(label!("total_ms"), query.total);
    });
}

/// Polls a future until an operator cancels the query, and returns the operator's words then. Dropping the future does
/// the same as the departure of the client: it leaves the queue, or abandons the exchange with the backend.
pub async fn until_cancelled<F: Future>(
    mut future: Pin<&mut F>,
    cancellation: Option<&Cancellation>,
) -> Result<F::Output, Arc<str>> {
    std::future::poll_fn(|cx| {
        if let Poll::Ready(output) = future.as_mut().poll(cx) {
            return Poll::Ready(Ok(output));
        }
        match cancellation {
            Some(cancellation) => cancellation.poll_cancelled(cx).map(Err),
            None => Poll::Pending,
        }
    })
    .await
}
