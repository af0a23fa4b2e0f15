//! `upstream.credential: show-token`, and what clients receive that send the statement `SHOW TOKEN` themselves.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use crate::support::client::{JSON, Response};
use crate::support::gateway::{Gateway, setup};
use crate::support::idp::{Idp, SigningKey, claims};
use crate::support::upstream::{Recorded, Upstream, respond};

const TEXT: (&str, &str) = ("Content-Type", "application/text");
const SYSTEM_QUERY: &str = "POST /timbr/openapi/ontology/system_db/query";
const SHOW_TOKEN: (&str, &str) = ("UPSTREAM_CREDENTIAL", "show-token");
const DELEGATE: (&str, &str) = ("AUTH_VERIFIER", "delegate");

/// The gateways' clock, in seconds of Unix time.
const NOW: u64 = 1_900_000_000;

/// An API service with the user's key `tk_permanent_N`. It accepts every JWT but those of the tenant `unknown`.
fn service(number: &Arc<AtomicUsize>) -> Upstream {
    let number = Arc::clone(number);
    Upstream::with_behaviour(move |request: &Recorded, stream| {
        let permanent = format!("tk_permanent_{}", number.load(Ordering::SeqCst));
        let shows = request.line.starts_with(SYSTEM_QUERY) && request.body == b"SHOW TOKEN";
        let key = request.header("x-api-key");
        match request.line.starts_with("POST /timbr/api/get_token ") {
            true => respond(stream, 200, r#"{"status":"success","data":["tk_of_the_login"]}"#),
            false if shows && request.header("x-jwt-tenant-id") == "unknown" => respond(stream, 401, "{}"),
            false if shows && request.header("x-jwt-tenant-id") == "broken" => respond(stream, 200, "[]"),
            false if shows && (!request.header("x-jwt-token").is_empty() || key == "tk_of_the_login") => {
                respond(stream, 200, &json!([{ "token": permanent }]).to_string())
            }
            false => respond(stream, if key == permanent { 200 } else { 401 }, "{}"),
        }
    })
}

struct Setup {
    /// Lives as long as the gateway.
    _idp: Idp,
    key: SigningKey,
    number: Arc<AtomicUsize>,
    upstream: Upstream,
    gateway: Gateway,
}

impl Setup {
    fn new(options: &[(&str, &str)]) -> Setup {
        let key = SigningKey::new("one");
        let idp = Idp::start(&[&key]);
        let number = Arc::<AtomicUsize>::default();
        let upstream = service(&number);
        let issuers = idp.option("");
        let options = [options, &[("AUTH_JWT_ISSUERS", issuers.as_str())]].concat();
        let gateway = Gateway::start_at(&format!("http://{}", upstream.address()), &options, NOW);
        Setup { _idp: idp, key, number, upstream, gateway }
    }

    fn jwt(&self) -> String {
        self.key.sign(&claims(NOW, &json!({})))
    }

    fn get(&self, credential: (&str, &str), more: &[(&str, &str)]) -> Response {
        let headers = [&[JSON, credential], more].concat();
        self.gateway.client().send("GET /timbr/api/x", &headers, b"")
    }

    fn query(&self, credential: (&str, &str), statement: &str) -> Response {
        self.gateway.client().send(SYSTEM_QUERY, &[TEXT, credential], statement.as_bytes())
    }

    /// The requests that the backend received, without the gateway's own.
    fn forwarded(&self) -> Vec<Recorded> {
        let own = |seen: &Recorded| seen.line.starts_with(SYSTEM_QUERY) || seen.line.contains("get_token");
        self.upstream.log().into_iter().filter(|seen| !own(seen)).collect()
    }

    fn exchanges(&self) -> usize {
        self.upstream.log().iter().filter(|seen| seen.body == b"SHOW TOKEN").count()
    }
}

#[test]
fn a_jwt_is_exchanged_once_for_the_users_key() {
    let setup = Setup::new(&[SHOW_TOKEN]);
    let jwt = setup.jwt();
    let tenant = ("x-jwt-tenant-id", "acme");
    for _ in 0..3 {
        assert_eq!(setup.get(("x-jwt-token", &jwt), &[tenant, ("Cookie", "a=b")]).status, 200);
    }
    assert_eq!(setup.exchanges(), 1);
    let exchange = &setup.upstream.log()[0];
    assert_eq!((exchange.header("x-jwt-token"), exchange.header("x-jwt-tenant-id")), (jwt.as_str(), "acme"));
    for seen in setup.forwarded() {
        assert_eq!(
            (seen.header("x-api-key"), seen.header("x-forwarded-user")),
            ("tk_permanent_0", "alice@example.com")
        );
        assert!(!format!("{seen:?}").contains(&jwt) && seen.header("x-jwt-tenant-id").is_empty(), "{seen:?}");
        assert!(seen.header("cookie").is_empty());
    }
    assert_eq!(setup.get(("x-jwt-token", &jwt), &[("x-jwt-tenant-id", "other")]).status, 200);
    assert_eq!(setup.exchanges(), 2, "the tenant can select a different user");
    setup.gateway.clock.advance(Duration::from_secs(3600 + 31));
    assert_eq!(setup.get(("x-jwt-token", &jwt), &[tenant]).reason(), "jwt_expired");
}

#[test]
fn a_key_that_the_backend_rejects_is_exchanged_again() {
    let setup = Setup::new(&[SHOW_TOKEN]);
    let jwt = setup.jwt();
    assert_eq!(setup.get(("x-jwt-token", &jwt), &[]).status, 200);
    setup.gateway.clock.advance(Duration::from_secs(60));
    setup.number.fetch_add(1, Ordering::SeqCst);
    assert_eq!(setup.get(("x-jwt-token", &jwt), &[]).status, 200);
    assert_eq!(setup.exchanges(), 2);
    let keys: Vec<_> = setup.forwarded().iter().map(|seen| seen.header("x-api-key").to_owned()).collect();
    assert_eq!(keys, ["tk_permanent_0", "tk_permanent_0", "tk_permanent_1"]);
}

#[test]
fn without_a_key_nothing_is_forwarded() {
    let setup = Setup::new(&[SHOW_TOKEN]);
    let jwt = setup.jwt();
    for (tenant, status, reason) in [("unknown", 403, "user_key_refused"), ("broken", 503, "user_key_unavailable")] {
        let refused = setup.get(("x-jwt-token", &jwt), &[("x-jwt-tenant-id", tenant)]);
        assert_eq!((refused.status, refused.reason().as_str()), (status, reason));
    }
    let denied = setup.gateway.client().send(
        "POST /timbr/api/get_token",
        &[JSON, ("Authorization", &format!("Bearer {}", crate::support::bearer::bearer("alice", "secret")))],
        b"",
    );
    assert_eq!(denied.reason(), "user_key_refused", "the salt proves nothing to the backend");
    assert!(setup.forwarded().is_empty());
}

#[test]
fn a_login_is_exchanged_for_the_users_key() {
    let setup = Setup::new(&[SHOW_TOKEN, DELEGATE]);
    let token = setup.gateway.token();
    for _ in 0..2 {
        assert_eq!(setup.get(("x-api-key", &token), &[]).status, 200);
    }
    assert_eq!(setup.exchanges(), 1);
    assert!(setup.forwarded().iter().all(|seen| seen.header("x-api-key") == "tk_permanent_0"));
}

#[test]
fn clients_that_ask_for_their_key_get_a_token_of_the_gateway() {
    let setup = Setup::new(&[SHOW_TOKEN, DELEGATE]);
    let jwt = setup.jwt();
    let shown = |response: Response| response.json()[0]["token"].as_str().expect("a token").to_owned();
    let token = shown(setup.query(("x-jwt-token", &jwt), "SHOW TOKEN"));
    assert!(!token.contains("permanent"), "{token}");
    assert_eq!(shown(setup.query(("x-jwt-token", &jwt), "show token;")), token);
    assert_eq!(setup.get(("x-api-key", &token), &[]).status, 200);
    let seen = setup.forwarded().pop().expect("forwarded");
    assert_eq!((seen.header("x-api-key"), seen.header("x-forwarded-user")), ("tk_permanent_0", "alice@example.com"));
    // A token of the gateway is its own.
    assert_eq!(shown(setup.query(("x-api-key", &token), "SHOW TOKEN")), token);
    let legacy = setup.gateway.client().send(
        "POST /timbr/api/query/",
        &[JSON, ("x-api-key", &token)],
        br#"{"ontology_name": "system_db", "query": "SHOW TOKEN"}"#,
    );
    assert_eq!(legacy.json(), json!({"data": [{"token": token}], "status": "success"}));
    assert_eq!(setup.exchanges(), 1, "none of them was forwarded");
    for statement in ["SHOW TOKEN FOR bob", "SELECT 1; SHOW TOKEN", "SELECT '\\'; SHOW TOKEN --'"] {
        assert_eq!(setup.query(("x-api-key", &token), statement).reason(), "show_token_denied", "{statement}");
    }
    setup.gateway.revoke(r#"{"user": "alice@example.com"}"#);
    assert_eq!(setup.get(("x-api-key", &token), &[]).reason(), "token_revoked");
}

#[test]
fn the_request_for_the_key_can_be_denied_or_left_to_the_backend() {
    for (policy, status) in [("deny", 403), ("mint", 200), ("backend", 200)] {
        let (upstream, gateway, token) = setup(&[("TOKENS_SHOW_TOKEN", policy), ("LIMITS_BUFFER", "1KiB")]);
        let query =
            |statement: &str| gateway.client().send(SYSTEM_QUERY, &[TEXT, ("x-api-key", &token)], statement.as_bytes());
        let response = query("SHOW TOKEN");
        assert_eq!(response.status, status, "{policy}");
        if policy == "deny" {
            assert_eq!(response.reason(), "show_token_denied");
        }
        assert_eq!(upstream.log().len(), usize::from(policy == "backend"), "{policy}");
        assert_eq!(query("SHOW TABLES").status, 200);
        let long = query(&format!("SELECT '{}'", "x".repeat(300_000)));
        assert_eq!(long.status, if policy == "backend" { 200 } else { 403 }, "{policy}: it cannot be read");
        let mcp = r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"arguments":{"sql":"show token"}}}"#;
        let mcp = gateway.client().send("POST /timbr/api/mcp", &[JSON, ("x-api-key", &token)], mcp.as_bytes());
        assert_eq!(mcp.status, if policy == "backend" { 200 } else { 403 }, "{policy}");
    }
}

