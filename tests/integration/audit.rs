//! The outputs of the audit log, and what its lines say.

use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::Value;

use crate::support::bearer::SALT;
use crate::support::client::{Client, JSON};
use crate::support::pki::Pki;
use crate::support::program::{Program, run};
use crate::support::upstream::Upstream;
use crate::support::wait_until;

fn lines(file: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

fn command(program: &Program, line: &str, body: &str) -> u16 {
    let admin = program.admin.expect("it is on");
    Client::connect(admin).send(line, &[("Host", "localhost"), JSON], body.as_bytes()).status
}

#[test]
fn the_file_has_all_lines_in_sequence_with_old_and_new_values() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("audit.json");
    let config = folder.path().join("gateway.yaml");
    std::fs::write(&config, "limits: {uri: 8KiB}\n").expect("written");
    let options = [
        ("AUDIT_FILE", file.to_str().expect("text")),
        ("AUDIT_ON_FAILURE", "refuse"),
        ("CONFIG", config.to_str().expect("text")),
        ("LISTEN_ADMIN", "127.0.0.1:0"),
        ("LOG_FORMAT", "json"),
    ];
    let mut program = Program::start(Upstream::start().address(), &options);
    assert_eq!(program.login("alice", "secret").status, 200);
    assert_eq!(lines(&file).last().expect("a line")["decision"], "granted", "written before the response");
    assert_eq!(command(&program, "PUT /log-level", r#"{"level":"debug"}"#), 200);
    assert_eq!(command(&program, "POST /tokens/revoke", r#"{"user":"alice"}"#), 200);
    std::fs::write(&config, "limits: {uri: 300B}\n").expect("written");
    assert_eq!(command(&program, "POST /reload", "{}"), 200);
    program.begin_shutdown();
    assert!(program.wait().success());

    let all = lines(&file);
    for (index, line) in all.iter().enumerate() {
        assert_eq!((&line["sequence"], &line["target"]), (&(index + 1).into(), &"audit".into()), "{line}");
    }
    let find = |what: &str| all.iter().find(|line| line["what"] == what).unwrap_or_else(|| panic!("{what} in {all:?}"));
    assert_eq!((&all[0]["what"], &all[all.len() - 1]["what"]), (&"start".into(), &"stop".into()));
    assert_eq!((&find("mint")["user"], &find("mint")["decision"]), (&"alice".into(), &"granted".into()));
    let level = find("log-level");
    assert_eq!((&level["old"], &level["new"], &level["via"]), (&"info".into(), &"debug".into(), &"loopback".into()));
    assert_eq!(find("revoke")["tokens"], "user alice");
    assert_eq!(find("reload")["changed"], "limits.uri: 8KiB -> 300B");
    assert!(!std::fs::read_to_string(&file).expect("read").contains(SALT));
}

#[test]
fn the_users_whose_tokens_a_new_users_file_ends_are_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let (file, users) = (folder.path().join("audit.json"), folder.path().join("users"));
    let hash = bcrypt::hash("secret", 4).expect("hashed");
    std::fs::write(&users, format!("alice:{hash}\nbob:{hash}\n")).expect("written");
    let options = [
        ("AUDIT_FILE", file.to_str().expect("text")),
        ("AUTH_VERIFIER", "users-file"),
        ("AUTH_USERS_FILE", users.to_str().expect("text")),
    ];
    let program = Program::start(Upstream::start().address(), &options);
    assert_eq!(program.login("alice", "secret").status, 200);
    std::fs::write(&users, format!("bob:{hash}\n")).expect("written");
    let revoked = || lines(&file).into_iter().find(|line| line["what"] == "revocation");
    wait_until("the tokens have ended", || revoked().is_some());
    let line = revoked().expect("just seen");
    assert_eq!((&line["tokens"], &line["by"]), (&"user alice".into(), &"reload".into()));
}

#[test]
fn logins_are_refused_while_a_required_line_cannot_be_written() {
    for (on_failure, status) in [("refuse", 503), ("continue", 200)] {
        let folder = tempfile::tempdir().expect("a folder");
        let (logs, moved) = (folder.path().join("logs"), folder.path().join("moved"));
        std::fs::create_dir(&logs).expect("created");
        let file = logs.join("audit.json");
        let options = [("AUDIT_FILE", file.to_str().expect("text")), ("AUDIT_ON_FAILURE", on_failure)];
        let program = Program::start(Upstream::start().address(), &options);
        let token = program.login("alice", "secret").token();
        std::fs::rename(&logs, &moved).expect("renamed");
        let response = program.login("alice", "secret");
        assert_eq!(response.status, status, "{on_failure}: {response:?}");
        if status == 503 {
            assert_eq!(response.json()["reason"], "audit_unavailable");
            assert!(!response.text().contains(&token));
        }
        let headers = [JSON, ("x-api-key", token.as_str())];
        assert_eq!(Client::connect(program.http).send("GET /timbr/api/x", &headers, b"").status, 200);
        std::fs::rename(&moved, &logs).expect("renamed");
        assert_eq!(program.login("alice", "secret").status, 200);
    }
}

#[test]
fn a_file_that_cannot_be_written_prevents_the_start() {
    let mut program = std::process::Command::new(env!("CARGO_BIN_EXE_timbr-gateway"));
    program.args(["serve", "--upstream-url", "http://127.0.0.1:1", "--audit-file", "/nonexistent/audit.json"]);
    let output = program.env_clear().env("API_AUTH_SALT", SALT).output().expect("started");
    assert_eq!(output.status.code(), Some(1));
    let shown = String::from_utf8_lossy(&output.stderr);
    assert!(shown.contains("audit.file: is in the folder /nonexistent, which does not exist; create it"), "{shown}");
}

/// A syslog server with TLS that returns the messages.
fn syslog_server(listener: TcpListener, pki: &Pki) -> Receiver<String> {
    let (certificate, key) = pki.issue("localhost");
    let certificate = CertificateDer::from_pem_file(certificate).expect("read");
    let key = PrivateKeyDer::from_pem_file(key).expect("read");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.expect("valid").with_no_client_auth();
    let config = Arc::new(builder.with_single_cert(vec![certificate], key).expect("valid"));
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let connection = rustls::ServerConnection::new(Arc::clone(&config)).expect("valid");
            let mut stream: rustls::StreamOwned<_, TcpStream> = rustls::StreamOwned::new(connection, stream);
            let mut length = String::new();
            let mut byte = [0];
            while stream.read_exact(&mut byte).is_ok() {
                if byte[0] != b' ' {
                    length.push(byte[0].into());
                    continue;
                }
                let mut message = vec![0; length.parse().expect("a length")];
                stream.read_exact(&mut message).expect("the message");
                length.clear();
                if sender.send(String::from_utf8(message).expect("text")).is_err() {
                    return;
                }
            }
        }
    });
    receiver
}

