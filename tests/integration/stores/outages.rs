//! Redis is killed, hangs, is slow, or is read-only: known tokens stay valid, other requests get 503, and no invalid
//! token is accepted.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::support::client::Response;
use crate::support::gateway::Gateway;
use crate::support::redis::Redis;
use crate::support::upstream::Upstream;
use crate::support::wait_until;

/// The store timeout of a request, and a margin for a busy machine.
const DEADLINE: Duration = Duration::from_millis(50);
const NOISE: Duration = Duration::from_millis(100);

/// A gateway with a Redis, and two tokens: one that the gateway knows, and one that only a different gateway knows.
struct Scene {
    gateway: Gateway,
    known: String,
    unknown: String,
    upstream: Upstream,
}

impl Scene {
    fn new(redis: &Redis, url: &str, options: &[(&str, &str)]) -> Scene {
        let upstream = Upstream::start();
        let all = [&[("STORE_KIND", "redis"), ("STORE_URLS", url)], options].concat();
        let gateway = Gateway::start(upstream.address(), &all);
        let direct = redis.url();
        let other = [("STORE_KIND", "redis"), ("STORE_URLS", direct.as_str()), ("STORE_TIMEOUT", "2s")];
        let other = Gateway::start(upstream.address(), &other);
        wait_until("the store responds", || is_up(&gateway) && is_up(&other));
        let known = gateway.token_of("known", "secret");
        let unknown = other.token_of("unknown", "secret");
        let scene = Scene { gateway, known, unknown, upstream };
        assert_eq!(scene.gateway.query(&scene.known).status, 200);
        scene
    }

    fn login(&self, user: &str) -> Response {
        self.gateway.login(user, "secret")
    }

    /// The behaviour while the store is unavailable.
    fn holds_out(&self) {
        let arrived = self.upstream.log().len();
        let mut times = Vec::new();
        for number in 0..40 {
            let begin = Instant::now();
            assert_eq!(self.gateway.query(&self.known).status, 200, "a known token stays valid");
            assert_eq!(self.login("known").status, 200, "its login gets the same token");
            for response in [self.gateway.query(&self.unknown), self.login(&format!("new-{number}"))] {
                let told = (response.status, response.reason(), response.header("retry-after").to_owned());
                assert_eq!(told, (503, "token_store_unavailable".into(), "1".into()));
            }
            times.push(begin.elapsed());
        }
        times.sort_unstable();
        assert_eq!(self.upstream.log().len(), arrived + 40, "no request with the unknown token was forwarded");
        let median = times[times.len() / 2];
        println!("four requests, two of them unknown: {median:?}, {:?} at most", times.last());
        assert!(median < 2 * DEADLINE + NOISE, "{times:?}");
    }

    fn recovers(&self) {
        let begin = Instant::now();
        wait_until("the store responds again", || self.gateway.query(&self.unknown).status == 200);
        println!("recovered after {:?}", begin.elapsed());
        wait_until("that shows", || is_up(&self.gateway));
        assert_eq!(self.login("new-0").status, 200);
    }
}

fn is_up(gateway: &Gateway) -> bool {
    gateway.metric("timbr_gateway_store_up") == 1.0
}

/// The time until the gateway detects the outage.
fn notices(scene: &Scene) -> Duration {
    let begin = Instant::now();
    wait_until("the outage is detected", || !is_up(&scene.gateway));
    println!("noticed after {:?}", begin.elapsed());
    begin.elapsed()
}

#[test]
fn redis_is_killed() {
    let mut redis = Redis::start();
    // The unknown token must still exist afterwards.
    let _: String = redis.command(&["CONFIG", "SET", "appendfsync", "always"]);
    let scene = Scene::new(&redis, &redis.url(), &[]);
    let value: Vec<(Vec<u8>, Vec<u8>)> = redis
        .command::<Vec<Vec<u8>>>(&["KEYS", "*:t:*"])
        .into_iter()
        .map(|key| {
            let value = ::redis::cmd("GET").arg(&key).query(&mut redis.connect()).expect("a value");
            (key, value)
        })
        .collect();
    redis.kill();
    scene.holds_out();
    assert!(notices(&scene) < Duration::from_secs(1));
    scene.holds_out();
    redis.restart();
    for (key, value) in value {
        let _: () = ::redis::cmd("SET").arg(key).arg(value).query(&mut redis.connect()).expect("set");
    }
    scene.recovers();
}

