//! Exhausted descriptors and memory, and a failing backend, at realistic scale.

use std::net::TcpStream;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crate::support::client::{Client, JSON};
use crate::support::gateway::Gateway;
use crate::support::program::Program;
use crate::support::recorder::{Recorder, Reply};
use crate::support::upstream::Upstream;
use crate::support::wait_until;

#[test]
fn without_free_descriptors_the_gateway_neither_spins_nor_exits() {
    let upstream = Upstream::start();
    let shell = "ulimit -n 256; exec \"$0\" serve";
    let program = Program::start_unread(upstream.address(), &[], shell);
    let token = program.token();
    let headers = [JSON, ("x-api-key", &*token)];
    let mut established = Client::connect(program.http);
    assert_eq!(established.send("GET /timbr/api/x", &headers, b"").status, 200);
    let crowd: Vec<_> = (0..300).filter_map(|_| TcpStream::connect(program.http).ok()).collect();
    let cpu = program.cpu();
    thread::sleep(Duration::from_secs(2));
    let cpu = program.cpu() - cpu;
    println!("{} connections, {} descriptors, {cpu:?} in 2 s", crowd.len(), program.descriptors());
    assert!(cpu < Duration::from_millis(200), "{cpu:?}");
    assert_eq!(established.send("GET /timbr/api/x", &headers, b"").status, 200);
    drop(crowd);
    let start = Instant::now();
    wait_until("new connections are served again", || {
        let mut client = Client::connect(program.http);
        client.try_send("GET /timbr/api/x", &headers).is_some_and(|response| response.status == 200)
    });
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
}

/// Bodies are streamed; what the backend does not read stays with the clients.
#[test]
fn request_bodies_that_the_backend_does_not_read_are_not_buffered() {
    const CLIENTS: usize = 200;
    let backend = Upstream::with_behaviour_at_head(|_| {});
    let program = Program::start(backend, &[]);
    let token = program.token();
    let before = program.memory();
    let head = format!(
        "POST /timbr/api/query/ HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nx-api-key: {token}\r\n\
         Content-Length: 10000000\r\n\r\n"
    );
    let part = vec![b'x'; 256 * 1024];
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let mut client = Client::connect(program.http);
            client.write(head.as_bytes());
            client
        })
        .collect();
    for client in &clients {
        let mut socket = client.try_clone();
        socket.set_nonblocking(true).expect("set");
        let end = Instant::now() + Duration::from_millis(20);
        while Instant::now() < end {
            let _ = std::io::Write::write(&mut socket, &part);
        }
    }
    thread::sleep(Duration::from_millis(500));
    let grown = program.memory().saturating_sub(before) / CLIENTS;
    println!("{grown} bytes for each of {CLIENTS} stalled uploads");
    assert!(grown < 256 * 1024, "{grown}");
}

#[test]
fn fifty_requests_in_flight_complete_during_the_drain() {
    let backend = Recorder::start(Reply::After(Duration::from_secs(2)));
    let mut program = Program::start(backend.address(), &[("DRAIN_TIMEOUT", "10s")]);
    let token = program.token();
    let mut clients: Vec<_> = (0..50).map(|_| Client::connect(program.http)).collect();
    for client in &mut clients {
        client.write_request("GET /timbr/api/x", &[JSON, ("x-api-key", &*token)], b"");
    }
    wait_until("all requests have arrived", || backend.seen().len() == 50);
    program.begin_shutdown();
    let responses: Vec<_> = clients.iter_mut().map(Client::read_response).collect();
    let good = responses.iter().filter(|response| response.status == 200 && response.complete).count();
    let told = responses.iter().filter(|response| response.header("connection") == "close").count();
    assert_eq!((good, told), (50, 50));
    assert!(program.wait().success());
}

/// Each gets 502, and no other request receives its response.
#[test]
fn invalid_responses_affect_only_their_own_request() {
    let large = [b"HTTP/1.1 200 OK\r\nX: ".to_vec(), vec![b'x'; 1 << 20], b"\r\n\r\n".to_vec()].concat();
    let interim = b"HTTP/1.1 100 Continue\r\n\r\n".repeat(100);
    let cases: [&[u8]; 9] = [
        b"\x16\x03\x01\x00\x05hello",
        b"HTTP/1.1 abc OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\nContent-Length: 2\n\nab",
        b"HTTP/1.1 200 OK\r\nX : y\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
        &large,
        &interim,
    ];
    for case in cases {
        let backend = Recorder::start(Reply::Bytes(Arc::new(case.to_vec())));
        let (gateway, token) = Gateway::with_token(backend.address(), &[("TOKENS_FOREIGN", "reject")]);
        let mut client = gateway.client();
        for _ in 0..2 {
            let response = client.send("POST /timbr/api/x", &[JSON, ("x-api-key", &token)], b"{}");
            assert_eq!(response.status, 502, "{}", case[..case.len().min(60)].escape_ascii());
        }
    }
}

/// The idle timeouts do not apply to a client that waits for a response.
#[test]
fn a_query_may_take_longer_than_all_idle_timeouts() {
    let backend = Recorder::start(Reply::After(Duration::from_millis(1500)));
    let options = [("TIMEOUTS_IDLE", "300ms"), ("TIMEOUTS_HEADER", "300ms"), ("TIMEOUTS_WRITE", "300ms")];
    let (gateway, token) = Gateway::with_token(backend.address(), &options);
    let response = gateway.query(&token);
    assert_eq!((response.status, response.complete), (200, true));
}
