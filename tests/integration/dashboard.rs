//! The dashboard, its event stream, and who may not see them.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::bearer::SALT;
use crate::support::client::{Client, JSON, Response};
use crate::support::gateway::{Gateway, setup};
use crate::support::upstream::Upstream;
use crate::support::wait_until;

/// Sends a request as a local browser does; the caller reads the response.
fn ask(gateway: &Gateway, path: &str) -> Client {
    let mut client = Client::connect(gateway.admin());
    client.write(format!("GET {path} HTTP/1.1\r\nHost: localhost:1\r\n\r\n").as_bytes());
    client
}

fn get(gateway: &Gateway, path: &str) -> Response {
    ask(gateway, path).read_response()
}

#[test]
fn the_page_is_self_contained_with_a_strict_content_security_policy() {
    let gateway = Gateway::start(Upstream::start().address(), &[]);
    for (path, media_type, part) in [
        ("/", "text/html; charset=utf-8", "<!doctype html>"),
        ("/dashboard", "text/html; charset=utf-8", "<noscript>"),
        ("/dashboard.css", "text/css; charset=utf-8", "prefers-color-scheme"),
        ("/dashboard.js", "text/javascript; charset=utf-8", "\"use strict\""),
        ("/dashboard-queries.js", "text/javascript; charset=utf-8", "\"use strict\""),
        ("/dashboard.svg", "image/svg+xml", "<svg"),
    ] {
        let response = get(&gateway, path);
        assert_eq!((response.status, response.header("content-type")), (200, media_type), "{path}");
        assert!(response.text().contains(part), "{path}");
        let policy = response.header("content-security-policy");
        assert!(policy.starts_with("default-src 'none';") && policy.contains("frame-ancestors 'none'"), "{policy}");
        assert!(!policy.contains("unsafe") && !policy.contains("http"), "{policy}");
        assert_eq!(response.header("x-content-type-options"), "nosniff");
        assert_eq!(response.header("cache-control"), "no-store");
        // The SVG namespace is not an address that a browser requests.
        let others = response.text().replace("http://www.w3.org/2000/svg", "");
        assert!(!others.contains("http://") && !others.contains("https://"), "{path} refers to a different server");
    }
    let page = get(&gateway, "/");
    assert!(!page.text().contains(" style=") && !page.text().contains(" onclick="));
}

#[test]
fn a_request_for_a_different_host_is_rejected() {
    let gateway = Gateway::start(Upstream::start().address(), &[]);
    for path in ["/", "/dashboard.js", "/overview", "/events"] {
        // This client sends the host `gateway.test`.
        let response = Client::connect(gateway.admin()).send(&format!("GET {path}"), &[], b"");
        assert_eq!(response.status, 403, "{path}");
    }
}

#[test]
fn the_overview_shows_the_state_without_secrets() {
    let (upstream, gateway, token) = setup(&[]);
    gateway.query(&token);
    gateway.client().send("GET /timbr/api/x?sql=planted", &[JSON], b"");
    wait_until("the history contains both", || {
        let told = get(&gateway, "/overview").json();
        told["traffic"]["minute"]["refused"] == 1 && told["traffic"]["minute"]["answered"] == 2
    });
    let response = get(&gateway, "/overview");
    let told = response.json();
    assert_eq!((&told["state"]["phase"], &told["state"]["ready"]), (&"serving".into(), &true.into()));
    assert_eq!(told["attention"], Value::Array(vec![]));
    assert_eq!(told["traffic"]["fine"]["reasons"][0]["reason"], "api_key_missing");
    assert!(told["traffic"]["minute"]["p95"].as_f64().is_some_and(|millis| millis > 0.0), "{told}");
    assert_eq!(told["refusals"][0]["path"], "/timbr/api/x");
    assert_eq!(told["upstreams"]["endpoints"][0]["address"], upstream.address().to_string());
    assert_eq!(told["certificates"][0]["self_signed"], true);
    assert_eq!((&told["store"]["kind"], &told["store"]["up"]), (&"memory".into(), &true.into()));
    let options = told["configuration"]["options"].as_array().expect("a list");
    let salt = options.iter().find(|option| option["key"] == "api_auth_salt").expect("the salt is named");
    assert_eq!((&salt["value"], &salt["origin"]), (&Value::Null, &"variable API_AUTH_SALT".into()));
    for secret in [SALT, &token, "planted"] {
        assert!(!response.text().contains(secret), "{secret}");
    }
}

/// Reads chunks until the text contains `part`.
fn heard(events: &mut Client, so_far: &mut String, part: &str) {
    let begun = Instant::now();
    while !so_far.contains(part) {
        assert!(begun.elapsed() < Duration::from_secs(20), "no {part} in {so_far}");
        match events.read_chunk() {
            Some(chunk) => *so_far += std::str::from_utf8(&chunk).expect("text"),
            None => panic!("it ended without {part}: {so_far}"),
        }
    }
}

