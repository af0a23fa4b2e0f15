//! A gateway within the test's process, on free ports.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use timbr_gateway::admin::control::{self, ControlHandle};
use timbr_gateway::app::{self, Addresses, Inherited, RunOutcome};
use timbr_gateway::base::clock::Clock;
use timbr_gateway::config::{Sources, load};

use crate::support::PATIENCE;
use crate::support::bearer::{SALT, bearer};
use crate::support::client::{Answer, Client};

/// A running gateway; ends with the test.
pub struct Gateway {
    addresses: Addresses,
    certificate_pem: Option<String>,
    control: ControlHandle,
    running: Option<JoinHandle<RunOutcome>>,
    /// Its clock stands still until the test moves it: tokens and caches age with it.
    pub clock: Clock,
}

impl Gateway {
    /// In front of a plain HTTP upstream.
    pub fn start(upstream: SocketAddr, options: &[(&str, &str)]) -> Gateway {
        Gateway::start_with_url(&format!("http://{upstream}"), options)
    }

    /// `options` are variables without their `TIMBR_GATEWAY_`, except for the salt.
    pub fn start_with_url(upstream: &str, options: &[(&str, &str)]) -> Gateway {
        Gateway::start_at(upstream, options, now())
    }

    /// With a configuration file of this content.
    pub fn start_with_file(upstream: SocketAddr, file: &str, options: &[(&str, &str)]) -> Gateway {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("gateway.yaml");
        std::fs::write(&path, file).expect("written");
        Gateway::start_from(&format!("http://{upstream}"), Some(path), options, now())
    }

    /// With this configuration file, which the test keeps, and an upstream that it or `options` name.
    pub fn start_with_path(path: PathBuf, options: &[(&str, &str)]) -> Gateway {
        Gateway::start_from("", Some(path), options, now())
    }

    /// With a clock that stands at so many seconds after the epoch.
    pub fn start_at(upstream: &str, options: &[(&str, &str)], unix_seconds: u64) -> Gateway {
        Gateway::start_from(upstream, None, options, unix_seconds)
    }

    fn start_from(
        upstream: &str,
        file: Option<PathBuf>,
        options: &[(&str, &str)],
        unix_seconds: u64,
    ) -> Gateway {
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
        Gateway { addresses, certificate_pem, control, running: Some(running), clock }
    }

    pub fn http(&self) -> SocketAddr {
        self.addresses.http.expect("it listens on HTTP")
    }

    pub fn https(&self) -> SocketAddr {
        self.addresses.https.expect("it listens on HTTPS")
    }

    pub fn admin(&self) -> SocketAddr {
        self.addresses.admin.expect("it listens for operators")
    }

    pub fn certificate_pem(&self) -> &str {
        self.certificate_pem.as_deref().expect("it made a certificate")
    }

    /// A connection over plain HTTP.
    pub fn client(&self) -> Client {
        Client::connect(self.http())
    }

    /// What operators read of a counter or gauge; 0 if it is not there.
    pub fn metric(&self, series: &str) -> f64 {
        let answer = Client::connect(self.admin()).send("GET /metrics", &[], b"");
        assert_eq!(answer.status, 200);
        let line = answer.text().lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.map_or(0.0, |value| value.parse().expect("a number"))
    }

    /// Waits until a counter or gauge is so: a request counts when it has ended, which is a moment after its answer has come.
    pub fn expect_metric(&self, series: &str, value: f64) {
        let start = Instant::now();
        while self.metric(series) != value {
            assert!(start.elapsed() < PATIENCE, "{series} is {}, not {value}", self.metric(series));
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// What operators are shown.
    pub fn get(&self, path: &str) -> serde_json::Value {
        let answer = self.operator(&format!("GET {path}"), b"");
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()
    }

    /// Has tokens revoked.
    pub fn revoke(&self, order: &str) {
        let answer = self.try_revoke(order);
        assert_eq!(answer.status, 200, "{answer:?}");
    }

    pub fn try_revoke(&self, order: &str) -> Answer {
        self.operator("POST /tokens/revoke", order.as_bytes())
    }

    /// What an operator's order is answered.
    pub fn order(&self, line: &str, json: &str) -> Answer {
        self.operator(line, json.as_bytes())
    }

    fn operator(&self, line: &str, body: &[u8]) -> Answer {
        let mut client = Client::connect(self.admin());
        let length = body.len();
        let json = "Content-Type: application/json\r\n";
        client.write(
            format!("{line} HTTP/1.1\r\nHost: localhost\r\n{json}Content-Length: {length}\r\n\r\n")
                .as_bytes(),
        );
        client.write(body);
        client.read_answer(false)
    }

    /// A token of `alice`.
    pub fn token(&self) -> String {
        self.token_of("alice", "secret")
    }

    pub fn token_of(&self, user: &str, password: &str) -> String {
        let authorization = format!("Bearer {}", bearer(user, password));
        let answer = self.client().send(
            "POST /timbr/api/get_token",
            &[("Content-Type", "application/json"), ("Authorization", &authorization)],
            b"",
        );
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()["data"][0].as_str().expect("a token").to_owned()
    }

    /// Has certificates read again, as SIGHUP does.
    pub fn reload(&self) {
        drop(self.control.reload("a test"));
    }

    /// Asks it to drain, as SIGTERM does.
    pub fn ask_to_stop(&self) {
        self.control.stop();
    }

    /// Waits for its end.
    pub fn ended(mut self) -> RunOutcome {
        let running = self.running.take().expect("it ends once");
        running.join().expect("it does not panic")
    }
}

fn now() -> u64 {
    std::time::UNIX_EPOCH.elapsed().expect("after 1970").as_secs()
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if let Some(running) = self.running.take() {
            self.control.quit();
            let ended = running.join();
            assert!(std::thread::panicking() || ended.is_ok(), "the gateway panicked");
        }
    }
}
