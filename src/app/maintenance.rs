//! Periodic tasks of the main thread: reloads, keys of identity providers, health of the backends, expired tokens.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::{error, info, warn};

use crate::admin::control::{ReloadRequest, ReloadResult};
use crate::admin::dashboard::LastReload;
use crate::app::reload::{AppliedConfig, ConfigReloader, ReloadOutcome, log_outcome};
use crate::app::worker::WorkerCommand;
use crate::base::current::Current;
use crate::base::shutdown_phase::{ShutdownPhase, ShutdownSignal};
use crate::gateway::snapshot::Snapshot;
use crate::observability::log::{self, label};
use crate::observability::metrics::Metrics;
use crate::os::memory::MemoryUsage;
use crate::os::sd_notify::ServiceManager;
use crate::upstream::Backends;

/// Interval between checks of the files that are reloaded when they change.
const FILE_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Interval between removals of expired tokens.
const SWEEP_INTERVAL: Duration = Duration::from_secs(10);

/// Interval between readings of the memory in use. Attackers fill memory quickly.
const MEMORY_CHECK_INTERVAL: Duration = Duration::from_millis(100);

/// Interval between looks for slots that became free without the end of a request.
const QUEUE_INTERVAL: Duration = Duration::from_millis(250);

/// Interval between reports of requests under rate limits to the store's thread, which exchanges them four times a
/// second.
const RATE_INTERVAL: Duration = Duration::from_millis(100);

/// Time after which a worker that has not applied a snapshot counts as hanging.
const APPLY_TIMEOUT: Duration = Duration::from_secs(5);

/// Reloads the configuration, and distributes it to the workers and to the admin listener.
pub(super) struct Maintenance {
    pub workers: Vec<UnboundedSender<WorkerCommand>>,
    /// Publishes the active configuration to the tasks of the main thread.
    pub publisher: watch::Sender<Arc<Snapshot>>,
    /// The active configuration, for the admin listener.
    pub active: Current<Arc<Snapshot>>,
    /// Its backends, if readiness depends on them.
    pub ready_with: Current<Option<Arc<Backends>>>,
    pub last_reload: Current<Option<LastReload>>,
    pub metrics: Arc<Metrics>,
    pub service_manager: ServiceManager,
    /// The status of a serving gateway for the service manager.
    pub status: String,
    pub signal: ShutdownSignal,
}

impl Maintenance {
    /// Reloads the configuration and its files when they change, and when an operator requests it. Never returns,
    /// unless a reload panics.
    pub async fn watch_files(self, mut reloader: ConfigReloader, mut requests: UnboundedReceiver<ReloadRequest>) {
        reloader.log_certificates();
        let mut ticks = tokio::time::interval(FILE_CHECK_INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let request = tokio::select! {
                Some(request) = requests.recv() => Some(request),
                _ = ticks.tick() => None,
            };
            if self.signal.phase() > ShutdownPhase::Serving {
                if let Some(ReloadRequest { reply, .. }) = request {
                    let _ = reply.send(ReloadResult::Unavailable("the gateway is shutting down"));
                }
                continue;
            }
            let is_requested = request.is_some();
            if is_requested {
                self.service_manager.notify_reloading();
            }
            // In a separate thread, because a file system may hang.
            let reload = tokio::task::spawn_blocking(move || {
                let outcome = if is_requested { reloader.reload_now() } else { reloader.reload_if_changed() };
                (reloader, outcome)
            });
            let Ok((returned, outcome)) = reload.await else { return };
            reloader = returned;
            self.update_file_metrics(&reloader);
            match request {
                Some(ReloadRequest { by, reply }) => {
                    let _ = reply.send(self.finish_reload(by, outcome).await);
                }
                None if matches!(outcome, Ok(None)) => {}
                None => {
                    self.service_manager.notify_reloading();
                    self.finish_reload("file change", outcome).await;
                }
            }
        }
    }

