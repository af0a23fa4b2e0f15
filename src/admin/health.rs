//! The probes `/livez`, `/readyz` and `/startupz`.
//!
//! With `?verbose` each lists its checks, in the format of the Kubernetes API server. No probe depends on the token
//! store or, unless `readiness.upstream` is set, on a backend: otherwise all replicas would fail together, and a
//! restart would fix neither.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::base::current::Current;
use crate::base::shutdown_phase::{ShutdownPhase, ShutdownSignal};
use crate::observability::metrics::Metrics;
use crate::upstream::Backends;

/// A worker that has not responded for this long is stuck. A worker of an overloaded machine responds sooner.
const STUCK_TIMEOUT: Duration = Duration::from_secs(30);

/// Counts the workers that have not started yet. Shared by their threads.
#[derive(Clone)]
pub struct StartupCounter {
    remaining: Arc<AtomicUsize>,
}

impl StartupCounter {
    /// Completes after `workers` calls of [`StartupCounter::record_started`].
    pub fn new(workers: usize) -> StartupCounter {
        StartupCounter { remaining: Arc::new(AtomicUsize::new(workers)) }
    }

    /// Records that a worker listens. Returns whether it was the last one.
    pub fn record_started(&self) -> bool {
        self.remaining.fetch_sub(1, Ordering::AcqRel) == 1
    }

    /// Returns whether all workers have started.
    pub fn is_complete(&self) -> bool {
        self.remaining.load(Ordering::Acquire) == 0
    }
}

/// When each worker last responded to a heartbeat. Belongs to the thread that sends the heartbeats.
#[derive(Debug)]
pub struct WorkerLiveness(Vec<Cell<Option<Instant>>>);

impl WorkerLiveness {
    /// Starts as if all workers had just responded.
    pub fn new(workers: usize) -> WorkerLiveness {
        WorkerLiveness((0..workers).map(|_| Cell::new(Some(Instant::now()))).collect())
    }

    /// Records a response of a worker.
    pub fn record_alive(&self, worker: usize) {
        self.0[worker].set(Some(Instant::now()));
    }

    /// Records that a worker has exited, as workers do at shutdown: it is not expected to respond any more.
    pub fn record_ended(&self, worker: usize) {
        self.0[worker].set(None);
    }

    /// Returns whether all workers have responded within `limit`.
    pub fn is_alive_within(&self, limit: Duration) -> bool {
        self.silence_durations().all(|(_, silence)| silence <= limit)
    }

    /// The first stuck worker, and the time since its last response.
    fn stuck_worker(&self) -> Option<(usize, Duration)> {
        self.silence_durations().find(|(_, silence)| *silence >= STUCK_TIMEOUT)
    }

    fn silence_durations(&self) -> impl Iterator<Item = (usize, Duration)> {
        let elapsed = |cell: &Cell<Option<Instant>>| Some(cell.get()?.elapsed());
        self.0.iter().map(elapsed).enumerate().filter_map(|(worker, silence)| Some((worker, silence?)))
    }
}

/// The state that the probes report.
#[derive(Clone)]
pub struct ProcessHealth {
    /// Completes when all workers listen.
    pub startup: StartupCounter,
    /// The last response of each worker.
    pub liveness: Rc<WorkerLiveness>,
    /// The phase of a shutdown.
    pub signal: ShutdownSignal,
    /// The backends, if readiness depends on them (`readiness.upstream`).
    pub backends: Current<Option<Arc<Backends>>>,
    /// The metrics, which say what cannot be used at the moment.
    pub metrics: Arc<Metrics>,
}

/// The name of a check, and the failure if there is one.
type ProbeCheck = (&'static str, Result<(), String>);

/// The probes, named after their paths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// `/livez`: restart the process if it fails.
    Live,
    /// `/readyz`: send no requests while it fails.
    Ready,
    /// `/startupz`: run no other probe before it succeeds.
    Startup,
}

/// The result of a probe.
pub struct ProbeResult {
    /// True if all checks passed.
    pub is_healthy: bool,
    /// The response body, without the final newline.
    pub text: String,
}

impl ProcessHealth {
    /// Runs the checks of a probe. `?verbose` lists them.
    pub fn probe(&self, probe: Probe, query: Option<&str>) -> ProbeResult {
        let (name, checks) = match probe {
            // The supervisor's thread serves this request, so it is alive.
            Probe::Live => ("livez", vec![("supervisor", Ok(())), self.workers()]),
            Probe::Ready => ("readyz", self.readiness_checks().collect()),
            Probe::Startup => ("startupz", vec![self.startup()]),
        };
        let failure = checks.iter().find_map(|(_, result)| result.as_ref().err());
        let is_healthy = failure.is_none();
        let text = match is_verbose(query) {
            true => list_checks(name, &checks, &self.degradations(probe), is_healthy),
            false => failure.map_or("ok", String::as_str).to_owned(),
        };
        ProbeResult { is_healthy, text }
    }

    /// Why the gateway is not ready, if it is not.
    pub fn readiness(&self) -> Result<(), String> {
        self.readiness_checks().try_for_each(|(_, result)| result)
    }

