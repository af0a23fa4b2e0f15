//! Graceful shutdown of the process: takes it through the shutdown phases, and waits for the workers in between. It
//! does not know how a worker drains its connections: see `drain` in `worker.rs`.

use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use crate::app::supervisor::RunningGateway;
use crate::app::{ABORT_TIMEOUT, RunOutcome};
use crate::base::shutdown_phase::ShutdownPhase;

/// Why the gateway stops.
pub(super) enum StopReason {
    /// A drain was requested.
    Drain,
    /// An immediate stop was requested.
    Immediate,
    /// A thread or a task has ended unexpectedly.
    Failure,
}

impl RunningGateway<'_> {
    /// Lets the requests in flight end, and stops the workers.
    pub(super) async fn drain(mut self, reason: StopReason) -> RunOutcome {
        let has_failed = match reason {
            StopReason::Immediate => return RunOutcome::Aborted,
            StopReason::Drain => false,
            StopReason::Failure => true,
        };
        let drain = self.snapshot.borrow().config.drain;
        info!("shutting down: no longer ready");
        self.service_manager.notify_stopping("draining");
        self.controller.advance(ShutdownPhase::NotReady);
        if !has_failed {
            tokio::select! {
                () = sleep(drain.delay) => {}
                () = self.shutdowns.wait_for_immediate_shutdown() => return RunOutcome::Aborted,
            }
        }
        info!(timeout = ?drain.timeout, "draining: no new connections");
        self.controller.advance(ShutdownPhase::Draining);
        tokio::select! {
            () = all_exited(&mut self.worker_exits) => {}
            () = sleep(drain.timeout) => warn!("drain.timeout has expired: aborting the remaining connections"),
            () = self.shutdowns.wait_for_immediate_shutdown() => return RunOutcome::Aborted,
        }
        self.controller.advance(ShutdownPhase::Aborted);
        let _ = timeout(ABORT_TIMEOUT, all_exited(&mut self.worker_exits)).await;
        if has_failed { RunOutcome::Failed } else { RunOutcome::Drained { cut: 0 } }
    }
}

/// Waits until all workers have exited.
async fn all_exited(worker_exits: &mut UnboundedReceiver<usize>) {
    while worker_exits.recv().await.is_some() {}
}
