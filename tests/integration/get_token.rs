//! `POST /timbr/api/get_token`

use std::time::Duration;

use crate::support::bearer::{SALT, bearer, bearer_with};
use crate::support::client::{JSON, Response};
use crate::support::gateway::{Gateway, setup};
use crate::support::upstream::Upstream;

const OTHER_SALT: &str = "d6HnHQJy2nl1YqLeN0dZlmaIHvVkAx2gRUbDUr3lKEE=";

fn ask(gateway: &Gateway, authorization: &str) -> Response {
    gateway.client().send("POST /timbr/api/get_token", &[JSON, ("Authorization", authorization)], b"")
}

fn token(response: &Response) -> String {
    response.token()
}

#[test]
fn get_token_returns_exactly_the_documented_form() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(upstream.address(), &[]);
    let response = ask(&gateway, &format!("Bearer {}", bearer("alice", "se:cret")));
    let token = token(&response);
    assert_eq!(response.text(), format!("{{\"data\":[\"{token}\"],\"status\":\"success\"}}"));
    assert!(token.starts_with("tk_") && token.len() == 59, "{token}");
    assert_eq!(response.header("cache-control"), "no-store");
    assert_eq!(response.header("content-type"), "application/json");
    assert!(upstream.log().is_empty(), "the backend is not called");
}

#[test]
fn trailing_slash_and_scheme_case_are_ignored() {
    let gateway = Gateway::start(Upstream::start().address(), &[]);
    let bearer = bearer("alice", "secret");
    for (path, scheme) in [("get_token", "bearer"), ("get_token/", "BEARER"), ("get_token/?x=1", "Bearer")] {
        let line = format!("POST /timbr/api/{path}");
        let authorization = format!("{scheme} {bearer}");
        let response = gateway.client().send(&line, &[JSON, ("Authorization", &authorization)], b"");
        assert_eq!(response.status, 200, "{path} {scheme}");
    }
}

#[test]
fn each_login_has_its_own_token() {
    let gateway = Gateway::start(Upstream::start().address(), &[("WORKERS", "2")]);
    let first = gateway.token_of("alice", "secret");
    for _ in 0..8 {
        assert_eq!(gateway.token_of("alice", "secret"), first);
    }
    assert_ne!(gateway.token_of("alice", "other"), first);
    assert_ne!(gateway.token_of("bob", "secret"), first);
}

#[test]
fn an_expired_token_is_rejected_as_expired() {
    let (upstream, gateway, token) = setup(&[("TOKENS_TTL", "1h")]);
    let query = || gateway.query(&token);
    assert_eq!(query().status, 200);
    gateway.clock.advance(Duration::from_secs(3599));
    assert_eq!(query().status, 200);
    gateway.clock.advance(Duration::from_secs(1));
    assert_eq!(query().rejection(), (401, "token_expired".into()));
    assert_eq!(upstream.log().len(), 2);
    assert_ne!(gateway.token(), token);
}

#[test]
fn an_unused_token_expires_after_the_idle_time() {
    let (_, gateway, token) = setup(&[("TOKENS_IDLE_TTL", "10m")]);
    let status = || gateway.query(&token).status;
    for _ in 0..3 {
        gateway.clock.advance(Duration::from_secs(500));
        assert_eq!(status(), 200);
    }
    gateway.clock.advance(Duration::from_secs(600));
    assert_eq!(status(), 401);
}

#[test]
fn all_configured_salts_open_bearers() {
    let both = format!("{OTHER_SALT},{SALT}");
    let gateway = Gateway::start(Upstream::start().address(), &[("API_AUTH_SALT", &both)]);
    for salt in [SALT, OTHER_SALT] {
        assert_eq!(ask(&gateway, &format!("Bearer {}", bearer_with(salt, "alice", "secret"))).status, 200);
    }
    let stranger = bearer_with("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", "alice", "secret");
    assert_eq!(ask(&gateway, &format!("Bearer {stranger}")).status, 401);
}

#[test]
fn an_invalid_bearer_is_rejected_with_a_challenge() {
    let gateway = Gateway::start(Upstream::start().address(), &[]);
    let good = bearer("alice", "secret");
    for (authorization, reason) in [
        (format!("Basic {good}"), "bearer_missing"),
        ("Bearer".to_owned(), "bearer_missing"),
        ("Bearer nonsense".to_owned(), "bearer_invalid"),
        (format!("Bearer {}", bearer_with(OTHER_SALT, "alice", "secret")), "bearer_invalid"),
        (format!("Bearer {}", good.trim_end_matches('=')), "bearer_invalid"),
        (format!("Bearer {}", bearer("alice\nx-api-key: y", "secret")), "bearer_user_name"),
        (format!("Bearer {}", bearer("josé", "secret")), "bearer_user_name"),
        (format!("Bearer {}", bearer("alice", "")), "bearer_without_credentials"),
    ] {
        let response = ask(&gateway, &authorization);
        assert_eq!((response.status, response.reason().as_str()), (401, reason), "{authorization}");
        assert!(response.header("www-authenticate").starts_with("Bearer realm="), "{response:?}");
    }
    let refused = gateway.client().send("POST /timbr/api/get_token", &[JSON], b"");
    assert_eq!(refused.rejection(), (401, "bearer_missing".into()));
}

#[test]
fn old_bearers_are_rejected_if_configured() {
    let gateway = Gateway::start(Upstream::start().address(), &[("AUTH_BEARER_MAX_AGE", "5m")]);
    let authorization = format!("Bearer {}", bearer("alice", "secret"));
    assert_eq!(ask(&gateway, &authorization).status, 200);
    gateway.clock.advance(Duration::from_secs(302));
    assert_eq!(ask(&gateway, &authorization).reason(), "bearer_expired");
}

