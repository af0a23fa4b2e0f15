//! Proxies in front of the gateway: which of them may set the client address.

use std::io::{Read, Write};

use crate::support::client::{Client, JSON};
use crate::support::gateway::{Gateway, setup};
use crate::support::h2_client::tls_config;
use crate::support::program::Program;
use crate::support::upstream::Upstream;
use crate::support::wait_until;

#[test]
fn untrusted_clients_cannot_set_their_address() {
    let (upstream, gateway, token) = setup(&[]);
    let headers = [
        JSON,
        ("x-api-key", &*token),
        ("X-Forwarded-For", "6.6.6.6"),
        ("Forwarded", "for=6.6.6.6"),
        ("X-Forwarded-Proto", "https"),
        ("X-Real-IP", "6.6.6.6"),
    ];
    assert_eq!(gateway.client().send("GET /timbr/api/x", &headers, b"").status, 200);
    let arrived = upstream.only_request();
    assert_eq!(arrived.header("x-forwarded-for"), "127.0.0.1");
    assert_eq!(arrived.header("x-forwarded-proto"), "http");
    assert!(arrived.folded_headers("forwarded").is_empty() && arrived.folded_headers("x-real-ip").is_empty());
}

#[test]
fn trusted_proxies_set_the_client_address() {
    let (upstream, gateway, token) = setup(&[("TRUSTED_PROXIES", "127.0.0.0/8, 10.0.0.0/8")]);
    let headers = [
        JSON,
        ("x-api-key", &*token),
        ("X-Forwarded-For", "6.6.6.6, 203.0.113.7, 10.1.1.1"),
        ("X-Forwarded-Proto", "https"),
    ];
    assert_eq!(gateway.client().send("GET /timbr/api/x", &headers, b"").status, 200);
    let arrived = upstream.only_request();
    assert_eq!(arrived.header("x-forwarded-for"), "203.0.113.7, 10.1.1.1, 127.0.0.1");
    assert_eq!(arrived.header("x-forwarded-proto"), "https");
}

/// Limits per address use the client's address, not the proxy's.
#[test]
fn failures_behind_a_proxy_count_per_client() {
    let upstream = Upstream::start();
    let options =
        [("TRUSTED_PROXIES", "127.0.0.1"), ("TOKENS_FOREIGN", "reject"), ("LIMITS_FAILURES_PER_ADDRESS", "3")];
    let gateway = Gateway::start(upstream.address(), &options);
    let guess = |client: &str| {
        let headers = [JSON, ("x-api-key", "wrong"), ("X-Forwarded-For", client)];
        gateway.client().send("GET /timbr/api/x", &headers, b"").status
    };
    let statuses: Vec<_> = (0..5).map(|_| guess("203.0.113.1")).collect();
    assert_eq!(statuses, [401, 401, 401, 429, 429]);
    assert_eq!(guess("203.0.113.2"), 401);
    assert_eq!(guess("203.0.113.1, 203.0.113.3"), 401, "the leftmost address is the client's own claim");
}

fn proxied(upstream: &Upstream, trusted: &str) -> Gateway {
    let options =
        [("LISTEN_PROXY_PROTOCOL", "required"), ("TRUSTED_PROXIES", trusted), ("TIMEOUTS_HANDSHAKE", "500ms")];
    Gateway::start(upstream.address(), &options)
}

fn request(token: &str) -> String {
    format!("GET /timbr/api/x HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nx-api-key: {token}\r\n\r\n")
}

/// A token, requested through the PROXY protocol.
fn token(gateway: &Gateway) -> String {
    let mut client = Client::connect(gateway.http());
    client.write(b"PROXY UNKNOWN\r\n");
    let authorization = format!("Bearer {}", crate::support::bearer::bearer("alice", "secret"));
    let response = client.send("POST /timbr/api/get_token", &[JSON, ("Authorization", &authorization)], b"");
    response.token()
}

