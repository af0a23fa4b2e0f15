//! A backend that is down, hangs, truncates responses or sends invalid ones.

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::support::client::{JSON, Response};
use crate::support::gateway::Gateway;
use crate::support::upstream::{AfterRequest, Upstream, respond, write};
use crate::support::wait_until;

fn send(gateway: &Gateway, token: &str, method: &str) -> Response {
    let body: &[u8] = if method == "POST" { b"{}" } else { b"" };
    gateway.client().send(&format!("{method} /timbr/api/x"), &[JSON, ("x-api-key", token)], body)
}

#[test]
fn a_backend_that_is_down_gives_502_until_it_returns() {
    let port = TcpListener::bind("127.0.0.1:0").expect("bound");
    let address = port.local_addr().expect("an address");
    drop(port);
    let (gateway, token) = Gateway::with_token(address, &[]);
    let refused = send(&gateway, &token, "POST");
    assert_eq!((refused.status, refused.reason().as_str()), (502, "upstream_unreachable"));
    assert_eq!(refused.header("retry-after"), "1");
    let upstream =
        Upstream::listen_on(TcpListener::bind(address).expect("bound"), |_, stream| respond(stream, 200, "{}"));
    assert_eq!(send(&gateway, &token, "POST").status, 200);
    assert_eq!(upstream.log().len(), 1);
}

#[test]
fn a_backend_that_hangs_gives_504() {
    let upstream = Upstream::with_behaviour(|_, _| {
        std::thread::sleep(Duration::from_secs(5));
        AfterRequest::Close
    });
    let (gateway, token) = Gateway::with_token(upstream.address(), &[("UPSTREAM_RESPONSE_TIMEOUT", "400ms")]);
    let start = Instant::now();
    assert_eq!(send(&gateway, &token, "POST").rejection(), (504, "upstream_timeout".into()));
    let waited = start.elapsed();
    assert!(waited >= Duration::from_millis(400) && waited < Duration::from_secs(5), "{waited:?}");
}

/// It has read a part of the body; that does not count as progress for ever.
#[test]
fn a_backend_that_stops_reading_the_body_gives_504() {
    let upstream = TcpListener::bind("127.0.0.1:0").expect("bound");
    let options = [("UPSTREAM_RESPONSE_TIMEOUT", "400ms")];
    let (gateway, token) = Gateway::with_token(upstream.local_addr().expect("an address"), &options);
    let headers = [JSON, ("x-api-key", &*token), ("Content-Length", "100000000")];
    let mut client = gateway.begin("POST /timbr/api/x", &headers, b"");
    let mut sending = client.try_clone();
    let sender = std::thread::spawn(move || while sending.write_all(&[b'x'; 64 * 1024]).is_ok() {});
    let _unread = upstream.accept().expect("a connection").0;
    assert_eq!(client.read_response().rejection(), (504, "upstream_timeout".into()));
    drop(client);
    drop(gateway);
    sender.join().expect("no panic");
}

#[test]
fn a_post_that_may_have_arrived_is_not_retried() {
    static CLOSE: AtomicBool = AtomicBool::new(false);
    let upstream = Upstream::with_behaviour(|_, stream| {
        if CLOSE.load(Ordering::SeqCst) { AfterRequest::Close } else { respond(stream, 200, "{}") }
    });
    let (gateway, token) = Gateway::with_token(upstream.address(), &[]);
    assert_eq!(send(&gateway, &token, "POST").status, 200);
    CLOSE.store(true, Ordering::SeqCst);
    // On the connection that the first request left open.
    assert_eq!(send(&gateway, &token, "POST").rejection(), (502, "upstream_closed".into()));
    let connections: Vec<_> = upstream.log().iter().map(|seen| seen.connection).collect();
    assert_eq!(connections, [0, 0]);
}

#[test]
fn a_get_on_a_closed_connection_is_retried() {
    // Each connection serves one request and closes when the next one arrives.
    let upstream = Upstream::with_behaviour(|request, stream| {
        let second = request.header("x-request-id").starts_with("second");
        if second && request.connection == 0 { AfterRequest::Close } else { respond(stream, 200, "{}") }
    });
    let (gateway, token) = Gateway::with_token(upstream.address(), &[]);
    let get = |id: &str| {
        let headers = [JSON, ("x-api-key", &token), ("x-request-id", id)];
        gateway.client().send("GET /timbr/api/x", &headers, b"").status
    };
    assert_eq!(get("first"), 200);
    assert_eq!(get("second"), 200);
    let connections: Vec<_> = upstream.log().iter().map(|seen| seen.connection).collect();
    assert_eq!(connections, [0, 0, 1]);
}

/// Sends a second request on a connection that the backend closes without a response, after `work`.
fn assert_not_retried(work: impl Fn(&mut TcpStream) + Send + Sync + 'static) {
    let upstream = Upstream::with_behaviour(move |request, stream| {
        if request.header("x-request-id").starts_with("first") {
            return respond(stream, 200, "{}");
        }
        work(stream);
        AfterRequest::Close
    });
    let (gateway, token) = Gateway::with_token(upstream.address(), &[]);
    let get = |id: &str| {
        let headers = [JSON, ("x-api-key", &token), ("x-request-id", id)];
        gateway.client().send("GET /timbr/api/x", &headers, b"")
    };
    assert_eq!(get("first").status, 200);
    assert_eq!(get("second").reason(), "upstream_closed");
    let connections: Vec<_> = upstream.log().iter().map(|seen| seen.connection).collect();
    assert_eq!(connections, [0, 0]);
}

