//! Checks that the workers are alive: each one receives a heartbeat periodically, and must reply from its own thread.

use std::rc::Rc;
use std::time::Duration;

use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::admin::health::WorkerLiveness;
use crate::app::worker::WorkerCommand;
use crate::os::sd_notify::ServiceManager;

/// Interval between heartbeats, unless the watchdog requires a shorter one.
const DEFAULT_HEARTBEAT_INTERVAL: Duration = Duration::from_secs(1);

/// Notifies the service manager that the gateway is ready when all workers have replied, and triggers its watchdog
/// while they continue to reply. Never returns.
///
/// If a worker hangs, the watchdog is not triggered, and the service manager restarts the gateway.
pub async fn watch_workers(
    workers: Vec<UnboundedSender<WorkerCommand>>,
    liveness: Rc<WorkerLiveness>,
    service_manager: ServiceManager,
    status: String,
) {
    for worker in &workers {
        send_heartbeat(worker).await;
    }
    service_manager.notify_ready(&status);
    let interval = service_manager
        .watchdog_interval()
        .map_or(DEFAULT_HEARTBEAT_INTERVAL, |limit| (limit / 4).min(DEFAULT_HEARTBEAT_INTERVAL));
    let mut heartbeats = JoinSet::new();
    for (number, worker) in workers.into_iter().enumerate() {
        let liveness = Rc::clone(&liveness);
        heartbeats.spawn_local(async move {
            while send_heartbeat(&worker).await {
                liveness.record_alive(number);
                sleep(interval).await;
            }
            liveness.record_ended(number);
        });
    }
    if service_manager.watchdog_interval().is_none() {
        return std::future::pending().await;
    }
    // Notified with each heartbeat, so that a short pause costs one of many notifications. With two of them in the
    // manager's interval, a pause at the wrong moment would silence the watchdog for longer than that.
    loop {
        if liveness.is_alive_within(interval * 2) {
            service_manager.notify_watchdog();
        }
        sleep(interval).await;
    }
}

/// Sends a heartbeat to the worker and waits for its reply. Returns whether it is still running.
async fn send_heartbeat(worker: &UnboundedSender<WorkerCommand>) -> bool {
    let (reply, reply_receiver) = oneshot::channel();
    worker.send(WorkerCommand::Heartbeat(reply)).is_ok() && reply_receiver.await.is_ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{SocketAddr, UnixDatagram};
    use std::time::Instant;

    use tokio::sync::mpsc::unbounded_channel;
    use tokio::task::LocalSet;

    use super::*;

    const WATCHDOG: Duration = Duration::from_millis(400);

    /// The notifications until there is none for a whole watchdog interval.
    fn received(socket: &UnixDatagram) -> Vec<String> {
        socket.set_read_timeout(Some(WATCHDOG)).expect("set");
        let mut buffer = [0; 1024];
        let mut messages = Vec::new();
        while let Ok(length) = socket.recv(&mut buffer) {
            messages.push(String::from_utf8_lossy(&buffer[..length]).into_owned());
        }
        messages
    }

    /// The pause is longer than a worker may hang unnoticed, and much shorter than the manager's interval.
    #[tokio::test]
    async fn a_short_pause_does_not_silence_the_watchdog_for_its_interval() {
        const LIMIT: Duration = Duration::from_secs(5);
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("notify");
        let socket = UnixDatagram::bind(&path).expect("bound");
        socket.set_nonblocking(true).expect("set");
        let manager = ServiceManager::new(SocketAddr::from_pathname(&path).expect("a path"), Some(LIMIT));
        let (worker, mut commands) = unbounded_channel();
        let tasks = LocalSet::new();
        tasks.spawn_local(watch_workers(vec![worker], Rc::new(WorkerLiveness::new(1)), manager, "serving".to_owned()));
        tasks.spawn_local(async move {
            for number in 0.. {
                let Some(command) = commands.recv().await else { return };
                let (WorkerCommand::Heartbeat(reply) | WorkerCommand::Apply(_, reply)) = command;
                if number == 3 {
                    sleep(LIMIT * 6 / 10).await;
                }
                let _ = reply.send(());
            }
        });
        let longest = tasks.run_until(async {
            let (begun, mut last, mut longest) = (Instant::now(), Instant::now(), Duration::ZERO);
            while begun.elapsed() < 2 * LIMIT {
                sleep(Duration::from_millis(5)).await;
                let mut buffer = [0; 1024];
                while let Ok(length) = socket.recv(&mut buffer) {
                    if &buffer[..length] == b"WATCHDOG=1\n" {
                        longest = longest.max(last.elapsed());
                        last = Instant::now();
                    }
                }
            }
            longest.max(last.elapsed())
        });
        let longest = longest.await;
        assert!(longest < LIMIT, "{longest:?}");
    }

    #[tokio::test]
    async fn a_hanging_worker_stops_the_watchdog_and_an_ended_one_does_not() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("notify");
        let socket = UnixDatagram::bind(&path).expect("bound");
        let manager = ServiceManager::new(SocketAddr::from_pathname(&path).expect("a path"), Some(WATCHDOG));
        let (hanging, mut hanging_commands) = unbounded_channel();
        let (ending, mut ending_commands) = unbounded_channel();
        let reply_to = |command| {
            let (WorkerCommand::Heartbeat(reply) | WorkerCommand::Apply(_, reply)) = command;
            let _ = reply.send(());
        };
        let liveness = Rc::new(WorkerLiveness::new(2));
        let tasks = LocalSet::new();
        tasks.spawn_local(watch_workers(vec![hanging, ending], liveness, manager, "serving".to_owned()));
        tasks.spawn_local(async move {
            reply_to(ending_commands.recv().await.expect("a command"));
            // The worker ends.
        });
        tasks.spawn_local(async move {
            for _ in 0..10 {
                reply_to(hanging_commands.recv().await.expect("a command"));
            }
            // The worker hangs.
            let _commands = hanging_commands;
            std::future::pending::<()>().await;
        });
        let listener = tokio::task::spawn_blocking(move || received(&socket));
        let received = tasks.run_until(async { listener.await.expect("no panic") }).await;
        assert_eq!(received.first().map(String::as_str), Some("READY=1\nSTATUS=serving\n"));
        let alive = received[1..].iter().filter(|message| *message == "WATCHDOG=1\n").count();
        assert!(alive >= 2 && alive == received.len() - 1, "{received:?}");
    }
}