    /// Activates a reloaded configuration, and reports the outcome.
    async fn finish_reload(&self, by: &'static str, outcome: ReloadOutcome) -> ReloadResult {
        if let Ok(Some(AppliedConfig { snapshot, needs_restart, .. })) = &outcome {
            self.apply(snapshot).await;
            self.metrics.restart_pending.set(i64::try_from(needs_restart.len()).unwrap_or(i64::MAX));
        }
        log_outcome(by, &outcome);
        let changed = match &outcome {
            Ok(Some(applied)) => applied.changed.join(", "),
            _ => String::new(),
        };
        let result = match outcome {
            Ok(applied) => ReloadResult::Applied {
                needs_restart: applied.map(|applied| applied.needs_restart).unwrap_or_default(),
            },
            Err(problems) => ReloadResult::Rejected(problems),
        };
        let (is_applied, status) = match &result {
            ReloadResult::Applied { needs_restart } if needs_restart.is_empty() => (true, String::new()),
            ReloadResult::Applied { needs_restart } => {
                (true, format!("; a restart is needed for {}", needs_restart.join(", ")))
            }
            ReloadResult::Rejected(problems) => {
                let count = problems.len();
                (false, format!("; the new configuration has {count} problems, the previous one is active"))
            }
            ReloadResult::Unavailable(_) => unreachable!("the reload took place"),
        };
        self.service_manager.notify_ready(&format!("{}{status}", self.status));
        self.metrics.record_reload(is_applied);
        let last = LastReload { at: SystemTime::now(), by, outcome: result.clone() };
        drop(self.last_reload.replace(Some(last)));
        log::write_audit(|record| {
            record.text(label!("what"), "reload");
            record.text(label!("decision"), if is_applied { "taken" } else { "refused" });
            record.text(label!("by"), by);
            record.text(label!("changed"), &changed);
        });
        result
    }

    /// Applies a snapshot. Returns when all workers use it, so that the sender of a reload request can rely on that.
    async fn apply(&self, snapshot: &Arc<Snapshot>) {
        let mut replies = Vec::with_capacity(self.workers.len());
        for worker in &self.workers {
            let (reply, reply_receiver) = oneshot::channel();
            if worker.send(WorkerCommand::Apply(Arc::clone(snapshot), reply)).is_ok() {
                replies.push(reply_receiver);
            }
        }
        self.publisher.send_replace(Arc::clone(snapshot));
        drop(self.active.replace(Arc::clone(snapshot)));
        drop(self.ready_with.replace(backends_for_readiness(snapshot)));
        let all_replies = async {
            for reply in replies {
                let _ = reply.await;
            }
        };
        if timeout(APPLY_TIMEOUT, all_replies).await.is_err() {
            error!("a worker does not respond, and has not applied the new configuration yet");
        }
    }

    fn update_file_metrics(&self, reloader: &ConfigReloader) {
        let auth = &reloader.snapshot().auth;
        if let Some(tls) = reloader.tls() {
            self.metrics.set_certificates(&tls.validities());
            self.metrics.certificates_unusable.set(i64::from(tls.is_failing()));
        }
        self.metrics.tokens.set(i64::try_from(auth.store().token_count()).unwrap_or(i64::MAX));
        let evicted = auth.store().evicted_count();
        self.metrics.tokens_evicted.inc_by(evicted - self.metrics.tokens_evicted.get());
        self.metrics.users_unusable.set(i64::from(auth.is_verifier_failing()));
        self.metrics.issuers_unusable.set(i64::try_from(auth.failing_issuer_count()).unwrap_or(i64::MAX));
    }
}

/// The backends of the default upstream, if readiness depends on them.
pub(super) fn backends_for_readiness(snapshot: &Snapshot) -> Option<Arc<Backends>> {
    snapshot.config.readiness_requires_upstream.then(|| Arc::clone(&snapshot.upstreams[0]))
}

