//! The routes of Timbr's clients, and what a route can say: credentials, media types, pages of other origins, timeouts.

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::support::bearer::basic;
use crate::support::client::{JSON, Response};
use crate::support::gateway::{Gateway, IMPERSONATE};
use crate::support::h2_client::H2Client;
use crate::support::upstream::{AfterRequest, Recorded, Upstream, respond};
use crate::support::wait_until;

const THRIFT: (&str, &str) = ("Content-Type", "application/x-thrift");
const EVENTS: (&str, &str) = ("Accept", "application/json, text/event-stream");

fn send(gateway: &Gateway, line: &str, headers: &[(&str, &str)], body: &[u8]) -> Response {
    gateway.client().send(line, headers, body)
}

#[test]
fn a_user_name_with_an_ontology_reaches_the_backend_unchanged() {
    let upstream = Upstream::start();
    let gateway = Gateway::start_with_file(upstream.address(), "routes: [{name: hive}]\n", &[]);
    let token = gateway.token();
    for path in ["/timbr-server", "/timbr-server/", "/timbr-server/ontology/sales", "/hive2", "/cliservice/"] {
        for user in ["token", "token@sales"] {
            let authorization = basic(user, &token);
            let headers = [THRIFT, ("Authorization", authorization.as_str()), ("Cookie", "hive.server2.auth=x")];
            assert_eq!(send(&gateway, &format!("POST {path}"), &headers, b"\x80\x01").status, 200, "{path} {user}");
            let seen = upstream.log().pop().expect("forwarded");
            assert_eq!((seen.header("authorization"), seen.header("cookie")), (authorization.as_str(), ""), "{path}");
        }
    }
    let count = upstream.log().len();
    for (path, user, more, status, reason) in [
        ("/timbr-server/ontology/hr", "token@sales", &[][..], 400, "ontology_ambiguous"),
        ("/timbr-server", "token@sales", &[("x-ontology", "hr")], 400, "ontology_ambiguous"),
        ("/timbr-server", "alice@sales", &[], 401, "basic_malformed"),
        ("/timbr-server", "token@", &[], 401, "basic_malformed"),
    ] {
        let authorization = basic(user, &token);
        let headers = [&[THRIFT, ("Authorization", authorization.as_str())], more].concat();
        let refused = send(&gateway, &format!("POST {path}"), &headers, b"\x80\x01");
        assert_eq!((refused.status, refused.reason().as_str()), (status, reason), "{user} at {path}");
    }
    let wrong = basic("token", "tk_expired");
    let headers = [THRIFT, ("Authorization", wrong.as_str())];
    let gateway =
        Gateway::start_with_file(upstream.address(), "routes: [{name: hive}]\n", &[("TOKENS_FOREIGN", "reject")]);
    let refused = send(&gateway, "POST /timbr-server", &headers, b"\x80\x01");
    assert!(refused.all("www-authenticate").contains(&"Basic realm=\"timbr\""), "{refused:?}");
    let refused = send(&gateway, "POST /timbr-server", &[THRIFT, ("Cookie", "hive.server2.auth=x")], b"\x80\x01");
    assert_eq!(refused.reason(), "basic_missing");
    assert_eq!(upstream.log().len(), count);
}

#[test]
fn a_cookie_of_the_backend_does_not_reach_a_client_with_basic_credentials() {
    let upstream = Upstream::with_behaviour(|_, stream| {
        let head = "HTTP/1.1 200 OK\r\nSet-Cookie: hive.server2.auth=x\r\nContent-Length: 2\r\n\r\n{}";
        stream.write_all(head.as_bytes()).expect("written");
        AfterRequest::KeepOpen
    });
    let gateway =
        Gateway::start_with_file(upstream.address(), "routes: [{name: hive}]\n", &[("TOKENS_FOREIGN", "forward")]);
    let authorization = basic("token", "tk_any");
    let headers = [THRIFT, ("Authorization", authorization.as_str())];
    let response = send(&gateway, "POST /timbr-server", &headers, b"\x80\x01");
    assert_eq!((response.status, response.header("set-cookie")), (200, ""));
    let response = send(&gateway, "GET /timbr/api/x", &[JSON, ("x-api-key", "tk_any")], b"");
    assert_eq!(response.header("set-cookie"), "hive.server2.auth=x", "the client's own key");
}

