//! Counts the completed requests of one route: per worker, and summed up. It knows nothing of how requests are served.

use std::time::Duration;

use http::{Method, StatusCode};
use parking_lot::Mutex;

use crate::base::counter::SingleWriterCounter;
use crate::observability::metrics::histogram::{DurationHistogram, Histogram};

/// Values of the label `method`. Clients may invent methods, so all others share one value.
const METHODS: [&str; 8] = ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "other"];

/// Values of the label `status`.
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

/// The result of a request whose response has ended.
#[derive(Debug)]
pub struct CompletedRequest<'a> {
    /// Request method.
    pub method: &'a Method,
    /// Response status; 499 if the client disconnected before the response.
    pub status: StatusCode,
    /// Why the gateway rejected the request or cut the response short; empty if the backend's response was passed on.
    pub reason: &'static str,
    /// Time from the request head to the response head; `None` without a response.
    pub to_head: Option<Duration>,
    /// Time from the request head to the end of the response.
    pub total: Duration,
    /// Bytes of the request body.
    pub received: u64,
    /// Bytes of the response body.
    pub sent: u64,
}

/// What became of a request, for sums over requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestOutcome {
    /// The backend's response was passed on.
    Answered,
    /// The gateway rejected it, or its client left.
    Rejected,
    /// The gateway or the backend failed.
    Failed,
}

impl RequestOutcome {
    /// `reason` is that of [`CompletedRequest::reason`]. What an operator has stopped gets 503 on purpose.
    pub fn new(is_server_error: bool, reason: &str) -> RequestOutcome {
        match (is_server_error, reason) {
            (false, "") => RequestOutcome::Answered,
            (false, _) | (true, "stopped_by_operator") => RequestOutcome::Rejected,
            (true, _) => RequestOutcome::Failed,
        }
    }
}

#[derive(Debug, Default)]
pub struct RouteCounters {
    pub name: Box<str>,
    responses: [[SingleWriterCounter; STATUS_CLASSES.len()]; METHODS.len()],
    /// A list, because few of all combinations occur on one route. Only scrapes contend for the lock.
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
        RouteCounters { name: name.into(), ..RouteCounters::default() }
    }

    /// Counts a request. Only the owning thread may call this.
    pub fn record(&self, request: &CompletedRequest<'_>) {
        let (method, class) = (method_index(request.method), status_class_index(request.status));
        if request.reason.is_empty() {
            self.responses[method][class].increment();
        } else {
            self.record_rejection(method, class, request.reason);
        }
        if let Some(duration) = request.to_head {
            self.to_head.record(duration);
        }
        self.total.record(request.total);
        self.received.add(request.received);
        self.sent.add(request.sent);
    }

    /// Records the time from sending a request to the backend to the head of its response. Only the owning thread may
    /// call this.
    pub fn record_upstream(&self, duration: Duration) {
        self.upstream_to_head.record(duration);
    }

    fn record_rejection(&self, method: usize, class: usize, reason: &'static str) {
        let mut rejections = self.rejections.lock();
        let same =
            |known: &&mut RejectionCount| known.method == method && known.class == class && known.reason == reason;
        match rejections.iter_mut().find(same) {
            Some(known) => known.count += 1,
            None => rejections.push(RejectionCount { method, class, reason, count: 1 }),
        }
    }

    /// Adds all counts to `sum`.
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

/// Number of requests with the same method, status class and reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResponseCount {
    /// A common method, or `other`.
    pub method: &'static str,
    /// Status class, such as `2xx`.
    pub status: &'static str,
    /// As in [`CompletedRequest::reason`].
    pub reason: &'static str,
    /// Number of such requests.
    pub count: u64,
}

impl ResponseCount {
    /// What became of these requests.
    pub fn outcome(&self) -> RequestOutcome {
        RequestOutcome::new(self.status == "5xx", self.reason)
    }
}

/// The counts of a route, summed over all workers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RouteTotals {
    /// Name of the route; empty for requests that matched none.
    pub name: String,
    /// Only entries with a count above 0.
    pub responses: Vec<ResponseCount>,
    /// Time from the request head to the end of the response.
    pub total: Histogram,
    /// Time from the request head to the response head.
    pub to_head: Histogram,
    /// Time from sending the request to the backend to the head of its response.
    pub upstream_to_head: Histogram,
    /// Bytes of request bodies.
    pub received: u64,
    /// Bytes of response bodies.
    pub sent: u64,
}

impl RouteTotals {
    fn add(&mut self, responses: ResponseCount) {
        if responses.count == 0 {
            return;
        }
        let same_labels = |known: &&mut ResponseCount| {
            (known.method, known.status, known.reason) == (responses.method, responses.status, responses.reason)
        };
        match self.responses.iter_mut().find(same_labels) {
            Some(known) => known.count += responses.count,
            None => self.responses.push(responses),
        }
    }

    /// The requests counted after `earlier`, which is of the same route, was taken.
    pub fn since(&self, earlier: &RouteTotals) -> RouteTotals {
        let before = |now: &ResponseCount| {
            let same_labels =
                |then: &&ResponseCount| (then.method, then.status, then.reason) == (now.method, now.status, now.reason);
            earlier.responses.iter().find(same_labels).map_or(0, |then| then.count)
        };
        let rest = |now: &ResponseCount| ResponseCount { count: now.count.saturating_sub(before(now)), ..*now };
        RouteTotals {
            name: self.name.clone(),
            responses: self.responses.iter().map(rest).filter(|responses| responses.count > 0).collect(),
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
    fn requests_are_counted_by_method_status_class_and_reason() {
        let counters = RouteCounters::new("query");
        let record = |method: &Method, status: u16, reason: &'static str| {
            counters.record(&CompletedRequest {
                method,
                status: StatusCode::from_u16(status).expect("a status"),
                reason,
                to_head: (reason != "client_closed").then_some(Duration::from_millis(1)),
                total: Duration::from_millis(2),
                received: 3,
                sent: 5,
            });
        };
        record(&Method::POST, 200, "");
        record(&Method::POST, 201, "");
        record(&Method::from_bytes(b"BREW").expect("a method"), 405, "method_not_allowed");
        let mut before = RouteTotals::default();
        counters.add_to(&mut before);
        record(&Method::POST, 401, "api_key_missing");
        record(&Method::POST, 401, "api_key_missing");
        record(&Method::POST, 499, "client_closed");
        let mut sum = RouteTotals::default();
        counters.add_to(&mut sum);
        let count = |sum: &RouteTotals, method, status, reason| {
            let same_labels = |a: &&ResponseCount| (a.method, a.status, a.reason) == (method, status, reason);
            sum.responses.iter().find(same_labels).map_or(0, |responses| responses.count)
        };
        assert_eq!(count(&sum, "POST", "2xx", ""), 2);
        assert_eq!(count(&sum, "other", "4xx", "method_not_allowed"), 1);
        assert_eq!(count(&sum, "POST", "4xx", "api_key_missing"), 2);
        assert_eq!(sum.responses.len(), 4);
        assert_eq!((sum.total.count(), sum.to_head.count(), sum.received, sum.sent), (6, 5, 18, 30));
        let since = sum.since(&before);
        assert_eq!((since.responses.len(), since.total.count(), since.sent), (2, 3, 15));
        assert_eq!(count(&since, "POST", "4xx", "api_key_missing"), 2);
    }
}
