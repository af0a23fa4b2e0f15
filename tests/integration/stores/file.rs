//! Tokens in a file: acknowledged tokens survive `kill -9`, and the file contains no secrets.

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use timbr_gateway::app;
use timbr_gateway::base::user_name::UserName;
use timbr_gateway::config::{Sources, load};
use timbr_gateway::store::Revocation;

use crate::support::bearer::{SALT, bearer};
use crate::support::client::{Client, JSON};
use crate::support::program::{Program, run};
use crate::support::stores::{StoreFixture, id_of};
use crate::support::upstream::Upstream;
use crate::support::wait_until;

fn fixture() -> StoreFixture {
    StoreFixture::File(tempfile::tempdir().expect("a folder"))
}

/// A fixture, the path of its file, and a backend.
fn setup() -> (StoreFixture, String, Upstream) {
    let fixture = fixture();
    let path = fixture.path().to_str().expect("text").to_owned();
    (fixture, path, Upstream::start())
}

#[test]
fn every_issued_token_survives_kill_9() {
    let (_fixture, path, upstream) = setup();
    let options = [("STORE_KIND", "file"), ("STORE_PATH", &*path), ("LIMITS_TOKENS_PER_ADDRESS", "0")];
    let mut given: Vec<(String, String)> = Vec::new();
    for round in 0..3 {
        let mut program = Program::start(upstream.address(), &options);
        for (user, token) in &given {
            assert_eq!(program.query(token).status, 200, "{user} received the token before the program was killed");
        }
        // Killed while clients request tokens without a pause: at any point of a write.
        let more: Vec<_> = std::thread::scope(|scope| {
            let http = program.http;
            let clients: Vec<_> = (0..4)
                .map(|client| {
                    scope.spawn(move || {
                        let mut given = Vec::new();
                        for number in 0.. {
                            let user = format!("user-{round}-{client}-{number}");
                            let Some(token) = try_token(http, &user) else { return given };
                            given.push((user, token));
                        }
                        given
                    })
                })
                .collect();
            std::thread::sleep(Duration::from_millis(700));
            program.kill();
            clients.into_iter().flat_map(|client| client.join().expect("no panic")).collect()
        });
        assert!(more.len() > 20, "{} tokens were issued", more.len());
        given.extend(more);
    }
    let program = Program::start(upstream.address(), &options);
    let lost = given.iter().filter(|(_, token)| program.query(token).status != 200).count();
    println!("{} tokens issued, 3 times kill -9, {lost} lost", given.len());
    assert_eq!(lost, 0);
}

/// A token; `None` if the program exits first.
fn try_token(http: std::net::SocketAddr, user: &str) -> Option<String> {
    let mut client = Client::try_connect(http)?;
    let authorization = format!("Bearer {}", bearer(user, "secret"));
    let response = client.try_send("POST /timbr/api/get_token", &[JSON, ("Authorization", &authorization)])?;
    assert_eq!(response.status, 200, "{response:?}");
    let length = response.header("content-length").parse().expect("a length");
    // An incomplete response does not count.
    let body: serde_json::Value = serde_json::from_slice(&client.read_bytes(length)).ok()?;
    Some(body["data"][0].as_str()?.to_owned())
}

#[test]
fn the_file_is_private_and_contains_no_secrets() {
    let fixture = fixture();
    let replica = fixture.open();
    replica.mint_with_key("somebody-by-name", 7, Some("tk_upstream_secret")).expect("minted");
    replica.close();
    let mode = std::fs::metadata(fixture.path()).expect("it is there").permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
    let bytes = std::fs::read(fixture.path()).expect("read");
    for secret in [&b"somebody"[..], b"tk_upstream", &[7; 20], &id_bytes("somebody-by-name", 7)] {
        assert!(!bytes.windows(secret.len()).any(|window| window == secret), "{secret:?}");
    }
}

fn id_bytes(user: &str, seed: u8) -> Vec<u8> {
    let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &[user.as_bytes(), &[seed; 20]].concat());
    assert!(format!("{:?}", id_of(user, &[seed; 20])).contains(&format!("{:02x}", hash.as_ref()[0])));
    hash.as_ref().to_vec()
}

