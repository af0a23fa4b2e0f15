//! Pingora with the gateway's whole job: check the content type, look up the user of the key in a map, add the headers that
//! the gateway adds, write a line of JSON to a pipe, forward over persistent connections.
//!
//!     pingora-peer PLAIN_ADDRESS TLS_ADDRESS UPSTREAM CERTIFICATE KEY KEYS_FILE THREADS

use std::collections::HashMap;
use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use bytes::Bytes;
use http::HeaderValue;
use pingora_core::listeners::tls::TlsSettings;
use pingora_core::server::Server;
use pingora_core::server::configuration::ServerConf;
use pingora_core::upstreams::peer::HttpPeer;
use pingora_core::{Error, Result};
use pingora_http::{RequestHeader, ResponseHeader};
use pingora_proxy::{ProxyHttp, Session, http_proxy_service};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const REJECTION: &[u8] = br#"{"status":"error","data":"The key is missing or not known."}"#;

/// As the gateway's log.
const LOG_INTERVAL: Duration = Duration::from_millis(10);

struct Proxy {
    users: HashMap<Vec<u8>, HeaderValue, ahash::RandomState>,
    upstream: HttpPeer,
    log: Arc<Mutex<Vec<u8>>>,
}

struct RequestContext {
    started: Instant,
    request_id: HeaderValue,
    traceparent: HeaderValue,
    user: Option<HeaderValue>,
    head_after: Option<Duration>,
}

fn header_value(text: String) -> HeaderValue {
    HeaderValue::try_from(text).expect("printable")
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

#[async_trait]
impl ProxyHttp for Proxy {
    type CTX = RequestContext;

    fn new_ctx(&self) -> RequestContext {
        let id = format!("{:032x}", fastrand::u128(..));
        RequestContext {
            started: Instant::now(),
            traceparent: header_value(format!("00-{id}-{:016x}-01", fastrand::u64(..))),
            request_id: header_value(id),
            user: None,
            head_after: None,
        }
    }

    /// Returns true if the request was rejected here.
    async fn request_filter(&self, session: &mut Session, context: &mut RequestContext) -> Result<bool> {
        let headers = &session.req_header().headers;
        let is_json =
            headers.get("content-type").is_some_and(|value| value.as_bytes().starts_with(b"application/json"));
        context.user = headers.get("x-api-key").and_then(|key| self.users.get(key.as_bytes())).cloned();
        let status = match (is_json, &context.user) {
            (true, Some(_)) => return Ok(false),
            (true, None) => 401,
            (false, _) => 415,
        };
        let mut head = ResponseHeader::build(status, Some(4))?;
        head.insert_header("content-type", "application/json")?;
        head.insert_header("content-length", REJECTION.len())?;
        head.insert_header("x-request-id", context.request_id.clone())?;
        // Without this it would close the connection.
        session.drain_request_body().await?;
        session.write_response_header(Box::new(head), false).await?;
        session.write_response_body(Some(Bytes::from_static(REJECTION)), true).await?;
        Ok(true)
    }

    async fn upstream_peer(&self, _: &mut Session, _: &mut RequestContext) -> Result<Box<HttpPeer>> {
        Ok(Box::new(self.upstream.clone()))
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        head: &mut RequestHeader,
        context: &mut RequestContext,
    ) -> Result<()> {
        let client =
            session.client_addr().and_then(|address| address.as_inet()).map(|address| address.ip().to_string());
        let is_tls = session.digest().is_some_and(|digest| digest.ssl_digest.is_some());
        let authority = || head.uri.authority().and_then(|authority| authority.as_str().parse().ok());
        if let Some(host) = head.headers.get("host").cloned().or_else(authority) {
            head.insert_header("x-forwarded-host", host)?;
        }
        if let Some(user) = &context.user {
            head.insert_header("x-forwarded-user", user.clone())?;
        }
        head.insert_header("x-forwarded-for", client.unwrap_or_default())?;
        head.insert_header("x-forwarded-proto", if is_tls { "https" } else { "http" })?;
        head.insert_header("x-request-id", context.request_id.clone())?;
        head.insert_header("traceparent", context.traceparent.clone())
    }

    async fn response_filter(
        &self,
        _: &mut Session,
        head: &mut ResponseHeader,
        context: &mut RequestContext,
    ) -> Result<()> {
        context.head_after = Some(context.started.elapsed());
        head.insert_header("x-request-id", context.request_id.clone())
    }

    async fn logging(&self, session: &mut Session, error: Option<&Error>, context: &mut RequestContext) {
        let head = session.req_header();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let id = context.request_id.to_str().unwrap_or_default();
        let _ = writeln!(
            self.log.lock().expect("no thread panics"),
            r#"{{"timestamp":{}.{:06},"target":"access","request_id":"{id}","trace_id":"{id}","protocol":"{:?}","client":"{}","method":"{}","path":{:?},"user":"{}","status":{},"received":{},"sent":{},"complete":{},"head_ms":{:.3},"total_ms":{:.3}}}"#,
            now.as_secs(),
            now.subsec_micros(),
            head.version,
            session.client_addr().map(ToString::to_string).unwrap_or_default(),
            head.method,
            head.uri.path(),
            context.user.as_ref().and_then(|user| user.to_str().ok()).unwrap_or_default(),
            session.response_written().map_or(0, |head| head.status.as_u16()),
            session.body_bytes_read(),
            session.body_bytes_sent(),
            error.is_none(),
            milliseconds(context.head_after.unwrap_or_default()),
            milliseconds(context.started.elapsed()),
        );
    }
}

/// Writes the lines that have gathered, many at a time.
fn write_log(log: &Mutex<Vec<u8>>) {
    let mut lines = Vec::new();
    loop {
        thread::sleep(LOG_INTERVAL);
        std::mem::swap(&mut *log.lock().expect("no thread panics"), &mut lines);
        std::io::stderr().write_all(&lines).expect("the log is read");
        lines.clear();
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments == ["--version"] {
        println!("{}", env!("CARGO_PKG_VERSION"));
        return;
    }
    let [plain, tls, upstream, certificate, key, keys_file, threads] = &arguments[..] else {
        panic!("usage: pingora-peer PLAIN_ADDRESS TLS_ADDRESS UPSTREAM CERTIFICATE KEY KEYS_FILE THREADS");
    };
    let keys = std::fs::read_to_string(keys_file).expect("the file of keys");
    let user = |(number, key): (usize, &str)| (key.as_bytes().to_vec(), header_value(format!("user{number}")));
    let users = keys.lines().enumerate().map(user).collect();
    let address: SocketAddr = upstream.parse().expect("an address");
    let mut upstream = HttpPeer::new(address, false, String::new());
    upstream.options.idle_timeout = Some(Duration::from_secs(600));
    let log = Arc::default();
    let lines = Arc::clone(&log);
    thread::spawn(move || write_log(&lines));

    let configuration = ServerConf {
        threads: threads.parse().expect("a number"),
        work_stealing: false,
        upstream_keepalive_pool_size: 512,
        grace_period_seconds: Some(0),
        graceful_shutdown_timeout_seconds: Some(1),
        ..ServerConf::default()
    };
    let mut server = Server::new_with_opt_and_conf(None, configuration);
    server.bootstrap();
    let mut service = http_proxy_service(&server.configuration, Proxy { users, upstream, log });
    let mut settings = TlsSettings::intermediate(certificate, key).expect("the certificate and its key");
    settings.enable_h2();
    service.add_tcp(plain);
    service.add_tls_with_settings(tls, None, settings);
    server.add_service(service);
    server.run_forever();
}