    fn readiness_checks(&self) -> impl Iterator<Item = ProbeCheck> {
        [self.startup(), self.workers(), self.shutdown()].into_iter().chain(self.upstream())
    }

    /// What does not work as configured although the gateway is ready: a new replica would not do better.
    fn degradations(&self, probe: Probe) -> Vec<(&'static str, &'static str)> {
        let Metrics { users_unusable, certificates_unusable, issuers_unusable, .. } = &*self.metrics;
        let all = [
            (users_unusable, "users-file", "it cannot be loaded; its previous content is used for at most an hour"),
            (certificates_unusable, "certificates", "they cannot be loaded; the previous ones are used"),
            (issuers_unusable, "jwt-issuers", "keys cannot be fetched; the previous ones are used"),
        ];
        let failing = all.into_iter().filter(|(gauge, ..)| probe == Probe::Ready && gauge.get() > 0);
        failing.map(|(_, name, error)| (name, error)).collect()
    }

    fn startup(&self) -> ProbeCheck {
        let started = self.startup.is_complete();
        ("startup", if started { Ok(()) } else { Err("starting".to_owned()) })
    }

    fn workers(&self) -> ProbeCheck {
        let failed = |(worker, silence): (usize, Duration)| {
            format!("worker-{worker} has not responded for {} s", silence.as_secs())
        };
        ("workers", self.liveness.stuck_worker().map_or(Ok(()), |stuck| Err(failed(stuck))))
    }

    fn upstream(&self) -> Option<ProbeCheck> {
        let usable = self.backends.get()?.is_usable();
        let error = "no endpoint is usable; see /upstreams";
        Some(("upstream", if usable { Ok(()) } else { Err(error.to_owned()) }))
    }

    fn shutdown(&self) -> ProbeCheck {
        let has_started = self.signal.phase() > ShutdownPhase::Serving;
        ("shutdown", if has_started { Err("shutting down".to_owned()) } else { Ok(()) })
    }
}

/// Other query parameters are ignored: a different version's probe may send more.
fn is_verbose(query: Option<&str>) -> bool {
    let mut parts = query.unwrap_or_default().split('&');
    parts.any(|part| part == "verbose" || part.starts_with("verbose="))
}

fn list_checks(name: &str, checks: &[ProbeCheck], degradations: &[(&str, &str)], is_healthy: bool) -> String {
    let mut text = String::new();
    for (name, result) in checks {
        text += &match result {
            Ok(()) => format!("[+]{name} ok\n"),
            Err(error) => format!("[-]{name} failed: {error}\n"),
        };
    }
    for (name, error) in degradations {
        text += &format!("[-]{name} failed, readiness is not affected: {error}\n");
    }
    text + &format!("{name} check {}", if is_healthy { "passed" } else { "failed" })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::shutdown_phase::channel;

    #[test]
    fn each_probe_runs_its_checks_and_lists_them_when_verbose() {
        let (controller, signal) = channel();
        let health = ProcessHealth {
            startup: StartupCounter::new(2),
            liveness: Rc::new(WorkerLiveness::new(2)),
            signal,
            backends: Current::new(None),
            metrics: Arc::default(),
        };
        let run = |probe: Probe, query: Option<&str>| {
            let result = health.probe(probe, query);
            (result.is_healthy, result.text)
        };
        assert_eq!(run(Probe::Ready, None), (false, "starting".to_owned()));
        assert!(!health.startup.record_started() && health.startup.record_started());
        assert_eq!(run(Probe::Startup, Some("a=b")), (true, "ok".to_owned()));
        health.metrics.users_unusable.set(1);
        assert_eq!(run(Probe::Ready, None), (true, "ok".to_owned()));
        let (is_healthy, text) = run(Probe::Ready, Some("verbose"));
        assert!(is_healthy && text.contains("\n[-]users-file failed, readiness is not affected: it cannot"), "{text}");
        health.metrics.users_unusable.set(0);
        controller.advance(ShutdownPhase::NotReady);
        assert_eq!(
            run(Probe::Ready, Some("exclude=x&verbose")),
            (false, "[+]startup ok\n[+]workers ok\n[-]shutdown failed: shutting down\nreadyz check failed".to_owned())
        );
        assert_eq!(run(Probe::Startup, None), (true, "ok".to_owned()), "startup is never undone");
        let verbose = "[+]supervisor ok\n[+]workers ok\nlivez check passed";
        assert_eq!(run(Probe::Live, Some("verbose=1")), (true, verbose.to_owned()));
    }

    #[test]
    fn a_stuck_worker_is_named() {
        let liveness = WorkerLiveness::new(2);
        let Some(long_ago) = Instant::now().checked_sub(STUCK_TIMEOUT) else { return };
        liveness.0[1].set(Some(long_ago));
        assert_eq!(liveness.stuck_worker().map(|(worker, _)| worker), Some(1));
        assert!(!liveness.is_alive_within(Duration::from_secs(20)));
        liveness.record_alive(1);
        assert!(liveness.stuck_worker().is_none() && liveness.is_alive_within(Duration::from_secs(20)));
        liveness.0[1].set(Some(long_ago));
        liveness.record_ended(1);
        assert_eq!(liveness.stuck_worker(), None, "an exited worker is not expected to respond");
    }
}