#[test]
fn the_event_stream_sends_the_full_state_and_then_changes_until_the_drain() {
    let gateway = Gateway::start(Upstream::start().address(), &[("DRAIN_DELAY", "1s")]);
    let mut events = ask(&gateway, "/events");
    assert_eq!(events.read_head().expect("a response").header("content-type"), "text/event-stream");
    let mut text = String::new();
    for section in ["state", "traffic", "attention", "refusals", "upstreams", "certificates", "store", "configuration"]
    {
        heard(&mut events, &mut text, &format!("event: {section}\n"));
    }
    text.clear();
    gateway.client().send("GET /timbr/api/x", &[JSON, ("x-request-id", "heard-of")], b"");
    heard(&mut events, &mut text, "heard-of");
    assert!(!text.contains("event: configuration"), "unchanged state is not sent again");
    text.clear();
    gateway.begin_shutdown();
    heard(&mut events, &mut text, "\"phase\":\"draining\"");
    while let Some(chunk) = events.read_chunk() {
        text += std::str::from_utf8(&chunk).expect("text");
    }
    gateway.wait();
}

#[test]
fn event_streams_are_limited_and_do_not_block_probes() {
    let gateway = Gateway::start(Upstream::start().address(), &[]);
    let listeners: Vec<_> = (0..16)
        .map(|_| {
            let mut events = ask(&gateway, "/events");
            assert_eq!(events.read_head().expect("a response").status, 200);
            events
        })
        .collect();
    assert_eq!(get(&gateway, "/events").status, 503);
    assert_eq!(get(&gateway, "/readyz").status, 200);
    drop(listeners);
    wait_until("a new stream is accepted", || {
        ask(&gateway, "/events").read_head().is_some_and(|response| response.status == 200)
    });
}

#[test]
fn the_busiest_callers_and_the_reasons_are_listed() {
    let rules = "[{name: flood, requests_per_second: 0.01, burst: 2}]";
    let gateway = Gateway::start(Upstream::start().address(), &[("LIMITS_RULES", rules)]);
    let (alice, bob) = (gateway.token(), gateway.token_of("bob", "secret"));
    let send = |token: &str| gateway.query(token).status;
    assert_eq!([send(&alice), send(&alice), send(&alice), send(&bob)], [200, 200, 429, 200]);
    let row = |kind: &str, name: &str| {
        let top = get(&gateway, "/top").json();
        let rows = top[kind].as_array().cloned().unwrap_or_default();
        rows.into_iter().find(|row| row["name"] == name).unwrap_or_default()
    };
    // With the login of each user.
    wait_until("the requests are counted", || {
        let of_users = row("users", "alice")["requests"] == 4 && row("users", "bob")["requests"] == 2;
        // Counted apart, and so perhaps one sample later.
        of_users && row("routes", "api")["requests"] == 4
    });
    let alices = row("users", "alice");
    assert_eq!(
        (&alices["rejected"], &alices["failed"], &alices["reason"]),
        (&1.into(), &0.into(), &"rate_limited".into())
    );
    assert_eq!(row("addresses", "127.0.0.1")["requests"], 6);
    assert_eq!(row("reasons", "rate_limited")["requests"], 1);
    let output = gateway.command(&["top"]);
    let text = String::from_utf8(output.stdout).expect("text");
    let first = text.lines().skip_while(|line| !line.starts_with("USER")).nth(1).unwrap_or_default();
    assert!(first.starts_with("alice") && first.ends_with("rate_limited"), "{text}");
}

#[test]
fn the_banner_names_rejections_lock_outs_and_stops() {
    let gateway = Gateway::start(Upstream::start().address(), &[("LIMITS_FAILURES_PER_ADDRESS", "3")]);
    let overview = || get(&gateway, "/overview").json();
    wait_until("nothing needs attention", || overview()["attention"] == serde_json::json!([]));
    assert_eq!(overview()["state"]["usable"], true);
    for _ in 0..30 {
        gateway.client().send("POST /timbr/api/get_token", &[JSON, ("Authorization", "Bearer guess")], b"");
    }
    let stop = r#"{"kind":"user","name":"alice b","why":"Maintenance."}"#;
    assert_eq!(gateway.admin_command("POST /stop", stop).status, 200);
    let has = |text: &str| overview()["attention"].to_string().contains(text);
    assert!(has("Stopped by an operator: user alice b") && has("Maintenance."), "{}", overview()["attention"]);
    assert!(has("`timbr-gateway resume user 'alice b'`"), "{}", overview()["attention"]);
    wait_until("the rejections are counted", || has("% of the requests of the last minute were rejected"));
    wait_until("the lock-out is shown", || has("Clients are locked out after failed logins"));
}

#[test]
fn the_banner_names_exhausted_memory() {
    let gateway = Gateway::start(Upstream::start().address(), &[("LIMITS_MEMORY", "1MiB")]);
    wait_until("it is shown without any request", || {
        get(&gateway, "/overview").json()["attention"].to_string().contains("Memory is exhausted")
    });
}

/// Such clients get no response, so nothing else counts them.
#[test]
fn the_banner_names_refused_connections() {
    let gateway = Gateway::start(Upstream::start().address(), &[("LIMITS_CONNECTIONS", "1")]);
    let mut first = gateway.client();
    first.write(b"GET / HTTP/1.1\r\n");
    wait_until("the refused connections are shown", || {
        drop(gateway.client());
        get(&gateway, "/overview").json()["attention"].to_string().contains("client connections were refused")
    });
}
