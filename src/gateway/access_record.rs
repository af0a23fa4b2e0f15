//! The record of one request: its line in the access log, its metrics and its trace. It is written when it is dropped,
//! which is when the response has ended or the client has closed the connection.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{Method, StatusCode};

use crate::auth::HeldAccess;
use crate::base::clock;
use crate::base::truncate::truncate;
use crate::base::user_name::UserName;
use crate::gateway::context::RequestContext;
use crate::gateway::query_record::QueryRecord;
use crate::observability::auth_timing::AuthTiming;
use crate::observability::log::{self, AuditLineLost, LogRecord, label};
use crate::observability::metrics::{self, CompletedRequest, Protocol};
use crate::observability::trace::{Interval, RequestAttributes, Trace};
use crate::store::Fingerprint;

/// Maximum bytes of texts that a client chooses. A line stays in memory until the log has written it, so an
/// unauthenticated client must not choose its length.
const MAX_PATH: usize = 512;
const MAX_METHOD: usize = 32;
const MAX_USER: usize = 128;

/// nginx's "client closed request", for a request without a response.
const CLIENT_CLOSED_REQUEST: u16 = 499;

/// The record of one request.
///
/// SECURITY: it has neither query nor headers nor body. A query can contain what a user searched for.
pub struct AccessRecord {
    /// Facts about the request from its connection and head.
    pub context: RequestContext,
    method: Method,
    path: String,
    /// The route and its counters; the one without a name until a route is found.
    pub route: Rc<metrics::RouteRecorder>,
    /// The user, once the identity is proven.
    pub user: Option<UserName>,
    /// The user to act as, if the client named one.
    pub acts_as: Option<String>,
    /// The fingerprint of the key, once the identity is proven.
    pub key: Option<Fingerprint>,
    /// The rule of `limits.rules` whose limit the request exceeds, enforced or not.
    pub limit_rule: Option<Arc<str>>,
    /// What the query journal needs; `None` if it is off, or the request carries no statement.
    pub query: Option<Box<QueryRecord>>,
    /// The access that an event stream depends on.
    pub held_access: Option<Box<HeldAccess>>,
    /// Why the gateway rejected the request or aborted its response; empty otherwise.
    pub reason: &'static str,
    /// The status of the response; 499 until there is one.
    pub status: StatusCode,
    /// Durations of the parts of authentication.
    pub timing: AuthTiming,
    /// Bytes of the response body that were sent to the client.
    pub sent: u64,
    /// True if the whole response was written to the client's socket.
    pub complete: bool,
    /// From sending the request to the head of the backend's response; `None` without one.
    pub upstream_to_head: Option<Duration>,
    /// From the head of the request to the head of the response; `None` without one.
    pub to_head: Option<Duration>,
}

/// How the wait for the backend ended.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum UpstreamEnd {
    /// With the head of a response.
    Response,
    /// Without a usable response.
    Failure,
}

impl UpstreamEnd {
    pub fn from_result<T, E>(result: &Result<T, E>) -> UpstreamEnd {
        if result.is_ok() { UpstreamEnd::Response } else { UpstreamEnd::Failure }
    }
}

impl AccessRecord {
    /// The record of a request whose head was just read. Boxed, as it is passed on until the end of the response body.
    pub fn new(
        context: RequestContext,
        method: Method,
        path: &str,
        route: &Rc<metrics::RouteRecorder>,
        worker: &metrics::WorkerMetrics,
    ) -> Box<AccessRecord> {
        Box::new(AccessRecord {
            context,
            method,
            path: truncate(path, MAX_PATH).to_owned(),
            route: Rc::clone(route),
            timing: AuthTiming::new(worker.clone()),
            user: None,
            acts_as: None,
            key: None,
            limit_rule: None,
            query: None,
            held_access: None,
            reason: "",
            status: StatusCode::from_u16(CLIENT_CLOSED_REQUEST).expect("within 100 to 999"),
            sent: 0,
            complete: false,
            upstream_to_head: None,
            to_head: None,
        })
    }

    /// The method of the request, truncated.
    pub fn method(&self) -> &str {
        truncate(self.method.as_str(), MAX_METHOD)
    }

    /// The path of the request without its query, truncated.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Writes a line to the audit log: the request, its client, and what was decided.
    pub fn audit(&self, what: &str, decision: &str) {
        log::write_audit(|line| self.write_audit(line, what, decision));
    }

    /// Writes a successful login to the audit log. If the audit log is required, waits until the line is written.
    pub async fn audit_login(&self) -> Result<(), AuditLineLost> {
        log::write_audit_required(|line| self.write_audit(line, "mint", "granted")).await
    }

    /// Writes a failed login to the audit log, so that an attack on one account is visible.
    ///
    /// SECURITY: `claimed_user` is the name in an authentic bearer whose password was not verified. It has a key of its
    /// own, as `user` is a proven identity in every line.
    pub fn audit_failed_login(&self, decision: &str, claimed_user: Option<&UserName>) {
        log::write_audit(|line| {
            self.write_audit(line, "mint", decision);
            if let Some(user) = claimed_user {
                line.text(label!("claimed_user"), truncate(user.as_str(), MAX_USER));
            }
        });
    }

