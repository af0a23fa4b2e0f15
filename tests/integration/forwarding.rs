//! Forwarding of requests and responses.

use std::io::Write;
use std::sync::mpsc;
use std::time::Duration;

use crate::support::client::{Client, JSON};
use crate::support::gateway::{Gateway, setup};
use crate::support::upstream::{AfterRequest, Upstream, respond, write};

#[test]
fn end_to_end_headers_and_bodies_are_forwarded_unchanged() {
    let upstream = Upstream::with_behaviour(|_, stream| {
        let head = "HTTP/1.1 418 Teapot\r\nContent-Type: text/x\r\nX-One: 1\r\nSet-Cookie: a=b\r\n\
                    Set-Cookie: c=d\r\nConnection: keep-alive\r\nConnection: x-hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=2\r\n\
                    Content-Length: 5\r\n\r\nhello";
        write(stream, head.as_bytes())
    });
    let (gateway, token) = Gateway::with_token(upstream.address(), &[]);
    let sent = [
        JSON,
        ("x-api-key", token.as_str()),
        ("nested", "true"),
        ("results-limit", "10"),
        ("x-async", "true"),
        ("Accept", "a"),
        ("Accept", "b"),
        ("Connection", "keep-alive, x-mine"),
        ("X-Mine", "1"),
        ("TE", "trailers"),
        ("Keep-Alive", "timeout=5"),
    ];
    let got = gateway.client().send("POST /timbr/api/query/?a=b&c=%20d", &sent, b"{\"query\": 1}");
    assert_eq!((got.status, got.text()), (418, "hello"));
    assert_eq!(got.header("x-one"), "1");
    assert_eq!(got.all("set-cookie"), ["a=b", "c=d"]);
    for gone in ["x-hop", "keep-alive", "connection"] {
        assert_eq!(got.header(gone), "", "{gone}");
    }

    let seen = upstream.only_request();
    assert_eq!(seen.line, "POST /timbr/api/query/?a=b&c=%20d HTTP/1.1");
    assert_eq!(seen.body, b"{\"query\": 1}");
    for (name, value) in [("nested", "true"), ("results-limit", "10"), ("x-async", "true"), ("content-length", "12")] {
        assert_eq!(seen.header(name), value, "{name}");
    }
    assert_eq!(seen.folded_headers("accept"), ["a", "b"]);
    for gone in ["x-mine", "te", "keep-alive", "connection", "transfer-encoding"] {
        assert!(seen.folded_headers(gone).is_empty(), "{gone}");
    }
}

#[test]
fn request_ids_are_forwarded_and_returned() {
    let (upstream, gateway, token) = setup(&[]);
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let key = ("x-api-key", token.as_str());
    let given = [JSON, key, ("x-request-id", "my-id"), ("traceparent", trace), ("tracestate", "a=b")];
    let got = gateway.client().send("GET /timbr/api/x", &given, b"");
    assert_eq!(got.header("x-request-id"), "my-id");
    let invalid = [JSON, key, ("x-request-id", "no id"), ("traceparent", "nonsense"), ("tracestate", "a=b")];
    let made = gateway.client().send("GET /timbr/api/x", &invalid, b"");
    assert_eq!(made.header("x-request-id").len(), 32);

    let log = upstream.log();
    assert_eq!(log[0].header("x-request-id"), "my-id");
    assert_eq!((log[0].header("traceparent"), log[0].header("tracestate")), (trace, "a=b"));
    assert_eq!(log[1].header("x-request-id"), made.header("x-request-id"));
    assert_eq!((log[1].header("traceparent").len(), log[1].header("tracestate")), (55, ""));
}

#[test]
fn connections_are_reused_on_both_sides() {
    let (upstream, gateway, token) = setup(&[]);
    let mut client = gateway.client();
    for _ in 0..5 {
        assert_eq!(client.query(&token).status, 200);
    }
    assert!(upstream.log().iter().all(|seen| seen.connection == 0), "{:?}", upstream.log());
}

#[test]
fn a_chunked_body_is_forwarded_without_its_trailers() {
    let (upstream, gateway, token) = setup(&[]);
    let mut client = gateway.client();
    let head = format!(
        "POST /timbr/api/x HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nx-api-key: {token}\r\n\
         Transfer-Encoding: chunked\r\nTrailer: x-forwarded-user\r\n\r\n"
    );
    client.write(head.as_bytes());
    client.write(b"5\r\nhello\r\n6;ext=1\r\n world\r\n0\r\nx-forwarded-user: evil\r\n\r\n");
    assert_eq!(client.read_response().status, 200);
    let seen = upstream.only_request();
    assert_eq!(seen.body, b"hello world");
    // A small body is sent with its length; a larger one in chunks.
    assert_eq!(seen.header("content-length"), "11");
    assert_eq!(seen.header("x-forwarded-user"), "alice");
    client.write(head.as_bytes());
    let large = "x".repeat(1_000_000);
    client.write(format!("f4240\r\n{large}\r\n0\r\nx-forwarded-user: evil\r\n\r\n").as_bytes());
    assert_eq!(client.read_response().status, 200);
    let seen = &upstream.log()[1];
    assert_eq!((seen.body.len(), seen.header("transfer-encoding")), (1_000_000, "chunked"));
    assert_eq!(seen.header("x-forwarded-user"), "alice");
}

