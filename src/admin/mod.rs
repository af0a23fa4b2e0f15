//! The admin listener: probes, metrics, the dashboard and the commands for operators on this machine.
//!
//! It reads the state that the rest of the process publishes and sends requests over [`control`]; it knows nothing
//! about the path of a client's request.

mod access;
mod commands;
pub mod control;
pub mod dashboard;
pub mod health;
mod queries;
mod rejections;
mod response;
mod routes;
mod stops;
mod tokens;

use std::convert::Infallible;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::warn;

use crate::admin::control::ControlHandle;
use crate::base::current::Current;
use crate::downstream::listener::{self, ClientListener};
use crate::gateway::recent_rejections::RecentRejections;
use crate::gateway::snapshot::Snapshot;
use crate::observability::metrics::Metrics;
use crate::observability::queries::QueryJournal;
use crate::upstream::UpstreamStatus;

use access::AdminPeer;
use dashboard::Dashboard;
use health::ProcessHealth;

/// Maximum time until the next request of a connection. Probes are seconds apart.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// Maximum number of concurrent connections; probes and dashboards need far fewer.
const MAX_CONNECTIONS: usize = 64;

/// Time without accepting after an error, such as too many open files.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);

/// The state that the admin listener reports, and the handles for its commands.
pub struct AdminContext {
    /// The state behind the probes.
    pub health: ProcessHealth,
    /// The metrics behind `/metrics`.
    pub metrics: Arc<Metrics>,
    /// The active configuration with its components.
    pub snapshot: Current<Arc<Snapshot>>,
    /// The most recent rejections with their reasons.
    pub recent_rejections: Arc<RecentRejections>,
    /// The query journal.
    pub queries: Arc<QueryJournal>,
    /// Requests shutdowns and reloads.
    pub control: ControlHandle,
    /// The state behind the dashboard.
    pub dashboard: Dashboard,
}

/// Serves connections until the task is dropped. Runs on a `LocalSet`.
pub async fn serve(listener: TcpListener, admin: Rc<AdminContext>) {
    let listener = ClientListener::Tcp(listener);
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
        let (stream, peer) = listener::accept(&listener, &admin.metrics.accept_failures).await;
        serve_connection(stream, AdminPeer::Tcp(peer.ip()), Rc::clone(&admin), permit);
    }
}

/// Serves connections to the Unix socket until the task is dropped. They have permits of their own: connections to the
/// TCP listener cannot keep operators out.
pub async fn serve_socket(listener: UnixListener, admin: Rc<AdminContext>) {
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
        match listener.accept().await.and_then(|(stream, _)| Ok((stream.peer_cred()?, stream))) {
            Ok((peer, stream)) => {
                let pid = peer.pid().and_then(|pid| u32::try_from(pid).ok()).filter(|pid| *pid > 0);
                serve_connection(stream, AdminPeer::Process { uid: peer.uid(), pid }, Rc::clone(&admin), permit);
            }
            // SECURITY: a client without credentials is not served, as the audit log could not name it.
            Err(error) => {
                admin.metrics.accept_failures.inc();
                warn!(%error, "cannot accept connections to the admin socket; retrying");
                tokio::time::sleep(ACCEPT_RETRY_DELAY).await;
            }
        }
    }
}

fn serve_connection(
    stream: impl AsyncRead + AsyncWrite + Unpin + 'static,
    peer: AdminPeer,
    admin: Rc<AdminContext>,
    permit: OwnedSemaphorePermit,
) {
    tokio::task::spawn_local(async move {
        let respond = |request: Request<Incoming>| {
            let admin = &admin;
            async move { Ok::<_, Infallible>(routes::respond(request, peer, admin).await) }
        };
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .serve_connection(TokioIo::new(stream), service_fn(respond));
        // A client that disconnects is not an error.
        let _ = connection.await;
        drop(permit);
    });
}

/// Copies the status of the backends into the metrics.
fn update_upstream_metrics(admin: &AdminContext) {
    let status = UpstreamStatus::of_all(&admin.snapshot.get().upstreams);
    let metrics = &admin.metrics.upstreams;
    metrics.clear();
    for endpoint in &status.endpoints {
        metrics.add_endpoint(endpoint.names(), endpoint.is_usable(), &endpoint.counts);
    }
    for endpoint in &status.removed {
        metrics.add_connections(endpoint.names(), &endpoint.counts);
    }
    for name in &status.names {
        metrics.add_lookup_failures(&name.upstream, &name.host, name.failures);
    }
}
