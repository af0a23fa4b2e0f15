//! Requests whose clients leave: what the backend still gets, and how long they count.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::frames::{DATA, END_HEADERS, END_STREAM, Frames, HEADERS, RST_STREAM, frame, good_head};
use crate::support::gateway::Gateway;
use crate::support::upstream::{AfterRequest, Upstream, respond, write};
use crate::support::wait_until;

use super::{JSON, endpoint, gateway};

const QUERY: &str = "POST /timbr/api/x";
const PROCESSING_TIME: Duration = Duration::from_millis(300);

/// A backend that does not notice when its client leaves, as a WSGI server: it is busy with a request from the head to
/// the end of the response, or until it reads the end of the connection.
struct BusyBackend {
    address: SocketAddr,
    now: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
}

impl BusyBackend {
    fn start() -> BusyBackend {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        let address = listener.local_addr().expect("an address");
        let (now, most) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let backend = BusyBackend { address, now: Arc::clone(&now), most: Arc::clone(&most) };
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (Ok(stream), now, most) = (stream, Arc::clone(&now), Arc::clone(&most)) else { return };
                thread::spawn(move || serve_busily(stream, &now, &most));
            }
        });
        backend
    }

    fn most(&self) -> usize {
        self.most.load(Ordering::SeqCst)
    }
}

fn serve_busily(mut stream: TcpStream, now: &AtomicUsize, most: &AtomicUsize) {
    loop {
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            let Ok(1) = stream.read(&mut byte) else { return };
            head.push(byte[0]);
        }
        most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        let served = serve_one(&mut stream, &String::from_utf8_lossy(&head).to_ascii_lowercase());
        now.fetch_sub(1, Ordering::SeqCst);
        // The response ends after the count: with the next one, the gateway may send the next request.
        if served.and_then(|()| stream.write_all(b"}")).is_err() {
            return;
        }
    }
}

