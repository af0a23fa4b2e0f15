//! The main thread: it looks after the others, waits for the end to be asked for, and sees to it that it comes.

use std::rc::Rc;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::{error, info, warn};

use crate::admin::control::Orders;
use crate::admin::dashboard::Dashboard;
use crate::admin::health::{Health, Pulse};
use crate::admin::{self, Admin};
use crate::app::liveness::keep_pulse;
use crate::app::maintenance::{Upkeep, keep_backends, keep_issuers_keys, ready_with, sweep};
use crate::app::reload::Keeper;
use crate::app::worker::Revision;
use crate::app::workers::Crew;
use crate::app::{Addresses, Bound, Ended, LAST_WORDS, StartError, shown};
use crate::base::current::InForce;
use crate::base::shutdown::{Controller, Phase, Signal};
use crate::store;

/// What is supervised, and who says until when.
pub(super) struct Supervision<'a> {
    pub controller: Controller,
    pub signal: Signal,
    pub crew: Crew,
    pub revision: Arc<Revision>,
    pub store: &'a mut Option<store::Running>,
    pub orders: Orders,
}

impl Supervision<'_> {
    /// Runs beside the workers of the gateway to the end.
    pub async fn of(self, gateway: Bound) -> Result<Ended, StartError> {
        let Supervision { controller, signal, mut crew, revision, store, orders } = self;
        let Orders { mut ends, reloads, control } = orders;
        let Addresses { https, http, admin } = gateway.addresses();
        let Bound { parts, sockets, manager, metrics, refusals, source, clock, .. } = gateway;
        drop(parts.auth);
        // None of them ever ends by itself; if one does, that is a panic.
        let mut helpers = JoinSet::new();
        let pulse = Rc::new(Pulse::new(crew.orders.len()));
        let status = format!("serving: https {}, http {}, admin {}", shown(https), shown(http), shown(admin));
        let workers = std::mem::take(&mut crew.orders);
        helpers.spawn_local(keep_pulse(workers.clone(), Rc::clone(&pulse), manager.clone(), status.clone()));
        let (reloader, tls) = parts.tls.unzip();
        let keeper = Keeper::new(source, Arc::clone(&revision), reloader, clock);
        let (sender, revision) = watch::channel(revision);
        let ready_with = InForce::new(ready_with(&revision.borrow()));
        let health =
            Health { started: crew.started, pulse, signal: signal.clone(), backends: ready_with.clone() };
        let auth = InForce::new(Arc::clone(&revision.borrow().auth));
        let backends = InForce::new(Arc::clone(&revision.borrow().backends));
        let config = InForce::new(Arc::clone(&revision.borrow().config));
        let last_reload = InForce::new(None);
        let is_self_signed = parts.certificate_pem.is_some();
        let dashboard = Dashboard::new(config.clone(), last_reload.clone(), tls, is_self_signed);
        let admin = Rc::new(Admin {
            health,
            metrics: Arc::clone(&metrics),
            auth: auth.clone(),
            refusals,
            backends: backends.clone(),
            control,
            dashboard,
        });
        helpers.spawn_local(admin::dashboard::keep(Rc::clone(&admin)));
        for listener in sockets.admin {
            let listener = TcpListener::from_std(listener).map_err(StartError::Threads)?;
            helpers.spawn_local(admin::serve(listener, Rc::clone(&admin)));
        }
        drop(admin);
        let manager_of_reloads = manager.clone();
        let upkeep = Upkeep {
            workers,
            revision: sender,
            auth,
            backends,
            config,
            last_reload,
            ready_with,
            metrics,
            manager: manager_of_reloads,
            status,
            signal,
        };
        helpers.spawn_local(upkeep.keep_files(keeper, reloads));
        helpers.spawn_local(keep_issuers_keys(revision.clone()));
        helpers.spawn_local(sweep(revision.clone()));
        helpers.spawn_local(keep_backends(revision.clone()));

        let broken = tokio::select! {
            orderly = ends.asked() => match orderly {
                true => false,
                false => return Ok(Ended::Aborted),
            },
            worker = crew.ends.recv() => {
                error!(worker, "a worker has ended by itself; the gateway ends too");
                true
            }
            () = ended(store) => {
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
        manager.stopping("draining");
        controller.advance(Phase::Leaving);
        if !broken {
            tokio::select! {
                () = sleep(drain.delay) => {}
                () = ends.hurried() => return Ok(Ended::Aborted),
            }
        }
        let limit = drain.timeout;
        info!(timeout = ?limit, "draining: no new connections");
        controller.advance(Phase::Draining);
        tokio::select! {
            () = all_ended(&mut crew.ends) => {}
            () = sleep(limit) => warn!("drain.timeout is over: cutting what still runs"),
            () = ends.hurried() => return Ok(Ended::Aborted),
        }
        controller.advance(Phase::Aborted);
        let _ = timeout(LAST_WORDS, all_ended(&mut crew.ends)).await;
        Ok(if broken { Ended::Broken } else { Ended::Drained { cut: 0 } })
    }
}

/// Waits for the end of the store's thread, if there is one.
async fn ended(store: &mut Option<store::Running>) {
    match store {
        Some(store) => store.ended().await,
        None => std::future::pending().await,
    }
}

async fn all_ended(ends: &mut UnboundedReceiver<usize>) {
    while ends.recv().await.is_some() {}
}
