//! Repeated reloads under load: no request fails, and nothing leaks. `RELOADS` sets their number; `make figures` uses
//! fifty.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::support::client::{Client, JSON, Response};
use crate::support::h2_client::H2Client;
use crate::support::program::Program;
use crate::support::upstream::Upstream;
use crate::support::wait_until;

/// The HTTP/1.1 clients and their request interval: 200 requests a second, in addition to those over HTTP/2.
const CLIENTS: u32 = 10;
const INTERVAL: Duration = Duration::from_millis(50);

fn order(program: &Program, line: &str) -> Response {
    let mut client = Client::connect(program.admin.expect("it is on"));
    let head = format!(
        "{line} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{{}}"
    );
    client.write(head.as_bytes());
    client.read_response()
}

#[test]
fn reloads_under_load_drop_no_request_and_leak_nothing() {
    let reloads: u32 = std::env::var("RELOADS").map_or(10, |text| text.parse().expect("a number"));
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("gateway.yaml");
    let write = |text: &str| {
        let new = folder.path().join("new");
        std::fs::write(&new, text).expect("written");
        std::fs::rename(new, &file).expect("renamed");
    };
    write("timeouts: {idle: 60s}\n");
    let upstream = Upstream::start();
    let options = [
        ("CONFIG", file.to_str().expect("text")),
        ("LISTEN_ADMIN", "127.0.0.1:0"),
        ("WORKERS", "2"),
        ("LIMITS_REQUESTS_PER_CONNECTION", "1000000"),
        ("LOG_ACCESS", "false"),
    ];
    let program = Program::start(upstream.address(), &options);
    let token = program.token();
    let headers = [JSON, ("x-api-key", token.as_str())];
    let (over, begun) = (AtomicBool::new(false), Instant::now());
    let paced = |send: &mut dyn FnMut()| {
        let mut sent = 0;
        while !over.load(Ordering::Relaxed) {
            send();
            sent += 1;
            // Open loop: a late client catches up.
            std::thread::sleep((begun + INTERVAL * sent).saturating_duration_since(Instant::now()));
        }
        sent
    };
    let (requests, baseline, end) = std::thread::scope(|scope| {
        let mut clients = Vec::new();
        for _ in 0..CLIENTS {
            clients.push(scope.spawn(|| {
                // The same connection throughout.
                let mut client = Client::connect(program.http);
                paced(&mut || assert_eq!(client.send("GET /timbr/api/x", &headers, b"").status, 200))
            }));
        }
        clients.push(scope.spawn(|| {
            let client = H2Client::connect(program.https, &program.authority_pem);
            paced(&mut || assert_eq!(client.send("GET /timbr/api/x", &headers, b"").status, 200))
        }));
        let mut baseline = (0, 0);
        for number in 0..reloads {
            if number == reloads / 5 {
                baseline = (program.memory(), program.descriptors());
            }
            let is_bad = number % 5 == 4;
            write(&match number % 5 {
                4 => "timeouts: {idle: 60}\nnonsense: true\n".to_owned(),
                1 => format!("upstream: {{connect_timeout: {}ms}}\n", 2000 + number),
                2 => "tokens: {ttl: 2h}\n".to_owned(),
                _ => {
                    format!("timeouts: {{idle: {}s}}\nlimits: {{requests: {}}}\n", 60 + number, 1000 + number)
                }
            });
            let counted = || {
                let result = if is_bad { "failure" } else { "success" };
                let series = format!("timbr_gateway_config_reloads_total{{outcome=\"{result}\"}}");
                program.metric(&series).unwrap_or(0.0)
            };
            let before = counted();
            // Alternates between SIGHUP and the admin command. The file is watched too, so one more reload may be
            // counted.
            if number % 2 == 0 {
                assert_eq!(order(&program, "POST /reload").status, if is_bad { 422 } else { 200 });
            } else {
                program.signal("HUP");
                wait_until("the configuration is reloaded", || counted() > before);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        // Requests that still use the previous snapshots end.
        let end = (program.memory(), program.descriptors());
        over.store(true, Ordering::Relaxed);
        let sent: u32 = clients.into_iter().map(|client| client.join().expect("no request failed")).sum();
        (sent, baseline, end)
    });
    let drift = end.0.saturating_sub(baseline.0);
    println!(
        "{requests} requests in {:?}, {reloads} reloads: no failure; memory +{} KiB, descriptors {} to {}",
        begun.elapsed(),
        drift / 1024,
        baseline.1,
        end.1
    );
    assert_eq!(upstream.log().len(), requests as usize, "each request arrived once");
    assert!(drift < 5 * 1024 * 1024, "{} KiB more", drift / 1024);
    assert!(end.1 <= baseline.1 + 2, "descriptors: {} to {}", baseline.1, end.1);
}
