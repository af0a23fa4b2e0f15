//! The identity that the backend receives, and that clients cannot forge it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::support::client::{JSON, Response};
use crate::support::gateway::{Gateway, IMPERSONATE, setup};
use crate::support::upstream::{Recorded, Upstream, respond, write};
use crate::support::wait_until;

fn get(gateway: &Gateway, key: &str, more: &[(&str, &str)]) -> Response {
    let headers = [&[JSON, ("x-api-key", key)], more].concat();
    gateway.client().send("GET /timbr/api/x", &headers, b"")
}

#[test]
fn forward_sends_the_clients_key_and_the_users_name() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(upstream.address(), &[]);
    let token = gateway.token_of("alice@example.com", "secret");
    assert_eq!(get(&gateway, &token, &[]).status, 200);
    let seen = upstream.only_request();
    assert_eq!(seen.header("x-api-key"), token);
    assert_eq!(seen.header("x-forwarded-user"), "alice@example.com");
    assert_eq!(seen.header("x-forwarded-for"), "127.0.0.1");
    assert_eq!(seen.header("x-forwarded-proto"), "http");
    assert_eq!(seen.header("x-forwarded-host"), "gateway.test");
    assert_eq!(seen.header("host"), upstream.address().to_string());
}

#[test]
fn impersonate_sends_the_service_key_and_not_the_clients_key() {
    let (upstream, gateway, token) = setup(&IMPERSONATE);
    assert_eq!(get(&gateway, &token, &[]).status, 200);
    let seen = upstream.only_request();
    assert_eq!(seen.header("x-api-key"), "tk_service");
    assert_eq!(seen.header("x-api-impersonate-user"), "alice");
    assert!(!format!("{seen:?}").contains(&token));
}

#[test]
fn under_impersonate_a_client_cannot_impersonate() {
    let (upstream, gateway, token) = setup(&IMPERSONATE);
    let refused = get(&gateway, &token, &[("x-api-impersonate-user", "root")]);
    assert_eq!((refused.status, refused.reason().as_str()), (403, "impersonation_denied"));
    for spelling in ["x_api_impersonate_user", "X-Api_Impersonate-User", "x.api.impersonate.user"] {
        let refused = get(&gateway, &token, &[(spelling, "root")]);
        assert_eq!(refused.status, 400, "{spelling}");
    }
    assert!(upstream.log().is_empty());
}

#[test]
fn under_forward_the_backend_decides_about_impersonation_with_its_own_keys() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("keys");
    std::fs::write(&file, format!("bob:{}\n", sha256("long-lived"))).expect("written");
    let file = ("TOKENS_KEYS_FILE", file.to_str().expect("text"));
    static QUESTIONS: AtomicUsize = AtomicUsize::new(0);
    for (key, options) in [
        ("tk_platform", &[][..]),
        ("tk_anything", &[("TOKENS_FOREIGN", "forward")]),
        ("long-lived", &[file, ("TOKENS_FOREIGN", "reject")]),
    ] {
        let upstream = platform(&QUESTIONS);
        let gateway = Gateway::start(upstream.address(), options);
        get(&gateway, key, &[("x-api-impersonate-user", "carol")]);
        let seen = upstream.log().pop().expect("it arrived");
        assert_eq!((seen.header("x-api-key"), seen.header("x-api-impersonate-user")), (key, "carol"));
    }
}

/// The backend trusts the gateway about the user of such a token; it cannot check the right to impersonate a second
/// user.
#[test]
fn under_forward_a_gateway_token_cannot_impersonate() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(upstream.address(), &[]);
    let refused = get(&gateway, &gateway.token(), &[("x-api-impersonate-user", "root")]);
    assert_eq!(refused.rejection(), (403, "impersonation_denied".into()));
    assert!(upstream.log().is_empty(), "nothing was forwarded");
}