#[test]
fn an_empty_server_is_repaired() {
    let mut redis = Redis::start();
    let scene = Scene::new(&redis, &redis.url(), &[]);
    let users: Vec<_> = (0..50).map(|number| format!("user-{number}")).collect();
    let tokens: Vec<_> = users.iter().map(|user| scene.gateway.token_of(user, "secret")).collect();
    scene.gateway.revoke("{\"user\":\"user-7\"}");
    redis.restart();
    assert_eq!(redis.command::<u64>(&["EXISTS", "timbr-gateway:marks"]), 0, "the server is empty");
    let url = redis.url();
    let options = [("STORE_KIND", "redis"), ("STORE_URLS", url.as_str()), ("STORE_TIMEOUT", "2s")];
    let other = Gateway::start(scene.upstream.address(), &options);
    let status = |token: &str| other.query(token).status;
    wait_until("a replica that never saw them finds all but the revoked one", || {
        tokens.iter().filter(|token| status(token) == 200).count() == 49
    });
    wait_until("the revocation is restored", || status(&tokens[7]) == 401);
    for number in [0, 49] {
        assert_eq!(other.token_of(&users[number], "secret"), tokens[number], "its login gets the same token");
    }
}

#[test]
fn redis_hangs() {
    let redis = Redis::start();
    let scene = Scene::new(&redis, &redis.url(), &[]);
    redis.hang();
    let begin = Instant::now();
    scene.holds_out();
    notices(&scene);
    assert!(begin.elapsed() < Duration::from_secs(30));
    let rejections = (0..50).map(|_| {
        let begin = Instant::now();
        assert_eq!(scene.gateway.query(&scene.unknown).status, 503);
        begin.elapsed()
    });
    let fastest = rejections.min().expect("some");
    println!("{fastest:?} for a rejection once the outage is known");
    assert!(fastest < Duration::from_millis(20), "the breaker is open: nothing waits");
    redis.resume();
    scene.recovers();
}

#[test]
fn redis_is_read_only() {
    let redis = Redis::start();
    let other = Redis::start();
    let scene = Scene::new(&redis, &redis.url(), &[]);
    let _: String = redis.command(&["CONFIG", "SET", "replica-serve-stale-data", "yes"]);
    let unknown: Vec<u8> = dump(&redis);
    let _: String = redis.command(&["REPLICAOF", "127.0.0.1", &other.port.to_string()]);
    assert!(notices(&scene) < Duration::from_secs(1));
    scene.holds_out();
    let _: String = redis.command(&["REPLICAOF", "NO", "ONE"]);
    restore(&redis, &unknown);
    scene.recovers();
}

/// Keys and values, to be restored after a server followed an empty one.
fn dump(redis: &Redis) -> Vec<u8> {
    let mut all = Vec::new();
    for key in redis.command::<Vec<Vec<u8>>>(&["KEYS", "*:t:*"]) {
        let value: Vec<u8> = ::redis::cmd("GET").arg(&key).query(&mut redis.connect()).expect("a value");
        for part in [key, value] {
            all.extend(u32::try_from(part.len()).expect("short").to_be_bytes());
            all.extend(part);
        }
    }
    all
}

fn restore(redis: &Redis, mut dump: &[u8]) {
    let mut part = || {
        let (length, rest) = dump.split_first_chunk::<4>()?;
        let (part, rest) = rest.split_at(u32::from_be_bytes(*length) as usize);
        dump = rest;
        Some(part.to_vec())
    };
    while let (Some(key), Some(value)) = (part(), part()) {
        let _: () = ::redis::cmd("SET").arg(key).arg(value).query(&mut redis.connect()).expect("set");
    }
}

#[test]
fn redis_is_slow() {
    let redis = Redis::start();
    let (between, delay) = slow(redis.address());
    // With a margin for a busy machine.
    let scene = Scene::new(&redis, &format!("redis://{between}"), &[("STORE_TIMEOUT", "1s")]);
    delay.store(200, Ordering::Relaxed);
    let begin = Instant::now();
    assert_eq!(scene.gateway.query(&scene.unknown).status, 200, "slow, but in time");
    println!("a lookup over 2 × 200 ms: {:?}", begin.elapsed());
    // Each single step is in time, although the sum is not.
    let extra = scene.gateway.token_of("extra", "secret");
    assert!(extra.starts_with("tk_"));
}

#[test]
fn redis_is_too_slow() {
    let redis = Redis::start();
    let (between, delay) = slow(redis.address());
    let scene = Scene::new(&redis, &format!("redis://{between}"), &[]);
    delay.store(400, Ordering::Relaxed);
    scene.holds_out();
    notices(&scene);
    scene.holds_out();
    delay.store(0, Ordering::Relaxed);
    scene.recovers();
}

