//! A token ends with what has proven its login, also after a crash, and while the gateway or its store is down.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::support::client::{Client, login};
use crate::support::gateway::Gateway;
use crate::support::program::Program;
use crate::support::redis::Redis;
use crate::support::upstream::Upstream;
use crate::support::wait_until;

const KEY: (&str, &str) = ("STORE_KEY", "d6HnHQJy2nl1YqLeN0dZlmaIHvVkAx2gRUbDUr3lKEE=");
const USERS: usize = 12;

/// A users file with cheap hashes.
struct UsersFile {
    path: PathBuf,
    /// By user, the line; `None`: not in the file.
    lines: Vec<Option<String>>,
}

impl UsersFile {
    fn new(folder: &Path) -> UsersFile {
        let mut users = UsersFile { path: folder.join("users"), lines: vec![None; USERS + 1] };
        (0..=USERS).for_each(|user| users.add(user));
        users.write();
        users
    }

    fn add(&mut self, user: usize) {
        self.lines[user] = Some(format!("user-{user}:{}\n", bcrypt::hash("secret", 4).expect("hashed")));
    }

    /// The last user always stays, as an empty file could be a mistake.
    fn write(&self) {
        let new = self.path.with_extension("new");
        std::fs::write(&new, self.lines.iter().flatten().cloned().collect::<String>()).expect("written");
        std::fs::rename(new, &self.path).expect("renamed");
    }

    fn options<'a>(&'a self, store: &'a str) -> Vec<(&'a str, &'a str)> {
        let path = self.path.to_str().expect("text");
        vec![
            ("STORE_KIND", "file"),
            ("STORE_PATH", store),
            KEY,
            ("AUTH_VERIFIER", "users-file"),
            ("AUTH_USERS_FILE", path),
            ("TOKENS_FOREIGN", "reject"),
            ("LISTEN_ADMIN", "127.0.0.1:0"),
            ("LIMITS_FAILURES_PER_ADDRESS", "0"),
            ("LIMITS_FAILURES_PER_USER", "0"),
        ]
    }
}

fn token_of(http: SocketAddr, user: &str) -> String {
    login(http, user, "secret").token()
}

fn revoke(admin: SocketAddr, body: &str) -> u16 {
    let mut client = Client::connect(admin);
    let head = format!("Host: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n", body.len());
    client.write(format!("POST /tokens/revoke HTTP/1.1\r\n{head}\r\n{body}").as_bytes());
    client.read_response().status
}