#[test]
fn an_unsafe_or_unusable_file_is_rejected_with_an_explanation() {
    let fixture = fixture();
    let path = fixture.path();
    let start = || {
        let environment = vec![
            ("API_AUTH_SALT".into(), SALT.into()),
            ("TIMBR_GATEWAY_UPSTREAM_URL".into(), "http://127.0.0.1:1".into()),
            ("TIMBR_GATEWAY_LISTEN_HTTPS".into(), "off".into()),
            ("TIMBR_GATEWAY_LISTEN_HTTP".into(), "127.0.0.1:0".into()),
            ("TIMBR_GATEWAY_LISTEN_ADMIN".into(), "off".into()),
            ("TIMBR_GATEWAY_STORE_KIND".into(), "file".into()),
            ("TIMBR_GATEWAY_STORE_PATH".into(), path.clone().into()),
        ];
        let (config, _) = load(&Sources { environment, ..Sources::default() }).expect("valid");
        match app::bind(config, &timbr_gateway::base::clock::Clock::system()) {
            Ok(_) => panic!("it starts"),
            Err(error) => error.to_string(),
        }
    };
    fixture.open().close();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o640)).expect("set");
    assert!(start().contains("is accessible to other users (mode 0640); run `chmod 600"), "{}", start());

    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).expect("set");
    let replica = fixture.open();
    assert!(start().contains("is in use by another process"), "{}", start());
    replica.close();

    let file = std::fs::OpenOptions::new().write(true).open(&path).expect("opened");
    file.set_len(file.metadata().expect("there").len() / 3).expect("truncated");
    assert!(start().contains("it is damaged") && start().contains("move this one away"), "{}", start());

    std::fs::write(&path, b"this is not a database".repeat(200)).expect("written");
    assert!(start().contains("store.path: "), "{}", start());
    std::fs::remove_file(&path).expect("removed");
    std::fs::create_dir(&path).expect("made");
    assert!(start().contains("it is not a regular file; name a different file"), "{}", start());
}

#[test]
fn expired_tokens_are_removed_from_the_file() {
    let fixture = fixture();
    let options = [("TOKENS_TTL", "1h"), ("TOKENS_IDLE_TTL", "1s")];
    let replica = fixture.open_with(&options);
    let ids: Vec<_> = (0..20).map(|n| replica.mint(&format!("u{n}"), n).expect("minted")).collect();
    // One of them is used again.
    let is_live = |n: usize| replica.lives(&ids[n]);
    replica.clock.advance(Duration::from_millis(600));
    assert!(is_live(0));
    replica.clock.advance(Duration::from_millis(600));
    assert!(is_live(0) && !is_live(1));
    replica.store().sweep();
    replica.close();
    let replica = fixture.open_with(&options);
    let listed = replica
        .block_on(replica.store().list(timbr_gateway::store::TokenFilter { user: None, limit: 100 }))
        .expect("it responds");
    assert!(listed.tokens.len() <= 1, "{listed:?}");
    replica.close();
}

