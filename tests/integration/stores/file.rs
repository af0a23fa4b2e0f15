//! Tokens in a file: what was acknowledged outlives `kill -9`, and nothing in it can be read.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::Duration;

use timbr_gateway::app;
use timbr_gateway::config::{Sources, load};

use crate::support::bearer::{SALT, bearer};
use crate::support::client::Client;
use crate::support::program::Program;
use crate::support::stores::{Ground, id_of};
use crate::support::upstream::Upstream;

const JSON: (&str, &str) = ("Content-Type", "application/json");

fn ground() -> Ground {
    Ground::File(tempfile::tempdir().expect("a folder"))
}

fn use_token(program: &Program, token: &str) -> u16 {
    Client::connect(program.http).send("GET /timbr/api/x", &[JSON, ("x-api-key", token)], b"").status
}

#[test]
fn every_token_that_was_given_out_outlives_kill_9() {
    let ground = ground();
    let upstream = Upstream::start();
    let path = ground.path().to_str().expect("text").to_owned();
    let options = [("STORE_KIND", "file"), ("STORE_PATH", &*path)];
    let mut given: Vec<(String, String)> = Vec::new();
    for round in 0..3 {
        let mut program = Program::start(upstream.address(), &options);
        for (user, token) in &given {
            assert_eq!(use_token(&program, token), 200, "{user} was given it before the program was killed");
        }
        // Killed while clients ask without a pause: at any point of writing.
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
            program.kill_9();
            clients.into_iter().flat_map(|client| client.join().expect("no panic")).collect()
        });
        assert!(more.len() > 20, "{} tokens were given out", more.len());
        given.extend(more);
    }
    let program = Program::start(upstream.address(), &options);
    let lost = given.iter().filter(|(_, token)| use_token(&program, token) != 200).count();
    println!("{} tokens given out, 3 times kill -9, {lost} lost", given.len());
    assert_eq!(lost, 0);
}

/// A token, unless the program ends before it is given.
fn try_token(http: std::net::SocketAddr, user: &str) -> Option<String> {
    let mut client = Client::try_connect(http)?;
    let authorization = format!("Bearer {}", bearer(user, "secret"));
    let answer = client.try_send("POST /timbr/api/get_token", &[JSON, ("Authorization", &authorization)])?;
    assert_eq!(answer.status, 200, "{answer:?}");
    let length = answer.field("content-length").parse().expect("a length");
    // Half an answer is none.
    let body: serde_json::Value = serde_json::from_slice(&client.read_bytes(length)).ok()?;
    Some(body["data"][0].as_str()?.to_owned())
}

#[test]
fn the_file_is_its_owners_alone_and_tells_nothing() {
    let ground = ground();
    let replica = ground.open();
    replica.mint_with_key("somebody-by-name", 7, Some("tk_upstream_secret")).expect("minted");
    replica.close();
    let mode = std::fs::metadata(ground.path()).expect("it is there").permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
    let bytes = std::fs::read(ground.path()).expect("read");
    for secret in [&b"somebody"[..], b"tk_upstream", &[7; 20], &id_bytes("somebody-by-name", 7)] {
        assert!(!bytes.windows(secret.len()).any(|window| window == secret), "{secret:?}");
    }
}

fn id_bytes(user: &str, seed: u8) -> Vec<u8> {
    let hash =
        aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &[user.as_bytes(), &[seed; 20]].concat());
    assert!(format!("{:?}", id_of(user, &[seed; 20])).contains(&format!("{:02x}", hash.as_ref()[0])));
    hash.as_ref().to_vec()
}

