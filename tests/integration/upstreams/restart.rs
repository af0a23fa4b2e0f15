//! A backend restart under load.

use std::thread;
use std::time::{Duration, Instant};

use crate::support::gateway::Gateway;
use crate::support::mortal_backend::{Arrived, MortalBackend};

use super::JSON;

struct Outcome {
    sent: Instant,
    received: Instant,
    status: u16,
    /// Whether the client may send it again.
    has_retry_after: bool,
}

#[test]
fn a_backend_restart_under_load_sends_no_post_twice() {
    const LOADERS: usize = 4;
    const RATE: u32 = 200;
    const SECONDS: u32 = 6;
    let address = super::closed_port();
    let arrived = Arrived::default();
    let first = MortalBackend::start(address, &arrived);
    let (gateway, token) = Gateway::with_token(address, &[]);
    let begun = Instant::now();
    let loaders: Vec<_> = (0..LOADERS)
        .map(|loader| {
            let (mut client, token) = (gateway.client(), token.clone());
            thread::spawn(move || {
                let mut outcomes: Vec<Outcome> = Vec::new();
                for number in 0..RATE * SECONDS / LOADERS as u32 {
                    let due = begun + Duration::from_secs(1) * number * LOADERS as u32 / RATE;
                    thread::sleep(due.saturating_duration_since(Instant::now()));
                    let id = format!("{loader}-{number}");
                    let headers = [JSON, ("x-api-key", token.as_str()), ("x-request-id", id.as_str())];
                    let sent = Instant::now();
                    let got = client.send("POST /timbr/api/x", &headers, b"{}");
                    let (status, has_retry_after) = (got.status, got.header("retry-after") == "1");
                    outcomes.push(Outcome { sent, received: Instant::now(), status, has_retry_after });
                }
                outcomes
            })
        })
        .collect();
    let at = |seconds: u64| {
        thread::sleep((begun + Duration::from_secs(seconds)).saturating_duration_since(Instant::now()));
    };
    at(2);
    let dying = Instant::now();
    first.kill();
    let dead = Instant::now();
    at(4);
    let reborn = Instant::now();
    let _second = MortalBackend::start(address, &arrived);
    let listening = Instant::now();
    let outcomes: Vec<_> = loaders.into_iter().flat_map(|loader| loader.join().expect("no panic")).collect();
    let last_failure = outcomes.iter().filter(|one| one.status != 200).map(|one| one.sent).max();
    println!(
        "{} requests: {} 200, {} 502; the last failure {:?} after listen()",
        outcomes.len(),
        outcomes.iter().filter(|one| one.status == 200).count(),
        outcomes.iter().filter(|one| one.status == 502).count(),
        last_failure.map(|sent| sent.saturating_duration_since(listening))
    );
    let mut in_gap = 0;
    for Outcome { sent, received, status, has_retry_after } in outcomes {
        if received < dying || sent > listening + Duration::from_secs(1) {
            assert_eq!(status, 200, "while a backend listens");
        } else if sent > dead && received < reborn {
            assert_eq!(status, 502, "while none listens");
            in_gap += 1;
        }
        assert!(status == 200 || status == 502 && has_retry_after, "{status}");
    }
    assert!(in_gap > 0, "requests are rejected at once");
    let most = arrived.lock().expect("no panic").values().copied().max();
    assert_eq!(most, Some(1), "each request arrived at most once");
}