#[test]
fn a_syslog_server_receives_lines_over_tls_and_those_from_before_it_was_reachable() {
    let pki = Pki::new();
    let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
    let port = listener.local_addr().expect("an address").port();
    drop(listener);
    let server = format!("tls://localhost:{port}");
    let authority = pki.ca_file();
    let options = [
        ("AUDIT_SYSLOG", server.as_str()),
        ("AUDIT_SYSLOG_CA_FILE", authority.to_str().expect("text")),
        ("AUDIT_ON_FAILURE", "refuse"),
    ];
    let program = Program::start(Upstream::start().address(), &options);
    let begun = Instant::now();
    let refused = program.login("alice", "secret");
    assert_eq!((refused.status, &refused.json()["reason"]), (503, &"audit_unavailable".into()));
    assert!(begun.elapsed() < Duration::from_secs(5));

    let messages = syslog_server(TcpListener::bind(("127.0.0.1", port)).expect("bound"), &pki);
    wait_until("logins are possible", || program.login("alice", "secret").status == 200);
    let mut granted = None;
    for sequence in 1.. {
        let message = messages.recv_timeout(Duration::from_secs(10)).expect("a message");
        let (header, json) = message.split_at(message.find('{').expect("JSON"));
        let fields: Vec<_> = header.split(' ').collect();
        assert_eq!((fields[0], fields[3], fields[5], fields[6]), ("<85>1", "timbr-gateway", "audit", "-"), "{message}");
        let line: Value = serde_json::from_str(json).expect("JSON");
        assert_eq!((&line["sequence"], &line["timestamp"]), (&sequence.into(), &fields[1].into()));
        if line["decision"] == "audit_unavailable" {
            granted = Some(false);
        } else if line["decision"] == "granted" && granted == Some(false) {
            break;
        }
    }
}

