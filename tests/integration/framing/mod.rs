//! Requests that two HTTP/1 parsers could read in two ways, each on a connection of its own.
//!
//! After every one stands a second request, good and complete. Where the first is refused, nobody may answer or
//! forward the second: where it begins is just what is in doubt.

mod bodies;
mod chunks;
mod delivery;
mod fields;
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

use crate::support::client::Answer;
use crate::support::gateway::Gateway;
use crate::support::recorder::{Recorder, Reply, Seen};
use crate::support::wire::Wire;

/// So long a connection is listened to that should have closed.
const CLOSING: Duration = Duration::from_millis(3500);

/// How many cases run at once.
const AT_ONCE: usize = 16;

/// A gateway before a recorder.
struct Site {
    gateway: Gateway,
    backend: Recorder,
    token: String,
}

/// What one connection carried.
struct Outcome {
    answers: Vec<Answer>,
    closed: bool,
    /// What arrived of the first request, and of the second one behind it.
    first: Option<Seen>,
    second: Option<Seen>,
}

impl Site {
    fn new(options: &[(&str, &str)]) -> Site {
        let backend = Recorder::start(Reply::Name);
        let mut all = vec![("TOKENS_FOREIGN", "reject")];
        all.extend(options);
        let gateway = Gateway::start(backend.address(), &all);
        let token = gateway.token();
        Site { gateway, backend, token }
    }

    /// What a template means: `@T` is the case's target, `@K` the line of the key, `@H` all fields that are needed.
    fn fill(&self, number: usize, template: &[u8]) -> Vec<u8> {
        let key = format!("x-api-key: {}\r\n", self.token);
        let fields = format!("Host: gateway.test\r\nContent-Type: application/json\r\n{key}");
        let mut bytes = Vec::new();
        let mut rest = template;
        while let Some((byte, after)) = rest.split_first() {
            let (text, skipped) = match after.first().filter(|_| *byte == b'@') {
                Some(b'T') => (target(number).into_bytes(), 1),
                Some(b'K') => (key.clone().into_bytes(), 1),
                Some(b'H') => (fields.clone().into_bytes(), 1),
                _ => (vec![*byte], 0),
            };
            bytes.extend(text);
            rest = &after[skipped..];
        }
        bytes
    }

    /// The good request behind a case's.
    fn follower(&self, number: usize) -> Vec<u8> {
        self.fill(number, format!("GET {} HTTP/1.1\r\n@H\r\n", smuggled(number)).as_bytes())
    }

    /// Sends each template with the good request behind it, waits for `answers` answers or the end, and lets `judge`
    /// say what is wrong, once all that goes upstream has arrived. All that is wrong is told at once.
    fn judge_each<N: AsRef<str> + Sync, T: AsRef<[u8]> + Sync>(
        &self,
        cases: &[(N, T)],
        answers: usize,
        judge: impl Fn(&Outcome) -> Result<(), String> + Sync,
    ) {
        let (next, outcomes) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
        let work = || {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                let Some((_, template)) = cases.get(number) else { return };
                let wire = self.carry(number, template.as_ref(), answers);
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
                let statuses: Vec<_> = outcome.answers.iter().map(|answer| answer.status).collect();
                wrong.push(format!("{}: {what}; {}", cases[number].0.as_ref(), told(&outcome, &statuses)));
            }
        }
        wrong.sort();
        wrong.extend(self.backend.complaints());
        assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
    }

    fn carry(&self, number: usize, template: &[u8], answers: usize) -> Wire {
        let mut wire = Wire::connect(self.gateway.http());
        let sent = [self.fill(number, template), self.follower(number)].concat();
        wire.send(&sent);
        wire.read_answers(answers, CLOSING);
        wire
    }

    fn outcome(&self, number: usize, wire: &Wire) -> Outcome {
        Outcome {
            answers: wire.answers(),
            closed: wire.closed(),
            first: self.backend.find(&target(number)),
            second: self.backend.find(&smuggled(number)),
        }
    }

    /// Each is refused with one of these statuses; the connection ends; nothing arrives, whole or in part.
    fn refuses<N: AsRef<str> + Sync, T: AsRef<[u8]> + Sync>(&self, statuses: &[u16], cases: &[(N, T)]) {
        let before = self.backend.seen().len();
        self.judge_each(cases, usize::MAX, |outcome| {
            refused(outcome, statuses)?;
            outcome.first.is_none().then_some(()).ok_or("its head arrived".to_owned())
        });
        // The good request behind them.
        let arrived = self.backend.seen().split_off(before);
        assert_eq!(arrived.len(), 1, "{arrived:#?}");
    }

    /// The head is good, the body is not: its beginning may have gone up before that was seen, its end may not.
    fn refuses_within_the_body<N: AsRef<str> + Sync, T: AsRef<[u8]> + Sync>(
        &self,
        statuses: &[u16],
        cases: &[(N, T)],
    ) {
        self.judge_each(cases, usize::MAX, |outcome| {
            refused(outcome, statuses)?;
            let whole = outcome.first.as_ref().is_some_and(|seen| seen.whole);
            (!whole).then_some(()).ok_or("it arrived as if it were whole".to_owned())
        });
    }

    /// Refused for what it says, not for how it is framed: so the connection may go on.
    fn refuses_by_policy<N: AsRef<str> + Sync, T: AsRef<[u8]> + Sync>(
        &self,
        statuses: &[u16],
        cases: &[(N, T)],
    ) {
        self.judge_each(cases, 1, |outcome| {
            let answer = outcome.answers.first().ok_or("no answer")?;
            said_no(answer, statuses)?;
            outcome.first.is_none().then_some(()).ok_or("it arrived".to_owned())
        });
    }

    /// Both requests are answered in their order, and the first one arrived with this body.
    fn serves<N: AsRef<str> + Sync, T: AsRef<[u8]> + Sync>(&self, body: &[u8], cases: &[(N, T)]) {
        self.judge_each(cases, 2, |outcome| served(outcome, body));
    }

    /// It still answers, and what it sent upstream before is recorded when this returns.
    fn settle(&self) {
        let mut wire = Wire::connect(self.gateway.http());
        wire.send(&self.fill(0, b"GET /timbr/api/afterwards HTTP/1.1\r\n@H\r\n"));
        let answers = wire.read_answers(1, CLOSING).answers();
        assert_eq!(answers.first().map(|answer| answer.status), Some(200), "{answers:?}");
        self.backend.settled();
    }
}

