//! Rejected requests, which are never forwarded.

use crate::support::client::{Client, JSON};
use crate::support::gateway::setup;

#[test]
fn each_fault_has_its_own_reason_and_is_not_forwarded() {
    let (upstream, gateway, token) = setup(&[("TOKENS_FOREIGN", "reject")]);
    let key = ("x-api-key", token.as_str());
    for (line, headers, status, reason) in [
        ("GET /timbr/api/x", &[JSON][..], 401, "api_key_missing"),
        ("GET /timbr/api/x", &[JSON, ("x-api-key", "tk_bad")], 401, "api_key_unknown"),
        ("GET /timbr/api/x", &[JSON, ("x-api-key", "")], 401, "api_key_malformed"),
        ("GET /timbr/api/x", &[JSON, ("x-api-key", &format!("{token},x"))], 401, "api_key_malformed"),
        ("GET /timbr/api/x", &[JSON, key, key], 400, "field_repeated"),
        ("GET /timbr/api/x", &[JSON, key, ("x_api_key", "tk_bad")], 400, "field_ambiguous"),
        ("GET /timbr/api/x", &[key], 400, "content_type_missing"),
        ("GET /timbr/api/x", &[("Content-Type", "text/html"), key], 415, "content_type_unsupported"),
        ("POST /timbr/api/x", &[("Content-Type", "application/text"), key], 415, "content_type_unsupported"),
        ("GET /timbr/api/x", &[JSON, JSON, key], 400, "field_repeated"),
        ("GET /timbr/api/x", &[JSON, key, ("Connection", "x-api-key")], 400, "connection_names_policy_field"),
        ("GET /", &[JSON, key], 404, "not_found"),
        ("GET /timbr/server/", &[JSON, key], 404, "not_found"),
        ("GET /metrics", &[JSON, key], 404, "not_found"),
        ("OPTIONS /timbr/api/x", &[JSON, key], 405, "method_not_allowed"),
        ("TRACE /timbr/api/x", &[JSON, key], 405, "method_not_allowed"),
        ("GET //timbr/api/x", &[JSON, key], 400, "request_line_ambiguous"),
        ("GET /timbr/openapi/../api/x", &[JSON, key], 400, "request_line_ambiguous"),
        ("GET /timbr/api/%2e%2e/x", &[JSON, key], 400, "request_line_ambiguous"),
        ("GET http://other/timbr/api/x", &[JSON, key], 400, "request_line_ambiguous"),
        ("GET /timbr/api/x", &[JSON, ("X-Original-URL", "/timbr/api/get_token")], 401, "api_key_missing"),
    ] {
        let response = gateway.client().send(line, headers, b"");
        assert_eq!((response.status, response.reason().as_str()), (status, reason), "{line} {headers:?}");
    }
    assert!(upstream.log().is_empty(), "{:?}", upstream.log());
}

#[test]
fn a_valid_request_is_forwarded_on_every_route() {
    let (upstream, gateway, token) = setup(&[]);
    for (line, content_type) in [
        ("GET /timbr/api/get_ontologies/", "application/json"),
        ("POST /timbr/api/query/", "application/json; charset=utf-8"),
        ("POST /timbr/openapi/ontology/o/query?datasource=d", "application/text"),
        ("POST /timbr/openapi/ontology/o/query", "text/plain;charset=utf-8"),
        ("GET /timbr/openapi/get-async-results/1", "application/json"),
    ] {
        let headers = [("Content-Type", content_type), ("x-api-key", token.as_str())];
        assert_eq!(gateway.client().send(line, &headers, b"").status, 200, "{line}");
    }
    assert_eq!(upstream.log().len(), 5);
}

