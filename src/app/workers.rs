//! The worker threads: how they begin, how they are spoken to, and what they have to say at the end.

use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::thread::JoinHandle;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tracing::{error, info};

use crate::admin::health::Started;
use crate::app::worker::{Order, Revision, Worker};
use crate::app::{Bound, Ended, LAST_WORDS};
use crate::base::join_within::join_within;
use crate::base::shutdown::Signal;

/// All workers, as the thread that supervises them sees them.
pub(super) struct Crew {
    /// A way to speak to each.
    pub orders: Vec<UnboundedSender<Order>>,
    /// Hears the number of each that ends.
    pub ends: UnboundedReceiver<usize>,
    /// Whether all have begun.
    pub started: Started,
}

pub(super) type WorkerThread = JoinHandle<io::Result<usize>>;

impl Crew {
    /// A worker for each set of sockets, of which some speak TLS.
    pub fn start(
        gateway: &Bound,
        revision: &Arc<Revision>,
        sockets: Vec<Vec<(TcpListener, bool)>>,
        signal: &Signal,
    ) -> io::Result<(Crew, Vec<WorkerThread>)> {
        let (ended, ends) = unbounded_channel();
        let started = Started::new(sockets.len());
        let mut crew = Crew { orders: Vec::with_capacity(sockets.len()), ends, started };
        let mut threads = Vec::with_capacity(sockets.len());
        for (number, sockets) in sockets.into_iter().enumerate() {
            let (sender, orders) = unbounded_channel();
            let tls = || gateway.parts.tls.as_ref().map(|(_, tls)| tls.clone());
            let listeners =
                sockets.into_iter().map(|(socket, is_tls)| (socket, is_tls.then(tls).flatten())).collect();
            let worker = Worker {
                number,
                revision: Arc::clone(revision),
                refusals: gateway.refusals.recorder(number),
                listeners,
                started: crew.started.clone(),
                signal: signal.clone(),
                orders,
            };
            crew.orders.push(sender);
            threads.push(spawn(number, worker, ended.clone())?);
        }
        Ok((crew, threads))
    }
}

/// Starts a worker; `ended` hears of its end, however it comes.
fn spawn(number: usize, worker: Worker, ended: UnboundedSender<usize>) -> io::Result<WorkerThread> {
    struct Farewell(usize, UnboundedSender<usize>);
    impl Drop for Farewell {
        fn drop(&mut self) {
            let _ = self.1.send(self.0);
        }
    }
    std::thread::Builder::new().name(format!("worker-{number}")).spawn(move || {
        let _farewell = Farewell(number, ended);
        worker.run()
    })
}

/// What the workers have to say at the end.
pub(super) fn collect(workers: Vec<WorkerThread>, end: Ended) -> Ended {
    let mut total = 0;
    let mut broken = end == Ended::Broken;
    for worker in workers {
        // A worker says farewell a moment before its thread is gone. One that is stuck is left behind: the process is
        // about to end, and must.
        match join_within(worker, LAST_WORDS) {
            Some(Ok(Ok(cut))) => {
                total += cut;
                continue;
            }
            Some(Ok(Err(error))) => error!(%error, "a worker failed"),
            Some(Err(_)) => error!("a worker panicked"),
            None => error!("a worker did not end"),
        }
        broken = true;
    }
    info!(cut = total, "stopped");
    if broken { Ended::Broken } else { Ended::Drained { cut: total } }
}
