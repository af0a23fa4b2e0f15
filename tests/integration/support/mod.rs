//! Test support: gateways, backends and clients.

pub mod bearer;
pub mod client;
pub mod frames;
pub mod gateway;
pub mod h2_client;
pub mod idp;
pub mod mortal_backend;
pub mod pki;
pub mod program;
pub mod recorder;
pub mod redis;
pub mod small_disk;
pub mod stores;
pub mod tls_client;
pub mod upstream;
pub mod wire;

use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};

/// Maximum time that a test waits for an expected event.
pub const TIMEOUT: Duration = Duration::from_secs(30);

/// A local port without a listener.
pub fn closed_port() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
    listener.local_addr().expect("an address")
}

/// Polls `condition`, and fails the test if it does not become true in time. `event` describes it in the failure.
pub fn wait_until(what: &str, done: impl Fn() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < TIMEOUT, "waited too long until {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
