//! TLS with clients: certificates by server name, host checks, client certificates, and rejected versions.

use std::io::{Read, Write};
use std::net::TcpStream;

use crate::support::frames::{END_HEADERS, END_STREAM, Frames, HEADERS, frame, header};
use crate::support::gateway::{Gateway, setup};
use crate::support::pki::Pki;
use crate::support::tls_client::{TlsClient, leaf};
use crate::support::upstream::Upstream;
use crate::support::wait_until;

/// A gateway with certificates for `localhost`, `api.test` and `*.apps.test`.
fn several(pki: &Pki, upstream: &Upstream, more: &[(&str, &str)]) -> (Gateway, [std::path::PathBuf; 3]) {
    let (default, api) = (pki.issue("localhost"), pki.issue("api.test"));
    let apps = pki.issue_as("apps", &["*.apps.test", "other.test"]);
    let list = format!(
        "[{{cert_file: {}, key_file: {}}}, {{cert_file: {}, key_file: {}}}]",
        api.0.display(),
        api.1.display(),
        apps.0.display(),
        apps.1.display()
    );
    let mut options = vec![
        ("TLS_CERT_FILE", default.0.to_str().expect("text")),
        ("TLS_KEY_FILE", default.1.to_str().expect("text")),
        ("TLS_CERTIFICATES", list.as_str()),
    ];
    options.extend(more);
    (Gateway::start(upstream.address(), &options), [default.0, api.0, apps.0])
}

#[test]
fn each_server_name_gets_its_certificate() {
    let (pki, upstream) = (Pki::new(), Upstream::start());
    let (gateway, [default, api, apps]) = several(&pki, &upstream, &[]);
    let client = TlsClient::new(&pki.ca_pem(), None);
    for (name, file) in [("localhost", &default), ("api.test", &api), ("x.apps.test", &apps), ("other.test", &apps)] {
        let connection = client.connect(gateway.https(), name).expect("connected");
        assert_eq!(connection.certificate(), leaf(file), "{name}");
    }
    // The default certificate is sent, which is not valid for these names.
    for name in ["elsewhere.test", "apps.test", "a.b.apps.test"] {
        let error = client.connect(gateway.https(), name).map(|_| ()).expect_err(name).to_string();
        assert!(error.contains("not valid for name"), "{error}");
    }
}

#[test]
fn a_request_for_a_different_host_is_misdirected() {
    let (pki, upstream) = (Pki::new(), Upstream::start());
    let (gateway, _) = several(&pki, &upstream, &[]);
    let token = gateway.token();
    let client = TlsClient::new(&pki.ca_pem(), None);
    let headers = |host: &str| format!("Host: {host}\r\nContent-Type: application/json\r\nx-api-key: {token}\r\n");
    for (name, host, status) in [
        ("api.test", "api.test", 200),
        ("api.test", "API.test:8443", 200),
        ("api.test", "api.test.", 200),
        ("api.test", "api.test.:8443", 200),
        ("api.test", "localhost.", 421),
        ("api.test", "localhost", 421),
        ("api.test", "other.test", 421),
        ("x.apps.test", "y.apps.test", 200),
        ("x.apps.test", "other.test", 200),
        ("x.apps.test", "api.test", 421),
        ("localhost", "127.0.0.1", 421),
    ] {
        let mut connection = client.connect(gateway.https(), name).expect("connected");
        let (got, body) = connection.get("/timbr/api/x", &headers(host)).expect("a response");
        assert_eq!(got, status, "{name} {host}: {body}");
        assert_eq!(got == 421, body.contains("\"misdirected\""), "{body}");
    }
    assert_eq!(upstream.log().len(), 6);
}

#[test]
fn over_http_2_too() {
    let (upstream, gateway, token) = setup(&[]);
    let mut frames = Frames::connect(gateway.https(), gateway.certificate_pem());
    for (stream, authority, status) in [(1, "localhost", 200), (3, "elsewhere.test", 421)] {
        let head = [
            header(":method", b"GET"),
            header(":scheme", b"https"),
            header(":authority", authority.as_bytes()),
            header(":path", b"/timbr/api/x"),
            header("content-type", b"application/json"),
            header("x-api-key", token.as_bytes()),
        ];
        frames.send(&frame(HEADERS, END_HEADERS | END_STREAM, stream, &head.concat()));
        assert!(frames.wait_for(|frames| frames.status(stream).is_some()));
        assert_eq!(frames.status(stream), Some(status));
    }
    assert_eq!(upstream.log().len(), 1);
}

