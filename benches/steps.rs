//! Time and allocations of single steps of the request path.
//!
//! `cargo bench --bench steps NAME` runs the steps whose name contains NAME. `make instructions` counts the
//! instructions of a complete request, and `make bench` compares its CPU time with nginx and HAProxy.

use std::future::Future;
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use divan::{AllocProfiler, Bencher};
use http::{Method, Version};
use timbr_gateway::auth::{Auth, bearer};
use timbr_gateway::base::clock::Clock;
use timbr_gateway::base::secret::Secret;
use timbr_gateway::config::{Config, Sources, load};
use timbr_gateway::gateway::route::{RouteMatch, RouteTable};
use timbr_gateway::gateway::screen::screen;
use timbr_gateway::http::h1::head::{HeadLimits, HeadScanner};
use timbr_gateway::http::h1::request::parse_request;
use timbr_gateway::http::h1::response::{Persistence, ResponseFraming, ResponseHead, parse_response, write_response};
use timbr_gateway::http::headers::Head;
use timbr_gateway::label;
use timbr_gateway::observability::auth_timing::AuthTiming;
use timbr_gateway::observability::log::{LogFormat, LogRecord};
use timbr_gateway::observability::metrics::Metrics;
use timbr_gateway::store::TokenId;
use timbr_gateway::upstream::{Backends, UpstreamClient};

#[global_allocator]
static ALLOCATIONS: AllocProfiler = AllocProfiler::system();

const LIMITS: HeadLimits = HeadLimits { max_headers: 100, max_bytes: 32 * 1024 };
const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const KEY: &str = "k-00112233445566778899aabbccddeeff";

/// A query as the Python library `requests` sends it.
const REQUEST: &str = "POST /timbr/openapi/ontology/sales/query HTTP/1.1\r\nHost: gateway.example.com\r\n\
    User-Agent: python-requests/2.32.5\r\nAccept-Encoding: gzip, deflate\r\nAccept: */*\r\nConnection: keep-alive\r\n\
    Content-Type: application/json\r\nx-api-key: k-00112233445566778899aabbccddeeff\r\nContent-Length: 200\r\n\r\n";

/// A response as gunicorn sends it.
const RESPONSE: &str = "HTTP/1.1 200 OK\r\nServer: gunicorn\r\nDate: Tue, 24 Nov 2026 00:00:00 GMT\r\n\
    Connection: keep-alive\r\nContent-Type: application/json\r\nContent-Length: 300\r\n\r\n";

fn main() {
    // Large samples, because one step takes less time than the clock can resolve.
    divan::Divan::from_args().sample_size(100).main();
}

#[divan::bench]
fn find_the_end_of_a_head(bencher: Bencher<'_, '_>) {
    bencher.bench(|| HeadScanner::default().find_end(black_box(REQUEST.as_bytes()), &LIMITS));
}

#[divan::bench]
fn parse_a_request(bencher: Bencher<'_, '_>) {
    bencher.with_inputs(|| REQUEST.into()).bench_values(|head| parse_request(head, &LIMITS));
}

#[divan::bench]
fn find_the_route(bencher: Bencher<'_, '_>) {
    let routes = RouteTable::new(config().routes);
    let head = parsed(REQUEST);
    bencher.bench(|| routes.find(black_box(&head)).is_ok());
}

#[divan::bench]
fn screen_the_headers(bencher: Bencher<'_, '_>) {
    let routes = RouteTable::new(config().routes);
    let head = parsed(REQUEST);
    let Ok(RouteMatch::Profile(profile, _)) = routes.find(&head) else { panic!("the request has a route") };
    bencher.with_inputs(|| parsed(REQUEST)).bench_values(|head| screen(profile, head, true).is_ok());
}

#[divan::bench]
fn hash_a_key(bencher: Bencher<'_, '_>) {
    bencher.bench(|| TokenId::from_token(black_box(KEY.as_bytes())));
}

fn steps() -> AuthTiming {
    AuthTiming::new(Metrics::default().worker())
}

