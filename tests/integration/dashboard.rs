//! The operators' page, its events, and who is not shown them.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::bearer::SALT;
use crate::support::client::{Answer, Client};
use crate::support::gateway::Gateway;
use crate::support::upstream::Upstream;
use crate::support::wait_until;

const JSON: (&str, &str) = ("Content-Type", "application/json");

/// What a browser on this machine asks for; the answer is read by the caller.
fn ask(gateway: &Gateway, path: &str) -> Client {
    let mut client = Client::connect(gateway.admin());
    client.write(format!("GET {path} HTTP/1.1\r\nHost: localhost:1\r\n\r\n").as_bytes());
    client
}

fn get(gateway: &Gateway, path: &str) -> Answer {
    ask(gateway, path).read_answer(false)
}

#[test]
fn the_page_brings_all_it_needs_and_lets_nothing_else_in() {
    let gateway = Gateway::start(Upstream::start().address(), &[]);
    for (path, media_type, part) in [
        ("/", "text/html; charset=utf-8", "<!doctype html>"),
        ("/dashboard", "text/html; charset=utf-8", "<noscript>"),
        ("/dashboard.css", "text/css; charset=utf-8", "prefers-color-scheme"),
        ("/dashboard.js", "text/javascript; charset=utf-8", "\"use strict\""),
        ("/dashboard.svg", "image/svg+xml", "<svg"),
    ] {
        let answer = get(&gateway, path);
        assert_eq!((answer.status, answer.field("content-type")), (200, media_type), "{path}");
        assert!(answer.text().contains(part), "{path}");
        let policy = answer.field("content-security-policy");
        assert!(
            policy.starts_with("default-src 'none';") && policy.contains("frame-ancestors 'none'"),
            "{policy}"
        );
        assert!(!policy.contains("unsafe") && !policy.contains("http"), "{policy}");
        assert_eq!(answer.field("x-content-type-options"), "nosniff");
        assert_eq!(answer.field("cache-control"), "no-store");
        // The name of SVG's elements is no address that anybody asks.
        let others = answer.text().replace("http://www.w3.org/2000/svg", "");
        assert!(!others.contains("http://") && !others.contains("https://"), "{path} names another place");
    }
    let page = get(&gateway, "/");
    assert!(!page.text().contains(" style=") && !page.text().contains(" onclick="));
}

#[test]
fn who_names_another_host_is_shown_nothing() {
    let gateway = Gateway::start(Upstream::start().address(), &[]);
    for path in ["/", "/dashboard.js", "/overview", "/events"] {
        // The host of this client is `gateway.test`.
        let answer = Client::connect(gateway.admin()).send(&format!("GET {path}"), &[], b"");
        assert_eq!(answer.status, 403, "{path}");
    }
}

#[test]
fn the_overview_tells_what_is_so_and_no_secret() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(upstream.address(), &[]);
    let token = gateway.token();
    gateway.client().send("GET /timbr/api/x", &[JSON, ("x-api-key", &token)], b"");
    gateway.client().send("GET /timbr/api/x?sql=planted", &[JSON], b"");
    wait_until("the history has both", || {
        let told = get(&gateway, "/overview").json();
        told["traffic"]["minute"]["refused"] == 1 && told["traffic"]["minute"]["answered"] == 2
    });
    let answer = get(&gateway, "/overview");
    let told = answer.json();
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
        assert!(!answer.text().contains(secret), "{secret}");
    }
}

/// Reads chunks until the text holds `part`.
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
fn events_begin_with_everything_and_go_on_with_what_is_new_until_the_drain() {
    let gateway = Gateway::start(Upstream::start().address(), &[("DRAIN_DELAY", "1s")]);
    let mut events = ask(&gateway, "/events");
    assert_eq!(events.read_head().expect("an answer").field("content-type"), "text/event-stream");
    let mut text = String::new();
    for section in
        ["state", "traffic", "attention", "refusals", "upstreams", "certificates", "store", "configuration"]
    {
        heard(&mut events, &mut text, &format!("event: {section}\n"));
    }
    text.clear();
    gateway.client().send("GET /timbr/api/x", &[JSON, ("x-request-id", "heard-of")], b"");
    heard(&mut events, &mut text, "heard-of");
    assert!(!text.contains("event: configuration"), "what is as it was is not told again");
    text.clear();
    gateway.ask_to_stop();
    heard(&mut events, &mut text, "\"phase\":\"draining\"");
    while let Some(chunk) = events.read_chunk() {
        text += std::str::from_utf8(&chunk).expect("text");
    }
    gateway.ended();
}

#[test]
fn only_so_many_listen_at_once_and_probes_still_get_through() {
    let gateway = Gateway::start(Upstream::start().address(), &[]);
    let listeners: Vec<_> = (0..16)
        .map(|_| {
            let mut events = ask(&gateway, "/events");
            assert_eq!(events.read_head().expect("an answer").status, 200);
            events
        })
        .collect();
    assert_eq!(get(&gateway, "/events").status, 503);
    assert_eq!(get(&gateway, "/readyz").status, 200);
    drop(listeners);
    wait_until("there is room again", || {
        ask(&gateway, "/events").read_head().is_some_and(|answer| answer.status == 200)
    });
}
