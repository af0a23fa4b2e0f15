//! Starts the worker threads, and joins them at the end.

use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::thread::JoinHandle;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tracing::{error, info};

use crate::admin::health::StartupCounter;
use crate::app::worker::{Snapshot, Worker, WorkerCommand};
use crate::app::{ABORT_TIMEOUT, Bound, RunOutcome};
use crate::base::join_within::join_within;
use crate::base::shutdown::ShutdownSignal;

/// The supervisor's handles of all workers.
pub(super) struct Workers {
    /// Sends commands to each worker.
    pub commands: Vec<UnboundedSender<WorkerCommand>>,
    /// Receives the number of each worker that exits.
    pub exits: UnboundedReceiver<usize>,
    /// Whether all workers have started.
    pub started: StartupCounter,
}

pub(super) type WorkerThread = JoinHandle<io::Result<usize>>;

impl Workers {
    /// Starts one worker for each set of sockets, with a flag for those that use TLS.
    pub fn start(
        gateway: &Bound,
        revision: &Arc<Snapshot>,
        sockets: Vec<Vec<(TcpListener, bool)>>,
        signal: &ShutdownSignal,
    ) -> io::Result<(Workers, Vec<WorkerThread>)> {
        let (ended, ends) = unbounded_channel();
        let started = StartupCounter::new(sockets.len());
        let mut crew = Workers { commands: Vec::with_capacity(sockets.len()), exits: ends, started };
        let mut threads = Vec::with_capacity(sockets.len());
        for (number, sockets) in sockets.into_iter().enumerate() {
            let (sender, orders) = unbounded_channel();
            let tls = || gateway.components.tls.as_ref().map(|(_, tls)| tls.clone());
            let listeners =
                sockets.into_iter().map(|(socket, is_tls)| (socket, is_tls.then(tls).flatten())).collect();
            let worker = Worker {
                number,
                snapshot: Arc::clone(revision),
                rejections: gateway.rejections.recorder(number),
                listeners,
                started: crew.started.clone(),
                signal: signal.clone(),
                commands: orders,
            };
            crew.commands.push(sender);
            threads.push(spawn(number, worker, ended.clone())?);
        }
        Ok((crew, threads))
    }
}

/// Starts a worker thread. `ended` receives its number when it exits, even by a panic.
fn spawn(number: usize, worker: Worker, ended: UnboundedSender<usize>) -> io::Result<WorkerThread> {
    struct ExitNotifier(usize, UnboundedSender<usize>);
    impl Drop for ExitNotifier {
        fn drop(&mut self) {
            let _ = self.1.send(self.0);
        }
    }
    std::thread::Builder::new().name(format!("worker-{number}")).spawn(move || {
        let _farewell = ExitNotifier(number, ended);
        worker.run()
    })
}

/// Joins the worker threads, and combines their results.
pub(super) fn join_all(workers: Vec<WorkerThread>, end: RunOutcome) -> RunOutcome {
    let mut total = 0;
    let mut broken = end == RunOutcome::Failed;
    for worker in workers {
        // A worker says farewell a moment before its thread is gone. One that is stuck is left behind: the process is
        // about to end, and must.
        match join_within(worker, ABORT_TIMEOUT) {
            Some(Ok(Ok(cut))) => {
                total += cut;
                continue;
            }
            Some(Ok(Err(error))) => error!(%error, "a worker failed"),
            Some(Err(_)) => error!("a worker panicked"),
            None => error!("a worker did not stop"),
        }
        broken = true;
    }
    info!(cut = total, "stopped");
    if broken { RunOutcome::Failed } else { RunOutcome::Drained { cut: total } }
}
