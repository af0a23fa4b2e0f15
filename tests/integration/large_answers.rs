//! Large responses without TLS, which are spliced from the backend to the client.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::sync::{LazyLock, mpsc};
use std::thread;
use std::time::Duration;

use socket2::SockRef;

use crate::support::client::{Client, JSON};
use crate::support::gateway::Gateway;
use crate::support::h2_client::tls_stream;
use crate::support::program::Program;
use crate::support::upstream::{AfterRequest, Upstream, respond, write};
use crate::support::{TIMEOUT, wait_until};

const MIB: usize = 1024 * 1024;

/// Non-repeating bytes, at most 16 MiB.
fn bytes(count: usize) -> &'static [u8] {
    static BYTES: LazyLock<Vec<u8>> = LazyLock::new(|| {
        let word = |n: u64| n.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (0..2 * MIB as u64).flat_map(|n| word(n).to_be_bytes()).collect()
    });
    &BYTES[..count]
}

fn head(length: usize) -> String {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n")
}

fn ask(client: &mut Client, token: &str) {
    client.write_request("GET /timbr/api/x", &[JSON, ("x-api-key", token)], b"");
}

/// Parses a line `GET /timbr/api/x?size=pieces`.
fn requested(line: &str) -> (usize, usize) {
    let query = line.split([' ', '?']).nth(2).expect("a query");
    let (size, piece) = query.split_once('=').expect("two numbers");
    (size.parse().expect("a number"), piece.parse().expect("a number"))
}

#[test]
fn large_responses_arrive_complete_and_connections_are_reused() {
    let upstream = Upstream::with_behaviour(|request, stream| {
        let (size, piece) = requested(&request.line);
        write(stream, head(size).as_bytes());
        for piece in bytes(size).chunks(piece) {
            write(stream, piece);
        }
        AfterRequest::KeepOpen
    });
    let (gateway, token) = Gateway::with_token(upstream.address(), &[]);
    let mut client = gateway.client();
    let _ = bytes(0); // Generated here, because a backend connection does not stay open for that long.
    let threshold = 256 * 1024;
    for (size, piece) in [
        (16 * MIB, 128 * 1024),
        (2, 2),
        (MIB + 1, 1000),
        (threshold - 1, threshold),
        (threshold, threshold),
        (threshold + 1, 4096),
        (3 * MIB, 65537),
        (300_000, 299_999),
    ] {
        let line = format!("GET /timbr/api/x?{size}={piece}");
        let got = client.send(&line, &[JSON, ("x-api-key", &token)], b"");
        assert!(got.complete && got.body == bytes(size), "{size} in pieces of {piece}: {}", got.body.len());
    }
    assert!(upstream.log().iter().all(|seen| seen.connection == 0), "the backend connection was reused");
}

/// Pauses each response in the middle until the test drops its sender.
fn holding_backend(size: usize) -> (Upstream, mpsc::Sender<()>) {
    let (hold, held) = mpsc::channel::<()>();
    let held = std::sync::Mutex::new(held);
    let upstream = Upstream::with_behaviour(move |_, stream| {
        write(stream, head(size).as_bytes());
        let body = bytes(size);
        write(stream, &body[..size / 2]);
        let _ = held.lock().map(|held| held.recv());
        write(stream, &body[size / 2..])
    });
    (upstream, hold)
}

fn begun(address: SocketAddr, token: &str, size: usize) -> Client {
    let mut client = Client::connect(address);
    ask(&mut client, token);
    assert_eq!(client.read_head().expect("a head").status, 200);
    assert_eq!(client.read_bytes(size / 2), bytes(size)[..size / 2]);
    client
}

/// A program with a token, and its descriptors.
fn idle_program(upstream: &Upstream) -> (Program, String, usize) {
    let program = Program::start(upstream.address(), &[]);
    let before = program.settled_descriptors();
    let token = program.token();
    wait_until("its connection is closed", || program.descriptors() == before);
    (program, token, before)
}

/// Each response uses a pipe, and so two descriptors, until the limit is reached; all are released.
#[test]
fn pipes_are_limited_and_released() {
    let size = 2 * MIB;
    let (upstream, hold) = holding_backend(size);
    let (program, token, before) = idle_program(&upstream);
    let mut clients = vec![begun(program.http, &token, size)];
    assert_eq!(program.descriptors(), before + 4, "a client, a backend's connection, a pipe");
    clients.extend((1..40).map(|_| begun(program.http, &token, size)));
    assert_eq!(program.descriptors(), before + 2 * 40 + 2 * 32);
    drop(hold);
    for client in &mut clients {
        assert!(client.read_bytes(size - size / 2) == bytes(size)[size / 2..]);
    }
    drop(clients);
    wait_until("descriptors are released", || program.descriptors() <= before + 40);
}

