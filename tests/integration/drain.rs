//! Graceful shutdown.

use std::io::{Read, Write};
use std::sync::{Mutex, mpsc};
use std::thread;
use std::time::Duration;

use socket2::SockRef;
use timbr_gateway::app::RunOutcome;

use crate::support::client::{Client, JSON};
use crate::support::frames::{DATA, END_HEADERS, END_STREAM, HEADERS, PING, SETTINGS, WINDOW_UPDATE, frame, good_head};
use crate::support::gateway::{Gateway, setup};
use crate::support::h2_client::{H2Client, tls_stream};
use crate::support::program::Program;
use crate::support::upstream::{AfterRequest, Upstream, respond, write};
use crate::support::wait_until;

fn slow_upstream(millis: u64) -> Upstream {
    Upstream::with_behaviour(move |_, stream| {
        std::thread::sleep(Duration::from_millis(millis));
        respond(stream, 200, "{}")
    })
}

#[test]
fn health_is_served_only_on_the_admin_listener() {
    let gateway = Gateway::start(Upstream::start().address(), &[]);
    let ask = |address, line: &str| Client::connect(address).send(line, &[], b"").status;
    wait_until("the gateway is ready", || gateway.readiness() == 200);
    assert_eq!(ask(gateway.admin(), "GET /livez"), 200);
    assert_eq!(ask(gateway.admin(), "GET /elsewhere"), 404);
    assert_eq!(ask(gateway.admin(), "POST /livez"), 405);
    assert_eq!(ask(gateway.http(), "GET /livez"), 404);
}

#[test]
fn requests_in_flight_complete() {
    let upstream = slow_upstream(500);
    let (gateway, token) = Gateway::with_token(upstream.address(), &[("WORKERS", "2")]);
    let mut clients: Vec<_> = (0..10).map(|_| gateway.client()).collect();
    for client in &mut clients {
        client.write_request("POST /timbr/api/x", &[JSON, ("x-api-key", &token)], b"{}");
    }
    wait_until("all requests have arrived", || upstream.log().len() == 10);
    gateway.begin_shutdown();
    for client in &mut clients {
        let got = client.read_response();
        assert_eq!((got.status, got.header("connection")), (200, "close"));
        assert!(client.is_closed());
    }
    assert_eq!(gateway.wait(), RunOutcome::Drained { cut: 0 });
}

#[test]
fn idle_connections_are_closed_and_new_ones_are_refused() {
    let (_, gateway, token) = setup(&[]);
    let mut client = gateway.client();
    assert_eq!(client.query(&token).status, 200);
    let address = gateway.http();
    gateway.begin_shutdown();
    assert!(client.is_closed());
    assert_eq!(gateway.wait(), RunOutcome::Drained { cut: 0 });
    assert!(std::net::TcpStream::connect(address).is_err());
}

#[test]
fn a_connection_accepted_just_before_the_drain_is_served() {
    let (_, gateway, token) = setup(&[]);
    let mut client = gateway.client();
    gateway.begin_shutdown();
    let got = client.query(&token);
    assert_eq!(got.status, 200);
    assert!(client.is_closed());
    assert_eq!(gateway.wait(), RunOutcome::Drained { cut: 0 });
}

#[test]
fn requests_in_flight_complete_over_http2() {
    let upstream = slow_upstream(300);
    let (gateway, token) = Gateway::with_token(upstream.address(), &[]);
    let client = H2Client::connect(gateway.https(), gateway.certificate_pem());
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| client.send("POST /timbr/api/x", &[JSON, ("x-api-key", &token)], b"{}").status);
        wait_until("the request has arrived", || upstream.log().len() == 1);
        gateway.begin_shutdown();
        assert_eq!(asking.join().expect("no panic"), 200);
    });
    assert_eq!(gateway.wait(), RunOutcome::Drained { cut: 0 });
}

