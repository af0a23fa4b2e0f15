//! Wrong credentials are limited per address and user; other clients are not affected.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::support::bearer::{SALT, bearer, bearer_with};
use crate::support::client::{JSON, Response};
use crate::support::gateway::{Gateway, setup};
use crate::support::upstream::{AfterRequest, Recorded, Upstream, respond};

const OTHER_SALT: &str = "d6HnHQJy2nl1YqLeN0dZlmaIHvVkAx2gRUbDUr3lKEE=";
const FEW: (&str, &str) = ("LIMITS_FAILURES_PER_ADDRESS", "5");

fn ask(gateway: &Gateway, bearer: &str) -> Response {
    let headers = [JSON, ("Authorization", &format!("Bearer {bearer}"))];
    gateway.client().send("POST /timbr/api/get_token", &headers, b"")
}

fn is_too_many(response: &Response) -> bool {
    if response.status == 429 {
        assert_eq!(response.reason(), "too_many_failures");
        let seconds: u64 = response.header("retry-after").parse().expect("seconds");
        assert!((1..=61).contains(&seconds), "{seconds}");
    }
    response.status == 429
}

/// A users file with alice, whose password is `wonder`, with this cost.
fn users(folder: &tempfile::TempDir, cost: u32) -> String {
    let file = folder.path().join("users");
    std::fs::write(&file, format!("alice:{}\n", bcrypt::hash("wonder", cost).expect("hashed"))).expect("written");
    file.to_str().expect("text").to_owned()
}

#[test]
fn wrong_bearers_and_keys_share_a_limit_that_valid_credentials_pass() {
    let (upstream, gateway, token) = setup(&[FEW, ("TOKENS_FOREIGN", "reject")]);
    let forged = bearer_with(OTHER_SALT, "alice", "secret");
    for response in [ask(&gateway, "nonsense"), ask(&gateway, &forged), ask(&gateway, &forged)] {
        assert_eq!((response.status, response.reason().as_str()), (401, "bearer_invalid"));
    }
    for key in ["tk_1", "tk_2"] {
        assert_eq!(gateway.query(key).reason(), "api_key_unknown");
    }
    for _ in 0..50 {
        assert!(is_too_many(&ask(&gateway, &forged)) && is_too_many(&gateway.query("tk_3")));
    }
    assert_eq!(gateway.query(&token).status, 200, "a known token");
    assert_eq!(ask(&gateway, &bearer("alice", "secret")).status, 200, "a valid bearer");
    assert_eq!(gateway.client().send("GET /timbr/api/x", &[JSON], b"").status, 401, "a missing key is not a failure");
    gateway.clock.advance(Duration::from_secs(12));
    assert_eq!(gateway.query("tk_3").status, 401, "rejected attempts are not counted");
    assert!(is_too_many(&gateway.query("tk_3")));
    assert_eq!(upstream.log().len(), 1);
}

#[test]
fn an_expired_token_is_not_a_failure() {
    let upstream = Upstream::start();
    let before = Gateway::start(upstream.address(), &[]);
    let token = before.token();
    drop(before);
    let gateway = Gateway::start(upstream.address(), &[FEW, ("TOKENS_FOREIGN", "reject")]);
    for _ in 0..20 {
        assert_eq!(gateway.query(&token).reason(), "token_expired");
    }
    assert_eq!(gateway.query("tk_1").status, 401);
}

