//! What became of the requests of one route, as one worker has seen it.

use std::time::Duration;

use http::{Method, StatusCode};
use parking_lot::Mutex;

use crate::observability::metrics::histogram::{DurationHistogram, Histogram, SingleWriterCounter};

/// Methods that are told apart; strangers can make up others.
const METHODS: [&str; 8] = ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "other"];

/// Classes of status codes.
const STATUS_CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

fn method_index(method: &Method) -> usize {
    match *method {
        Method::GET => 0,
        Method::HEAD => 1,
        Method::POST => 2,
        Method::PUT => 3,
        Method::DELETE => 4,
        Method::PATCH => 5,
        Method::OPTIONS => 6,
        _ => 7,
    }
}

fn status_class_index(status: StatusCode) -> usize {
    usize::from(status.as_u16() / 100).clamp(1, STATUS_CLASSES.len()) - 1
}

/// A request that has come to its end.
#[derive(Debug)]
pub struct CompletedRequest<'a> {
    /// Its method.
    pub method: &'a Method,
    /// The answer's status.
    pub status: StatusCode,
    /// Why it was not as the backend meant it; empty if it was.
    pub reason: &'static str,
    /// From its head to the answer's; `None` if there was no answer.
    pub to_head: Option<Duration>,
    /// From its head to the end of the answer.
    pub total: Duration,
    /// Bytes of its body.
    pub received: u64,
    /// Bytes of the answer's body.
    pub sent: u64,
}

#[derive(Debug)]
pub struct RouteCounters {
    pub name: Box<str>,
    responses: [[SingleWriterCounter; STATUS_CLASSES.len()]; METHODS.len()],
    /// Few kinds of refusals come about at a route, of all that there are. Nobody but the reader ever waits here.
    rejections: Mutex<Vec<RejectionCount>>,
    total: DurationHistogram,
    to_head: DurationHistogram,
    upstream_to_head: DurationHistogram,
    received: SingleWriterCounter,
    sent: SingleWriterCounter,
}

#[derive(Clone, Copy, Debug)]
struct RejectionCount {
    method: usize,
    class: usize,
    reason: &'static str,
    count: u64,
}

impl RouteCounters {
    pub fn new(name: &str) -> RouteCounters {
        RouteCounters {
            name: name.into(),
            responses: Default::default(),
            rejections: Mutex::default(),
            total: DurationHistogram::default(),
            to_head: DurationHistogram::default(),
            upstream_to_head: DurationHistogram::default(),
            received: SingleWriterCounter::default(),
            sent: SingleWriterCounter::default(),
        }
    }

    /// As the owner.
    pub fn record(&self, answered: &CompletedRequest<'_>) {
        let (method, class) = (method_index(answered.method), status_class_index(answered.status));
        if answered.reason.is_empty() {
            self.responses[method][class].add(1);
        } else {
            self.record_rejection(method, class, answered.reason);
        }
        if let Some(span) = answered.to_head {
            self.to_head.record(span);
        }
        self.total.record(answered.total);
        self.received.add(answered.received);
        self.sent.add(answered.sent);
    }

    /// As the owner: how long the backend took for the head of its answer.
    pub fn record_upstream(&self, span: Duration) {
        self.upstream_to_head.record(span);
    }

    fn record_rejection(&self, method: usize, class: usize, reason: &'static str) {
        let mut refusals = self.rejections.lock();
        let same = |known: &&mut RejectionCount| {
            known.method == method && known.class == class && known.reason == reason
        };
        match refusals.iter_mut().find(same) {
            Some(known) => known.count += 1,
            None => refusals.push(RejectionCount { method, class, reason, count: 1 }),
        }
    }

    /// Adds what was noted to a sum.
    pub fn add_to(&self, sum: &mut RouteTotals) {
        for (method, classes) in METHODS.iter().zip(&self.responses) {
            for (status, cell) in STATUS_CLASSES.iter().zip(classes) {
                sum.add(ResponseCount { method, status, reason: "", count: cell.get() });
            }
        }
        for RejectionCount { method, class, reason, count } in self.rejections.lock().iter().copied() {
            sum.add(ResponseCount { method: METHODS[method], status: STATUS_CLASSES[class], reason, count });
        }
        self.total.add_to(&mut sum.total);
        self.to_head.add_to(&mut sum.to_head);
        self.upstream_to_head.add_to(&mut sum.upstream_to_head);
        sum.received += self.received.get();
        sum.sent += self.sent.get();
    }
}