/// If the gateway closed the socket while the client still sends WINDOW_UPDATE frames, the kernel would reset the
/// connection and discard unsent data.
#[test]
fn the_end_of_an_http2_response_is_not_lost() {
    const BODY: usize = 512 * 1024;
    let (resume, wait) = mpsc::channel::<()>();
    let wait = Mutex::new(wait);
    let upstream = Upstream::with_behaviour(move |_, stream| {
        write(stream, format!("HTTP/1.1 200 OK\r\nContent-Length: {BODY}\r\n\r\n").as_bytes());
        write(stream, &[b'x'; 1000]);
        wait.lock().expect("no panic").recv().expect("the test continues");
        write(stream, &vec![b'x'; BODY - 1000])
    });
    let (gateway, token) = Gateway::with_token(upstream.address(), &[]);
    let mut client = tls_stream(gateway.https(), gateway.certificate_pem(), &["h2"]);
    SockRef::from(&client.sock).set_recv_buffer_size(16 * 1024).expect("set");
    // INITIAL_WINDOW_SIZE, and the same for the connection: only the socket limits the response.
    let window = (1_u32 << 20).to_be_bytes();
    let opening = [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        frame(SETTINGS, 0, 0, &[&[0, 4][..], &window].concat()),
        frame(WINDOW_UPDATE, 0, 0, &window),
        frame(HEADERS, END_STREAM | END_HEADERS, 1, &good_head("GET", "/timbr/api/x", &token)),
    ];
    client.write_all(&opening.concat()).expect("sent");
    wait_until("the request has arrived", || upstream.log().len() == 1);
    gateway.begin_shutdown();
    // The gateway announces the shutdown with a PING, which must be acknowledged.
    let mut frames = Vec::new();
    let mut buffer = vec![0; 16 * 1024];
    let ping = loop {
        let count = client.read(&mut buffer).expect("frames");
        frames.extend_from_slice(&buffer[..count]);
        if let Some(ping) = received(&frames).into_iter().find(|(kind, _)| *kind == PING) {
            break ping.1;
        }
    };
    client.write_all(&frame(PING, 1, 0, &ping)).expect("sent");
    resume.send(()).expect("sent");
    // The gateway has written everything to the kernel and closed the connection by then.
    thread::sleep(Duration::from_millis(500));
    for _ in 0..3 {
        client.write_all(&frame(WINDOW_UPDATE, 0, 0, &[0, 0, 1, 0])).expect("sent");
        thread::sleep(Duration::from_millis(50));
    }
    loop {
        match client.read(&mut buffer) {
            Ok(0) | Err(_) => break,
            Ok(count) => frames.extend_from_slice(&buffer[..count]),
        }
    }
    let data = received(&frames).into_iter().filter(|(kind, _)| *kind == DATA);
    assert_eq!(data.map(|(_, payload)| payload.len()).sum::<usize>(), BODY);
    drop(client);
    assert_eq!(gateway.wait(), RunOutcome::Drained { cut: 0 });
}

/// The complete frames in the received bytes: kinds and payloads.
fn received(mut bytes: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let mut all = Vec::new();
    while let Some(head) = bytes.first_chunk::<9>() {
        let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        let Some(payload) = bytes.get(9..9 + length) else { break };
        all.push((head[3], payload.to_vec()));
        bytes = &bytes[9 + length..];
    }
    all
}

/// A client that has connected but sends nothing, not even a TLS hello, does not delay the shutdown.
#[test]
fn a_connection_without_a_handshake_does_not_delay_the_shutdown() {
    let gateway = Gateway::start(Upstream::start().address(), &[]);
    let silent = std::net::TcpStream::connect(gateway.https()).expect("connected");
    let start = std::time::Instant::now();
    gateway.begin_shutdown();
    assert_eq!(gateway.wait(), RunOutcome::Drained { cut: 0 });
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    drop(silent);
}

#[test]
fn requests_are_served_during_the_drain_delay() {
    let (_, gateway, token) = setup(&[("DRAIN_DELAY", "600ms")]);
    wait_until("the gateway is ready", || gateway.readiness() == 200);
    gateway.begin_shutdown();
    wait_until("the gateway is not ready any more", || gateway.readiness() == 503);
    assert_eq!(gateway.query(&token).status, 200);
    assert_eq!(gateway.wait(), RunOutcome::Drained { cut: 0 });
}

#[test]
fn requests_are_cut_after_the_drain_timeout() {
    let upstream = slow_upstream(5000);
    let (gateway, token) = Gateway::with_token(upstream.address(), &[("DRAIN_TIMEOUT", "300ms")]);
    let mut client = gateway.begin("POST /timbr/api/x", &[JSON, ("x-api-key", &token)], b"{}");
    wait_until("the request has arrived", || upstream.log().len() == 1);
    gateway.begin_shutdown();
    assert!(client.is_closed());
    assert_eq!(gateway.wait(), RunOutcome::Drained { cut: 1 });
}

