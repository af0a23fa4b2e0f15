//! What operators ask a running gateway for: to end, and to read its configuration again. Signals, the admin listener and
//! tests ask in the same way.

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;

use crate::config::Problem;

/// Asks.
#[derive(Clone, Debug)]
pub struct Control {
    ends: UnboundedSender<End>,
    reloads: UnboundedSender<ReloadOrder>,
}

/// Hears what was asked for.
#[derive(Debug)]
pub struct Orders {
    /// The end.
    pub ends: Ends,
    /// Reloads.
    pub reloads: UnboundedReceiver<ReloadOrder>,
    /// The way to ask, for who takes orders on the gateway's behalf.
    pub control: Control,
}

/// Hears that the end was asked for.
#[derive(Debug)]
pub struct Ends {
    heard: UnboundedReceiver<End>,
    /// The end began by an order. The signal that a supervisor sends afterwards, as it always does, says the same.
    is_ordered: bool,
}

/// How the gateway is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// As a signal says it: in good order the first time, at once the second time.
    Signal,
    /// In good order, however often it is said.
    Drain,
    /// At once.
    Quit,
}

/// Somebody wants the configuration read again.
#[derive(Debug)]
pub struct ReloadOrder {
    /// Who, for the log.
    pub by: &'static str,
    /// Hears what became of it.
    pub reply: oneshot::Sender<Reloaded>,
}

/// What became of a reload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reloaded {
    /// What was read is in force, but for these options, which take effect with a restart.
    Taken {
        /// Their keys.
        needs_restart: Vec<&'static str>,
    },
    /// Nothing has changed; all that is wrong is here.
    Refused(Vec<Problem>),
    /// The gateway is about to end, or was started from nothing that could be read again.
    Impossible(&'static str),
}

/// A way to ask, and the gateway's end of it.
pub fn channel() -> (Control, Orders) {
    let (ends, heard_ends) = unbounded_channel();
    let (reloads, heard_reloads) = unbounded_channel();
    let control = Control { ends, reloads };
    (
        control.clone(),
        Orders { ends: Ends { heard: heard_ends, is_ordered: false }, reloads: heard_reloads, control },
    )
}

impl Control {
    /// Asks for the end as a signal does: the first time to drain, the second time to end at once. Nothing happens if
    /// the gateway has ended already.
    pub fn stop(&self) {
        let _ = self.ends.send(End::Signal);
    }

    /// Asks to drain.
    pub fn drain(&self) {
        let _ = self.ends.send(End::Drain);
    }

    /// Asks to end at once.
    pub fn quit(&self) {
        let _ = self.ends.send(End::Quit);
    }

    /// Has the configuration, and all files that it names, read again, even if they look the same. `by` says who asks.
    /// What became of it can be heard or not.
    pub fn reload(&self, by: &'static str) -> oneshot::Receiver<Reloaded> {
        let (reply, heard) = oneshot::channel();
        let _ = self.reloads.send(ReloadOrder { by, reply });
        heard
    }
}

impl Ends {
    /// Waits until the gateway is to end; false: at once.
    pub async fn asked(&mut self) -> bool {
        match self.heard.recv().await {
            Some(End::Signal) => true,
            Some(End::Drain) => {
                self.is_ordered = true;
                true
            }
            Some(End::Quit) => false,
            None => std::future::pending().await,
        }
    }

    /// The end has begun: waits until it is to come at once.
    pub async fn hurried(&mut self) {
        loop {
            match self.heard.recv().await {
                Some(End::Signal) if std::mem::take(&mut self.is_ordered) => {}
                Some(End::Signal | End::Quit) => return,
                Some(End::Drain) => {}
                None => std::future::pending().await,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_second_signal_hurries_and_a_second_drain_does_not() {
        let (control, mut orders) = channel();
        control.stop();
        assert!(orders.ends.asked().await);
        control.drain();
        control.stop();
        orders.ends.hurried().await;
        control.quit();
        assert!(!orders.ends.asked().await);
    }

    #[tokio::test]
    async fn the_signal_after_an_order_to_drain_does_not_hurry_and_the_next_one_does() {
        let (control, mut orders) = channel();
        control.drain();
        assert!(orders.ends.asked().await);
        control.stop();
        let hurried = tokio::time::timeout(std::time::Duration::ZERO, orders.ends.hurried());
        assert!(hurried.await.is_err());
        control.stop();
        orders.ends.hurried().await;
    }
}
