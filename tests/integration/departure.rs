//! Clients that disconnect or close one side of the connection, and clients that send before they read.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use socket2::SockRef;

use crate::support::client::JSON;
use crate::support::gateway::{Gateway, setup};
use crate::support::h2_client::tls_stream;
use crate::support::upstream::{Upstream, respond};
use crate::support::wait_until;

fn head(token: &str, length: usize) -> String {
    format!(
        "POST /timbr/api/x HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nx-api-key: {token}\r\n\
         Content-Length: {length}\r\n\r\n"
    )
}

fn queued(gateway: &Gateway) -> f64 {
    gateway.metric("timbr_gateway_requests_queued")
}

#[test]
fn a_queued_request_leaves_the_queue_with_its_client() {
    let (release, wait) = std::sync::mpsc::channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    let upstream = Upstream::with_behaviour(move |request, stream| {
        if request.line.contains("/slow") {
            let _ = wait.lock().expect("no panic").recv();
        }
        respond(stream, 200, "{}")
    });
    let (gateway, token) = Gateway::with_token(upstream.address(), &[("UPSTREAM_REQUESTS", "1")]);
    let mut busy = gateway.begin("POST /timbr/api/slow", &[JSON, ("x-api-key", &token)], b"{}");
    wait_until("the request has arrived", || upstream.log().len() == 1);
    // Without a body, with one that is read ahead, and with one that is not.
    for size in [0, 1_000, 40_000, 100_000] {
        let mut client = gateway.client();
        client.write([head(&token, size).as_bytes(), &vec![b'x'; size]].concat().as_slice());
        wait_until("the request is queued", || queued(&gateway) == 1.0);
        drop(client);
        wait_until("the request has left the queue", || queued(&gateway) == 0.0);
    }
    release.send(()).expect("the backend waits");
    assert_eq!(busy.read_response().status, 200);
    assert_eq!(upstream.log().len(), 1, "no abandoned request arrived");
}

/// A backend with small buffers that reads nothing.
fn deaf_backend() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
    SockRef::from(&listener).set_recv_buffer_size(4096).expect("set");
    let address = listener.local_addr().expect("an address");
    thread::spawn(move || listener.incoming().collect::<Vec<_>>());
    address
}

/// Writes until the upload is blocked.
fn block(stream: &mut impl Write, socket: &TcpStream) {
    socket.set_write_timeout(Some(Duration::from_millis(300))).expect("set");
    let part = vec![b'x'; 64 * 1024];
    for _ in 0..1000 {
        if stream.write_all(&part).is_err() {
            return;
        }
    }
    panic!("the upload is not blocked");
}

/// Its FIN cannot arrive, as the receive window is full.
#[test]
fn a_client_that_disconnects_during_a_blocked_upload_is_detected() {
    let (gateway, token) = Gateway::with_token(deaf_backend(), &[]);
    let connections = || gateway.metric("timbr_gateway_client_connections");
    wait_until("no connection is open", || connections() == 0.0);
    let mut plain = TcpStream::connect(gateway.http()).expect("connected");
    plain.write_all(head(&token, 100_000_000).as_bytes()).expect("sent");
    let socket = plain.try_clone().expect("a second descriptor");
    block(&mut plain, &socket);
    drop((plain, socket));
    wait_until("the plain connection is closed", || connections() == 0.0);
    let mut tls = tls_stream(gateway.https(), gateway.certificate_pem(), &["http/1.1"]);
    tls.write_all(head(&token, 100_000_000).as_bytes()).expect("sent");
    let socket = tls.sock.try_clone().expect("a second descriptor");
    block(&mut tls, &socket);
    drop((tls, socket));
    wait_until("the TLS connection is closed", || connections() == 0.0);
}

