//! A gateway in the test process, on free ports.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Output;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use timbr_gateway::admin::control::{self, ControlHandle};
use timbr_gateway::app::{self, Addresses, Inherited, RunOutcome};
use timbr_gateway::base::clock::Clock;
use timbr_gateway::config::{Sources, load};

use crate::support::TIMEOUT;
use crate::support::bearer::SALT;
use crate::support::client::{self, Client, Response};
use crate::support::program::run;
use crate::support::upstream::Upstream;

/// Options with which the backend receives the service key.
pub const IMPERSONATE: [(&str, &str); 3] =
    [("UPSTREAM_CREDENTIAL", "impersonate"), ("UPSTREAM_API_KEY", "tk_service"), ("AUTH_TRUST_SALT_HOLDER", "true")];

/// A backend that accepts every request, a gateway for it, and a token of `alice`.
pub fn setup(options: &[(&str, &str)]) -> (Upstream, Gateway, String) {
    let upstream = Upstream::start();
    let (gateway, token) = Gateway::with_token(upstream.address(), options);
    (upstream, gateway, token)
}

/// A running gateway. Stops when dropped.
pub struct Gateway {
    addresses: Addresses,
    certificate_pem: Option<String>,
    control: ControlHandle,
    thread: Option<JoinHandle<RunOutcome>>,
    /// Advances only when the test says so; tokens and caches expire by it.
    pub clock: Clock,
}

impl Gateway {
    /// A gateway for a plain HTTP backend.
    pub fn start(upstream: SocketAddr, options: &[(&str, &str)]) -> Gateway {
        Gateway::start_with_url(&format!("http://{upstream}"), options)
    }

    /// The same with a token of `alice`.
    pub fn with_token(upstream: SocketAddr, options: &[(&str, &str)]) -> (Gateway, String) {
        let gateway = Gateway::start(upstream, options);
        let token = gateway.token();
        (gateway, token)
    }

    /// `options` are environment variables without the prefix `TIMBR_GATEWAY_`, except for the salt.
    pub fn start_with_url(upstream: &str, options: &[(&str, &str)]) -> Gateway {
        Gateway::start_at(upstream, options, now())
    }

    /// With a configuration file with this content.
    pub fn start_with_file(upstream: SocketAddr, file: &str, options: &[(&str, &str)]) -> Gateway {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("gateway.yaml");
        std::fs::write(&path, file).expect("written");
        Gateway::start_from(&format!("http://{upstream}"), Some(path), options, now())
    }

    /// With a configuration file of the test. The file or `options` set the upstream.
    pub fn start_with_path(path: PathBuf, options: &[(&str, &str)]) -> Gateway {
        Gateway::start_from("", Some(path), options, now())
    }

    /// With a clock that is set to these seconds of Unix time.
    pub fn start_at(upstream: &str, options: &[(&str, &str)], unix_seconds: u64) -> Gateway {
        Gateway::start_from(upstream, None, options, unix_seconds)
    }

    fn start_from(upstream: &str, file: Option<PathBuf>, options: &[(&str, &str)], unix_seconds: u64) -> Gateway {
        let defaults = [
            ("API_AUTH_SALT", SALT),
            ("UPSTREAM_URL", upstream),
            ("LISTEN_HTTP", "127.0.0.1:0"),
            ("LISTEN_HTTPS", "127.0.0.1:0"),
            ("LISTEN_ADMIN", "127.0.0.1:0"),
            ("WORKERS", "1"),
        ];
        let given = |name: &str| options.iter().any(|(other, _)| *other == name);
        let all = defaults.iter().filter(|(name, _)| !given(name)).chain(options);
        let environment = all
            .map(|(name, value)| match *name {
                "API_AUTH_SALT" => ((*name).into(), (*value).into()),
                name => (format!("TIMBR_GATEWAY_{name}").into(), (*value).into()),
            })
            .collect();
        let sources = Sources { environment, file, ..Sources::default() };
        let (config, settings) = load(&sources).unwrap_or_else(|problems| panic!("{problems:?}"));
        let given = Inherited { config_source: Some((sources, settings)), ..Inherited::default() };
        let clock = Clock::manual(unix_seconds);
        let bound = app::bind_inherited(config, given, &clock).expect("the gateway starts");
        let addresses = bound.addresses();
        let certificate_pem = bound.certificate_pem().map(str::to_owned);
        let (control, orders) = control::channel();
        let running = std::thread::spawn(move || bound.run(orders).expect("the gateway runs"));
        Gateway { addresses, certificate_pem, control, thread: Some(running), clock }
    }

