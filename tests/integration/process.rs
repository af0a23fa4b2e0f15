//! The process: protection of its memory, panics, and an unread log.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use timbr_gateway::app::RunOutcome;

use crate::support::bearer::{SALT, bearer};
use crate::support::client::Client;
use crate::support::gateway::Gateway;

/// The user `nobody`.
const NOBODY: u32 = 65534;

/// A started gateway. The log is read up to the line with the listening addresses.
struct Program {
    child: Child,
    log: BufReader<std::process::ChildStderr>,
    begun_with: String,
    http: SocketAddr,
    _folder: tempfile::TempDir,
}

impl Program {
    /// Root can read all processes, so the program runs as a different user.
    fn start(options: &[(&str, &str)]) -> Program {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).expect("set");
        let mut path = PathBuf::from(env!("CARGO_BIN_EXE_timbr-gateway"));
        let root = std::fs::metadata("/proc/self").expect("metadata").uid() == 0;
        if root {
            // Other users may have no access to the build folder.
            let copy = folder.path().join("timbr-gateway");
            std::fs::copy(&path, &copy).expect("copied");
            path = copy;
        }
        let mut command = Command::new(path);
        if root {
            command.uid(NOBODY).gid(NOBODY);
        }
        let mut child = command
            .arg("serve")
            .current_dir("/")
            .env_clear()
            .env("API_AUTH_SALT", SALT)
            .env("TIMBR_GATEWAY_UPSTREAM_URL", "http://127.0.0.1:1")
            .env("TIMBR_GATEWAY_LISTEN_HTTP", "127.0.0.1:0")
            .env("TIMBR_GATEWAY_LISTEN_HTTPS", "off")
            .env("TIMBR_GATEWAY_LISTEN_ADMIN", "off")
            .env("TIMBR_GATEWAY_LOG_FORMAT", "json")
            .envs(options.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("started");
        let mut log = BufReader::new(child.stderr.take().expect("piped"));
        let mut begun_with = String::new();
        let http = loop {
            let before = begun_with.len();
            assert_ne!(log.read_line(&mut begun_with).expect("text"), 0, "it ended");
            let line: serde_json::Value = serde_json::from_str(&begun_with[before..]).expect("JSON");
            if let Some(address) = line["http"].as_str() {
                break address.parse().expect("an address");
            }
        };
        Program { child, log, begun_with, http, _folder: folder }
    }

    fn proc(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/{name}", self.child.id()))
    }

    /// The soft and the hard limit for core dumps.
    fn core_limit(&self) -> String {
        let limits = std::fs::read_to_string(self.proc("limits")).expect("readable by all");
        let line = limits.lines().find_map(|line| line.strip_prefix("Max core file size")).expect("the line");
        line.split_whitespace().take(2).collect::<Vec<_>>().join(" ")
    }

    /// Returns whether other processes of its user may read its memory: then these files belong to that user, otherwise
    /// to root.
    fn is_open(&self) -> bool {
        let owner = std::fs::metadata(self.proc("environ")).expect("metadata").uid();
        let status = std::fs::read_to_string(self.proc("status")).expect("readable by all");
        let runs_as = status.lines().find_map(|line| line.strip_prefix("Uid:")).expect("the line");
        let runs_as: u32 = runs_as.split_whitespace().next().expect("a number").parse().expect("a number");
        assert_ne!(runs_as, 0);
        assert!(owner == 0 || owner == runs_as, "{owner} {runs_as}");
        owner == runs_as
    }

    fn end(mut self) -> String {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("sent");
        let mut log = self.begun_with;
        self.log.read_to_string(&mut log).expect("text");
        assert!(self.child.wait().expect("ended").success(), "{log}");
        log
    }
}

#[test]
fn other_processes_cannot_read_the_memory() {
    let program = Program::start(&[]);
    assert_eq!(program.core_limit(), "0 0");
    assert!(!program.is_open());
    if std::fs::metadata("/proc/self").expect("metadata").uid() != 0 {
        assert!(std::fs::read(program.proc("environ")).is_err(), "the salt is readable");
    }
    program.end();
}

#[test]
fn core_dumps_can_be_enabled() {
    let program = Program::start(&[("TIMBR_GATEWAY_CORE_DUMPS", "true")]);
    assert!(program.is_open());
    let log = program.end();
    assert!(log.contains("can read every secret"), "{log}");
}

