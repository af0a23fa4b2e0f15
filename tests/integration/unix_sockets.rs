//! Unix sockets on both sides: two gateways in a row, of which the second one plays an API service on a Unix socket.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use timbr_gateway::app;
use timbr_gateway::base::clock::Clock;
use timbr_gateway::config::{Sources, load};

use crate::support::bearer::SALT;
use crate::support::client::{Client, JSON};
use crate::support::gateway::Gateway;
use crate::support::upstream::{Upstream, respond};
use crate::support::wait_until;

const LARGE: usize = 4 << 20;

struct Chain {
    front: Gateway,
    service: Gateway,
    backend: Upstream,
    _folder: tempfile::TempDir,
    socket: PathBuf,
}

fn chain(options: &[(&str, &str)]) -> Chain {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("run/http.sock");
    let path = socket.to_str().expect("text").to_owned();
    let backend = Upstream::with_behaviour(|request, stream| {
        let size = if request.line.contains("/large") { LARGE } else { request.body.len() };
        respond(stream, 200, &"x".repeat(size))
    });
    let options = [&[("LISTEN_HTTP_SOCKET", path.as_str()), ("LISTEN_HTTPS", "off")], options].concat();
    let service = Gateway::start(backend.address(), &options);
    let delegate = [("AUTH_VERIFIER", "delegate"), ("UPSTREAM_CREDENTIAL", "delegate")];
    let front = Gateway::start_with_url(&format!("unix:{path}"), &delegate);
    Chain { front, service, backend, _folder: folder, socket }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("it exists").permissions().mode() & 0o7777
}

#[test]
fn requests_and_logins_pass_over_a_unix_socket() {
    let Chain { front, service: _service, backend, _folder, socket } = chain(&[]);
    assert_eq!((mode(&socket), mode(socket.parent().expect("a folder"))), (0o660, 0o755));
    let token = front.token();
    let mut client = front.client();
    let headers = [JSON, ("x-api-key", &*token)];
    for round in 0..3 {
        let response = client.send("GET /timbr/api/large", &headers, b"");
        assert_eq!((response.status, response.body.len(), response.complete), (200, LARGE, true), "{round}");
        let response = client.send("POST /timbr/api/query", &headers, &vec![b'y'; LARGE]);
        assert_eq!((response.status, response.body.len(), response.complete), (200, LARGE, true), "{round}");
    }
    let arrived = backend.log();
    assert_eq!(arrived[0].header("x-forwarded-user"), "alice");
    // Clients of the socket are no proxies unless `unix:` is trusted.
    assert_eq!(arrived[0].header("x-forwarded-for"), "unix:");
    let endpoint = &front.get("/upstreams")["endpoints"][0];
    assert_eq!(endpoint["address"], format!("unix:{}", socket.display()));
    assert_eq!(endpoint["open"], 1, "the connection is reused: {endpoint}");
}

#[test]
fn a_proxy_on_the_socket_is_trusted_only_if_it_is_named() {
    let trusted = chain(&[("TRUSTED_PROXIES", "unix:")]);
    let token = trusted.service.token();
    let headers = [JSON, ("x-api-key", &*token), ("X-Forwarded-For", "6.6.6.6, 203.0.113.7")];
    assert_eq!(Client::connect_unix(&trusted.socket).send("GET /timbr/api/x", &headers, b"").status, 200);
    // The same claim over TCP: loopback clients are no peers of the socket.
    assert_eq!(trusted.service.client().send("GET /timbr/api/x", &headers, b"").status, 200);
    let arrived = trusted.backend.log();
    assert_eq!(arrived[0].header("x-forwarded-for"), "203.0.113.7, unix:");
    assert_eq!(arrived[1].header("x-forwarded-for"), "127.0.0.1");

    let untrusted = chain(&[("TRUSTED_PROXIES", "0.0.0.0/0")]);
    let token = untrusted.service.token();
    let headers = [JSON, ("x-api-key", &*token), ("X-Forwarded-For", "6.6.6.6, 203.0.113.7")];
    assert_eq!(Client::connect_unix(&untrusted.socket).send("GET /timbr/api/x", &headers, b"").status, 200);
    assert_eq!(untrusted.backend.only_request().header("x-forwarded-for"), "unix:");
}

/// Wrong credentials over the socket count for its clients together, and not for clients of the loopback address.
#[test]
fn all_clients_of_the_socket_share_the_limits_of_one_address() {
    let options = [("TOKENS_FOREIGN", "reject"), ("LIMITS_FAILURES_PER_ADDRESS", "2")];
    let Chain { service, _folder, socket, .. } = chain(&options);
    let guess = |mut client: Client| client.query("wrong").status;
    let statuses: Vec<_> = (0..3).map(|_| guess(Client::connect_unix(&socket))).collect();
    assert_eq!(statuses, [401, 401, 429]);
    assert_eq!(guess(service.client()), 401);
    let rejections = service.get("/refusals")["refusals"].clone();
    assert_eq!(rejections[0]["client"], "127.0.0.1", "{rejections}");
    assert_eq!(rejections[1]["client"], "unix:", "{rejections}");
}

#[test]
fn the_socket_is_refused_after_a_drain_and_then_removed() {
    let Chain { front, service, _folder, socket, backend: _backend } = chain(&[("DRAIN_DELAY", "0s")]);
    let token = front.token();
    let headers = [JSON, ("x-api-key", &*token)];
    let held = UnixStream::connect(&socket).expect("connected");
    service.begin_shutdown();
    drop(held);
    wait_until("the socket accepts nothing", || UnixStream::connect(&socket).is_err());
    service.wait();
    assert!(!socket.exists());
    let response = front.client().send("GET /timbr/api/x", &headers, b"");
    assert_eq!((response.status, response.reason()), (502, "upstream_unreachable".to_owned()));
}

#[test]
fn a_socket_that_others_could_replace_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).expect("set");
    let path = folder.path().join("http.sock");
    let environment = [
        ("API_AUTH_SALT", SALT),
        ("TIMBR_GATEWAY_UPSTREAM_URL", "http://127.0.0.1:1"),
        ("TIMBR_GATEWAY_LISTEN_HTTPS", "off"),
        ("TIMBR_GATEWAY_LISTEN_ADMIN", "off"),
        ("TIMBR_GATEWAY_LISTEN_HTTP_SOCKET", path.to_str().expect("text")),
    ];
    let environment = environment.map(|(name, value)| (name.into(), value.into())).into();
    let (config, _) = load(&Sources { environment, ..Sources::default() }).expect("valid: the socket is a listener");
    let error = app::bind(config, &Clock::system()).err().expect("refused");
    let error = format!("{:#}", anyhow::Error::from(error));
    assert!(error.starts_with("listen.http_socket: cannot listen on"), "{error}");
    assert!(error.contains("writable by other users; use a folder of its own"), "{error}");
}
