//! Limits over HTTP/1.1 and HTTP/2, and their metrics.

use std::io::{Read, Write};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::client::{Client, JSON};
use crate::support::gateway::{Gateway, setup};
use crate::support::h2_client::{H2Client, tls_stream};
use crate::support::upstream::{Upstream, respond};
use crate::support::wait_until;

const X: &str = "GET /timbr/api/x";

fn h2(gateway: &Gateway) -> H2Client {
    H2Client::connect(gateway.https(), gateway.certificate_pem())
}

/// Responds after a delay.
fn slow_upstream() -> Upstream {
    Upstream::with_behaviour(|_, stream| {
        thread::sleep(Duration::from_millis(600));
        respond(stream, 200, "{}")
    })
}

fn ended(cause: &str) -> String {
    format!("timbr_gateway_connections_ended_total{{cause=\"{cause}\"}}")
}

fn rejected(reason: &str) -> String {
    format!("timbr_gateway_rejections_total{{reason=\"{reason}\"}}")
}

#[test]
fn connections_are_limited_per_address_and_in_total() {
    for (option, cause) in
        [("LIMITS_CONNECTIONS_PER_ADDRESS", "address_limit"), ("LIMITS_CONNECTIONS", "connections_limit")]
    {
        let gateway = Gateway::start(Upstream::start().address(), &[(option, "2")]);
        let (mut first, second) = (gateway.client(), gateway.client());
        assert_eq!(first.send("GET /", &[], b"").status, 404, "{option}");
        assert!(gateway.client().is_closed(), "{option}");
        gateway.expect_metric(&ended(cause), 1.0);
        gateway.expect_metric("timbr_gateway_client_connections", 2.0);
        let mut tls = std::net::TcpStream::connect(gateway.https()).expect("the kernel takes it");
        assert_eq!(tls.read(&mut [0]).unwrap_or(0), 0, "before a handshake");
        drop(second);
        let room = || gateway.metric("timbr_gateway_client_connections") < 2.0;
        wait_until("there is a free place", room);
        assert_eq!(h2(&gateway).send("GET /", &[], b"").status, 404, "{option}");
    }
}

#[test]
fn requests_in_flight_are_limited() {
    let (gateway, token) = Gateway::with_token(slow_upstream().address(), &[("LIMITS_REQUESTS", "1")]);
    let headers = [JSON, ("x-api-key", &*token)];
    let mut busy = gateway.begin(X, &headers, b"");
    wait_until("the request is in flight", || gateway.metric("timbr_gateway_requests_in_flight") > 0.0);
    let refused = gateway.client().send(X, &headers, b"");
    assert_eq!((refused.status, refused.reason().as_str()), (503, "overloaded"));
    assert_eq!(refused.header("retry-after"), "1");
    assert_eq!(h2(&gateway).send(X, &headers, b"").status, 503);
    assert_eq!(busy.read_response().status, 200);
    assert_eq!(busy.send(X, &headers, b"").status, 200, "its place is free again");
    gateway.expect_metric(&rejected("overloaded"), 2.0);
    gateway.expect_metric("timbr_gateway_requests_in_flight", 0.0);
}

#[test]
fn requests_in_flight_are_limited_per_caller() {
    let gateway = Gateway::start(slow_upstream().address(), &[("LIMITS_REQUESTS_PER_IDENTITY", "2")]);
    let (alice, bob) = (gateway.token(), gateway.token_of("bob", "secret"));
    let of_alice: &[_] = &[JSON, ("x-api-key", &*alice)];
    let of_bob: &[_] = &[JSON, ("x-api-key", &*bob)];
    let responses = h2(&gateway).send_concurrently(&[(X, of_alice), (X, of_alice), (X, of_alice), (X, of_bob)]);
    let statuses: Vec<_> = responses.iter().map(|response| response.as_ref().expect("a response").status).collect();
    assert_eq!(statuses, [200, 200, 429, 200]);
    let mut busy: Vec<_> = (0..3).map(|_| gateway.client()).collect();
    for client in &mut busy {
        client.write_request(X, of_alice, b"");
    }
    let mut statuses: Vec<_> = busy.iter_mut().map(|client| client.read_response().status).collect();
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 200, 429]);
    gateway.expect_metric(&rejected("too_many_requests"), 2.0);
}

#[test]
fn a_connection_closes_gracefully_after_its_requests_and_age() {
    for options in [[("LIMITS_REQUESTS_PER_CONNECTION", "3")], [("TIMEOUTS_CONNECTION_AGE", "700ms")]] {
        let gateway = Gateway::start(Upstream::start().address(), &options);
        let mut client = gateway.client();
        let mut responses = 1;
        while client.send("GET /", &[], b"").header("connection") != "close" {
            responses += 1;
            thread::sleep(Duration::from_millis(100));
        }
        assert!(client.is_closed() && (3..20).contains(&responses), "{options:?}: {responses}");
        let client = h2(&gateway);
        let mut responses = 0;
        while let Ok(response) = client.try_send("GET /", &[], b"") {
            assert_eq!(response.status, 404);
            responses += 1;
            thread::sleep(Duration::from_millis(100));
        }
        assert!((3..30).contains(&responses), "{options:?}: {responses}");
    }
}

