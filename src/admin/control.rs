//! Requests to a running gateway: shutdown and reload. Signals, the admin listener and tests use the same channel; this
//! module does not know how the requests are carried out.

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;

use crate::config::Problem;

/// Sends requests to the gateway. Clones use the same channel.
#[derive(Clone, Debug)]
pub struct ControlHandle {
    shutdowns: UnboundedSender<ShutdownRequest>,
    reloads: UnboundedSender<ReloadRequest>,
}

/// The gateway's end of the channel.
#[derive(Debug)]
pub struct ControlReceiver {
    /// Shutdown requests of signals and admin commands.
    pub shutdowns: ShutdownRequests,
    /// Reload requests of signals and admin commands.
    pub reloads: UnboundedReceiver<ReloadRequest>,
    /// A sender, for the admin listener.
    pub control: ControlHandle,
}

/// Receives shutdown requests.
#[derive(Debug)]
pub struct ShutdownRequests {
    receiver: UnboundedReceiver<ShutdownRequest>,
    /// The shutdown was started by an admin command. The first signal after that is ignored, because a service manager
    /// sends SIGTERM as part of every stop.
    drain_was_requested: bool,
}

/// The kind of shutdown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShutdownRequest {
    /// As for a signal: gracefully the first time, immediately the second time.
    Signal,
    /// Gracefully, even if repeated.
    Drain,
    /// Immediately, without a drain.
    Quit,
}

/// A request to reload the configuration.
#[derive(Debug)]
pub struct ReloadRequest {
    /// The source of the request, for the log.
    pub by: &'static str,
    /// Receives the result when the reload is complete.
    pub reply: oneshot::Sender<ReloadResult>,
}

/// The result of a reload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReloadResult {
    /// The new configuration is active, except for options that need a restart.
    Applied {
        /// The keys of the options that need a restart.
        needs_restart: Vec<&'static str>,
    },
    /// The configuration is invalid, with all its problems. The previous one stays active.
    Rejected(Vec<Problem>),
    /// The gateway is shutting down, or has no configuration source to reload.
    Unavailable(&'static str),
}

/// Creates the two ends of the channel.
pub fn channel() -> (ControlHandle, ControlReceiver) {
    let (shutdowns, shutdown_receiver) = unbounded_channel();
    let (reloads, reload_receiver) = unbounded_channel();
    let control = ControlHandle { shutdowns, reloads };
    (
        control.clone(),
        ControlReceiver {
            shutdowns: ShutdownRequests { receiver: shutdown_receiver, drain_was_requested: false },
            reloads: reload_receiver,
            control,
        },
    )
}

impl ControlHandle {
    /// Requests a shutdown like a signal: a drain the first time, an immediate stop the second time. Does nothing if
    /// the gateway has stopped.
    pub fn stop(&self) {
        let _ = self.shutdowns.send(ShutdownRequest::Signal);
    }

    /// Requests a drain (graceful shutdown).
    pub fn drain(&self) {
        let _ = self.shutdowns.send(ShutdownRequest::Drain);
    }

    /// Requests an immediate shutdown.
    pub fn quit(&self) {
        let _ = self.shutdowns.send(ShutdownRequest::Quit);
    }

    /// Requests a reload of the configuration and of all files that it names, even if they have not changed. `by` is
    /// the source of the request, for the log. The receiver may be dropped.
    pub fn reload(&self, by: &'static str) -> oneshot::Receiver<ReloadResult> {
        let (reply, result) = oneshot::channel();
        let _ = self.reloads.send(ReloadRequest { by, reply });
        result
    }
}

impl ShutdownRequests {
    /// Waits for the first shutdown request. Returns true for a graceful shutdown, false for an immediate one.
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

    /// Waits, during a drain, for a request to stop immediately.
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
        let (control, mut receiver) = channel();
        control.stop();
        assert!(receiver.shutdowns.wait_for_shutdown().await);
        control.drain();
        control.stop();
        receiver.shutdowns.wait_for_immediate_shutdown().await;
        control.quit();
        assert!(!receiver.shutdowns.wait_for_shutdown().await);
    }

    #[tokio::test]
    async fn the_first_signal_after_a_drain_command_is_ignored_and_the_second_stops_immediately() {
        let (control, mut receiver) = channel();
        control.drain();
        assert!(receiver.shutdowns.wait_for_shutdown().await);
        control.stop();
        let immediate =
            tokio::time::timeout(std::time::Duration::ZERO, receiver.shutdowns.wait_for_immediate_shutdown());
        assert!(immediate.await.is_err());
        control.stop();
        receiver.shutdowns.wait_for_immediate_shutdown().await;
    }
}