/// Sends the response except for its last byte.
fn serve_one(stream: &mut TcpStream, head: &str) -> std::io::Result<()> {
    let length = head.split("content-length: ").nth(1).and_then(|rest| rest.split('\r').next()?.parse().ok());
    stream.read_exact(&mut vec![0; length.unwrap_or_default()])?;
    let extra = if head.contains("/large") { 300_000 } else { 0 };
    if extra == 0 {
        thread::sleep(PROCESSING_TIME);
    }
    let length = extra + 2;
    write!(stream, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n")?;
    if extra > 0 {
        thread::sleep(PROCESSING_TIME);
    }
    stream.write_all(&[b"{".to_vec(), vec![b' '; extra]].concat())
}

/// What a client does again and again, each time on a new connection or stream.
type Abuse = fn(&Gateway, &str, Instant);

fn request_head(path: &str, token: &str, length: usize) -> String {
    format!(
        "POST /timbr/api/{path} HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nx-api-key: {token}\r\n\
         Content-Length: {length}\r\n\r\n"
    )
}

fn leave_after(gateway: &Gateway, head: &str, body: &[u8], pause: Duration, until: Instant) {
    while Instant::now() < until {
        let mut client = TcpStream::connect(gateway.http()).expect("connected");
        // The gateway may reject the request and close.
        let _ = client.write_all(head.as_bytes()).and_then(|()| client.write_all(body));
        thread::sleep(pause);
    }
}

fn leave_over_http1(gateway: &Gateway, token: &str, until: Instant) {
    leave_after(gateway, &request_head("x", token, 2), b"{}", Duration::from_millis(5), until);
}

fn reset_over_http2(gateway: &Gateway, token: &str, until: Instant) {
    while Instant::now() < until {
        let mut frames = Frames::connect(gateway.https(), gateway.certificate_pem());
        for stream in (1..400).step_by(2) {
            let opened = [
                frame(HEADERS, END_HEADERS, stream, &good_head("POST", "/timbr/api/x", token)),
                frame(DATA, END_STREAM, stream, b"{}"),
            ];
            if Instant::now() > until || !frames.send(&opened.concat()) {
                break;
            }
            thread::sleep(Duration::from_millis(3));
            if !frames.send(&frame(RST_STREAM, 0, stream, &8u32.to_be_bytes())) {
                break;
            }
        }
    }
}

fn leave_within_upload(gateway: &Gateway, token: &str, until: Instant) {
    let body = vec![b' '; 100_000];
    leave_after(gateway, &request_head("x", token, 200_000), &body, Duration::from_millis(10), until);
}

fn leave_within_response(gateway: &Gateway, token: &str, until: Instant) {
    leave_after(gateway, &request_head("large", token, 2), b"{}", Duration::from_millis(50), until);
}

fn hold_uploads(gateway: &Gateway, token: &str, until: Instant) {
    let mut held = Vec::new();
    while Instant::now() < until && held.len() < 100 {
        let mut client = TcpStream::connect(gateway.http()).expect("connected");
        client.write_all(request_head("x", token, 100).as_bytes()).expect("sent");
        held.push(client);
    }
    thread::sleep(until.saturating_duration_since(Instant::now()));
}

/// Documented in `docs/attacks.md`, with the numbers that this test checks.
const PATTERNS: [(&str, Abuse); 5] = [
    ("HTTP/1.1: send a query and disconnect after 5 ms", leave_over_http1),
    ("HTTP/2: send a query and reset its stream after 3 ms", reset_over_http2),
    ("disconnect within an upload of 200 kB", leave_within_upload),
    ("disconnect within a response", leave_within_response),
    ("announce a body and do not send it, 100 times", hold_uploads),
];

/// For the limit on all requests, the limit on the requests of one user, and the limit on those of each endpoint, with the
/// number of endpoints.
const LIMITS: [(&str, usize, usize); 3] =
    [("UPSTREAM_REQUESTS", 4, 1), ("LIMITS_REQUESTS_PER_IDENTITY", 6, 1), ("UPSTREAM_REQUESTS_PER_ENDPOINT", 2, 2)];

#[test]
fn the_backend_never_gets_more_than_the_limit_whatever_clients_do() {
    let document = std::fs::read_to_string("docs/attacks.md").expect("read");
    for (pattern, abuse) in PATTERNS {
        let seen = LIMITS.map(|(option, limit, endpoints)| {
            let limit_text = limit.to_string();
            let backends: Vec<_> = (0..endpoints).map(|_| BusyBackend::start()).collect();
            let addresses: Vec<_> = backends.iter().map(|backend| backend.address).collect();
            let gateway = gateway(&addresses, &[(option, limit_text.as_str()), ("LIMITS_BODY_RATE", "1B")]);
            let (alice, bob) = (gateway.token(), gateway.token_of("bob", "secret"));
            let until = Instant::now() + Duration::from_millis(1200);
            thread::scope(|scope| {
                scope.spawn(|| abuse(&gateway, &alice, until));
                thread::sleep(Duration::from_millis(600));
                let served = gateway.client().send(QUERY, &[JSON, ("x-api-key", &bob)], b"{}");
                assert_eq!(served.status, 200, "{pattern}: another user is not served with {option}");
            });
            gateway.expect_metric("timbr_gateway_requests_in_flight", 0.0);
            for address in addresses {
                wait_until("no request counts", || endpoint(&gateway, address)["in_flight"] == 0);
            }
            wait_until("no backend is busy", || backends.iter().all(|one| one.now.load(Ordering::SeqCst) == 0));
            // The other user has one more request where the limit is for each user.
            let allowed = limit + usize::from(option == "LIMITS_REQUESTS_PER_IDENTITY");
            let most = backends.iter().map(BusyBackend::most).max().expect("at least one");
            assert!(most <= allowed, "{pattern}: {most} requests with {option}={limit}");
            most
        });
        println!("{pattern}: {seen:?}");
        let row = document.lines().find_map(|line| line.strip_prefix(&format!("| {pattern} | ")));
        let row = row.unwrap_or_else(|| panic!("docs/attacks.md has no line for: {pattern}"));
        let documented: Vec<usize> = row.split(" |").filter_map(|number| number.trim().parse().ok()).collect();
        assert!(
            seen.iter().zip(&documented).all(|(seen, most)| seen <= most),
            "{pattern}: {seen:?}, not {documented:?}"
        );
        assert_eq!(documented.len(), seen.len(), "{row}");
    }
}

/// Holds each request until its client closes its direction, and counts those.
fn watching() -> (Upstream, Arc<AtomicUsize>) {
    let noticed = Arc::<AtomicUsize>::default();
    let count = Arc::clone(&noticed);
    let upstream = Upstream::with_behaviour(move |request, stream| {
        if request.line.contains("/quick") {
            return respond(stream, 200, "{}");
        }
        if matches!(stream.read(&mut [0]), Ok(0)) {
            count.fetch_add(1, Ordering::SeqCst);
        }
        AfterRequest::Close
    });
    (upstream, noticed)
}

#[test]
fn a_backend_that_watches_notices_that_the_client_has_left() {
    for policy in ["half-close", "close"] {
        let (upstream, noticed) = watching();
        let options = [("UPSTREAM_ABANDONED", policy), ("UPSTREAM_REQUESTS", "1")];
        let (gateway, token) = Gateway::with_token(upstream.address(), &options);
        let client = gateway.begin(QUERY, &[JSON, ("x-api-key", &token)], b"{}");
        wait_until("the request has arrived", || upstream.log().len() == 1);
        drop(client);
        wait_until("the backend notices it", || noticed.load(Ordering::SeqCst) == 1);
        let quick = gateway.client().send("POST /timbr/api/quick", &[JSON, ("x-api-key", &token)], b"{}");
        assert_eq!(quick.status, 200, "{policy}: the slot is free");
        let shown = endpoint(&gateway, upstream.address());
        assert_eq!((shown["abandonments"].as_u64(), shown["abandoned"].as_u64()), (Some(1), Some(0)), "{shown}");
    }
}

#[test]
fn an_abandoned_request_counts_for_its_caller_and_blocks_no_other_one() {
    let is_open = Arc::<AtomicBool>::default();
    let open = Arc::clone(&is_open);
    let upstream = Upstream::with_behaviour(move |request, stream| {
        if !request.line.contains("/quick") {
            wait_until("it may respond", || open.load(Ordering::SeqCst));
        }
        respond(stream, 200, "{}")
    });
    let options = [("LIMITS_REQUESTS_PER_IDENTITY", "1"), ("LIMITS_REQUESTS", "1")];
    let gateway = Gateway::start(upstream.address(), &options);
    let (alice, bob) = (gateway.token(), gateway.token_of("bob", "secret"));
    let client = gateway.begin(QUERY, &[JSON, ("x-api-key", &alice)], b"{}");
    wait_until("the request has arrived", || upstream.log().len() == 1);
    gateway.expect_metric("timbr_gateway_requests_in_flight", 1.0);
    drop(client);
    let labels = format!("{{upstream=\"default\",backend=\"{0}\",address=\"{0}\"}}", upstream.address());
    gateway.expect_metric(&format!("timbr_gateway_upstream_requests_abandoned{labels}"), 1.0);
    let quick = |token: &str| gateway.client().send("POST /timbr/api/quick", &[JSON, ("x-api-key", token)], b"{}");
    assert_eq!(quick(&alice).rejection(), (429, "too_many_requests".into()));
    gateway.expect_metric("timbr_gateway_requests_in_flight", 0.0);
    assert_eq!(quick(&bob).status, 200, "limits.requests is free");
    is_open.store(true, Ordering::SeqCst);
    gateway.expect_metric(&format!("timbr_gateway_upstream_requests_abandoned{labels}"), 0.0);
    assert_eq!(gateway.metric(&format!("timbr_gateway_upstream_abandonments_total{labels}")), 1.0);
    assert_eq!(quick(&alice).status, 200);
    gateway.expect_metric("timbr_gateway_requests_in_flight", 0.0);
}

#[test]
fn an_abandoned_request_counts_at_most_for_the_response_timeout() {
    let upstream = Upstream::with_behaviour(|_, _| {
        thread::sleep(Duration::from_secs(30));
        AfterRequest::Close
    });
    let (gateway, token) = Gateway::with_token(upstream.address(), &[("UPSTREAM_RESPONSE_TIMEOUT", "500ms")]);
    let client = gateway.begin(QUERY, &[JSON, ("x-api-key", &token)], b"{}");
    wait_until("the request has arrived", || upstream.log().len() == 1);
    drop(client);
    let abandoned = || endpoint(&gateway, upstream.address())["abandoned"].as_u64();
    wait_until("it is abandoned", || abandoned() == Some(1));
    wait_until("it is not counted any longer", || abandoned() == Some(0));
    gateway.expect_metric("timbr_gateway_requests_in_flight", 0.0);
}

/// The backend works on a slow report for as long as its route allows, whatever other routes allow.
#[test]
fn an_abandoned_request_counts_for_the_response_timeout_of_its_route() {
    let upstream = Upstream::with_behaviour(|_, _| {
        thread::sleep(Duration::from_secs(30));
        AfterRequest::Close
    });
    let file = "routes:\n  - {name: slow, prefix: /reports, response_timeout: 1h}\n";
    let gateway = Gateway::start_with_file(upstream.address(), file, &[("UPSTREAM_RESPONSE_TIMEOUT", "100ms")]);
    let token = gateway.token();
    let client = gateway.begin("GET /reports/x", &[JSON, ("x-api-key", &token)], b"");
    wait_until("the request has arrived", || upstream.log().len() == 1);
    drop(client);
    let abandoned = || endpoint(&gateway, upstream.address())["abandoned"].as_u64();
    wait_until("it is abandoned", || abandoned() == Some(1));
    thread::sleep(Duration::from_secs(1));
    assert_eq!(abandoned(), Some(1), "it still counts after ten times the timeout of other routes");
}

/// A client that does not read its response holds its own connection, but not the backend.
#[test]
fn a_slot_is_free_when_the_backend_has_finished() {
    let upstream = Upstream::with_behaviour(|_, stream| {
        let body = format!("{{\"a\":\"{}\"}}", "x".repeat(20_000));
        respond(stream, 200, &body)
    });
    let (gateway, token) =
        Gateway::with_token(upstream.address(), &[("UPSTREAM_REQUESTS", "1"), ("UPSTREAM_QUEUE_TIMEOUT", "2s")]);
    let slow: Vec<_> = (0..5).map(|_| gateway.begin(QUERY, &[JSON, ("x-api-key", &token)], b"{}")).collect();
    wait_until("all are served", || upstream.log().len() == 5);
    drop(slow);
}

/// The backend stops a response that no client reads, and the gateway does not read it to its end.
#[test]
fn an_endless_response_of_an_abandoned_request_ends() {
    let ended = Arc::<AtomicUsize>::default();
    let count = Arc::clone(&ended);
    let upstream = Upstream::with_behaviour(move |_, stream| {
        write(stream, b"HTTP/1.1 200 OK\r\nContent-Length: 100000000000\r\n\r\n");
        while stream.write_all(&[b' '; 64 * 1024]).is_ok() {}
        count.fetch_add(1, Ordering::SeqCst);
        AfterRequest::Close
    });
    let (gateway, token) = Gateway::with_token(upstream.address(), &[("UPSTREAM_REQUESTS", "1")]);
    let mut client = gateway.begin(QUERY, &[JSON, ("x-api-key", &token)], b"{}");
    assert_eq!(client.read_head().expect("a response").status, 200);
    drop(client);
    wait_until("the backend notices it", || ended.load(Ordering::SeqCst) == 1);
    gateway.expect_metric("timbr_gateway_requests_in_flight", 0.0);
}