fn target(number: usize) -> String {
    format!("/timbr/api/case-{number}.")
}

fn smuggled(number: usize) -> String {
    format!("/timbr/api/smuggled-{number}.")
}

/// What a failure's line says after the reason.
fn told(outcome: &Outcome, statuses: &[u16]) -> String {
    let arrived = |seen: &Option<Seen>| match seen {
        None => "nothing",
        Some(seen) if seen.whole => "all",
        Some(_) => "a part",
    };
    let end = if outcome.closed { "closed" } else { "open" };
    format!(
        "answers {statuses:?}, then {end}; arrived of the first: {}, of the second: {}",
        arrived(&outcome.first),
        arrived(&outcome.second)
    )
}

fn refused(outcome: &Outcome, statuses: &[u16]) -> Result<(), String> {
    let [answer] = &outcome.answers[..] else { return Err("not one answer".into()) };
    said_no(answer, statuses)?;
    if !outcome.closed {
        return Err("not closed".into());
    }
    outcome.second.is_none().then_some(()).ok_or("the second one arrived".to_owned())
}

/// The status is one of these, and the body has the form that all refusals have.
fn said_no(answer: &Answer, statuses: &[u16]) -> Result<(), String> {
    if !statuses.contains(&answer.status) {
        return Err(format!("{} instead of {statuses:?}", answer.status));
    }
    let body: Value = serde_json::from_slice(&answer.body).map_err(|_| "no JSON in the refusal")?;
    let text = |key: &str| body[key].as_str().is_some_and(|text| !text.is_empty());
    let whole = answer.complete && body["status"] == "error" && text("data") && text("reason");
    whole.then_some(()).ok_or(format!("an unusual refusal: {body}"))
}

fn served(outcome: &Outcome, body: &[u8]) -> Result<(), String> {
    let [first, second] = &outcome.answers[..] else { return Err("not two answers".into()) };
    if (first.status, second.status) != (200, 200) {
        return Err("not served".into());
    }
    if !first.body.windows(5).any(|five| five == b"case-") {
        return Err("answered out of order".into());
    }
    let arrived = outcome.first.as_ref().ok_or("it did not arrive")?;
    if !arrived.whole || arrived.body != body {
        return Err(format!("arrived as {:?}", String::from_utf8_lossy(&arrived.body)));
    }
    outcome.second.as_ref().map(drop).ok_or("the second one did not arrive".to_owned())
}

/// Cases that share what stands before and after them.
fn between(before: &str, middles: &[&[u8]], after: &str) -> Vec<(String, Vec<u8>)> {
    let case = |middle: &&[u8]| {
        let template = [before.as_bytes(), middle, after.as_bytes()].concat();
        let shown = middle[..middle.len().min(60)].escape_ascii().to_string();
        (shown, template)
    };
    middles.iter().map(case).collect()
}
