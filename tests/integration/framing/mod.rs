//! Ambiguous HTTP/1 requests, each on its own connection.
//!
//! A second, valid request follows each of them. If the first one is rejected, the second must be neither served nor
//! forwarded: it is ambiguous where it begins.

mod bodies;
mod chunks;
mod delivery;
mod headers;
mod hosts;
mod lengths;
mod limits;
mod mutations;
mod names;
mod paths;
mod tunnels;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde_json::Value;

use crate::support::client::Response;
use crate::support::gateway::Gateway;
use crate::support::recorder::{Recorder, Reply, Seen};
use crate::support::wire::Wire;

/// Maximum time until a connection closes.
const CLOSING: Duration = Duration::from_millis(3500);

/// The number of concurrent cases.
const AT_ONCE: usize = 16;

/// A gateway in front of a recorder.
struct Site {
    gateway: Gateway,
    backend: Recorder,
    token: String,
}

/// The result of one connection.
struct Outcome {
    responses: Vec<Response>,
    closed: bool,
    /// The recorded first request, and the second one after it.
    first: Option<Seen>,
    second: Option<Seen>,
}

impl Site {
    fn new(options: &[(&str, &str)]) -> Site {
        let backend = Recorder::start(Reply::Name);
        let mut all = vec![("TOKENS_FOREIGN", "reject")];
        all.extend(options);
        let (gateway, token) = Gateway::with_token(backend.address(), &all);
        Site { gateway, backend, token }
    }

    /// Expands a template: `@T` is the target of the case, `@K` the header line of the key, `@H` all required headers.
    fn fill(&self, number: usize, template: &[u8]) -> Vec<u8> {
        let key = format!("x-api-key: {}\r\n", self.token);
        let headers = format!("Host: gateway.test\r\nContent-Type: application/json\r\n{key}");
        let mut bytes = Vec::new();
        let mut rest = template;
        while let Some((byte, after)) = rest.split_first() {
            let (text, skipped) = match after.first().filter(|_| *byte == b'@') {
                Some(b'T') => (target(number).into_bytes(), 1),
                Some(b'K') => (key.clone().into_bytes(), 1),
                Some(b'H') => (headers.clone().into_bytes(), 1),
                _ => (vec![*byte], 0),
            };
            bytes.extend(text);
            rest = &after[skipped..];
        }
        bytes
    }

    /// The valid request after the case.
    fn follower(&self, number: usize) -> Vec<u8> {
        self.fill(number, format!("GET {} HTTP/1.1\r\n@H\r\n", smuggled(number)).as_bytes())
    }

    /// Sends each template, followed by the valid request, waits for `answers` responses or the end, and calls `judge`
    /// when everything forwarded has arrived. Reports all failures together.
    fn judge_each<N: AsRef<str> + Sync, T: AsRef<[u8]> + Sync>(
        &self,
        cases: &[(N, T)],
        responses: usize,
        judge: impl Fn(&Outcome) -> Result<(), String> + Sync,
    ) {
        let (next, outcomes) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
        let work = || {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                let Some((_, template)) = cases.get(number) else { return };
                let wire = self.carry(number, template.as_ref(), responses);
                outcomes.lock().unwrap_or_else(PoisonError::into_inner).push((number, wire));
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..AT_ONCE.min(cases.len()) {
                scope.spawn(work);
            }
        });
        self.settle();
        let mut wrong = Vec::new();
        for (number, wire) in outcomes.into_inner().unwrap_or_else(PoisonError::into_inner) {
            let outcome = self.outcome(number, &wire);
            if let Err(what) = judge(&outcome) {
                let statuses: Vec<_> = outcome.responses.iter().map(|response| response.status).collect();
                wrong.push(format!("{}: {what}; {}", cases[number].0.as_ref(), told(&outcome, &statuses)));
            }
        }
        wrong.sort();
        wrong.extend(self.backend.violations());
        assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
    }

    fn carry(&self, number: usize, template: &[u8], responses: usize) -> Wire {
        let mut wire = Wire::connect(self.gateway.http());
        let sent = [self.fill(number, template), self.follower(number)].concat();
        wire.send(&sent);
        wire.read_responses(responses, CLOSING);
        wire
    }

    fn outcome(&self, number: usize, wire: &Wire) -> Outcome {
        Outcome {
            responses: wire.responses(),
            closed: wire.closed(),
            first: self.backend.find(&target(number)),
            second: self.backend.find(&smuggled(number)),
        }
    }

    /// Each is rejected with one of these statuses, the connection ends, and nothing is forwarded.
    fn refuses<N: AsRef<str> + Sync, T: AsRef<[u8]> + Sync>(&self, statuses: &[u16], cases: &[(N, T)]) {
        let before = self.backend.seen().len();
        self.judge_each(cases, usize::MAX, |outcome| {
            refused(outcome, statuses)?;
            outcome.first.is_none().then_some(()).ok_or("its head was forwarded".to_owned())
        });
        // The valid request after them.
        let arrived = self.backend.seen().split_off(before);
        assert_eq!(arrived.len(), 1, "{arrived:#?}");
    }

    /// The head is valid, the body is not: its beginning may have been forwarded, its end must not.
    fn refuses_within_the_body<N: AsRef<str> + Sync, T: AsRef<[u8]> + Sync>(&self, statuses: &[u16], cases: &[(N, T)]) {
        self.judge_each(cases, usize::MAX, |outcome| {
            refused(outcome, statuses)?;
            let whole = outcome.first.as_ref().is_some_and(|seen| seen.whole);
            (!whole).then_some(()).ok_or("it arrived as if complete".to_owned())
        });
    }

    /// Rejected for its content, not for its framing: so the connection may stay open.
    fn refuses_by_policy<N: AsRef<str> + Sync, T: AsRef<[u8]> + Sync>(&self, statuses: &[u16], cases: &[(N, T)]) {
        self.judge_each(cases, 1, |outcome| {
            let response = outcome.responses.first().ok_or("no response")?;
            said_no(response, statuses)?;
            outcome.first.is_none().then_some(()).ok_or("it arrived".to_owned())
        });
    }

    /// Both requests are served in order, and the first one arrived with this body.
    fn serves<N: AsRef<str> + Sync, T: AsRef<[u8]> + Sync>(&self, body: &[u8], cases: &[(N, T)]) {
        self.judge_each(cases, 2, |outcome| served(outcome, body));
    }

    /// Checks that the gateway still serves requests, and that everything forwarded before has been recorded.
    fn settle(&self) {
        let mut wire = Wire::connect(self.gateway.http());
        wire.send(&self.fill(0, b"GET /timbr/api/afterwards HTTP/1.1\r\n@H\r\n"));
        let responses = wire.read_responses(1, CLOSING).responses();
        assert_eq!(responses.first().map(|response| response.status), Some(200), "{responses:?}");
        self.backend.wait_until_settled();
    }
}

