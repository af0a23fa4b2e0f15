//! Ontologies, users and routes that an operator has stopped.

use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::client::{JSON, Response};
use crate::support::gateway::{Gateway, setup};
use crate::support::program::Program;
use crate::support::upstream::Upstream;
use crate::support::wait_until;

const SALES: &str = "POST /timbr/openapi/ontology/sales/query";
const HR: &str = "POST /timbr/openapi/ontology/hr/query";
const NOW: u64 = 1_900_000_000;

/// The exit code and the output of a command.
fn run(gateway: &Gateway, arguments: &[&str]) -> (Option<i32>, String) {
    let output = gateway.command(arguments);
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.code(), text)
}

fn send(gateway: &Gateway, line: &str, headers: &[(&str, &str)], body: &str) -> Response {
    gateway.client().send(line, &[&[JSON], headers].concat(), body.as_bytes())
}

#[test]
fn a_stopped_ontology_receives_the_text_of_the_operator_until_it_is_resumed() {
    let upstream = Upstream::start();
    let gateway = Gateway::start_at(&format!("http://{}", upstream.address()), &[], NOW);
    let token = gateway.token();
    let key = [("x-api-key", token.as_str())];
    assert_eq!(run(&gateway, &["stopped"]), (Some(0), "Nothing is stopped.\n".to_owned()));
    let why = "Sales is loaded again until 14:00; \"ask\" Ann.";
    let (code, text) = run(&gateway, &["stop", "ontology", "sales", "--why", why, "--for", "2h"]);
    assert!(code == Some(0) && text.contains("until 2030-03-17T") && text.contains("in memory"), "{text}");

    let stopped = send(&gateway, SALES, &[key[0], ("x-request-id", "stopped-1")], "SELECT 1");
    assert_eq!((stopped.status, stopped.reason().as_str()), (503, "stopped_by_operator"));
    assert_eq!(stopped.json()["data"], why);
    let wait: u64 = stopped.header("retry-after").parse().expect("seconds");
    assert!((7000..=7200).contains(&wait), "{wait}");
    let in_body = |ontology: &str| json!({"query": "SELECT 1", "ontology_name": ontology}).to_string();
    assert_eq!(send(&gateway, "POST /timbr/api/query/", &key, &in_body("sales")).status, 503);
    assert!(upstream.log().is_empty(), "nothing arrives at the backend");
    for (line, body) in [
        (HR, "SELECT 1".to_owned()),
        ("POST /timbr/api/query/", in_body("hr")),
        ("POST /timbr/api/query/", "{}".to_owned()),
        ("GET /timbr/api/get_ontologies/", String::new()),
    ] {
        assert_eq!(send(&gateway, line, &key, &body).status, 200, "{line} {body}");
    }
    let (_, explained) = run(&gateway, &["explain", "stopped-1"]);
    assert!(
        explained.contains("ontology sales is stopped") && explained.contains("timbr-gateway resume"),
        "{explained}"
    );
    let (_, listed) = run(&gateway, &["stopped"]);
    assert!(listed.contains("ontology  sales") && listed.contains(why), "{listed}");

    let resumed = (Some(0), "Resumed ontology sales.\n".to_owned());
    assert_eq!(run(&gateway, &["resume", "ontology", "sales"]), resumed);
    assert_eq!(send(&gateway, SALES, &key, "SELECT 1").status, 200);
    let not_stopped = (Some(4), "The ontology sales was not stopped.\n".to_owned());
    assert_eq!(run(&gateway, &["resume", "ontology", "sales"]), not_stopped);
}

