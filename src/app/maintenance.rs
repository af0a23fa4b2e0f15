//! What is looked after beside the requests, on the main thread.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tokio::sync::{oneshot, watch};
use tokio::time::timeout;
use tracing::error;

use crate::admin::control::{ReloadRequest, ReloadResult};
use crate::admin::dashboard::LastReload;
use crate::app::reload::{AppliedConfig, ConfigReloader, ReloadOutcome, log_outcome};
use crate::app::worker::{Snapshot, WorkerCommand};
use crate::auth::Auth;
use crate::base::current::Current;
use crate::base::shutdown::{ShutdownPhase, ShutdownSignal};
use crate::config::{Config, Problem};
use crate::observability::log::{self, label};
use crate::observability::metrics::Metrics;
use crate::os::sd_notify::ServiceManager;
use crate::upstream::Backends;

/// How often the files that are read again are looked at.
const FILE_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// How often ended tokens are forgotten.
const SWEEP_INTERVAL: Duration = Duration::from_secs(10);

/// A worker gets round to a new configuration sooner, unless it hangs.
const APPLY_TIMEOUT: Duration = Duration::from_secs(5);

/// Whom a new configuration concerns.
pub(super) struct Maintenance {
    pub workers: Vec<UnboundedSender<WorkerCommand>>,
    /// What is in force, for the main thread.
    pub snapshot: watch::Sender<Arc<Snapshot>>,
    /// The same for who answers operators.
    pub auth: Current<Arc<Auth>>,
    pub backends: Current<Arc<Backends>>,
    pub config: Current<Arc<Config>>,
    pub last_reload: Current<Option<LastReload>>,
    /// Those that readiness depends on, if it does.
    pub ready_with: Current<Option<Arc<Backends>>>,
    pub metrics: Arc<Metrics>,
    pub service_manager: ServiceManager,
    /// What the service manager is told of a gateway that serves.
    pub status: String,
    pub signal: ShutdownSignal,
}

impl Maintenance {
    /// Reads the configuration and its files again when they change, and when somebody asks. Never ends by itself.
    pub async fn watch_files(self, mut keeper: ConfigReloader, mut asked: UnboundedReceiver<ReloadRequest>) {
        keeper.log_certificates();
        let mut ticks = tokio::time::interval(FILE_CHECK_INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let order = tokio::select! {
                Some(order) = asked.recv() => Some(order),
                _ = ticks.tick() => None,
            };
            if self.signal.phase() > ShutdownPhase::Serving {
                if let Some(ReloadRequest { reply, .. }) = order {
                    let _ = reply.send(ReloadResult::Unavailable("the gateway is about to end"));
                }
                continue;
            }
            let is_asked = order.is_some();
            if is_asked {
                self.service_manager.notify_reloading();
            }
            // A file system that does not answer holds up nothing but this.
            let reading = tokio::task::spawn_blocking(move || {
                let outcome = keeper.look(is_asked);
                (keeper, outcome)
            });
            let Ok((back, outcome)) = reading.await else { return };
            keeper = back;
            self.update_file_metrics(&keeper);
            if !is_asked && matches!(outcome, ReloadOutcome::Unchanged) {
                continue;
            }
            let by = order.as_ref().map_or("a change of files", |order| order.by);
            let reloaded = self.finish_reload(by, outcome, is_asked).await;
            if let Some(ReloadRequest { reply, .. }) = order {
                let _ = reply.send(reloaded);
            }
        }
    }

    /// Has everybody take what is in force now, and tells everybody what became of the reload.
    async fn finish_reload(&self, by: &'static str, outcome: ReloadOutcome, was_asked: bool) -> ReloadResult {
        if !was_asked {
            self.service_manager.notify_reloading();
        }
        if let ReloadOutcome::Applied(AppliedConfig { snapshot: revision, .. }) = &outcome {
            self.apply_to_workers(revision).await;
        }
        log_outcome(by, &outcome);
        let refused = |problems: &[Problem]| {
            format!(
                "; what was read last has {} problems, and what was read before is in force",
                problems.len()
            )
        };
        let (is_taken, status, reloaded) = match outcome {
            ReloadOutcome::Unchanged => {
                (true, String::new(), ReloadResult::Applied { needs_restart: Vec::new() })
            }
            ReloadOutcome::Applied(AppliedConfig { needs_restart, .. }) if needs_restart.is_empty() => {
                (true, String::new(), ReloadResult::Applied { needs_restart })
            }
            ReloadOutcome::Applied(AppliedConfig { needs_restart, .. }) => {
                let status = format!("; a restart is needed for {}", needs_restart.join(", "));
                (true, status, ReloadResult::Applied { needs_restart })
            }
            ReloadOutcome::Rejected(problems) => {
                (false, refused(&problems), ReloadResult::Rejected(problems))
            }
        };
        self.service_manager.notify_ready(&format!("{}{status}", self.status));
        self.metrics.record_reload(is_taken);
        let last = LastReload { at: SystemTime::now(), by, outcome: reloaded.clone() };
        drop(self.last_reload.replace(Some(last)));
        log::write_audit(|record| {
            record.text(label!("what"), "reload");
            record.text(label!("decision"), if is_taken { "taken" } else { "refused" });
            record.text(label!("by"), by);
        });
        reloaded
    }