#[test]
fn the_proxy_protocol_sets_the_client_address() {
    let upstream = Upstream::start();
    let gateway = proxied(&upstream, "127.0.0.1");
    let token = token(&gateway);
    let version_2 = [b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".to_vec(), vec![203, 0, 113, 8, 10, 0, 0, 1, 1, 1, 1, 187]];
    for (header, address) in [
        (b"PROXY TCP4 203.0.113.7 10.0.0.1 4711 443\r\n".to_vec(), "203.0.113.7"),
        (version_2.concat(), "203.0.113.8"),
        (b"PROXY UNKNOWN\r\n".to_vec(), "127.0.0.1"),
        ([b"\r\n\r\n\0\r\nQUIT\n\x21\x31\0\xd8".to_vec(), vec![b'/'; 216]].concat(), "127.0.0.1"),
    ] {
        let mut client = Client::connect(gateway.http());
        // Header and request in one write, and byte by byte.
        client.write(&[&header[..], request(&token).as_bytes()].concat());
        assert_eq!(client.read_response().status, 200, "{address}");
        let mut client = Client::connect(gateway.http());
        for byte in &header {
            client.write(&[*byte]);
        }
        client.write(request(&token).as_bytes());
        assert_eq!(client.read_response().status, 200, "{address}");
        let log = upstream.log();
        for arrived in &log[log.len() - 2..] {
            assert_eq!(arrived.header("x-forwarded-for"), address);
        }
    }
}

#[test]
fn the_proxy_header_precedes_tls() {
    let upstream = Upstream::start();
    let gateway = proxied(&upstream, "127.0.0.1");
    let token = token(&gateway);
    let config = tls_config(gateway.certificate_pem(), &["http/1.1"]);
    let name = rustls::pki_types::ServerName::try_from("localhost").expect("a name");
    let mut connection = rustls::ClientConnection::new(config, name).expect("a connection");
    let mut socket = std::net::TcpStream::connect(gateway.https()).expect("connected");
    socket.write_all(b"PROXY TCP6 2001:db8::7 2001:db8::1 4711 443\r\n").expect("sent");
    let mut stream = rustls::Stream::new(&mut connection, &mut socket);
    stream.write_all(request(&token).replace("Host: h", "Host: localhost").as_bytes()).expect("sent");
    let mut response = [0; 12];
    stream.read_exact(&mut response).expect("a response");
    assert_eq!(&response, b"HTTP/1.1 200");
    assert_eq!(upstream.only_request().header("x-forwarded-for"), "2001:db8::7");
}

#[test]
fn untrusted_or_invalid_proxy_headers_close_the_connection() {
    let upstream = Upstream::start();
    let strangers = proxied(&upstream, "192.0.2.0/24");
    let mut client = Client::connect(strangers.http());
    client.write(b"PROXY TCP4 203.0.113.7 10.0.0.1 4711 443\r\n");
    assert!(client.is_closed(), "the peer is not trusted");
    let gateway = proxied(&upstream, "127.0.0.1");
    let token = token(&gateway);
    for header in [
        "",
        "PROXY TCP4 203.0.113.7 10.0.0.1 4711\r\n",
        "PROXY TCP4 nowhere 10.0.0.1 1 1\r\n",
        "\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x01x",
        &format!("PROXY TCP4 {}\r\n", "1".repeat(200)),
    ] {
        let mut client = Client::connect(gateway.http());
        client.write(format!("{header}{}", request(&token)).as_bytes());
        assert!(client.is_closed(), "{header:?}");
    }
    let mut silent = Client::connect(gateway.http());
    silent.write(b"PROXY ");
    assert!(silent.is_closed(), "the header has the handshake timeout");
    assert!(upstream.log().is_empty());
}

#[test]
fn a_proxy_that_is_not_trusted_is_logged_once() {
    let upstream = Upstream::start();
    for (options, expected) in [(&[][..], 1), (&[("TRUSTED_PROXIES", "10.0.0.0/8")], 0)] {
        let (program, lines) = Program::start_logged(upstream.address(), options);
        for number in 0..5 {
            let headers = [JSON, ("X-Forwarded-For", &format!("192.0.2.{number}"))];
            assert_eq!(Client::connect(program.http).send("GET /timbr/api/x", &headers, b"").status, 401);
        }
        wait_until("all requests are logged", || lines.matching(|line| line["status"] == 401).len() == 5);
        let warnings = lines.matching(|line| line["message"].to_string().contains("trusted_proxies is empty"));
        assert_eq!(warnings.len(), expected);
    }
}

#[test]
fn clients_behind_the_proxy_protocol_are_limited_by_their_address() {
    let upstream = Upstream::start();
    let options = [
        ("LISTEN_PROXY_PROTOCOL", "required"),
        ("TRUSTED_PROXIES", "127.0.0.1, 10.0.0.0/8"),
        ("LIMITS_CONNECTIONS_PER_ADDRESS", "2"),
    ];
    let gateway = Gateway::start(upstream.address(), &options);
    let connect = |source: &str| {
        let mut client = Client::connect(gateway.http());
        client.write(format!("PROXY TCP4 {source} 10.0.0.1 4711 443\r\n").as_bytes());
        client.write(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n");
        let status = client.read_head().map(|response| response.status);
        (client, status)
    };
    let open: Vec<_> = (0..2).map(|_| connect("203.0.113.7")).collect();
    assert!(open.iter().all(|(_, status)| *status == Some(404)));
    assert_eq!(connect("203.0.113.7").1, None);
    gateway.expect_metric("timbr_gateway_connections_ended_total{cause=\"address_limit\"}", 1.0);
    assert_eq!(connect("203.0.113.8").1, Some(404), "a different client");
    let shared: Vec<_> = (0..4).map(|_| connect("10.1.1.1")).collect();
    assert!(shared.iter().all(|(_, status)| *status == Some(404)), "many clients share a trusted proxy's address");
    drop(open);
    gateway.expect_metric("timbr_gateway_client_connections", 4.0);
    assert_eq!(connect("203.0.113.7").1, Some(404));
}

#[test]
fn one_header_of_trusted_proxies_is_read() {
    let upstream = Upstream::start();
    for (option, address, proto) in [("x-forwarded-for", "203.0.113.7", "http"), ("forwarded", "203.0.113.8", "https")]
    {
        let options = [("TRUSTED_PROXIES", "127.0.0.1"), ("TRUSTED_PROXIES_HEADER", option)];
        let (gateway, token) = Gateway::with_token(upstream.address(), &options);
        let headers = [
            JSON,
            ("x-api-key", &*token),
            ("X-Forwarded-For", "203.0.113.7"),
            ("X-Forwarded-Proto", "http"),
            ("Forwarded", "for=203.0.113.8;proto=https"),
        ];
        assert_eq!(gateway.client().send("GET /timbr/api/x", &headers, b"").status, 200);
        let log = upstream.log();
        let arrived = log.last().expect("a request");
        assert_eq!(arrived.header("x-forwarded-for"), format!("{address}, 127.0.0.1"));
        assert_eq!(arrived.header("x-forwarded-proto"), proto);
    }
}