#[test]
fn a_file_that_cannot_be_trusted_or_used_is_refused_with_a_sentence() {
    let ground = ground();
    let path = ground.path();
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
    ground.open().close();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o640)).expect("set");
    assert!(start().contains("is accessible to other users (mode 0640); run `chmod 600"), "{}", start());

    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).expect("set");
    let replica = ground.open();
    assert!(start().contains("is in use by another process"), "{}", start());
    replica.close();

    std::fs::write(&path, b"this is no database, and has never been one".repeat(200)).expect("written");
    assert!(start().contains("store.path: "), "{}", start());
    std::fs::remove_file(&path).expect("removed");
    std::fs::create_dir(&path).expect("made");
    assert!(start().contains("cannot open "), "{}", start());
}

#[test]
fn what_has_ended_leaves_the_file() {
    let ground = ground();
    let options = [("TOKENS_TTL", "1h"), ("TOKENS_IDLE_TTL", "1s")];
    let replica = ground.open_with(&options);
    let ids: Vec<_> = (0..20).map(|n| replica.mint(&format!("u{n}"), n).expect("minted")).collect();
    // One of them stays in use.
    let is_live = |n: usize| replica.lives(&ids[n]);
    replica.clock.advance(Duration::from_millis(600));
    assert!(is_live(0));
    replica.clock.advance(Duration::from_millis(600));
    assert!(is_live(0) && !is_live(1));
    replica.store().sweep();
    replica.close();
    let replica = ground.open_with(&options);
    let listed = replica
        .block_on(replica.store().list(timbr_gateway::store::TokenFilter { user: None, limit: 100 }))
        .expect("it answers");
    assert!(listed.tokens.len() <= 1, "{listed:?}");
    replica.close();
}

#[test]
fn a_full_disk_costs_new_tokens_and_nothing_else() {
    // A file system of its own, of 2 MiB; without the right to mount one, files are limited instead.
    let ground = ground();
    let path = ground.path().to_str().expect("text").to_owned();
    let upstream = Upstream::start();
    let options = [("STORE_KIND", "file"), ("STORE_PATH", &*path)];
    // In blocks of 512 bytes; writing beyond it fails, as SIGXFSZ is ignored by the shell's child.
    let program =
        Program::start_as(upstream.address(), &options, "trap '' XFSZ; ulimit -f 1024; exec \"$0\" serve");
    let mut last = None;
    let mut refused = None;
    for number in 0..20_000 {
        let authorization = format!("Bearer {}", bearer(&format!("user-{number:0>200}"), "secret"));
        let mut client = Client::connect(program.http);
        let answer =
            client.send("POST /timbr/api/get_token", &[JSON, ("Authorization", &authorization)], b"");
        if answer.status == 200 {
            last = answer.json()["data"][0].as_str().map(str::to_owned);
        } else {
            refused = Some((answer.status, answer.reason()));
            break;
        }
    }
    assert_eq!(refused, Some((503, "token_store_unavailable".to_owned())));
    assert_eq!(use_token(&program, &last.expect("some were given out")), 200, "known ones go on working");
}

#[test]
fn two_programs_do_not_share_a_file() {
    let ground = ground();
    let path = ground.path().to_str().expect("text").to_owned();
    let upstream = Upstream::start();
    let _first = Program::start(upstream.address(), &[("STORE_KIND", "file"), ("STORE_PATH", &path)]);
    let second = Command::new(env!("CARGO_BIN_EXE_timbr-gateway"))
        .arg("serve")
        .env_clear()
        .env("API_AUTH_SALT", SALT)
        .env("TIMBR_GATEWAY_UPSTREAM_URL", "http://127.0.0.1:1")
        .env("TIMBR_GATEWAY_LISTEN_HTTPS", "127.0.0.1:0")
        .env("TIMBR_GATEWAY_LISTEN_ADMIN", "off")
        .env("TIMBR_GATEWAY_STORE_KIND", "file")
        .env("TIMBR_GATEWAY_STORE_PATH", &path)
        .output()
        .expect("it runs");
    let told = String::from_utf8_lossy(&second.stderr);
    assert_eq!(second.status.code(), Some(1), "{told}");
    assert!(told.contains("in use by another process"), "{told}");
}
