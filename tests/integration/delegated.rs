//! Passwords verified by the API service, and the tokens that it issues.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use timbr_gateway::auth::bearer::BearerOpener;
use timbr_gateway::base::clock::Clock;
use timbr_gateway::base::secret::Secret;

use crate::support::bearer::SALT;
use crate::support::client::{Client, JSON};
use crate::support::gateway::Gateway;
use crate::support::program::Program;
use crate::support::upstream::{AfterRequest, UnresponsiveAddress, Upstream, respond};
use crate::support::wait_until;

const DELEGATE: [(&str, &str); 2] = [("AUTH_VERIFIER", "delegate"), ("UPSTREAM_CREDENTIAL", "delegate")];

/// An API service that knows alice, and accepts only the last token that it issued.
fn service(given: &Arc<AtomicUsize>) -> Upstream {
    let given = Arc::clone(given);
    Upstream::with_behaviour(move |request, stream| -> AfterRequest {
        if request.line.starts_with("POST /timbr/api/get_token ") {
            assert_eq!(request.header("content-type"), "application/json");
            let bearer = request.header("authorization").strip_prefix("Bearer ").expect("a bearer");
            let opener = BearerOpener::new(&[Secret::new(SALT.to_owned())], None, Clock::system());
            let login = opener.open(bearer).expect("it opens");
            if (login.user.as_str(), login.password.expose()) != ("alice", "secret") {
                return respond(stream, 401, r#"{"status":"error","data":"no"}"#);
            }
            let number = given.fetch_add(1, Ordering::SeqCst) + 1;
            return respond(stream, 200, &format!(r#"{{"status":"success","data":["tk_backend_{number}"]}}"#));
        }
        let current = format!("tk_backend_{}", given.load(Ordering::SeqCst));
        respond(stream, if request.header("x-api-key") == current { 200 } else { 401 }, "{}")
    })
}

#[test]
fn the_services_token_is_sent_to_the_backend() {
    let upstream = service(&Arc::default());
    let (gateway, token) = Gateway::with_token(upstream.address(), &DELEGATE);
    assert!(!token.contains("backend"));
    for _ in 0..3 {
        assert_eq!(gateway.query(&token).status, 200);
    }
    let log = upstream.log();
    assert_eq!(log.len(), 4, "the service is called once");
    for seen in &log[1..] {
        assert_eq!((seen.header("x-api-key"), seen.header("x-forwarded-user")), ("tk_backend_1", "alice"));
        assert!(!format!("{seen:?}").contains(&token));
    }
    for (user, password) in [("alice", "wrong"), ("eve", "secret")] {
        assert_eq!(gateway.login(user, password).rejection(), (401, "credentials_wrong".into()));
    }
    assert_eq!(gateway.token(), token, "the same login gets the same token");
    assert_eq!(gateway.query(&token).status, 200);
    assert_eq!(upstream.log().pop().expect("it arrived").header("x-api-key"), "tk_backend_2", "a newer upstream key");
}

#[test]
fn an_ambiguous_response_is_not_accepted() {
    for body in [
        r#"{"status":"success","data":["tk_one","tk_two"]}"#,
        r#"{"status":"success","data":["tk_one"],"data":["tk_two"]}"#,
        r#"{"status":"success","status":"success","data":["tk_one"]}"#,
        r#"{"status":"success","data":[]}"#,
    ] {
        let upstream = Upstream::with_behaviour(move |_, stream| respond(stream, 200, body));
        let gateway = Gateway::start(upstream.address(), &DELEGATE);
        assert_eq!(gateway.login("alice", "secret").rejection(), (503, "verifier_unavailable".into()), "{body}");
    }
}

#[test]
fn a_token_is_revoked_when_the_service_rejects_its_own() {
    let given = Arc::<AtomicUsize>::default();
    let upstream = service(&given);
    let (gateway, token) = Gateway::with_token(upstream.address(), &DELEGATE);
    assert_eq!(gateway.query(&token).status, 200);
    given.fetch_add(1, Ordering::SeqCst);
    for _ in 0..2 {
        assert_eq!(gateway.query(&token).reason(), "token_revoked");
    }
    let another = gateway.token();
    assert_ne!(another, token);
    assert_eq!(gateway.query(&another).status, 200);
}

/// The backend rejects requests for a path, not the key.
#[test]
fn a_rejected_request_does_not_revoke_the_token() {
    for check in [200, 302, 500] {
        let upstream = Upstream::with_behaviour(move |request, stream| match request.line.as_str() {
            line if line.starts_with("POST /timbr/api/get_token ") => {
                respond(stream, 200, r#"{"status":"success","data":["tk_backend"]}"#)
            }
            line if line.contains("forbidden") => respond(stream, 401, r#"{"status":"error","data":"not for you"}"#),
            _ if request.header("x-api-key") != "tk_backend" => respond(stream, 401, "{}"),
            line if line.contains("get_ontologies") => respond(stream, check, "{}"),
            _ => respond(stream, 200, "{}"),
        });
        let (gateway, token) = Gateway::with_token(upstream.address(), &DELEGATE);
        for _ in 0..3 {
            let rejected = gateway.client().send("GET /timbr/api/forbidden", &[JSON, ("x-api-key", &token)], b"");
            assert_eq!((rejected.status, rejected.json()["data"].as_str()), (401, Some("not for you")), "{check}");
            assert_eq!(gateway.query(&token).status, 200, "{check}");
        }
        assert_eq!(gateway.token(), token);
        if check == 200 {
            let checks = upstream.log().iter().filter(|seen| seen.line.contains("get_ontologies")).count();
            assert_eq!(checks, 2, "a random key, and the key once");
        }
    }
}

#[test]
fn the_service_as_verifier_only() {
    let upstream = service(&Arc::default());
    let (gateway, token) = Gateway::with_token(upstream.address(), &DELEGATE[..1]);
    let _ = gateway.query(&token);
    let seen = upstream.log().pop().expect("it arrived");
    assert_eq!((seen.header("x-api-key"), seen.header("x-forwarded-user")), (token.as_str(), "alice"));
}

#[test]
fn an_inconclusive_response_neither_accepts_nor_rejects() {
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
        let upstream = Upstream::with_behaviour(move |_, stream| respond(stream, status, body));
        let gateway = Gateway::start(upstream.address(), &DELEGATE);
        let refused = gateway.login("alice", "secret");
        assert_eq!((refused.status, refused.reason().as_str()), (503, "verifier_unavailable"), "{status} {body}");
        assert_eq!(refused.header("retry-after"), "5");
    }
}

#[test]
fn wrong_passwords_are_limited_before_the_service_is_called() {
    let upstream = service(&Arc::default());
    let options = [&DELEGATE[..], &[("LIMITS_FAILURES_PER_USER", "3")]].concat();
    let gateway = Gateway::start(upstream.address(), &options);
    for _ in 0..3 {
        assert_eq!(gateway.login("alice", "wrong").reason(), "credentials_wrong");
    }
    assert_eq!(gateway.login("alice", "wrong").reason(), "too_many_failures");
    assert_eq!(upstream.log().len(), 3);
}

#[test]
fn a_login_fails_over_to_a_reachable_backend() {
    let (silent, sound) = (UnresponsiveAddress::start(), service(&Arc::default()));
    let urls = format!("http://{},http://{}", silent.address(), sound.address());
    let options = [&DELEGATE[..], &[("UPSTREAM_URLS", &urls), ("UPSTREAM_CONNECT_TIMEOUT", "700ms")]].concat();
    let gateway = Gateway::start_with_url("", &options);
    let begun = Instant::now();
    assert_eq!(gateway.login("alice", "secret").status, 200);
    let first = begun.elapsed();
    assert!(first >= Duration::from_millis(700) && first < Duration::from_secs(3), "{first:?}");
    assert_eq!(gateway.login("alice", "wrong").status, 401);
    let next = begun.elapsed() - first;
    assert!(next < Duration::from_millis(600), "the last reachable backend is tried first: {next:?}");
}

/// The default mode in front of a service that accepts only its own tokens: the log says which mode fits.
#[test]
fn a_backend_that_rejects_the_gateways_tokens_is_recognized() {
    let accepting = Upstream::start();
    for (upstream, expected) in [(service(&Arc::default()), 1), (accepting, 0)] {
        let (program, lines) = Program::start_logged(upstream.address(), &[]);
        let token = program.token();
        let mut client = Client::connect(program.http);
        for _ in 0..6 {
            client.query(&token);
        }
        wait_until("all lines are written", || lines.matching(|line| line["route"] == "api").len() == 6);
        let warnings = lines.matching(|line| line["message"].to_string().contains("the backend rejects the tokens"));
        assert_eq!(warnings.len(), expected);
    }
}