#[test]
fn a_bearer_key_is_sent_as_a_key_and_nothing_else_is_accepted_beside_it() {
    let upstream = Upstream::start();
    let gateway = Gateway::start_with_url(&format!("http://{}", upstream.address()), &[("TOKENS_FOREIGN", "reject")]);
    let token = gateway.token();
    let bearer = format!("Bearer {token}");
    let authorization = ("Authorization", bearer.as_str());
    for path in ["/timbr/api/mcp", "/timbr/api/mcp/"] {
        assert_eq!(send(&gateway, &format!("POST {path}"), &[JSON, EVENTS, authorization], b"{}").status, 200);
        let seen = upstream.log().pop().expect("forwarded");
        assert_eq!((seen.header("x-api-key"), seen.header("authorization")), (token.as_str(), ""));
        assert_eq!(seen.header("x-forwarded-user"), "alice");
    }
    assert_eq!(send(&gateway, "DELETE /timbr/api/mcp", &[authorization], b"").status, 200, "no body, no media type");
    let count = upstream.log().len();
    for (line, headers, status, reason) in [
        ("POST /timbr/api/mcp", &[authorization][..], 400, "content_type_missing"),
        ("POST /timbr/api/mcp", &[JSON, ("Authorization", "Bearer tk_wrong")], 401, "api_key_unknown"),
        ("POST /timbr/api/mcp", &[JSON, ("Authorization", "Bearer a.b.c")], 401, "jwt_not_configured"),
        ("POST /timbr/api/mcp", &[JSON, ("Authorization", "Basic dG9rZW46eA==")], 401, "api_key_missing"),
        ("POST /timbr/api/mcp", &[JSON, authorization, ("x-api-key", &token)], 400, "credentials_ambiguous"),
        ("PUT /timbr/api/mcp", &[JSON, authorization], 405, "method_not_allowed"),
        ("POST /timbr/api/query/", &[JSON, authorization], 401, "api_key_missing"),
        ("GET /timbr/api/get_ontologies/", &[("x-api-key", &token)], 400, "content_type_missing"),
    ] {
        let refused = send(&gateway, line, headers, b"{}");
        assert_eq!((refused.status, refused.reason().as_str()), (status, reason), "{line} {headers:?}");
    }
    assert_eq!(upstream.log().len(), count);
}

/// Version 2 of the MCP SDK for Python shows nothing else of a rejection.
#[test]
fn a_rejection_for_mcp_is_also_an_error_of_json_rpc() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(upstream.address(), &[]);
    for (headers, has_error) in [(&[JSON, EVENTS][..], true), (&[JSON, ("Accept", "*/*")], false), (&[JSON], false)] {
        let refused = send(&gateway, "POST /timbr/api/mcp", headers, b"{}");
        assert_eq!((refused.status, refused.reason().as_str()), (401, "api_key_missing"));
        let body = refused.json();
        let error = serde_json::json!({ "code": -32000, "message": body["data"] });
        assert_eq!(body.get("error"), has_error.then_some(&error), "{headers:?}");
        assert_eq!(body["jsonrpc"], if has_error { "2.0".into() } else { serde_json::Value::Null });
    }
}

/// Python's Thrift client parses every body as Thrift, whatever its status.
#[test]
fn a_thrift_client_without_accept_receives_the_rejection_as_an_exception() {
    let upstream = Upstream::start();
    let gateway = Gateway::start_with_file(upstream.address(), "routes: [{name: hive}]\n", &[]);
    for (line, status, reason) in
        [("POST /timbr-server/", 401, "basic_missing"), ("POST /timbr-server/\\", 400, "request_line_ambiguous")]
    {
        for (accept, is_exception) in [(&[][..], true), (&[("Accept", "application/x-thrift")], false)] {
            let refused = send(&gateway, line, &[&[THRIFT], accept].concat(), b"\x80\x01");
            assert_eq!((refused.status, refused.reason().as_str()), (status, reason), "{line}");
            assert_eq!(refused.thrift_exception().is_some(), is_exception, "{line} {accept:?}");
        }
    }
    assert!(send(&gateway, "POST /timbr-server/", &[JSON], b"{}").thrift_exception().is_none(), "no client of Thrift");
}

