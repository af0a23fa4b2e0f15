//! The content of log lines, and that a blocked log output delays no request.

use std::fs::File;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::support::bearer::{SALT, basic, bearer};
use crate::support::client::{self, Client};
use crate::support::program::Program;
use crate::support::small_disk::SmallDisk;
use crate::support::upstream::Upstream;
use crate::support::wait_until;

/// A gateway that logs to a file.
struct Logging {
    child: Child,
    started: Value,
}

impl Drop for Logging {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Logging {
    fn start(upstream: SocketAddr, log: &Path) -> Logging {
        let child = Command::new(env!("CARGO_BIN_EXE_timbr-gateway"))
            .arg("serve")
            .env_clear()
            .env("API_AUTH_SALT", SALT)
            .env("TIMBR_GATEWAY_UPSTREAM_URL", format!("http://{upstream}"))
            .env("TIMBR_GATEWAY_LISTEN_HTTP", "127.0.0.1:0")
            .env("TIMBR_GATEWAY_LISTEN_HTTPS", "off")
            .env("TIMBR_GATEWAY_LISTEN_ADMIN", "127.0.0.1:0")
            .env("TIMBR_GATEWAY_LOG_FORMAT", "json")
            .env("TIMBR_GATEWAY_LOG_LEVEL", "trace")
            .env("TIMBR_GATEWAY_WORKERS", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(log).expect("created"))
            .spawn()
            .expect("started");
        let mut logging = Logging { child, started: Value::Null };
        wait_until("it listens", || lines(log).iter().any(|line| line["http"].is_string()));
        logging.started = lines(log).into_iter().find(|line| line["http"].is_string()).expect("just seen");
        logging
    }

