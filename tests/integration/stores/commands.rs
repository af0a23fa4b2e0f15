//! `timbr-gateway tokens list|revoke` and `salt status` against a running gateway.

use std::process::Output;

use timbr_gateway::store::TokenId;

use crate::support::bearer::{SALT, bearer_with};
use crate::support::client::JSON;
use crate::support::gateway::Gateway;
use crate::support::program::run;
use crate::support::redis::Redis;
use crate::support::upstream::Upstream;
use crate::support::wait_until;

const OTHER_SALT: &str = "d6HnHQJy2nl1YqLeN0dZlmaIHvVkAx2gRUbDUr3lKEE=";

fn said(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).expect("text")
}

#[test]
fn tokens_are_listed_and_revoked_without_printing_them() {
    let gateway = Gateway::start(Upstream::start().address(), &[]);
    let tokens = ["alice", "bob", "carol", "dave"].map(|user| gateway.token_of(user, "secret"));
    let fingerprint = |token: &str| format!("{:?}", TokenId::from_token(token.as_bytes()))[8..16].to_owned();

    let shown = said(&gateway.command(&["tokens", "list"]));
    assert_eq!(shown.lines().count(), 5, "{shown}");
    let bobs = shown.lines().find(|line| line.ends_with("bob")).expect("a line");
    assert!(bobs.starts_with(&fingerprint(&tokens[1])), "{bobs}");
    assert_eq!(bobs.matches('T').count(), 3, "minted, expires, last used: {bobs}");
    for token in &tokens {
        assert!(!shown.contains(&token[3..]), "{shown}");
    }
    let one = said(&gateway.command(&["tokens", "list", "--user", "bob", "--json"]));
    let one: serde_json::Value = serde_json::from_str(&one).expect("JSON");
    assert_eq!((one.as_array().map(Vec::len), &one[0]["user"]), (Some(1), &"bob".into()));
    assert!(one[0]["expires"].as_u64() > one[0]["minted"].as_u64());
    let some = said(&gateway.command(&["tokens", "list", "--limit", "2"]));
    assert!(some.contains("There are more than 2"), "{some}");

    let by_user = gateway.command(&["tokens", "revoke", "--user", "alice"]);
    assert_eq!(said(&by_user), "Revoked 1 token.\n");
    said(&gateway.command(&["tokens", "revoke", "--fingerprint", &fingerprint(&tokens[1])]));
    said(&gateway.command_with(&["tokens", "revoke", "--token-stdin"], &format!("{}\n", tokens[2])));
    assert_eq!(tokens.each_ref().map(|token| gateway.query(token).status), [401, 401, 401, 200]);
    said(&gateway.command(&["tokens", "revoke", "--all"]));
    assert_eq!(gateway.query(&tokens[3]).status, 401);
}

#[test]
fn errors_of_the_token_commands_are_explained() {
    let gateway = Gateway::start(Upstream::start().address(), &[]);
    for (arguments, code, part) in [
        (&["tokens", "revoke"][..], 2, "--user <NAME>"),
        (&["tokens", "revoke", "--user", "alice", "--all"], 2, "cannot be used with"),
        (&["tokens", "revoke", "--user", "a:b"], 1, "a user name is 1 to 256"),
        (&["tokens", "revoke", "--fingerprint", "xyz"], 1, "8 hex digits"),
        (&["tokens", "revoke", "--token-file", "/nonexistent"], 1, "cannot read the token from /nonexistent"),
        (&["tokens", "list", "--limit", "0"], 2, "0 is not in"),
    ] {
        let output = gateway.command(arguments);
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {told}");
        assert!(told.contains(part), "{arguments:?}: {told}");
    }
    let nobody = run(&["tokens", "list", "--listen-admin", "127.0.0.1:1"], &[], "");
    assert_eq!(nobody.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&nobody.stderr).contains("http://127.0.0.1:1/tokens"), "{nobody:?}");
}

/// Rotates the salt as in docs/tokens.md, with two replicas that are restarted one after the other.
#[test]
fn salts_are_rotated_without_failed_requests() {
    let redis = Redis::start();
    let upstream = Upstream::start();
    let url = redis.url();
    let start = |salts: &str| {
        let options = [
            ("STORE_KIND", "redis"),
            ("STORE_URLS", url.as_str()),
            ("STORE_TIMEOUT", "2s"),
            ("TOKENS_FOREIGN", "reject"),
            ("API_AUTH_SALT", salts),
        ];
        let gateway = Gateway::start(upstream.address(), &options);
        wait_until("the store responds", || gateway.metric("timbr_gateway_store_up") == 1.0);
        gateway
    };
    let login = |gateway: &Gateway, salt: &str, user: &str| {
        let authorization = format!("Bearer {}", bearer_with(salt, user, "secret"));
        let headers = [JSON, ("Authorization", authorization.as_str())];
        let response = gateway.client().send("POST /timbr/api/get_token", &headers, b"");
        (response.status == 200).then(|| response.token())
    };
    let (old_first, new_first) = (format!("{SALT},{OTHER_SALT}"), format!("{OTHER_SALT},{SALT}"));

    // Before, and when both replicas have both salts: tokens are still made with the old one.
    let mut replicas = [start(SALT), start(SALT)];
    let early = login(&replicas[0], SALT, "early").expect("a token");
    for number in 0..2 {
        replicas[number] = start(&old_first);
        assert!(replicas.iter().all(|replica| replica.query(&early).status == 200));
    }
    // The new salt becomes the primary one, at one replica before the other.
    replicas[0] = start(&new_first);
    let new = login(&replicas[0], OTHER_SALT, "new").expect("a token");
    assert!(replicas.iter().all(|replica| replica.query(&early).status == 200 && replica.query(&new).status == 200));
    replicas[1] = start(&new_first);
    assert!(replicas.iter().all(|replica| replica.query(&early).status == 200 && replica.query(&new).status == 200));
    assert_eq!(login(&replicas[1], OTHER_SALT, "new"), Some(new.clone()), "the same token at both");

    // Is the old salt still used?
    assert!(login(&replicas[0], SALT, "late").is_some(), "the old salt still opens bearers");
    let shown = || said(&replicas[1].command(&["salt", "status"]));
    wait_until("its use is reported at the other replica", || {
        let shown = shown();
        let old = shown.lines().nth(2).expect("a line").to_owned();
        old.ends_with(" 2") && old.contains('T')
    });
    let shown = shown();
    assert!(shown.lines().nth(1).expect("a line").contains("primary"), "{shown}");
    assert!(!shown.contains("Since the start of this process"), "{shown}");

    // Without the old salt, its bearers and tokens are rejected.
    let replica = start(OTHER_SALT);
    assert_eq!((replica.query(&new).status, replica.query(&early).status), (200, 401));
    assert_eq!(login(&replica, SALT, "early"), None);
}

#[test]
fn without_a_store_salt_status_reports_since_when_it_counts() {
    let gateway = Gateway::start(Upstream::start().address(), &[]);
    let shown = said(&gateway.command(&["salt", "status"]));
    assert!(shown.contains("never") && shown.contains("Since the start of this process"), "{shown}");
    gateway.token();
    let shown = said(&gateway.command(&["salt", "status"]));
    assert!(!shown.contains("never") && shown.lines().nth(1).expect("a line").ends_with(" 1"), "{shown}");
}
