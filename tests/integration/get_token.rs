//! `POST /timbr/api/get_token`

use std::time::Duration;

use crate::support::bearer::{SALT, bearer, bearer_with};
use crate::support::client::Answer;
use crate::support::gateway::Gateway;
use crate::support::upstream::Upstream;

const JSON: (&str, &str) = ("Content-Type", "application/json");
const OTHER_SALT: &str = "d6HnHQJy2nl1YqLeN0dZlmaIHvVkAx2gRUbDUr3lKEE=";

fn ask(gateway: &Gateway, authorization: &str) -> Answer {
    gateway.client().send("POST /timbr/api/get_token", &[JSON, ("Authorization", authorization)], b"")
}

fn token(answer: &Answer) -> String {
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()["data"][0].as_str().expect("a token").to_owned()
}

#[test]
fn a_bearer_gives_a_token_in_exactly_the_documented_form() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(upstream.address(), &[]);
    let answer = ask(&gateway, &format!("Bearer {}", bearer("alice", "se:cret")));
    let token = token(&answer);
    assert_eq!(answer.text(), format!("{{\"data\":[\"{token}\"],\"status\":\"success\"}}"));
    assert!(token.starts_with("tk_") && token.len() == 59, "{token}");
    assert_eq!(answer.field("cache-control"), "no-store");
    assert_eq!(answer.field("content-type"), "application/json");
    assert!(upstream.log().is_empty(), "the backend is not asked");
}

#[test]
fn the_trailing_slash_and_the_schemes_case_do_not_matter() {
    let gateway = Gateway::start(Upstream::start().address(), &[]);
    let bearer = bearer("alice", "secret");
    for (path, scheme) in [("get_token", "bearer"), ("get_token/", "BEARER"), ("get_token/?x=1", "Bearer")] {
        let line = format!("POST /timbr/api/{path}");
        let authorization = format!("{scheme} {bearer}");
        let answer = gateway.client().send(&line, &[JSON, ("Authorization", &authorization)], b"");
        assert_eq!(answer.status, 200, "{path} {scheme}");
    }
}

#[test]
fn the_same_login_has_the_same_token_and_another_one_another() {
    let gateway = Gateway::start(Upstream::start().address(), &[("WORKERS", "2")]);
    let first = gateway.token_of("alice", "secret");
    for _ in 0..8 {
        assert_eq!(gateway.token_of("alice", "secret"), first);
    }
    assert_ne!(gateway.token_of("alice", "other"), first);
    assert_ne!(gateway.token_of("bob", "secret"), first);
}

#[test]
fn a_token_ends_with_its_time_and_says_so() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(upstream.address(), &[("TOKENS_TTL", "1h")]);
    let token = gateway.token();
    let query = || gateway.client().send("GET /timbr/api/x", &[JSON, ("x-api-key", &token)], b"");
    assert_eq!(query().status, 200);
    gateway.clock.advance(Duration::from_secs(3599));
    assert_eq!(query().status, 200);
    gateway.clock.advance(Duration::from_secs(1));
    let answer = query();
    assert_eq!((answer.status, answer.reason().as_str()), (401, "token_expired"));
    assert_eq!(upstream.log().len(), 2);
    assert_ne!(gateway.token(), token);
}

#[test]
fn a_token_that_is_not_used_ends_where_that_is_configured() {
    let gateway = Gateway::start(Upstream::start().address(), &[("TOKENS_IDLE_TTL", "10m")]);
    let token = gateway.token();
    let status = || gateway.client().send("GET /timbr/api/x", &[JSON, ("x-api-key", &token)], b"").status;
    for _ in 0..3 {
        gateway.clock.advance(Duration::from_secs(500));
        assert_eq!(status(), 200);
    }
    gateway.clock.advance(Duration::from_secs(600));
    assert_eq!(status(), 401);
}

#[test]
fn every_salt_opens_bearers() {
    let both = format!("{OTHER_SALT},{SALT}");
    let gateway = Gateway::start(Upstream::start().address(), &[("API_AUTH_SALT", &both)]);
    for salt in [SALT, OTHER_SALT] {
        assert_eq!(ask(&gateway, &format!("Bearer {}", bearer_with(salt, "alice", "secret"))).status, 200);
    }
    let stranger = bearer_with("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", "alice", "secret");
    assert_eq!(ask(&gateway, &format!("Bearer {stranger}")).status, 401);
}