#[test]
fn routes_can_be_changed_and_added() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("gateway.yaml");
    let routes = "routes:\n  - {name: api, methods: [GET]}\n  - {name: openapi, enabled: false}\n  \
                  - {name: csv, prefix: /csv/, content_types: [text/csv]}\n";
    std::fs::write(&file, routes).expect("written");
    let (_, gateway, token) = setup(&[("CONFIG", file.to_str().expect("text"))]);
    let send = |line: &str, content_type: &str| {
        gateway.client().send(line, &[("Content-Type", content_type), ("x-api-key", &token)], b"")
    };
    assert_eq!(send("GET /timbr/api/x", "application/json").status, 200);
    let refused = send("POST /timbr/api/x", "application/json");
    assert_eq!((refused.status, refused.header("allow")), (405, "GET"));
    assert_eq!(send("POST /timbr/openapi/x", "application/json").status, 404);
    assert_eq!(send("PUT /csv/x", "text/csv").status, 200);
    assert_eq!(send("PUT /csv/x", "application/json").status, 415);
}

/// Ambiguous framing: the response is 400 or none, and the connection ends.
#[test]
fn invalid_framing_ends_the_connection_and_is_not_forwarded() {
    let (upstream, gateway, token) = setup(&[]);
    let head =
        format!("POST /timbr/api/x HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nx-api-key: {token}\r\n");
    for framing in [
        "Content-Length: +3\r\n\r\nabc",
        "Content-Length: 3, 3\r\n\r\nabc",
        "Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        "Content-Length: \r\n\r\n",
        "Content-Length: 99999999999999999999\r\n\r\n",
        "Transfer-Encoding: identity, chunked2\r\n\r\n",
        "Transfer-Encoding: gzip\r\n\r\n",
        "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        "X: a\r\n b\r\n\r\n",
        ": x\r\n\r\n",
        "X\u{0}: y\r\n\r\n",
    ] {
        let mut client = Client::connect(gateway.http());
        client.write(format!("{head}{framing}").as_bytes());
        if let Some(response) = client.read_head() {
            assert_eq!(response.status, 400, "{framing:?}");
        }
        client.read_bytes(4096);
        assert!(client.is_closed(), "{framing:?}");
    }
    assert!(upstream.log().is_empty(), "{:?}", upstream.log());
}

#[test]
fn heads_are_limited_in_size_and_headers() {
    let (upstream, gateway, token) = setup(&[]);
    let (long, many) = ("a".repeat(70_000), "x: y\r\n".repeat(101));
    let host = "h".repeat(12_000);
    for (target, headers, status) in [
        (&*format!("http://{host}/timbr/api/x"), String::new(), 414),
        ("/timbr/api/x", format!("x: {long}\r\n"), 431),
        ("/timbr/api/x", many, 431),
        (&*format!("/timbr/api/{long}"), String::new(), 414),
    ] {
        let mut client = gateway.client();
        let host = if target.starts_with('/') { "h" } else { &host };
        client.write(format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n").as_bytes());
        client.write(format!("Content-Type: application/json\r\nx-api-key: {token}\r\n{headers}\r\n").as_bytes());
        assert_eq!(client.read_head().expect("a response").status, status);
    }
    assert!(upstream.log().is_empty());
}

#[test]
fn bodies_are_limited_with_and_without_a_length() {
    let (upstream, gateway, token) = setup(&[("LIMITS_BODY", "1KiB")]);
    let headers = [JSON, ("x-api-key", token.as_str())];
    let mut client = gateway.client();
    assert_eq!(client.send("POST /timbr/api/x", &headers, &[b'x'; 1024]).status, 200);
    let refused = client.send("POST /timbr/api/x", &headers, &[b'x'; 1025]);
    assert_eq!((refused.status, refused.reason().as_str()), (413, "request_body_too_large"));

    let headers = [headers[0], headers[1], ("Transfer-Encoding", "chunked")];
    let mut client = gateway.begin("POST /timbr/api/x", &headers, b"");
    client.write(format!("400\r\n{}\r\n1\r\nx\r\n0\r\n\r\n", "x".repeat(1024)).as_bytes());
    assert_eq!(client.read_response().status, 413);
    assert_eq!(upstream.log().len(), 1, "no rejected request was forwarded completely");
}
