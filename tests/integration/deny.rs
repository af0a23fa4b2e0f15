//! What a revocation reports, and users and credentials that an operator denies for a while.

use std::io::Write;
use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::json;

use crate::support::client::{Client, JSON, Response};
use crate::support::gateway::Gateway;
use crate::support::idp::{Idp, SigningKey, claims};
use crate::support::redis::Redis;
use crate::support::upstream::{AfterRequest, Upstream};
use crate::support::wait_until;

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
    let listed = gateway.command(&["tokens", "list", "--limit", "1", "--json"]);
    let tokens: Vec<serde_json::Value> = serde_json::from_slice(&listed.stdout).expect("JSON");
    let shown = String::from_utf8_lossy(&listed.stderr);
    assert!(tokens.len() == 1 && shown.contains("more than 1 tokens"), "a program sees that it is not all: {shown}");
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
    // Some servers ignore the case of a name.
    let [dora, _] = ["DORA", "Dora"].map(|user| gateway.token_of(user, "secret"));
    assert_eq!(gateway.get("/tokens?user=dora")["tokens"].as_array().map(Vec::len), Some(2));
    assert_eq!(revoke(&gateway, &["--user", "dora", "--dry-run"]), said(0, "Would revoke 2 tokens."));
    assert_eq!(revoke(&gateway, &["--user", "dora"]), said(0, "Revoked 2 tokens."));
    assert_eq!(get(&gateway, ("x-api-key", &dora)).json()["reason"], "token_revoked");
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
    assert_eq!(refused.rejection(), (403, "credential_denied".into()), "nor may others act as alice");
    let rejections = gateway.get("/refusals?reason=credential_denied");
    let rejection = &rejections["refusals"][1];
    assert_eq!(rejection["user"], "alice");
    assert!(rejection["advice"].as_str().is_some_and(|advice| advice.contains("--deny-for")), "{rejection}");

    gateway.clock.advance(Duration::from_secs(3601));
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

/// The same token with the other signature that ECDSA verifies with the same key: (r, n - s), with the order n of P-256.
fn with_other_signature(jwt: &str) -> String {
    const ORDER: [u8; 32] = [
        0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xbc, 0xe6, 0xfa, 0xad,
        0xa7, 0x17, 0x9e, 0x84, 0xf3, 0xb9, 0xca, 0xc2, 0xfc, 0x63, 0x25, 0x51,
    ];
    let (signed, signature) = jwt.rsplit_once('.').expect("three parts");
    let mut signature = URL_SAFE_NO_PAD.decode(signature).expect("base64");
    let mut borrow = 0;
    for (digit, of_order) in signature[32..].iter_mut().zip(ORDER).rev() {
        let difference = i16::from(of_order) - i16::from(*digit) - borrow;
        borrow = i16::from(difference < 0);
        *digit = difference.rem_euclid(256) as u8;
    }
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}

#[test]
fn a_denied_jwt_is_rejected_in_every_text() {
    let signing = SigningKey::new("one");
    let idp = Idp::start(&[&signing]);
    let issuers = idp.option("");
    let upstream = Upstream::start();
    let options = [("AUTH_JWT_ISSUERS", issuers.as_str()), ("AUTH_JWT_UNKNOWN_ISSUERS", "forward")];
    let gateway = Gateway::start_at(&format!("http://{}", upstream.address()), &options, NOW);
    let known = signing.sign(&claims(NOW, &json!({})));
    let foreign = signing.sign(&claims(NOW, &json!({"iss": "https://only-the-backend-knows"})));
    for jwt in [known, foreign] {
        let texts = [jwt.clone(), with_other_signature(&jwt)];
        let statuses = || texts.each_ref().map(|text| get(&gateway, ("x-jwt-token", text)).status);
        assert_eq!(statuses(), [200, 200]);
        for what in
            [json!({"token": texts[1]}), json!({"fingerprint": hex(jwt.rsplit_once('.').expect("parts").0)[..8]})]
        {
            let deny = |seconds: u32| {
                let mut body = what.clone();
                body["deny_seconds"] = seconds.into();
                assert_eq!(gateway.try_revoke(&body.to_string()).status, 200);
            };
            deny(60);
            assert_eq!(statuses(), [403, 403], "{what}");
            deny(0);
            assert_eq!(statuses(), [200, 200]);
        }
    }
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

/// A backend whose response is a numbered event every 20 ms, and the number of events that it has sent.
fn event_backend() -> (Upstream, Arc<AtomicU64>) {
    let sent = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&sent);
    let upstream = Upstream::with_behaviour(move |_, stream| {
        let head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n";
        let mut is_open = stream.write_all(head).is_ok();
        while is_open {
            let number = count.fetch_add(1, Ordering::Relaxed);
            is_open = stream.write_all(format!("data: {number}\n\n").as_bytes()).is_ok();
            std::thread::sleep(Duration::from_millis(20));
        }
        AfterRequest::Close
    });
    (upstream, sent)
}