/// A misspelled name must not look like a stop that has ended.
#[test]
fn the_log_says_that_something_was_resumed_only_if_it_was_stopped() {
    let (program, lines) = Program::start_logged(Upstream::start().address(), &[("LISTEN_ADMIN", "127.0.0.1:0")]);
    for (line, body) in [
        ("POST /stop", r#"{"kind":"ontology","name":"sales","why":"Wait."}"#),
        ("POST /resume", r#"{"kind":"ontology","name":"salse"}"#),
        ("POST /resume", r#"{"kind":"ontology","name":"sales"}"#),
    ] {
        assert_eq!(program.admin(line, body).status, 200, "{body}");
    }
    let is_resumed = |line: &Value| line["message"] == "resumed by an operator";
    lines.expect("a line", |line| is_resumed(line) && line["stopped"] == "ontology sales");
    assert_eq!(lines.matching(is_resumed).len(), 1);
}

#[test]
fn requests_that_wait_are_stopped_too() {
    let (upstream, open) = Upstream::gate();
    let gateway = Gateway::start(upstream.address(), &[("UPSTREAM_REQUESTS", "1")]);
    let [alice, bob] = ["alice", "bob"].map(|user| gateway.token_of(user, "secret"));
    let send_with = |headers: &[(&str, &str)], line: &str, key: &str, body: &str| {
        gateway.begin(line, &[headers, &[JSON, ("x-api-key", key)]].concat(), body.as_bytes())
    };
    let send = |line: &str, key: &str, body: &str| send_with(&[], line, key, body);
    let mut running = send(SALES, &alice, "SELECT 1");
    wait_until("it runs", || upstream.log().len() == 1);
    let in_body = json!({"query": "SELECT 1", "ontology_name": "sales"}).to_string();
    let queued = [
        (send(SALES, &alice, "SELECT 1"), 503),
        (send_with(&[("x-ontology", "hr")], SALES, &alice, "SELECT 1"), 503),
        (send("POST /timbr/api/query/", &alice, &in_body), 503),
        (send("GET /timbr/api/x", &bob, ""), 503),
        (send(HR, &alice, "SELECT 1"), 200),
    ];
    wait_until("they wait", || gateway.metric("timbr_gateway_requests_queued") == 5.0);
    run(&gateway, &["stop", "ontology", "sales", "--why", "Wait."]);
    run(&gateway, &["stop", "user", "bob", "--why", "Wait."]);
    open.store(true, Ordering::SeqCst);
    assert_eq!(running.read_response().status, 200);
    for (mut client, status) in queued {
        let response = client.read_response();
        assert_eq!(response.status, status, "{response:?}");
    }
    assert_eq!(upstream.log().len(), 2, "the backend gets none that was stopped");
    let top = || serde_json::from_str::<Value>(&run(&gateway, &["top", "--json"]).1).expect("JSON");
    wait_until("they are counted", || top()["reasons"].to_string().contains("stopped_by_operator"));
    let routes = top()["routes"].take();
    let is_failed = |route: &Value| route["failed"] != 0;
    assert!(!routes.as_array().expect("routes").iter().any(is_failed), "they were stopped on purpose: {routes}");
}

#[test]
fn a_stop_ends_by_itself_and_without_an_end_names_no_time() {
    let gateway = Gateway::start_at(&format!("http://{}", Upstream::start().address()), &[], NOW);
    let token = gateway.token();
    let key = [("x-api-key", token.as_str())];
    run(&gateway, &["stop", "ontology", "sales", "--why", "Wait.", "--for", "10m"]);
    run(&gateway, &["stop", "ontology", "hr", "--why", "Gone."]);
    assert_eq!(send(&gateway, SALES, &key, "SELECT 1").status, 503);
    let stopped = send(&gateway, HR, &key, "SELECT 1");
    assert!(stopped.status == 503 && stopped.all("retry-after").is_empty(), "{stopped:?}");
    gateway.clock.advance(Duration::from_secs(601));
    assert_eq!(send(&gateway, SALES, &key, "SELECT 1").status, 200);
    assert_eq!(send(&gateway, HR, &key, "SELECT 1").status, 503);
}

#[test]
fn a_stopped_user_has_no_way_in_and_others_do() {
    let upstream = Upstream::start();
    let options =
        [("AUTH_TRUST_SALT_HOLDER", "true"), ("IMPERSONATION_RULES", "[{users: service, act_as: [alice, bob]}]")];
    let gateway = Gateway::start(upstream.address(), &options);
    let [alice, bob, service] = ["alice", "bob", "service"].map(|user| gateway.token_of(user, "secret"));
    let (code, text) = run(&gateway, &["stop", "user", "alice", "--why", "Call 4711."]);
    assert_eq!(code, Some(0), "{text}");
    let acting_as = |user| [("x-api-key", service.as_str()), ("x-api-impersonate-user", user)];
    for headers in [&[("x-api-key", alice.as_str())][..], &acting_as("alice")] {
        let refused = send(&gateway, SALES, headers, "SELECT 1");
        assert_eq!(refused.rejection(), (503, "stopped_by_operator".into()), "{headers:?}");
    }
    let refused = gateway.login("alice", "secret");
    assert_eq!((refused.status, refused.reason().as_str()), (503, "stopped_by_operator"));
    assert!(!refused.text().contains("tk_"));
    assert!(upstream.log().is_empty(), "nothing arrives at the backend");
    for headers in [&[("x-api-key", bob.as_str())][..], &acting_as("bob")] {
        assert_eq!(send(&gateway, SALES, headers, "SELECT 1").status, 200, "{headers:?}");
    }
    run(&gateway, &["resume", "user", "alice"]);
    assert_eq!(gateway.login("alice", "secret").status, 200);
}

#[test]
fn a_route_is_stopped_by_its_name_and_so_are_logins() {
    let (_, gateway, token) = setup(&[]);
    let key = [("x-api-key", token.as_str())];
    for route in ["openapi", "get_token"] {
        assert_eq!(run(&gateway, &["stop", "route", route, "--why", "Migration."]).0, Some(0), "{route}");
    }
    assert_eq!(send(&gateway, SALES, &key, "SELECT 1").reason(), "stopped_by_operator");
    assert_eq!(gateway.login("bob", "secret").reason(), "stopped_by_operator");
    assert_eq!(send(&gateway, "GET /timbr/api/x", &key, "").status, 200);
    let (code, text) = run(&gateway, &["stop", "route", "opnapi", "--why", "x"]);
    assert!(code == Some(1) && text.contains("routes are ") && text.contains("openapi"), "{text}");
    for arguments in [
        &["stop", "table", "x", "--why", "y"][..],
        &["stop", "user", "alice"],
        &["stop", "user", "alice", "--why", "", "--for", "1h"],
        &["stop", "user", "alice", "--why", "x", "--for", "31d"],
        &["stop", "user", "", "--why", "x"],
    ] {
        assert_ne!(run(&gateway, arguments).0, Some(0), "{arguments:?}");
    }
}