#[test]
fn cookies_are_not_shared_between_identities() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("keys");
    let keys = format!("etl:{}:tk_operators\nbob:{}\n", sha256("etl-key"), sha256("long-lived"));
    std::fs::write(&file, keys).expect("written");
    let file = ("TOKENS_KEYS_FILE", file.to_str().expect("text"));
    let impersonate = [&IMPERSONATE[..], &[file]].concat();
    for (options, key, pass) in [
        (&[file][..], Some("etl-key"), false),
        (&[file], Some("long-lived"), true),
        (&[file], None, true),
        (&impersonate, Some("etl-key"), false),
        (&impersonate, Some("long-lived"), false),
        (&impersonate, None, false),
    ] {
        let upstream = Upstream::with_behaviour(|_, stream| {
            let response = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nSet-Cookie: session=up\r\nset-cookie: b=c\r\n\r\n";
            write(stream, response.as_bytes())
        });
        let gateway = Gateway::start(upstream.address(), options);
        let key = key.map_or_else(|| gateway.token(), str::to_owned);
        let response = get(&gateway, &key, &[("Cookie", "session=down"), ("Cookie", "a=b")]);
        let (up, down) = if pass { ("session=down; a=b", 2) } else { ("", 0) };
        assert_eq!(upstream.only_request().header("cookie"), up, "{options:?} {key}");
        assert_eq!(response.all("set-cookie").len(), down, "{options:?} {key}");
    }
}

#[test]
fn identity_headers_are_never_taken_from_the_client() {
    for options in [&[][..], &IMPERSONATE] {
        let (upstream, gateway, token) = setup(options);
        let names = [
            "x-forwarded-user",
            "X-Forwarded_User",
            "x_forwarded_user",
            "x-forwarded-for",
            "X_Forwarded_For",
            "x-forwarded-proto",
            "x-forwarded-host",
            "x-forwarded-anything",
            "forwarded",
            "x-real-ip",
            "X_Real_IP",
            "remote-user",
            "remote_user",
            "x-jwt-anything",
            "authorization",
            "proxy-authorization",
            "x-auth-request-user",
            "X_Webauth_User",
            "remote-groups",
            "x-consumer-username",
            "cf-access-authenticated-user-email",
            "x-ms-client-principal-id",
            "l5d-client-id",
            "impersonate-user",
        ];
        for name in names {
            assert_eq!(get(&gateway, &token, &[(name, "evil")]).status, 200, "{name}");
        }
        for seen in upstream.log() {
            assert!(!format!("{seen:?}").contains("evil"), "{seen:#?}");
            assert_eq!(seen.header("x-forwarded-user"), "alice");
        }
        assert_eq!(upstream.log().len(), names.len());
    }
}

#[test]
fn headers_of_the_operators_list_are_dropped() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(upstream.address(), &[("HEADERS_DROP", "X-User, x-sso-*, cookie")]);
    let sent =
        [("x-user", "evil"), ("X-Sso-Name", "evil"), ("X_SSO_Name", "evil"), ("Cookie", "evil=1"), ("x-users", "1")];
    assert_eq!(get(&gateway, &gateway.token(), &sent).status, 200);
    let seen = upstream.only_request();
    assert!(!format!("{seen:?}").contains("evil"), "{seen:#?}");
    assert_eq!(seen.header("x-users"), "1");
}

#[test]
fn keys_of_the_keys_file_are_accepted_and_replaced() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("keys");
    let lines = format!("# keys\nbob:{}\netl:{}:tk_platform\n", sha256("long-lived"), sha256("etl-key"));
    std::fs::write(&file, lines).expect("written");
    let file = ("TOKENS_KEYS_FILE", file.to_str().expect("text"));
    let reject = ("TOKENS_FOREIGN", "reject");

    let upstream = Upstream::start();
    let gateway = Gateway::start(upstream.address(), &[file, reject]);
    assert_eq!(get(&gateway, "long-lived", &[]).status, 200);
    assert_eq!(get(&gateway, "etl-key", &[]).status, 200);
    assert_eq!(get(&gateway, "long-lived2", &[]).status, 401);
    let [bob, etl] = <[Recorded; 2]>::try_from(upstream.log()).expect("two requests");
    assert_eq!((bob.header("x-forwarded-user"), bob.header("x-api-key")), ("bob", "long-lived"));
    assert_eq!((etl.header("x-forwarded-user"), etl.header("x-api-key")), ("etl", "tk_platform"));

    let upstream = Upstream::start();
    let gateway = Gateway::start(upstream.address(), &[&IMPERSONATE[..], &[file, reject]].concat());
    assert_eq!(get(&gateway, "long-lived", &[]).status, 200);
    assert_eq!(get(&gateway, "etl-key", &[]).status, 200);
    let [bob, etl] = <[Recorded; 2]>::try_from(upstream.log()).expect("two requests");
    assert_eq!((bob.header("x-api-impersonate-user"), bob.header("x-api-key")), ("bob", "tk_service"));
    assert_eq!((etl.header("x-api-impersonate-user"), etl.header("x-api-key")), ("", "tk_platform"));
}