/// Near the maximum time, arithmetic on a bearer's age overflows, which panics in builds with overflow checks.
#[cfg(debug_assertions)]
#[test]
fn a_panic_ends_only_its_request() {
    let json = ("Content-Type", "application/json");
    let gateway = Gateway::start_at("http://127.0.0.1:1", &[("TOKENS_FOREIGN", "reject")], u64::MAX);
    let bearer = format!("Bearer {}", bearer("alice", "secret"));
    let mut client = gateway.client();
    for _ in 0..3 {
        let refused = client.send("POST /timbr/api/get_token", &[json, ("Authorization", &bearer)], b"");
        assert_eq!(refused.rejection(), (500, "internal_error".into()));
        let refused = client.send("GET /timbr/api/x", &[json, ("x-api-key", "tk_1")], b"");
        assert_eq!(refused.rejection(), (401, "api_key_unknown".into()), "on the same connection");
    }
    gateway.begin_shutdown();
    assert_eq!(gateway.wait(), RunOutcome::Drained { cut: 0 });
}

/// The pipe holds 64 KiB and the queue some thousand lines; further lines are dropped, counted and reported.
#[test]
fn an_unread_log_delays_no_request() {
    const REQUESTS: usize = 10_000;
    let program = Program::start(&[]);
    let mut client = Client::connect(program.http);
    let long = "x".repeat(1000);
    for _ in 0..REQUESTS / 100 {
        for _ in 0..100 {
            client.write_request(&format!("GET /nowhere/{long}"), &[("x-request-id", &long[..100])], b"");
        }
        for _ in 0..100 {
            assert_eq!(client.read_response().status, 404);
        }
    }
    let log = program.end();
    let lines: Vec<serde_json::Value> =
        log.lines().map(|line| serde_json::from_str(line).expect("whole lines")).collect();
    let access = lines.iter().filter(|line| line["target"] == "access").count();
    let dropped = lines.iter().filter_map(|line| line["total"].as_u64()).max().expect("it reports");
    assert!(dropped > 0 && access < REQUESTS, "{dropped} {access}");
    assert!(access as u64 + dropped >= REQUESTS as u64, "{dropped} {access}");
    let path = lines.iter().find_map(|line| line["path"].as_str()).expect("an access line");
    assert_eq!(path.len(), 512);
}

/// The program reads its configuration from a pipe, so that it is starting until the test says otherwise.
fn start_from_pipe(folder: &std::path::Path) -> (Child, std::fs::File) {
    let pipe = folder.join("gateway.yaml");
    assert!(Command::new("mkfifo").arg(&pipe).status().expect("mkfifo runs").success());
    let child = Command::new(env!("CARGO_BIN_EXE_timbr-gateway"))
        .args(["serve", "--config"])
        .arg(&pipe)
        .env_clear()
        .env("API_AUTH_SALT", SALT)
        .env("TIMBR_GATEWAY_UPSTREAM_URL", "http://127.0.0.1:1")
        .env("TIMBR_GATEWAY_LOG_FORMAT", "json")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("started");
    // Opens when the program reads it.
    let writer = std::fs::OpenOptions::new().write(true).open(&pipe).expect("opened");
    (child, writer)
}

fn send_signal(child: &Child, name: &str) {
    let sent = Command::new("kill").args(["-s", name, &child.id().to_string()]).status().expect("kill runs");
    assert!(sent.success());
}

#[test]
fn signals_during_the_start_are_handled() {
    use std::io::Write;
    let folder = tempfile::tempdir().expect("a folder");
    let (mut child, mut writer) = start_from_pipe(folder.path());
    send_signal(&child, "HUP");
    let content = "listen: {https: 'off', http: '127.0.0.1:0', admin: 'off'}\n";
    // The reload reads a file.
    let file = folder.path().join("plain");
    std::fs::write(&file, content).expect("written");
    std::fs::rename(&file, folder.path().join("gateway.yaml")).expect("renamed");
    writer.write_all(content.as_bytes()).expect("written");
    drop(writer);
    let mut log = BufReader::new(child.stderr.take().expect("piped"));
    let mut line = String::new();
    while !line.contains("timbr-gateway started") {
        line.clear();
        assert_ne!(log.read_line(&mut line).expect("text"), 0, "SIGHUP ended it");
    }
    send_signal(&child, "TERM");
    assert!(child.wait().expect("ended").success());

    let folder = tempfile::tempdir().expect("a folder");
    let (mut child, writer) = start_from_pipe(folder.path());
    send_signal(&child, "TERM");
    assert_eq!(child.wait().expect("ended").code(), Some(0), "nothing has to be drained");
    drop(writer);
}
