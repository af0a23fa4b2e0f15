//! Log lines and signals of the program for TLS.

use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};

use serde_json::Value;

use crate::support::TIMEOUT;
use crate::support::bearer::SALT;
use crate::support::pki::Pki;
use crate::support::tls_client::{TlsClient, leaf};
use crate::support::upstream::Upstream;

fn text(path: &Path) -> &str {
    path.to_str().expect("text")
}

/// The running program and its log lines.
struct Program {
    child: Child,
    lines: Receiver<Value>,
}

impl Program {
    fn start(environment: &[(&str, &str)]) -> Program {
        let mut child = Command::new(env!("CARGO_BIN_EXE_timbr-gateway"))
            .arg("serve")
            .env_clear()
            .envs(environment.iter().copied())
            .stderr(Stdio::piped())
            .spawn()
            .expect("started");
        let (sender, lines) = channel();
        let log = BufReader::new(child.stderr.take().expect("piped"));
        std::thread::spawn(move || {
            for line in log.lines().map_while(Result::ok) {
                let line = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Program { child, lines }
    }

    /// The next line with this message; skips access lines.
    fn line(&self, message: &str) -> Value {
        loop {
            let line = self.lines.recv_timeout(TIMEOUT).unwrap_or_else(|_| panic!("no line {message:?}"));
            if line["message"].as_str().unwrap_or_default() == message {
                return line;
            }
        }
    }

    fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([name, &self.child.id().to_string()]).status();
        assert!(sent.expect("kill").success());
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A port that was free a moment ago.
fn address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").expect("bound").local_addr().expect("an address")
}

#[test]
fn sighup_reloads_certificates_and_the_log_identifies_them() {
    let (pki, clients, upstream) = (Pki::new(), Pki::new(), Upstream::start());
    let ((chain, key), ca) = (pki.issue("localhost"), clients.ca_file());
    let (https, url) = (address(), format!("http://{}", upstream.address()));
    let https = https.to_string();
    let program = Program::start(&[
        ("API_AUTH_SALT", SALT),
        ("TIMBR_GATEWAY_UPSTREAM_URL", &url),
        ("TIMBR_GATEWAY_LISTEN_HTTPS", &https),
        ("TIMBR_GATEWAY_LISTEN_ADMIN", "off"),
        ("TIMBR_GATEWAY_TLS_CERT_FILE", text(&chain)),
        ("TIMBR_GATEWAY_TLS_KEY_FILE", text(&key)),
        ("TIMBR_GATEWAY_TLS_CLIENT_AUTH", "optional"),
        ("TIMBR_GATEWAY_TLS_CLIENT_CA_FILE", text(&ca)),
        ("TIMBR_GATEWAY_LOG_FORMAT", "json"),
        ("TIMBR_GATEWAY_WORKERS", "1"),
    ]);
    let in_use = program.line("active certificate");
    assert_eq!(in_use["names"], "localhost");
    assert_eq!(in_use["sha256"].as_str().map(str::len), Some(64));
    assert!(in_use["not_after"].as_str().is_some_and(|time| time.ends_with('Z')), "{in_use}");

    let https: SocketAddr = https.parse().expect("an address");
    let ask = |identity| {
        let client = TlsClient::new(&pki.ca_pem(), identity);
        let mut connection = client.connect(https, "localhost").expect("a handshake");
        let status = connection.get("/nowhere", "Host: localhost\r\n").expect("a response").0;
        (status, connection.certificate())
    };
    assert_eq!(ask(None).0, 404);
    assert_eq!(program.line("")["certificate"], Value::Null);
    let job = clients.issue_as("etl", &["etl.internal"]);
    assert_eq!(ask(Some(&job)).0, 404);
    assert_eq!(program.line("")["certificate"], "etl.internal");

    std::fs::write(&key, "-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n").expect("written");
    program.signal("-HUP");
    let refused = program.line("cannot use a certificate file; what it would replace stays active");
    let told = refused["error"].as_str().expect("why");
    assert!(told.contains("localhost.key") && !told.contains("c2VjcmV0"), "{told}");
    assert_eq!((refused["level"].as_str(), refused["option"].as_str()), (Some("ERROR"), Some("tls.key_file")));

    pki.issue("localhost");
    program.signal("-HUP");
    assert_eq!(program.line("reloaded changed certificate files")["client_authorities"], false);
    assert_ne!(program.line("active certificate")["sha256"], in_use["sha256"]);
    assert_eq!(ask(None).1, leaf(&chain));
}
