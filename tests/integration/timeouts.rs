//! Timeouts for slow clients.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::support::client::JSON;
use crate::support::gateway::{Gateway, setup};
use crate::support::h2_client::{H2Client, tls_stream};
use crate::support::upstream::Upstream;
use crate::support::wait_until;

/// Far more than the configured timeouts on a busy machine, and less than the default ones.
const BUSY: Duration = Duration::from_secs(9);

#[test]
fn an_incomplete_head_times_out() {
    let gateway = Gateway::start(Upstream::start().address(), &[("TIMEOUTS_HEADER", "400ms")]);
    let in_time = |start: Instant| {
        let waited = start.elapsed();
        assert!(waited >= Duration::from_millis(350) && waited < BUSY, "{waited:?}");
    };
    let head = b"GET /timbr/api/x HTTP/1.1\r\nHost: h\r\n";
    let mut client = gateway.client();
    let start = Instant::now();
    client.write(head);
    let response = client.read_response();
    assert_eq!((response.status, response.reason()), (408, "request_head_stalled".to_owned()));
    assert!(client.is_closed());
    in_time(start);

    let mut tls = tls_stream(gateway.https(), gateway.certificate_pem(), &["http/1.1"]);
    let (start, mut response) = (Instant::now(), String::new());
    tls.write_all(head).expect("sent");
    tls.read_to_string(&mut response).expect("a graceful end");
    assert!(response.starts_with("HTTP/1.1 408 ") && response.contains("request_head_stalled"), "{response}");
    in_time(start);
}

#[test]
fn an_idle_connection_ends_after_the_idle_timeout() {
    let options = [("TIMEOUTS_HEADER", "200ms"), ("TIMEOUTS_IDLE", "900ms")];
    let (_, gateway, token) = setup(&options);
    let mut client = gateway.client();
    let start = Instant::now();
    assert_eq!(client.query(&token).status, 200);
    assert!(client.is_closed());
    let waited = start.elapsed();
    assert!(waited >= Duration::from_millis(850) && waited < BUSY, "{waited:?}");
}

#[test]
fn a_slow_query_is_not_idle() {
    let upstream = Upstream::with_behaviour(|_, stream| {
        std::thread::sleep(Duration::from_secs(3));
        crate::support::upstream::respond(stream, 200, "{}")
    });
    let options = [("TIMEOUTS_IDLE", "1s"), ("TIMEOUTS_HEADER", "1s"), ("TIMEOUTS_BODY", "1s")];
    let (gateway, token) = Gateway::with_token(upstream.address(), &options);
    assert_eq!(gateway.client().send("POST /timbr/api/x", &[JSON, ("x-api-key", &token)], b"{}").status, 200);
}

#[test]
fn a_head_that_ends_with_the_connection_is_rejected() {
    let gateway = Gateway::start(Upstream::start().address(), &[]);
    for (bytes, is_request) in [(&b"GET /x HTTP/1.1\r\n"[..], true), (b"\r\n", false), (b"", false)] {
        let mut client = gateway.client();
        client.write(bytes);
        client.try_clone().shutdown(std::net::Shutdown::Write).expect("shut down");
        match is_request {
            true => assert_eq!(client.read_response().reason(), "request_malformed"),
            false => assert!(client.is_closed()),
        }
    }
}

#[test]
fn a_stalled_body_gets_408() {
    let (_, gateway, token) = setup(&[("TIMEOUTS_BODY", "300ms")]);
    let headers = [JSON, ("x-api-key", &*token), ("Content-Length", "10")];
    let mut client = gateway.begin("POST /timbr/api/x", &headers, b"");
    client.write(b"half");
    assert_eq!(client.read_response().rejection(), (408, "request_body_stalled".into()));
    assert!(client.is_closed());
}

#[test]
fn an_unread_response_is_aborted() {
    let upstream = Upstream::with_behaviour(|_, stream| {
        let head = b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n";
        crate::support::upstream::write(stream, head);
        crate::support::upstream::write(stream, &vec![b'x'; 100_000_000])
    });
    let (gateway, token) = Gateway::with_token(upstream.address(), &[("TIMEOUTS_WRITE", "400ms")]);
    let client = gateway.begin("GET /timbr/api/x", &[JSON, ("x-api-key", &token)], b"");
    wait_until("it has arrived", || gateway.metric("timbr_gateway_requests_in_flight") == 1.0);
    wait_until("it is aborted", || gateway.metric("timbr_gateway_requests_in_flight") == 0.0);
    let mut got = Vec::new();
    let end = client.try_clone().read_to_end(&mut got).map_err(|error| error.kind());
    assert!(got.len() < 100_000_000, "{} bytes", got.len());
    assert_eq!(end, Err(ErrorKind::ConnectionReset), "otherwise the kernel keeps megabytes for this client");
}