/// The hello of a client that supports no newer version.
fn old_hello(version: u8) -> Vec<u8> {
    let suites: &[u8] = &[0xc0, 0x13, 0xc0, 0x14, 0xc0, 0x09, 0xc0, 0x0a, 0x00, 0x2f, 0x00, 0x35];
    let groups: &[u8] = &[0, 10, 0, 4, 0, 2, 0, 23];
    let mut body = vec![3, version];
    body.extend([7; 32]);
    body.push(0);
    body.extend([0, u8::try_from(suites.len()).expect("short")]);
    body.extend(suites);
    body.extend([1, 0]);
    body.extend([0, u8::try_from(groups.len()).expect("short")]);
    body.extend(groups);
    let length = u8::try_from(body.len()).expect("short");
    [&[22, 3, 1, 0, length + 4, 1, 0, 0, length][..], &body].concat()
}

#[test]
fn old_versions_and_suites_are_rejected() {
    let gateway = Gateway::start(Upstream::start().address(), &[]);
    // SSL 3.0, TLS 1.0, 1.1, and 1.2 with suites that are neither AEAD nor ephemeral.
    for version in [0, 1, 2, 3] {
        let mut socket = TcpStream::connect(gateway.https()).expect("connected");
        socket.write_all(&old_hello(version)).expect("sent");
        let mut response = Vec::new();
        let _ = socket.read_to_end(&mut response);
        assert_eq!(response.first(), Some(&21), "an alert, and nothing else: {response:?}");
    }
}

#[test]
fn sessions_are_resumed_without_early_data() {
    let (pki, upstream) = (Pki::new(), Upstream::start());
    let (gateway, _) = several(&pki, &upstream, &[]);
    let client = TlsClient::new(&pki.ca_pem(), None);
    let mut first = client.connect(gateway.https(), "localhost").expect("connected");
    assert!(!first.is_resumed());
    // The tickets arrive with the response.
    assert_eq!(first.get("/nowhere", "Host: localhost\r\n").expect("a response").0, 404);
    assert!(client.connect(gateway.https(), "localhost").expect("connected").is_resumed());
}

/// Each gateway has a certificate of its own here, so the client accepts the second one only with a resumed session.
#[test]
fn replicas_with_the_same_ticket_keys_resume_each_others_sessions() {
    let (upstream, folder) = (Upstream::start(), tempfile::tempdir().expect("a folder"));
    let file = folder.path().join("ticket-keys");
    let key = |byte: &str| format!("{}=\n", byte.repeat(43));
    std::fs::write(&file, key("A")).expect("written");
    let options = [("TLS_TICKET_KEYS_FILE", file.to_str().expect("text"))];
    let gateways = [&options[..], &options[..], &[]].map(|options| Gateway::start(upstream.address(), options));
    let client = TlsClient::new(gateways[0].certificate_pem(), None);
    let mut first = client.connect(gateways[0].https(), "localhost").expect("connected");
    assert_eq!(first.get("/nowhere", "Host: localhost\r\n").expect("a response").0, 404);
    let mut second = client.connect(gateways[1].https(), "localhost").expect("resumed");
    assert!(second.is_resumed());
    assert_eq!(second.get("/nowhere", "Host: localhost\r\n").expect("a response").0, 404);
    // After a rotation the previous key still decrypts, and without it no session is resumed.
    for (keys, is_resumed) in [(key("E") + &key("A"), true), (key("I"), false)] {
        std::fs::write(&file, keys).expect("written");
        gateways[1].reload();
        wait_until("the keys are reloaded", || {
            let connected = client.connect(gateways[1].https(), "localhost");
            connected.is_ok_and(|connection| connection.is_resumed()) == is_resumed
        });
    }
    assert!(client.connect(gateways[2].https(), "localhost").is_err(), "a gateway without these keys");
}