/// Forwards data with a delay in milliseconds in each direction.
fn slow(to: SocketAddr) -> (SocketAddr, Arc<AtomicU64>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
    let address = listener.local_addr().expect("an address");
    let delay = Arc::<AtomicU64>::default();
    let of = Arc::clone(&delay);
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let Ok(client) = client else { return };
            let Ok(server) = TcpStream::connect(to) else { continue };
            let ends = |stream: &TcpStream| stream.try_clone().expect("a second descriptor");
            for (from, to) in [(ends(&client), ends(&server)), (ends(&server), ends(&client))] {
                let delay = Arc::clone(&of);
                std::thread::spawn(move || pass(from, to, &delay));
            }
        }
    });
    (address, delay)
}

fn pass(mut from: TcpStream, mut to: TcpStream, delay: &AtomicU64) {
    let mut buffer = [0; 16 * 1024];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        std::thread::sleep(Duration::from_millis(delay.load(Ordering::Relaxed)));
        if to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(std::net::Shutdown::Both);
}

#[test]
fn known_tokens_are_accepted_up_to_max_stale() {
    let mut redis = Redis::start();
    let scene = Scene::new(&redis, &redis.url(), &[("STORE_MAX_STALE", "10m")]);
    redis.kill();
    notices(&scene);
    scene.gateway.clock.advance(Duration::from_secs(590));
    assert_eq!(scene.gateway.query(&scene.known).status, 200);
    scene.gateway.clock.advance(Duration::from_secs(20));
    assert_eq!(scene.gateway.query(&scene.known).rejection(), (503, "token_store_unavailable".into()));
    assert_eq!(scene.login("known").status, 503);
    redis.restart();
    wait_until("the store is available again", || is_up(&scene.gateway));
    assert_eq!(scene.gateway.query(&scene.known).status, 200, "confirmed again");
}

/// The command fails, and its message says what becomes of the change.
#[test]
fn a_stop_during_an_outage_reaches_the_other_replicas_later() {
    let mut redis = Redis::start();
    let url = redis.url();
    let upstream = Upstream::start();
    let options = [("STORE_KIND", "redis"), ("STORE_URLS", &*url)];
    let replicas = [(); 2].map(|()| Gateway::start(upstream.address(), &options));
    wait_until("the store responds", || replicas.iter().all(is_up));
    redis.kill();
    wait_until("the outage is detected", || !replicas.iter().any(is_up));
    let stop = r#"{"kind":"ontology","name":"sales","why":"Maintenance."}"#;
    let failed = replicas[0].admin_command("POST /stop", stop);
    let text = failed.json()["data"].as_str().unwrap_or_default().to_owned();
    assert!(failed.status == 503 && text.contains("Other replicas learn of it when the store is available"), "{text}");
    let stops = |gateway: &Gateway| gateway.get("/stops")["stops"].as_array().map_or(0, Vec::len);
    assert_eq!(replicas.each_ref().map(stops), [1, 0]);
    redis.restart();
    wait_until("the other one knows it", || stops(&replicas[1]) == 1);
}

#[test]
fn a_denied_key_is_rejected_from_the_first_request_on() {
    let redis = Redis::start();
    let upstream = Upstream::start();
    let folder = tempfile::tempdir().expect("a folder");
    let keys = folder.path().join("keys");
    let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, b"key-of-alice");
    let hex: String = hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    std::fs::write(&keys, format!("alice:{hex}\n")).expect("written");
    let (between, delay) = slow(redis.address());
    let url = format!("redis://{between}");
    let options = [
        ("STORE_KIND", "redis"),
        ("STORE_URLS", url.as_str()),
        ("STORE_TIMEOUT", "1s"),
        ("TOKENS_KEYS_FILE", keys.to_str().expect("text")),
    ];
    let first = Gateway::start(upstream.address(), &options);
    wait_until("the store responds", || is_up(&first));
    assert_eq!(first.query("key-of-alice").status, 200);
    assert_eq!(first.try_revoke(r#"{"user":"alice","deny_seconds":3600}"#).status, 200);
    delay.store(50, Ordering::Relaxed);
    let second = Gateway::start(upstream.address(), &options);
    assert_eq!(second.query("key-of-alice").status, 403);
}

#[test]
fn the_gateway_starts_before_its_store() {
    let mut redis = Redis::start();
    redis.kill();
    let upstream = Upstream::start();
    let url = redis.url();
    let options = [("STORE_KIND", "redis"), ("STORE_URLS", url.as_str()), ("TOKENS_FOREIGN", "reject")];
    let gateway = Gateway::start(upstream.address(), &options);
    wait_until("the gateway is ready without Redis", || gateway.readiness() == 200);
    let login = || gateway.login("alice", "secret").status;
    assert_eq!(login(), 503);
    let strangers = format!("tk_{}", "0".repeat(56));
    assert_eq!(gateway.query(&strangers).rejection(), (401, "api_key_unknown".into()), "independent of the store");
    redis.restart();
    wait_until("it serves", || login() == 200);
}
