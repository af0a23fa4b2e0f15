//! Proxies in front of the gateway: who is believed about the client.

use std::io::{Read, Write};

use crate::support::client::Client;
use crate::support::gateway::Gateway;
use crate::support::h2_client::tls_config;
use crate::support::upstream::Upstream;

const JSON: (&str, &str) = ("Content-Type", "application/json");

#[test]
fn strangers_do_not_say_who_they_are() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(upstream.address(), &[]);
    let token = gateway.token();
    let fields = [
        JSON,
        ("x-api-key", &*token),
        ("X-Forwarded-For", "6.6.6.6"),
        ("Forwarded", "for=6.6.6.6"),
        ("X-Forwarded-Proto", "https"),
        ("X-Real-IP", "6.6.6.6"),
    ];
    assert_eq!(gateway.client().send("GET /timbr/api/x", &fields, b"").status, 200);
    let arrived = upstream.only();
    assert_eq!(arrived.field("x-forwarded-for"), "127.0.0.1");
    assert_eq!(arrived.field("x-forwarded-proto"), "http");
    assert!(arrived.folded("forwarded").is_empty() && arrived.folded("x-real-ip").is_empty());
}

#[test]
fn trusted_proxies_do() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(upstream.address(), &[("TRUSTED_PROXIES", "127.0.0.0/8, 10.0.0.0/8")]);
    let token = gateway.token();
    let fields = [
        JSON,
        ("x-api-key", &*token),
        ("X-Forwarded-For", "6.6.6.6, 203.0.113.7, 10.1.1.1"),
        ("X-Forwarded-Proto", "https"),
    ];
    assert_eq!(gateway.client().send("GET /timbr/api/x", &fields, b"").status, 200);
    let arrived = upstream.only();
    assert_eq!(arrived.field("x-forwarded-for"), "203.0.113.7, 10.1.1.1, 127.0.0.1");
    assert_eq!(arrived.field("x-forwarded-proto"), "https");
}

/// What counts by address counts by the client's, not by the proxy's.
#[test]
fn guesses_behind_a_proxy_are_each_clients_own() {
    let upstream = Upstream::start();
    let options = [
        ("TRUSTED_PROXIES", "127.0.0.1"),
        ("TOKENS_FOREIGN", "reject"),
        ("LIMITS_FAILURES_PER_ADDRESS", "3"),
    ];
    let gateway = Gateway::start(upstream.address(), &options);
    let guess = |client: &str| {
        let fields = [JSON, ("x-api-key", "wrong"), ("X-Forwarded-For", client)];
        gateway.client().send("GET /timbr/api/x", &fields, b"").status
    };
    let statuses: Vec<_> = (0..5).map(|_| guess("203.0.113.1")).collect();
    assert_eq!(statuses, [401, 401, 401, 429, 429]);
    assert_eq!(guess("203.0.113.2"), 401);
    assert_eq!(guess("203.0.113.1, 203.0.113.3"), 401, "what is left of the client is its own word");
}

fn proxied(upstream: &Upstream, trusted: &str) -> Gateway {
    let options = [
        ("LISTEN_PROXY_PROTOCOL", "required"),
        ("TRUSTED_PROXIES", trusted),
        ("TIMEOUTS_HANDSHAKE", "500ms"),
    ];
    Gateway::start(upstream.address(), &options)
}

fn request(token: &str) -> String {
    format!(
        "GET /timbr/api/x HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nx-api-key: {token}\r\n\r\n"
    )
}

/// A token, got through the PROXY protocol.
fn token(gateway: &Gateway) -> String {
    let mut client = Client::connect(gateway.http());
    client.write(b"PROXY UNKNOWN\r\n");
    let authorization = format!("Bearer {}", crate::support::bearer::bearer("alice", "secret"));
    let answer = client.send("POST /timbr/api/get_token", &[JSON, ("Authorization", &authorization)], b"");
    answer.json()["data"][0].as_str().expect("a token").to_owned()
}

#[test]
fn a_load_balancer_tells_whom_it_has_taken_the_connection_from() {
    let upstream = Upstream::start();
    let gateway = proxied(&upstream, "127.0.0.1");
    let token = token(&gateway);
    let version_2 =
        [b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".to_vec(), vec![203, 0, 113, 8, 10, 0, 0, 1, 1, 1, 1, 187]];
    for (header, address) in [
        (b"PROXY TCP4 203.0.113.7 10.0.0.1 4711 443\r\n".to_vec(), "203.0.113.7"),
        (version_2.concat(), "203.0.113.8"),
        (b"PROXY UNKNOWN\r\n".to_vec(), "127.0.0.1"),
    ] {
        let mut client = Client::connect(gateway.http());
        // Header and request in one piece, and the same again byte by byte.
        client.write(&[&header[..], request(&token).as_bytes()].concat());
        assert_eq!(client.read_answer(false).status, 200, "{address}");
        let mut client = Client::connect(gateway.http());
        for byte in &header {
            client.write(&[*byte]);
        }
        client.write(request(&token).as_bytes());
        assert_eq!(client.read_answer(false).status, 200, "{address}");
        let log = upstream.log();
        for arrived in &log[log.len() - 2..] {
            assert_eq!(arrived.field("x-forwarded-for"), address);
        }
    }
}

#[test]
fn the_header_goes_before_tls() {
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
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).expect("an answer");
    assert_eq!(&answer, b"HTTP/1.1 200");
    assert_eq!(upstream.only().field("x-forwarded-for"), "2001:db8::7");
}

#[test]
fn whoever_is_not_trusted_or_says_nothing_valid_is_closed() {
    let upstream = Upstream::start();
    let strangers = proxied(&upstream, "192.0.2.0/24");
    let mut client = Client::connect(strangers.http());
    client.write(b"PROXY TCP4 203.0.113.7 10.0.0.1 4711 443\r\n");
    assert!(client.is_closed(), "it is none of the trusted");
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
    assert!(silent.is_closed(), "the header has the time of a handshake");
    assert!(upstream.log().is_empty());
}
