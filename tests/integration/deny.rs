//! What a revocation reports, and users and credentials that an operator denies for a while.

use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use aws_lc_rs::digest::{SHA256, digest};
use serde_json::json;

use crate::support::client::{JSON, Response};
use crate::support::gateway::Gateway;
use crate::support::idp::{Idp, SigningKey, claims};
use crate::support::upstream::Upstream;

const NOW: u64 = 1_900_000_000;

fn run(gateway: &Gateway, arguments: &[&str]) -> Output {
    gateway.command(&[&["tokens", "revoke"], arguments].concat())
}

/// The exit code and the output.
fn revoke(gateway: &Gateway, arguments: &[&str]) -> (Option<i32>, String) {
    let output = run(gateway, arguments);
    (
        output.status.code(),
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr),
    )
}

fn get(gateway: &Gateway, credential: (&str, &str)) -> Response {
    gateway.client().send("GET /timbr/api/x", &[JSON, credential], b"")
}

fn hex(text: &str) -> String {
    digest(&SHA256, text.as_bytes()).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn a_revocation_reports_the_number_of_live_tokens_that_it_ended() {
    let gateway = Gateway::start(Upstream::start().address(), &[]);
    let alice = gateway.token_of("alice", "secret");
    let [_, _, carol] = ["bob", "bob-2", "carol"].map(|user| gateway.token_of(user, "secret"));
    gateway.token_of("alice", "other secret");
    let said = |code: i32, text: &str| (Some(code), format!("{text}\n"));
    assert_eq!(revoke(&gateway, &["--user", "alice", "--dry-run"]), said(0, "Would revoke 2 tokens."));
    assert_eq!(get(&gateway, ("x-api-key", &alice)).status, 200, "a dry run changes nothing");
    assert_eq!(revoke(&gateway, &["--user", "alice"]), said(0, "Revoked 2 tokens."));
    assert_eq!(get(&gateway, ("x-api-key", &alice)).json()["reason"], "token_revoked");
    for nothing in [&["--user", "alice"][..], &["--user", "allice"], &["--fingerprint", "00000000"]] {
        assert_eq!(revoke(&gateway, nothing), said(4, "Revoked 0 tokens."), "{nothing:?}");
    }
    assert_eq!(revoke(&gateway, &["--user", "dave", "--dry-run"]), said(4, "Would revoke 0 tokens."));
    assert_eq!(revoke(&gateway, &["--fingerprint", &hex(&carol)[..8]]), said(0, "Revoked 1 token."));
    assert_eq!(gateway.try_revoke(r#"{"all": true}"#).json(), json!({"status": "success", "revoked": 2}));
}

#[test]
fn a_denied_user_is_rejected_with_every_credential() {
    let folder = tempfile::tempdir().expect("a folder");
    let keys = folder.path().join("keys");
    std::fs::write(&keys, format!("alice:{}\nbob:{}\n", hex("key-of-alice"), hex("key-of-bob"))).expect("written");
    let signing = SigningKey::new("one");
    let idp = Idp::start(&[&signing]);
    let issuers = idp.option("");
    let options = [("TOKENS_KEYS_FILE", keys.to_str().expect("text")), ("AUTH_JWT_ISSUERS", issuers.as_str())];
    let upstream = Upstream::start();
    let gateway = Gateway::start_at(&format!("http://{}", upstream.address()), &options, NOW);
    let jwt = |user: &str| signing.sign(&claims(NOW, &json!({"email": user})));
    let (token, alices, bobs) = (gateway.token_of("alice", "secret"), jwt("alice"), jwt("bob"));
    let of_alice = [("x-api-key", token.as_str()), ("x-api-key", "key-of-alice"), ("x-jwt-token", alices.as_str())];
    let of_bob = [("x-api-key", "key-of-bob"), ("x-jwt-token", bobs.as_str())];
    for credential in of_alice.iter().chain(&of_bob) {
        let response = get(&gateway, *credential);
        assert_eq!(response.status, 200, "{credential:?}: {response:?}");
    }
    let arrived = upstream.log().len();

    let (code, text) = revoke(&gateway, &["--user", "alice", "--deny-for", "1h"]);
    assert!(code == Some(0) && text.starts_with("Revoked 1 token.\nDenied until 2030-03-17T"), "{code:?} {text}");
    let reason = |response: &Response| response.json()["reason"].as_str().unwrap_or_default().to_owned();
    assert_eq!(reason(&get(&gateway, of_alice[0])), "token_revoked");
    for credential in &of_alice[1..] {
        let response = get(&gateway, *credential);
        assert_eq!((response.status, reason(&response).as_str()), (403, "credential_denied"), "{credential:?}");
    }
    let refused = gateway.login("alice", "secret");
    assert_eq!((refused.status, reason(&refused).as_str()), (403, "credential_denied"));
    assert!(!refused.text().contains("tk_"));
    assert_eq!(upstream.log().len(), arrived, "no denied request arrives at the backend");
    for credential in of_bob {
        assert_eq!(get(&gateway, credential).status, 200, "{credential:?}");
    }
    let as_alice = [JSON, of_bob[0], ("x-api-impersonate-user", "alice")];
    let refused = gateway.client().send("GET /timbr/api/x", &as_alice, b"");
    assert_eq!((refused.status, refused.reason().as_str()), (403, "credential_denied"), "nor may others act as alice");
    let rejections = gateway.get("/refusals?reason=credential_denied");
    let rejection = &rejections["refusals"][1];
    assert_eq!(rejection["user"], "alice");
    assert!(rejection["advice"].as_str().is_some_and(|advice| advice.contains("--deny-for")), "{rejection}");

    gateway.clock.advance(std::time::Duration::from_secs(3601));
    assert_eq!(get(&gateway, of_alice[1]).status, 200, "the time is over");
    revoke(&gateway, &["--user", "alice", "--deny-for", "1h"]);
    assert_eq!(get(&gateway, of_alice[1]).status, 403);
    let (code, text) = revoke(&gateway, &["--user", "alice", "--deny-for", "0s"]);
    assert_eq!((code, text.as_str()), (Some(0), "Revoked 0 tokens.\nNot denied any more.\n"));
    assert_eq!(get(&gateway, of_alice[1]).status, 200);
}

#[test]
fn a_denied_credential_is_rejected_even_if_the_backend_has_accepted_it() {
    let upstream = Upstream::with_behaviour(|request, stream| {
        let status = if request.header("x-api-key") == "key-of-the-backend" { 200 } else { 401 };
        crate::support::upstream::respond(stream, status, "{}")
    });
    let gateway = Gateway::start(upstream.address(), &[]);
    let key = ("x-api-key", "key-of-the-backend");
    assert_eq!(get(&gateway, key).status, 200, "its acceptance is remembered");
    let fingerprint = &hex(key.1)[..8];
    assert_eq!(revoke(&gateway, &["--fingerprint", fingerprint, "--deny-for", "1h"]).0, Some(0));
    assert_eq!(get(&gateway, key).status, 403);
    let body = json!({"token": key.1, "deny_seconds": 0}).to_string();
    assert_eq!(gateway.try_revoke(&body).json(), json!({"status": "success", "revoked": 0, "denied_until": 0}));
    assert_eq!(get(&gateway, key).status, 200);
}

#[test]
fn a_denied_user_is_rejected_while_the_backend_does_not_name_the_user_of_a_key() {
    let outage = Arc::new(AtomicBool::new(false));
    let is_out = Arc::clone(&outage);
    let upstream = Upstream::with_behaviour(move |request, stream| {
        let (status, body) = match request.header("x-api-key") {
            "key-of-dora" if !request.line.contains("system_db") => (200, "{}"),
            "key-of-dora" if is_out.load(Ordering::Relaxed) => (500, "{}"),
            "key-of-dora" => (200, r#"[{"name":"dora"}]"#),
            _ => (401, "{}"),
        };
        crate::support::upstream::respond(stream, status, body)
    });
    let options = [("TOKENS_FOREIGN_USER_QUERY", "SELECT current_user()"), ("TOKENS_FOREIGN_ACCEPT_TTL", "60s")];
    let gateway = Gateway::start_at(&format!("http://{}", upstream.address()), &options, NOW);
    let key = ("x-api-key", "key-of-dora");
    assert_eq!(get(&gateway, key).status, 200);
    revoke(&gateway, &["--user", "dora", "--deny-for", "1h"]);
    assert_eq!(get(&gateway, key).status, 403);
    outage.store(true, Ordering::Relaxed);
    gateway.clock.advance(std::time::Duration::from_secs(61));
    assert_eq!(get(&gateway, key).status, 403);
}

#[test]
fn invalid_denials_are_rejected() {
    let gateway = Gateway::start(Upstream::start().address(), &[]);
    for arguments in [&["--all", "--deny-for", "1h"][..], &["--user", "a", "--deny-for", "1h", "--dry-run"]] {
        assert_eq!(run(&gateway, arguments).status.code(), Some(2), "{arguments:?}");
    }
    let long = revoke(&gateway, &["--user", "a", "--deny-for", "31d"]);
    assert!(long.0 == Some(1) && long.1.contains("at most 30 days"), "{long:?}");
    for body in [r#"{"all":true,"deny_seconds":1}"#, r#"{"deny_seconds":1}"#, r#"{"user":"a","deny_seconds":-1}"#] {
        assert_eq!(gateway.try_revoke(body).status, 400, "{body}");
    }
}