    /// Comes back when all workers answer by it, so that who has asked for it can rely on that.
    async fn apply_to_workers(&self, revision: &Arc<Snapshot>) {
        let mut waiting = Vec::with_capacity(self.workers.len());
        for worker in &self.workers {
            let (reply, done) = oneshot::channel();
            if worker.send(WorkerCommand::Apply(Arc::clone(revision), reply)).is_ok() {
                waiting.push(done);
            }
        }
        self.snapshot.send_replace(Arc::clone(revision));
        drop(self.auth.replace(Arc::clone(&revision.auth)));
        drop(self.backends.replace(Arc::clone(&revision.backends)));
        drop(self.config.replace(Arc::clone(&revision.config)));
        drop(self.ready_with.replace(backends_for_readiness(revision)));
        let all = async {
            for done in waiting {
                let _ = done.await;
            }
        };
        if timeout(APPLY_TIMEOUT, all).await.is_err() {
            error!("a worker has not taken the new configuration yet: it hangs");
        }
    }

    fn update_file_metrics(&self, keeper: &ConfigReloader) {
        let auth = &keeper.current().auth;
        if let Some(ends) = keeper.certificate_expiries() {
            self.metrics.set_certificates(&ends);
        }
        self.metrics.tokens.set(i64::try_from(auth.store().token_count()).unwrap_or(i64::MAX));
        self.metrics.certificates_unusable.set(i64::from(keeper.has_unusable_certificates()));
        self.metrics.users_unusable.set(i64::from(auth.is_verifier_failing()));
        self.metrics.issuers_unusable.set(i64::try_from(auth.failing_issuer_count()).unwrap_or(i64::MAX));
    }
}

/// Fetches the keys with which tokens of identity providers are verified. Never ends by itself.
pub async fn refresh_issuer_keys(mut revision: watch::Receiver<Arc<Snapshot>>) {
    loop {
        let issuers = Arc::clone(revision.borrow_and_update().auth.jwt_verifier());
        let same = |revision: &Arc<Snapshot>| Arc::ptr_eq(revision.auth.jwt_verifier(), &issuers);
        tokio::select! {
            _ = issuers.refresh_keys() => return,
            // Keys that stay are not fetched anew.
            other = revision.wait_for(|revision| !same(revision)) => if other.is_err() { return },
        }
    }
}

/// The backends, if readiness depends on them.
pub(super) fn backends_for_readiness(revision: &Snapshot) -> Option<Arc<Backends>> {
    revision.config.readiness_requires_upstream.then(|| Arc::clone(&revision.backends))
}

/// Looks after the backends' names and addresses. Never ends by itself.
pub async fn maintain_backends(mut revision: watch::Receiver<Arc<Snapshot>>) {
    loop {
        let backends = Arc::clone(&revision.borrow_and_update().backends);
        let same = |revision: &Arc<Snapshot>| Arc::ptr_eq(&revision.backends, &backends);
        tokio::select! {
            () = Arc::clone(&backends).maintain() => return,
            // Those that stay are looked after without a break.
            other = revision.wait_for(|revision| !same(revision)) => if other.is_err() { return },
        }
    }
}

/// Forgets what has ended, now and then. Never ends by itself.
pub async fn sweep_expired(mut revision: watch::Receiver<Arc<Snapshot>>) {
    let mut ticks = tokio::time::interval(SWEEP_INTERVAL);
    loop {
        ticks.tick().await;
        auth_of(&mut revision).sweep();
        log::report_dropped_lines();
    }
}

fn auth_of(revision: &mut watch::Receiver<Arc<Snapshot>>) -> Arc<Auth> {
    Arc::clone(&revision.borrow_and_update().auth)
}
