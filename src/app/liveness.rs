//! Checks that the workers are alive: each one is pinged periodically, and must reply from its own thread.

use std::rc::Rc;
use std::time::Duration;

use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::admin::health::WorkerLiveness;
use crate::app::worker::WorkerCommand;
use crate::os::sd_notify::ServiceManager;

/// Interval between pings, unless the watchdog requires a shorter one.
const DEFAULT_PING_INTERVAL: Duration = Duration::from_secs(1);

/// Notifies the service manager that the gateway is ready when all workers have replied, and triggers its watchdog while they
/// continue to reply. Never returns.
///
/// If a worker hangs, the watchdog is not triggered, and the service manager restarts the gateway.
pub async fn watch_workers(
    workers: Vec<UnboundedSender<WorkerCommand>>,
    pulse: Rc<WorkerLiveness>,
    manager: ServiceManager,
    status: String,
) {
    for worker in &workers {
        ping(worker).await;
    }
    manager.notify_ready(&status);
    let interval = manager
        .watchdog_interval()
        .map_or(DEFAULT_PING_INTERVAL, |limit| (limit / 4).min(DEFAULT_PING_INTERVAL));
    let mut asking = JoinSet::new();
    for (number, worker) in workers.into_iter().enumerate() {
        let pulse = Rc::clone(&pulse);
        asking.spawn_local(async move {
            while ping(&worker).await {
                pulse.record_alive(number);
                sleep(interval).await;
            }
            pulse.record_ended(number);
        });
    }
    let Some(limit) = manager.watchdog_interval() else { return std::future::pending().await };
    loop {
        if pulse.is_alive_within(interval * 2) {
            manager.notify_watchdog();
        }
        sleep(limit / 2).await;
    }
}

/// Waits for a reply of the worker. Returns whether it is still running.
async fn ping(worker: &UnboundedSender<WorkerCommand>) -> bool {
    let (reply, heard) = oneshot::channel();
    worker.send(WorkerCommand::Ping(reply)).is_ok() && heard.await.is_ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{SocketAddr, UnixDatagram};

    use tokio::sync::mpsc::unbounded_channel;
    use tokio::task::LocalSet;

    use super::*;

    const WATCHDOG: Duration = Duration::from_millis(400);

    /// The notifications until there is none for a whole watchdog interval.
    fn heard(socket: &UnixDatagram) -> Vec<String> {
        socket.set_read_timeout(Some(WATCHDOG)).expect("set");
        let mut buffer = [0; 1024];
        let mut all = Vec::new();
        while let Ok(length) = socket.recv(&mut buffer) {
            all.push(String::from_utf8_lossy(&buffer[..length]).into_owned());
        }
        all
    }

    #[tokio::test]
    async fn a_hanging_worker_stops_the_watchdog_and_an_ended_one_does_not() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("notify");
        let socket = UnixDatagram::bind(&path).expect("bound");
        let manager = ServiceManager::new(SocketAddr::from_pathname(&path).expect("a path"), Some(WATCHDOG));
        let (hanging, mut hangs) = unbounded_channel();
        let (ending, mut ends) = unbounded_channel();
        let say = |order| {
            let (WorkerCommand::Ping(reply) | WorkerCommand::Apply(_, reply)) = order;
            let _ = reply.send(());
        };
        let pulse = Rc::new(WorkerLiveness::new(2));
        let tasks = LocalSet::new();
        tasks.spawn_local(watch_workers(vec![hanging, ending], pulse, manager, "here".to_owned()));
        tasks.spawn_local(async move {
            say(ends.recv().await.expect("a command"));
            // The worker ends.
        });
        tasks.spawn_local(async move {
            for _ in 0..10 {
                say(hangs.recv().await.expect("a command"));
            }
            // The worker hangs.
            let _orders = hangs;
            std::future::pending::<()>().await;
        });
        let listening = tokio::task::spawn_blocking(move || heard(&socket));
        let told = tasks.run_until(async { listening.await.expect("no panic") }).await;
        assert_eq!(told.first().map(String::as_str), Some("READY=1\nSTATUS=here\n"));
        let alive = told[1..].iter().filter(|words| *words == "WATCHDOG=1\n").count();
        assert!(alive >= 2 && alive == told.len() - 1, "{told:?}");
    }
}