fn target(number: usize) -> String {
    format!("/timbr/api/case-{number}.")
}

fn smuggled(number: usize) -> String {
    format!("/timbr/api/smuggled-{number}.")
}

/// The description of a failure after its reason.
fn told(outcome: &Outcome, statuses: &[u16]) -> String {
    let arrived = |seen: &Option<Seen>| match seen {
        None => "nothing",
        Some(seen) if seen.whole => "all",
        Some(_) => "a part",
    };
    let end = if outcome.closed { "closed" } else { "open" };
    format!(
        "responses {statuses:?}, then {end}; arrived of the first: {}, of the second: {}",
        arrived(&outcome.first),
        arrived(&outcome.second)
    )
}

fn refused(outcome: &Outcome, statuses: &[u16]) -> Result<(), String> {
    let [response] = &outcome.responses[..] else { return Err("not exactly one response".into()) };
    said_no(response, statuses)?;
    if !outcome.closed {
        return Err("not closed".into());
    }
    outcome.second.is_none().then_some(()).ok_or("the second request was forwarded".to_owned())
}

/// The status is one of these, and the body has the form of a rejection.
fn said_no(response: &Response, statuses: &[u16]) -> Result<(), String> {
    if !statuses.contains(&response.status) {
        return Err(format!("{} instead of {statuses:?}", response.status));
    }
    let body: Value = serde_json::from_slice(&response.body).map_err(|_| "the rejection is not JSON")?;
    let text = |key: &str| body[key].as_str().is_some_and(|text| !text.is_empty());
    let whole = response.complete && body["status"] == "error" && text("data") && text("reason");
    whole.then_some(()).ok_or(format!("an unusual rejection: {body}"))
}

fn served(outcome: &Outcome, body: &[u8]) -> Result<(), String> {
    let [first, second] = &outcome.responses[..] else { return Err("not exactly two responses".into()) };
    if (first.status, second.status) != (200, 200) {
        return Err("not served".into());
    }
    if !first.body.windows(5).any(|five| five == b"case-") {
        return Err("served out of order".into());
    }
    let arrived = outcome.first.as_ref().ok_or("the request was not forwarded")?;
    if !arrived.whole || arrived.body != body {
        return Err(format!("arrived as {:?}", String::from_utf8_lossy(&arrived.body)));
    }
    outcome.second.as_ref().map(drop).ok_or("the second request was not forwarded".to_owned())
}

/// Cases with the same prefix and suffix.
fn between(before: &str, middles: &[&[u8]], after: &str) -> Vec<(String, Vec<u8>)> {
    let case = |middle: &&[u8]| {
        let template = [before.as_bytes(), middle, after.as_bytes()].concat();
        let shown = middle[..middle.len().min(60)].escape_ascii().to_string();
        (shown, template)
    };
    middles.iter().map(case).collect()
}
