//! Authorization rules, and keys in `Authorization: Basic` on the hive route.

use crate::support::bearer::basic;
use crate::support::client::{JSON, Response};
use crate::support::gateway::{Gateway, IMPERSONATE};
use crate::support::upstream::Upstream;

const RULES: &str = "[{users: alice, routes: openapi, ontologies: 'sales*'}, {users: '*', methods: GET}, \
                     {users: 'bob', routes: api}]";

fn send(gateway: &Gateway, line: &str, key: &str) -> Response {
    gateway.client().send(line, &[JSON, ("x-api-key", key)], b"")
}

#[test]
fn requests_that_no_rule_allows_are_rejected_and_not_forwarded() {
    let upstream = Upstream::start();
    let options = [("AUTHORIZATION_MODE", "enforce"), ("AUTHORIZATION_RULES", RULES)];
    let gateway = Gateway::start(upstream.address(), &options);
    let (alice, bob) = (gateway.token(), gateway.token_of("bob", "secret"));
    for (line, key, allowed) in [
        ("POST /timbr/openapi/ontology/sales_eu/query", &alice, true),
        ("POST /timbr/openapi/ontology/hr/query", &alice, false),
        ("POST /timbr/openapi/ontology/s%61les/query", &alice, false),
        ("POST /timbr/api/query/", &alice, false),
        ("GET /timbr/api/q/hr/concept/person", &alice, true),
        ("POST /timbr/api/query/", &bob, true),
        ("POST /timbr/openapi/ontology/sales/query", &bob, false),
    ] {
        let before = upstream.log().len();
        let response = send(&gateway, line, key);
        if !allowed && !line.contains('%') {
            assert_eq!((response.status, response.reason().as_str()), (403, "not_authorized"), "{line}");
        }
        assert_eq!(response.status == 200, allowed, "{line}");
        assert_eq!(upstream.log().len() - before, usize::from(allowed), "{line}");
    }
    assert_eq!(gateway.metric("timbr_gateway_authorization_shadow_denials_total"), 0.0);
}

#[test]
fn in_shadow_mode_a_denied_request_is_forwarded_and_counted() {
    let upstream = Upstream::start();
    let options = [("AUTHORIZATION_MODE", "shadow"), ("AUTHORIZATION_RULES", RULES)];
    let (gateway, token) = Gateway::with_token(upstream.address(), &options);
    for line in ["POST /timbr/openapi/ontology/hr/query", "POST /timbr/openapi/ontology/sales/query"] {
        assert_eq!(send(&gateway, line, &token).status, 200);
    }
    assert_eq!(upstream.log().len(), 2);
    assert_eq!(gateway.metric("timbr_gateway_authorization_shadow_denials_total"), 1.0);
}

/// The request of `THttpClient` in `pytimbr_sqla` 2.1.0.
fn thrift(gateway: &Gateway, authorization: &str, more: &[(&str, &str)]) -> Response {
    let own = [
        ("Accept-Encoding", "identity"),
        ("Content-Type", "application/x-thrift"),
        ("User-Agent", "Python/THttpClient (query.py)"),
        ("Authorization", authorization),
    ];
    gateway.client().send("POST /timbr-server/", &[&own, more].concat(), b"\x80\x01\x00\x01\x00\x00\x00\x0bOpenSession")
}

#[test]
fn the_hive_route_accepts_a_key_as_password() {
    let upstream = Upstream::start();
    let on = "routes:\n  - {name: hive}\n";
    let gateway = Gateway::start_with_file(upstream.address(), on, &[("TOKENS_FOREIGN", "reject")]);
    let token = gateway.token();
    assert_eq!(thrift(&gateway, &basic("token", &token), &[]).status, 200);
    let seen = upstream.only_request();
    assert_eq!(
        (seen.line.as_str(), seen.header("authorization")),
        ("POST /timbr-server/ HTTP/1.1", &*basic("token", &token))
    );
    assert_eq!((seen.header("x-forwarded-user"), seen.header("x-api-key")), ("alice", ""));
    assert_eq!(seen.body, b"\x80\x01\x00\x01\x00\x00\x00\x0bOpenSession");

    for (authorization, more, status, reason) in [
        (basic("token", "tk_wrong"), &[][..], 401, "api_key_unknown"),
        (basic("alice", &token), &[], 401, "basic_malformed"),
        (format!("Bearer {token}"), &[], 401, "basic_malformed"),
        (basic("token", &token), &[("x-api-key", token.as_str())], 400, "credentials_ambiguous"),
    ] {
        let refused = thrift(&gateway, &authorization, more);
        assert_eq!((refused.status, refused.reason().as_str()), (status, reason), "{authorization}");
    }
    let missing = gateway.client().send("POST /timbr-server/", &[("Content-Type", "application/x-thrift")], b"");
    assert_eq!(
        (missing.reason().as_str(), missing.header("www-authenticate")),
        ("basic_missing", "Basic realm=\"timbr\"")
    );
    // On other routes it is not a credential, and it is not forwarded.
    let headers = [JSON, ("x-api-key", token.as_str()), ("Authorization", "Basic eDp5")];
    assert_eq!(gateway.client().send("GET /timbr/api/x", &headers, b"").status, 200);
    let seen = upstream.log().pop().expect("it arrived");
    assert_eq!((upstream.log().len(), seen.header("authorization")), (2, ""));
}