/// `KILLS=50` gives the figure of docs/tokens.md.
#[test]
fn no_ended_token_is_revived_by_kill_9() {
    let kills: usize = std::env::var("KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(4);
    let folder = tempfile::tempdir().expect("a folder");
    let upstream = Upstream::start();
    let store = folder.path().join("tokens");
    let mut users = UsersFile::new(folder.path());
    let (mut ended, mut revoked) = (Vec::new(), Vec::new());
    let mut changes = 0;
    for round in 0..kills {
        let options = users.options(store.to_str().expect("text"));
        let mut program = Program::start(upstream.address(), &options);
        let tokens: Vec<_> = (0..=USERS).map(|user| token_of(program.http, &format!("user-{user}"))).collect();
        // Half of the users are removed one after the other, one is revoked by an operator, and then the program is
        // killed at a random moment.
        let killed_after = Duration::from_micros(fastrand::u64(0..1_500_000));
        std::thread::scope(|scope| {
            let changing = scope.spawn(|| {
                for user in (0..USERS).filter(|user| user % 2 == round % 2) {
                    users.lines[user] = None;
                    users.write();
                    changes += 1;
                    std::thread::sleep(Duration::from_millis(fastrand::u64(0..300)));
                }
            });
            let admin = program.admin.expect("it is enabled");
            let last = USERS - 1 - round % 2;
            let body = format!("{{\"user\":\"user-{last}\"}}");
            assert_eq!(revoke(admin, &body), 200);
            revoked.push(tokens[last].clone());
            std::thread::sleep(killed_after);
            program.kill();
            changing.join().expect("no panic");
        });
        let options = users.options(store.to_str().expect("text"));
        let program = Program::start(upstream.address(), &options);
        for (user, token) in tokens.iter().enumerate() {
            if users.lines[user].is_none() {
                ended.push(token.clone());
            } else if !revoked.contains(token) {
                assert_eq!(Client::connect(program.http).query(token).status, 200, "user-{user} in round {round}");
            }
        }
        let revived = ended
            .iter()
            .chain(&revoked)
            .filter(|token| Client::connect(program.http).query(token).status != 401)
            .count();
        assert_eq!(revived, 0, "in round {round}, killed after {killed_after:?}");
        // Users who come back have a different hash, so their old tokens stay invalid.
        (0..USERS)
            .filter(|user| users.lines[*user].is_none())
            .collect::<Vec<_>>()
            .into_iter()
            .for_each(|n| users.add(n));
        users.write();
    }
    println!(
        "{kills} times kill -9 during {changes} changes: {} ended and {} revoked tokens, 0 revived",
        ended.len(),
        revoked.len()
    );
    assert!(ended.len() >= 6 * kills && revoked.len() == kills);
}

#[test]
fn changes_while_the_gateway_is_stopped_end_tokens() {
    let folder = tempfile::tempdir().expect("a folder");
    let upstream = Upstream::start();
    let store = folder.path().join("tokens");
    let mut users = UsersFile::new(folder.path());
    let store = store.to_str().expect("text");
    let tokens: Vec<_> = {
        let mut program = Program::start(upstream.address(), &users.options(store));
        let tokens = (0..4).map(|user| token_of(program.http, &format!("user-{user}"))).collect();
        program.begin_shutdown();
        program.wait();
        tokens
    };
    users.lines[0] = None;
    users.add(1);
    users.write();
    {
        let program = Program::start(upstream.address(), &users.options(store));
        let statuses: Vec<_> = tokens.iter().map(|token| Client::connect(program.http).query(token).status).collect();
        assert_eq!(statuses, [401, 401, 200, 200], "removed, new password, unchanged, unchanged");
        assert_eq!(Client::connect(program.http).query(&tokens[1]).reason(), "token_revoked");
        let new = token_of(program.http, "user-1");
        assert_ne!(new, tokens[1], "the same password, but proven by a different hash");
        assert_eq!(Client::connect(program.http).query(&new).status, 200);
        assert_eq!(program.login("user-0", "secret").status, 401);
    }
    // A different verifier.
    let salt_holder = [("STORE_KIND", "file"), ("STORE_PATH", store), KEY, ("TOKENS_FOREIGN", "reject")];
    let program = Program::start(upstream.address(), &salt_holder);
    assert_eq!(Client::connect(program.http).query(&tokens[2]).reason(), "token_revoked");
    assert_ne!(token_of(program.http, "user-2"), tokens[2]);
}

#[test]
fn a_removed_user_is_rejected_during_an_outage_of_the_store_and_after_it() {
    let mut redis = Redis::start();
    let folder = tempfile::tempdir().expect("a folder");
    let upstream = Upstream::start();
    let mut users = UsersFile::new(folder.path());
    let path = users.path.to_str().expect("text").to_owned();
    let url = redis.url();
    let options = [
        ("STORE_KIND", "redis"),
        ("STORE_URLS", url.as_str()),
        ("AUTH_VERIFIER", "users-file"),
        ("AUTH_USERS_FILE", path.as_str()),
        ("TOKENS_FOREIGN", "reject"),
        ("STORE_TIMEOUT", "2s"),
        KEY,
    ];
    let gateway = Gateway::start(upstream.address(), &options);
    wait_until("the store responds", || gateway.metric("timbr_gateway_store_up") == 1.0);
    let (stays, ends) = (gateway.token_of("user-1", "secret"), gateway.token_of("user-2", "secret"));
    assert_eq!((gateway.query(&stays).status, gateway.query(&ends).status), (200, 200));
    redis.kill();
    wait_until("the outage is detected", || gateway.metric("timbr_gateway_store_up") == 0.0);
    users.lines[2] = None;
    users.write();
    wait_until("the removed user is rejected", || matches!(gateway.query(&ends).status, 401 | 503));
    assert_eq!(gateway.query(&stays).status, 200);
    redis.restart();
    wait_until("the store responds again", || gateway.metric("timbr_gateway_store_up") == 1.0);
    assert_eq!(gateway.query(&ends).status, 401);
    // A replica that never saw the user.
    let other = Gateway::start(upstream.address(), &options);
    wait_until("the token is restored", || other.query(&stays).status == 200);
    wait_until("the other is not", || other.query(&ends).reason() == "token_revoked");
}

#[test]
fn clients_learn_why_a_token_has_ended() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(upstream.address(), &[("TOKENS_MAX", "2"), ("TOKENS_TTL", "1h")]);
    let reason = |token: &str| gateway.query(token).reason();
    let tokens = ["a", "b", "c"].map(|user| gateway.token_of(user, "secret"));
    assert_eq!(reason(&tokens[0]), "token_evicted");
    wait_until("evictions are counted", || gateway.metric("timbr_gateway_tokens_evicted_total") == 1.0);
    gateway.revoke("{\"user\":\"b\"}");
    assert_eq!(reason(&tokens[1]), "token_revoked");
    // Its entry is free.
    let fourth = gateway.token_of("d", "secret");
    assert_eq!(gateway.query(&tokens[2]).status, 200);
    gateway.clock.advance(Duration::from_secs(3601));
    for token in tokens.iter().chain([&fourth]) {
        assert_eq!(reason(token), "token_expired");
    }
}

#[test]
fn stored_tokens_are_protected_by_the_key_and_not_by_the_salt() {
    let upstream = Upstream::start();
    let redis = Redis::start();
    let url = redis.url();
    let other_key = ("STORE_KEY", "cw/0x689RpI+jtRR7oE8h/eQsKImvJapLeSbXpwF4eA=");
    let start = |key| {
        let options = [("STORE_KIND", "redis"), ("STORE_URLS", url.as_str()), ("TOKENS_FOREIGN", "reject"), key];
        let gateway = Gateway::start(upstream.address(), &options);
        wait_until("the store responds", || gateway.metric("timbr_gateway_store_up") == 1.0);
        gateway
    };
    let gateway = start(KEY);
    let token = gateway.token();
    // The same salt and the same server, but a different key.
    let stranger = start(other_key);
    assert_eq!(stranger.query(&token).reason(), "api_key_unknown");
    let listed = stranger.get("/tokens");
    assert_eq!(listed["tokens"].as_array().map(Vec::len), Some(0), "{listed}");
    assert_eq!(gateway.query(&token).status, 200);
    assert_eq!(start(KEY).query(&token).status, 200);
}