#[test]
fn large_bodies_are_streamed_in_both_directions() {
    let upstream = Upstream::with_behaviour(|request, stream| {
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", request.body.len());
        write(stream, head.as_bytes());
        write(stream, &request.body)
    });
    let (gateway, token) = Gateway::with_token(upstream.address(), &[]);
    let body: Vec<u8> = (0..16 * 1024 * 1024_u32).map(|n| (n % 251) as u8).collect();
    let mut client = gateway.begin("POST /timbr/api/x", &[JSON, ("x-api-key", &token)], &body);
    let got = client.read_response();
    assert!(got.complete && got.body == body, "{} bytes", got.body.len());
}

#[test]
fn a_response_is_streamed_as_it_arrives() {
    let (resume, wait) = mpsc::channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    let upstream = Upstream::with_behaviour(move |_, stream| {
        write(stream, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n");
        wait.lock().expect("no panic").recv().expect("the test continues");
        write(stream, b"4\r\nlast\r\n0\r\n\r\n")
    });
    let (gateway, token) = Gateway::with_token(upstream.address(), &[]);
    let mut client = gateway.begin("GET /timbr/api/x", &[JSON, ("x-api-key", &token)], b"");
    assert_eq!(client.read_head().expect("a head").status, 200);
    assert_eq!(client.read_bytes(10), b"5\r\nfirst\r\n", "before the backend has finished");
    resume.send(()).expect("sent");
    assert_eq!(client.read_bytes(14), b"4\r\nlast\r\n0\r\n\r\n");
}

/// A client that does not read must slow down the backend instead of filling the gateway's memory.
#[test]
fn a_slow_client_applies_backpressure_to_the_backend() {
    let (told, tell) = mpsc::channel();
    let told = std::sync::Mutex::new(told);
    let upstream = Upstream::with_behaviour(move |_, stream| {
        stream.set_write_timeout(Some(Duration::from_millis(500))).expect("set");
        write(stream, b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n");
        let mut written = 0_usize;
        let chunk = vec![b'x'; 64 * 1024];
        while let Ok(count) = stream.write(&chunk) {
            written += count;
        }
        told.lock().expect("no panic").send(written).expect("the test listens");
        AfterRequest::Close
    });
    let (gateway, token) = Gateway::with_token(upstream.address(), &[]);
    let _client = gateway.begin("GET /timbr/api/x", &[JSON, ("x-api-key", &token)], b"");
    let written = tell.recv_timeout(Duration::from_secs(30)).expect("the backend was held up");
    assert!(written < 64 * 1024 * 1024, "{written} bytes went into a client that reads nothing");
}

/// The other direction: a backend that does not read must slow down the client.
#[test]
fn a_slow_backend_applies_backpressure_to_the_client() {
    let upstream = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
    let (gateway, token) = Gateway::with_token(upstream.local_addr().expect("an address"), &[]);
    let mut client = std::net::TcpStream::connect(gateway.http()).expect("connected");
    client.set_write_timeout(Some(Duration::from_millis(500))).expect("set");
    let head = format!(
        "POST /timbr/api/x HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nx-api-key: {token}\r\n\
         Content-Length: 100000000\r\n\r\n"
    );
    client.write_all(head.as_bytes()).expect("written");
    // The gateway connects once it has `limits.buffer`.
    client.write_all(&[b'x'; 64 * 1024]).expect("written");
    let _unread = upstream.accept().expect("a connection").0;
    let mut written = 0_usize;
    let chunk = vec![b'x'; 64 * 1024];
    while let Ok(count) = client.write(&chunk) {
        written += count;
        assert!(written < 64 * 1024 * 1024, "the gateway buffers what the backend does not read");
    }
}

#[test]
fn responses_without_a_body_have_none() {
    let upstream = Upstream::with_behaviour(|request, stream| match request.line.split(' ').nth(1) {
        Some("/timbr/api/empty") => write(stream, b"HTTP/1.1 204 No Content\r\n\r\n"),
        Some("/timbr/api/fresh") => write(stream, b"HTTP/1.1 304 Not Modified\r\nETag: x\r\n\r\n"),
        _ if request.line.starts_with("HEAD") => write(stream, b"HTTP/1.1 200 OK\r\nContent-Length: 1234\r\n\r\n"),
        _ => respond(stream, 200, "{}"),
    });
    let (gateway, token) = Gateway::with_token(upstream.address(), &[]);
    let headers = [JSON, ("x-api-key", token.as_str())];
    let mut client = gateway.client();
    assert_eq!(client.send("GET /timbr/api/empty", &headers, b"").status, 204);
    assert_eq!(client.send("GET /timbr/api/fresh", &headers, b"").header("etag"), "x");
    let head = client.send("HEAD /timbr/api/x", &headers, b"");
    assert_eq!((head.status, head.header("content-length")), (200, "1234"));
    assert_eq!(client.send("GET /timbr/api/x", &headers, b"").text(), "{}", "the connection is still in sync");
}

#[test]
fn pipelined_requests_are_checked_one_by_one() {
    let (upstream, gateway, token) = setup(&[]);
    let mut client = gateway.client();
    let good =
        format!("GET /timbr/api/x HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nx-api-key: {token}\r\n\r\n");
    let bad = "GET /timbr/api/x HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nUpgrade: x\r\n\r\n";
    client.write(format!("{good}{bad}{good}").as_bytes());
    let statuses: Vec<_> = (0..3).map(|_| client.read_response().status).collect();
    assert_eq!(statuses, [200, 400, 200], "the rejected upgrade does not become a tunnel");
    assert_eq!(upstream.log().len(), 2);
}

#[test]
fn http_1_0_is_served_and_closed() {
    let (upstream, gateway, token) = setup(&[]);
    let mut client = Client::connect(gateway.http());
    client.write(
        format!("GET /timbr/api/x HTTP/1.0\r\nHost: h\r\nContent-Type: application/json\r\nx-api-key: {token}\r\n\r\n")
            .as_bytes(),
    );
    assert_eq!(client.read_response().status, 200);
    assert!(client.is_closed());
    assert!(upstream.only_request().line.ends_with("HTTP/1.1"));
}

/// A backend that redirects to the URL in the query, in which `@` is the value of `host` that it received.
fn redirecting_upstream() -> Upstream {
    Upstream::with_behaviour(|request, stream| {
        let url = request.line.split(['?', ' ']).nth(2).expect("a query").replace('@', request.header("host"));
        let head = format!(
            "HTTP/1.1 308 Permanent Redirect\r\nLocation: {url}\r\nContent-Location: {url}\r\n\
             Refresh: 5; url={url}\r\nContent-Length: 0\r\n\r\n"
        );
        write(stream, head.as_bytes())
    })
}

/// A client that follows a redirect to the backend itself would send its key past the gateway.
#[test]
fn redirects_to_the_backend_stay_at_the_gateway() {
    let upstream = redirecting_upstream();
    let by_name = format!("http://localhost:{}", upstream.address().port());
    for url in [format!("http://{}", upstream.address()), by_name] {
        let gateway = Gateway::start_with_url(&url, &[]);
        let token = gateway.token();
        for (told, expected) in [
            ("http://@/timbr/api/y/", "/timbr/api/y/"),
            ("https://@/timbr/api/y/", "/timbr/api/y/"),
            ("//@//elsewhere.example/", "/.//elsewhere.example/"),
            ("/timbr/api/y/", "/timbr/api/y/"),
            ("https://elsewhere.example/x", "https://elsewhere.example/x"),
            ("http://gateway.test/x", "http://gateway.test/x"),
        ] {
            let headers = [JSON, ("x-api-key", &*token)];
            let response = gateway.client().send(&format!("GET /timbr/api/x?{told}"), &headers, b"");
            let refresh = format!("5; url={expected}");
            for (name, expected) in [("location", expected), ("content-location", expected), ("refresh", &refresh)] {
                assert_eq!(response.header(name), expected, "{told}");
            }
        }
    }
}

#[test]
fn the_backend_receives_the_host_of_the_client_if_configured() {
    let upstream = redirecting_upstream();
    for (option, expected) in [("backend", upstream.address().to_string()), ("client", "gateway.test".to_owned())] {
        let (gateway, token) = Gateway::with_token(upstream.address(), &[("UPSTREAM_HOST_HEADER", option)]);
        let headers = [JSON, ("x-api-key", &*token)];
        let response = gateway.client().send("GET /timbr/api/x?http://@/y", &headers, b"");
        assert_eq!(response.header("location"), "/y", "the backend's own name");
        let log = upstream.log();
        let arrived = log.last().expect("a request");
        assert_eq!((arrived.header("host"), arrived.header("x-forwarded-host")), (&*expected, "gateway.test"));
        let internal = format!("GET /timbr/api/x?http://{}/y", upstream.address());
        assert_eq!(gateway.client().send(&internal, &headers, b"").header("location"), "/y", "{option}");
        let with_port = gateway.client().send("GET /timbr/api/x?http://gateway.test:80/y", &headers, b"");
        assert_eq!(with_port.header("location") == "/y", option == "client", "a default port equals none");
    }
}
