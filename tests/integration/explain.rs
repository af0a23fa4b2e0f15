//! Operators can read why a request was rejected, without any value that a client sent.

use serde_json::Value;

use crate::support::client::{Client, JSON};
use crate::support::gateway::{Gateway, setup};
use crate::support::upstream::Upstream;

/// Runs the program against a gateway; returns exit code and output.
fn said(gateway: &Gateway, arguments: &[&str]) -> (i32, String) {
    let output = gateway.command(arguments);
    let text = [output.stdout, output.stderr].concat();
    (output.status.code().expect("it ends"), String::from_utf8(text).expect("text"))
}

#[test]
fn a_rejection_is_explained_by_its_id() {
    let (_, gateway, token) = setup(&[("WORKERS", "2")]);
    let trace = ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
    let key = ("x-api-key", token.as_str());
    let refused = gateway.client().send(
        "GET /timbr/api/q/sales?sql=1",
        &[JSON, key, key, trace, ("x-request-id", "a/b+c=1")],
        b"",
    );
    assert_eq!(refused.reason(), "field_repeated");

    let told = gateway.get("/explain/a%2Fb+c=1");
    assert_eq!(told["refusals"].as_array().map(Vec::len), Some(1), "{told}");
    let rejection = &told["refusals"][0];
    for (name, value) in [
        ("request_id", "a/b+c=1"),
        ("trace_id", "4bf92f3577b34da6a3ce929d0e0e4736"),
        ("client", "127.0.0.1"),
        ("method", "GET"),
        ("path", "/timbr/api/q/sales"),
        ("route", "api"),
        ("reason", "field_repeated"),
        ("step", "screen"),
        ("field", "x-api-key"),
    ] {
        assert_eq!(rejection[name], value, "{name}");
    }
    assert_eq!(rejection["status"], 400);
    assert!(rejection["advice"].as_str().is_some_and(|advice| advice.contains("may occur only once")), "{rejection}");
    let trace: Vec<_> =
        rejection["trace"].as_array().expect("steps").iter().map(|s| (&s["step"], &s["outcome"])).collect();
    assert_eq!(trace.last(), Some(&(&"screen".into(), &"refused".into())));
    assert!(trace[..trace.len() - 1].iter().all(|(_, outcome)| *outcome == "passed"), "{trace:?}");

    let (code, text) = said(&gateway, &["explain", "a/b+c=1"]);
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("rejected with 400 field_repeated") && text.contains("screen refused"), "{text}");
    let (code, text) = said(&gateway, &["explain", "never-seen"]);
    assert!(code == 1 && text.contains("none of the last 1000 rejections has this request id"), "{text}");
}

#[test]
fn the_user_of_a_rejection_is_shown_if_known() {
    let rules = "authorization:\n  mode: enforce\n  rules:\n    - {users: [bob], methods: [GET]}\n";
    let gateway = Gateway::start_with_file(Upstream::start().address(), rules, &[]);
    let token = gateway.token();
    let refused = gateway.query(&token);
    assert_eq!(refused.reason(), "not_authorized");
    let rejection = &gateway.get("/refusals?user=alice&reason=not_authorized")["refusals"][0];
    let fingerprint = &gateway.get("/tokens?user=alice")["tokens"][0]["fingerprint"];
    assert_eq!((&rejection["user"], &rejection["key"]), (&"alice".into(), fingerprint));
    assert_eq!((&rejection["step"], &rejection["rules"][0]), (&"authorize".into(), &"authorization.rules".into()));
    assert_eq!(gateway.get("/refusals?user=bob")["refusals"], Value::Array(vec![]));
}