/// Otherwise a client could use the rights of the operator's key.
#[test]
fn a_client_cannot_impersonate_with_the_operators_key() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("keys");
    std::fs::write(&file, format!("etl:{}:tk_platform\n", sha256("etl-key"))).expect("written");
    let file = ("TOKENS_KEYS_FILE", file.to_str().expect("text"));
    static QUESTIONS: AtomicUsize = AtomicUsize::new(0);
    let upstream = platform(&QUESTIONS);
    for (options, key) in
        [(&[file][..], "etl-key"), (&[&IMPERSONATE[..], &[file]].concat(), "etl-key"), (&IMPERSONATE, "tk_platform")]
    {
        let gateway = Gateway::start(upstream.address(), options);
        let refused = get(&gateway, key, &[("x-api-impersonate-user", "root")]);
        assert_eq!(refused.rejection(), (403, "impersonation_denied".into()), "{options:?} {key}");
    }
    assert!(upstream.log().iter().all(|seen| seen.line.contains("get_ontologies")), "{:?}", upstream.log());
}

fn sha256(key: &str) -> String {
    let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, key.as_bytes());
    hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A backend that knows one platform key and checks it slowly.
fn platform(questions: &'static AtomicUsize) -> Upstream {
    Upstream::with_behaviour(move |request, stream| {
        let good = request.header("x-api-key") == "tk_platform";
        if request.line.starts_with("GET /timbr/api/get_ontologies/ ") && !request.is_random_key_check() {
            questions.fetch_add(1, Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(100));
        }
        if good { respond(stream, 200, "{}") } else { respond(stream, 401, "{}") }
    })
}

#[test]
fn an_accepted_foreign_key_is_checked_once_and_cached() {
    static QUESTIONS: AtomicUsize = AtomicUsize::new(0);
    let upstream = platform(&QUESTIONS);
    let gateway = Gateway::start(upstream.address(), &[("WORKERS", "2")]);
    std::thread::scope(|scope| {
        for _ in 0..10 {
            scope.spawn(|| assert_eq!(get(&gateway, "tk_platform", &[]).status, 200));
        }
    });
    assert_eq!(QUESTIONS.load(Ordering::SeqCst), 1, "ten callers, one question");
    let log = upstream.log();
    let question = &log[0];
    assert_eq!(question.line, "GET /timbr/api/get_ontologies/ HTTP/1.1");
    assert_eq!(question.header("content-type"), "application/json");
    assert_eq!(log.iter().filter(|seen| seen.is_random_key_check()).count(), 1);
    let query = &log[2];
    assert_eq!((query.header("x-api-key"), query.folded_headers("x-forwarded-user").len()), ("tk_platform", 0));

    gateway.clock.advance(Duration::from_secs(299));
    assert_eq!(get(&gateway, "tk_platform", &[]).status, 200);
    assert_eq!(QUESTIONS.load(Ordering::SeqCst), 1);
    gateway.clock.advance(Duration::from_secs(2));
    assert_eq!(get(&gateway, "tk_platform", &[]).status, 200);
    assert_eq!(QUESTIONS.load(Ordering::SeqCst), 2, "an accepted verdict expires");
}

#[test]
fn a_rejected_foreign_key_is_cached_for_seconds() {
    static QUESTIONS: AtomicUsize = AtomicUsize::new(0);
    let upstream = platform(&QUESTIONS);
    let gateway = Gateway::start(upstream.address(), &[]);
    for _ in 0..3 {
        assert_eq!(get(&gateway, "tk_wrong", &[]).rejection(), (401, "api_key_unknown".into()));
    }
    assert_eq!(QUESTIONS.load(Ordering::SeqCst), 1);
    gateway.clock.advance(Duration::from_secs(11));
    assert_eq!(get(&gateway, "tk_wrong", &[]).status, 401);
    assert_eq!(QUESTIONS.load(Ordering::SeqCst), 2);
    let asked = |seen: &Recorded| seen.line.contains("get_ontologies");
    assert!(upstream.log().iter().all(asked), "the request itself was not forwarded");
}

