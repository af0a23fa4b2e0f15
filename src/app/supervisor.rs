//! The main thread: it looks after the others, waits for the end to be asked for, and sees to it that it comes.

use std::rc::Rc;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::{error, info, warn};

use crate::admin::control::ControlReceiver;
use crate::admin::dashboard::Dashboard;
use crate::admin::health::{ProcessHealth, WorkerLiveness};
use crate::admin::{self, AdminContext};
use crate::app::liveness::watch_workers;
use crate::app::maintenance::{
    Maintenance, backends_for_readiness, maintain_backends, refresh_issuer_keys, sweep_expired,
};
use crate::app::reload::ConfigReloader;
use crate::app::worker::Snapshot;
use crate::app::workers::Workers;
use crate::app::{ABORT_TIMEOUT, Addresses, Bound, RunOutcome, StartError, display_address};
use crate::base::current::Current;
use crate::base::shutdown::{ShutdownController, ShutdownPhase, ShutdownSignal};
use crate::store;

/// What is supervised, and who says until when.
pub(super) struct Supervisor<'a> {
    pub controller: ShutdownController,
    pub signal: ShutdownSignal,
    pub workers: Workers,
    pub snapshot: Arc<Snapshot>,
    pub store: &'a mut Option<store::RunningDriver>,
    pub orders: ControlReceiver,
}

impl Supervisor<'_> {
    /// Runs beside the workers of the gateway to the end.
    pub async fn run(self, gateway: Bound) -> Result<RunOutcome, StartError> {
        let Supervisor { controller, signal, workers: mut crew, snapshot: revision, store, orders } = self;
        let ControlReceiver { shutdowns: mut ends, reloads, control } = orders;
        let Addresses { https, http, admin } = gateway.addresses();
        let Bound {
            components: parts,
            sockets,
            service_manager: manager,
            metrics,
            rejections: refusals,
            config_source: source,
            clock,
            ..
        } = gateway;
        drop(parts.auth);
        // None of them ever ends by itself; if one does, that is a panic.
        let mut helpers = JoinSet::new();
        let pulse = Rc::new(WorkerLiveness::new(crew.commands.len()));
        let status = format!(
            "serving: https {}, http {}, admin {}",
            display_address(https),
            display_address(http),
            display_address(admin)
        );
        let workers = std::mem::take(&mut crew.commands);
        helpers.spawn_local(watch_workers(
            workers.clone(),
            Rc::clone(&pulse),
            manager.clone(),
            status.clone(),
        ));
        let (reloader, tls) = parts.tls.unzip();
        let keeper = ConfigReloader::new(source, Arc::clone(&revision), reloader, clock);
        let (sender, revision) = watch::channel(revision);
        let ready_with = Current::new(backends_for_readiness(&revision.borrow()));
        let health = ProcessHealth {
            startup: crew.started,
            liveness: pulse,
            signal: signal.clone(),
            backends: ready_with.clone(),
        };
        let auth = Current::new(Arc::clone(&revision.borrow().auth));
        let backends = Current::new(Arc::clone(&revision.borrow().backends));
        let config = Current::new(Arc::clone(&revision.borrow().config));
        let last_reload = Current::new(None);
        let is_self_signed = parts.certificate_pem.is_some();
        let dashboard = Dashboard::new(config.clone(), last_reload.clone(), tls, is_self_signed);
        let admin = Rc::new(AdminContext {
            health,
            metrics: Arc::clone(&metrics),
            auth: auth.clone(),
            recent_rejections: refusals,
            backends: backends.clone(),
            control,
            dashboard,
        });
        helpers.spawn_local(admin::dashboard::publish_updates(Rc::clone(&admin)));
        for listener in sockets.admin {
            let listener = TcpListener::from_std(listener).map_err(StartError::Threads)?;
            helpers.spawn_local(admin::serve(listener, Rc::clone(&admin)));
        }
        drop(admin);
        let manager_of_reloads = manager.clone();
        let upkeep = Maintenance {
            workers,
            snapshot: sender,
            auth,
            backends,
            config,
            last_reload,
            ready_with,
            metrics,
            service_manager: manager_of_reloads,
            status,
            signal,
        };
        helpers.spawn_local(upkeep.watch_files(keeper, reloads));
        helpers.spawn_local(refresh_issuer_keys(revision.clone()));
        helpers.spawn_local(sweep_expired(revision.clone()));
        helpers.spawn_local(maintain_backends(revision.clone()));

        let broken = tokio::select! {
            orderly = ends.wait_for_shutdown() => match orderly {
                true => false,
                false => return Ok(RunOutcome::Aborted),
            },
            worker = crew.exits.recv() => {
                error!(worker, "a worker has ended by itself; the gateway ends too");
                true
            }
            () = store_ended(store) => {
                error!("the token store's thread has ended by itself; the gateway ends too");
                true
            }
            _ = helpers.join_next() => {
                error!("a task that looks after the others has ended by itself; the gateway ends too");
                true
            }
        };
        let drain = revision.borrow().config.drain;
        info!("shutting down: no longer ready");
        manager.notify_stopping("draining");
        controller.advance(ShutdownPhase::NotReady);
        if !broken {
            tokio::select! {
                () = sleep(drain.delay) => {}
                () = ends.wait_for_immediate_shutdown() => return Ok(RunOutcome::Aborted),
            }
        }
        let limit = drain.timeout;
        info!(timeout = ?limit, "draining: no new connections");
        controller.advance(ShutdownPhase::Draining);
        tokio::select! {
            () = workers_ended(&mut crew.exits) => {}
            () = sleep(limit) => warn!("drain.timeout is over: cutting what still runs"),
            () = ends.wait_for_immediate_shutdown() => return Ok(RunOutcome::Aborted),
        }
        controller.advance(ShutdownPhase::Aborted);
        let _ = timeout(ABORT_TIMEOUT, workers_ended(&mut crew.exits)).await;
        Ok(if broken { RunOutcome::Failed } else { RunOutcome::Drained { cut: 0 } })
    }
}

/// Waits for the end of the store's thread, if there is one.
async fn store_ended(store: &mut Option<store::RunningDriver>) {
    match store {
        Some(store) => store.wait_until_ended().await,
        None => std::future::pending().await,
    }
}

async fn workers_ended(ends: &mut UnboundedReceiver<usize>) {
    while ends.recv().await.is_some() {}
}
