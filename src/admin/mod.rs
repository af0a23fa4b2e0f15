//! The listener for operators: whether the process lives, whether it wants requests, what it counts, and, for who is on
//! this machine, its tokens.

mod access;
mod api;
mod commands;
pub mod control;
pub mod dashboard;
pub mod health;
mod rejections;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;

use crate::admin::control::ControlHandle;
use crate::base::current::Current;
use crate::downstream::listener;
use crate::gateway::recent_rejections::RecentRejections;
use crate::gateway::snapshot::Snapshot;
use crate::observability::metrics::{EndpointMetrics, ExpositionFormat, Metrics};
use crate::upstream::EndpointStatus;

use dashboard::{Dashboard, EventStream};
use health::{ProbeResult, ProcessHealth};

/// Probes come seconds apart; what holds a connection for longer is none.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// More connections than that at once are no probes.
const MAX_CONNECTIONS: usize = 64;

/// What operators are told of, and what they can order.
pub struct AdminContext {
    /// Whether all is well.
    pub health: ProcessHealth,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// The active configuration with its components.
    pub snapshot: Current<Arc<Snapshot>>,
    /// Why requests were refused lately.
    pub recent_rejections: Arc<RecentRejections>,
    /// Ends and reloads the gateway.
    pub control: ControlHandle,
    /// The page.
    pub dashboard: Dashboard,
}

/// What answers are made of.
pub type AdminBody = Either<Full<Bytes>, EventStream>;

/// Answers until the task is dropped. Runs on a `LocalSet`.
pub async fn serve(listener: TcpListener, admin: Rc<AdminContext>) {
    let places = Arc::new(tokio::sync::Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let (stream, peer) = listener::accept(&listener, &admin.metrics.accept_failures).await;
        let admin = Rc::clone(&admin);
        tokio::task::spawn_local(async move {
            let answer = |request: Request<Incoming>| {
                let admin = &admin;
                async move {
                    Ok::<_, Infallible>(match api::AdminCommand::from_path(request.uri().path()) {
                        Some(verb) => api::respond(verb, request, peer, admin).await,
                        None => respond(&request, peer, admin),
                    })
                }
            };
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT)
                .serve_connection(TokioIo::new(stream), service_fn(answer));
            // A probe that goes away is nobody's concern.
            let _ = connection.await;
            drop(place);
        });
    }
}

fn respond(request: &Request<Incoming>, peer: SocketAddr, admin: &AdminContext) -> Response<AdminBody> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut response = text_response(StatusCode::METHOD_NOT_ALLOWED, "GET or HEAD");
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    let (path, query) = (request.uri().path(), request.uri().query());
    if let Some(ProbeResult { is_healthy: is_well, text }) = admin.health.probe(path, query) {
        return self::text_response(
            if is_well { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE },
            &text,
        );
    }
    if dashboard::is_dashboard_path(path)
        && let Err((status, why)) = access::authorize_read(request, peer)
    {
        return self::text_response(status, &why);
    }
    if let Some(response) = dashboard::respond(path, admin) {
        return response;
    }
    match path {
        "/metrics" => {
            update_upstream_metrics(admin);
            let accept = request.headers().get(ACCEPT).and_then(|value| value.to_str().ok());
            let format = ExpositionFormat::from_accept(accept.unwrap_or_default());
            let mut response = text_response(StatusCode::OK, "");
            *response.body_mut() = Either::Left(Full::new(Bytes::from(admin.metrics.encode(format))));
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(format.content_type()));
            response
        }
        _ => text_response(
            StatusCode::NOT_FOUND,
            "here are /livez, /readyz, /startupz, /metrics and, on this machine, /, /overview, /events, /tokens, \
             /tokens/revoke, /salts, /upstreams, /refusals, /explain/REQUEST_ID, \
             /reload, /drain, /quit and /log-level",
        ),
    }
}

/// Has the metrics say how the backends are now.
fn update_upstream_metrics(admin: &AdminContext) {
    let status = admin.snapshot.get().backends.status();
    let line = |endpoint: EndpointStatus| EndpointMetrics {
        is_usable: endpoint.is_usable(),
        backend: endpoint.authority,
        address: endpoint.address,
        in_flight: endpoint.in_flight,
        open_connections: endpoint.open,
        responses: endpoint.answers,
        failures: endpoint.failures,
        ejections: endpoint.ejections,
    };
    let lines: Vec<_> = status.endpoints.into_iter().map(line).collect();
    let names: Vec<_> = status.names.into_iter().map(|name| (name.host, name.failures)).collect();
    admin.metrics.upstreams.update(&lines, &names);
}

fn text_response(status: StatusCode, line: &str) -> Response<AdminBody> {
    let mut response = Response::new(Either::Left(Full::new(Bytes::from(format!("{line}\n")))));
    *response.status_mut() = status;
    let fields = response.headers_mut();
    fields.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    fields.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
