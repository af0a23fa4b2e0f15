//! The gateway as a separate process, whose memory, CPU time and descriptors can be measured.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Child, ChildStderr, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::bearer::SALT;
use crate::support::client::{self, Client, Response};
use crate::support::pki::Pki;
use crate::support::wait_until;

/// Runs a command to its end, with these environment variables only and with this input.
pub fn run(arguments: &[&str], variables: &[(&str, &str)], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_timbr-gateway"))
        .args(arguments)
        .env_clear()
        .envs(variables.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("started");
    // A command that does not read its input may have closed it.
    let _ = child.stdin.take().expect("piped").write_all(input.as_bytes());
    child.wait_with_output().expect("ended")
}

/// Runs a command with the salt and these options, variables without the prefix `TIMBR_GATEWAY_`.
pub fn run_with_options(arguments: &[&str], options: &[(&str, &str)]) -> Output {
    let names: Vec<_> = options.iter().map(|(name, _)| format!("TIMBR_GATEWAY_{name}")).collect();
    let options = names.iter().zip(options).map(|(name, (_, value))| (name.as_str(), *value));
    run(arguments, &options.chain([("API_AUTH_SALT", SALT)]).collect::<Vec<_>>(), "")
}

const SERVE: &str = "exec \"$0\" serve";

/// A running program. Killed when dropped.
pub struct Program {
    child: Child,
    pub http: SocketAddr,
    pub https: SocketAddr,
    /// The admin listener, if it is enabled.
    pub admin: Option<SocketAddr>,
    pub authority_pem: String,
    /// Kept open but unread; `None` once a thread reads it.
    log: Option<BufReader<ChildStderr>>,
    _files: Pki,
}

/// The lines that a program has logged.
#[derive(Clone, Default)]
pub struct Lines(Arc<Mutex<Vec<Value>>>);

impl Lines {
    /// Those that match, so far.
    pub fn matching(&self, is_it: impl Fn(&Value) -> bool) -> Vec<Value> {
        self.0.lock().expect("no panic").iter().filter(|line| is_it(line)).cloned().collect()
    }

    /// Waits for a line that matches, and returns it.
    pub fn expect(&self, what: &str, is_it: impl Fn(&Value) -> bool) -> Value {
        wait_until(what, || !self.matching(&is_it).is_empty());
        self.matching(is_it).swap_remove(0)
    }

    /// Whether a message contains this text.
    pub fn has_message(&self, part: &str) -> bool {
        !self.matching(|line| line["message"].as_str().is_some_and(|message| message.contains(part))).is_empty()
    }
}

impl Program {
    /// With one worker. The log is read and discarded.
    pub fn start(upstream: SocketAddr, options: &[(&str, &str)]) -> Program {
        Program::start_as(upstream, options, SERVE)
    }

    /// `shell` is the command that starts the program `$0`. The log is read and discarded.
    pub fn start_as(upstream: SocketAddr, options: &[(&str, &str)], shell: &str) -> Program {
        let mut program = Program::start_unread(upstream, options, shell);
        let mut log = program.log.take().expect("the log is not read yet");
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        program
    }

    /// Also returns the lines of the log.
    pub fn start_logged(upstream: SocketAddr, options: &[(&str, &str)]) -> (Program, Lines) {
        Program::start_logged_as(upstream, options, SERVE)
    }

    /// `shell` is the command that starts the program `$0`.
    pub fn start_logged_as(upstream: SocketAddr, options: &[(&str, &str)], shell: &str) -> (Program, Lines) {
        let mut program = Program::start_unread(upstream, options, shell);
        let log = program.log.take().expect("the log is not read yet");
        let lines = Lines::default();
        let shared = lines.clone();
        std::thread::spawn(move || {
            for line in log.lines().map_while(Result::ok) {
                if let Ok(line) = serde_json::from_str(&line) {
                    shared.0.lock().expect("no panic").push(line);
                }
            }
        });
        (program, lines)
    }

    /// The log is not read after the first line. `shell` is the command that starts the program `$0`.
    pub fn start_unread(upstream: SocketAddr, options: &[(&str, &str)], shell: &str) -> Program {
        Program::start_with(upstream, options, shell, [Stdio::null(), Stdio::null()])
    }

    /// Like `start_unread`, with these as descriptors 0 and 1.
    pub fn start_with(
        upstream: SocketAddr,
        options: &[(&str, &str)],
        shell: &str,
        [stdin, stdout]: [Stdio; 2],
    ) -> Program {
        let files = Pki::new();
        let (certificate, key) = files.issue("localhost");
        let mut child = Command::new("/bin/sh")
            .args(["-c", shell, env!("CARGO_BIN_EXE_timbr-gateway")])
            .env_clear()
            .env("API_AUTH_SALT", SALT)
            .env("TIMBR_GATEWAY_UPSTREAM_URL", format!("http://{upstream}"))
            .env("TIMBR_GATEWAY_TLS_CERT_FILE", certificate)
            .env("TIMBR_GATEWAY_TLS_KEY_FILE", key)
            .env("TIMBR_GATEWAY_LISTEN_HTTP", "127.0.0.1:0")
            .env("TIMBR_GATEWAY_LISTEN_HTTPS", "127.0.0.1:0")
            .env("TIMBR_GATEWAY_LISTEN_ADMIN", "off")
            .env("TIMBR_GATEWAY_LOG_FORMAT", "json")
            .env("TIMBR_GATEWAY_WORKERS", "1")
            .envs(options.iter().map(|(name, value)| (format!("TIMBR_GATEWAY_{name}"), value)))
            .stdin(stdin)
            .stdout(stdout)
            .stderr(Stdio::piped())
            .spawn()
            .expect("started");
        let mut log = BufReader::new(child.stderr.take().expect("piped"));
        let mut line = String::new();
        let started: Value = loop {
            line.clear();
            assert!(log.read_line(&mut line).expect("a log") > 0, "the program exited before it started");
            match serde_json::from_str::<Value>(&line) {
                Ok(entry) if entry["http"].is_string() => break entry,
                _ => {}
            }
        };
        let address = |name: &str| started[name].as_str().expect("text").parse().expect("an address");
        Program {
            http: address("http"),
            https: address("https"),
            admin: started["admin"].as_str().and_then(|text| text.parse().ok()),
            authority_pem: std::fs::read_to_string(files.ca_file()).expect("read"),
            child,
            log: Some(log),
            _files: files,
        }
    }

    /// The response to a request for a token.
    pub fn login(&self, user: &str, password: &str) -> Response {
        client::login(self.http, user, password)
    }

    /// The response to a query with this key, on a new connection.
    pub fn query(&self, key: &str) -> Response {
        Client::connect(self.http).query(key)
    }

    /// A token of `alice`.
    pub fn token(&self) -> String {
        self.login("alice", "secret").token()
    }

    /// The response to an admin command.
    pub fn admin(&self, line: &str, body: &str) -> Response {
        let mut client = Client::connect(self.admin.expect("it is on"));
        let head = format!("Host: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n", body.len());
        client.write(format!("{line} HTTP/1.1\r\n{head}\r\n{body}").as_bytes());
        client.read_response()
    }

    /// The value of a counter or gauge in `/metrics`; `None` if it is missing.
    pub fn metric(&self, series: &str) -> Option<f64> {
        client::metric(self.admin.expect("it is on"), series)
    }

    fn proc(&self, file: &str) -> String {
        std::fs::read_to_string(format!("/proc/{}/{file}", self.child.id())).expect("it runs")
    }

    /// Resident memory in bytes.
    pub fn memory(&self) -> usize {
        let status = self.proc("status");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a line");
        line.trim().trim_end_matches(" kB").parse::<usize>().expect("a number") * 1024
    }

    /// CPU time used so far, with a resolution of 10 ms.
    pub fn cpu(&self) -> Duration {
        let stat = self.proc("stat");
        let after_name = stat.rsplit(')').next().expect("fields");
        let ticks = |field: usize| -> u64 {
            after_name.split_ascii_whitespace().nth(field).expect("a field").parse().expect("a number")
        };
        Duration::from_millis((ticks(11) + ticks(12)) * 10)
    }

    /// The number of open descriptors.
    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).expect("it runs").count()
    }

    /// The number of open descriptors once it has stayed the same for half a second: connections of the start are closed.
    pub fn settled_descriptors(&self) -> usize {
        let mut settled = (self.descriptors(), Instant::now());
        while settled.1.elapsed() < Duration::from_millis(500) {
            std::thread::sleep(Duration::from_millis(10));
            let now = self.descriptors();
            if now != settled.0 {
                settled = (now, Instant::now());
            }
        }
        settled.0
    }

    /// Waits until the program has exited.
    pub fn wait(&mut self) -> ExitStatus {
        wait_until("the program ends", || !self.is_running());
        self.child.wait().expect("it has ended")
    }

    /// Kills the program with SIGKILL.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Sends SIGTERM.
    pub fn begin_shutdown(&self) {
        self.signal("TERM");
    }

    /// Sends a signal.
    pub fn signal(&self, name: &str) {
        let process = self.child.id().to_string();
        let sent = Command::new("kill").args(["-s", name, &process]).status().expect("kill runs");
        assert!(sent.success());
    }

    /// A process that has exited but was not waited for is a zombie.
    fn is_running(&self) -> bool {
        !self.proc("stat").rsplit(')').next().expect("fields").starts_with(" Z")
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
