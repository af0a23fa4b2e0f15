//! Name resolution of backends, and its changes. The program runs in a mount namespace with its own `/etc/hosts`.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::client::Client;
use crate::support::program::Program;
use crate::support::upstream::{Upstream, respond};
use crate::support::wait_until;

use super::JSON;

/// Backends with the same port on several local addresses.
fn backends(count: u8, pause: Duration) -> (Vec<Upstream>, u16) {
    let mut port = 0;
    let backends = (0..count)
        .map(|number| {
            let at = SocketAddr::from((Ipv4Addr::new(127, 0, 3, number + 1), port));
            let listener = TcpListener::bind(at).expect("bound");
            port = listener.local_addr().expect("an address").port();
            Upstream::listen_on(listener, move |_, stream| {
                thread::sleep(pause);
                respond(stream, 200, "{}")
            })
        })
        .collect();
    (backends, port)
}

/// A gateway for `http://backend.test`; the test sets the addresses of this name.
struct Named {
    program: Program,
    folder: tempfile::TempDir,
}

impl Named {
    fn start(port: u16, addresses: &[&str]) -> Named {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name).display().to_string();
        // There is no DNS server at this address, so only the file resolves names.
        std::fs::write(path("resolv.conf"), "nameserver 127.0.3.99\noptions timeout:1 attempts:1\n").expect("written");
        std::fs::write(path("hosts"), hosts(addresses)).expect("written");
        // Root needs no user namespace, which a system may forbid.
        let map = if is_root() { "-m" } else { "-rm" };
        let shell = format!(
            "export PATH=/usr/sbin:/usr/bin:/sbin:/bin; exec unshare {map} /bin/sh -c 'mount --bind {} /etc/hosts && mount --bind {} /etc/resolv.conf && \
             exec \"$0\" serve' \"$0\"",
            path("hosts"),
            path("resolv.conf")
        );
        let url = format!("http://backend.test:{port}");
        let config = path("gateway.yaml");
        std::fs::write(&config, "").expect("written");
        let options = [
            ("CONFIG", config.as_str()),
            ("UPSTREAM_URL", url.as_str()),
            ("UPSTREAM_RESOLVE_INTERVAL", "1s"),
            ("LISTEN_ADMIN", "127.0.0.1:0"),
        ];
        let nobody = SocketAddr::from(([127, 0, 0, 1], 1));
        Named { program: Program::start_as(nobody, &options, &shell), folder }
    }

    /// Sets the addresses of the name. Written in place, because the file itself is bind-mounted.
    fn means(&self, addresses: &[&str]) {
        std::fs::write(self.folder.path().join("hosts"), hosts(addresses)).expect("written");
    }

    /// Reloads with a new configuration.
    fn take(&self, config: &str) {
        std::fs::write(self.folder.path().join("gateway.yaml"), config).expect("written");
        let mut admin = Client::connect(self.program.admin.expect("it is on"));
        admin.write(
            b"POST /reload HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}",
        );
        let response = admin.read_response();
        assert_eq!(response.status, 200, "{response:?}");
    }

    fn status(&self) -> serde_json::Value {
        self.get("/upstreams")
    }

    /// The banner of the dashboard.
    fn attention(&self) -> String {
        self.get("/overview")["attention"].to_string()
    }

    fn get(&self, path: &str) -> serde_json::Value {
        let mut admin = Client::connect(self.program.admin.expect("it is on"));
        admin.write(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes());
        admin.read_response().json()
    }
}

fn hosts(addresses: &[&str]) -> String {
    addresses.iter().map(|address| format!("{address} backend.test\n")).collect()
}

fn is_root() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").expect("it is there");
    status.lines().any(|line| line.starts_with("Uid:\t0\t"))
}

/// Sends requests until dropped, and counts the failures.
struct Load {
    stop: Arc<AtomicBool>,
    loader: Option<thread::JoinHandle<(usize, usize)>>,
}