#[test]
fn the_service_key_is_sent_in_the_same_form() {
    let upstream = Upstream::start();
    let on = "routes: [{name: hive}]\n";
    let gateway = Gateway::start_with_file(upstream.address(), on, &IMPERSONATE);
    assert_eq!(thrift(&gateway, &basic("token", &gateway.token()), &[]).status, 200);
    let seen = upstream.only_request();
    assert_eq!(seen.header("authorization"), basic("token", "tk_service"));
    assert_eq!((seen.header("x-api-impersonate-user"), seen.header("x-api-key")), ("alice", ""));
}

#[test]
fn the_hive_route_is_off_by_default() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(upstream.address(), &[]);
    assert_eq!(thrift(&gateway, &basic("token", &gateway.token()), &[]).reason(), "not_found");
    assert!(upstream.log().is_empty());
}

const QUERY: &str = "POST /timbr/openapi/ontology/sales/query";

fn send_body(gateway: &Gateway, line: &str, media_type: &str, key: &str, body: &str) -> Response {
    gateway.client().send(line, &[("Content-Type", media_type), ("x-api-key", key)], body.as_bytes())
}

#[test]
fn rules_allow_classes_of_statements() {
    let upstream = Upstream::start();
    let rules = "[{users: alice, ontologies: sales, statements: [read, show]}, {users: '*', methods: GET}]";
    let options = [("AUTHORIZATION_MODE", "enforce"), ("AUTHORIZATION_RULES", rules), ("LIMITS_BUFFER", "4KiB")];
    let (gateway, token) = Gateway::with_token(upstream.address(), &options);
    let long = format!("SELECT '{}'", "x".repeat(300 * 1024));
    for (body, allowed) in [
        ("SELECT name FROM customer", true),
        ("-- a comment\nshow tables;", true),
        ("DROP TABLE customer", false),
        ("INSERT INTO t VALUES (1)", false),
        ("SELECT 1; DROP TABLE customer", false),
        (r"SELECT '\'; DROP TABLE customer -- '", false),
        ("WITH a AS (SELECT 1) DELETE FROM t", false),
        ("", false),
        (&long, false),
    ] {
        let before = upstream.log().len();
        let response = send_body(&gateway, QUERY, "application/text", &token, body);
        assert_eq!(response.status == 200, allowed, "{body:.60}: {}", response.status);
        assert_eq!(upstream.log().len() - before, usize::from(allowed), "{body:.60}");
        if !allowed {
            assert_eq!(response.reason(), "not_authorized", "{body:.60}");
        }
    }
    assert_eq!(send(&gateway, "GET /timbr/openapi/get-async-results/x", &token).status, 200);
    let other = send_body(&gateway, "POST /timbr/openapi/ontology/hr/query", "application/text", &token, "SELECT 1");
    assert_eq!(other.reason(), "not_authorized");
    // The backend could read a different text.
    for (name, value) in [
        ("Content-Encoding", "deflate"),
        ("Content-Type", "application/text; charset=utf-7"),
        ("Content-Type", "application/text; charset=utf-8-x"),
        ("Content-Type", "application/text; charset*=utf-8''utf-7"),
        ("Content-Type", "application/text; charset=utf-8; charset*0=utf-7"),
    ] {
        let more: &[_] = if name == "Content-Type" { &[] } else { &[("Content-Type", "application/text")] };
        let headers = [more, &[(name, value), ("x-api-key", &token)]].concat();
        let response = gateway.client().send(QUERY, &headers, b"SELECT 1");
        assert_eq!(response.reason(), "not_authorized", "{value}");
    }
    for media_type in ["application/text; charset=\"UTF-8\"", "application/text;charset=utf-8 ; x=y"] {
        assert_eq!(send_body(&gateway, QUERY, media_type, &token, "SELECT 1").status, 200, "{media_type}");
    }
    let json = "POST /timbr/api/query/";
    for (body, allowed) in [
        (r#"{"ontology_name":"sales","query":"select 1"}"#, true),
        (r#"{"ontology_name":"hr","query":"select 1"}"#, false),
        (r#"{"ontology_name":"sales","query":"drop table t"}"#, false),
        (r#"{"ontology_name":"sales","ontology_name":"hr","query":"select 1"}"#, false),
        (r#"{"query":"select 1"}"#, false),
        (r#"{"ontology_name":"sales","query":"select 1""#, false),
    ] {
        let response = send_body(&gateway, json, "application/json", &token, body);
        assert_eq!(response.status == 200, allowed, "{body}: {}", response.status);
    }
    for (selected, status) in [("sales", 200), ("hr", 400)] {
        let headers = [JSON, ("x-api-key", token.as_str()), ("x-ontology", selected)];
        let body = br#"{"ontology_name":"sales","query":"select 1"}"#;
        assert_eq!(gateway.client().send(json, &headers, body).status, status, "{selected}");
    }
}

fn thrift_text(text: &str) -> Vec<u8> {
    [&u32::try_from(text.len()).expect("short").to_be_bytes(), text.as_bytes()].concat()
}

/// A call whose request has these fields.
fn thrift_call(name: &str, fields: &[u8]) -> Vec<u8> {
    [&b"\x80\x01\x00\x01"[..], &thrift_text(name), b"\0\0\0\0\x0c\0\x01", fields, b"\0\0"].concat()
}

/// As Hive's JDBC driver opens a session in a database.
pub fn open_session(database: &str) -> Vec<u8> {
    let configuration = [&b"\x0d\0\x04\x0b\x0b\0\0\0\x01"[..], &thrift_text("use:database"), &thrift_text(database)];
    thrift_call("OpenSession", &configuration.concat())
}

#[test]
fn drivers_that_may_read_can_begin_a_session_and_look_at_metadata() {
    let upstream = Upstream::start();
    let rules = "[{users: alice, ontologies: sales, statements: [read, show]}]";
    let options = [("AUTHORIZATION_MODE", "enforce"), ("AUTHORIZATION_RULES", rules)];
    let gateway = Gateway::start_with_file(upstream.address(), "routes: [{name: hive}]\n", &options);
    let authorization = basic("token@sales", &gateway.token());
    let headers = [("Content-Type", "application/x-thrift"), ("Authorization", authorization.as_str())];
    let execute = |text: &str| thrift_call("ExecuteStatement", &[&b"\x0b\0\x02"[..], &thrift_text(text)].concat());
    // The first statement of PyHive and pytimbr-sqla; the calls of JDBC's setClientInfo, getPrimaryKeys,
    // getCrossReference and getQueryId, and of PyHive's fetch_logs.
    let calls = ["SetClientInfo", "GetPrimaryKeys", "GetCrossReference", "GetQueryId", "GetLog"];
    let allowed =
        calls.iter().map(|name| thrift_call(name, b"")).chain([execute("USE `default`"), execute("SELECT 1")]);
    for message in allowed {
        let response = gateway.client().send("POST /timbr-server/", &headers, &message);
        assert_eq!(response.status, 200, "{}", message.escape_ascii());
    }
    let delegation = thrift_call("GetDelegationToken", b"");
    for message in [execute("USE `hr`"), execute("USE default; DROP TABLE t"), execute("SET x=1"), delegation] {
        let response = gateway.client().send("POST /timbr-server/", &headers, &message);
        assert_eq!(response.reason(), "not_authorized", "{}", message.escape_ascii());
    }
    assert_eq!(upstream.log().len(), calls.len() + 2);
    let token = gateway.token();
    assert_eq!(send_body(&gateway, QUERY, "application/text", &token, "USE `default`").reason(), "not_authorized");
}

#[test]
fn a_session_is_opened_in_the_ontology_that_the_rules_see() {
    let upstream = Upstream::start();
    let rules = "[{users: alice, ontologies: 'sales*', statements: [read, show]}]";
    let options = [("AUTHORIZATION_MODE", "enforce"), ("AUTHORIZATION_RULES", rules)];
    let gateway = Gateway::start_with_file(upstream.address(), "routes: [{name: hive}]\n", &options);
    let token = gateway.token();
    for (user, path, database, status, reason) in [
        ("token@sales", "/timbr-server/", "default", 200, ""),
        ("token@sales", "/timbr-server/", "sales", 200, ""),
        ("token", "/timbr-server/ontology/sales", "sales", 200, ""),
        ("token@sales", "/timbr-server/", "hr", 400, "ontology_ambiguous"),
        ("token", "/timbr-server/ontology/sales", "hr", 400, "ontology_ambiguous"),
        ("token@sales@hr", "/timbr-server/", "default", 401, "basic_malformed"),
        ("token", "/timbr-server/", "sales", 403, "not_authorized"),
    ] {
        let authorization = basic(user, &token);
        let headers = [("Content-Type", "application/x-thrift"), ("Authorization", authorization.as_str())];
        let response = gateway.client().send(&format!("POST {path}"), &headers, &open_session(database));
        let reason_sent = if status == 200 { String::new() } else { response.reason() };
        assert_eq!((response.status, reason_sent.as_str()), (status, reason), "{user} {path} {database}");
    }
    assert_eq!(upstream.log().len(), 3);
}

#[test]
fn in_shadow_mode_statements_that_no_rule_allows_are_forwarded_whole() {
    let upstream = Upstream::start();
    let rules = "[{users: alice, statements: read}]";
    let options = [("AUTHORIZATION_MODE", "shadow"), ("AUTHORIZATION_RULES", rules)];
    let (gateway, token) = Gateway::with_token(upstream.address(), &options);
    let long = format!("SELECT '{}'", "x".repeat(200 * 1024));
    for body in ["SELECT 1", "DROP TABLE t", &long] {
        assert_eq!(send_body(&gateway, QUERY, "application/text", &token, body).status, 200);
        assert_eq!(upstream.log().pop().expect("it arrived").body, body.as_bytes());
    }
    assert_eq!(gateway.metric("timbr_gateway_authorization_shadow_denials_total"), 2.0);
    // Nor is a request rejected that names two ontologies, which rules that are enforced could not decide about.
    let rules = "[{users: alice, ontologies: sales}]";
    let options = [("AUTHORIZATION_MODE", "shadow"), ("AUTHORIZATION_RULES", rules)];
    let (gateway, token) = Gateway::with_token(upstream.address(), &options);
    for line in [QUERY, "POST /timbr/api/query/"] {
        let headers = [JSON, ("x-api-key", token.as_str()), ("x-ontology", "hr")];
        let body = br#"{"ontology_name":"sales","query":"select 1"}"#;
        assert_eq!(gateway.client().send(line, &headers, body).status, 200, "{line}");
    }
    assert_eq!(gateway.metric("timbr_gateway_authorization_shadow_denials_total"), 2.0);
}

#[test]
fn a_rule_limits_the_tools_of_mcp() {
    let upstream = Upstream::start();
    let rules = "[{users: '*', routes: mcp, tools: [query, 'list_*']}]";
    let options = [
        ("AUTHORIZATION_MODE", "enforce"),
        ("AUTHORIZATION_RULES", rules),
        ("LIMITS_BUFFER", "4KiB"),
        ("WORKERS", "1"),
    ];
    let (gateway, token) = Gateway::with_token(upstream.address(), &options);
    let post = |body: &str| {
        gateway.client().send("POST /timbr/api/mcp/", &[JSON, ("x-api-key", token.as_str())], body.as_bytes())
    };
    let call = |tool: &str| {
        format!(r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"name":"{tool}","arguments":{{}}}}}}"#)
    };
    for body in [call("query"), call("list_ontologies"), r#"{"jsonrpc":"2.0","id":1,"method":"tools/list"}"#.to_owned()]
    {
        assert_eq!(post(&body).status, 200, "{body}");
    }
    let headers = [("x-api-key", token.as_str()), ("mcp-session-id", "1")];
    assert_eq!(gateway.client().send("DELETE /timbr/api/mcp/", &headers, b"").status, 200, "it ends a session");
    let arrived = upstream.log().len();
    let large = call("query").replace("{}", &format!("{{\"x\":\"{}\"}}", "x".repeat(100_000)));
    for body in [
        call("delete"),
        format!("[{}]", call("query")),
        format!("[\"ping\",{}]", call("delete")),
        "{}".to_owned(),
        large,
    ] {
        assert_eq!(post(&body).rejection(), (403, "not_authorized".into()), "{body}");
    }
    assert_eq!(send(&gateway, "GET /timbr/api/x", &token).status, 403, "the rule is for MCP");
    assert_eq!(upstream.log().len(), arrived, "nothing else arrives");
}
