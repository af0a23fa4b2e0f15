//! What the tests stand on.

pub mod bearer;
pub mod client;
pub mod frames;
pub mod gateway;
pub mod h2_client;
pub mod idp;
pub mod pki;
pub mod program;
pub mod recorder;
pub mod redis;
pub mod stores;
pub mod tls_client;
pub mod upstream;
pub mod wire;

use std::time::{Duration, Instant};

/// So long a test waits for what must come.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Waits until `done`, looking often; fails the test if that takes too long.
pub fn wait_until(what: &str, done: impl Fn() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < PATIENCE, "waited too long until {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