#[test]
fn headers_and_targets_are_limited_over_http_2() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(upstream.address(), &[("LIMITS_URI", "1KiB")]);
    let client = h2(&gateway);
    let names: Vec<_> = (0..101).map(|number| format!("x-{number}")).collect();
    let many: Vec<_> = names.iter().map(|name| (name.as_str(), "v")).collect();
    assert_eq!(client.send(X, &many, b"").status, 431);
    let long = format!("GET /timbr/api/{}", "x".repeat(1024));
    assert_eq!(client.send(&long, &[JSON], b"").json()["reason"], "target_too_long");
    assert_eq!(gateway.client().send(&long, &[JSON], b"").reason(), "target_too_long");
    let large = "v".repeat(33_000);
    assert_eq!(client.send(X, &[("x-large", &large)], b"").json()["reason"], "request_head_too_large");
    assert_eq!(gateway.client().send(X, &[("x-large", &large)], b"").reason(), "request_head_too_large");
    // The library itself responds to this one.
    assert_eq!(client.send(X, &[("x-large", &large), ("x-larger", &large), ("x-largest", &large)], b"").status, 431);
    assert!(upstream.log().is_empty());
    gateway.expect_metric(&rejected("request_head_too_large"), 4.0);
    gateway.expect_metric(&rejected("target_too_long"), 2.0);
}

#[test]
fn a_slow_request_body_is_rejected() {
    let upstream = Upstream::start();
    let options = [("LIMITS_BODY_RATE", "1KiB"), ("TIMEOUTS_BODY", "500ms")];
    let (gateway, token) = Gateway::with_token(upstream.address(), &options);
    let headers = [JSON, ("x-api-key", &*token)];
    let start = Instant::now();
    let mut client =
        gateway.begin("POST /timbr/api/query/", &[headers[0], headers[1], ("Content-Length", "1000")], b"");
    let mut dripping = client.try_clone();
    thread::spawn(move || {
        while dripping.write_all(b"x").is_ok() {
            thread::sleep(Duration::from_millis(50));
        }
    });
    let response = client.read_response();
    assert_eq!((response.status, response.reason().as_str()), (408, "request_body_stalled"));
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    let start = Instant::now();
    let response =
        h2(&gateway).send_slowly("POST /timbr/api/query/", &headers, Duration::from_millis(50)).expect("a response");
    assert_eq!(response.json()["reason"], "request_body_stalled");
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    assert!(upstream.log().is_empty());
    gateway.expect_metric(&rejected("request_body_stalled"), 2.0);
}

