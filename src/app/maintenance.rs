//! What is looked after beside the requests, on the main thread.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tokio::sync::{oneshot, watch};
use tokio::time::timeout;
use tracing::error;

use crate::admin::control::{ReloadOrder, Reloaded};
use crate::admin::dashboard::LastReload;
use crate::app::reload::{Keeper, Outcome, Taken, tell};
use crate::app::worker::{Order, Revision};
use crate::auth::Auth;
use crate::base::current::InForce;
use crate::base::shutdown::{Phase, Signal};
use crate::config::{Config, Problem};
use crate::observability::log::{self, label};
use crate::observability::metrics::Metrics;
use crate::os::sd_notify::ServiceManager;
use crate::upstream::Backends;

/// How often the files that are read again are looked at.
const FILES_INTERVAL: Duration = Duration::from_secs(1);

/// How often ended tokens are forgotten.
const SWEEP_INTERVAL: Duration = Duration::from_secs(10);

/// A worker gets round to a new configuration sooner, unless it hangs.
const TAKING: Duration = Duration::from_secs(5);

/// Whom a new configuration concerns.
pub(super) struct Upkeep {
    pub workers: Vec<UnboundedSender<Order>>,
    /// What is in force, for the main thread.
    pub revision: watch::Sender<Arc<Revision>>,
    /// The same for who answers operators.
    pub auth: InForce<Arc<Auth>>,
    pub backends: InForce<Arc<Backends>>,
    pub config: InForce<Arc<Config>>,
    pub last_reload: InForce<Option<LastReload>>,
    /// Those that readiness depends on, if it does.
    pub ready_with: InForce<Option<Arc<Backends>>>,
    pub metrics: Arc<Metrics>,
    pub manager: ServiceManager,
    /// What the service manager is told of a gateway that serves.
    pub status: String,
    pub signal: Signal,
}

impl Upkeep {
    /// Reads the configuration and its files again when they change, and when somebody asks. Never ends by itself.
    pub async fn keep_files(self, mut keeper: Keeper, mut asked: UnboundedReceiver<ReloadOrder>) {
        keeper.announce();
        let mut ticks = tokio::time::interval(FILES_INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let order = tokio::select! {
                Some(order) = asked.recv() => Some(order),
                _ = ticks.tick() => None,
            };
            if self.signal.phase() > Phase::Serving {
                if let Some(ReloadOrder { reply, .. }) = order {
                    let _ = reply.send(Reloaded::Impossible("the gateway is about to end"));
                }
                continue;
            }
            let is_asked = order.is_some();
            if is_asked {
                self.manager.reloading();
            }
            // A file system that does not answer holds up nothing but this.
            let reading = tokio::task::spawn_blocking(move || {
                let outcome = keeper.look(is_asked);
                (keeper, outcome)
            });
            let Ok((back, outcome)) = reading.await else { return };
            keeper = back;
            self.show_files(&keeper);
            if !is_asked && matches!(outcome, Outcome::Same) {
                continue;
            }
            let by = order.as_ref().map_or("a change of files", |order| order.by);
            let reloaded = self.conclude(by, outcome, is_asked).await;
            if let Some(ReloadOrder { reply, .. }) = order {
                let _ = reply.send(reloaded);
            }
        }
    }

    /// Has everybody take what is in force now, and tells everybody what became of the reload.
    async fn conclude(&self, by: &'static str, outcome: Outcome, was_asked: bool) -> Reloaded {
        if !was_asked {
            self.manager.reloading();
        }
        if let Outcome::Taken(Taken { revision, .. }) = &outcome {
            self.hand_out(revision).await;
        }
        tell(by, &outcome);
        let refused = |problems: &[Problem]| {
            format!(
                "; what was read last has {} problems, and what was read before is in force",
                problems.len()
            )
        };
        let (is_taken, status, reloaded) = match outcome {
            Outcome::Same => (true, String::new(), Reloaded::Taken { needs_restart: Vec::new() }),
            Outcome::Taken(Taken { needs_restart, .. }) if needs_restart.is_empty() => {
                (true, String::new(), Reloaded::Taken { needs_restart })
            }
            Outcome::Taken(Taken { needs_restart, .. }) => {
                let status = format!("; a restart is needed for {}", needs_restart.join(", "));
                (true, status, Reloaded::Taken { needs_restart })
            }
            Outcome::Refused(problems) => (false, refused(&problems), Reloaded::Refused(problems)),
        };
        self.manager.ready(&format!("{}{status}", self.status));
        self.metrics.reloaded(is_taken);
        let last = LastReload { at: SystemTime::now(), by, outcome: reloaded.clone() };
        drop(self.last_reload.replace(Some(last)));
        log::audit(|record| {
            record.text(label!("what"), "reload");
            record.text(label!("decision"), if is_taken { "taken" } else { "refused" });
            record.text(label!("by"), by);
        });
        reloaded
    }