    fn address(&self, name: &str) -> SocketAddr {
        self.started[name].as_str().expect("text").parse().expect("an address")
    }
}

/// Complete lines.
fn lines(log: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

fn dropped(admin: SocketAddr) -> f64 {
    client::metric(admin, "timbr_gateway_log_lines_dropped_total").expect("it is exported")
}

/// Sends requests until lines were dropped, and the same number again; each gets a response.
fn requests_are_served_while_lines_are_dropped(http: SocketAddr, admin: SocketAddr) {
    let token = client::login(http, "alice", "secret").token();
    let mut client = Client::connect(http);
    let long = format!("POST /timbr/api/query/{}", "x".repeat(400));
    let mut ask = |count: usize| {
        for _ in 0..count {
            let headers = [("x-api-key", token.as_str()), ("content-type", "application/json")];
            assert_eq!(client.send(&long, &headers, b"{}").status, 200);
        }
    };
    let mut sent = 0;
    while dropped(admin) == 0.0 {
        ask(500);
        sent += 500;
        assert!(sent < 40_000, "no line was dropped");
    }
    let before = dropped(admin);
    while dropped(admin) <= before {
        ask(500);
        sent += 500;
        assert!(sent < 80_000, "later lines are not counted");
    }
}

#[test]
fn a_full_disk_delays_no_request_and_dropped_lines_are_counted() {
    let disk = SmallDisk::mount(1);
    let log = disk.path("log");
    let upstream = Upstream::start();
    let gateway = Logging::start(upstream.address(), &log);
    requests_are_served_while_lines_are_dropped(gateway.address("http"), gateway.address("admin"));
    assert!(std::fs::metadata(&log).expect("the log").len() > 900_000, "the disk is full");
    drop(gateway);
}

#[test]
fn a_stopped_reader_delays_no_request_and_dropped_lines_are_counted() {
    let upstream = Upstream::start();
    let options = [("LISTEN_ADMIN", "127.0.0.1:0")];
    let program = Program::start_unread(upstream.address(), &options, "exec \"$0\" serve");
    requests_are_served_while_lines_are_dropped(program.http, program.admin.expect("it is on"));
}

/// With all levels enabled, no line contains a secret that a client sent or received.
#[test]
fn a_log_line_identifies_the_request_without_secrets() {
    const QUERY: &str = "SELECT secret_column FROM secrets";
    let folder = tempfile::tempdir().expect("a folder");
    let log = folder.path().join("log");
    let upstream = Upstream::start();
    let gateway = Logging::start(upstream.address(), &log);
    let login = bearer("alice", "pass-word-of-alice");
    let authorization = format!("Bearer {login}");
    let headers = [("content-type", "application/json"), ("authorization", authorization.as_str())];
    let mut client = Client::connect(gateway.address("http"));
    let token = client.send("POST /timbr/api/get_token", &headers, b"").token();
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let traceparent = format!("00-{trace}-00f067aa0ba902b7-01");
    let headers = [
        ("x-api-key", token.as_str()),
        ("content-type", "application/json"),
        ("cookie", "session=cookie-of-alice"),
        ("traceparent", &traceparent),
        ("x-request-id", "the-request"),
    ];
    let response = client.send("POST /timbr/api/query/?q=secret-in-the-query", &headers, QUERY.as_bytes());
    assert_eq!(response.status, 200);
    let wrong = [("x-api-key", "tk_a-key-that-nobody-knows"), ("content-type", "application/json")];
    let judged = client.send("POST /timbr/api/query/", &wrong, b"{}").status;
    assert_eq!(judged, 503, "a backend that accepts every key is not trusted");
    let forged = [("authorization", "Bearer not-a-bearer"), ("content-type", "application/json")];
    assert_eq!(client.send("POST /timbr/api/get_token", &forged, b"").status, 401);

    let found = |target: &str, key: &str, value: &str| {
        lines(&log).into_iter().find(|line| line["target"] == target && line[key] == value)
    };
    wait_until("the access line is written", || found("audit", "decision", "bearer_invalid").is_some());
    wait_until("the access line is written", || found("access", "request_id", "the-request").is_some());
    let line = found("access", "request_id", "the-request").expect("just seen");
    for (key, value) in [
        ("trace_id", trace),
        ("protocol", "http/1"),
        ("client", "127.0.0.1"),
        ("user", "alice"),
        ("route", "api"),
        ("method", "POST"),
        ("path", "/timbr/api/query/"),
        ("reason", ""),
    ] {
        assert_eq!(line[key], value, "{key} of {line}");
    }
    assert_eq!(
        (&line["status"], &line["received"], &line["complete"]),
        (&200.into(), &QUERY.len().into(), &true.into())
    );
    assert!(line["sent"].as_u64().is_some_and(|sent| sent > 0), "{line}");
    assert_eq!(line["key"].as_str().map(str::len), Some(8), "a fingerprint: {line}");
    for key in ["head_ms", "upstream_ms", "total_ms"] {
        assert!(line[key].as_f64().is_some_and(|millis| millis > 0.0), "{key} of {line}");
    }
    let minted = found("audit", "what", "mint").expect("a line of the audit log");
    assert_eq!((&minted["decision"], &minted["user"]), (&"granted".into(), &"alice".into()));
    assert_eq!(minted["key"], line["key"]);

    let text = std::fs::read_to_string(&log).expect("the log");
    let secrets = [
        SALT,
        login.as_str(),
        "pass-word-of-alice",
        token.as_str(),
        &token[3..],
        "cookie-of-alice",
        "secret-in-the-query",
        "secret_column",
        "tk_a-key-that-nobody-knows",
        "not-a-bearer",
    ];
    for secret in secrets {
        assert!(!text.contains(secret), "{secret} is in the log");
    }
}

/// Commands of an operator are rare, and the main thread does little in between: its log must not reuse an old time.
#[test]
fn each_audit_line_has_the_time_of_its_own_command() {
    let upstream = Upstream::start();
    let folder = tempfile::tempdir().expect("a folder");
    let log = folder.path().join("log");
    let logging = Logging::start(upstream.address(), &log);
    let revocations = || lines(&log).into_iter().filter(|line| line["what"] == "revoke").collect::<Vec<_>>();
    let mut times = Vec::new();
    for user in ["alice", "bob"] {
        // The clock of the log has a resolution of a microsecond; only the second command has to come later.
        let begun = std::time::SystemTime::now();
        wait_until("a moment passes", || begun.elapsed().is_ok_and(|passed| passed.as_millis() > 1500));
        let body = format!(r#"{{"user":"{user}"}}"#);
        let mut client = Client::connect(logging.address("admin"));
        let head = "POST /tokens/revoke HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json";
        client.write(format!("{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len()).as_bytes());
        assert_eq!(client.read_response().status, 200);
        wait_until("the command is in the log", || revocations().len() > times.len());
        let line = revocations().pop().expect("just seen");
        let time = line["timestamp"].as_str().expect("text").to_owned();
        times.push(humantime::parse_rfc3339(&time).expect("a time"));
    }
    let apart = times[1].duration_since(times[0]).expect("the second command received later");
    assert!(apart.as_millis() >= 1500, "{apart:?}");
}

/// An attack on one account must be visible. The name is only a claim, so the access log does not have it.
#[test]
fn the_audit_line_of_a_failed_login_names_the_user() {
    let upstream = Upstream::start();
    let folder = tempfile::tempdir().expect("a folder");
    let users = folder.path().join("users");
    let hash = bcrypt::hash("wonder", 4).expect("hashed");
    std::fs::write(&users, format!("alice:{hash}\n")).expect("written");
    let options = [("AUTH_VERIFIER", "users-file"), ("AUTH_USERS_FILE", users.to_str().expect("text"))];
    let (program, log) = Program::start_logged(upstream.address(), &options);
    let line_of = |target: &str, id: &str| {
        log.expect("the line is written", |line| line["target"] == target && line["request_id"] == id)
    };
    let forged = bearer("alice", "wrong").replace("gAAAAA", "gAAAAB");
    for (id, bearer, user) in [("wrong", bearer("alice", "wrong"), Some("alice")), ("forged", forged, None)] {
        let authorization = format!("Bearer {bearer}");
        let headers =
            [("content-type", "application/json"), ("authorization", authorization.as_str()), ("x-request-id", id)];
        let response = Client::connect(program.http).send("POST /timbr/api/get_token", &headers, b"");
        assert_eq!(response.status, 401);
        let audit = line_of("audit", id);
        assert_eq!((audit["claimed_user"].as_str(), &audit["user"]), (user, &"".into()), "{id}");
        let access = line_of("access", id);
        assert_eq!((access["claimed_user"].as_str(), &access["user"]), (None, &"".into()), "{id}");
    }
}

/// Who was denied is proven by the password, and a login that is not even tried has a line too.
#[test]
fn the_audit_line_of_a_denied_login_names_the_proven_user() {
    let upstream = Upstream::start();
    let folder = tempfile::tempdir().expect("a folder");
    let (users, config) = (folder.path().join("users"), folder.path().join("gateway.yaml"));
    let hash = bcrypt::hash("wonder", 4).expect("hashed");
    std::fs::write(&users, format!("alice:{hash}\n")).expect("written");
    std::fs::write(&config, "routes: [{name: hive}]\n").expect("written");
    let options = [
        ("AUTH_VERIFIER", "users-file"),
        ("AUTH_USERS_FILE", users.to_str().expect("text")),
        ("CONFIG", config.to_str().expect("text")),
        ("LISTEN_ADMIN", "127.0.0.1:0"),
    ];
    let (program, log) = Program::start_logged(upstream.address(), &options);
    let expect_line = |id: &str, status: u16, decision: &str, user: &str, claimed_user: Option<&str>| {
        let line = log.expect("an audit line", |line| line["target"] == "audit" && line["request_id"] == id);
        assert_eq!((&line["what"], &line["decision"], &line["user"]), (&"mint".into(), &decision.into(), &user.into()));
        assert_eq!(line["claimed_user"].as_str(), claimed_user, "{id}");
        let line = log.expect("an access line", |line| line["target"] == "access" && line["request_id"] == id);
        assert_eq!((&line["status"], &line["reason"], &line["user"]), (&status.into(), &decision.into(), &user.into()));
    };
    let basic_login = |id: &str, password: &str| {
        let authorization = basic("alice", password);
        let headers =
            [("Content-Type", "application/x-thrift"), ("Authorization", &*authorization), ("x-request-id", id)];
        Client::connect(program.http).send("POST /timbr-server", &headers, b"\x80\x01").status
    };
    let get_token = |id: &str| {
        let authorization = format!("Bearer {}", bearer("alice", "wonder"));
        let headers = [("Content-Type", "application/json"), ("Authorization", &*authorization), ("x-request-id", id)];
        Client::connect(program.http).send("POST /timbr/api/get_token", &headers, b"").status
    };
    assert_eq!(basic_login("wrong", "wonderful"), 401);
    expect_line("wrong", 401, "credentials_wrong", "", Some("alice"));
    let stop = r#"{"kind":"route","name":"get_token","why":"Maintenance."}"#;
    assert_eq!(program.admin("POST /stop", stop).status, 200);
    assert_eq!(get_token("stopped-0"), 503);
    expect_line("stopped-0", 503, "stopped_by_operator", "", None);
    assert_eq!(program.admin("POST /resume", r#"{"kind":"route","name":"get_token"}"#).status, 200);
    assert_eq!(program.admin("POST /stop", r#"{"kind":"user","name":"alice","why":"Wait."}"#).status, 200);
    assert_eq!((basic_login("stopped-1", "wonder"), get_token("stopped-2")), (503, 503));
    let deny = r#"{"user":"alice","deny_seconds":3600}"#;
    assert_eq!(program.admin("POST /tokens/revoke", deny).status, 200);
    assert_eq!(program.admin("POST /resume", r#"{"kind":"user","name":"alice"}"#).status, 200);
    assert_eq!((basic_login("denied-1", "wonder"), get_token("denied-2")), (403, 403));
    for (id, status, reason) in [
        ("stopped-1", 503, "stopped_by_operator"),
        ("stopped-2", 503, "stopped_by_operator"),
        ("denied-1", 403, "credential_denied"),
        ("denied-2", 403, "credential_denied"),
    ] {
        expect_line(id, status, reason, "alice", None);
    }
}