#[test]
fn agent_logs_are_forwarded_with_their_basic_credentials() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(upstream.address(), &[]);
    let authorization = basic("token", &gateway.token());
    for path in ["/timbr-server/log_agent/running", "/timbr-server/log_benchmark/history"] {
        let headers = [JSON, ("Authorization", authorization.as_str())];
        assert_eq!(send(&gateway, &format!("POST {path}"), &headers, b"{}").status, 200);
        assert_eq!(upstream.log().pop().expect("forwarded").header("authorization"), authorization);
    }
    let headers = [THRIFT, ("Authorization", authorization.as_str())];
    assert_eq!(send(&gateway, "POST /timbr-server/", &headers, b"x").reason(), "not_found", "hive is off");
}

const OPEN: &str = "routes:\n  - {name: hooks, prefixes: [/chatbot, /timbr/api/chatbot/], credentials: [none], \
                    content_types: any, methods: [GET, POST]}\n  - {name: platform}\n";

#[test]
fn a_route_without_credentials_adds_nothing_of_the_gateway() {
    let upstream = Upstream::start();
    let gateway = Gateway::start_with_file(upstream.address(), OPEN, &IMPERSONATE);
    let sender = ("Authorization", "Bearer of.the.sender");
    for path in ["/timbr/api/chatbot/x", "/chatbot", "/login/"] {
        let headers = [
            ("Content-Type", "application/x-www-form-urlencoded"),
            sender,
            ("x-forwarded-user", "mallory"),
            ("x-remote-user", "mallory"),
            ("x_forwarded_user", "mallory"),
            ("x-api-impersonate-user", "mallory"),
            ("x-api-key", "mallory"),
            ("x-jwt-token", "mallory"),
            ("Cookie", "session=own"),
        ];
        assert_eq!(send(&gateway, &format!("POST {path}"), &headers, b"a=%20").status, 200, "{path}");
        let seen = upstream.log().pop().expect("forwarded");
        assert_eq!((seen.header("authorization"), seen.header("cookie")), (sender.1, "session=own"));
        assert_eq!(seen.body, b"a=%20");
        let text = format!("{seen:?}");
        assert!(!text.contains("mallory") && !text.contains("tk_service"), "{text}");
    }
    let count = upstream.log().len();
    for (line, reason) in [
        ("GET /timbr/api/get_ontologies/", "api_key_missing"),
        ("POST /timbr/api/get_token", "bearer_missing"),
        ("GET /Timbr/API/get_ontologies/", "not_found"),
        ("GET /timbr/API", "not_found"),
        ("GET /timbr/api/Chatbot/x", "api_key_missing"),
        ("POST /timbr-server/", "not_found"),
        ("POST /Hive2", "not_found"),
        ("POST /mdx", "not_found"),
        ("DELETE /chatbot/x", "method_not_allowed"),
    ] {
        assert_eq!(send(&gateway, line, &[JSON], b"").reason(), reason, "{line}");
    }
    assert_eq!(upstream.log().len(), count);
}

#[test]
fn requests_without_credentials_have_a_rate_limit_for_each_address() {
    let upstream = Upstream::start();
    let gateway = Gateway::start_with_file(upstream.address(), OPEN, &[("LIMITS_UNAUTHENTICATED_RATE", "1")]);
    let begun = Instant::now();
    let mut responses = (0..1000).map(|_| send(&gateway, "GET /chatbot/x", &[], b""));
    let served = responses.by_ref().take_while(|response| response.status == 200).count();
    assert_eq!(responses.find(|response| response.status != 200).expect("limited").reason(), "rate_limited");
    // One each second on a slow machine.
    let most = 11 + usize::try_from(begun.elapsed().as_secs()).expect("short");
    assert!((10..=most).contains(&served), "a burst of ten: {served}");
    let token = gateway.token();
    assert_eq!(send(&gateway, "GET /timbr/api/x", &[JSON, ("x-api-key", &token)], b"").status, 200);
}