#[test]
fn what_is_no_good_bearer_is_refused_with_a_challenge() {
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
        let answer = ask(&gateway, &authorization);
        assert_eq!((answer.status, answer.reason().as_str()), (401, reason), "{authorization}");
        assert!(answer.field("www-authenticate").starts_with("Bearer realm="), "{answer:?}");
    }
    let missing = gateway.client().send("POST /timbr/api/get_token", &[JSON], b"");
    assert_eq!((missing.status, missing.reason().as_str()), (401, "bearer_missing"));
}

#[test]
fn old_bearers_are_refused_where_that_is_configured() {
    let gateway = Gateway::start(Upstream::start().address(), &[("AUTH_BEARER_MAX_AGE", "5m")]);
    let authorization = format!("Bearer {}", bearer("alice", "secret"));
    assert_eq!(ask(&gateway, &authorization).status, 200);
    gateway.clock.advance(Duration::from_secs(302));
    assert_eq!(ask(&gateway, &authorization).reason(), "bearer_expired");
}

#[test]
fn method_and_media_type_are_told_apart() {
    let gateway = Gateway::start(Upstream::start().address(), &[]);
    let authorization = format!("Bearer {}", bearer("alice", "secret"));
    let authorization = ("Authorization", authorization.as_str());
    let send = |line: &str, fields: &[(&str, &str)]| gateway.client().send(line, fields, b"");

    let answer = send("GET /timbr/api/get_token", &[JSON, authorization]);
    assert_eq!((answer.status, answer.reason().as_str()), (405, "method_not_allowed"));
    assert_eq!(answer.field("allow"), "POST");
    let answer = send("POST /timbr/api/get_token", &[("Content-Type", "text/plain"), authorization]);
    assert_eq!((answer.status, answer.reason().as_str()), (415, "content_type_unsupported"));
    let answer = send("POST /timbr/api/get_token", &[authorization]);
    assert_eq!((answer.status, answer.reason().as_str()), (400, "content_type_missing"));
    let answer = send("POST /timbr/api/get_token", &[JSON, authorization, authorization]);
    assert_eq!((answer.status, answer.reason().as_str()), (400, "field_repeated"));
    let utf8 = ("Content-Type", "Application/JSON; charset=\"utf-8\"");
    assert_eq!(send("POST /timbr/api/get_token", &[utf8, authorization]).status, 200);
}

#[test]
fn a_small_body_is_ignored_and_a_large_one_ends_the_connection() {
    let gateway = Gateway::start(Upstream::start().address(), &[]);
    let authorization = format!("Bearer {}", bearer("alice", "secret"));
    let fields = [JSON, ("Authorization", authorization.as_str())];
    let mut client = gateway.client();
    for _ in 0..3 {
        let answer = client.send("POST /timbr/api/get_token", &fields, b"{\"x\": 1}");
        assert_eq!((answer.status, answer.field("connection")), (200, ""));
    }
    // A request within a body is never answered.
    let hidden = b"POST /timbr/api/get_token HTTP/1.1\r\nHost: x\r\n\r\n".repeat(8000);
    let answer = client.send("POST /timbr/api/get_token", &fields, &hidden);
    assert_eq!((answer.status, answer.field("connection")), (200, "close"));
    assert!(client.is_closed(), "after a moment in which it could have gone on sending");
}

#[test]
fn with_a_users_file_the_password_counts() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("users");
    let hash = bcrypt::hash("wonder", 4).expect("hashed").replacen("$2b$", "$2y$", 1);
    std::fs::write(&file, format!("alice:{hash}\n")).expect("written");
    let file = file.to_str().expect("text");
    let options = [("AUTH_VERIFIER", "users-file"), ("AUTH_USERS_FILE", file)];
    let gateway = Gateway::start(Upstream::start().address(), &options);
    for (user, password, status) in
        [("alice", "wonder", 200), ("alice", "wrong", 401), ("eve", "wonder", 401)]
    {
        let answer = ask(&gateway, &format!("Bearer {}", bearer(user, password)));
        assert_eq!(answer.status, status, "{user} {password}");
        if status == 401 {
            assert_eq!(answer.reason(), "credentials_wrong");
        }
    }
}

#[test]
fn a_password_that_is_slow_to_check_holds_up_no_request() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("users");
    let hash = bcrypt::hash("wonder", 4).expect("hashed");
    // No password has this one, and each try takes seconds.
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
            let answer = client.send("GET /timbr/api/x", &[JSON, ("x-api-key", &token)], b"");
            assert_eq!(answer.status, 200);
            answered += 1;
        }
        assert_eq!(login.join().expect("no panic"), 401);
    });
    assert!(answered > 20, "only {answered} requests while one password was checked by the one worker");
}