#[test]
fn useless_frames_end_in_a_goaway() {
    let gateway = Gateway::start(Upstream::start().address(), &[("LIMITS_CONTROL_FRAMES", "20")]);
    let mut stream = tls_stream(gateway.https(), gateway.certificate_pem(), &["h2"]);
    let ping = [0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
    let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    let bytes = [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &settings, &ping.repeat(10_000)].concat();
    stream.write_all(&bytes).expect("written");
    let mut received = Vec::new();
    let _ = stream.read_to_end(&mut received);
    let mut rest = &received[..];
    let mut kinds = Vec::new();
    while let [a, b, c, kind, tail @ ..] = rest {
        let length = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
        kinds.push(*kind);
        rest = &tail[5 + length..];
    }
    let pongs = kinds.iter().filter(|kind| **kind == 6).count();
    assert!(pongs <= 21 && kinds.last() == Some(&7), "{pongs} responses, {:?}", kinds.last());
    gateway.expect_metric(&ended("control_frames"), 1.0);
}

#[test]
fn connections_ended_by_timeouts_are_counted() {
    let options = [("TIMEOUTS_HEADER", "200ms"), ("TIMEOUTS_IDLE", "900ms"), ("TIMEOUTS_HANDSHAKE", "300ms")];
    let gateway = Gateway::start(Upstream::start().address(), &options);
    let mut idle = gateway.client();
    assert_eq!(idle.send("GET /", &[], b"").status, 404);
    assert!(idle.is_closed());
    let mut slow = Client::connect(gateway.http());
    slow.write(b"GET / HTT");
    assert_eq!(slow.read_response().status, 408);
    let mut silent = std::net::TcpStream::connect(gateway.https()).expect("connected");
    assert_eq!(silent.read(&mut [0]).unwrap_or(0), 0);
    let mut wrong = std::net::TcpStream::connect(gateway.https()).expect("connected");
    wrong.write_all(b"no handshake\r\n\r\n").expect("written");
    let _ = wrong.read_to_end(&mut Vec::new());
    for cause in ["idle_timeout", "header_timeout", "handshake_timeout", "handshake_failed"] {
        gateway.expect_metric(&ended(cause), 1.0);
    }
}

#[test]
fn an_early_response_reaches_a_client_that_is_still_sending() {
    let upstream = Upstream::with_behaviour_at_head(|stream| {
        respond(stream, 403, "{\"status\":\"error\",\"data\":\"no\"}");
    });
    let (gateway, token) = Gateway::with_token(upstream, &[]);
    let headers = [JSON, ("x-api-key", &*token), ("Content-Length", "20000000")];
    let mut client = gateway.begin("POST /timbr/api/query/", &headers, b"");
    let mut sending = client.try_clone();
    let sender = thread::spawn(move || {
        let part = vec![b'x'; 100_000];
        (0..200).take_while(|_| sending.write_all(&part).is_ok()).count()
    });
    thread::sleep(Duration::from_millis(500));
    let response = client.read_response();
    assert_eq!((response.status, response.header("connection")), (403, "close"));
    assert!(response.complete);
    sender.join().expect("no panic");
}

#[test]
fn continue_is_sent_only_to_accepted_requests() {
    let (upstream, gateway, token) = setup(&[]);
    let head = |key: &str| {
        format!(
            "POST /timbr/api/query/ HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nx-api-key: {key}\r\n\
             Expect: 100-continue\r\nContent-Length: 5\r\n\r\n"
        )
    };
    let mut client = gateway.client();
    client.write(head(&token).as_bytes());
    assert_eq!(client.read_bytes(25), b"HTTP/1.1 100 Continue\r\n\r\n");
    client.write(b"hello");
    assert_eq!(client.read_response().status, 200);
    assert_eq!(upstream.only_request().body, b"hello");
    client.write(head("").as_bytes());
    assert_eq!(client.read_head().expect("a response").status, 401, "without leave");
}

#[test]
fn a_get_with_a_body_of_unknown_length_is_forwarded() {
    let (upstream, gateway, token) = setup(&[]);
    let headers = [JSON, ("x-api-key", &*token), ("Transfer-Encoding", "chunked")];
    let mut client = gateway.begin("GET /timbr/api/x", &headers, b"");
    client.write(b"5\r\nhello\r\n0\r\n\r\n");
    assert_eq!(client.read_response().status, 200);
    assert_eq!(upstream.only_request().body, b"hello");
}

#[test]
fn at_the_limit_the_longest_idle_connection_makes_room() {
    let (gateway, token) = Gateway::with_token(slow_upstream().address(), &[("LIMITS_CONNECTIONS", "3")]);
    let headers = [JSON, ("x-api-key", &*token)];
    wait_until("no connection is open", || gateway.metric("timbr_gateway_client_connections") == 0.0);
    let (mut oldest, mut other, mut busy) = (gateway.client(), gateway.client(), gateway.client());
    for client in [&mut oldest, &mut other] {
        assert_eq!(client.send("GET /", &[], b"").status, 404);
    }
    // Until they are not expected to send the next request immediately.
    thread::sleep(Duration::from_millis(700));
    assert_eq!(other.send("GET /", &[], b"").status, 404);
    busy.write_request(X, &headers, b"");
    wait_until("the request is in flight", || gateway.metric("timbr_gateway_requests_in_flight") > 0.0);
    let mut new = gateway.client();
    assert_eq!(new.send("GET /", &[], b"").status, 404);
    assert!(oldest.is_closed());
    gateway.expect_metric(&ended("made_room"), 1.0);
    assert_eq!(busy.read_response().status, 200);
    assert_eq!(other.send("GET /", &[], b"").status, 404);
}

#[test]
fn a_connection_without_a_first_request_has_the_time_of_a_head() {
    let gateway = Gateway::start(Upstream::start().address(), &[("TIMEOUTS_HEADER", "300ms")]);
    let start = Instant::now();
    let mut silent = gateway.client();
    let mut tls = tls_stream(gateway.https(), gateway.certificate_pem(), &["http/1.1"]);
    tls.flush().expect("the handshake");
    assert!(silent.is_closed(), "without a response");
    assert_eq!(tls.read(&mut [0]).unwrap_or(0), 0);
    assert!(start.elapsed() < Duration::from_secs(5), "not timeouts.idle");
    let mut used = gateway.client();
    assert_eq!(used.send("GET /", &[], b"").status, 404);
    thread::sleep(Duration::from_millis(800));
    assert_eq!(used.send("GET /", &[], b"").status, 404, "after a request, timeouts.idle applies");
}
