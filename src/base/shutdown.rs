//! The order in which the process ends: what everybody who serves must look at.
//!
//! ```text
//! Serving -> Leaving (readiness fails, still accepting) -> Draining (no new connections) -> Aborted
//! ```

use tokio::sync::watch;

/// How far the end has come. Later phases compare greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Normal work.
    Serving,
    /// Readiness fails, so that load balancers look elsewhere; connections are still accepted.
    Leaving,
    /// No new connections; requests in flight are finished.
    Draining,
    /// The grace period is over: what still runs is cut.
    Aborted,
}

/// Moves the process from phase to phase.
#[derive(Debug)]
pub struct Controller(watch::Sender<Phase>);

/// Watches the phase; one for each task that needs it.
#[derive(Clone, Debug)]
pub struct Signal(watch::Receiver<Phase>);

/// A controller and its first signal, in phase [`Phase::Serving`].
pub fn channel() -> (Controller, Signal) {
    let (sender, receiver) = watch::channel(Phase::Serving);
    (Controller(sender), Signal(receiver))
}

impl Controller {
    /// Goes on to `phase`; a phase that is already behind is ignored.
    pub fn advance(&self, phase: Phase) {
        self.0.send_if_modified(|now| {
            let forward = phase > *now;
            if forward {
                *now = phase;
            }
            forward
        });
    }
}

impl Signal {
    /// The phase right now.
    pub fn phase(&self) -> Phase {
        *self.0.borrow()
    }

    /// Waits until `phase` or a later one is reached. A controller that is gone counts as [`Phase::Aborted`]:
    /// nobody is left who could end this orderly.
    pub async fn reached(&mut self, phase: Phase) {
        let _ = self.0.wait_for(|now| *now >= phase).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn phases_only_go_forward() {
        let (controller, mut signal) = channel();
        controller.advance(Phase::Draining);
        controller.advance(Phase::Leaving);
        assert_eq!(signal.phase(), Phase::Draining);
        signal.reached(Phase::Leaving).await;
    }

    #[tokio::test]
    async fn a_lost_controller_ends_every_wait() {
        let (controller, mut signal) = channel();
        drop(controller);
        signal.reached(Phase::Aborted).await;
    }
}