#[test]
fn the_request_for_the_key_is_found_without_a_content_type() {
    let upstream = Upstream::start();
    let routes = "routes:\n  - {name: openapi, content_types: any}\n  - {name: api, content_types: any}\n  \
                  - {name: hive, content_types: any}\n";
    let gateway = Gateway::start_with_file(upstream.address(), routes, &[("TOKENS_SHOW_TOKEN", "deny")]);
    let token = gateway.token();
    let own = ("x-api-key", token.as_str());
    let basic = format!("Basic {}", STANDARD.encode(format!("token:{token}")));
    let basic = ("Authorization", basic.as_str());
    let json = r#"{"ontology_name": "system_db", "query": "SHOW TOKEN"}"#;
    for (line, credential, body) in [
        (SYSTEM_QUERY, own, "SHOW TOKEN"),
        ("POST /timbr/api/query", own, json),
        ("POST /timbr-server/", basic, "a body that is not Thrift"),
        ("POST /cliservice", basic, "a body that is not Thrift"),
    ] {
        for headers in [&[][..], &[("Content-Type", "text/plain")], &[("Content-Type", "nonsense")]] {
            let headers = [headers, &[credential]].concat();
            let response = gateway.client().send(line, &headers, body.as_bytes());
            assert_eq!(response.reason(), "show_token_denied", "{line} {headers:?}");
        }
    }
    assert_eq!(upstream.log().len(), 0);
    let log = gateway.client().send("POST /timbr-server/log_agent/x", &[JSON, basic], b"{}");
    assert_eq!(log.status, 200, "it carries no statement");
}
