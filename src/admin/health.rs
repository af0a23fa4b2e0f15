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

use crate::base::current::Current;
use crate::base::shutdown::{ShutdownPhase, ShutdownSignal};
use crate::upstream::Backends;

/// A worker that has not answered for so long is stuck. A machine that is merely overloaded gets round to it sooner.
const STUCK_TIMEOUT: Duration = Duration::from_secs(30);

/// Counts the workers that listen, from their threads.
#[derive(Clone)]
pub struct StartupCounter {
    remaining: Arc<AtomicUsize>,
}

impl StartupCounter {
    /// Not before [`StartupCounter::one_more`] was called `workers` times.
    pub fn new(workers: usize) -> StartupCounter {
        StartupCounter { remaining: Arc::new(AtomicUsize::new(workers)) }
    }

    /// A worker listens. Says whether it was the last one.
    pub fn record_started(&self) -> bool {
        self.remaining.fetch_sub(1, Ordering::AcqRel) == 1
    }

    /// Whether all do.
    pub fn is_complete(&self) -> bool {
        self.remaining.load(Ordering::Acquire) == 0
    }
}

/// When each worker last said that it is alive. Belongs to the thread that asks them.
#[derive(Debug)]
pub struct WorkerLiveness(Vec<Cell<Option<Instant>>>);

impl WorkerLiveness {
    /// All have just spoken.
    pub fn new(workers: usize) -> WorkerLiveness {
        WorkerLiveness((0..workers).map(|_| Cell::new(Some(Instant::now()))).collect())
    }

    /// The worker with this number is alive.
    pub fn record_alive(&self, worker: usize) {
        self.0[worker].set(Some(Instant::now()));
    }

    /// It has ended, as workers do at the end: nobody waits for it any more.
    pub fn record_ended(&self, worker: usize) {
        self.0[worker].set(None);
    }

    /// Whether all have spoken so recently.
    pub fn is_alive_within(&self, span: Duration) -> bool {
        self.silence_durations().all(|(_, silence)| silence <= span)
    }

    /// The first worker that has been silent for too long, and for how long.
    fn stuck_worker(&self) -> Option<(usize, Duration)> {
        self.silence_durations().find(|(_, silence)| *silence >= STUCK_TIMEOUT)
    }

    fn silence_durations(&self) -> impl Iterator<Item = (usize, Duration)> {
        let silence = |cell: &Cell<Option<Instant>>| Some(cell.get()?.elapsed());
        self.0.iter().map(silence).enumerate().filter_map(|(worker, silence)| Some((worker, silence?)))
    }
}

/// What the endpoints look at.
#[derive(Clone)]
pub struct ProcessHealth {
    /// Whether all workers have begun to listen.
    pub startup: StartupCounter,
    /// Whether they are alive.
    pub liveness: Rc<WorkerLiveness>,
    /// Whether the end has begun.
    pub signal: ShutdownSignal,
    /// What is ready only while one of its addresses is in use, if that is wanted.
    pub backends: Current<Option<Arc<Backends>>>,
}

/// A check's name, and why it fails.
type ProbeCheck = (&'static str, Result<(), String>);

/// Whether all is well, and the text that says so.
pub struct ProbeResult {
    /// No check fails.
    pub is_healthy: bool,
    /// The answer's body, without its last line end.
    pub text: String,
}

impl ProcessHealth {
    /// What one of the endpoints says; `None` if the path is none of them.
    pub fn probe(&self, path: &str, query: Option<&str>) -> Option<ProbeResult> {
        let checks = match path {
            // Alive is who answers here: the thread that supervises all others.
            "/livez" => vec![("supervisor", Ok(())), self.workers()],
            "/readyz" => self.readiness_checks().collect(),
            "/startupz" => vec![self.startup()],
            _ => return None,
        };
        Some(probe_result(path, &checks, is_verbose(query)))
    }

    /// Why the gateway wants no requests, if it does not.
    pub fn readiness(&self) -> Result<(), String> {
        self.readiness_checks().try_for_each(|(_, result)| result)
    }

    fn readiness_checks(&self) -> impl Iterator<Item = ProbeCheck> {
        [self.startup(), self.workers(), self.shutdown()].into_iter().chain(self.upstream())
    }

    fn startup(&self) -> ProbeCheck {
        let started = self.startup.is_complete();
        ("startup", if started { Ok(()) } else { Err("starting".to_owned()) })
    }

    fn workers(&self) -> ProbeCheck {
        let failed = |(worker, silence): (usize, Duration)| {
            format!("worker-{worker} has not answered for {} s", silence.as_secs())
        };
        ("workers", self.liveness.stuck_worker().map_or(Ok(()), |silent| Err(failed(silent))))
    }

    fn upstream(&self) -> Option<ProbeCheck> {
        let usable = self.backends.get()?.is_usable();
        let why = "no address of the backend is in use; see /upstreams";
        Some(("upstream", if usable { Ok(()) } else { Err(why.to_owned()) }))
    }

    fn shutdown(&self) -> ProbeCheck {
        let ends = self.signal.phase() > ShutdownPhase::Serving;
        ("shutdown", if ends { Err("shutting down".to_owned()) } else { Ok(()) })
    }
}

/// What else the query asks for is ignored, as probes of newer and older versions may ask for more.
fn is_verbose(query: Option<&str>) -> bool {
    let mut parts = query.unwrap_or_default().split('&');
    parts.any(|part| part == "verbose" || part.starts_with("verbose="))
}

fn probe_result(path: &str, checks: &[ProbeCheck], verbose: bool) -> ProbeResult {
    let failure = checks.iter().find_map(|(_, result)| result.as_ref().err());
    let is_well = failure.is_none();
    if !verbose {
        return ProbeResult { is_healthy: is_well, text: failure.map_or("ok", String::as_str).to_owned() };
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
    ProbeResult { is_healthy: is_well, text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::shutdown::channel;

    #[test]
    fn each_endpoint_runs_its_checks_and_lists_them_when_verbose() {
        let (controller, signal) = channel();
        let health = ProcessHealth {
            startup: StartupCounter::new(2),
            liveness: Rc::new(WorkerLiveness::new(2)),
            signal,
            backends: Current::new(None),
        };
        let ask = |path: &str, query: Option<&str>| {
            let verdict = health.probe(path, query).expect("it is one");
            (verdict.is_healthy, verdict.text)
        };
        assert_eq!(ask("/readyz", None), (false, "starting".to_owned()));
        assert!(!health.startup.record_started() && health.startup.record_started());
        assert_eq!(ask("/startupz", Some("a=b")), (true, "ok".to_owned()));
        controller.advance(ShutdownPhase::NotReady);
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
        assert!(health.probe("/livez/", None).is_none());
    }

    #[test]
    fn a_stuck_worker_is_named() {
        let pulse = WorkerLiveness::new(2);
        let Some(long_ago) = Instant::now().checked_sub(STUCK_TIMEOUT) else { return };
        pulse.0[1].set(Some(long_ago));
        assert_eq!(pulse.stuck_worker().map(|(worker, _)| worker), Some(1));
        assert!(!pulse.is_alive_within(Duration::from_secs(20)));
        pulse.record_alive(1);
        assert!(pulse.stuck_worker().is_none() && pulse.is_alive_within(Duration::from_secs(20)));
        pulse.0[1].set(Some(long_ago));
        pulse.record_ended(1);
        assert_eq!(pulse.stuck_worker(), None, "it is not expected to speak any more");
    }
}