impl Load {
    fn on(program: &Program) -> Load {
        let stop = Arc::<AtomicBool>::default();
        let (stopped, token, address) = (Arc::clone(&stop), program.token(), program.http);
        let loader = thread::spawn(move || {
            let mut client = Client::connect(address);
            let (mut sent, mut failed) = (0, 0);
            while !stopped.load(Ordering::SeqCst) {
                let got = client.send("POST /timbr/api/x", &[JSON, ("x-api-key", &token)], b"{}");
                sent += 1;
                failed += usize::from(got.status != 200);
                thread::sleep(Duration::from_millis(5));
            }
            (sent, failed)
        });
        Load { stop, loader: Some(loader) }
    }

    /// The number of requests and of failures.
    fn end(mut self) -> (usize, usize) {
        self.stop.store(true, Ordering::SeqCst);
        self.loader.take().expect("once").join().expect("no panic")
    }
}

#[test]
fn new_connections_follow_the_name_and_old_ones_drain() {
    let (backends, port) = backends(2, Duration::from_millis(2));
    let named = Named::start(port, &["127.0.3.1"]);
    let load = Load::on(&named.program);
    wait_until("the first backend is used", || backends[0].log().len() > 20);
    named.means(&["127.0.3.2"]);
    let changed = Instant::now();
    wait_until("the other backend is used", || !backends[1].log().is_empty());
    let took = changed.elapsed();
    let before = backends[0].log().len();
    wait_until("requests continue", || backends[1].log().len() > 50);
    let (sent, failed) = load.end();
    println!("a new address after {took:?} (resolved every second), {failed} of {sent} failed");
    assert!(took < Duration::from_secs(2), "{took:?}");
    assert!(backends[0].log().len() <= before + 1, "removed addresses get no requests");
    assert_eq!(failed, 0);
    wait_until("its connections are closed", || backends[0].closed() > 0);
    let both = ["127.0.3.1", "127.0.3.2"];
    named.means(&both);
    wait_until("both addresses are known", || named.status()["endpoints"].as_array().is_some_and(|all| all.len() == 2));
}

#[test]
fn an_unresolvable_name_keeps_its_addresses() {
    let (backends, port) = backends(1, Duration::from_millis(2));
    let named = Named::start(port, &["127.0.3.1"]);
    let load = Load::on(&named.program);
    wait_until("the backend is used", || backends[0].log().len() > 20);
    named.means(&[]);
    wait_until("the name cannot be resolved", || named.status()["names"][0]["failures"].as_u64() > Some(1));
    let before = backends[0].log().len();
    wait_until("the backend is still used", || backends[0].log().len() > before + 50);
    let told = named.status()["names"][0].clone();
    assert!(told["failing"].is_string() && told["resolved"].is_u64(), "{told}");
    assert!(
        named.attention().contains("The backend's name backend.test cannot be resolved: "),
        "{}",
        named.attention()
    );
    named.means(&["127.0.3.1"]);
    wait_until("the name is resolved again", || named.status()["names"][0]["failing"].is_null());
    let (sent, failed) = load.end();
    println!("{failed} of {sent} failed while the name could not be looked up");
    assert_eq!(failed, 0);
}

#[test]
fn a_reload_keeps_the_addresses_of_an_unresolvable_name() {
    let (backends, port) = backends(2, Duration::from_millis(2));
    let named = Named::start(port, &["127.0.3.1"]);
    let load = Load::on(&named.program);
    wait_until("the backend is used", || backends[0].log().len() > 20);
    named.means(&[]);
    wait_until("the name cannot be resolved", || named.status()["names"][0]["failures"].as_u64() > Some(1));
    for seconds in [31, 32] {
        named.take(&format!("upstream: {{response_timeout: {seconds}s}}\n"));
        let (asked, failures) = (backends[0].log().len(), named.status()["names"][0]["failures"].as_u64());
        wait_until("the backend is used and resolution fails once more", || {
            let now = named.status()["names"][0]["failures"].as_u64();
            backends[0].log().len() > asked + 20 && now > failures
        });
    }
    named.means(&["127.0.3.2"]);
    wait_until("the other backend is used", || !backends[1].log().is_empty());
    let (sent, failed) = load.end();
    println!("{failed} of {sent} failed while the configuration changed and the name could not be looked up");
    assert_eq!(failed, 0);
}
