//! Three gateways on one Redis with Sentinels, two hundred requests a second, and a restart of each component.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::support::bearer::bearer;
use crate::support::client::{Client, JSON, Response};
use crate::support::program::Program;
use crate::support::redis::Sentinels;
use crate::support::upstream::Upstream;
use crate::support::wait_until;

/// The clients and their request interval: 200 requests a second.
const CLIENTS: usize = 20;
const INTERVAL: Duration = Duration::from_millis(100);

/// A load balancer's view of a gateway.
#[derive(Clone, Copy)]
struct Endpoint {
    http: SocketAddr,
    admin: SocketAddr,
    ready: bool,
}

/// Sends each request to the next ready gateway, like a load balancer. Checks `/readyz` ten times a second.
struct Balancer {
    endpoints: Mutex<[Endpoint; 3]>,
    turn: AtomicUsize,
    ended: AtomicBool,
}

impl Balancer {
    fn pick(&self) -> SocketAddr {
        let endpoints = self.endpoints.lock().expect("no panic");
        for _ in 0..3 {
            let endpoint = endpoints[self.turn.fetch_add(1, Ordering::Relaxed) % 3];
            if endpoint.ready {
                return endpoint.http;
            }
        }
        panic!("no gateway is ready");
    }

    fn watch(&self) {
        while !self.ended.load(Ordering::Relaxed) {
            for number in 0..3 {
                let admin = self.endpoints.lock().expect("no panic")[number].admin;
                let ready = is_ready(admin);
                let endpoint = &mut self.endpoints.lock().expect("no panic")[number];
                if endpoint.admin == admin {
                    endpoint.ready = ready;
                }
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

fn is_ready(admin: SocketAddr) -> bool {
    let mut client = Client::try_connect(admin);
    let response = client.as_mut().and_then(|client| client.try_send("GET /readyz", &[]));
    response.is_some_and(|response| response.status == 200)
}

/// The number of requests by outcome.
type Outcomes = BTreeMap<&'static str, usize>;

/// One client: requests tokens from time to time, and queries with them.
fn client(number: usize, balancer: &Balancer, begin: Instant, span: Duration) -> Outcomes {
    let mut outcomes = Outcomes::new();
    let mut connections: BTreeMap<SocketAddr, Client> = BTreeMap::new();
    let mut token = String::new();
    for request in 0.. {
        // Open loop: the time of a request does not depend on the duration of the previous one.
        let due = begin + INTERVAL * request + INTERVAL / CLIENTS as u32 * number as u32;
        if due >= begin + span {
            break;
        }
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        // Every tenth request is a login, and every third of these is of a new user.
        let authorization = match request % 30 {
            0 => Some(format!("user-{number}-{request}")),
            10 | 20 => Some(format!("user-{number}")),
            _ if token.is_empty() => Some(format!("user-{number}")),
            _ => None,
        }
        .map(|user| format!("Bearer {}", bearer(&user, "secret")));
        let (line, field) = match &authorization {
            Some(bearer) => ("POST /timbr/api/get_token", ("Authorization", bearer.as_str())),
            None => ("GET /timbr/api/x", ("x-api-key", token.as_str())),
        };
        let address = balancer.pick();
        let response = exchange(&mut connections, address, line, &[JSON, field]);
        let outcome = match &response {
            None => "broken",
            Some(response) if response.status == 200 => "answered",
            Some(response) => match response.reason().as_str() {
                // Allowed by SECURITY.md during a failover: 503 with `Retry-After`, but never a wrong rejection.
                "token_store_unavailable" if response.header("retry-after") == "1" => "store away",
                "token_expired" | "token_revoked" | "token_evicted" => "token lost",
                _ => "refused",
            },
        };
        *outcomes.entry(outcome).or_default() += 1;
        if let (Some(_), Some(response)) = (&authorization, &response)
            && response.status == 200
        {
            response.json()["data"][0].as_str().expect("a token").clone_into(&mut token);
        }
        if outcome == "token lost" {
            token.clear();
        }
    }
    outcomes
}

/// Sends a request on the client's connection to that gateway, or on a new one.
fn exchange(
    connections: &mut BTreeMap<SocketAddr, Client>,
    address: SocketAddr,
    line: &str,
    headers: &[(&str, &str)],
) -> Option<Response> {
    let mut connection = match connections.remove(&address) {
        Some(connection) if !connection.is_closed_by_peer() => connection,
        _ => Client::try_connect(address)?,
    };
    let mut response = connection.try_send(line, headers)?;
    let length = response.header("content-length").parse().ok()?;
    response.body = connection.read_bytes(length);
    response.complete = response.body.len() == length;
    let whole = response.complete.then_some(response)?;
    if whole.header("connection") != "close" {
        connections.insert(address, connection);
    }
    Some(whole)
}

/// `ROLLING_RESTART_SECONDS=60` gives the duration for a release; the default is shorter.
#[test]
fn a_rolling_restart_and_a_failover_lose_no_request() {
    let seconds = std::env::var("ROLLING_RESTART_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(12);
    let span = Duration::from_secs(seconds);
    let sentinels = Sentinels::start();
    let upstream = Upstream::start();
    let urls = sentinels.urls();
    let options = [
        ("STORE_KIND", "redis"),
        ("STORE_URLS", urls.as_str()),
        ("STORE_MODE", "sentinel"),
        ("STORE_SENTINEL_MASTER", "main"),
        // Debug builds, next to other tests, on few cores.
        ("STORE_TIMEOUT", "250ms"),
        ("LISTEN_ADMIN", "127.0.0.1:0"),
        ("DRAIN_DELAY", "500ms"),
    ];
    let start = || Program::start(upstream.address(), &options);
    let endpoint =
        |program: &Program| Endpoint { http: program.http, admin: program.admin.expect("it is on"), ready: true };
    let mut programs = [start(), start(), start()];
    for program in &programs {
        wait_until("it is ready", || is_ready(program.admin.expect("it is on")));
    }
    let balancer = Arc::new(Balancer {
        endpoints: Mutex::new(programs.each_ref().map(endpoint)),
        turn: AtomicUsize::new(0),
        ended: AtomicBool::new(false),
    });
    let watching = std::thread::spawn({
        let balancer = Arc::clone(&balancer);
        move || balancer.watch()
    });
    let begin = Instant::now();
    let clients: Vec<_> = (0..CLIENTS)
        .map(|number| {
            let balancer = Arc::clone(&balancer);
            std::thread::spawn(move || client(number, &balancer, begin, span))
        })
        .collect();
    let until = |part: f64| {
        std::thread::sleep((begin + span.mul_f64(part)).saturating_duration_since(Instant::now()));
    };
    for (number, part) in [0.1, 0.35, 0.8].into_iter().enumerate() {
        if number == 2 {
            until(0.6);
            sentinels.fail_over();
        }
        until(part);
        programs[number].begin_shutdown();
        assert!(programs[number].wait().success(), "it drains gracefully");
        programs[number] = start();
        wait_until("it is ready again", || is_ready(programs[number].admin.expect("it is on")));
        balancer.endpoints.lock().expect("no panic")[number] = endpoint(&programs[number]);
    }
    let mut all = Outcomes::new();
    for client in clients {
        for (outcome, count) in client.join().expect("no panic") {
            *all.entry(outcome).or_default() += count;
        }
    }
    balancer.ended.store(true, Ordering::Relaxed);
    watching.join().expect("no panic");
    let total: usize = all.values().sum();
    println!("{total} requests in {seconds} s over three restarts and a failover: {all:?}");
    assert!(total as u64 >= seconds * 190, "{total} requests");
    let count = |outcome: &str| all.get(outcome).copied().unwrap_or_default();
    assert_eq!((count("broken"), count("refused")), (0, 0), "{all:?}");
    // The Sentinels take about a second to agree; meanwhile no new tokens can be made.
    assert!(count("store away") <= total / 50, "{all:?}");
    assert!(count("token lost") <= 2, "what the old server had not handed on yet: {all:?}");
}