#[test]
fn client_certificates_are_verified() {
    let (pki, strangers, upstream) = (Pki::new(), Pki::new(), Upstream::start());
    let ca = pki.ca_file();
    let (mine, theirs) = (pki.issue("etl-job"), strangers.issue("etl-job"));
    for auth in ["optional", "required"] {
        let more = [("TLS_CLIENT_CA_FILE", ca.to_str().expect("text")), ("TLS_CLIENT_AUTH", auth)];
        let (gateway, _) = several(&pki, &upstream, &more);
        let get = |client: &TlsClient| {
            let mut connection = client.connect(gateway.https(), "localhost").ok()?;
            connection.get("/nowhere", "Host: localhost\r\n").map(|(status, _)| status)
        };
        assert_eq!(get(&TlsClient::new(&pki.ca_pem(), Some(&mine))), Some(404), "{auth}");
        assert_eq!(get(&TlsClient::new(&pki.ca_pem(), Some(&theirs))), None, "{auth}: of an unknown authority");
        let without = (auth == "optional").then_some(404);
        assert_eq!(get(&TlsClient::new(&pki.ca_pem(), None)), without, "{auth}");
    }
}

#[test]
fn a_route_can_require_a_client_certificate() {
    let (pki, upstream) = (Pki::new(), Upstream::start());
    let (server, mine) = (pki.issue("localhost"), pki.issue("etl-job"));
    let text = |path: &std::path::Path| path.to_str().expect("text").to_owned();
    let gateway = Gateway::start_with_file(
        upstream.address(),
        "routes: [{name: api, client_certificate: required}]\n",
        &[
            ("TLS_CERT_FILE", &text(&server.0)),
            ("TLS_KEY_FILE", &text(&server.1)),
            ("TLS_CLIENT_CA_FILE", &text(&pki.ca_file())),
            ("TLS_CLIENT_AUTH", "optional"),
        ],
    );
    let token = gateway.token();
    let headers = format!("Host: localhost\r\nContent-Type: application/json\r\nx-api-key: {token}\r\n");
    let get = |certificate| {
        let client = TlsClient::new(&pki.ca_pem(), certificate);
        let mut connection = client.connect(gateway.https(), "localhost").expect("connected");
        connection.get("/timbr/api/x", &headers).expect("a response")
    };
    assert_eq!(get(Some(&mine)).0, 200);
    let (status, body) = get(None);
    assert_eq!(status, 403);
    assert!(body.contains("\"client_certificate_required\""), "{body}");
    let plain =
        gateway.client().send("GET /timbr/api/x", &[("Content-Type", "application/json"), ("x-api-key", &token)], b"");
    assert_eq!(plain.status, 403, "plain HTTP has no certificate");
    assert_eq!(upstream.log().len(), 1);
}

/// A client that confuses the ports gets a response that it can show, and its key is not accepted.
#[test]
fn plain_http_on_the_tls_port_is_rejected_in_http() {
    let (upstream, gateway, token) = setup(&[]);
    let mut client = crate::support::client::Client::connect(gateway.https());
    let headers = [("Content-Type", "application/json"), ("x-api-key", &*token)];
    let response = client.send("POST /timbr/api/x", &headers, b"{}");
    assert_eq!((response.status, response.reason().as_str()), (400, "tls_required"));
    assert_eq!(response.header("connection"), "close");
    assert!(client.is_closed());
    gateway.expect_metric("timbr_gateway_handshake_failures_total{kind=\"plain_http\"}", 1.0);
    assert!(upstream.log().is_empty());
    // The preface of HTTP/2 without TLS.
    let mut client = crate::support::client::Client::connect(gateway.https());
    client.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    assert_eq!(client.read_response().reason(), "tls_required");
}

#[test]
fn the_lowest_version_is_configurable() {
    let upstream = Upstream::start();
    let hello = |options: &[(&str, &str)]| {
        let gateway = Gateway::start(upstream.address(), options);
        let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut roots = rustls::RootCertStore::empty();
        let pem = gateway.certificate_pem().as_bytes();
        roots.add(rustls::pki_types::pem::PemObject::from_pem_slice(pem).expect("PEM")).expect("a root");
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS12])
            .expect("a version")
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = "localhost".try_into().expect("a name");
        let mut client = rustls::ClientConnection::new(std::sync::Arc::new(config), name).expect("a connection");
        let mut socket = TcpStream::connect(gateway.https()).expect("connected");
        while client.is_handshaking() {
            if client.complete_io(&mut socket).is_err() {
                return false;
            }
        }
        true
    };
    assert!(hello(&[]) && hello(&[("TLS_MIN_VERSION", "1.2")]));
    assert!(!hello(&[("TLS_MIN_VERSION", "1.3")]));
}