/// A token that the gateway minted: its hash, and the lookup in the store.
#[divan::bench]
fn identify_a_token(bencher: Bencher<'_, '_>) {
    let config = config();
    let auth = auth(&config);
    let upstream = UpstreamClient::new(backends(&config), 0, Arc::<Metrics>::default());
    let token = poll_ready(auth.mint(&bearer_of_alice(&config), CLIENT, &upstream, &steps())).expect("minted").token;
    let head = parsed(&REQUEST.replace(KEY, token.expose()));
    let routes = RouteTable::new(config.routes.clone());
    let Ok(RouteMatch::Profile(profile, _)) = routes.find(&head) else { panic!("the request has a route") };
    let screened = screen(profile, parsed(&REQUEST.replace(KEY, token.expose())), true).expect("the request is valid");
    let steps = steps();
    bencher.bench_local(|| poll_ready(auth.identify(black_box(screened.credential()), CLIENT, &upstream, &steps)));
}

/// A bearer decrypted, and the existing token of its login returned.
#[divan::bench]
fn mint_a_token_again(bencher: Bencher<'_, '_>) {
    let config = config();
    let auth = auth(&config);
    let upstream = UpstreamClient::new(backends(&config), 0, Arc::<Metrics>::default());
    let bearer = bearer_of_alice(&config);
    let steps = steps();
    bencher.bench_local(|| poll_ready(auth.mint(black_box(&bearer), CLIENT, &upstream, &steps)).expect("minted"));
}

#[divan::bench]
fn parse_a_response(bencher: Bencher<'_, '_>) {
    bencher.with_inputs(|| RESPONSE.into()).bench_values(|head| parse_response(head, &Method::POST));
}

#[divan::bench]
fn write_the_response(bencher: Bencher<'_, '_>) {
    let ResponseHead { status, headers, .. } = parse_response(RESPONSE.into(), &Method::POST).expect("a response");
    let framing = ResponseFraming::choose(&Method::POST, Version::HTTP_11, status, Some(300));
    let mut out = Vec::with_capacity(1024);
    bencher.bench_local(|| {
        out.clear();
        write_response(&mut out, status, &headers, framing, Persistence::Default);
        out.len()
    });
}

/// A few of the fields that `gateway::access_log` writes.
#[divan::bench]
fn format_an_access_line(bencher: Bencher<'_, '_>) {
    bencher.bench(|| {
        let fill = |record: &mut LogRecord<'_>| {
            record.word(label!("request_id"), b"7496242a5a20f5b161b487663c87d61a");
            record.text(label!("path"), black_box("/timbr/openapi/ontology/sales/query"));
            record.number(label!("status"), black_box(200));
            record.millis(label!("total_ms"), black_box(Duration::from_micros(1234)));
        };
        LogRecord::write(LogFormat::Json, "access", fill, |line| {
            black_box(line);
        });
    });
}

fn parsed(request: &str) -> Head {
    parse_request(request.into(), &LIMITS).expect("a request").head
}

fn config() -> Config {
    let environment = [
        ("API_AUTH_SALT", "cw_0x689RpI-jtRR7oE8h_eQsKImvJapLeSbXpwF4e4="),
        ("TIMBR_GATEWAY_UPSTREAM_URL", "http://127.0.0.1:1"),
    ];
    let environment = environment.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
    load(&Sources { environment, ..Sources::default() }).expect("a configuration").0
}

fn backends(config: &Config) -> Arc<Backends> {
    Backends::new(config.upstream.clone(), vec![None], 1)
}

fn auth(config: &Config) -> Auth {
    Auth::new(config, &Clock::system()).expect("no file is named")
}

fn bearer_of_alice(config: &Config) -> String {
    let made = bearer::make_bearer(&config.salts[0], "alice", &Secret::new("wonderland".into()));
    made.expect("the salt is a Fernet key").expose().to_owned()
}

/// The output of a future that is ready on its first poll.
fn poll_ready<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(outcome) => outcome,
        Poll::Pending => panic!("the future is not ready on its first poll"),
    }
}