/// The key of the store is a random one at each start.
#[test]
fn a_token_from_before_a_restart_is_neither_a_failure_nor_sent_to_the_backend() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = users(&folder, 4);
    let upstream = Upstream::with_behaviour(|_, stream| respond(stream, 401, "{}"));
    let verified = [("AUTH_VERIFIER", "users-file"), ("AUTH_USERS_FILE", file.as_str()), FEW];
    let token = Gateway::start(upstream.address(), &verified).token_of("alice", "wonder");
    let two_salts = format!("{OTHER_SALT},{SALT}");
    for options in [&[][..], &[("TOKENS_FOREIGN", "forward")], &[("API_AUTH_SALT", two_salts.as_str())]] {
        let gateway = Gateway::start(upstream.address(), &[&verified[..], options].concat());
        for _ in 0..20 {
            assert_eq!(gateway.query(&token).reason(), "token_expired", "{options:?}");
        }
        assert_eq!(upstream.log().len(), 0, "{options:?}");
    }
    // Another gateway's, or an invented one.
    let stranger = Gateway::start(upstream.address(), &[&verified[..], &[("API_AUTH_SALT", OTHER_SALT)]].concat());
    let gateway = Gateway::start(upstream.address(), &verified);
    let changed = format!("{}{}", &token[..58], if token.ends_with('0') { '1' } else { '0' });
    for (gateway, key) in [(&stranger, &token), (&gateway, &changed)] {
        let before = upstream.log().len();
        assert_eq!(gateway.query(key).reason(), "api_key_unknown");
        assert!(upstream.log().len() > before, "the backend was asked");
    }
    for number in 0..20 {
        let invented = format!("tk_{number:056x}");
        assert!(matches!(gateway.query(&invented).status, 401 | 429));
    }
    assert!(is_too_many(&gateway.query(&format!("tk_{}", "9".repeat(56)))));
    assert_eq!(gateway.query(&token).reason(), "token_expired", "whatever others at the address do");
}

#[test]
fn authentic_bearers_are_not_failures() {
    let gateway = Gateway::start(Upstream::start().address(), &[FEW, ("AUTH_BEARER_MAX_AGE", "1m")]);
    let old = bearer("alice", "secret");
    gateway.clock.advance(Duration::from_secs(120));
    for _ in 0..20 {
        assert_eq!(ask(&gateway, &old).reason(), "bearer_expired");
    }
}

#[test]
fn wrong_passwords_are_limited_per_user_without_computing_hashes() {
    let folder = tempfile::tempdir().expect("a folder");
    // About 100 ms each.
    let file = users(&folder, 10);
    let options =
        [("AUTH_VERIFIER", "users-file"), ("AUTH_USERS_FILE", file.as_str()), ("LIMITS_FAILURES_PER_USER", "3")];
    let gateway = Gateway::start(Upstream::start().address(), &options);
    let token = gateway.token_of("alice", "wonder");
    let begun = Instant::now();
    for number in 0..3 {
        assert_eq!(ask(&gateway, &bearer("alice", &format!("wrong-{number}"))).reason(), "credentials_wrong");
    }
    let (three_hashes, begun) = (begun.elapsed(), Instant::now());
    for number in 0..100 {
        assert!(is_too_many(&ask(&gateway, &bearer("alice", &format!("wrong-{number}")))));
    }
    // They would take 33 times as long.
    assert!(begun.elapsed() < 15 * three_hashes, "{:?}: hashes were computed", begun.elapsed());
    assert!(
        is_too_many(&ask(&gateway, &bearer("alice", "wonder"))),
        "otherwise the response would reveal a correct guess"
    );
    assert_eq!(ask(&gateway, &bearer("bob", "wrong")).reason(), "credentials_wrong", "a different user");
    assert_eq!(gateway.query(&token).status, 200, "the token stays valid");
    gateway.clock.advance(Duration::from_secs(20));
    assert_eq!(gateway.token_of("alice", "wonder"), token);
}

/// A different user of the same network sends wrong keys; a client with a valid key does not notice.
#[test]
fn above_the_limit_only_confirmed_foreign_keys_are_accepted() {
    static QUESTIONS: AtomicUsize = AtomicUsize::new(0);
    let upstream = Upstream::with_behaviour(|request, stream| {
        QUESTIONS.fetch_add(usize::from(request.line.contains("get_ontologies")), Ordering::SeqCst);
        let good = request.header("x-api-key").starts_with("tk_good");
        if good { respond(stream, 200, "{}") } else { respond(stream, 401, "{}") }
    });
    let gateway = Gateway::start(upstream.address(), &[FEW]);
    assert_eq!(gateway.query("tk_good_1").status, 200);
    for number in 0..5 {
        assert_eq!(gateway.query(&format!("tk_bad_{number}")).status, 401);
    }
    let questions = QUESTIONS.load(Ordering::SeqCst);
    for number in 0..50 {
        assert!(is_too_many(&gateway.query(&format!("tk_worse_{number}"))));
    }
    assert!(is_too_many(&gateway.query("tk_good_2")), "a correct guess is indistinguishable from a wrong one");
    assert_eq!(QUESTIONS.load(Ordering::SeqCst), questions);
    assert_eq!(gateway.query("tk_good_1").status, 200);
    gateway.clock.advance(Duration::from_secs(12));
    assert_eq!(gateway.query("tk_good_2").status, 200);
}

