//! Who guesses credentials is slowed down, and nobody else is.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::support::bearer::{bearer, bearer_with};
use crate::support::client::Answer;
use crate::support::gateway::Gateway;
use crate::support::upstream::{Upstream, answer};

const JSON: (&str, &str) = ("Content-Type", "application/json");
const OTHER_SALT: &str = "d6HnHQJy2nl1YqLeN0dZlmaIHvVkAx2gRUbDUr3lKEE=";
const FEW: (&str, &str) = ("LIMITS_FAILURES_PER_ADDRESS", "5");

fn ask(gateway: &Gateway, bearer: &str) -> Answer {
    let fields = [JSON, ("Authorization", &format!("Bearer {bearer}"))];
    gateway.client().send("POST /timbr/api/get_token", &fields, b"")
}

fn get(gateway: &Gateway, key: &str) -> Answer {
    gateway.client().send("GET /timbr/api/x", &[JSON, ("x-api-key", key)], b"")
}

fn is_too_many(answer: &Answer) -> bool {
    if answer.status == 429 {
        assert_eq!(answer.reason(), "too_many_failures");
        let seconds: u64 = answer.field("retry-after").parse().expect("seconds");
        assert!((1..=61).contains(&seconds), "{seconds}");
    }
    answer.status == 429
}

/// A file with alice, whose password is `wonder`, at this cost.
fn users(folder: &tempfile::TempDir, cost: u32) -> String {
    let file = folder.path().join("users");
    std::fs::write(&file, format!("alice:{}\n", bcrypt::hash("wonder", cost).expect("hashed")))
        .expect("written");
    file.to_str().expect("text").to_owned()
}

#[test]
fn wrong_bearers_and_keys_of_an_address_count_together_and_what_is_right_passes() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(upstream.address(), &[FEW, ("TOKENS_FOREIGN", "reject")]);
    let token = gateway.token();
    let forged = bearer_with(OTHER_SALT, "alice", "secret");
    for answer in [ask(&gateway, "nonsense"), ask(&gateway, &forged), ask(&gateway, &forged)] {
        assert_eq!((answer.status, answer.reason().as_str()), (401, "bearer_invalid"));
    }
    for key in ["tk_1", "tk_2"] {
        assert_eq!(get(&gateway, key).reason(), "api_key_unknown");
    }
    for _ in 0..50 {
        assert!(is_too_many(&ask(&gateway, &forged)) && is_too_many(&get(&gateway, "tk_3")));
    }
    assert_eq!(get(&gateway, &token).status, 200, "a token that is known");
    assert_eq!(ask(&gateway, &bearer("alice", "secret")).status, 200, "a bearer that is good");
    assert_eq!(gateway.client().send("GET /timbr/api/x", &[JSON], b"").status, 401, "no key is no guess");
    gateway.clock.advance(Duration::from_secs(12));
    assert_eq!(get(&gateway, "tk_3").status, 401, "what was refused in between has not been counted");
    assert!(is_too_many(&get(&gateway, "tk_3")));
    assert_eq!(upstream.log().len(), 1);
}

#[test]
fn a_token_that_has_ended_is_no_guess() {
    let upstream = Upstream::start();
    let before = Gateway::start(upstream.address(), &[]);
    let token = before.token();
    drop(before);
    let gateway = Gateway::start(upstream.address(), &[FEW, ("TOKENS_FOREIGN", "reject")]);
    for _ in 0..20 {
        assert_eq!(get(&gateway, &token).reason(), "token_expired");
    }
    assert_eq!(get(&gateway, "tk_1").status, 401);
}

#[test]
fn bearers_of_who_holds_the_salt_are_no_guesses() {
    let gateway = Gateway::start(Upstream::start().address(), &[FEW, ("AUTH_BEARER_MAX_AGE", "1m")]);
    let old = bearer("alice", "secret");
    gateway.clock.advance(Duration::from_secs(120));
    for _ in 0..20 {
        assert_eq!(ask(&gateway, &old).reason(), "bearer_expired");
    }
}