/// Fetches the keys that verify the tokens of identity providers. Never returns.
pub async fn refresh_issuer_keys(mut snapshot: watch::Receiver<Arc<Snapshot>>) {
    loop {
        let issuers = Arc::clone(snapshot.borrow_and_update().auth.jwt_verifier());
        let is_same = |snapshot: &Arc<Snapshot>| Arc::ptr_eq(snapshot.auth.jwt_verifier(), &issuers);
        tokio::select! {
            _ = issuers.refresh_keys() => return,
            // If the issuers have not changed, their keys are not fetched again.
            changed = snapshot.wait_for(|snapshot| !is_same(snapshot)) => if changed.is_err() { return },
        }
    }
}

/// Resolves the names of the backends, and runs their health checks. Never returns.
pub async fn maintain_backends(mut snapshot: watch::Receiver<Arc<Snapshot>>) {
    loop {
        let upstreams = Arc::clone(&snapshot.borrow_and_update().upstreams);
        let is_same = |snapshot: &Arc<Snapshot>| Arc::ptr_eq(&snapshot.upstreams, &upstreams);
        let mut tasks = JoinSet::new();
        for backends in upstreams.iter() {
            tasks.spawn_local(Arc::clone(backends).maintain());
        }
        tokio::select! {
            // One task ends only if it panics.
            _ = tasks.join_next() => return,
            // If the backends have not changed, their maintenance is not interrupted.
            changed = snapshot.wait_for(|snapshot| !is_same(snapshot)) => if changed.is_err() { return },
        }
    }
}

/// Runs `task` with the active snapshot again and again. Never returns.
async fn run_periodically(every: Duration, snapshot: watch::Receiver<Arc<Snapshot>>, task: impl Fn(&Snapshot)) {
    let mut ticks = tokio::time::interval(every);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let current = Arc::clone(&snapshot.borrow());
        task(&current);
    }
}

/// Removes expired tokens and unused counts. Never returns.
pub async fn sweep_expired(snapshot: watch::Receiver<Arc<Snapshot>>) {
    let sweep = |current: &Snapshot| {
        current.auth.sweep();
        current.admission.sweep();
        log::report_dropped_lines();
    };
    run_periodically(SWEEP_INTERVAL, snapshot, sweep).await;
}

/// Hands slots of endpoints that have recovered, or are new, to waiting requests. Never returns.
pub async fn serve_queues(snapshot: watch::Receiver<Arc<Snapshot>>) {
    run_periodically(QUEUE_INTERVAL, snapshot, |current| current.admission.serve_waiting()).await;
}

/// Reports to other replicas what was admitted under `limits.rules`, and counts what they have admitted. Never returns.
pub async fn share_rates(snapshot: watch::Receiver<Arc<Snapshot>>) {
    let share = |current: &Snapshot| {
        if let Some(others) = current.auth.store().exchange_rate_uses(current.admission.take_uses()) {
            current.admission.add_uses(&others);
        }
    };
    run_periodically(RATE_INTERVAL, snapshot, share).await;
}

/// Measures the memory in use. Never returns.
pub async fn watch_memory(snapshot: watch::Receiver<Arc<Snapshot>>) {
    let (usage, default_limit) = MemoryUsage::detect();
    let measure = |current: &Snapshot| {
        let limit = current.config.limits.memory.or(default_limit).unwrap_or(u64::MAX);
        let used = if limit == u64::MAX { 0 } else { usage.read().unwrap_or_default() };
        match current.admission.memory().record_usage(used, limit) {
            Some(true) => {
                warn!(
                    used,
                    limit,
                    "limits.memory is exceeded; requests are rejected and idle connections closed. If this lasts, raise it \
                     or the memory limit of the container"
                );
            }
            Some(false) => info!(used, limit, "memory is available again"),
            None => {}
        }
    };
    run_periodically(MEMORY_CHECK_INTERVAL, snapshot, measure).await;
}