/// Each read is progress, so the pauses alone are within the timeout.
#[test]
fn a_response_that_is_read_too_slowly_is_aborted() {
    let upstream = Upstream::with_behaviour(|_, stream| {
        crate::support::upstream::write(stream, b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n");
        crate::support::upstream::write(stream, &vec![b'x'; 100_000_000])
    });
    let options = [("TIMEOUTS_WRITE", "600ms"), ("LIMITS_RESPONSE_RATE", "10MiB"), ("UPSTREAM_REQUESTS", "1")];
    let (gateway, token) = Gateway::with_token(upstream.address(), &options);
    let client = gateway.begin("GET /timbr/api/x", &[JSON, ("x-api-key", &token)], b"");
    let mut stream = client.try_clone();
    let start = Instant::now();
    // About 1 MiB a second.
    let mut some = vec![0; 100_000];
    assert!(matches!(stream.read(&mut some), Ok(1..)), "it has begun");
    while gateway.metric("timbr_gateway_requests_in_flight") > 0.0 && matches!(stream.read(&mut some), Ok(1..)) {
        assert!(start.elapsed() < Duration::from_secs(60), "the response is not aborted");
        std::thread::sleep(Duration::from_millis(100));
    }
    wait_until("the request has ended", || gateway.metric("timbr_gateway_requests_in_flight") == 0.0);
}

/// The event loop reports that a socket accepts data when a third of its buffer is free: here, after about 5 seconds.
#[test]
fn a_client_that_reads_slowly_and_steadily_is_not_aborted() {
    const SIZE: usize = 20_000_000;
    let upstream = Upstream::with_behaviour(|seen, stream| {
        let head = match seen.line.contains("/chunked") {
            true => format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{SIZE:x}\r\n"),
            false => format!("HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n"),
        };
        crate::support::upstream::write(stream, head.as_bytes());
        crate::support::upstream::write(stream, &vec![b'x'; SIZE])
    });
    let (gateway, token) = Gateway::with_token(upstream.address(), &[("TIMEOUTS_WRITE", "2s")]);
    // About 300 KB a second.
    let read = |mut stream: Box<dyn ReadWrite>, path: &str| {
        let request = format!("GET /timbr/api/{path} HTTP/1.1\r\nHost: localhost\r\nx-api-key: {token}\r\n");
        stream.write_all(format!("{request}Content-Type: application/json\r\n\r\n").as_bytes()).expect("sent");
        let (start, mut some) = (Instant::now(), vec![0; 8 * 1024]);
        while start.elapsed() < Duration::from_secs(6) {
            let read = stream.read(&mut some);
            assert!(matches!(read, Ok(1..)), "{path} after {:?}: {read:?}", start.elapsed());
            std::thread::sleep(Duration::from_millis(25));
        }
    };
    let plain = || Box::new(TcpStream::connect(gateway.http()).expect("connected"));
    let tls = || Box::new(tls_stream(gateway.https(), gateway.certificate_pem(), &[]));
    std::thread::scope(|scope| {
        for path in ["length", "chunked"] {
            scope.spawn(move || read(plain(), path));
        }
        scope.spawn(|| read(tls(), "tls"));
    });
}

trait ReadWrite: Read + Write {}

impl<S: Read + Write> ReadWrite for S {}

#[test]
fn an_incomplete_handshake_times_out() {
    let gateway = Gateway::start(Upstream::start().address(), &[("TIMEOUTS_HANDSHAKE", "300ms")]);
    let start = Instant::now();
    let mut stream = TcpStream::connect(gateway.https()).expect("connected");
    stream.set_read_timeout(Some(BUSY)).expect("set");
    assert!(matches!(stream.read(&mut [0]), Ok(0)));
    let waited = start.elapsed();
    assert!(waited >= Duration::from_millis(250) && waited < BUSY, "{waited:?}");
}

/// HTTP/2 has a preface and a graceful close; a silent client must not keep its connection open.
#[test]
fn a_silent_http2_client_times_out() {
    let gateway = Gateway::start(Upstream::start().address(), &[("TIMEOUTS_IDLE", "300ms")]);
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    const SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];
    /// HEADERS of stream 1 without END_HEADERS: `:method: GET`, with more to follow.
    const HALF_A_HEAD: &[u8] = &[0, 0, 1, 1, 0, 0, 0, 0, 1, 0x82];
    for sent in [&[][..], &PREFACE[..10], &[PREFACE, SETTINGS].concat(), &[PREFACE, SETTINGS, HALF_A_HEAD].concat()] {
        let mut stream = tls_stream(gateway.https(), gateway.certificate_pem(), &["h2"]);
        stream.write_all(sent).expect("written");
        let (start, mut buffer) = (Instant::now(), [0; 1024]);
        while matches!(stream.read(&mut buffer), Ok(count) if count > 0) {}
        assert!(start.elapsed() < 2 * BUSY, "{} bytes sent: {:?}", sent.len(), start.elapsed());
    }
}