/// The backend begins to read after the client has received interim responses.
#[test]
fn a_client_that_waits_during_a_blocked_upload_gets_its_response() {
    const SIZE: usize = 12_000_000;
    let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
    SockRef::from(&listener).set_recv_buffer_size(4096).expect("set");
    let address = listener.local_addr().expect("an address");
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        thread::sleep(Duration::from_millis(3500));
        let mut buffer = vec![0; 64 * 1024];
        let mut received = 0;
        while received < SIZE {
            received += stream.read(&mut buffer).expect("the request");
        }
        respond(&mut stream, 200, "{}");
        thread::sleep(Duration::from_secs(5));
    });
    let (gateway, token) = Gateway::with_token(address, &[]);
    let mut client = gateway.client();
    let mut sending = client.try_clone();
    let sender = thread::spawn(move || {
        sending.write_all(head(&token, SIZE).as_bytes()).and_then(|()| sending.write_all(&vec![b'x'; SIZE]))
    });
    assert_eq!(client.read_response().status, 200);
    sender.join().expect("no panic").expect("sent");
}

#[test]
fn a_half_closed_client_is_cancelled_or_served_as_configured() {
    for (option, is_served) in [("cancel", false), ("serve", true)] {
        let upstream = Upstream::with_behaviour(|_, stream| {
            thread::sleep(Duration::from_millis(300));
            respond(stream, 200, "{}")
        });
        let (gateway, token) = Gateway::with_token(upstream.address(), &[("LIMITS_HALF_CLOSE", option)]);
        for size in [0, 100_000] {
            let mut client = gateway.client();
            client.write([head(&token, size).as_bytes(), &vec![b'x'; size]].concat().as_slice());
            client.try_clone().shutdown(Shutdown::Write).expect("half-closed");
            let status = client.read_head().map(|response| response.status);
            assert_eq!(status, is_served.then_some(200), "{option}, {size} bytes");
        }
        // A body that cannot be complete any more is not waited for.
        let mut client = gateway.client();
        client.write(head(&token, 100).as_bytes());
        client.try_clone().shutdown(Shutdown::Write).expect("half-closed");
        let start = Instant::now();
        let _ = client.read_head();
        assert!(start.elapsed() < Duration::from_secs(2), "{option}");
        assert_eq!(gateway.query(&token).status, 200);
    }
}

/// The client does not read before it has sent everything, and the backend responds while it reads.
#[test]
fn a_client_may_send_its_whole_request_before_it_reads() {
    const SIZE: usize = 40_000_000;
    let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
    let address = listener.local_addr().expect("an address");
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        let mut received = vec![0; 64 * 1024];
        let mut count = stream.read(&mut received).expect("a head");
        let mut writer = stream.try_clone().expect("a second descriptor");
        let response = thread::spawn(move || {
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n");
            writer.write_all(head.as_bytes()).and_then(|()| writer.write_all(&vec![b'y'; SIZE]))
        });
        while count < SIZE {
            count += stream.read(&mut received).expect("the request");
        }
        response.join().expect("no panic").expect("sent");
        thread::sleep(Duration::from_secs(5));
    });
    let (gateway, token) = Gateway::with_token(address, &[("TIMEOUTS_WRITE", "2s")]);
    let mut client = gateway.client();
    let mut sending = client.try_clone();
    sending.set_write_timeout(Some(Duration::from_secs(10))).expect("set");
    sending.write_all(head(&token, SIZE).as_bytes()).expect("sent");
    sending.write_all(&vec![b'x'; SIZE]).expect("both directions make progress");
    let response = client.read_response();
    assert!(response.status == 200 && response.complete && response.body.len() == SIZE);
}

/// Old clients send an empty line after a POST (RFC 9112 section 2.2).
#[test]
fn an_empty_line_after_a_body_does_not_begin_a_request() {
    let (_, gateway, token) = setup(&[("TIMEOUTS_HEADER", "300ms")]);
    let request = [head(&token, 2).as_bytes(), b"{}"].concat();
    let mut client = gateway.client();
    for _ in 0..2 {
        client.write(&[&request[..], b"\r\n"].concat());
        assert_eq!(client.read_response().status, 200);
        thread::sleep(Duration::from_millis(600));
    }
    client.write(b"\r\n");
    client.write(&request);
    assert_eq!(client.read_response().status, 200);
    // Anything else begins one.
    client.write(b"\r\nPOST");
    assert_eq!(client.read_response().status, 408);
}
