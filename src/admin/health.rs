//! `/livez`, `/readyz` and `/startupz`: whether the process lives, wants requests, and has started.
//!
//! With `?verbose` each tells its checks by name, in the form of Kubernetes' own servers. None of them asks the token store
//! or, unless `readiness.upstream` is set, the backend: all replicas would fail at once with those, and a restart mends
//! neither.

use std::cell::Cell;
use std::fmt::Write;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::base::current::InForce;
use crate::base::shutdown::{Phase, Signal};
use crate::upstream::Backends;

/// A worker that has not answered for so long is stuck. A machine that is merely overloaded gets round to it sooner.
const STUCK: Duration = Duration::from_secs(30);

/// Counts the workers that listen, from their threads.
#[derive(Clone)]
pub struct Started {
    waiting_for: Arc<AtomicUsize>,
}

impl Started {
    /// Not before [`Started::one_more`] was called `workers` times.
    pub fn new(workers: usize) -> Started {
        Started { waiting_for: Arc::new(AtomicUsize::new(workers)) }
    }

    /// A worker listens. Says whether it was the last one.
    pub fn one_more(&self) -> bool {
        self.waiting_for.fetch_sub(1, Ordering::AcqRel) == 1
    }

    /// Whether all do.
    pub fn is_complete(&self) -> bool {
        self.waiting_for.load(Ordering::Acquire) == 0
    }
}

/// When each worker last said that it is alive. Belongs to the thread that asks them.
#[derive(Debug)]
pub struct Pulse(Vec<Cell<Option<Instant>>>);

impl Pulse {
    /// All have just spoken.
    pub fn new(workers: usize) -> Pulse {
        Pulse((0..workers).map(|_| Cell::new(Some(Instant::now()))).collect())
    }

    /// The worker with this number is alive.
    pub fn felt(&self, worker: usize) {
        self.0[worker].set(Some(Instant::now()));
    }

    /// It has ended, as workers do at the end: nobody waits for it any more.
    pub fn ended(&self, worker: usize) {
        self.0[worker].set(None);
    }

    /// Whether all have spoken so recently.
    pub fn is_felt_within(&self, span: Duration) -> bool {
        self.silences().all(|(_, silence)| silence <= span)
    }

    /// The first worker that has been silent for too long, and for how long.
    fn silent(&self) -> Option<(usize, Duration)> {
        self.silences().find(|(_, silence)| *silence >= STUCK)
    }

    fn silences(&self) -> impl Iterator<Item = (usize, Duration)> {
        let silence = |cell: &Cell<Option<Instant>>| Some(cell.get()?.elapsed());
        self.0.iter().map(silence).enumerate().filter_map(|(worker, silence)| Some((worker, silence?)))
    }
}

/// What the endpoints look at.
#[derive(Clone)]
pub struct Health {
    /// Whether all workers have begun to listen.
    pub started: Started,
    /// Whether they are alive.
    pub pulse: Rc<Pulse>,
    /// Whether the end has begun.
    pub signal: Signal,
    /// What is ready only while one of its addresses is in use, if that is wanted.
    pub backends: InForce<Option<Arc<Backends>>>,
}

