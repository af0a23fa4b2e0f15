//! Passwords that the API service behind verifies, and the tokens that it gives.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use timbr_gateway::auth::bearer::BearerOpener;
use timbr_gateway::base::clock::Clock;
use timbr_gateway::base::secret::Secret;

use crate::support::bearer::{SALT, bearer};
use crate::support::client::Answer;
use crate::support::gateway::Gateway;
use crate::support::upstream::{Silent, Then, Upstream, answer};

const JSON: (&str, &str) = ("Content-Type", "application/json");
const DELEGATE: [(&str, &str); 2] = [("AUTH_VERIFIER", "delegate"), ("UPSTREAM_CREDENTIAL", "delegate")];

/// An API service that knows alice, and takes the last token that it gave.
fn service(given: &Arc<AtomicUsize>) -> Upstream {
    let given = Arc::clone(given);
    Upstream::behaving(move |request, stream| -> Then {
        if request.line.starts_with("POST /timbr/api/get_token ") {
            assert_eq!(request.field("content-type"), "application/json");
            let bearer = request.field("authorization").strip_prefix("Bearer ").expect("a bearer");
            let opener = BearerOpener::new(&[Secret::new(SALT.to_owned())], None, Clock::system());
            let login = opener.open(bearer).expect("it opens");
            if (login.user.as_str(), login.password.expose()) != ("alice", "secret") {
                return answer(stream, 401, r#"{"status":"error","data":"no"}"#);
            }
            let number = given.fetch_add(1, Ordering::SeqCst) + 1;
            return answer(stream, 200, &format!(r#"{{"status":"success","data":["tk_backend_{number}"]}}"#));
        }
        let current = format!("tk_backend_{}", given.load(Ordering::SeqCst));
        answer(stream, if request.field("x-api-key") == current { 200 } else { 401 }, "{}")
    })
}

fn ask(gateway: &Gateway, user: &str, password: &str) -> Answer {
    let authorization = format!("Bearer {}", bearer(user, password));
    let fields = [JSON, ("Authorization", authorization.as_str())];
    gateway.client().send("POST /timbr/api/get_token", &fields, b"")
}

fn get(gateway: &Gateway, key: &str) -> Answer {
    gateway.client().send("GET /timbr/api/x", &[JSON, ("x-api-key", key)], b"")
}

#[test]
fn the_services_token_goes_up_in_place_of_ours() {
    let upstream = service(&Arc::default());
    let gateway = Gateway::start(upstream.address(), &DELEGATE);
    let token = gateway.token();
    assert!(!token.contains("backend"));
    for _ in 0..3 {
        assert_eq!(get(&gateway, &token).status, 200);
    }
    let log = upstream.log();
    assert_eq!(log.len(), 4, "it is asked once");
    for seen in &log[1..] {
        assert_eq!((seen.field("x-api-key"), seen.field("x-forwarded-user")), ("tk_backend_1", "alice"));
        assert!(!format!("{seen:?}").contains(&token));
    }
    for (user, password) in [("alice", "wrong"), ("eve", "secret")] {
        let refused = ask(&gateway, user, password);
        assert_eq!((refused.status, refused.reason().as_str()), (401, "credentials_wrong"));
    }
    assert_eq!(gateway.token(), token, "the same login has the same token");
    assert_eq!(get(&gateway, &token).status, 200);
    assert_eq!(
        upstream.log().pop().expect("it arrived").field("x-api-key"),
        "tk_backend_2",
        "for a newer one"
    );
}

#[test]
fn an_answer_with_two_readings_is_no_yes() {
    for body in [
        r#"{"status":"success","data":["tk_one","tk_two"]}"#,
        r#"{"status":"success","data":["tk_one"],"data":["tk_two"]}"#,
        r#"{"status":"success","status":"success","data":["tk_one"]}"#,
        r#"{"status":"success","data":[]}"#,
    ] {
        let upstream = Upstream::behaving(move |_, stream| answer(stream, 200, body));
        let gateway = Gateway::start(upstream.address(), &DELEGATE);
        let refused = ask(&gateway, "alice", "secret");
        assert_eq!((refused.status, refused.reason().as_str()), (503, "verifier_unavailable"), "{body}");
    }
}

#[test]
fn when_the_service_refuses_its_own_token_ours_ends() {
    let given = Arc::<AtomicUsize>::default();
    let upstream = service(&given);
    let gateway = Gateway::start(upstream.address(), &DELEGATE);
    let token = gateway.token();
    assert_eq!(get(&gateway, &token).status, 200);
    given.fetch_add(1, Ordering::SeqCst);
    for _ in 0..2 {
        assert_eq!(get(&gateway, &token).reason(), "token_expired");
    }
    let another = gateway.token();
    assert_ne!(another, token);
    assert_eq!(get(&gateway, &another).status, 200);
}

#[test]
fn the_service_may_only_verify() {
    let upstream = service(&Arc::default());
    let impersonate = ("UPSTREAM_API_KEY", "tk_service");
    let options = [DELEGATE[0], ("UPSTREAM_CREDENTIAL", "impersonate"), impersonate];
    let gateway = Gateway::start(upstream.address(), &options);
    let _ = get(&gateway, &gateway.token());
    let seen = upstream.log().pop().expect("it arrived");
    assert_eq!((seen.field("x-api-key"), seen.field("x-api-impersonate-user")), ("tk_service", "alice"));
}

#[test]
fn what_is_no_clear_answer_is_neither_yes_nor_no() {
    for (status, body) in [
        (500, "{}"),
        (302, "{}"),
        (404, "{}"),
        (200, ""),
        (200, "{}"),
        (200, r#"{"status":"error","data":["tk_x"]}"#),
        (200, r#"{"status":"success","data":[]}"#),
        (200, r#"{"status":"success","data":["a b"]}"#),
        (200, r#"{"status":"success","data":"tk_x"}"#),
    ] {
        let upstream = Upstream::behaving(move |_, stream| answer(stream, status, body));
        let gateway = Gateway::start(upstream.address(), &DELEGATE);
        let refused = ask(&gateway, "alice", "secret");
        assert_eq!(
            (refused.status, refused.reason().as_str()),
            (503, "verifier_unavailable"),
            "{status} {body}"
        );
        assert_eq!(refused.field("retry-after"), "5");
    }
}

#[test]
fn wrong_passwords_are_counted_and_then_nobody_is_asked() {
    let upstream = service(&Arc::default());
    let options = [&DELEGATE[..], &[("LIMITS_FAILURES_PER_USER", "3")]].concat();
    let gateway = Gateway::start(upstream.address(), &options);
    for _ in 0..3 {
        assert_eq!(ask(&gateway, "alice", "wrong").reason(), "credentials_wrong");
    }
    assert_eq!(ask(&gateway, "alice", "wrong").reason(), "too_many_failures");
    assert_eq!(upstream.log().len(), 3);
}

#[test]
fn a_backend_that_drops_what_comes_leaves_the_password_to_the_next_one() {
    let (silent, sound) = (Silent::start(), service(&Arc::default()));
    let urls = format!("http://{},http://{}", silent.address(), sound.address());
    let options =
        [&DELEGATE[..], &[("UPSTREAM_URLS", &urls), ("UPSTREAM_CONNECT_TIMEOUT", "700ms")]].concat();
    let gateway = Gateway::start_with_url("", &options);
    let begun = Instant::now();
    assert_eq!(ask(&gateway, "alice", "secret").status, 200);
    let first = begun.elapsed();
    assert!(first >= Duration::from_millis(700) && first < Duration::from_secs(3), "{first:?}");
    assert_eq!(ask(&gateway, "alice", "wrong").status, 401);
    let next = begun.elapsed() - first;
    assert!(next < Duration::from_millis(600), "who answered is asked first: {next:?}");
}