#[test]
fn wrong_method_and_media_type_have_their_own_reasons() {
    let gateway = Gateway::start(Upstream::start().address(), &[]);
    let authorization = format!("Bearer {}", bearer("alice", "secret"));
    let authorization = ("Authorization", authorization.as_str());
    let send = |line: &str, headers: &[(&str, &str)]| gateway.client().send(line, headers, b"");

    let response = send("GET /timbr/api/get_token", &[JSON, authorization]);
    assert_eq!((response.status, response.reason().as_str()), (405, "method_not_allowed"));
    assert_eq!(response.header("allow"), "POST");
    let response = send("POST /timbr/api/get_token", &[("Content-Type", "text/plain"), authorization]);
    assert_eq!((response.status, response.reason().as_str()), (415, "content_type_unsupported"));
    let response = send("POST /timbr/api/get_token", &[authorization]);
    assert_eq!((response.status, response.reason().as_str()), (400, "content_type_missing"));
    let refused = send("POST /timbr/api/get_token", &[JSON, authorization, authorization]);
    assert_eq!(refused.rejection(), (400, "field_repeated".into()));
    let utf8 = ("Content-Type", "Application/JSON; charset=\"utf-8\"");
    assert_eq!(send("POST /timbr/api/get_token", &[utf8, authorization]).status, 200);
}

#[test]
fn a_small_body_is_ignored_and_a_large_one_ends_the_connection() {
    let gateway = Gateway::start(Upstream::start().address(), &[]);
    let authorization = format!("Bearer {}", bearer("alice", "secret"));
    let headers = [JSON, ("Authorization", authorization.as_str())];
    let mut client = gateway.client();
    for _ in 0..3 {
        let response = client.send("POST /timbr/api/get_token", &headers, b"{\"x\": 1}");
        assert_eq!((response.status, response.header("connection")), (200, ""));
    }
    // A request inside a body is never served.
    let hidden = b"POST /timbr/api/get_token HTTP/1.1\r\nHost: x\r\n\r\n".repeat(8000);
    let response = client.send("POST /timbr/api/get_token", &headers, &hidden);
    assert_eq!((response.status, response.header("connection")), (200, "close"));
    assert!(client.is_closed(), "after a delay for a client that is still sending");
}

#[test]
fn a_users_file_checks_the_password() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("users");
    let hash = bcrypt::hash("wonder", 4).expect("hashed").replacen("$2b$", "$2y$", 1);
    std::fs::write(&file, format!("alice:{hash}\n")).expect("written");
    let file = file.to_str().expect("text");
    let options = [("AUTH_VERIFIER", "users-file"), ("AUTH_USERS_FILE", file)];
    let gateway = Gateway::start(Upstream::start().address(), &options);
    for (user, password, status) in [("alice", "wonder", 200), ("alice", "wrong", 401), ("eve", "wonder", 401)] {
        let response = ask(&gateway, &format!("Bearer {}", bearer(user, password)));
        assert_eq!(response.status, status, "{user} {password}");
        if status == 401 {
            assert_eq!(response.reason(), "credentials_wrong");
        }
    }
}

#[test]
fn a_slow_password_check_does_not_delay_requests() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("users");
    let hash = bcrypt::hash("wonder", 4).expect("hashed");
    // No password matches this hash, and each check takes seconds.
    let slow = hash.replacen("$04$", "$14$", 1);
    std::fs::write(&file, format!("alice:{hash}\nbob:{slow}\n")).expect("written");
    let options = [("AUTH_VERIFIER", "users-file"), ("AUTH_USERS_FILE", file.to_str().expect("text"))];
    let gateway = Gateway::start(Upstream::start().address(), &options);
    let token = gateway.token_of("alice", "wonder");
    let mut client = gateway.client();
    let mut answered = 0;
    std::thread::scope(|scope| {
        let login = scope.spawn(|| ask(&gateway, &format!("Bearer {}", bearer("bob", "x"))).status);
        while !login.is_finished() {
            let response = client.query(&token);
            assert_eq!(response.status, 200);
            answered += 1;
        }
        assert_eq!(login.join().expect("no panic"), 401);
    });
    assert!(answered > 20, "only {answered} requests were served while the only worker checked a password");
}

#[test]
fn many_logins_of_one_user_evict_only_its_own_tokens() {
    let (_, gateway, token) = setup(&[("TOKENS_MAX", "20"), ("TOKENS_MAX_PER_USER", "5")]);
    let login = |number| {
        gateway.clock.advance(Duration::from_millis(1));
        gateway.token_of("mallory", &format!("p{number}"))
    };
    let tokens: Vec<_> = (0..40).map(login).collect();
    let get = |token: &str| gateway.query(token);
    assert_eq!(get(&token).status, 200);
    assert_eq!(tokens.iter().filter(|token| get(token).status == 200).count(), 5);
    assert_eq!(get(&tokens[0]).reason(), "token_evicted");
}

#[test]
fn new_tokens_are_limited_per_address() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(upstream.address(), &[("LIMITS_TOKENS_PER_ADDRESS", "3")]);
    let login = |user: &str| gateway.login(user, "secret");
    for user in ["a", "b", "c"] {
        assert_eq!(login(user).status, 200, "{user}");
    }
    let refused = login("d");
    assert_eq!((refused.status, refused.reason().as_str()), (429, "too_many_tokens"));
    assert_eq!(refused.header("retry-after"), "21");
    assert_eq!(login("a").status, 200, "its token exists");
    gateway.clock.advance(Duration::from_secs(20));
    assert_eq!((login("d").status, login("e").status), (200, 429));
}