fn open_stream(gateway: &Gateway, headers: &[(&str, &str)]) -> Client {
    let mut client = gateway.begin("GET /timbr/api/mcp", headers, b"");
    assert_eq!(client.read_head().expect("it begins").status, 200);
    client
}

/// Returns whether an event arrives that the backend sends from now on.
fn is_open(client: &mut Client, sent: &AtomicU64) -> bool {
    let next = sent.load(Ordering::Relaxed) + 2;
    while let Some(events) = client.read_chunk() {
        let events = String::from_utf8(events).expect("text");
        if events.rsplit("data: ").next().and_then(|number| number.trim().parse().ok()) >= Some(next) {
            return true;
        }
    }
    false
}

#[test]
fn an_event_stream_ends_with_the_access_of_its_caller() {
    let (upstream, sent) = event_backend();
    let gateway = Gateway::start(upstream.address(), &[]);
    for (user, arguments) in
        [("alice", &["--user", "alice"][..]), ("bob", &["--all"]), ("carol", &["--user", "carol", "--deny-for", "1h"])]
    {
        let token = gateway.token_of(user, "secret");
        let mut client = open_stream(&gateway, &[("x-api-key", &token)]);
        assert!(is_open(&mut client, &sent));
        revoke(&gateway, arguments);
        assert!(!is_open(&mut client, &sent));
        assert_eq!(get(&gateway, ("x-api-key", &token)).json()["reason"], "token_revoked");
    }
    assert_eq!(upstream.log().len(), 3);
}

#[test]
fn an_event_stream_ends_when_its_jwt_expires_or_the_user_is_denied_that_it_acts_as() {
    let signing = SigningKey::new("one");
    let idp = Idp::start(&[&signing]);
    let issuers = idp.option("");
    let (upstream, sent) = event_backend();
    let options = [
        ("AUTH_JWT_ISSUERS", issuers.as_str()),
        ("IMPERSONATION_RULES", "[{users: svc, act_as: alice}]"),
        ("AUTH_TRUST_SALT_HOLDER", "true"),
        ("TOKENS_FOREIGN", "forward"),
    ];
    let gateway = Gateway::start_at(&format!("http://{}", upstream.address()), &options, NOW);
    let jwt = signing.sign(&claims(NOW, &json!({"email": "svc"})));
    let of_svc = ("x-jwt-token", jwt.as_str());
    // A rule decides on the JWT, the backend on its own key.
    for credential in [of_svc, ("x-api-key", "key-of-the-backend")] {
        let mut client = open_stream(&gateway, &[credential, ("x-api-impersonate-user", "alice")]);
        assert!(is_open(&mut client, &sent));
        revoke(&gateway, &["--user", "ALICE", "--deny-for", "1h"]);
        assert!(!is_open(&mut client, &sent), "{credential:?}");
        revoke(&gateway, &["--user", "alice", "--deny-for", "0s"]);
    }
    let mut client = open_stream(&gateway, &[of_svc]);
    assert!(is_open(&mut client, &sent));
    gateway.clock.advance(Duration::from_secs(7200));
    assert!(!is_open(&mut client, &sent));
}

#[test]
fn an_event_stream_ends_when_its_token_is_revoked_but_not_when_that_leaves_the_memory() {
    let mut redis = Redis::start();
    let (upstream, sent) = event_backend();
    let url = redis.url();
    let options =
        [("STORE_KIND", "redis"), ("STORE_URLS", url.as_str()), ("TOKENS_MAX", "1"), ("STORE_MAX_STALE", "10m")];
    let gateway = Gateway::start(upstream.address(), &options);
    let store_is = |up| wait_until("the store", || gateway.metric("timbr_gateway_store_up") == f64::from(up));
    store_is(1);
    let token = gateway.token_of("alice", "secret");
    let mut client = open_stream(&gateway, &[("x-api-key", &token)]);
    gateway.token_of("bob", "secret");
    assert!(is_open(&mut client, &sent), "evicted, but valid");
    redis.kill();
    store_is(0);
    gateway.clock.advance(Duration::from_secs(601));
    assert!(is_open(&mut client, &sent), "the store cannot be asked");
    redis.restart();
    store_is(1);
    assert!(is_open(&mut client, &sent));
    revoke(&gateway, &["--user", "alice"]);
    assert!(!is_open(&mut client, &sent));
}