    /// Comes back when all workers answer by it, so that who has asked for it can rely on that.
    async fn hand_out(&self, revision: &Arc<Revision>) {
        let mut waiting = Vec::with_capacity(self.workers.len());
        for worker in &self.workers {
            let (reply, done) = oneshot::channel();
            if worker.send(Order::Take(Arc::clone(revision), reply)).is_ok() {
                waiting.push(done);
            }
        }
        self.revision.send_replace(Arc::clone(revision));
        drop(self.auth.replace(Arc::clone(&revision.auth)));
        drop(self.backends.replace(Arc::clone(&revision.backends)));
        drop(self.config.replace(Arc::clone(&revision.config)));
        drop(self.ready_with.replace(ready_with(revision)));
        let all = async {
            for done in waiting {
                let _ = done.await;
            }
        };
        if timeout(TAKING, all).await.is_err() {
            error!("a worker has not taken the new configuration yet: it hangs");
        }
    }

    fn show_files(&self, keeper: &Keeper) {
        let auth = &keeper.in_force().auth;
        if let Some(ends) = keeper.certificates_end() {
            self.metrics.certificates_are(&ends);
        }
        self.metrics.tokens.set(i64::try_from(auth.store().tokens()).unwrap_or(i64::MAX));
        self.metrics.certificates_unusable.set(i64::from(keeper.has_bad_certificates()));
        self.metrics.users_unusable.set(i64::from(auth.is_failing()));
        self.metrics.issuers_unusable.set(i64::try_from(auth.failing_issuers()).unwrap_or(i64::MAX));
    }
}

/// Fetches the keys with which tokens of identity providers are verified. Never ends by itself.
pub async fn keep_issuers_keys(mut revision: watch::Receiver<Arc<Revision>>) {
    loop {
        let issuers = Arc::clone(revision.borrow_and_update().auth.issuers());
        let same = |revision: &Arc<Revision>| Arc::ptr_eq(revision.auth.issuers(), &issuers);
        tokio::select! {
            _ = issuers.keep() => return,
            // Keys that stay are not fetched anew.
            other = revision.wait_for(|revision| !same(revision)) => if other.is_err() { return },
        }
    }
}

/// The backends, if readiness depends on them.
pub(super) fn ready_with(revision: &Revision) -> Option<Arc<Backends>> {
    revision.config.ready_with_upstream.then(|| Arc::clone(&revision.backends))
}

/// Looks after the backends' names and addresses. Never ends by itself.
pub async fn keep_backends(mut revision: watch::Receiver<Arc<Revision>>) {
    loop {
        let backends = Arc::clone(&revision.borrow_and_update().backends);
        let same = |revision: &Arc<Revision>| Arc::ptr_eq(&revision.backends, &backends);
        tokio::select! {
            () = Arc::clone(&backends).keep() => return,
            // Those that stay are looked after without a break.
            other = revision.wait_for(|revision| !same(revision)) => if other.is_err() { return },
        }
    }
}

/// Forgets what has ended, now and then. Never ends by itself.
pub async fn sweep(mut revision: watch::Receiver<Arc<Revision>>) {
    let mut ticks = tokio::time::interval(SWEEP_INTERVAL);
    loop {
        ticks.tick().await;
        auth_of(&mut revision).sweep();
        log::tell_dropped_lines();
    }
}

fn auth_of(revision: &mut watch::Receiver<Arc<Revision>>) -> Arc<Auth> {
    Arc::clone(&revision.borrow_and_update().auth)
}
