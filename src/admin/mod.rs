//! The listener for operators: whether the process lives, whether it wants requests, what it counts, and, for who is on
//! this machine, its tokens.

mod operators;
mod refusals;

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;

use crate::auth::Auth;
use crate::gateway::refusals::Refusals;
use crate::listener;
use crate::metrics::Metrics;
use crate::shutdown::{Phase, Signal};

/// Whether the gateway wants requests: all its workers listen, and it is not about to end.
#[derive(Clone)]
pub struct Readiness {
    waiting_for: Arc<AtomicUsize>,
    signal: Signal,
}

impl Readiness {
    /// Not ready before [`Readiness::one_more`] was called `workers` times.
    pub fn new(workers: usize, signal: Signal) -> Readiness {
        Readiness { waiting_for: Arc::new(AtomicUsize::new(workers)), signal }
    }

    /// A worker listens.
    pub fn one_more(&self) {
        self.waiting_for.fetch_sub(1, Ordering::AcqRel);
    }

    /// `Err` says why not.
    fn check(&self) -> Result<(), &'static str> {
        if self.signal.phase() > Phase::Serving {
            return Err("shutting down");
        }
        if self.waiting_for.load(Ordering::Acquire) > 0 {
            return Err("starting");
        }
        Ok(())
    }
}

/// The media type of what Prometheus reads.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Probes come seconds apart; what holds a connection for longer is none.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// More connections than that at once are no probes.
const MOST_CONNECTIONS: usize = 64;

/// Answers until the task is dropped. Runs on a `LocalSet`.
pub async fn serve(
    listener: TcpListener,
    readiness: Readiness,
    metrics: Arc<Metrics>,
    auth: Arc<Auth>,
    refusals: Arc<Refusals>,
) {
    let places = Arc::new(tokio::sync::Semaphore::new(MOST_CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let (stream, peer) = listener::accept(&listener, &metrics.accept_failures).await;
        let (readiness, metrics, auth) = (readiness.clone(), Arc::clone(&metrics), Arc::clone(&auth));
        let refusals = Arc::clone(&refusals);
        tokio::task::spawn_local(async move {
            let answer = |request: Request<Incoming>| {
                let (readiness, metrics, auth, refusals) = (&readiness, &metrics, &auth, &refusals);
                async move {
                    Ok::<_, Infallible>(match operators::Verb::of(request.uri().path()) {
                        Some(verb) => operators::answer(verb, request, peer, auth, refusals).await,
                        None => answer(&request, readiness, metrics),
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

fn answer(request: &Request<Incoming>, readiness: &Readiness, metrics: &Metrics) -> Response<Full<Bytes>> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "GET or HEAD");
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match request.uri().path() {
        // Alive is who answers here: the thread that supervises all others.
        "/livez" => text(StatusCode::OK, "ok"),
        "/readyz" => match readiness.check() {
            Ok(()) => text(StatusCode::OK, "ok"),
            Err(why) => text(StatusCode::SERVICE_UNAVAILABLE, why),
        },
        "/metrics" => {
            let mut response = text(StatusCode::OK, "");
            *response.body_mut() = Full::new(Bytes::from(metrics.text()));
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(OPEN_METRICS));
            response
        }
        _ => text(
            StatusCode::NOT_FOUND,
            "here are /livez, /readyz, /metrics, /tokens, /tokens/revoke, /salts, /refusals and /explain/REQUEST_ID",
        ),
    }
}

fn text(status: StatusCode, line: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(format!("{line}\n"))));
    *response.status_mut() = status;
    let fields = response.headers_mut();
    fields.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    fields.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