/// The fields of the table in `docs/siem.md`, with their ECS names.
fn documented_fields() -> Vec<(String, String)> {
    let words = |cell: &str| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
    let page = include_str!("../../docs/siem.md");
    let rows = page.lines().skip_while(|line| !line.starts_with("| field | ECS |")).skip(2);
    rows.take_while(|line| line.starts_with('|'))
        .flat_map(|row| {
            let cells: Vec<_> = row.split('|').collect();
            words(cells[1]).into_iter().zip(words(cells[2]))
        })
        .collect()
}

/// The assignments `.ecs.name = del(.field)` of the sample, which map fields one to one.
fn mapped_fields() -> Vec<(String, String)> {
    let sample = include_str!("../../deploy/siem/vector.yaml");
    let moves = sample.lines().filter_map(|line| {
        let (ecs, field) = line.trim().strip_prefix('.')?.split_once(" = del(.")?;
        Some((field.strip_suffix(')')?.to_owned(), ecs.to_owned()))
    });
    moves.collect()
}

#[test]
fn the_documented_fields_are_those_of_the_lines_and_of_the_sample() {
    let documented = documented_fields();
    assert!(documented.len() > 20, "{documented:?}");
    let mapped = mapped_fields();
    // The sample computes these from several fields.
    let computed = ["user", "claimed_user", "operator", "target"];
    for (field, ecs) in &documented {
        let is_mapped = mapped.contains(&(field.clone(), ecs.clone()));
        assert!(is_mapped != computed.contains(&field.as_str()), "{field} -> {ecs} in {mapped:?}");
    }
    assert_eq!(mapped.len(), documented.len() - computed.len(), "{mapped:?}");

    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("audit.json");
    let users = folder.path().join("users");
    std::fs::write(&users, format!("alice:{}\n", bcrypt::hash("secret", 4).expect("hashed"))).expect("written");
    let socket = folder.path().join("socket");
    let text = |path: &Path| path.to_str().expect("text").to_owned();
    let (file_text, users_text, socket_text) = (text(&file), text(&users), text(&socket));
    let options = [
        ("AUDIT_FILE", file_text.as_str()),
        ("AUTH_VERIFIER", "users-file"),
        ("AUTH_USERS_FILE", users_text.as_str()),
        ("AUTHORIZATION_MODE", "enforce"),
        ("AUTHORIZATION_RULES", "[{users: bob}]"),
        ("IMPERSONATION_RULES", "[{users: alice, act_as: bob}]"),
        ("LISTEN_ADMIN", "127.0.0.1:0"),
        ("LISTEN_ADMIN_SOCKET", socket_text.as_str()),
    ];
    let program = Program::start(Upstream::start().address(), &options);
    assert_eq!(program.login("alice", "wrong").status, 401);
    let token = program.login("alice", "secret").token();
    for more in [&[][..], &[("x-api-impersonate-user", "bob")]] {
        let headers = [&[JSON, ("x-api-key", token.as_str())], more].concat();
        Client::connect(program.http).send("GET /timbr/api/x", &headers, b"");
    }
    let commands = [
        ("PUT /log-level", r#"{"level":"warn"}"#),
        ("POST /reload", "{}"),
        ("POST /tokens/revoke", r#"{"user":"alice","deny_seconds":60}"#),
        ("POST /stop", r#"{"kind":"route","name":"api","why":"Maintenance.","seconds":60}"#),
        ("POST /resume", r#"{"kind":"route","name":"api"}"#),
        ("POST /drain", "{}"),
    ];
    let revoke = run(&["tokens", "revoke", "--all", "--listen-admin-socket", &socket_text], &[], "");
    assert!(revoke.status.success(), "{revoke:?}");
    for (line, body) in commands {
        assert_eq!(command(&program, line, body), 200, "{line}");
    }
    wait_until("all lines are written", || lines(&file).iter().any(|line| line["what"] == "drain"));
    let all = lines(&file);
    let whats: Vec<_> = all.iter().filter_map(|line| line["what"].as_str()).collect();
    for what in [
        "start",
        "mint",
        "authorization",
        "impersonation",
        "revoke",
        "reload",
        "log-level",
        "stop-requests",
        "resume-requests",
        "drain",
    ] {
        assert!(whats.contains(&what), "{what} in {whats:?}");
    }
    for line in &all {
        for (field, value) in line.as_object().expect("an object") {
            assert!(documented.iter().any(|(name, _)| name == field), "{field} is not in docs/siem.md: {line}");
            assert!(value.is_string() || value.is_u64(), "{line}");
        }
    }
}
