//! What a backend's name means, and how that changes. The program runs in a mount namespace with its own `/etc/hosts`.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::client::Client;
use crate::support::program::Program;
use crate::support::upstream::{Upstream, answer};
use crate::support::wait_until;

use super::JSON;

/// Backends with one port on several addresses of this machine.
fn backends(count: u8, pause: Duration) -> (Vec<Upstream>, u16) {
    let mut port = 0;
    let backends = (0..count)
        .map(|number| {
            let at = SocketAddr::from((Ipv4Addr::new(127, 0, 3, number + 1), port));
            let listener = TcpListener::bind(at).expect("bound");
            port = listener.local_addr().expect("an address").port();
            Upstream::on(listener, move |_, stream| {
                thread::sleep(pause);
                answer(stream, 200, "{}")
            })
        })
        .collect();
    (backends, port)
}

/// A gateway for `http://backend.test`, whose meaning the test says.
struct Named {
    program: Program,
    folder: tempfile::TempDir,
}

impl Named {
    fn start(port: u16, addresses: &[&str]) -> Named {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name).display().to_string();
        // Nobody answers there, so what is not in the file is not found.
        std::fs::write(path("resolv.conf"), "nameserver 127.0.3.99\noptions timeout:1 attempts:1\n")
            .expect("written");
        std::fs::write(path("hosts"), hosts(addresses)).expect("written");
        // Root needs no user namespace of its own, which a machine may forbid.
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

    /// The name means these from now on. In place, as the file is bound by itself.
    fn means(&self, addresses: &[&str]) {
        std::fs::write(self.folder.path().join("hosts"), hosts(addresses)).expect("written");
    }

    /// Has another configuration taken.
    fn take(&self, config: &str) {
        std::fs::write(self.folder.path().join("gateway.yaml"), config).expect("written");
        let mut admin = Client::connect(self.program.admin.expect("it is on"));
        admin.write(
            b"POST /reload HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}",
        );
        let answer = admin.read_answer(false);
        assert_eq!(answer.status, 200, "{answer:?}");
    }

    fn status(&self) -> serde_json::Value {
        let mut admin = Client::connect(self.program.admin.expect("it is on"));
        admin.write(b"GET /upstreams HTTP/1.1\r\nHost: localhost\r\n\r\n");
        admin.read_answer(false).json()
    }
}

fn hosts(addresses: &[&str]) -> String {
    addresses.iter().map(|address| format!("{address} backend.test\n")).collect()
}

fn is_root() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").expect("it is there");
    status.lines().any(|line| line.starts_with("Uid:\t0\t"))
}

/// Sends requests for as long as it lives, and counts those that failed.
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

    /// How many were sent, and how many failed.
    fn end(mut self) -> (usize, usize) {
        self.stop.store(true, Ordering::SeqCst);
        self.loader.take().expect("once").join().expect("no panic")
    }
}

#[test]
fn new_connections_follow_the_name_and_old_ones_end_with_their_requests() {
    let (backends, port) = backends(2, Duration::from_millis(2));
    let named = Named::start(port, &["127.0.3.1"]);
    let load = Load::on(&named.program);
    wait_until("the first one is asked", || backends[0].log().len() > 20);
    named.means(&["127.0.3.2"]);
    let changed = Instant::now();
    wait_until("the other one is asked", || !backends[1].log().is_empty());
    let took = changed.elapsed();
    let before = backends[0].log().len();
    wait_until("it goes on", || backends[1].log().len() > 50);
    let (sent, failed) = load.end();
    println!("another address after {took:?} (looked up each second), {failed} of {sent} failed");
    assert!(took < Duration::from_secs(2), "{took:?}");
    assert!(backends[0].log().len() <= before + 1, "what has left is asked no more");
    assert_eq!(failed, 0);
    wait_until("its connections are closed", || backends[0].closed() > 0);
    let both = ["127.0.3.1", "127.0.3.2"];
    named.means(&both);
    wait_until("both are known", || named.status()["endpoints"].as_array().is_some_and(|all| all.len() == 2));
}

#[test]
fn a_name_that_cannot_be_looked_up_keeps_its_addresses() {
    let (backends, port) = backends(1, Duration::from_millis(2));
    let named = Named::start(port, &["127.0.3.1"]);
    let load = Load::on(&named.program);
    wait_until("it is asked", || backends[0].log().len() > 20);
    named.means(&[]);
    wait_until("the name cannot be looked up", || named.status()["names"][0]["failures"].as_u64() > Some(1));
    let before = backends[0].log().len();
    wait_until("it is still asked", || backends[0].log().len() > before + 50);
    let told = named.status()["names"][0].clone();
    assert!(told["failing"].is_string() && told["resolved"].is_u64(), "{told}");
    named.means(&["127.0.3.1"]);
    wait_until("it is found again", || named.status()["names"][0]["failing"].is_null());
    let (sent, failed) = load.end();
    println!("{failed} of {sent} failed while the name could not be looked up");
    assert_eq!(failed, 0);
}

#[test]
fn another_configuration_keeps_the_addresses_while_the_name_cannot_be_looked_up() {
    let (backends, port) = backends(2, Duration::from_millis(2));
    let named = Named::start(port, &["127.0.3.1"]);
    let load = Load::on(&named.program);
    wait_until("it is asked", || backends[0].log().len() > 20);
    named.means(&[]);
    wait_until("the name cannot be looked up", || named.status()["names"][0]["failures"].as_u64() > Some(1));
    for seconds in [31, 32] {
        named.take(&format!("upstream: {{response_timeout: {seconds}s}}\n"));
        let (asked, failures) = (backends[0].log().len(), named.status()["names"][0]["failures"].as_u64());
        wait_until("it is asked and the name is not found once more", || {
            let now = named.status()["names"][0]["failures"].as_u64();
            backends[0].log().len() > asked + 20 && now > failures
        });
    }
    named.means(&["127.0.3.2"]);
    wait_until("the other one is asked", || !backends[1].log().is_empty());
    let (sent, failed) = load.end();
    println!("{failed} of {sent} failed while the configuration changed and the name could not be looked up");
    assert_eq!(failed, 0);
}
