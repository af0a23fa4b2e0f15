//! A worker thread: a runtime, listeners, upstream connections and clients of its own.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::LocalOptions;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::oneshot;
use tokio::task::{JoinError, JoinSet};
use tracing::debug;

use crate::admin::health::Started;
use crate::admission::Admission;
use crate::auth::Auth;
use crate::config::Config;
use crate::connection::activity::Reaper;
use crate::connection::{Service, serve};
use crate::gateway::Gateway;
use crate::gateway::refusals::Recorder;
use crate::listener;
use crate::shutdown::{Phase, Signal};
use crate::tls::ServerTls;
use crate::upstream::{Backends, Upstream};

/// What a worker thread is given.
pub struct Worker {
    pub config: Arc<Config>,
    pub auth: Arc<Auth>,
    pub admission: Arc<Admission>,
    pub number: usize,
    pub backends: Arc<Backends>,
    pub refusals: Recorder,
    pub listeners: Vec<(std::net::TcpListener, Option<ServerTls>)>,
    pub started: Started,
    pub signal: Signal,
    pub orders: UnboundedReceiver<Order>,
}

/// What a worker is told by the thread that supervises it.
pub enum Order {
    /// To say that it is alive.
    Answer(oneshot::Sender<()>),
}

impl Worker {
    /// Serves until the signal says otherwise. Returns how many connections had to be cut.
    pub fn run(self) -> io::Result<usize> {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build_local(LocalOptions::default())?;
        runtime.block_on(self.serve())
    }

    async fn serve(mut self) -> io::Result<usize> {
        let backends = Arc::clone(&self.backends);
        let upstream = Upstream::new(backends, self.number, Arc::clone(self.admission.metrics()));
        let gateway = Rc::new(Gateway::new(
            &self.config,
            Arc::clone(&self.auth),
            upstream,
            Arc::clone(&self.admission),
            self.refusals.clone(),
        ));
        let reaper = Rc::new(Reaper::new(self.config.timeouts, Arc::clone(self.admission.metrics())));
        let mut accepting = JoinSet::new();
        for (listener, tls) in std::mem::take(&mut self.listeners) {
            let service = Service {
                gateway: Rc::clone(&gateway),
                tls,
                trusted_proxies: self.config.trusted_proxies.clone(),
                proxy_protocol: self.config.listen.proxy_protocol,
                timeouts: self.config.timeouts,
                limits: self.config.limits,
                admission: Arc::clone(&self.admission),
            };
            let listener = TcpListener::from_std(listener)?;
            accepting.spawn_local(accept(
                listener,
                Rc::new(service),
                Rc::clone(&reaper),
                self.signal.clone(),
            ));
        }
        self.started.one_more();
        tokio::select! {
            () = obey(&mut self.orders) => unreachable!("it never ends"),
            () = keep_tidy(&gateway, &reaper) => unreachable!("it never ends"),
            failure = failed(&mut accepting) => Err(io::Error::other(failure)),
            left = leave(self.signal.clone(), &reaper) => Ok(left),
        }
    }
}

/// Waits for an accepting task to panic. They end by themselves with the drain.
async fn failed(accepting: &mut JoinSet<()>) -> JoinError {
    while let Some(ended) = accepting.join_next().await {
        if let Err(failure) = ended {
            return failure;
        }
    }
    std::future::pending().await
}

/// Accepts connections until the drain begins.
async fn accept(listener: TcpListener, service: Rc<Service>, reaper: Rc<Reaper>, mut signal: Signal) {
    let take = |(stream, peer): (TcpStream, SocketAddr)| {
        if let Some(place) = service.admission.connection(peer.ip(), service.trusts(peer.ip())) {
            tokio::task::spawn_local(serve(Rc::clone(&service), stream, peer, reaper.register(place)));
        }
    };
    let failures = &service.admission.metrics().accept_failures;
    loop {
        tokio::select! {
            () = signal.reached(Phase::Draining) => break,
            connection = listener::accept(&listener, failures) => take(connection),
        }
    }
    // The kernel has finished the handshakes of those who wait in the backlog: closing now would reset them.
    tokio::task::yield_now().await;
    while let Some(Ok(connection)) = now(|cx| listener.poll_accept(cx)).await {
        take(connection);
    }
}

/// The result, if it is there at once.
async fn now<T>(mut poll: impl FnMut(&mut std::task::Context<'_>) -> Poll<T>) -> Option<T> {
    poll_fn(|cx| match poll(cx) {
        Poll::Ready(result) => Poll::Ready(Some(result)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

/// Does as it is told. Never ends.
async fn obey(orders: &mut UnboundedReceiver<Order>) {
    while let Some(order) = orders.recv().await {
        match order {
            Order::Answer(heard) => drop(heard.send(())),
        }
    }
    std::future::pending::<()>().await;
}

async fn keep_tidy(gateway: &Gateway, reaper: &Reaper) {
    let mut ticks = tokio::time::interval(reaper.interval());
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        reaper.sweep();
        gateway.sweep();
    }
}

/// Waits for the drain, then for the connections, then for nothing. Returns how many were cut.
async fn leave(mut signal: Signal, reaper: &Reaper) -> usize {
    signal.reached(Phase::Draining).await;
    // Lets the accepting tasks empty their backlogs first.
    tokio::task::yield_now().await;
    tokio::task::yield_now().await;
    reaper.close_all();
    debug!(connections = reaper.len(), "draining");
    tokio::select! {
        () = reaper.emptied() => 0,
        () = signal.reached(Phase::Aborted) => {
            let left = reaper.len();
            reaper.cut_all();
            // One turn for each to end by itself.
            tokio::task::yield_now().await;
            left
        }
    }
}
