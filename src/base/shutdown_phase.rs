//! The phases of a graceful shutdown, and how tasks wait for them.
//!
//! `app/graceful_shutdown.rs` goes through the phases; `accept_connections` and `drain` in `app/worker.rs` follow them.
//!
//! ```text
//! Serving -> NotReady (readiness fails, still accepting) -> Draining (no new connections) -> Aborted
//! ```

use tokio::sync::watch;

/// The phase of the process. Later phases compare greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ShutdownPhase {
    /// Normal operation.
    Serving,
    /// Readiness fails, so that load balancers stop sending traffic; connections are still accepted.
    NotReady,
    /// No new connections are accepted; requests in flight are completed.
    Draining,
    /// The grace period has ended: remaining connections are closed.
    Aborted,
}

/// Advances the process from phase to phase.
#[derive(Debug)]
pub struct ShutdownController(watch::Sender<ShutdownPhase>);

/// Observes the phase; each task has its own clone.
#[derive(Clone, Debug)]
pub struct ShutdownSignal(watch::Receiver<ShutdownPhase>);

/// Creates a controller and its first signal, in phase [`ShutdownPhase::Serving`].
pub fn channel() -> (ShutdownController, ShutdownSignal) {
    let (sender, receiver) = watch::channel(ShutdownPhase::Serving);
    (ShutdownController(sender), ShutdownSignal(receiver))
}

impl ShutdownController {
    /// Advances to `phase`; has no effect if that phase has passed.
    pub fn advance(&self, phase: ShutdownPhase) {
        self.0.send_if_modified(|now| {
            let forward = phase > *now;
            if forward {
                *now = phase;
            }
            forward
        });
    }
}

impl ShutdownSignal {
    /// The current phase.
    pub fn phase(&self) -> ShutdownPhase {
        *self.0.borrow()
    }

    /// Waits until `phase` or a later one is reached. A dropped controller counts as [`ShutdownPhase::Aborted`],
    /// because nothing could complete the shutdown.
    pub async fn wait_for(&mut self, phase: ShutdownPhase) {
        let _ = self.0.wait_for(|now| *now >= phase).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn phases_only_go_forward() {
        let (controller, mut signal) = channel();
        controller.advance(ShutdownPhase::Draining);
        controller.advance(ShutdownPhase::NotReady);
        assert_eq!(signal.phase(), ShutdownPhase::Draining);
        signal.wait_for(ShutdownPhase::NotReady).await;
    }

    #[tokio::test]
    async fn a_lost_controller_ends_every_wait() {
        let (controller, mut signal) = channel();
        drop(controller);
        signal.wait_for(ShutdownPhase::Aborted).await;
    }
}
