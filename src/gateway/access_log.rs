//! The one line that each request writes, when its answer's body has ended.

use std::rc::Rc;
use std::time::{Duration, Instant};

use http::{Method, StatusCode};

use crate::admission::RequestPlace;
use crate::base::clock;
use crate::base::user_name::UserName;
use crate::gateway::context::Context;
use crate::observability::auth_timing::Steps;
use crate::observability::log::{self, Record, label};
use crate::observability::metrics::{self, Answered};
use crate::observability::trace::{Said, Span, Trace};
use crate::store::Fingerprint;

/// Most bytes of what a client chooses. A line is kept in memory until the log takes it, so strangers must not say how
/// long it is.
const LONGEST_PATH: usize = 512;
const LONGEST_METHOD: usize = 32;
const LONGEST_USER: usize = 128;

/// What the line says. Dropped, it is written.
///
/// SECURITY: neither query nor fields nor body stand here; the query of a path can hold what a user asked for.
#[derive(Debug)]
pub struct AccessLine {
    context: Context,
    method: Method,
    path: String,
    /// The route, and where its requests are counted; the nameless one if none was found.
    pub route: Rc<metrics::Route>,
    /// Whose request it is, once that is known.
    pub user: Option<UserName>,
    /// Whom it asks to act as.
    pub acts_as: Option<String>,
    /// The key's fingerprint, once that is known.
    pub key: Option<Fingerprint>,
    /// The rejection's reason; empty if the backend answered.
    pub reason: &'static str,
    /// The answer's status.
    pub status: StatusCode,
    /// The request's place among those in flight, given back when the answer has ended.
    pub place: Option<RequestPlace>,
    /// What the steps took by which its caller was found out.
    pub steps: Steps,
    /// Bytes of the answer's body that were handed on.
    pub sent: u64,
    /// Whether the body came to its end.
    pub complete: bool,
    /// What the backend took for the head of its answer.
    pub upstream_to_head: Option<Duration>,
    /// From the head of the request to the head of the answer, if there is one.
    pub to_head: Option<Duration>,
}

impl AccessLine {
    /// The line of a request that was just read. Its status stays 499, "client closed request", unless an answer
    /// comes about.
    pub fn new(
        context: Context,
        method: Method,
        path: &str,
        counted: (&Rc<metrics::Route>, &metrics::Worker),
    ) -> AccessLine {
        AccessLine {
            context,
            method,
            path: cut(path, LONGEST_PATH).to_owned(),
            route: Rc::clone(counted.0),
            steps: Steps::new(counted.1.clone()),
            user: None,
            acts_as: None,
            key: None,
            reason: "",
            status: StatusCode::from_u16(499).expect("within 100 to 999"),
            place: None,
            sent: 0,
            complete: false,
            upstream_to_head: None,
            to_head: None,
        }
    }

    /// The request's context.
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// The request's method, no longer than a line shows it.
    pub fn method(&self) -> &str {
        cut(self.method.as_str(), LONGEST_METHOD)
    }

    /// Its path without the query, no longer than a line shows it.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Fills a line of the audit log: who has asked for what, and what was decided.
    pub fn tell_who(&self, record: &mut Record<'_>, what: &str, decision: &str) {
        record.text(label!("what"), what);
        record.text(label!("decision"), decision);
        record.word(label!("request_id"), self.context.request_id_bytes());
        record.word(label!("client"), self.context.client_text().as_bytes());
        self.tell_request(record);
    }

    /// What was asked for, and by whom: alike in both logs.
    fn tell_request(&self, record: &mut Record<'_>) {
        record.text(label!("method"), self.method());
        record.text(label!("path"), &self.path);
        record.text(label!("route"), self.route.name());
        record.text(label!("user"), cut(self.user.as_ref().map_or("", UserName::as_str), LONGEST_USER));
        if let Some(user) = &self.acts_as {
            record.text(label!("acts_as"), cut(user, LONGEST_USER));
        }
        if let Some(key) = self.key {
            record.hex(label!("key"), key.raw());
        }
    }

    /// Notes what the backend took for the head of its answer, or for none.
    pub fn upstream_ended(&mut self, begun: Instant, answered: bool) {
        let ended = clock::now();
        if answered {
            let span = ended.duration_since(begun);
            self.route.note_upstream(span);
            self.upstream_to_head = Some(span);
        }
        if let Some(trace) = &self.steps.trace {
            trace.asked(Span { begun, ended });
        }
    }

    /// Hands on the trace.
    #[cold]
    fn finish(&self, trace: Trace, received: u64) {
        let said = Said {
            method: cut(self.method.as_str(), LONGEST_METHOD).to_owned(),
            route: self.route.name().to_owned(),
            path: self.path.clone(),
            status: self.status.as_u16(),
            reason: self.reason,
            client: self.context.client_text().into_owned(),
            protocol: if self.context.client.protocol == "http/2" { "2" } else { "1.1" },
            secure: self.context.client.secure,
            user: self.user.as_ref().map(|user| cut(user.as_str(), LONGEST_USER).to_owned()),
            key: self.key.map(|key| key.to_string()),
            request_id: self.context.request_id().to_owned(),
            server: None,
            received,
            sent: self.sent,
        };
        trace.finish(Span { begun: self.context.begun, ended: clock::recent() }, said);
    }

    /// Notes the moment at which the head of the answer stands.
    pub fn head_is_ready(&mut self, status: StatusCode) {
        self.status = status;
        // A backend's answer has come a moment ago, when the clock was read.
        let now = if self.upstream_to_head.is_some() { clock::recent() } else { clock::now() };
        self.to_head = Some(now.duration_since(self.context.begun));
    }
}

impl Drop for AccessLine {
    fn drop(&mut self) {
        // Read before the line is made, which tells it too.
        let total = clock::now().duration_since(self.context.begun);
        if self.to_head.is_none() {
            self.reason = "client_closed";
        }
        let received = self.context.received.as_ref().map_or(0, |received| received.get());
        self.route.note(&Answered {
            method: &self.method,
            status: self.status,
            reason: self.reason,
            to_head: self.to_head,
            total,
            received,
            sent: self.sent,
        });
        if let Some(trace) = self.steps.trace.take() {
            self.finish(*trace, received);
        }
        log::access(|line| {
            line.word(label!("request_id"), self.context.request_id_bytes());
            line.word(label!("trace_id"), self.context.trace_id());
            line.word(label!("protocol"), self.context.client.protocol.as_bytes());
            line.word(label!("client"), self.context.client_text().as_bytes());
            if let Some(certificate) = &self.context.client.certificate {
                line.text(label!("certificate"), certificate);
            }
            self.tell_request(line);
            line.number(label!("status"), self.status.as_u16().into());
            line.text(label!("reason"), self.reason);
            line.number(label!("received"), received);
            line.number(label!("sent"), self.sent);
            line.flag(label!("complete"), self.complete);
            line.millis(label!("head_ms"), self.to_head.unwrap_or_default());
            if let Some(span) = self.upstream_to_head {
                line.millis(label!("upstream_ms"), span);
            }
            line.millis(label!("total_ms"), total);
        });
    }
}

/// The beginning of a text, at most so many bytes of it.
fn cut(text: &str, most: usize) -> &str {
    if text.len() <= most {
        return text;
    }
    let end = (0..=most).rev().find(|at| text.is_char_boundary(*at)).unwrap_or_default();
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_cut_between_characters() {
        assert_eq!(cut("alice", 5), "alice");
        assert_eq!(cut("alice", 4), "alic");
        assert_eq!(cut("aé", 2), "a");
        assert_eq!(cut("é", 1), "");
    }
}