/// The backend works on it, so the connection was not closed because it was idle.
#[test]
fn a_get_is_not_retried_after_an_informational_response() {
    assert_not_retried(|stream| {
        write(stream, b"HTTP/1.1 102 Processing\r\n\r\n");
    });
}

/// Nor was it closed because it was idle if the backend had the request for a while.
#[test]
fn a_get_is_not_retried_after_10_seconds() {
    assert_not_retried(|_| std::thread::sleep(Duration::from_secs(10)));
}

#[test]
fn an_idle_connection_closed_by_the_backend_is_not_used() {
    let upstream = Upstream::with_behaviour(|_, stream| {
        respond(stream, 200, "{}");
        AfterRequest::Close
    });
    let (gateway, token) = Gateway::with_token(upstream.address(), &[]);
    for sent in 1..=50 {
        assert_eq!(send(&gateway, &token, "POST").status, 200);
        // Before that, a request may cross with the close, and the gateway cannot know whether it was read.
        wait_until("the backend has closed the connection", || upstream.closed() == sent);
    }
    assert_eq!(upstream.log().len(), 50, "each request arrived once");
}

#[test]
fn a_truncated_response_never_looks_complete() {
    for head in ["Content-Length: 100", "Transfer-Encoding: chunked"] {
        let upstream = Upstream::with_behaviour(move |_, stream| {
            let start = if head.contains("chunked") { "64\r\nhalf" } else { "half" };
            write(stream, format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n{start}").as_bytes());
            std::thread::sleep(Duration::from_millis(50));
            AfterRequest::Reset
        });
        let (gateway, token) = Gateway::with_token(upstream.address(), &[]);
        let mut client = gateway.client();
        let got = client.query(&token);
        assert!(!got.complete, "{head}: {got:?}");
        assert!(client.is_closed());
    }
}

#[test]
fn a_response_with_a_long_pause_is_aborted() {
    let upstream = Upstream::with_behaviour(|_, stream| {
        write(stream, b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf");
        std::thread::sleep(Duration::from_secs(5));
        AfterRequest::Close
    });
    let (gateway, token) = Gateway::with_token(upstream.address(), &[("UPSTREAM_BODY_TIMEOUT", "300ms")]);
    let start = Instant::now();
    assert!(!send(&gateway, &token, "GET").complete);
    assert!(start.elapsed() < Duration::from_secs(5), "before the backend closes");
}

#[test]
fn an_invalid_response_gives_502_and_its_connection_is_not_reused() {
    for nonsense in [
        "NONSENSE\r\n\r\n",
        "HTTP/1.1 99999 OK\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        "HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
    ] {
        let upstream = Upstream::with_behaviour(move |request, stream| {
            if request.connection == 0 { write(stream, nonsense.as_bytes()) } else { respond(stream, 200, "{}") }
        });
        let (gateway, token) = Gateway::with_token(upstream.address(), &[]);
        assert_eq!(send(&gateway, &token, "POST").rejection(), (502, "upstream_invalid".into()), "{nonsense:?}");
        assert_eq!(send(&gateway, &token, "POST").status, 200, "{nonsense:?}");
        assert_eq!(upstream.log().last().map(|seen| seen.connection), Some(1), "{nonsense:?}");
    }
}

#[test]
fn bytes_after_a_response_reach_no_other_client() {
    let upstream = Upstream::with_behaviour(|request, stream| {
        let extra = if request.connection == 0 { "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nstolen" } else { "" };
        write(stream, format!("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{{}}{extra}").as_bytes())
    });
    let (gateway, token) = Gateway::with_token(upstream.address(), &[]);
    for _ in 0..5 {
        assert_eq!(send(&gateway, &token, "GET").text(), "{}");
    }
}

#[test]
fn an_early_response_is_forwarded_while_the_body_arrives() {
    let upstream = TcpListener::bind("127.0.0.1:0").expect("bound");
    let address = upstream.local_addr().expect("an address");
    std::thread::spawn(move || {
        use std::io::{Read, Write};
        let (mut stream, _) = upstream.accept().expect("a connection");
        let mut some = [0; 1024];
        let _ = stream.read(&mut some);
        let _ = stream.write_all(b"HTTP/1.1 413 Too Large\r\nContent-Length: 4\r\nConnection: close\r\n\r\nmuch");
        while matches!(stream.read(&mut some), Ok(count) if count > 0) {}
    });
    let (gateway, token) = Gateway::with_token(address, &[]);
    let headers = [JSON, ("x-api-key", &*token), ("Content-Length", "1000000")];
    let mut client = gateway.begin("POST /timbr/api/x", &headers, b"");
    // More than `limits.buffer`.
    client.write(&[b' '; 100_000]);
    let got = client.read_response();
    assert_eq!((got.status, got.text()), (413, "much"));
}

#[test]
fn a_disconnected_client_aborts_its_query() {
    static ENDED: AtomicBool = AtomicBool::new(false);
    let upstream = Upstream::with_behaviour(|_, stream| {
        use std::io::Read;
        ENDED.store(matches!(stream.read(&mut [0]), Ok(0) | Err(_)), Ordering::SeqCst);
        AfterRequest::Close
    });
    let (gateway, token) = Gateway::with_token(upstream.address(), &[]);
    let client = gateway.begin("POST /timbr/api/x", &[JSON, ("x-api-key", &token)], b"{}");
    wait_until("the query has arrived", || upstream.log().len() == 1);
    drop(client);
    wait_until("the backend connection ends", || ENDED.load(Ordering::SeqCst));
}