#[test]
fn wrong_passwords_count_by_user_and_cost_no_hash_beyond_the_limit() {
    let folder = tempfile::tempdir().expect("a folder");
    // Some 100 ms each.
    let file = users(&folder, 10);
    let options = [
        ("AUTH_VERIFIER", "users-file"),
        ("AUTH_USERS_FILE", file.as_str()),
        ("LIMITS_FAILURES_PER_USER", "3"),
    ];
    let gateway = Gateway::start(Upstream::start().address(), &options);
    let token = gateway.token_of("alice", "wonder");
    for number in 0..3 {
        assert_eq!(ask(&gateway, &bearer("alice", &format!("wrong-{number}"))).reason(), "credentials_wrong");
    }
    let begun = Instant::now();
    for number in 0..100 {
        assert!(is_too_many(&ask(&gateway, &bearer("alice", &format!("wrong-{number}")))));
    }
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}: hashes were computed", begun.elapsed());
    assert!(
        is_too_many(&ask(&gateway, &bearer("alice", "wonder"))),
        "or the answer would tell a right guess"
    );
    assert_eq!(ask(&gateway, &bearer("bob", "wrong")).reason(), "credentials_wrong", "another user");
    assert_eq!(get(&gateway, &token).status, 200, "the token goes on working");
    gateway.clock.advance(Duration::from_secs(20));
    assert_eq!(gateway.token_of("alice", "wonder"), token);
}

/// Some other user of the same network guesses; who has a key does not notice.
#[test]
fn keys_that_the_backend_has_confirmed_pass_and_others_are_not_asked_about() {
    static QUESTIONS: AtomicUsize = AtomicUsize::new(0);
    let upstream = Upstream::behaving(|request, stream| {
        QUESTIONS.fetch_add(usize::from(request.line.contains("get_ontologies")), Ordering::SeqCst);
        let good = request.field("x-api-key").starts_with("tk_good");
        if good { answer(stream, 200, "{}") } else { answer(stream, 401, "{}") }
    });
    let gateway = Gateway::start(upstream.address(), &[FEW]);
    assert_eq!(get(&gateway, "tk_good_1").status, 200);
    for number in 0..5 {
        assert_eq!(get(&gateway, &format!("tk_bad_{number}")).status, 401);
    }
    let questions = QUESTIONS.load(Ordering::SeqCst);
    for number in 0..50 {
        assert!(is_too_many(&get(&gateway, &format!("tk_worse_{number}"))));
    }
    assert!(is_too_many(&get(&gateway, "tk_good_2")), "a right guess looks like a wrong one");
    assert_eq!(QUESTIONS.load(Ordering::SeqCst), questions);
    assert_eq!(get(&gateway, "tk_good_1").status, 200);
    gateway.clock.advance(Duration::from_secs(12));
    assert_eq!(get(&gateway, "tk_good_2").status, 200);
}

/// Only who holds the salt can try passwords, so a stranger at a shared address does not keep others from logging in.
#[test]
fn strangers_do_not_keep_others_from_logging_in() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = users(&folder, 4);
    let options = [
        ("AUTH_VERIFIER", "users-file"),
        ("AUTH_USERS_FILE", file.as_str()),
        ("TOKENS_FOREIGN", "reject"),
        FEW,
    ];
    let gateway = Gateway::start(Upstream::start().address(), &options);
    for number in 0..20 {
        let refused = [get(&gateway, &format!("tk_{number}")), ask(&gateway, "nonsense")];
        assert!(refused.iter().all(|answer| matches!(answer.status, 401 | 429)));
    }
    assert!(is_too_many(&get(&gateway, "tk_1")));
    gateway.token_of("alice", "wonder");
}

#[test]
fn limits_can_be_switched_off() {
    let options = [
        ("LIMITS_FAILURES_PER_ADDRESS", "0"),
        ("LIMITS_FAILURES_PER_USER", "0"),
        ("TOKENS_FOREIGN", "reject"),
    ];
    let gateway = Gateway::start(Upstream::start().address(), &options);
    let mut client = gateway.client();
    for _ in 0..500 {
        assert_eq!(client.send("GET /timbr/api/x", &[JSON, ("x-api-key", "tk_1")], b"").status, 401);
    }
}
