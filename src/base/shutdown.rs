//! The order in which the process ends: what everybody who serves must look at.
//!
//! ```text
//! Serving -> Leaving (readiness fails, still accepting) -> Draining (no new connections) -> Aborted
//! ```

use tokio::sync::watch;

/// How far the end has come. Later phases compare greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ShutdownPhase {
    /// Normal work.
    Serving,
    /// Readiness fails, so that load balancers look elsewhere; connections are still accepted.
    NotReady,
    /// No new connections; requests in flight are finished.
    Draining,
    /// The grace period is over: what still runs is cut.
    Aborted,
}

/// Moves the process from phase to phase.
#[derive(Debug)]
pub struct ShutdownController(watch::Sender<ShutdownPhase>);

/// Watches the phase; one for each task that needs it.
#[derive(Clone, Debug)]
pub struct ShutdownSignal(watch::Receiver<ShutdownPhase>);

/// A controller and its first signal, in phase [`Phase::Serving`].
pub fn channel() -> (ShutdownController, ShutdownSignal) {
    let (sender, receiver) = watch::channel(ShutdownPhase::Serving);
    (ShutdownController(sender), ShutdownSignal(receiver))
}

impl ShutdownController {
    /// Goes on to `phase`; a phase that is already behind is ignored.
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
    /// The phase right now.
    pub fn phase(&self) -> ShutdownPhase {
        *self.0.borrow()
    }

    /// Waits until `phase` or a later one is reached. A controller that is gone counts as [`Phase::Aborted`]:
    /// nobody is left who could end this orderly.
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
