//! Starts the worker threads, and joins them at the end.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tracing::{error, info};

use crate::admin::health::StartupCounter;
use crate::app::worker::{Recorders, Worker, WorkerCommand};
use crate::app::{ABORT_TIMEOUT, Bound, RunOutcome};
use crate::base::join_within::join_within;
use crate::base::shutdown_phase::ShutdownSignal;
use crate::downstream::listener::BoundListener;
use crate::gateway::snapshot::Snapshot;

/// The supervisor's handles of all workers.
pub(super) struct Workers {
    /// Sends commands to each worker.
    pub commands: Vec<UnboundedSender<WorkerCommand>>,
    /// Receives the number of each worker that exits.
    pub exits: UnboundedReceiver<usize>,
    /// True if all workers have started.
    pub started: StartupCounter,
}

pub(super) type WorkerThread = JoinHandle<io::Result<usize>>;

impl Workers {
    /// Starts one worker for each set of sockets, with a flag for those that use TLS.
    pub fn start(
        gateway: &Bound,
        snapshot: &Arc<Snapshot>,
        sockets: Vec<Vec<(BoundListener, bool)>>,
        signal: &ShutdownSignal,
    ) -> io::Result<(Workers, Vec<WorkerThread>)> {
        let (exit_sender, exits) = unbounded_channel();
        let started = StartupCounter::new(sockets.len());
        let mut workers = Workers { commands: Vec::with_capacity(sockets.len()), exits, started };
        let mut threads = Vec::with_capacity(sockets.len());
        for (number, sockets) in sockets.into_iter().enumerate() {
            let (sender, commands) = unbounded_channel();
            let tls = || gateway.components.tls.as_ref().map(|(_, tls)| tls.clone());
            let listeners = sockets.into_iter().map(|(socket, is_tls)| (socket, is_tls.then(tls).flatten())).collect();
            let worker = Worker {
                number,
                snapshot: Arc::clone(snapshot),
                recorders: Recorders {
                    rejections: gateway.rejections.recorder(number),
                    queries: gateway.queries.recorder(number),
                },
                listeners,
                started: workers.started.clone(),
                signal: signal.clone(),
                commands,
            };
            workers.commands.push(sender);
            threads.push(spawn(number, worker, exit_sender.clone())?);
        }
        Ok((workers, threads))
    }
}

/// Starts a worker thread. `exits` receives its number when it ends, even by a panic.
fn spawn(number: usize, worker: Worker, exits: UnboundedSender<usize>) -> io::Result<WorkerThread> {
    struct ExitNotifier(usize, UnboundedSender<usize>);
    impl Drop for ExitNotifier {
        fn drop(&mut self) {
            let _ = self.1.send(self.0);
        }
    }
    std::thread::Builder::new().name(format!("worker-{number}")).spawn(move || {
        let _notifier = ExitNotifier(number, exits);
        worker.run()
    })
}

/// Joins the worker threads, and combines their results.
pub(super) fn join_all(threads: Vec<WorkerThread>, outcome: RunOutcome) -> RunOutcome {
    let mut total_aborted = 0;
    let mut has_failed = outcome == RunOutcome::Failed;
    for thread in threads {
        // A worker reports its exit shortly before its thread has ended. A worker that hangs is not joined, because the
        // process must end.
        match join_within(thread, ABORT_TIMEOUT) {
            Some(Ok(Ok(aborted))) => {
                total_aborted += aborted;
                continue;
            }
            Some(Ok(Err(error))) => error!(%error, "a worker failed"),
            Some(Err(_)) => error!("a worker panicked"),
            None => error!("a worker did not stop"),
        }
        has_failed = true;
    }
    info!(cut = total_aborted, "stopped");
    if has_failed { RunOutcome::Failed } else { RunOutcome::Drained { cut: total_aborted } }
}
