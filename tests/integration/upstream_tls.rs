//! An https upstream: server verification and client certificates.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned};

use crate::support::client::Response;
use crate::support::gateway::Gateway;
use crate::support::pki::Pki;
use crate::support::wait_until;

/// A TLS backend that responds with 200. With `clients` it requires client certificates of that authority.
fn backend(pair: (PathBuf, PathBuf), clients: Option<PathBuf>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
    slow_backend(listener, pair, clients, || Some(Duration::ZERO))
}

/// Like `backend`, but delays the handshake of a new connection, or never begins it.
fn slow_backend(
    listener: TcpListener,
    (chain, key): (PathBuf, PathBuf),
    clients: Option<PathBuf>,
    delay: impl Fn() -> Option<Duration> + Send + 'static,
) -> SocketAddr {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .expect("versions");
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(ca) => {
            let mut roots = RootCertStore::empty();
            roots.add(CertificateDer::from_pem_file(ca).expect("PEM")).expect("trusted");
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            builder.with_client_cert_verifier(verifier.build().expect("a verifier"))
        }
    };
    let chain = vec![CertificateDer::from_pem_file(chain).expect("PEM")];
    let key = PrivateKeyDer::from_pem_file(key).expect("PEM");
    let config = Arc::new(builder.with_single_cert(chain, key).expect("a pair"));
    let address = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        let mut hanging = Vec::new();
        for stream in listener.incoming().flatten() {
            let Some(delay) = delay() else {
                hanging.push(stream);
                continue;
            };
            let connection = ServerConnection::new(Arc::clone(&config)).expect("a connection");
            let mut stream = StreamOwned::new(connection, stream);
            std::thread::spawn(move || {
                std::thread::sleep(delay);
                let mut buffer = [0; 4096];
                while matches!(stream.read(&mut buffer), Ok(count) if count > 0) {
                    let response = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}";
                    if stream.write_all(response).is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

fn query(address: SocketAddr, host: &str, options: &[(&str, &str)]) -> Response {
    let gateway = Gateway::start_with_url(&format!("https://{host}:{}", address.port()), options);
    let token = gateway.token();
    gateway.client().send("GET /timbr/api/x", &[("Content-Type", "application/json"), ("x-api-key", &token)], b"")
}

fn text(path: &std::path::Path) -> &str {
    path.to_str().expect("text")
}

#[test]
fn the_backends_certificate_is_verified() {
    let (pki, stranger) = (Pki::new(), Pki::new());
    let address = backend(pki.issue("localhost"), None);
    let (ca, other) = (pki.ca_file(), stranger.ca_file());
    assert_eq!(query(address, "localhost", &[("UPSTREAM_CA_FILE", text(&ca))]).status, 200);
    for (host, options) in [
        ("localhost", vec![("UPSTREAM_CA_FILE", text(&other))]),
        ("localhost", vec![]),
        ("127.0.0.1", vec![("UPSTREAM_CA_FILE", text(&ca))]),
        ("localhost", vec![("UPSTREAM_CA_FILE", text(&ca)), ("UPSTREAM_SERVER_NAME", "elsewhere")]),
    ] {
        let refused = query(address, host, &options);
        assert_eq!(refused.rejection(), (502, "upstream_unreachable".into()), "{host} {options:?}");
    }
}

#[test]
fn the_server_name_can_be_configured() {
    let pki = Pki::new();
    let address = backend(pki.issue("timbr.internal"), None);
    let ca = pki.ca_file();
    let options = [("UPSTREAM_CA_FILE", text(&ca)), ("UPSTREAM_SERVER_NAME", "timbr.internal")];
    assert_eq!(query(address, "127.0.0.1", &options).status, 200);
}

#[test]
fn the_gateway_sends_its_client_certificate() {
    let pki = Pki::new();
    let address = backend(pki.issue("localhost"), Some(pki.ca_file()));
    let ca = pki.ca_file();
    let (chain, key) = pki.issue("the-gateway");
    let trusted = ("UPSTREAM_CA_FILE", text(&ca));
    assert_eq!(query(address, "localhost", &[trusted]).rejection(), (502, "upstream_closed".into()));
    let with = [trusted, ("UPSTREAM_CLIENT_CERT_FILE", text(&chain)), ("UPSTREAM_CLIENT_KEY_FILE", text(&key))];
    assert_eq!(query(address, "localhost", &with).status, 200);
}

#[test]
fn the_client_certificate_is_read_from_files() {
    let pki = Pki::new();
    let (chain, key) = pki.issue("localhost");
    let upstream = crate::support::upstream::Upstream::start();
    let options = [("TLS_CERT_FILE", text(&chain)), ("TLS_KEY_FILE", text(&key))];
    let gateway = Gateway::start(upstream.address(), &options);
    let ca = std::fs::read_to_string(pki.ca_file()).expect("read");
    let client = crate::support::h2_client::H2Client::connect(gateway.https(), &ca);
    assert_eq!(client.send("GET /timbr/api/x", &[("content-type", "application/json")], b"").status, 401);
}

#[test]
fn backends_with_slow_handshakes_are_not_ejected() {
    let pki = Pki::new();
    let slow = |_| {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        let delay = || Some(Duration::from_millis(500));
        format!("https://{}", slow_backend(listener, pki.issue("localhost"), None, delay))
    };
    let urls: Vec<_> = (0..20).map(slow).collect();
    let (urls, ca) = (urls.join(","), pki.ca_file());
    let options = [
        ("UPSTREAM_URLS", urls.as_str()),
        ("UPSTREAM_SERVER_NAME", "localhost"),
        ("UPSTREAM_CA_FILE", text(&ca)),
        ("UPSTREAM_CONNECT_TIMEOUT", "4s"),
        ("UPSTREAM_EJECT_AFTER", "1"),
    ];
    let gateway = Gateway::start_with_url("", &options);
    let token = gateway.token();
    let headers = [("Content-Type", "application/json"), ("x-api-key", token.as_str())];
    // Each uses its own connection, because they are sent concurrently.
    let mut clients: Vec<_> = (0..8).map(|_| gateway.client()).collect();
    for client in &mut clients {
        client.write_request("GET /timbr/api/x", &headers, b"");
    }
    for client in &mut clients {
        assert_eq!(client.read_response().status, 200);
    }
    let told = gateway.get("/upstreams");
    for endpoint in told["endpoints"].as_array().expect("a list") {
        assert_eq!((endpoint["state"].as_str(), endpoint["failures"].as_u64()), (Some("usable"), Some(0)));
    }
}

/// A gateway with one backend that was down and has been ejected.
fn in_front_of_one_that_was_down(pki: &Pki, connect_timeout: &str) -> (Gateway, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
    let address = listener.local_addr().expect("an address");
    drop(listener);
    let ca = pki.ca_file();
    let options = [
        ("UPSTREAM_SERVER_NAME", "localhost"),
        ("UPSTREAM_CA_FILE", text(&ca)),
        ("UPSTREAM_CONNECT_TIMEOUT", connect_timeout),
        ("UPSTREAM_EJECT_AFTER", "1"),
    ];
    let gateway = Gateway::start_with_url(&format!("https://{address}"), &options);
    let token = gateway.token();
    let headers = [("Content-Type", "application/json"), ("x-api-key", token.as_str())];
    assert_eq!(gateway.client().send("GET /timbr/api/x", &headers, b"").status, 502);
    assert_eq!(state(&gateway), "ejected");
    (gateway, address)
}

fn state(gateway: &Gateway) -> String {
    gateway.get("/upstreams")["endpoints"][0]["state"].as_str().expect("a state").to_owned()
}

#[test]
fn a_single_slow_backend_recovers() {
    let pki = Pki::new();
    let (gateway, address) = in_front_of_one_that_was_down(&pki, "5s");
    let listener = TcpListener::bind(address).expect("bound");
    slow_backend(listener, pki.issue("localhost"), None, || Some(Duration::from_millis(1300)));
    wait_until("the endpoint is healthy again", || state(&gateway) == "usable");
}

#[test]
fn a_hanging_probe_does_not_block_the_next_one() {
    let pki = Pki::new();
    let (gateway, address) = in_front_of_one_that_was_down(&pki, "30s");
    let (well, seen) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
    let (is_well, has_seen) = (Arc::clone(&well), Arc::clone(&seen));
    let listener = TcpListener::bind(address).expect("bound");
    slow_backend(listener, pki.issue("localhost"), None, move || {
        has_seen.store(true, Ordering::SeqCst);
        is_well.load(Ordering::SeqCst).then_some(Duration::ZERO)
    });
    wait_until("a probe hangs", || seen.load(Ordering::SeqCst));
    well.store(true, Ordering::SeqCst);
    let back = Instant::now();
    wait_until("the endpoint is healthy again", || state(&gateway) == "usable");
    assert!(back.elapsed() < Duration::from_secs(20), "{:?}", back.elapsed());
}