/// A check's name, and why it fails.
type Check = (&'static str, Result<(), String>);

/// Whether all is well, and the text that says so.
pub struct Verdict {
    /// No check fails.
    pub is_well: bool,
    /// The answer's body, without its last line end.
    pub text: String,
}

impl Health {
    /// What one of the endpoints says; `None` if the path is none of them.
    pub fn answer(&self, path: &str, query: Option<&str>) -> Option<Verdict> {
        let checks = match path {
            // Alive is who answers here: the thread that supervises all others.
            "/livez" => vec![("supervisor", Ok(())), self.workers()],
            "/readyz" => self.checks_of_readiness().collect(),
            "/startupz" => vec![self.startup()],
            _ => return None,
        };
        Some(verdict(path, &checks, is_verbose(query)))
    }

    /// Why the gateway wants no requests, if it does not.
    pub fn readiness(&self) -> Result<(), String> {
        self.checks_of_readiness().try_for_each(|(_, result)| result)
    }

    fn checks_of_readiness(&self) -> impl Iterator<Item = Check> {
        [self.startup(), self.workers(), self.shutdown()].into_iter().chain(self.upstream())
    }

    fn startup(&self) -> Check {
        let started = self.started.is_complete();
        ("startup", if started { Ok(()) } else { Err("starting".to_owned()) })
    }

    fn workers(&self) -> Check {
        let failed = |(worker, silence): (usize, Duration)| {
            format!("worker-{worker} has not answered for {} s", silence.as_secs())
        };
        ("workers", self.pulse.silent().map_or(Ok(()), |silent| Err(failed(silent))))
    }

    fn upstream(&self) -> Option<Check> {
        let usable = self.backends.now()?.is_usable();
        let why = "no address of the backend is in use; see /upstreams";
        Some(("upstream", if usable { Ok(()) } else { Err(why.to_owned()) }))
    }

    fn shutdown(&self) -> Check {
        let ends = self.signal.phase() > Phase::Serving;
        ("shutdown", if ends { Err("shutting down".to_owned()) } else { Ok(()) })
    }
}

/// What else the query asks for is ignored, as probes of newer and older versions may ask for more.
fn is_verbose(query: Option<&str>) -> bool {
    let mut parts = query.unwrap_or_default().split('&');
    parts.any(|part| part == "verbose" || part.starts_with("verbose="))
}

fn verdict(path: &str, checks: &[Check], verbose: bool) -> Verdict {
    let failure = checks.iter().find_map(|(_, result)| result.as_ref().err());
    let is_well = failure.is_none();
    if !verbose {
        return Verdict { is_well, text: failure.map_or("ok", String::as_str).to_owned() };
    }
    let mut text = String::new();
    for (name, result) in checks {
        let written = match result {
            Ok(()) => writeln!(text, "[+]{name} ok"),
            Err(why) => writeln!(text, "[-]{name} failed: {why}"),
        };
        written.expect("a String takes everything");
    }
    let outcome = if is_well { "passed" } else { "failed" };
    text += &format!("{} check {outcome}", path.trim_start_matches('/'));
    Verdict { is_well, text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::shutdown::channel;

    #[test]
    fn each_endpoint_has_its_checks_and_tells_them_when_asked() {
        let (controller, signal) = channel();
        let health = Health {
            started: Started::new(2),
            pulse: Rc::new(Pulse::new(2)),
            signal,
            backends: InForce::new(None),
        };
        let ask = |path: &str, query: Option<&str>| {
            let verdict = health.answer(path, query).expect("it is one");
            (verdict.is_well, verdict.text)
        };
        assert_eq!(ask("/readyz", None), (false, "starting".to_owned()));
        assert!(!health.started.one_more() && health.started.one_more());
        assert_eq!(ask("/startupz", Some("a=b")), (true, "ok".to_owned()));
        controller.advance(Phase::Leaving);
        assert_eq!(
            ask("/readyz", Some("exclude=x&verbose")),
            (
                false,
                "[+]startup ok\n[+]workers ok\n[-]shutdown failed: shutting down\nreadyz check failed"
                    .to_owned()
            )
        );
        assert_eq!(ask("/startupz", None), (true, "ok".to_owned()), "it has started, once and for all");
        let verbose = "[+]supervisor ok\n[+]workers ok\nlivez check passed";
        assert_eq!(ask("/livez", Some("verbose=1")), (true, verbose.to_owned()));
        assert!(health.answer("/livez/", None).is_none());
    }

    #[test]
    fn a_worker_that_is_silent_for_long_is_named() {
        let pulse = Pulse::new(2);
        let Some(long_ago) = Instant::now().checked_sub(STUCK) else { return };
        pulse.0[1].set(Some(long_ago));
        assert_eq!(pulse.silent().map(|(worker, _)| worker), Some(1));
        assert!(!pulse.is_felt_within(Duration::from_secs(20)));
        pulse.felt(1);
        assert!(pulse.silent().is_none() && pulse.is_felt_within(Duration::from_secs(20)));
        pulse.0[1].set(Some(long_ago));
        pulse.ended(1);
        assert_eq!(pulse.silent(), None, "it is not expected to speak any more");
    }
}
