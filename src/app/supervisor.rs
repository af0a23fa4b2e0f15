//! The main thread: starts the tasks next to the workers, and waits for a shutdown. It serves no client requests, and
//! does not know how the gateway is drained: see [`crate::app::graceful_shutdown`].

use std::rc::Rc;
use std::sync::Arc;

use tokio::net::{TcpListener, UnixListener};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::error;

use crate::admin::control::{ControlReceiver, ShutdownRequests};
use crate::admin::dashboard::Dashboard;
use crate::admin::health::{ProcessHealth, WorkerLiveness};
use crate::admin::{self, AdminContext};
use crate::app::graceful_shutdown::StopReason;
use crate::app::liveness::watch_workers;
use crate::app::maintenance::{
    Maintenance, backends_for_readiness, maintain_backends, refresh_issuer_keys, serve_queues, share_rates,
    sweep_expired, watch_memory,
};
use crate::app::reload::ConfigReloader;
use crate::app::workers::Workers;
use crate::app::{Addresses, Bound, RunOutcome, StartError, display_address};
use crate::base::current::Current;
use crate::base::shutdown_phase::{ShutdownController, ShutdownSignal};
use crate::gateway::snapshot::Snapshot;
use crate::os::sd_notify::ServiceManager;
use crate::os::unix_socket::SocketFile;
use crate::store;

/// Everything that the main thread supervises and is controlled by.
pub(super) struct Supervisor<'a> {
    pub controller: ShutdownController,
    pub signal: ShutdownSignal,
    pub workers: Workers,
    pub snapshot: Arc<Snapshot>,
    pub store: &'a mut Option<store::RunningDriver>,
    pub requests: ControlReceiver,
}

/// A gateway whose tasks run.
pub(super) struct RunningGateway<'a> {
    pub controller: ShutdownController,
    pub worker_exits: UnboundedReceiver<usize>,
    store: &'a mut Option<store::RunningDriver>,
    /// The tasks of the main thread. None of them returns, so the end of one is a panic.
    tasks: JoinSet<()>,
    pub shutdowns: ShutdownRequests,
    pub snapshot: watch::Receiver<Arc<Snapshot>>,
    pub service_manager: ServiceManager,
    /// Removes the files when the gateway has stopped.
    _socket_files: Vec<SocketFile>,
}

impl<'a> Supervisor<'a> {
    /// Runs next to the workers until the gateway has stopped.
    pub async fn run(self, gateway: Bound) -> Result<RunOutcome, StartError> {
        let mut running = self.start(gateway)?;
        let reason = running.wait().await;
        Ok(running.drain(reason).await)
    }

    /// Starts the tasks of the main thread.
    fn start(self, gateway: Bound) -> Result<RunningGateway<'a>, StartError> {
        let Supervisor { controller, signal, workers, snapshot, store, requests } = self;
        let Workers { commands, exits, started } = workers;
        let ControlReceiver { shutdowns, reloads, control } = requests;
        let Addresses { https, http, admin } = gateway.addresses();
        let [https, http, admin] = [https, http, admin].map(display_address);
        let status = format!("serving: https {https}, http {http}, admin {admin}");
        let Bound { components, sockets, service_manager, metrics, rejections, queries, config_source, clock, .. } =
            gateway;
        drop(components.auth);
        let mut tasks = JoinSet::new();

        let liveness = Rc::new(WorkerLiveness::new(commands.len()));
        let (workers, manager) = (commands.clone(), service_manager.clone());
        tasks.spawn_local(watch_workers(workers, Rc::clone(&liveness), manager, status.clone()));

        let (tls_reloader, tls) = components.tls.unzip();
        let reloader = ConfigReloader::new(config_source, Arc::clone(&snapshot), tls_reloader, clock);
        let active = Current::new(Arc::clone(&snapshot));
        let ready_with = Current::new(backends_for_readiness(&snapshot));
        let last_reload = Current::new(None);
        let is_self_signed = components.certificate_pem.is_some();
        let admin = Rc::new(AdminContext {
            health: ProcessHealth {
                startup: started,
                liveness,
                signal: signal.clone(),
                backends: ready_with.clone(),
                metrics: Arc::clone(&metrics),
            },
            metrics: Arc::clone(&metrics),
            snapshot: active.clone(),
            recent_rejections: rejections,
            queries,
            control,
            dashboard: Dashboard::new(last_reload.clone(), tls, is_self_signed),
        });
        tasks.spawn_local(admin::dashboard::publish_updates(Rc::clone(&admin)));
        for listener in sockets.admin {
            let listener = TcpListener::from_std(listener).map_err(StartError::Threads)?;
            tasks.spawn_local(admin::serve(listener, Rc::clone(&admin)));
        }
        if let Some(socket) = sockets.admin_socket {
            let listener = UnixListener::from_std(socket).map_err(StartError::Threads)?;
            tasks.spawn_local(admin::serve_socket(listener, Rc::clone(&admin)));
        }

        let (publisher, snapshot) = watch::channel(snapshot);
        let maintenance = Maintenance {
            workers: commands,
            publisher,
            active,
            ready_with,
            last_reload,
            metrics,
            service_manager: service_manager.clone(),
            status,
            signal,
        };
        tasks.spawn_local(maintenance.watch_files(reloader, reloads));
        tasks.spawn_local(refresh_issuer_keys(snapshot.clone()));
        tasks.spawn_local(sweep_expired(snapshot.clone()));
        tasks.spawn_local(watch_memory(snapshot.clone()));
        tasks.spawn_local(serve_queues(snapshot.clone()));
        tasks.spawn_local(share_rates(snapshot.clone()));
        tasks.spawn_local(maintain_backends(snapshot.clone()));
        let worker_exits = exits;
        let _socket_files = sockets.files;
        Ok(RunningGateway {
            controller,
            worker_exits,
            store,
            tasks,
            shutdowns,
            snapshot,
            service_manager,
            _socket_files,
        })
    }
}

impl RunningGateway<'_> {
    /// Waits for a shutdown.
    async fn wait(&mut self) -> StopReason {
        tokio::select! {
            is_orderly = self.shutdowns.wait_for_shutdown() => {
                return if is_orderly { StopReason::Drain } else { StopReason::Immediate };
            }
            worker = self.worker_exits.recv() => {
                error!(worker, "a worker has ended unexpectedly; the gateway stops");
            }
            () = store_ended(self.store) => {
                error!("the thread of the token store has ended unexpectedly; the gateway stops");
            }
            _ = self.tasks.join_next() => {
                error!("a task of the main thread has ended unexpectedly; the gateway stops");
            }
        }
        StopReason::Failure
    }
}

/// Waits for the end of the store's thread, if there is one.
async fn store_ended(store: &mut Option<store::RunningDriver>) {
    match store {
        Some(store) => store.wait_until_ended().await,
        None => std::future::pending().await,
    }
}