#[test]
fn a_full_disk_affects_only_new_tokens() {
    // A file size limit, which needs no mount; full_disk.rs has a file system without space.
    let (_fixture, path, upstream) = setup();
    let options = [
        ("STORE_KIND", "file"),
        ("STORE_PATH", &*path),
        ("TOKENS_FOREIGN", "reject"),
        ("LISTEN_ADMIN", "127.0.0.1:0"),
        ("LIMITS_TOKENS_PER_ADDRESS", "0"),
    ];
    // In blocks of 512 bytes. Writing beyond the limit fails, because the shell's child ignores SIGXFSZ.
    let mut program =
        Program::start_as(upstream.address(), &options, "trap '' XFSZ; ulimit -f 1024; exec \"$0\" serve");
    let (mut first, mut last) = (None, None);
    let mut refused = None;
    for number in 0..20_000 {
        let authorization = format!("Bearer {}", bearer(&format!("user-{number:0>200}"), "secret"));
        let mut client = Client::connect(program.http);
        let response = client.send("POST /timbr/api/get_token", &[JSON, ("Authorization", &authorization)], b"");
        if response.status == 200 {
            last = response.json()["data"][0].as_str().map(str::to_owned);
            first = first.or_else(|| last.clone());
        } else {
            refused = Some((response.status, response.reason()));
            break;
        }
    }
    assert_eq!(refused, Some((503, "token_store_unavailable".to_owned())));
    let (first, last) = (first.expect("some were given out"), last.expect("some were given out"));
    assert_eq!(program.query(&last).status, 200, "known tokens stay valid");
    let up = |program: &Program| program.metric("timbr_gateway_store_up").expect("the metric") == 1.0;
    wait_until("the failure is shown", || !up(&program));
    let revoked = program.admin("POST /tokens/revoke", &format!("{{\"token\":\"{last}\"}}"));
    assert_eq!(revoked.status, 200, "{revoked:?}");
    assert_eq!(program.query(&last).status, 401);
    program.kill();
    let program = Program::start(upstream.address(), &options);
    assert_eq!((program.query(&last).status, program.query(&first).status), (401, 200), "after a crash");
    assert!(up(&program));
}

#[test]
fn a_revocation_covers_tokens_that_are_in_the_file_but_not_in_memory() {
    let (_fixture, path, upstream) = setup();
    let options = [
        ("STORE_KIND", "file"),
        ("STORE_PATH", &*path),
        ("TOKENS_FOREIGN", "reject"),
        ("TOKENS_MAX_PER_USER", "2"),
        ("LISTEN_ADMIN", "127.0.0.1:0"),
    ];
    let mut program = Program::start(upstream.address(), &options);
    let tokens = ["one", "two", "three"].map(|password| program.login("alice", password).token());
    let statuses = |program: &Program| tokens.each_ref().map(|token| program.query(token).status);
    assert_eq!(statuses(&program), [401, 200, 200], "the first one is evicted");
    assert_eq!(program.admin("POST /tokens/revoke", "{\"user\":\"alice\"}").json()["revoked"], 2);
    let next = program.login("alice", "one").token();
    program.kill();
    let program = Program::start(upstream.address(), &options);
    assert_eq!((statuses(&program), program.query(&next).status), ([401; 3], 200));
}

#[test]
fn a_revocation_covers_tokens_whose_key_is_not_configured_at_the_time() {
    let fixture = fixture();
    let (old, new) = ("cw/0x689RpI+jtRR7oE8h/eQsKImvJapLeSbXpwF4eA=", "d6HnHQJy2nl1YqLeN0dZlmaIHvVkAx2gRUbDUr3lKEE=");
    let open = |keys: &str| fixture.open_with(&[("STORE_KEY", keys)]);
    let replica = open(old);
    let [alice, bob] = ["alice", "bob"].map(|user| replica.mint(user, 1).expect("minted"));
    replica.close();
    let replica = open(new);
    let user = UserName::parse(b"alice").expect("valid");
    assert_eq!(replica.block_on(replica.store().revoke(Revocation::User(user))), Ok(0));
    replica.close();
    let replica = open(&format!("{new},{old}"));
    assert!(!replica.lives(&alice) && replica.lives(&bob));
}

#[test]
fn two_processes_cannot_share_a_file() {
    let (_fixture, path, upstream) = setup();
    let _first = Program::start(upstream.address(), &[("STORE_KIND", "file"), ("STORE_PATH", &path)]);
    let variables = [
        ("API_AUTH_SALT", SALT),
        ("TIMBR_GATEWAY_UPSTREAM_URL", "http://127.0.0.1:1"),
        ("TIMBR_GATEWAY_LISTEN_HTTPS", "127.0.0.1:0"),
        ("TIMBR_GATEWAY_LISTEN_ADMIN", "off"),
        ("TIMBR_GATEWAY_STORE_KIND", "file"),
        ("TIMBR_GATEWAY_STORE_PATH", &*path),
    ];
    let second = run(&["serve"], &variables, "");
    let told = String::from_utf8_lossy(&second.stderr);
    assert_eq!(second.status.code(), Some(1), "{told}");
    assert!(told.contains("in use by another process"), "{told}");
}
