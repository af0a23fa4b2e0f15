//! Users' own passwords in `Authorization: Basic`.

use std::path::Path;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::support::bearer::basic;
use crate::support::client::Response;
use crate::support::gateway::Gateway;
use crate::support::upstream::{Upstream, respond};

const HIVE: &str = "routes: [{name: hive}]\n";

fn thrift(gateway: &Gateway, user: &str, password: &str) -> Response {
    let headers = [("Content-Type", "application/x-thrift"), ("Authorization", &*basic(user, password))];
    gateway.client().send("POST /timbr-server", &headers, b"\x80\x01")
}

/// The key in the `Authorization` that the backend received last.
fn sent_login(upstream: &Upstream) -> (String, String) {
    let log = upstream.log();
    let authorization = log.last().expect("a request").header("authorization").to_owned();
    let login = STANDARD.decode(authorization.strip_prefix("Basic ").expect("Basic")).expect("base64");
    let login = String::from_utf8(login).expect("text");
    let (user, key) = login.split_once(':').expect("a colon");
    (user.to_owned(), key.to_owned())
}

fn write_users(file: &Path, password: &str) {
    let hash = bcrypt::hash(password, 4).expect("hashed");
    std::fs::write(file, format!("alice:{hash}\n")).expect("written");
}

#[test]
fn the_backend_receives_the_token_of_the_login() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("users");
    write_users(&file, "wonder:land");
    let upstream = Upstream::start();
    let options = [
        ("AUTH_VERIFIER", "users-file"),
        ("AUTH_USERS_FILE", file.to_str().expect("text")),
        ("TOKENS_FOREIGN", "reject"),
    ];
    let gateway = Gateway::start_with_file(upstream.address(), HIVE, &options);
    let token = gateway.token_of("alice", "wonder:land");
    for (user, sent) in [("alice", "token"), ("alice@sales", "token@sales")] {
        for _ in 0..2 {
            assert_eq!(thrift(&gateway, user, "wonder:land").status, 200);
            assert_eq!(sent_login(&upstream), (sent.to_owned(), token.clone()), "the token of get_token");
        }
        let seen = upstream.log().pop().expect("forwarded");
        assert_eq!(seen.header("x-forwarded-user"), "alice");
        assert!(!format!("{seen:?}").contains(&basic(user, "wonder:land")));
    }
    let before = upstream.log().len();
    for (user, password) in [("alice", "wrong"), ("alice@sales", ""), ("eve", "wonder:land"), ("token", "wonder:land")]
    {
        assert_eq!(thrift(&gateway, user, password).status, 401, "{user}");
    }
    // It announces a key, which no verifier must see.
    assert_eq!(thrift(&gateway, "token@a@b", "wonder:land").reason(), "basic_malformed");
    assert_eq!(upstream.log().len(), before);
    // On other routes it is not a credential.
    let headers = [("Content-Type", "application/json"), ("Authorization", &*basic("alice", "wonder:land"))];
    assert_eq!(gateway.client().send("GET /timbr/api/x", &headers, b"").reason(), "api_key_missing");
}

#[test]
fn a_password_is_verified_again_after_a_change_and_after_a_while() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("users");
    write_users(&file, "old");
    let options = [("AUTH_VERIFIER", "users-file"), ("AUTH_USERS_FILE", file.to_str().expect("text"))];
    let upstream = Upstream::start();
    let gateway = Gateway::start_with_file(upstream.address(), HIVE, &options);
    let checks = || gateway.metric(r#"timbr_gateway_auth_step_duration_seconds_count{step="verifier",outcome="ok"}"#);
    for _ in 0..3 {
        assert_eq!(thrift(&gateway, "alice", "old").status, 200);
    }
    gateway.expect_metric(r#"timbr_gateway_auth_step_duration_seconds_count{step="verifier",outcome="ok"}"#, 1.0);
    gateway.clock.advance(Duration::from_secs(301));
    assert_eq!(thrift(&gateway, "alice", "old").status, 200);
    gateway.expect_metric(r#"timbr_gateway_auth_step_duration_seconds_count{step="verifier",outcome="ok"}"#, 2.0);
    gateway.revoke(r#"{"user": "alice"}"#);
    assert_eq!(thrift(&gateway, "alice", "old").status, 200, "a new login");
    gateway.expect_metric(r#"timbr_gateway_auth_step_duration_seconds_count{step="verifier",outcome="ok"}"#, 3.0);
    write_users(&file, "new");
    gateway.reload();
    crate::support::wait_until("the file is reloaded", || thrift(&gateway, "alice", "new").status == 200);
    assert_eq!(thrift(&gateway, "alice", "old").reason(), "credentials_wrong");
    assert!(checks() >= 4.0);
}

#[test]
fn wrong_passwords_are_limited() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("users");
    write_users(&file, "wonder");
    let options = [
        ("AUTH_VERIFIER", "users-file"),
        ("AUTH_USERS_FILE", file.to_str().expect("text")),
        ("LIMITS_FAILURES_PER_USER", "3"),
    ];
    let gateway = Gateway::start_with_file(Upstream::start().address(), HIVE, &options);
    assert_eq!(thrift(&gateway, "alice", "wonder").status, 200);
    for _ in 0..3 {
        let refused = thrift(&gateway, "alice", "wrong");
        assert_eq!(refused.reason(), "credentials_wrong");
        assert!(refused.all("www-authenticate").contains(&"Basic realm=\"timbr\""), "{refused:?}");
    }
    assert_eq!(thrift(&gateway, "alice", "wrong").reason(), "too_many_failures");
    assert_eq!(thrift(&gateway, "alice", "wonder").status, 200, "a login that was verified before");
}

#[test]
fn the_service_key_or_the_users_own_key_is_sent() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("users");
    write_users(&file, "wonder");
    let users = [("AUTH_VERIFIER", "users-file"), ("AUTH_USERS_FILE", file.to_str().expect("text"))];
    let impersonate = [("UPSTREAM_CREDENTIAL", "impersonate"), ("UPSTREAM_API_KEY", "tk_service")];
    let delegate = [("AUTH_VERIFIER", "delegate"), ("UPSTREAM_CREDENTIAL", "delegate")];
    for (options, key, acts_as) in
        [([users, impersonate].concat(), "tk_service", "alice"), (delegate.to_vec(), "tk_backend", "")]
    {
        let upstream = Upstream::with_behaviour(|request, stream| {
            let is_login = request.line.contains("get_token");
            respond(stream, 200, if is_login { r#"{"status":"success","data":["tk_backend"]}"# } else { "{}" })
        });
        let gateway = Gateway::start_with_file(upstream.address(), HIVE, &options);
        assert_eq!(thrift(&gateway, "alice@sales", "wonder").status, 200);
        assert_eq!(sent_login(&upstream), ("token@sales".to_owned(), key.to_owned()));
        assert_eq!(upstream.log().pop().expect("forwarded").header("x-api-impersonate-user"), acts_as);
    }
}

#[test]
fn where_no_password_is_checked_none_is_accepted() {
    let upstream = Upstream::start();
    let gateway = Gateway::start_with_file(upstream.address(), HIVE, &[]);
    assert_eq!(thrift(&gateway, "alice", "anything").rejection(), (401, "basic_malformed".into()));
    assert!(upstream.log().is_empty());
}