#[test]
fn a_disconnected_client_releases_its_pipe_and_query() {
    let size = 16 * MIB;
    let (gone, is_gone) = mpsc::channel();
    let gone = std::sync::Mutex::new(gone);
    let upstream = Upstream::with_behaviour(move |_, stream| {
        write(stream, head(size).as_bytes());
        let cut = stream.write_all(bytes(size)).is_err();
        gone.lock().expect("no panic").send(cut).expect("the test listens");
        AfterRequest::Close
    });
    let (program, token, before) = idle_program(&upstream);
    let mut client = Client::connect(program.http);
    ask(&mut client, &token);
    assert_eq!(client.read_bytes(MIB).len(), MIB);
    drop(client);
    assert!(is_gone.recv_timeout(Duration::from_secs(10)).expect("it was notified"), "it could send everything");
    wait_until("descriptors are released", || program.descriptors() == before);
}

#[test]
fn truncated_and_stalled_responses_are_cut() {
    let upstream = Upstream::with_behaviour(|request, stream| {
        write(stream, head(2 * MIB).as_bytes());
        write(stream, bytes(MIB));
        if request.line.contains("stall") {
            thread::sleep(Duration::from_secs(2));
        }
        match request.line.contains("whole") {
            true => write(stream, &bytes(2 * MIB)[MIB..]),
            false => AfterRequest::Close,
        }
    });
    let options = [("UPSTREAM_BODY_TIMEOUT", "300ms")];
    let (program, lines) = Program::start_logged(upstream.address(), &options);
    let token = program.token();
    for (how, size, reason) in
        [("close", MIB, "upstream_body_broken"), ("stall", MIB, "upstream_body_broken"), ("whole", 2 * MIB, "")]
    {
        let mut client = Client::connect(program.http);
        let line = format!("GET /timbr/api/{how}");
        let got = client.send(&line, &[JSON, ("x-api-key", &token)], b"");
        assert!(got.body == bytes(size), "{how}: {} bytes", got.body.len());
        assert_eq!(got.complete, reason.is_empty(), "{how}");
        let path = format!("/timbr/api/{how}");
        let line = lines.expect("the access line is written", |line| line["path"] == path.as_str());
        assert_eq!((&line["reason"], &line["sent"]), (&reason.into(), &size.into()), "{line}");
        assert_eq!(line["complete"], reason.is_empty(), "{line}");
    }
}

/// SECURITY: bytes beyond the announced length belong to no response, and must not reach the next client.
#[test]
fn bytes_beyond_the_length_are_dropped_with_the_connection() {
    let upstream = Upstream::with_behaviour(|_, stream| {
        let extra = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil";
        write(stream, &[head(MIB).as_bytes(), bytes(MIB), extra].concat());
        AfterRequest::KeepOpen
    });
    let (gateway, token) = Gateway::with_token(upstream.address(), &[]);
    let mut client = gateway.client();
    for _ in 0..3 {
        let got = client.query(&token);
        assert!(got.complete && got.body == bytes(MIB), "{} bytes", got.body.len());
    }
    let connections: Vec<usize> = upstream.log().iter().map(|seen| seen.connection).collect();
    assert_eq!(connections, [0, 1, 2]);
}

/// SECURITY: the backend connection serves the next request while its last bytes still wait for a slow client.
#[test]
fn responses_on_one_connection_never_mix() {
    let upstream = Upstream::with_behaviour(|request, stream| {
        let (size, from) = requested(&request.line);
        let is_first = request.connection == 0;
        let close = if is_first { "" } else { "Connection: close\r\n" };
        write(stream, format!("HTTP/1.1 200 OK\r\n{close}Content-Length: {size}\r\n\r\n").as_bytes());
        write(stream, &bytes(from + size)[from..]);
        if is_first { AfterRequest::KeepOpen } else { AfterRequest::Close }
    });
    let (gateway, token) = Gateway::with_token(upstream.address(), &[]);
    let key = [JSON, ("x-api-key", token.as_str())];
    let mut slow = gateway.client();
    SockRef::from(&slow.try_clone()).set_recv_buffer_size(16 * 1024).expect("set");
    let size = 12 * MIB;
    slow.write_request(&format!("GET /timbr/api/x?{size}=0"), &key, b"");
    assert_eq!(slow.read_head().expect("a head").status, 200);
    let mut taken = Vec::new();
    // Until the first response has been read completely, other requests use their own connections.
    while upstream.log().iter().skip(1).all(|seen| seen.connection != 0) {
        assert!(taken.len() < size, "the first connection is not reused");
        taken.extend(slow.read_bytes(MIB / 4));
        let got = gateway.client().send(&format!("GET /timbr/api/x?{MIB}={size}"), &key, b"");
        assert!(got.complete && got.body == bytes(size + MIB)[size..], "bytes of a different response");
    }
    assert!(taken.len() < size, "nothing of the first response was left");
    taken.extend(slow.read_bytes(size - taken.len()));
    assert!(taken == bytes(size), "bytes of a different response");
}