/// So many requests ended alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResponseCount {
    /// Their method, `other` for unusual ones.
    pub method: &'static str,
    /// The class of their answers' status: `2xx`.
    pub status: &'static str,
    /// Why they were refused or broke off; empty if the backend answered.
    pub reason: &'static str,
    /// How many.
    pub count: u64,
}

/// What became of a route's requests, at all workers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RouteTotals {
    /// Its name; empty for requests of no route.
    pub name: String,
    /// None of them has a count of 0.
    pub responses: Vec<ResponseCount>,
    /// To the end of the answer.
    pub total: Histogram,
    /// To the head of the answer.
    pub to_head: Histogram,
    /// What of that the backend took.
    pub upstream_to_head: Histogram,
    /// Bytes of requests' bodies.
    pub received: u64,
    /// Bytes of answers' bodies.
    pub sent: u64,
}

impl RouteTotals {
    fn add(&mut self, answers: ResponseCount) {
        if answers.count == 0 {
            return;
        }
        let alike = |known: &&mut ResponseCount| {
            (known.method, known.status, known.reason) == (answers.method, answers.status, answers.reason)
        };
        match self.responses.iter_mut().find(alike) {
            Some(known) => known.count += answers.count,
            None => self.responses.push(answers),
        }
    }

    /// What came since an earlier sum of the same route.
    pub fn since(&self, earlier: &RouteTotals) -> RouteTotals {
        let before = |now: &ResponseCount| {
            let alike = |then: &&ResponseCount| {
                (then.method, then.status, then.reason) == (now.method, now.status, now.reason)
            };
            earlier.responses.iter().find(alike).map_or(0, |then| then.count)
        };
        let rest =
            |now: &ResponseCount| ResponseCount { count: now.count.saturating_sub(before(now)), ..*now };
        RouteTotals {
            name: self.name.clone(),
            responses: self.responses.iter().map(rest).filter(|answers| answers.count > 0).collect(),
            total: self.total.since(&earlier.total),
            to_head: self.to_head.since(&earlier.to_head),
            upstream_to_head: self.upstream_to_head.since(&earlier.upstream_to_head),
            received: self.received.saturating_sub(earlier.received),
            sent: self.sent.saturating_sub(earlier.sent),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_told_apart_by_method_class_and_reason() {
        let cells = RouteCounters::new("query");
        let note = |method: &Method, status: u16, reason: &'static str| {
            cells.record(&CompletedRequest {
                method,
                status: StatusCode::from_u16(status).expect("a status"),
                reason,
                to_head: (reason != "client_closed").then_some(Duration::from_millis(1)),
                total: Duration::from_millis(2),
                received: 3,
                sent: 5,
            });
        };
        note(&Method::POST, 200, "");
        note(&Method::POST, 201, "");
        note(&Method::from_bytes(b"BREW").expect("a method"), 405, "method_not_allowed");
        let mut before = RouteTotals::default();
        cells.add_to(&mut before);
        note(&Method::POST, 401, "api_key_missing");
        note(&Method::POST, 401, "api_key_missing");
        note(&Method::POST, 499, "client_closed");
        let mut sum = RouteTotals::default();
        cells.add_to(&mut sum);
        let of = |sum: &RouteTotals, method, status, reason| {
            let alike = |a: &&ResponseCount| (a.method, a.status, a.reason) == (method, status, reason);
            sum.responses.iter().find(alike).map_or(0, |answers| answers.count)
        };
        assert_eq!(of(&sum, "POST", "2xx", ""), 2);
        assert_eq!(of(&sum, "other", "4xx", "method_not_allowed"), 1);
        assert_eq!(of(&sum, "POST", "4xx", "api_key_missing"), 2);
        assert_eq!(sum.responses.len(), 4);
        assert_eq!((sum.total.count(), sum.to_head.count(), sum.received, sum.sent), (6, 5, 18, 30));
        let since = sum.since(&before);
        assert_eq!((since.responses.len(), since.total.count(), since.sent), (2, 3, 15));
        assert_eq!(of(&since, "POST", "4xx", "api_key_missing"), 2);
    }
}