/// Only clients with the salt can try passwords, so other clients at a shared address cannot block logins.
#[test]
fn clients_without_the_salt_cannot_block_logins() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = users(&folder, 4);
    let options =
        [("AUTH_VERIFIER", "users-file"), ("AUTH_USERS_FILE", file.as_str()), ("TOKENS_FOREIGN", "reject"), FEW];
    let gateway = Gateway::start(Upstream::start().address(), &options);
    for number in 0..20 {
        let refused = [gateway.query(&format!("tk_{number}")), ask(&gateway, "nonsense")];
        assert!(refused.iter().all(|response| matches!(response.status, 401 | 429)));
    }
    assert!(is_too_many(&gateway.query("tk_1")));
    gateway.token_of("alice", "wonder");
}

#[test]
fn failure_limits_can_be_disabled() {
    let options =
        [("LIMITS_FAILURES_PER_ADDRESS", "0"), ("LIMITS_FAILURES_PER_USER", "0"), ("TOKENS_FOREIGN", "reject")];
    let gateway = Gateway::start(Upstream::start().address(), &options);
    let mut client = gateway.client();
    for _ in 0..500 {
        assert_eq!(client.query("tk_1").status, 401);
    }
}

/// The keys that were sent to the backend for verification, except random ones.
fn keys_checked(upstream: &Upstream) -> Vec<String> {
    let is_check = |seen: &Recorded| seen.line.contains("get_ontologies") && !seen.is_random_key_check();
    let checks = upstream.log().into_iter().filter(is_check);
    checks.map(|seen| seen.header("x-api-key").to_owned()).collect()
}