#[test]
fn a_disconnect_is_detected_while_the_backend_pauses() {
    let (gone, is_gone) = mpsc::channel();
    let gone = std::sync::Mutex::new(gone);
    let upstream = Upstream::with_behaviour(move |_, stream| {
        write(stream, head(2 * MIB).as_bytes());
        write(stream, bytes(MIB));
        // Until the gateway closes.
        stream.set_read_timeout(Some(TIMEOUT)).expect("set");
        let ended = matches!(stream.read(&mut [0]), Ok(0));
        gone.lock().expect("no panic").send(ended).expect("the test listens");
        AfterRequest::Close
    });
    let (program, token, before) = idle_program(&upstream);
    drop(begun(program.http, &token, 2 * MIB));
    assert!(is_gone.recv_timeout(TIMEOUT).expect("it was notified"), "the query was not given up");
    wait_until("descriptors are released", || program.descriptors() == before);
}

/// Encrypted responses use no pipe, and do not count against the limit.
#[test]
fn tls_uses_no_pipe() {
    let size = 2 * MIB;
    let (upstream, hold) = holding_backend(size);
    let (program, token, before) = idle_program(&upstream);
    let mut client = tls_stream(program.https, &program.authority_pem, &["http/1.1"]);
    let headers =
        format!("Host: localhost\r\nContent-Type: application/json\r\nx-api-key: {token}\r\nConnection: close\r\n");
    client.write_all(format!("GET /timbr/api/x HTTP/1.1\r\n{headers}\r\n").as_bytes()).expect("sent");
    let mut half = vec![0; size / 2];
    client.read_exact(&mut half).expect("the head and some of the body");
    assert_eq!(program.descriptors(), before + 2, "one client and one backend connection");
    drop(hold);
    let mut rest = Vec::new();
    client.read_to_end(&mut rest).expect("a graceful end");
    assert!(rest.ends_with(&bytes(size)[size / 2..]));
}

/// A client that reads slowly is not a client that reads nothing.
#[test]
fn a_slow_client_receives_the_complete_response() {
    let size = 16 * MIB;
    let upstream = Upstream::with_behaviour(move |_, stream| {
        write(stream, head(size).as_bytes());
        write(stream, bytes(size))
    });
    let (gateway, token) = Gateway::with_token(upstream.address(), &[("TIMEOUTS_WRITE", "800ms")]);
    let mut client = gateway.client();
    SockRef::from(&client.try_clone()).set_recv_buffer_size(64 * 1024).expect("set");
    ask(&mut client, &token);
    assert_eq!(client.read_head().expect("a head").status, 200);
    // For more than two seconds, three times as long as a client may read nothing.
    for (at, piece) in bytes(size).chunks(size / 200).enumerate() {
        thread::sleep(Duration::from_millis(12));
        assert!(client.read_bytes(piece.len()) == piece, "truncated or mixed up in piece {at}");
    }
}

/// A response that begins before the request is complete: both continue concurrently.
#[test]
fn a_response_may_begin_before_the_request_ends() {
    let address = Upstream::with_behaviour_at_head(|stream| {
        write(stream, head(2 * MIB).as_bytes());
        write(stream, bytes(2 * MIB));
    });
    let (gateway, token) = Gateway::with_token(address, &[]);
    let headers = [JSON, ("x-api-key", &*token), ("Content-Length", "200000")];
    let mut client = gateway.begin("POST /timbr/api/x", &headers, b"");
    client.write(&vec![b' '; 100_000]);
    let got = client.read_response();
    assert!(got.complete && got.body == bytes(2 * MIB), "{} bytes", got.body.len());
}

#[test]
fn a_head_request_gets_only_the_head() {
    let upstream = Upstream::with_behaviour(|request, stream| match request.line.starts_with("HEAD") {
        true => write(stream, head(8 * MIB).as_bytes()),
        false => respond(stream, 200, "{}"),
    });
    let (gateway, token) = Gateway::with_token(upstream.address(), &[]);
    let mut client = gateway.client();
    let got = client.send("HEAD /timbr/api/x", &[JSON, ("x-api-key", &token)], b"");
    assert_eq!((got.status, got.header("content-length")), (200, "8388608"));
    assert_eq!(client.query(&token).text(), "{}");
}