#[test]
fn pages_of_listed_origins_may_read_responses_and_rejections() {
    let upstream = Upstream::with_behaviour(|_, stream| {
        let head = "HTTP/1.1 200 OK\r\nAccess-Control-Allow-Origin: *\r\nContent-Length: 2\r\n\r\n{}";
        stream.write_all(head.as_bytes()).expect("written");
        AfterRequest::KeepOpen
    });
    let file = "routes: [{name: mcp, cors: {origins: ['https://app.test'], max_age: 1h}}]\n";
    let gateway = Gateway::start_with_file(upstream.address(), file, &[("TOKENS_FOREIGN", "forward")]);
    let key = ("x-api-key", "tk_any");
    let (app, other) = (("Origin", "https://app.test"), ("Origin", "https://other.test"));
    let asks = [("Access-Control-Request-Method", "DELETE"), ("Access-Control-Request-Headers", "mcp-session-id")];
    let preflight = send(&gateway, "OPTIONS /timbr/api/mcp", &[&[app][..], &asks].concat(), b"");
    assert_eq!((preflight.status, preflight.header("access-control-allow-origin")), (204, app.1));
    assert_eq!(preflight.header("access-control-allow-methods"), "GET, POST, DELETE");
    assert!(preflight.header("access-control-allow-headers").contains("mcp-session-id"));
    assert_eq!((preflight.header("access-control-max-age"), preflight.header("vary")), ("3600", "origin"));
    let refused = send(&gateway, "OPTIONS /timbr/api/mcp", &[&[other][..], &asks].concat(), b"");
    assert!(refused.headers.iter().all(|(name, _)| !name.to_lowercase().starts_with("access-control-")), "{refused:?}");
    assert!(upstream.log().is_empty());
    let response = send(&gateway, "POST /timbr/api/mcp", &[JSON, key, app], b"{}");
    assert_eq!((response.status, response.header("access-control-allow-origin")), (200, app.1));
    assert!(response.header("access-control-expose-headers").contains("mcp-session-id"));
    let rejection = send(&gateway, "POST /timbr/api/mcp", &[JSON, app], b"{}");
    assert_eq!((rejection.status, rejection.header("access-control-allow-origin")), (401, app.1));
    let response = send(&gateway, "POST /timbr/api/mcp", &[JSON, key, other], b"{}");
    assert_eq!((response.status, response.header("access-control-allow-origin")), (200, ""));
    let response = send(&gateway, "POST /timbr/api/mcp", &[JSON, key], b"{}");
    let headers = ["vary", "access-control-allow-origin"].map(|name| response.header(name));
    assert_eq!((response.status, headers), (200, ["origin", ""]), "a cache may serve it to a page");
    assert_eq!(send(&gateway, "OPTIONS /timbr/api/x", &[&[app][..], &asks].concat(), b"").status, 405, "no cors");
    // Rejections that precede the route.
    let client = H2Client::connect(gateway.https(), gateway.certificate_pem());
    let too_long = format!("GET /timbr/api/mcp?{}", "x".repeat(9000));
    for (line, status) in [(&*too_long, 414), ("PUT /timbr/api/mcp", 405), ("GET /timbr/api/mcp/a;b", 400)] {
        let rejection = client.send(line, &[("origin", app.1)], b"");
        let allowed = rejection.headers.get("access-control-allow-origin").and_then(|value| value.to_str().ok());
        assert_eq!((rejection.status, allowed), (status, Some(app.1)), "{line}");
        let rejection = send(&gateway, line, &[app], b"");
        assert_eq!((rejection.status, rejection.header("access-control-allow-origin")), (status, app.1), "{line}");
    }
    let rejection = client.send("GET /timbr/api/get_token", &[("origin", app.1)], b"");
    assert!(!rejection.headers.contains_key("vary"), "it belongs to no route");
}

