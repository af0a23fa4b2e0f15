//! What operators ask a running gateway for: to end, and to read its configuration again. Signals, the admin listener and
//! tests ask in the same way.

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;

use crate::config::Problem;

/// Asks.
#[derive(Clone, Debug)]
pub struct ControlHandle {
    shutdowns: UnboundedSender<ShutdownRequest>,
    reloads: UnboundedSender<ReloadRequest>,
}

/// Hears what was asked for.
#[derive(Debug)]
pub struct ControlReceiver {
    /// The end.
    pub shutdowns: ShutdownRequests,
    /// Reloads.
    pub reloads: UnboundedReceiver<ReloadRequest>,
    /// The way to ask, for who takes orders on the gateway's behalf.
    pub control: ControlHandle,
}

/// Hears that the end was asked for.
#[derive(Debug)]
pub struct ShutdownRequests {
    receiver: UnboundedReceiver<ShutdownRequest>,
    /// The end began by an order. The signal that a supervisor sends afterwards, as it always does, says the same.
    drain_was_requested: bool,
}

/// How the gateway is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShutdownRequest {
    /// As a signal says it: in good order the first time, at once the second time.
    Signal,
    /// In good order, however often it is said.
    Drain,
    /// At once.
    Quit,
}

/// Somebody wants the configuration read again.
#[derive(Debug)]
pub struct ReloadRequest {
    /// Who, for the log.
    pub by: &'static str,
    /// Hears what became of it.
    pub reply: oneshot::Sender<ReloadResult>,
}

/// What became of a reload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReloadResult {
    /// What was read is in force, but for these options, which take effect with a restart.
    Applied {
        /// Their keys.
        needs_restart: Vec<&'static str>,
    },
    /// Nothing has changed; all that is wrong is here.
    Rejected(Vec<Problem>),
    /// The gateway is about to end, or was started from nothing that could be read again.
    Unavailable(&'static str),
}

/// A way to ask, and the gateway's end of it.
pub fn channel() -> (ControlHandle, ControlReceiver) {
    let (ends, heard_ends) = unbounded_channel();
    let (reloads, heard_reloads) = unbounded_channel();
    let control = ControlHandle { shutdowns: ends, reloads };
    (
        control.clone(),
        ControlReceiver {
            shutdowns: ShutdownRequests { receiver: heard_ends, drain_was_requested: false },
            reloads: heard_reloads,
            control,
        },
    )
}

impl ControlHandle {
    /// Asks for the end as a signal does: the first time to drain, the second time to end at once. Nothing happens if
    /// the gateway has ended already.
    pub fn stop(&self) {
        let _ = self.shutdowns.send(ShutdownRequest::Signal);
    }

    /// Asks to drain.
    pub fn drain(&self) {
        let _ = self.shutdowns.send(ShutdownRequest::Drain);
    }

    /// Asks to end at once.
    pub fn quit(&self) {
        let _ = self.shutdowns.send(ShutdownRequest::Quit);
    }

    /// Has the configuration, and all files that it names, read again, even if they look the same. `by` says who asks.
    /// What became of it can be heard or not.
    pub fn reload(&self, by: &'static str) -> oneshot::Receiver<ReloadResult> {
        let (reply, heard) = oneshot::channel();
        let _ = self.reloads.send(ReloadRequest { by, reply });
        heard
    }
}

impl ShutdownRequests {
    /// Waits until the gateway is to end; false: at once.
    pub async fn wait_for_shutdown(&mut self) -> bool {
        match self.receiver.recv().await {
            Some(ShutdownRequest::Signal) => true,
            Some(ShutdownRequest::Drain) => {
                self.drain_was_requested = true;
                true
            }
            Some(ShutdownRequest::Quit) => false,
            None => std::future::pending().await,
        }
    }

    /// The end has begun: waits until it is to come at once.
    pub async fn wait_for_immediate_shutdown(&mut self) {
        loop {
            match self.receiver.recv().await {
                Some(ShutdownRequest::Signal) if std::mem::take(&mut self.drain_was_requested) => {}
                Some(ShutdownRequest::Signal | ShutdownRequest::Quit) => return,
                Some(ShutdownRequest::Drain) => {}
                None => std::future::pending().await,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_second_signal_stops_immediately_and_a_second_drain_does_not() {
        let (control, mut orders) = channel();
        control.stop();
        assert!(orders.shutdowns.wait_for_shutdown().await);
        control.drain();
        control.stop();
        orders.shutdowns.wait_for_immediate_shutdown().await;
        control.quit();
        assert!(!orders.shutdowns.wait_for_shutdown().await);
    }

    #[tokio::test]
    async fn the_first_signal_after_a_drain_command_is_ignored_and_the_second_stops_immediately() {
        let (control, mut orders) = channel();
        control.drain();
        assert!(orders.shutdowns.wait_for_shutdown().await);
        control.stop();
        let hurried =
            tokio::time::timeout(std::time::Duration::ZERO, orders.shutdowns.wait_for_immediate_shutdown());
        assert!(hurried.await.is_err());
        control.stop();
        orders.shutdowns.wait_for_immediate_shutdown().await;
    }
}