#[test]
fn under_impersonate_a_foreign_key_is_forwarded_unchanged() {
    static QUESTIONS: AtomicUsize = AtomicUsize::new(0);
    let upstream = platform(&QUESTIONS);
    let gateway = Gateway::start(upstream.address(), &IMPERSONATE);
    assert_eq!(get(&gateway, "tk_platform", &[]).status, 200);
    for seen in upstream.log() {
        let clients = seen.header("x-api-key") == "tk_platform" || seen.is_random_key_check();
        assert!(clients, "the service key is used only for the gateway's own users");
        assert!(seen.folded_headers("x-api-impersonate-user").is_empty());
    }
}

const USER_QUERY: &str = "SHOW MY NAME";

/// Like [`platform`], with the names of its users.
fn platform_with_names(name: &'static str) -> Upstream {
    Upstream::with_behaviour(move |request, stream| {
        let is_good = request.header("x-api-key").starts_with("tk_platform");
        let is_query = request.line.contains("/ontology/system_db/query") && request.body == USER_QUERY.as_bytes();
        match (is_good, is_query) {
            (false, _) => respond(stream, 401, "{}"),
            (true, true) => respond(stream, 200, name),
            (true, false) => respond(stream, 200, "{}"),
        }
    })
}

#[test]
fn the_backend_can_name_the_user_of_a_foreign_key() {
    let upstream = platform_with_names(r#"[{"name": "dora"}]"#);
    let rules = "[{users: dora, methods: GET}]";
    let options = [
        ("TOKENS_FOREIGN_USER_QUERY", USER_QUERY),
        ("AUTHORIZATION_MODE", "enforce"),
        ("AUTHORIZATION_RULES", rules),
        ("AUTH_TRUST_SALT_HOLDER", "true"),
    ];
    let gateway = Gateway::start(upstream.address(), &options);
    for _ in 0..3 {
        assert_eq!(get(&gateway, "tk_platform", &[]).status, 200);
    }
    assert_eq!(get(&gateway, "tk_wrong", &[]).status, 401);
    let log = upstream.log();
    let queries: Vec<_> = log.iter().filter(|seen| seen.line.contains("system_db")).collect();
    assert_eq!(queries.len(), 1, "cached with the verdict, and not sent with a key that is not accepted");
    assert_eq!(queries[0].line, "POST /timbr/openapi/ontology/system_db/query HTTP/1.1");
    assert_eq!(queries[0].header("content-type"), "application/text");
    let forwarded: Vec<_> = log.iter().filter(|seen| seen.header("x-forwarded-user") == "dora").collect();
    assert_eq!(forwarded.len(), 3);
    assert!(forwarded.iter().all(|seen| seen.header("x-api-key") == "tk_platform"));
}

#[test]
fn a_named_foreign_key_never_meets_the_service_key() {
    let upstream = platform_with_names(r#"[{"name": "root"}]"#);
    let options = [&IMPERSONATE[..], &[("TOKENS_FOREIGN_USER_QUERY", USER_QUERY)]].concat();
    let gateway = Gateway::start(upstream.address(), &options);
    assert_eq!(get(&gateway, "tk_platform", &[]).status, 200);
    for seen in upstream.log() {
        assert_ne!(seen.header("x-api-key"), "tk_service", "{seen:?}");
        assert!(seen.folded_headers("x-api-impersonate-user").is_empty());
    }
}

#[test]
fn a_foreign_key_without_a_clear_name_stays_unknown() {
    for response in ["[]", r#"[{"name": "dora"}, {"name": "root"}]"#, r#"{"status": "error", "data": "no"}"#] {
        let upstream = platform_with_names(response);
        let gateway = Gateway::start(upstream.address(), &[("TOKENS_FOREIGN_USER_QUERY", USER_QUERY)]);
        assert_eq!(get(&gateway, "tk_platform", &[]).status, 200);
        let log = upstream.log();
        assert_eq!(log.last().expect("forwarded").header("x-forwarded-user"), "", "{response}");
    }
}

#[test]
fn an_inconclusive_check_accepts_no_key() {
    for status in [302, 404, 500, 503] {
        let upstream = Upstream::with_behaviour(move |request, stream| {
            respond(stream, if request.is_random_key_check() { 401 } else { status }, "{}")
        });
        let gateway = Gateway::start(upstream.address(), &[]);
        for _ in 0..2 {
            let refused = get(&gateway, "tk_platform", &[]);
            assert_eq!((refused.status, refused.reason().as_str()), (503, "api_key_unverifiable"));
            assert_ne!(refused.header("retry-after"), "");
        }
        assert_eq!(upstream.log().len(), 3, "a random key, and the key twice: an inconclusive check is not cached");
    }
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").expect("bound").local_addr().expect("an address");
    let gateway = Gateway::start(nobody, &[]);
    assert_eq!(get(&gateway, "tk_platform", &[]).status, 503);
}

/// If the backend accepts every key, its response proves nothing.
#[test]
fn a_backend_that_accepts_random_keys_verifies_no_key() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(upstream.address(), &[]);
    for _ in 0..3 {
        assert_eq!(get(&gateway, "tk_anything", &[]).rejection(), (503, "api_key_unverifiable".into()));
    }
    let log = upstream.log();
    assert!(log.iter().all(|seen| seen.line.contains("get_ontologies")), "the request itself never arrived: {log:?}");
    assert_eq!(log.iter().filter(|seen| seen.is_random_key_check()).count(), 1, "{log:?}");
    let token = gateway.token();
    assert_eq!(get(&gateway, &token, &[]).status, 200, "the gateway's own tokens need no check");
}

#[test]
fn the_random_key_check_is_repeated() {
    static STRICT: AtomicUsize = AtomicUsize::new(1);
    let upstream = Upstream::with_behaviour(|request, stream| {
        let strict = STRICT.load(Ordering::SeqCst) == 1;
        let good = request.header("x-api-key") == "tk_platform" || !strict;
        if good { respond(stream, 200, "{}") } else { respond(stream, 401, "{}") }
    });
    let gateway = Gateway::start(upstream.address(), &[("TOKENS_FOREIGN_ACCEPT_TTL", "1s")]);
    let status = || get(&gateway, "tk_platform", &[]).status;
    let controls = || {
        upstream
            .log()
            .iter()
            .filter(|seen| seen.is_random_key_check())
            .map(|seen| seen.header("x-api-key").to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(status(), 200);
    gateway.clock.advance(Duration::from_secs(299));
    assert_eq!((status(), controls().len()), (200, 1));
    STRICT.store(0, Ordering::SeqCst);
    gateway.clock.advance(Duration::from_secs(2));
    assert_eq!((status(), controls().len()), (503, 2));
    STRICT.store(1, Ordering::SeqCst);
    gateway.clock.advance(Duration::from_secs(3));
    assert_eq!((status(), controls().len()), (200, 3));
    let keys = controls();
    assert!(keys[0] != keys[1] && keys[1] != keys[2], "a different key each time: {keys:?}");
}

#[test]
fn an_error_envelope_with_status_200_accepts_no_key() {
    let upstream = Upstream::with_behaviour(|_, stream| respond(stream, 200, r#"{"status":"error","data":"token"}"#));
    let gateway = Gateway::start(upstream.address(), &[]);
    assert_eq!(get(&gateway, "tk_anything", &[]).rejection(), (503, "api_key_unverifiable".into()));
}

#[test]
fn concurrent_key_checks_are_limited() {
    static BUSY: AtomicUsize = AtomicUsize::new(0);
    const TOO_MANY: usize = 16;
    let upstream = Upstream::with_behaviour(|_, stream| {
        wait_until("the others have been rejected", || BUSY.load(Ordering::SeqCst) == TOO_MANY);
        respond(stream, 401, "{}")
    });
    let gateway = Gateway::start(upstream.address(), &[("WORKERS", "2")]);
    std::thread::scope(|scope| {
        for number in 0..64 + TOO_MANY {
            let gateway = &gateway;
            scope.spawn(move || {
                let refused = get(gateway, &format!("tk_guess_{number}"), &[]);
                if refused.status == 503 {
                    assert_eq!(refused.reason(), "api_key_check_busy");
                    assert_ne!(refused.header("retry-after"), "");
                    BUSY.fetch_add(1, Ordering::SeqCst);
                } else {
                    assert_eq!(refused.status, 401);
                }
            });
        }
    });
    assert_eq!(BUSY.load(Ordering::SeqCst), TOO_MANY);
    assert_eq!(upstream.log().len(), 1 + 64, "a random key, and the keys");
}

#[test]
fn a_disconnected_client_does_not_abort_a_shared_key_check() {
    static QUESTIONS: AtomicUsize = AtomicUsize::new(0);
    let upstream = platform(&QUESTIONS);
    let gateway = Gateway::start(upstream.address(), &[]);
    let impatient = gateway.begin("GET /timbr/api/x", &[JSON, ("x-api-key", "tk_platform")], b"");
    wait_until("the backend is called", || QUESTIONS.load(Ordering::SeqCst) == 1);
    drop(impatient);
    assert_eq!(get(&gateway, "tk_platform", &[]).status, 200);
    assert_eq!(QUESTIONS.load(Ordering::SeqCst), 1);
}

#[test]
fn with_foreign_forward_the_backend_checks_keys() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(upstream.address(), &[("TOKENS_FOREIGN", "forward")]);
    assert_eq!(get(&gateway, "tk_anything", &[]).status, 200);
    assert_eq!(upstream.only_request().header("x-api-key"), "tk_anything");
}

#[test]
fn a_gateway_token_is_never_a_foreign_key() {
    let upstream = Upstream::start();
    let before = Gateway::start(upstream.address(), &[]);
    let token = before.token();
    drop(before);
    let gateway = Gateway::start(upstream.address(), &[("TOKENS_FOREIGN", "forward")]);
    assert_eq!(get(&gateway, &token, &[]).reason(), "token_expired");
    assert!(upstream.log().is_empty());
}

#[test]
fn impersonation_needs_a_rule() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("keys");
    std::fs::write(&file, format!("svc-etl:{}:tk_operators\n", sha256("etl-key"))).expect("written");
    let more = [
        ("IMPERSONATION_RULES", "[{users: [alice, 'svc-*'], act_as: '*@example.com'}]"),
        ("AUTH_TRUST_SALT_HOLDER", "true"),
        ("TOKENS_KEYS_FILE", file.to_str().expect("text")),
    ];
    let impersonate = [&IMPERSONATE[..], &more].concat();
    for (options, caller, shown) in [
        (&more[..], "alice", None),
        (&more, "svc-etl", Some("tk_operators")),
        (&impersonate, "alice", Some("tk_service")),
        (&impersonate, "svc-etl", Some("tk_operators")),
    ] {
        let upstream = Upstream::start();
        let gateway = Gateway::start(upstream.address(), options);
        let key = if caller == "alice" { gateway.token() } else { "etl-key".to_owned() };
        let act_as = |user: &str| get(&gateway, &key, &[("x-api-impersonate-user", user)]);
        assert_eq!(act_as("carol@example.com").status, 200);
        for user in ["root", "carol@example.com.evil", "Carol@EXAMPLE.com"] {
            assert_eq!(act_as(user).reason(), "impersonation_denied", "{options:?} {user}");
        }
        let bobs = gateway.token_of("bob", "secret");
        let bob = get(&gateway, &bobs, &[("x-api-impersonate-user", "carol@example.com")]);
        assert_eq!(bob.reason(), "impersonation_denied");
        let seen = upstream.only_request();
        assert_eq!(seen.header("x-api-impersonate-user"), "carol@example.com");
        assert_eq!(seen.header("x-forwarded-user"), caller);
        assert_eq!(seen.header("x-api-key"), shown.unwrap_or(&key));
    }
}

#[test]
fn impersonation_with_own_keys_can_be_denied() {
    static QUESTIONS: AtomicUsize = AtomicUsize::new(0);
    let upstream = platform(&QUESTIONS);
    let gateway = Gateway::start(upstream.address(), &[("IMPERSONATION_OWN_KEYS", "deny")]);
    let refused = get(&gateway, "tk_platform", &[("x-api-impersonate-user", "carol")]);
    assert_eq!(refused.rejection(), (403, "impersonation_denied".into()));
    assert_eq!(get(&gateway, "tk_platform", &[]).status, 200);
}