/// The socket accepts bytes, but the stream's window is closed.
#[test]
fn an_unread_http2_response_is_aborted() {
    let upstream = Upstream::with_behaviour(|_, stream| {
        crate::support::upstream::write(stream, b"HTTP/1.1 200 OK\r\nContent-Length: 10000000\r\n\r\n");
        crate::support::upstream::write(stream, &vec![b'x'; 10_000_000])
    });
    let (gateway, token) = Gateway::with_token(upstream.address(), &[("TIMEOUTS_WRITE", "400ms")]);
    let client = H2Client::connect(gateway.https(), gateway.certificate_pem());
    let start = Instant::now();
    let ended = client.send_without_reading_body("GET /timbr/api/x", &[JSON, ("x-api-key", &token)]);
    assert!(ended.is_err(), "{ended:?}");
    let waited = start.elapsed();
    assert!(waited >= Duration::from_millis(350) && waited < 2 * BUSY, "{waited:?}");
}

/// Reads up to the end of the connection, as HTTP/1.0 clients do. Also returns how long that took.
fn read_to_the_end(mut stream: impl Read + Write, request: &str) -> (String, Duration) {
    let (start, mut response) = (Instant::now(), String::new());
    stream.write_all(request.as_bytes()).expect("sent");
    stream.read_to_string(&mut response).expect("a graceful end");
    (response, start.elapsed())
}

/// Whether one of many attempts is this fast. A delay in the gateway would affect all of them, a busy machine does not.
fn is_fast(limit: Duration, mut attempt: impl FnMut() -> Duration) -> bool {
    (0..100).any(|_| attempt() < limit)
}

#[test]
fn connection_close_is_not_delayed() {
    let (_, gateway, token) = setup(&[]);
    let good = format!("Host: localhost\r\nContent-Type: application/json\r\nx-api-key: {token}\r\n");
    for (target, ending) in [("/timbr/api/x HTTP/1.1", "Connection: close\r\n"), ("/timbr/api/x HTTP/1.0", "")] {
        for (headers, status) in [(&*good, " 200 "), ("Host: localhost\r\n", " 400 ")] {
            let request = format!("GET {target}\r\n{headers}{ending}\r\n");
            let took = |(response, took): (String, Duration)| {
                assert!(response.starts_with("HTTP/1.1") && response.contains(status), "{response}");
                took
            };
            let plain = || TcpStream::connect(gateway.http()).expect("connected");
            // rustls reports a close without `close_notify` as an error.
            let tls = || tls_stream(gateway.https(), gateway.certificate_pem(), &["http/1.1"]);
            let limit = Duration::from_millis(150);
            assert!(is_fast(limit, || took(read_to_the_end(plain(), &request))), "{request}");
            assert!(is_fast(limit, || took(read_to_the_end(tls(), &request))), "{request} over TLS");
        }
    }
}

/// A client without TCP_NODELAY delays its request until the end of its handshake is acknowledged, which takes 40 ms if
/// the gateway has nothing to send.
#[test]
fn the_first_request_is_not_delayed_by_a_late_acknowledgement() {
    let gateway = Gateway::start(Upstream::start().address(), &[]);
    let attempt = || {
        let tls = tls_stream(gateway.https(), gateway.certificate_pem(), &["http/1.1"]);
        assert!(!tls.sock.nodelay().expect("read"));
        let request = "GET /timbr/api/x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        let (response, took) = read_to_the_end(tls, request);
        assert!(response.starts_with("HTTP/1.1 400 "));
        took
    };
    assert!(is_fast(Duration::from_millis(30), attempt));
}