    fn write_audit(&self, line: &mut LogRecord<'_>, what: &str, decision: &str) {
        line.text(label!("what"), what);
        line.text(label!("decision"), decision);
        line.word(label!("request_id"), self.context.request_id_bytes());
        line.word(label!("client"), self.context.client_address().as_bytes());
        self.write_request(line);
    }

    /// Writes the request and its identity, the same way in both logs.
    fn write_request(&self, line: &mut LogRecord<'_>) {
        line.text(label!("method"), self.method());
        line.text(label!("path"), &self.path);
        line.text(label!("route"), self.route.name());
        line.text(label!("user"), truncate(self.user.as_ref().map_or("", UserName::as_str), MAX_USER));
        if let Some(user) = &self.acts_as {
            line.text(label!("acts_as"), truncate(user, MAX_USER));
        }
        if let Some(key) = self.key {
            line.hex(label!("key"), key.raw());
        }
    }

    /// Records how long the backend took, from `sent_at` to the head of its response or to a failure.
    pub fn record_upstream_end(&mut self, sent_at: Instant, end: UpstreamEnd) {
        let interval = Interval { start: sent_at, end: clock::now() };
        if end == UpstreamEnd::Response {
            let duration = interval.end.duration_since(sent_at);
            self.route.record_upstream(duration);
            self.upstream_to_head = Some(duration);
        }
        if let Some(trace) = &mut self.timing.trace {
            trace.upstream_interval = Some(interval);
        }
    }

    /// Records that the head of the response is complete.
    pub fn record_head(&mut self, status: StatusCode) {
        self.status = status;
        // The clock was read a moment ago, when the backend's response arrived.
        let now = if self.upstream_to_head.is_some() { clock::recent() } else { clock::now() };
        self.to_head = Some(now.duration_since(self.context.started_at));
    }

    /// Passes the trace to the exporter.
    #[cold]
    fn finish_trace(&self, trace: Trace, received: u64) {
        let attributes = RequestAttributes {
            method: self.method().to_owned(),
            route: self.route.name().to_owned(),
            path: self.path.clone(),
            status: self.status.as_u16(),
            reason: self.reason,
            client: self.context.client_address().into_owned(),
            protocol: match self.context.peer.protocol {
                Protocol::Http1 => "1.1",
                Protocol::Http2 => "2",
            },
            is_tls: self.context.peer.is_tls,
            user: self.user.as_ref().map(|user| truncate(user.as_str(), MAX_USER).to_owned()),
            key: self.key.map(|key| key.to_string()),
            request_id: self.context.request_id().to_owned(),
            received,
            sent: self.sent,
        };
        trace.finish(Interval { start: self.context.started_at, end: clock::recent() }, attributes);
    }

    fn write_access(&self, received: u64, total: Duration) {
        log::write_access(|line| {
            line.word(label!("request_id"), self.context.request_id_bytes());
            line.word(label!("trace_id"), self.context.trace_id());
            line.word(label!("protocol"), self.context.peer.protocol.as_str().as_bytes());
            line.word(label!("client"), self.context.client_address().as_bytes());
            if let Some(subject) = &self.context.peer.certificate_subject {
                line.text(label!("certificate"), subject);
            }
            self.write_request(line);
            line.number(label!("status"), self.status.as_u16().into());
            line.text(label!("reason"), self.reason);
            if let Some(rule) = &self.limit_rule {
                line.text(label!("limit_rule"), rule);
            }
            line.number(label!("received"), received);
            line.number(label!("sent"), self.sent);
            line.boolean(label!("complete"), self.complete);
            if let Some(duration) = self.to_head {
                line.millis(label!("head_ms"), duration);
            }
            if let Some(duration) = self.upstream_to_head {
                line.millis(label!("upstream_ms"), duration);
            }
            line.millis(label!("total_ms"), total);
        });
    }
}

impl Drop for AccessRecord {
    fn drop(&mut self) {
        // Read once, so that metrics and log line agree.
        let total = clock::now().duration_since(self.context.started_at);
        match self.context.peer.abort_reason.get() {
            Some(reason) if self.to_head.is_none() || (!self.complete && self.reason.is_empty()) => {
                self.reason = reason;
            }
            None if self.to_head.is_none() => self.reason = "client_closed",
            _ => {}
        }
        let received = self.context.received_bytes.as_ref().map_or(0, |received| received.get());
        self.route.record(&CompletedRequest {
            method: &self.method,
            status: self.status,
            reason: self.reason,
            to_head: self.to_head,
            total,
            received,
            sent: self.sent,
        });
        let address = self.context.origin.address;
        self.timing.worker().record_caller(self.user.as_ref(), address, self.status, self.reason);
        if let Some(trace) = self.timing.trace.take() {
            self.finish_trace(*trace, received);
        }
        if let Some(query) = self.query.take() {
            query.finish(self, total);
        }
        self.write_access(received, total);
    }
}
