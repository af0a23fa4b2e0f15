//! An HTTP server that responds like a Timbr platform, with fixed data.

mod data;
mod sql;

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::request::Parts;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Collected, Full, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::LocalSet;

use crate::cli::demo::backend::data::{CONCEPTS, ontologies};

/// A key that the backend itself issued, like that of a platform user.
pub const PLATFORM_KEY: &str = "tk_demo0platform0key";

/// Maximum size of a request body.
const MAX_BODY_BYTES: usize = 1024 * 1024;

/// A backend that runs in a thread until the process exits.
pub struct DemoBackend {
    address: SocketAddr,
}

/// Called with method, path and user of each authenticated request.
type RequestObserver = Box<dyn Fn(&str) + Send>;

struct DemoState {
    on_request: RequestObserver,
    results: HashMap<String, Value>,
}

/// Status code and JSON body.
type DemoResponse = (StatusCode, Value);

impl DemoBackend {
    /// Binds `address` and starts the thread.
    pub fn start(address: SocketAddr, on_request: impl Fn(&str) + Send + 'static) -> io::Result<DemoBackend> {
        let listener = std::net::TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let state = DemoState { on_request: Box::new(on_request), results: HashMap::new() };
        let state = Arc::new(Mutex::new(state));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let serving = move || LocalSet::new().block_on(&runtime, serve(listener, state));
        thread::Builder::new().name("demo-backend".to_owned()).spawn(serving)?;
        Ok(DemoBackend { address })
    }

    /// The bound address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

async fn serve(listener: std::net::TcpListener, state: Arc<Mutex<DemoState>>) {
    let Ok(listener) = TcpListener::from_std(listener) else { return };
    while let Ok((stream, _)) = listener.accept().await {
        let state = Arc::clone(&state);
        let service = service_fn(move |request: Request<Incoming>| {
            let state = Arc::clone(&state);
            async move { Ok::<_, Infallible>(respond(request, &state).await) }
        });
        tokio::task::spawn_local(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    }
}

async fn respond(request: Request<Incoming>, state: &Mutex<DemoState>) -> Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    let body = Limited::new(body, MAX_BODY_BYTES).collect().await.map(Collected::to_bytes).unwrap_or_default();
    // A client that leaves ends the statement, as this future is dropped.
    tokio::time::sleep(sql::duration(&String::from_utf8_lossy(&body))).await;
    let mut state = state.lock();
    let (status, body) = match authenticate(&head) {
        Some(user) => {
            (state.on_request)(&format!("{} {} as {user}", head.method, head.uri.path()));
            route(&head, &body, &mut state.results)
        }
        None => error(StatusCode::UNAUTHORIZED, "unknown token"),
    };
    let mut response = Response::new(Full::new(Bytes::from(body.to_string())));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// Trusts the user name sent by the gateway, as the backend of a sidecar on the loopback address may.
fn authenticate(head: &Parts) -> Option<String> {
    let header = |name| head.headers.get(name).and_then(|value| value.to_str().ok());
    match (header("x-forwarded-user"), header("x-api-key").or(header("authorization"))) {
        (Some(user), Some(_)) => Some(user.to_owned()),
        (None, Some(PLATFORM_KEY)) => Some("platform-user".to_owned()),
        _ => None,
    }
}

fn route(head: &Parts, body: &[u8], results: &mut HashMap<String, Value>) -> DemoResponse {
    let path = head.uri.path().trim_end_matches('/');
    let segments: Vec<&str> = path.split('/').skip(2).collect();
    match (&head.method, &*segments) {
        (&Method::GET, ["api", "get_ontologies"]) => success(ontologies().into()),
        (&Method::POST, ["api", "query"]) => {
            let query: Value = serde_json::from_slice(body).unwrap_or_default();
            match (query["ontology_name"].as_str(), query["query"].as_str()) {
                (Some(ontology), Some(text)) => query_response(sql::run(ontology, text)),
                _ => error(StatusCode::BAD_REQUEST, "send {\"ontology_name\": …, \"query\": …}"),
            }
        }
        (&Method::POST, ["api", "get_ontology", name]) => success(
            CONCEPTS
                .iter()
                .filter(|c| c.ontology == *name)
                .map(|c| json!({"concept": c.name, "columns": c.columns}))
                .collect(),
        ),
        (&Method::GET, ["api", "q", ontology, "concept", concept]) => {
            query_response(sql::run(ontology, &format!("select * from {concept}")))
        }
        (&Method::POST, ["openapi", "ontology", ontology, "query"]) => {
            let rows = sql::run(ontology, &String::from_utf8_lossy(body));
            let wait = head.headers.get("x-async").is_some_and(|value| value == "true");
            match rows {
                Ok(rows) if wait => {
                    let id = format!("{:016x}", fastrand::u64(..));
                    results.insert(id.clone(), rows.into());
                    (StatusCode::ACCEPTED, json!({"status": "running", "response_id": id}))
                }
                Ok(rows) => (StatusCode::OK, rows.into()),
                Err(message) => error(StatusCode::BAD_REQUEST, &message),
            }
        }
        (&Method::GET, ["openapi", "get-async-results", id]) => match results.remove(*id) {
            Some(rows) => {
                (StatusCode::OK, json!({"status": "completed", "response": rows, "original_status_code": 200}))
            }
            None => error(StatusCode::NOT_FOUND, "unknown result, or already fetched"),
        },
        _ => error(StatusCode::NOT_FOUND, "unknown endpoint of the demo backend"),
    }
}

fn query_response(rows: Result<Vec<Value>, String>) -> DemoResponse {
    match rows {
        Ok(rows) => success(rows.into()),
        Err(message) => error(StatusCode::BAD_REQUEST, &message),
    }
}

#[allow(clippy::needless_pass_by_value, reason = "callers construct the value for this call")]
fn success(data: Value) -> DemoResponse {
    (StatusCode::OK, json!({"status": "success", "data": data}))
}

fn error(status: StatusCode, message: &str) -> DemoResponse {
    (status, json!({"status": "error", "data": message}))
}