/// Sends all requests at once.
fn together<T: Send>(count: usize, send: impl Fn(usize) -> T + Sync) -> Vec<T> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..count)
            .map(|number| {
                scope.spawn({
                    let send = &send;
                    move || send(number)
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    })
}

#[test]
fn a_burst_of_wrong_passwords_is_limited_like_a_sequence() {
    let upstream = Upstream::with_behaviour(|_, stream| {
        std::thread::sleep(Duration::from_millis(50));
        respond(stream, 401, "{}")
    });
    let options = [("AUTH_VERIFIER", "delegate"), ("LIMITS_FAILURES_PER_USER", "5")];
    let gateway = Gateway::start(upstream.address(), &options);
    for _ in 0..3 {
        let responses = together(20, |number| ask(&gateway, &bearer("alice", &format!("wrong-{number}"))));
        assert!(responses.iter().all(|response| matches!(response.status, 401 | 429)), "{responses:?}");
    }
    assert_eq!(upstream.log().len(), 5);
}

#[test]
fn a_burst_of_right_passwords_is_not_limited() {
    let upstream = Upstream::with_behaviour(|_, stream| {
        std::thread::sleep(Duration::from_millis(20));
        respond(stream, 200, r#"{"status":"success","data":["tk_1"]}"#)
    });
    let options = [("AUTH_VERIFIER", "delegate"), ("LIMITS_FAILURES_PER_USER", "2"), FEW];
    let gateway = Gateway::start(upstream.address(), &options);
    let statuses = together(30, |_| ask(&gateway, &bearer("alice", "secret")).status);
    assert_eq!(statuses, [200; 30]);
}

/// Some servers respond to a wrong password with an error.
#[test]
fn a_login_without_a_clear_result_is_a_failure() {
    let upstream = Upstream::with_behaviour(|_, stream| respond(stream, 500, "{}"));
    let gateway =
        Gateway::start(upstream.address(), &[("AUTH_VERIFIER", "delegate"), ("LIMITS_FAILURES_PER_USER", "3")]);
    for _ in 0..3 {
        assert_eq!(ask(&gateway, &bearer("alice", "guess")).reason(), "verifier_unavailable");
    }
    assert!(is_too_many(&ask(&gateway, &bearer("alice", "guess"))));
    assert_eq!(upstream.log().len(), 3);
}

#[test]
fn checks_of_unknown_keys_are_limited_whatever_the_backend_responds() {
    for status in [401, 403, 302, 404, 500, 0] {
        let upstream = Upstream::with_behaviour(move |request, stream| match request.is_random_key_check() {
            true => respond(stream, 401, "{}"),
            false if status == 0 => AfterRequest::Reset,
            false => respond(stream, status, "{}"),
        });
        let gateway = Gateway::start(upstream.address(), &[FEW, ("UPSTREAM_EJECT_AFTER", "0")]);
        let responses = together(20, |number| gateway.query(&format!("tk_invented_{number}")));
        assert!(responses.iter().all(|response| matches!(response.status, 401 | 429 | 503)), "{status}: {responses:?}");
        assert!(is_too_many(&gateway.query("tk_invented")), "{status}");
        let mut keys = keys_checked(&upstream);
        keys.dedup();
        assert_eq!(keys.len(), 5, "{status}: {keys:?}");
    }
}

#[test]
fn no_key_is_sent_to_a_backend_that_does_not_reject_a_random_one() {
    for status in [200, 302, 404, 500] {
        let upstream = Upstream::with_behaviour(move |_, stream| respond(stream, status, "{}"));
        let gateway = Gateway::start(upstream.address(), &[FEW]);
        for number in 0..10 {
            assert_eq!(gateway.query(&format!("tk_{number}")).reason(), "api_key_unverifiable", "{status}");
        }
        assert_eq!((upstream.log().len(), keys_checked(&upstream).len()), (1, 0), "{status}");
    }
}

#[test]
fn a_key_that_was_accepted_before_is_checked_again_above_the_limit() {
    let upstream = Upstream::with_behaviour(|request, stream| {
        respond(stream, if request.header("x-api-key") == "tk_good" { 200 } else { 401 }, "{}")
    });
    let gateway = Gateway::start(upstream.address(), &[FEW, ("TOKENS_FOREIGN_ACCEPT_TTL", "10s")]);
    assert_eq!(gateway.query("tk_good").status, 200);
    for _ in 0..3 {
        gateway.clock.advance(Duration::from_secs(11));
        while !is_too_many(&gateway.query("tk_bad")) {}
        assert_eq!(gateway.query("tk_good").status, 200);
    }
    assert_eq!(keys_checked(&upstream).iter().filter(|key| *key == "tk_good").count(), 4);
}

#[test]
fn requests_without_an_identity_cannot_use_all_permits() {
    let (release, released) = std::sync::mpsc::channel::<()>();
    let released = std::sync::Mutex::new(released);
    let upstream = Upstream::with_behaviour(move |request, stream| {
        if request.header("x-api-key").starts_with("tk_slow") {
            let _ = released.lock().expect("no panic").recv();
        }
        respond(stream, if request.line.contains("get_ontologies") { 401 } else { 200 }, "{}")
    });
    let (gateway, token) = Gateway::with_token(upstream.address(), &[("LIMITS_REQUESTS", "6")]);
    std::thread::scope(|scope| {
        let slow: Vec<_> = (0..3)
            .map(|number| {
                let gateway = &gateway;
                scope.spawn(move || gateway.query(&format!("tk_slow_{number}")).status)
            })
            .collect();
        gateway.expect_metric("timbr_gateway_requests_in_flight", 3.0);
        for number in 0..10 {
            assert_eq!(gateway.query(&format!("tk_other_{number}")).reason(), "overloaded");
            assert_eq!(ask(&gateway, &bearer("alice", "secret")).reason(), "overloaded");
            assert_eq!(gateway.query(&token).status, 200, "its credential is known");
        }
        drop(release);
        assert!(slow.into_iter().all(|request| request.join().expect("no panic") == 401));
    });
    assert_eq!(ask(&gateway, &bearer("alice", "secret")).status, 200);
}
