//! Responses that begin before the backend's (`response_keepalive` of a route).

use std::io::Write;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::support::client::Response;
use crate::support::gateway::Gateway;
use crate::support::upstream::{AfterRequest, Recorded, Upstream, respond, write};
use crate::support::wait_until;

const ROUTES: &str = "routes:\n  - {name: openapi, response_keepalive: 1s}\n";

/// Longer than two intervals.
const LATE: Duration = Duration::from_millis(2300);

const ROWS: &str = r#"[{"name": "Ada"}]"#;

/// The body of a request says how the backend responds, and whether it does so late.
fn behave(request: &Recorded, stream: &mut TcpStream) -> AfterRequest {
    let statement = String::from_utf8_lossy(&request.body).into_owned();
    let statement = match statement.strip_prefix("late ") {
        Some(rest) => {
            std::thread::sleep(LATE);
            rest
        }
        None => &*statement,
    };
    match statement {
        "break" => AfterRequest::Close,
        "invalid" => write(stream, b"nonsense\r\n\r\n"),
        "truncate" => {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n[");
            AfterRequest::Close
        }
        "text" => write(stream, b"HTTP/1.1 200 OK\r\nContent-Type: text/csv\r\nContent-Length: 4\r\n\r\nname"),
        "gzip" => write(
            stream,
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\n[\"\"]",
        ),
        status => respond(stream, status.parse().unwrap_or(200), ROWS),
    }
}

struct Setup {
    upstream: Upstream,
    gateway: Gateway,
    token: String,
}

impl Setup {
    fn new() -> Setup {
        let upstream = Upstream::with_behaviour(behave);
        let gateway = Gateway::start_with_file(upstream.address(), ROUTES, &[]);
        let token = gateway.token();
        Setup { upstream, gateway, token }
    }

    fn query(&self, statement: &str, more: &[(&str, &str)]) -> Response {
        let headers = [&[("Content-Type", "application/text"), ("x-api-key", self.token.as_str())], more].concat();
        self.gateway.client().send("POST /timbr/openapi/ontology/o/query", &headers, statement.as_bytes())
    }
}

#[test]
fn a_late_response_begins_with_blanks() {
    let setup = Setup::new();
    let mut client = setup.gateway.client();
    let headers = [("Content-Type", "application/text"), ("x-api-key", setup.token.as_str())];
    let start = Instant::now();
    client.write_request("POST /timbr/openapi/ontology/o/query", &headers, b"late 200");
    let head = client.read_head().expect("a head");
    let begun = start.elapsed();
    assert!(begun >= Duration::from_secs(1), "{begun:?}");
    assert_eq!((head.status, head.header("transfer-encoding")), (200, "chunked"));
    assert_eq!((head.header("content-type"), head.header("cache-control")), ("application/json", "no-store"));
    assert_ne!(head.header("x-request-id"), "");
    let mut body = Vec::new();
    while let Some(chunk) = client.read_chunk() {
        body.extend(chunk);
    }
    let (total, body) = (start.elapsed(), String::from_utf8(body).expect("text"));
    let blanks = body.strip_suffix(ROWS).expect("the rows are at the end");
    // Two, unless the machine is busy.
    assert!(blanks.trim().is_empty() && (1..=total.as_secs()).contains(&(blanks.len() as u64)), "{total:?} {body:?}");
    // The connection stays open.
    assert_eq!(client.send("GET /timbr/api/x", &[("Content-Type", "application/json"), headers[1]], b"").status, 200);
}

#[test]
fn an_early_response_is_forwarded_unchanged() {
    let setup = Setup::new();
    for (statement, status) in [("200", 200), ("400", 400), ("202", 202), ("500", 500), ("text", 200)] {
        let response = setup.query(statement, &[("Accept-Encoding", "gzip")]);
        assert_eq!(response.status, status, "{statement}");
        assert!(!response.body.starts_with(b" ") && !response.header("content-length").is_empty(), "{response:?}");
    }
    // The encoding of a late response could not be announced.
    assert!(setup.upstream.log().iter().all(|seen| seen.header("accept-encoding").is_empty()));
}

#[test]
fn a_late_failure_aborts_the_body_and_is_logged_with_its_status() {
    let setup = Setup::new();
    for statement in ["500", "401", "202", "break", "invalid", "truncate", "text", "gzip"] {
        let response = setup.query(&format!("late {statement}"), &[]);
        assert_eq!(response.status, 200, "{statement}");
        assert!(!response.complete, "{statement}");
        let text = response.text();
        assert!(text.trim_start().is_empty() || statement == "truncate", "{statement}: {text:?}");
    }
    for (class, reason, count) in [
        ("5xx", "padded_response_failed", 1.0),
        ("4xx", "padded_response_failed", 1.0),
        // Status 202, a different media type, and an encoding.
        ("2xx", "padded_response_failed", 3.0),
        ("5xx", "upstream_closed", 1.0),
        ("5xx", "upstream_invalid", 1.0),
        ("2xx", "upstream_body_broken", 1.0),
    ] {
        let labels = format!("route=\"openapi\",method=\"POST\",status=\"{class}\",reason=\"{reason}\"");
        setup.gateway.expect_metric(&format!("timbr_gateway_requests_total{{{labels}}}"), count);
    }
}

#[test]
fn asynchronous_queries_and_other_routes_are_not_padded() {
    let setup = Setup::new();
    let response = setup.query("late 202", &[("x-async", "true")]);
    assert_eq!((response.status, response.text()), (202, ROWS));
    let headers = [("Content-Type", "application/json"), ("x-api-key", setup.token.as_str())];
    let response = setup.gateway.client().send("POST /timbr/api/query/", &headers, b"late 404");
    assert_eq!((response.status, response.text()), (404, ROWS));
}

#[test]
fn a_client_that_disconnects_cancels_the_query() {
    let setup = Setup::new();
    let mut client = setup.gateway.client();
    let headers = [("Content-Type", "application/text"), ("x-api-key", setup.token.as_str())];
    client.write_request("POST /timbr/openapi/ontology/o/query", &headers, b"late 200");
    assert_eq!(client.read_head().expect("a head").status, 200);
    drop(client);
    wait_until("no request is in flight", || setup.gateway.metric("timbr_gateway_requests_in_flight") == 0.0);
    // The backend has not responded yet, and its connection is closed.
    assert_eq!(setup.upstream.log().len(), 1);
}