#[test]
fn event_streams_need_no_slot_and_have_a_limit_of_their_own() {
    static OPEN: AtomicBool = AtomicBool::new(true);
    let upstream = Upstream::with_behaviour(|seen: &Recorded, stream| {
        if seen.line.starts_with("GET /timbr/api/mcp") {
            wait_until("the stream ends", || !OPEN.load(Ordering::SeqCst));
        }
        respond(stream, 200, "{}")
    });
    let options = [("UPSTREAM_REQUESTS", "1"), ("UPSTREAM_QUEUE", "0"), ("LIMITS_STREAMS_PER_IDENTITY", "2")];
    let (gateway, token) = Gateway::with_token(upstream.address(), &options);
    let key = ("x-api-key", token.as_str());
    let stream = || gateway.begin("GET /timbr/api/mcp", &[("Accept", "text/event-stream"), key], b"");
    let mut streams = [stream(), stream()];
    wait_until("both are open", || upstream.log().len() == 2);
    assert_eq!(send(&gateway, "POST /timbr/api/query/", &[JSON, key], b"{}").status, 200);
    assert_eq!(stream().read_response().reason(), "too_many_streams");
    // A query cannot pass as a stream.
    let as_stream = [JSON, key, ("Accept", "text/event-stream")];
    let mut held = gateway.begin("GET /timbr/api/mcp", &[key], b"");
    wait_until("it holds the slot", || upstream.log().len() == 4);
    assert_eq!(send(&gateway, "GET /timbr/api/q/o/concept/c", &as_stream, b"").reason(), "queue_full");
    OPEN.store(false, Ordering::SeqCst);
    for client in streams.iter_mut().chain([&mut held]) {
        assert_eq!(client.read_response().status, 200);
    }
}

#[test]
fn a_route_has_timeouts_and_a_host_of_its_own() {
    let upstream = Upstream::with_behaviour(|seen, stream| {
        if seen.line.contains("/slow") {
            std::thread::sleep(Duration::from_secs(4));
        }
        respond(stream, 200, "{}")
    });
    let file = "routes:\n  - {name: short, prefix: /short, response_timeout: 2s, host_header: client}\n";
    let gateway = Gateway::start_with_file(upstream.address(), file, &[]);
    let token = gateway.token();
    let headers = [JSON, ("x-api-key", token.as_str())];
    assert_eq!(send(&gateway, "GET /short/slow", &headers, b"").reason(), "upstream_timeout");
    assert_eq!(send(&gateway, "GET /timbr/api/slow", &headers, b"").status, 200);
    assert_eq!(send(&gateway, "GET /short/x", &headers, b"").status, 200);
    let hosts: Vec<_> = upstream.log().iter().map(|seen| seen.header("host").to_owned()).collect();
    assert_eq!(hosts, ["gateway.test".to_owned(), upstream.address().to_string(), "gateway.test".to_owned()]);
}

#[test]
fn a_rejected_mcp_client_finds_the_authorization_server() {
    let upstream = Upstream::start();
    let file = "routes: [{name: mcp-oauth}]\n";
    let gateway = Gateway::start_with_file(upstream.address(), file, &[("TOKENS_FOREIGN", "reject")]);
    for headers in [&[JSON][..], &[JSON, ("Authorization", "Bearer tk_wrong")]] {
        let refused = send(&gateway, "POST /timbr/api/mcp", headers, b"{}");
        let metadata = "http://gateway.test/.well-known/oauth-protected-resource/timbr/api/mcp";
        let expected = format!("Bearer resource_metadata=\"{metadata}\"");
        assert_eq!((refused.status, refused.all("www-authenticate")[1]), (401, &*expected));
    }
    let refused = send(&gateway, "POST /timbr/api/x", &[JSON], b"{}");
    assert_eq!(refused.header("www-authenticate"), "ApiKey realm=\"timbr\"");
    for path in ["oauth-protected-resource/timbr/api/mcp", "oauth-authorization-server", "openid-configuration"] {
        assert_eq!(send(&gateway, &format!("GET /.well-known/{path}"), &[], b"").status, 200, "{path}");
        assert_eq!(upstream.log().pop().expect("forwarded").header("host"), "gateway.test", "URLs are made from it");
    }
    let form = ("Content-Type", "application/x-www-form-urlencoded");
    let client = ("Authorization", "Basic Y2xpZW50OnNlY3JldA==");
    assert_eq!(send(&gateway, "POST /timbr/api/oauth/token", &[form, client], b"grant_type=x").status, 200);
    assert_eq!(upstream.log().pop().expect("forwarded").header("authorization"), client.1);
}