    pub fn http(&self) -> SocketAddr {
        self.addresses.http.expect("it listens on HTTP")
    }

    pub fn https(&self) -> SocketAddr {
        self.addresses.https.expect("it listens on HTTPS")
    }

    pub fn admin(&self) -> SocketAddr {
        self.addresses.admin.expect("it has an admin listener")
    }

    pub fn certificate_pem(&self) -> &str {
        self.certificate_pem.as_deref().expect("it made a certificate")
    }

    /// A connection over plain HTTP.
    pub fn client(&self) -> Client {
        Client::connect(self.http())
    }

    /// Sends a request on a new connection, and leaves the response there.
    pub fn begin(&self, line: &str, headers: &[(&str, &str)], body: &[u8]) -> Client {
        let mut client = self.client();
        client.write_request(line, headers, body);
        client
    }

    /// The response to a query with this key, on a new connection.
    pub fn query(&self, key: &str) -> Response {
        self.client().query(key)
    }

    /// The value of a counter or gauge in `/metrics`; 0 if it is missing.
    pub fn metric(&self, series: &str) -> f64 {
        client::metric(self.admin(), series).unwrap_or(0.0)
    }

    /// Waits until a counter or gauge has this value. Requests are counted when they end, shortly after the response
    /// has arrived.
    pub fn expect_metric(&self, series: &str, value: f64) {
        let start = Instant::now();
        while self.metric(series) != value {
            assert!(start.elapsed() < TIMEOUT, "{series} is {}, not {value}", self.metric(series));
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// The status of `/readyz`.
    pub fn readiness(&self) -> u16 {
        Client::connect(self.admin()).send("GET /readyz", &[], b"").status
    }

    /// The JSON of a GET on the admin listener.
    pub fn get(&self, path: &str) -> serde_json::Value {
        let response = self.admin_request(&format!("GET {path}"), b"");
        assert_eq!(response.status, 200, "{response:?}");
        response.json()
    }

    /// Revokes tokens; `command` is the JSON body.
    pub fn revoke(&self, order: &str) {
        let response = self.try_revoke(order);
        assert_eq!(response.status, 200, "{response:?}");
    }

    pub fn try_revoke(&self, order: &str) -> Response {
        self.admin_request("POST /tokens/revoke", order.as_bytes())
    }

    /// Runs a command of the program for this gateway.
    pub fn command(&self, arguments: &[&str]) -> Output {
        self.command_with(arguments, "")
    }

    /// As `command`, with this input.
    pub fn command_with(&self, arguments: &[&str], input: &str) -> Output {
        let admin = self.admin().to_string();
        run(&[arguments, &["--listen-admin", &admin]].concat(), &[], input)
    }

    /// The response to an admin command.
    pub fn admin_command(&self, line: &str, json: &str) -> Response {
        self.admin_request(line, json.as_bytes())
    }

    fn admin_request(&self, line: &str, body: &[u8]) -> Response {
        let mut client = Client::connect(self.admin());
        let length = body.len();
        let json = "Content-Type: application/json\r\n";
        client
            .write(format!("{line} HTTP/1.1\r\nHost: localhost\r\n{json}Content-Length: {length}\r\n\r\n").as_bytes());
        client.write(body);
        client.read_response()
    }

    /// A token of `alice`.
    pub fn token(&self) -> String {
        self.token_of("alice", "secret")
    }

    /// The response to a request for a token.
    pub fn login(&self, user: &str, password: &str) -> Response {
        client::login(self.http(), user, password)
    }

    pub fn token_of(&self, user: &str, password: &str) -> String {
        self.login(user, password).token()
    }

    /// Reloads certificates, as SIGHUP does.
    pub fn reload(&self) {
        drop(self.control.reload("a test"));
    }

    /// Begins a drain, as SIGTERM does.
    pub fn begin_shutdown(&self) {
        self.control.stop();
    }

    /// Waits until the gateway has stopped.
    pub fn wait(mut self) -> RunOutcome {
        let running = self.thread.take().expect("it ends once");
        running.join().expect("it does not panic")
    }
}

fn now() -> u64 {
    std::time::UNIX_EPOCH.elapsed().expect("after 1970").as_secs()
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if let Some(running) = self.thread.take() {
            self.control.quit();
            let ended = running.join();
            assert!(std::thread::panicking() || ended.is_ok(), "the gateway panicked");
        }
    }
}
