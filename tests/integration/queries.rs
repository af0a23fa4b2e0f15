//! The query journal: its log lines, its lists, and the cancellation of a query.

use std::io::Read;
use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};

use crate::support::client::Client;
use crate::support::gateway::Gateway;
use crate::support::program::{Lines, Program, run};
use crate::support::upstream::{AfterRequest, Upstream, respond, write};
use crate::support::wait_until;

const QUERY: &str = "POST /timbr/openapi/ontology/sales/query";
const TEXT: (&str, &str) = ("Content-Type", "application/text");
const SQL: &[u8] = b"SELECT name FROM customer WHERE email = 'ada@example.com'";

/// Holds each statement until its client closes its direction, and counts those; the path `/ontology/quick` and all
/// other requests are served at once. With `response_begins`, the head is sent first.
fn slow_backend(response_begins: bool) -> (Upstream, Arc<AtomicUsize>) {
    let noticed = Arc::<AtomicUsize>::default();
    let count = Arc::clone(&noticed);
    let upstream = Upstream::with_behaviour(move |request, stream| {
        if !request.line.contains("/ontology/sales/") {
            return respond(stream, 200, "[]");
        }
        if response_begins {
            write(stream, b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n[");
        }
        if matches!(stream.read(&mut [0]), Ok(0)) {
            count.fetch_add(1, Ordering::SeqCst);
        }
        AfterRequest::Close
    });
    (upstream, noticed)
}

fn running(gateway: &Gateway) -> Vec<Value> {
    gateway.get("/queries/running")["queries"].as_array().expect("a list").clone()
}

fn wait_for_state(gateway: &Gateway, id: &str, state: &str) {
    wait_until(&format!("{id} is {state}"), || {
        running(gateway).iter().any(|query| query["request_id"] == id && query["state"] == state)
    });
}

fn command(gateway: &Gateway, arguments: &[&str]) -> Output {
    gateway.command(&[&["queries"], arguments].concat())
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("text")
}

/// The line of the journal about a request.
fn journal_line(lines: &Lines, id: &str) -> Value {
    lines.expect(&format!("there is a line for {id}"), |line| line["target"] == "query" && line["request_id"] == id)
}

#[test]
fn each_statement_has_one_line_whatever_its_end_and_no_text_by_default() {
    let (upstream, noticed) = slow_backend(false);
    let rules = "[{name: none, users: alice, ontologies: blocked, requests_per_second: 0.1, burst: 1}]";
    let options = [("JOURNAL_ENABLED", "true"), ("LIMITS_RULES", rules)];
    let (program, lines) = Program::start_logged(upstream.address(), &options);
    let token = program.token();
    let send = |ontology: &str, id: &str, content: &[u8]| {
        let line = format!("POST /timbr/openapi/ontology/{ontology}/query");
        let headers = [
            TEXT,
            ("x-api-key", &*token),
            ("x-request-id", id),
            ("user-agent", "python-requests/2.32"),
            ("nested", "false"),
        ];
        Client::connect(program.http).send(&line, &headers, content).status
    };
    assert_eq!(send("quick", "served", SQL), 200);
    let served = journal_line(&lines, "served");
    for (name, value) in [
        ("user", json!("alice")),
        ("ontology", json!("quick")),
        ("class", json!("read")),
        ("client_family", json!("python-requests")),
        ("upstream", json!("default")),
        ("status", json!(200)),
        ("reason", json!("")),
        ("sent", json!(2)),
    ] {
        assert_eq!(served[name], value, "{name} in {served}");
    }
    let fingerprint = served["fingerprint"].as_str().expect("a fingerprint");
    assert_eq!(fingerprint.len(), 16);
    assert!(served["total_ms"].as_f64() >= served["head_ms"].as_f64() && served["queue_ms"].is_number(), "{served}");
    assert_eq!(send("quick", "other-literal", b"select name from customer where email='bob@example.com'"), 200);
    assert_eq!(journal_line(&lines, "other-literal")["fingerprint"], fingerprint);

    assert_eq!(send("quick", "not-understood", b"SELECT 1; DROP TABLE t"), 200);
    let unknown = journal_line(&lines, "not-understood");
    assert_eq!((&unknown["class"], &unknown["fingerprint"]), (&json!("unknown"), &Value::Null));

    assert_eq!((send("blocked", "first", SQL), send("blocked", "rejected", SQL)), (200, 429));
    let rejected = journal_line(&lines, "rejected");
    assert_eq!((&rejected["status"], &rejected["reason"]), (&json!(429), &json!("rate_limited")));
    assert_eq!((&rejected["user"], &rejected["ontology"]), (&json!("alice"), &json!("blocked")));

    let mut leaving = Client::connect(program.http);
    leaving.write_request(QUERY, &[TEXT, ("x-api-key", &*token), ("x-request-id", "left")], SQL);
    wait_until("it has arrived", || upstream.log().iter().any(|request| request.line.contains("/sales/")));
    drop(leaving);
    let left = journal_line(&lines, "left");
    assert_eq!((&left["status"], &left["reason"]), (&json!(499), &json!("client_closed")));
    wait_until("the backend notices it", || noticed.load(Ordering::SeqCst) == 1);

    let get = [("Content-Type", "application/json"), ("x-api-key", &*token), ("x-request-id", "metadata")];
    assert_eq!(Client::connect(program.http).send("GET /timbr/api/get_ontologies/", &get, b"").status, 200);
    assert_eq!(send("quick", "last", SQL), 200);
    journal_line(&lines, "last");
    let text = lines.matching(|_| true).iter().map(Value::to_string).collect::<Vec<_>>().join("\n");
    assert!(!text.contains("example.com") && !text.contains("customer"), "no text of a statement is logged");
    let all = lines.matching(|line| line["target"] == "query");
    assert_eq!(all.len(), 7, "one line for each statement, and none for other requests: {all:?}");
}

#[test]
fn the_text_is_logged_as_far_as_it_is_allowed() {
    let upstream = Upstream::start();
    for (allowed, expected) in [
        ("fingerprint", "SELECT NAME FROM CUSTOMER WHERE EMAIL = ?"),
        ("full", "SELECT name FROM customer WHERE email = 'ada@example.com'"),
    ] {
        let options = [("JOURNAL_ENABLED", "true"), ("JOURNAL_TEXT", allowed)];
        let (program, lines) = Program::start_logged(upstream.address(), &options);
        let headers = [TEXT, ("x-api-key", &*program.token()), ("x-request-id", "q")];
        assert_eq!(Client::connect(program.http).send(QUERY, &headers, SQL).status, 200);
        assert_eq!(journal_line(&lines, "q")["text"], expected);
    }
}

#[test]
fn a_running_and_a_queued_query_are_listed_and_cancelled_on_any_worker() {
    let (upstream, noticed) = slow_backend(false);
    let options = [("JOURNAL_ENABLED", "true"), ("UPSTREAM_REQUESTS", "1"), ("WORKERS", "3")];
    let gateway = Gateway::start(upstream.address(), &options);
    let (alice, bob) = (gateway.token(), gateway.token_of("bob", "secret"));
    let (mut first, mut second) = (gateway.client(), gateway.client());
    first.write_request(QUERY, &[TEXT, ("x-api-key", &*alice), ("x-request-id", "first")], SQL);
    wait_for_state(&gateway, "first", "running");
    second.write_request(QUERY, &[TEXT, ("x-api-key", &*bob), ("x-request-id", "second")], SQL);
    wait_for_state(&gateway, "second", "queued");
    let shown = stdout(&command(&gateway, &["running"]));
    let row = shown.lines().find(|line| line.starts_with("first ")).expect("a row");
    assert!(
        row.contains("running") && row.contains("alice") && row.contains("sales") && row.contains("read"),
        "{shown}"
    );

    // A queued one leaves the queue at once.
    let cancelled = command(&gateway, &["cancel", "second", "--why", "the load comes first"]);
    assert!(cancelled.status.success(), "{cancelled:?}");
    assert_eq!(stdout(&cancelled), "Cancelled 1 query of bob.\n");
    let response = second.read_response();
    assert_eq!((response.status, response.reason().as_str()), (409, "query_cancelled"));
    assert!(response.text().contains("the load comes first"), "{}", response.text());
    let waited = gateway.get("/queries/slow")["queries"][0]["total_ms"].as_f64().expect("milliseconds");
    let explained = gateway.get("/explain/second")["refusals"][0]["after_ms"].as_f64().expect("milliseconds");
    assert!((waited - explained).abs() < 50.0, "{explained} of {waited} ms");
    gateway.expect_metric("timbr_gateway_requests_queued", 0.0);

    // For a running one the backend notices it, and the slot is free.
    assert!(command(&gateway, &["cancel", "first"]).status.success());
    assert_eq!(first.read_response().reason(), "query_cancelled");
    wait_until("the backend notices it", || noticed.load(Ordering::SeqCst) == 1);
    let quick = "POST /timbr/openapi/ontology/quick/query";
    assert_eq!(gateway.client().send(quick, &[TEXT, ("x-api-key", &*alice)], SQL).status, 200, "the slot is free");
    wait_until("nothing is listed", || running(&gateway).is_empty());
    let none = command(&gateway, &["cancel", "first"]);
    assert_eq!(none.status.code(), Some(4), "{none:?}");
    assert_eq!(upstream.log().iter().filter(|request| request.line.contains("/sales/")).count(), 1);
}

#[test]
fn a_response_that_has_begun_is_cut_off_by_a_cancellation() {
    let (upstream, noticed) = slow_backend(true);
    let (gateway, token) =
        Gateway::with_token(upstream.address(), &[("JOURNAL_ENABLED", "true"), ("UPSTREAM_REQUESTS", "1")]);
    let mut client = gateway.begin(QUERY, &[TEXT, ("x-api-key", &*token), ("x-request-id", "begun")], SQL);
    assert_eq!(client.read_head().expect("a head").status, 200);
    assert!(command(&gateway, &["cancel", "begun"]).status.success());
    wait_until("the backend notices it", || noticed.load(Ordering::SeqCst) == 1);
    assert_eq!(client.read_bytes(1), b"[");
    assert!(client.is_closed(), "the client sees that the response is incomplete");
    wait_until("nothing is listed", || running(&gateway).is_empty());
    gateway.expect_metric("timbr_gateway_requests_in_flight", 0.0);
}

/// A backend that does not notice the departure keeps its slot, as for a client that leaves.
#[test]
fn a_cancelled_query_is_listed_as_abandoned_while_the_backend_works_on_it() {
    let (release, released) = std::sync::mpsc::channel::<()>();
    let released = std::sync::Mutex::new(released);
    let upstream = Upstream::with_behaviour(move |_, stream| {
        let _ = released.lock().expect("no panic").recv();
        respond(stream, 200, "[]")
    });
    let (gateway, token) = Gateway::with_token(upstream.address(), &[("JOURNAL_ENABLED", "true")]);
    let mut client = gateway.begin(QUERY, &[TEXT, ("x-api-key", &*token), ("x-request-id", "stubborn")], SQL);
    wait_until("it has arrived", || upstream.log().len() == 1);
    assert!(command(&gateway, &["cancel", "stubborn"]).status.success());
    assert_eq!(client.read_response().status, 409);
    wait_for_state(&gateway, "stubborn", "abandoned");
    let again = command(&gateway, &["cancel", "stubborn"]);
    assert_eq!(again.status.code(), Some(4));
    assert!(stdout(&again).contains("It was cancelled"), "{again:?}");
    drop(release);
    wait_until("the backend has ended it", || running(&gateway).is_empty());
}

#[test]
fn the_audit_log_names_the_operator_and_the_user_of_a_cancelled_query() {
    let (upstream, _noticed) = slow_backend(false);
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("admin").join("socket");
    let socket = socket.to_str().expect("text");
    let options = [("JOURNAL_ENABLED", "true"), ("LISTEN_ADMIN_SOCKET", socket)];
    let (program, lines) = Program::start_logged(upstream.address(), &options);
    let mut client = Client::connect(program.http);
    client.write_request(QUERY, &[TEXT, ("x-api-key", &*program.token()), ("x-request-id", "runaway")], SQL);
    wait_until("it has arrived", || upstream.log().iter().any(|request| request.line.contains("/sales/")));
    let cancelled =
        run(&["queries", "cancel", "runaway", "--why", "runs away", "--listen-admin-socket", socket], &[], "");
    assert!(cancelled.status.success(), "{cancelled:?}");
    let line = lines.expect("there is an audit line", |line| line["target"] == "audit" && line["what"] == "cancel");
    for (name, value) in [
        ("decision", "done"),
        ("request_id", "runaway"),
        ("why", "runs away"),
        ("query_user", "alice"),
        ("cancelled", "1"),
        ("via", "socket"),
    ] {
        assert_eq!(line[name], value, "{name} in {line}");
    }
    assert!(line["operator"].is_string() && line["operator_pid"].is_number(), "{line}");
    assert_eq!(journal_line(&lines, "runaway")["reason"], "query_cancelled");
}

#[test]
fn slow_queries_and_their_users_are_found() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(upstream.address(), &[("JOURNAL_ENABLED", "true"), ("JOURNAL_TEXT", "fingerprint")]);
    let (alice, bob) = (gateway.token(), gateway.token_of("bob", "secret"));
    for (token, sql, count) in [(&alice, "SELECT a FROM t WHERE x = 1", 3), (&bob, "INSERT INTO t VALUES (1)", 1)] {
        for _ in 0..count {
            let headers = [TEXT, ("x-api-key", &**token)];
            assert_eq!(gateway.client().send(QUERY, &headers, sql.as_bytes()).status, 200);
        }
    }
    let top = |by: &str| gateway.get(&format!("/queries/top?by={by}"));
    let count = |list: &Value, key: &str| -> Option<u64> {
        list["rows"].as_array()?.iter().find(|row| row["key"] == key || row["text"] == key)?["count"].as_u64()
    };
    wait_until("all have ended", || count(&top("ontology"), "sales") == Some(4));
    let users = top("user");
    assert_eq!((count(&users, "alice"), count(&users, "bob")), (Some(3), Some(1)), "{users}");
    let fingerprints = top("fingerprint");
    assert_eq!(count(&fingerprints, "SELECT A FROM T WHERE X = ?"), Some(3), "{fingerprints}");
    assert_eq!(users["other"]["count"], 0);
    assert_eq!(gateway.get("/queries/slow?limit=2")["queries"].as_array().map(Vec::len), Some(2));

    let table = stdout(&command(&gateway, &["top", "--by", "user"]));
    assert!(table.lines().any(|line| line.starts_with("alice  ")), "{table}");
    let printed = stdout(&command(&gateway, &["slow", "--json"]));
    let printed: Value = serde_json::from_str(&printed).expect("JSON");
    assert_eq!(printed["queries"].as_array().map(Vec::len), Some(4));
}

#[test]
fn without_a_journal_nothing_is_listed_and_a_reload_turns_it_on() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("gateway.yaml");
    let (upstream, _noticed) = slow_backend(false);
    let url = format!("http://{}", upstream.address());
    std::fs::write(&path, format!("upstream: {{url: \"{url}\"}}\n")).expect("written");
    let gateway = Gateway::start_with_path(path.clone(), &[("UPSTREAM_URL", &url)]);
    let off = command(&gateway, &["running"]);
    assert_eq!(off.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&off.stderr).contains("journal.enabled"), "{off:?}");
    std::fs::write(&path, "journal: {enabled: true}\n").expect("written");
    assert_eq!(gateway.admin_command("POST /reload", "{}").status, 200);
    let _client = gateway.begin(QUERY, &[TEXT, ("x-api-key", &*gateway.token()), ("x-request-id", "now")], SQL);
    wait_for_state(&gateway, "now", "running");
}