#[test]
fn requests_of_a_session_reach_the_backend_that_issued_its_id() {
    let backend = || {
        Upstream::with_behaviour(|seen, stream| {
            let id = format!("session-of-{}", stream.local_addr().expect("an address").port());
            let is_ours = matches!(seen.header("mcp-session-id"), sent if sent.is_empty() || sent == id);
            let status = if is_ours { "200 OK" } else { "404 Not Found" };
            let head = format!("HTTP/1.1 {status}\r\nMcp-Session-Id: {id}\r\nContent-Length: 2\r\n\r\n{{}}");
            stream.write_all(head.as_bytes()).expect("written");
            AfterRequest::KeepOpen
        })
    };
    let backends = [backend(), backend(), backend()];
    let urls = backends.each_ref().map(|backend| format!("http://{}", backend.address())).join(",");
    let options = [("UPSTREAM_URLS", urls.as_str()), ("TOKENS_FOREIGN", "forward"), ("WORKERS", "2")];
    // As after a restart, or at a different replica.
    let gateways = [Gateway::start_with_url("", &options), Gateway::start_with_url("", &options)];
    let post = |gateway: &Gateway, session: &[(&str, &str)]| {
        send(gateway, "POST /timbr/api/mcp", &[&[JSON, ("x-api-key", "tk_any")], session].concat(), b"{}")
    };
    for number in 0..24 {
        let begun = post(&gateways[number % 2], &[]);
        let id = begun.header("mcp-session-id");
        assert!(id.starts_with("session-of-"), "{begun:?}");
        for gateway in gateways.iter().chain(&gateways) {
            let response = post(gateway, &[("mcp-session-id", id)]);
            assert_eq!((response.status, response.header("mcp-session-id")), (200, id));
        }
    }
    assert!(backends.iter().all(|backend| !backend.log().is_empty()), "sessions are spread");
    let unknown = post(&gateways[0], &[("mcp-session-id", "unknown")]);
    assert_eq!(unknown.status, 404, "the backend's response");
}

#[test]
fn a_route_can_keep_the_requests_of_a_user_on_one_backend() {
    let backends = [Upstream::start(), Upstream::start()];
    let urls = backends.each_ref().map(|backend| format!("http://{}", backend.address())).join(",");
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("gateway.yaml");
    std::fs::write(&file, "routes: [{name: openapi, affinity: user}]\n").expect("written");
    let gateway = Gateway::start_with_path(file, &[("UPSTREAM_URL", ""), ("UPSTREAM_URLS", &urls)]);
    let mut used = [0, 0];
    for user in ["a", "b", "c", "d", "e", "f", "g", "h"] {
        let token = gateway.token_of(user, "secret");
        let before = backends.each_ref().map(|backend| backend.log().len());
        for _ in 0..6 {
            let headers = [JSON, ("x-api-key", token.as_str())];
            assert_eq!(send(&gateway, "POST /timbr/openapi/ontology/o/query", &headers, b"{}").status, 200);
        }
        let grown = [0, 1].map(|index| backends[index].log().len() - before[index]);
        assert!(grown.contains(&6), "{user}: {grown:?}");
        used[usize::from(grown[1] == 6)] += 1;
    }
    assert!(!used.contains(&0), "users are spread: {used:?}");
}