#[test]
fn denials_are_listed_and_end() {
    let gateway = Gateway::start_at(&format!("http://{}", Upstream::start().address()), &[], NOW);
    let run = |arguments: &[&str]| {
        let output = gateway.command(&[&["tokens"], arguments].concat());
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    assert_eq!(run(&["denied"]), (Some(0), "No user or credential is denied.\n".to_owned()));
    revoke(&gateway, &["--user", "Alice", "--deny-for", "1h"]);
    revoke(&gateway, &["--fingerprint", "3fdf0040", "--deny-for", "30d"]);
    gateway.command(&["stop", "user", "bob", "--why", "Wait."]);
    let (_, listed) = run(&["denied"]);
    let rows: Vec<Vec<_>> = listed.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["KIND", "UNTIL", "NAME"]);
    assert_eq!(rows[1], ["fingerprint", "2030-04-16T17:46:40Z", "3fdf0040"]);
    assert_eq!(rows[2], ["user", "2030-03-17T18:46:40Z", "alice"]);
    assert_eq!(rows.len(), 3, "a stop is not a denial: {listed}");
    let json = json!([
        {"kind": "fingerprint", "name": "3fdf0040", "until": NOW + 30 * 86400},
        {"kind": "user", "name": "alice", "until": NOW + 3600},
    ]);
    assert_eq!(gateway.get("/tokens/denied")["denied"], json);
    let login = |user| gateway.login(user, "secret").reason();
    assert_eq!((login("alice").as_str(), login("bob").as_str()), ("credential_denied", "stopped_by_operator"));
    assert_eq!(gateway.get("/tokens")["tokens"], json!([]), "no token is stored that no client receives");
    let allowed = (Some(0), "The user ALICE is not denied any more.\n".to_owned());
    assert_eq!(run(&["allow", "--user", "ALICE"]), allowed);
    assert_eq!(run(&["allow", "--user", "alice"]), (Some(4), "The user alice was not denied.\n".to_owned()));
    assert_eq!(gateway.login("alice", "secret").status, 200);
    gateway.clock.advance(Duration::from_secs(31 * 86400));
    assert_eq!(run(&["denied"]).1, "No user or credential is denied.\n");
    assert_eq!(run(&["allow", "--fingerprint", "3fdf0040"]).0, Some(4));
}

#[test]
fn invalid_denials_are_rejected() {
    let gateway = Gateway::start(Upstream::start().address(), &[]);
    for arguments in [&["--all", "--deny-for", "1h"][..], &["--user", "a", "--deny-for", "1h", "--dry-run"]] {
        assert_eq!(run(&gateway, arguments).status.code(), Some(2), "{arguments:?}");
    }
    let long = revoke(&gateway, &["--user", "a", "--deny-for", "31d"]);
    assert!(long.0 == Some(1) && long.1.contains("at most 30 days"), "{long:?}");
    // A fraction must not become 0, which ends the denial.
    assert_eq!(revoke(&gateway, &["--user", "a", "--deny-for", "1h"]).0, Some(0));
    let short = revoke(&gateway, &["--user", "a", "--deny-for", "500ms"]);
    assert!(short.0 == Some(2) && short.1.contains("whole seconds"), "{short:?}");
    // An empty variable of a script must not look like a denied token.
    let output = gateway.command_with(&["tokens", "revoke", "--token-stdin", "--deny-for", "1h"], "\n");
    assert_eq!((output.status.code(), &*output.stderr), (Some(1), &b"error: the token is empty\n"[..]));
    let denied = gateway.get("/tokens/denied")["denied"].as_array().cloned().expect("a list");
    assert_eq!(denied.iter().map(|denial| &denial["name"]).collect::<Vec<_>>(), ["a"]);
    for body in
        ["", "{}", r#"{"all":true}"#, r#"{"user":"a","dry_run":true}"#, r#"{"user":"a","fingerprint":"00000000"}"#]
    {
        let refused = gateway.admin_command("POST /tokens/allow", body);
        let form = "the body must be one of {\"user\": …}, {\"fingerprint\": …} and {\"token\": …}";
        assert_eq!((refused.status, &refused.json()["data"]), (400, &form.into()), "{body}");
    }
    for body in [r#"{"all":true,"deny_seconds":1}"#, r#"{"deny_seconds":1}"#, r#"{"user":"a","deny_seconds":-1}"#] {
        assert_eq!(gateway.try_revoke(body).status, 400, "{body}");
    }
}