#[test]
fn parse_errors_and_upstream_failures_are_explained() {
    let gateway = Gateway::start(
        std::net::SocketAddr::from(([127, 0, 0, 1], 1)),
        &[("TOKENS_FOREIGN", "forward"), ("UPSTREAM_CONNECT_TIMEOUT", "1s")],
    );
    let mut broken = gateway.client();
    broken.write(b"GET /timbr/api/x HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\n");
    assert_eq!(broken.read_response().reason(), "request_malformed");
    let unreachable = gateway.query("tk_1");
    assert_eq!(unreachable.reason(), "upstream_unreachable");
    let (_, listed) = said(&gateway, &["explain", "--limit", "2", "--json"]);
    let listed: Value = serde_json::from_str(&listed).expect("JSON");
    let told = |at: usize| (listed[at]["reason"].as_str(), listed[at]["step"].as_str());
    assert_eq!(told(0), (Some("upstream_unreachable"), Some("upstream")), "newest first");
    assert_eq!(told(1), (Some("request_malformed"), Some("read")));
    assert!(listed[1]["detail"].is_string() && listed[0]["key"].is_string(), "{listed}");
}

#[test]
fn explanations_contain_no_secrets() {
    let (_, gateway, token) = setup(&[("TOKENS_FOREIGN", "reject")]);
    let key = ("x-api-key", token.as_str());
    let planted = "planted7Secret";
    let in_query = format!("GET /timbr/api/x?sql={planted}");
    let named = format!("x_{planted}");
    let basic = format!("Basic {planted}");
    let bearer = format!("Bearer {planted}");
    let line = "GET /timbr/api/x";
    for (line, headers) in [
        (line, vec![JSON, ("x-api-key", planted)]),
        (line, vec![JSON, ("x-api-key", &*format!("{planted},{planted}"))]),
        (line, vec![JSON, key, ("x_api_key", planted)]),
        (line, vec![JSON, key, ("x-api-impersonate-user", planted)]),
        (line, vec![JSON, ("x-jwt-token", planted)]),
        (line, vec![JSON, key, ("x-jwt-token", planted)]),
        (line, vec![JSON, key, ("Connection", &*named)]),
        (line, vec![JSON, key, ("Connection", &*format!("{planted} {planted}"))]),
        (line, vec![JSON, key, ("Upgrade", planted)]),
        (line, vec![("Content-Type", planted), key]),
        (line, vec![JSON, ("Authorization", &*basic)]),
        (line, vec![JSON, ("Cookie", planted), ("User-Agent", planted), (&*named, planted)]),
        (&*in_query, vec![JSON]),
        (&*in_query, vec![JSON, ("x-request-id", "a planted7Secret with spaces")]),
        ("POST /timbr/api/get_token", vec![JSON, ("Authorization", &*bearer)]),
        ("POST /timbr/api/get_token?user=planted7Secret", vec![JSON, ("Authorization", &*basic)]),
    ] {
        let response = gateway.client().send(line, &headers, b"");
        assert!(response.status >= 400, "{line} {headers:?}");
    }
    let listed = gateway.get("/refusals?limit=1000");
    let rejections = listed["refusals"].as_array().expect("a list");
    assert_eq!(rejections.len(), 16);
    let mut told = listed.to_string();
    for rejection in rejections {
        told += &gateway.get(&format!("/explain/{}", rejection["request_id"].as_str().expect("an id"))).to_string();
    }
    assert!(!told.contains(planted), "{told}");
    assert!(!told.contains(&token), "{told}");
}

#[test]
fn explanations_are_local_and_bounded() {
    let gateway = Gateway::start(Upstream::start().address(), &[]);
    let mut client = gateway.client();
    for number in 0..1005 {
        let id = format!("flood-{number}");
        assert_eq!(client.send("GET /timbr/api/x", &[JSON, ("x-request-id", &id)], b"").status, 401);
    }
    let all = gateway.get("/refusals?limit=5000");
    let all = all["refusals"].as_array().expect("a list");
    assert_eq!((all.len(), &all[0]["request_id"]), (1000, &"flood-1004".into()));

    // A different name in `Host`, as from a page whose name resolves to this machine (DNS rebinding).
    for path in ["/refusals", "/explain/flood-1004"] {
        let response = Client::connect(gateway.admin()).send(&format!("GET {path}"), &[], b"");
        assert_eq!(response.status, 403, "{path}");
        assert!(!response.text().contains("flood-1004"));
    }
    let response = Client::connect(gateway.admin()).send("GET /refusals?limit=0", &[("x", "y")], b"");
    assert_eq!(response.status, 403, "checked before anything else");
}