/// Without a length, the end of the connection would look like the end of the response.
#[test]
fn a_response_of_unknown_length_that_is_cut_ends_with_a_reset() {
    let upstream = Upstream::with_behaviour(|_, stream| {
        write(stream, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n");
        thread::sleep(Duration::from_secs(5));
        AfterRequest::Close
    });
    let (gateway, token) = Gateway::with_token(upstream.address(), &[("DRAIN_TIMEOUT", "300ms")]);
    let mut client = gateway.client();
    client.write(
        format!("GET /timbr/api/x HTTP/1.0\r\nHost: h\r\nContent-Type: application/json\r\nx-api-key: {token}\r\n\r\n")
            .as_bytes(),
    );
    assert_eq!(client.read_head().expect("a head").status, 200);
    gateway.begin_shutdown();
    let end = client.try_clone().read_to_end(&mut Vec::new());
    assert_eq!(end.expect_err("incomplete").kind(), std::io::ErrorKind::ConnectionReset);
}

#[test]
fn a_second_signal_ends_the_process_immediately() {
    let upstream = slow_upstream(5000);
    let (gateway, token) = Gateway::with_token(upstream.address(), &[]);
    let _client = gateway.begin("POST /timbr/api/x", &[JSON, ("x-api-key", &token)], b"{}");
    wait_until("the request has arrived", || upstream.log().len() == 1);
    gateway.begin_shutdown();
    gateway.begin_shutdown();
    assert_eq!(gateway.wait(), RunOutcome::Aborted);
}

/// More connections than the runtime accepts without a pause.
#[test]
fn the_accept_queue_is_emptied_before_the_listener_closes() {
    let (_, gateway, token) = setup(&[]);
    let mut clients: Vec<_> = (0..400).map(|_| gateway.client()).collect();
    gateway.begin_shutdown();
    for client in &mut clients {
        assert_eq!(client.query(&token).status, 200);
    }
    assert_eq!(gateway.wait(), RunOutcome::Drained { cut: 0 });
}

#[test]
fn the_drain_is_announced_during_the_delay() {
    let upstream = slow_upstream(300);
    let (gateway, token) = Gateway::with_token(upstream.address(), &[("DRAIN_DELAY", "8s")]);
    let headers = [JSON, ("x-api-key", &*token)];
    let (mut used, mut busy, mut idle) = (gateway.client(), gateway.client(), gateway.client());
    for client in [&mut used, &mut idle] {
        assert_eq!(client.send("GET /timbr/api/x", &headers, b"").header("connection"), "");
    }
    let h2 = H2Client::connect(gateway.https(), gateway.certificate_pem());
    assert_eq!(h2.send("GET /timbr/api/x", &headers, b"").status, 200);
    busy.write_request("GET /timbr/api/x", &headers, b"");
    wait_until("all requests have arrived", || upstream.log().len() == 4);
    let start = std::time::Instant::now();
    gateway.begin_shutdown();
    wait_until("the gateway is not ready any more", || gateway.readiness() == 503);
    assert_eq!(busy.read_response().header("connection"), "close", "a request in flight");
    assert_eq!(h2.send("GET /timbr/api/x", &headers, b"").status, 200);
    assert!(h2.try_send("GET /timbr/api/x", &headers, b"").is_err(), "GOAWAY came with the response");
    assert_eq!(used.send("GET /timbr/api/x", &headers, b"").header("connection"), "close", "the next request");
    let mut new = gateway.client();
    assert_eq!(new.send("GET /timbr/api/x", &headers, b"").header("connection"), "close", "a new connection");
    assert!(start.elapsed() < Duration::from_secs(8), "all of this was during the delay");
    assert!(idle.is_closed() && used.is_closed() && busy.is_closed() && new.is_closed());
    assert_eq!(gateway.wait(), RunOutcome::Drained { cut: 0 });
}

/// In the log, a request that the gateway aborts does not look like one whose client disconnected.
#[test]
fn aborted_requests_have_their_own_reason() {
    let upstream = Upstream::with_behaviour(|request, stream| {
        if request.line.contains("/cut") {
            write(stream, b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello");
        }
        thread::sleep(Duration::from_secs(5));
        respond(stream, 200, "{}")
    });
    let options = [("DRAIN_TIMEOUT", "300ms"), ("LISTEN_ADMIN", "off")];
    let (mut program, lines) = Program::start_logged(upstream.address(), &options);
    let token = program.token();
    let headers = [JSON, ("x-api-key", &*token)];
    let reasons = |path: &str| -> Vec<String> {
        let of_path = lines.matching(|line| line["target"] == "access" && line["path"] == path);
        of_path.iter().map(|line| line["reason"].as_str().expect("text").to_owned()).collect()
    };
    let mut left = Client::connect(program.http);
    left.write_request("POST /timbr/api/left", &headers, b"{}");
    wait_until("the request has arrived", || upstream.log().len() == 1);
    drop(left);
    wait_until("its line is written", || reasons("/timbr/api/left") == ["client_closed"]);
    let (mut waiting, mut cut) = (Client::connect(program.http), Client::connect(program.http));
    waiting.write_request("POST /timbr/api/waiting", &headers, b"{}");
    cut.write_request("POST /timbr/api/cut", &headers, b"{}");
    assert_eq!(cut.read_head().expect("a head").status, 200);
    let h2 = H2Client::connect(program.https, &program.authority_pem);
    let _held = h2.begin_uploads("POST /timbr/api/upload", &headers, 1, 10, Duration::from_millis(100));
    thread::scope(|scope| {
        let sent = scope.spawn(|| h2.try_send("POST /timbr/api/second", &headers, b"{}").is_err());
        wait_until("all requests have arrived", || upstream.log().len() == 4);
        program.begin_shutdown();
        assert!(sent.join().expect("no panic"));
    });
    assert!(program.wait().success());
    for path in ["/timbr/api/waiting", "/timbr/api/cut", "/timbr/api/second", "/timbr/api/upload"] {
        wait_until("its line is written", || reasons(path) == ["drain_timeout"]);
    }
}
