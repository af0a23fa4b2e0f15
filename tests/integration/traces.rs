//! Traces, received by a real OTLP receiver.

use std::io::Read;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use crate::support::bearer::SALT;
use crate::support::client::Client;
use crate::support::program::{Lines, Program};
use crate::support::upstream::Upstream;
use crate::support::{closed_port, wait_until};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CLIENTS_SPAN: &str = "00f067aa0ba902b7";

/// Collects the output of a child process.
fn read(mut from: impl Read + Send + 'static) -> Arc<Mutex<String>> {
    let text = Arc::<Mutex<String>>::default();
    let (to, mut piece) = (Arc::clone(&text), [0; 4096]);
    std::thread::spawn(move || {
        while let Ok(count @ 1..) = from.read(&mut piece) {
            to.lock().expect("no panic").push_str(&String::from_utf8_lossy(&piece[..count]));
        }
    });
    text
}

/// A child process. Killed when dropped.
struct Ends(Child);

impl Drop for Ends {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Rotel, which prints received spans; `tests/servers` installs it.
struct Receiver {
    _child: Ends,
    address: SocketAddr,
    said: Arc<Mutex<String>>,
}

impl Receiver {
    fn start() -> Receiver {
        let [http, grpc] = [closed_port(), closed_port()];
        let agent = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/rotel/rotel-agent");
        let mut child = Command::new(agent)
            .args(["start", "--exporter", "blackhole", "--debug-log", "traces"])
            .args(["--debug-log-verbosity", "detailed"])
            .args(["--otlp-http-endpoint", &http.to_string(), "--otlp-grpc-endpoint", &grpc.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("rotel is installed");
        let said = read(child.stdout.take().expect("piped"));
        let receiver = Receiver { _child: Ends(child), address: http, said };
        wait_until("the receiver listens", || std::net::TcpStream::connect(http).is_ok());
        receiver
    }

    fn said(&self) -> String {
        self.said.lock().expect("no panic").clone()
    }
}

/// A gateway with these environment variables, and its log.
fn start(upstream: SocketAddr, variables: &[(&str, &str)]) -> (Program, Lines) {
    let variables: Vec<_> = variables.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let shell = format!("exec env {} \"$0\" serve", variables.join(" "));
    Program::start_logged_as(upstream, &[("LISTEN_ADMIN", "127.0.0.1:0")], &shell)
}

/// Whether a line of the log contains this text.
fn has_logged(log: &Lines, text: &str) -> bool {
    !log.matching(|line| line.to_string().contains(text)).is_empty()
}

#[test]
fn the_gateways_spans_are_children_of_the_clients_span() {
    let (upstream, receiver) = (Upstream::start(), Receiver::start());
    let endpoint = format!("http://{}", receiver.address);
    let (gateway, _log) = start(
        upstream.address(),
        &[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint),
            ("OTEL_SERVICE_NAME", "gateway-of-the-test"),
            ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=test"),
            ("OTEL_BSP_SCHEDULE_DELAY", "100"),
        ],
    );
    let token = gateway.token();
    let traceparent = format!("00-{TRACE}-{CLIENTS_SPAN}-01");
    let headers = [
        ("x-api-key", token.as_str()),
        ("content-type", "application/json"),
        ("traceparent", &traceparent),
        ("x-request-id", "the-request"),
    ];
    let mut client = Client::connect(gateway.http);
    let response = client.send("POST /timbr/api/query/?q=secret-in-the-query", &headers, b"SELECT secret_column");
    assert_eq!(response.status, 200);
    assert_eq!(client.send("POST /timbr/api/query/", &[("content-type", "application/json")], b"{}").status, 401);
    // Alice's bearer, the phase that opened it, her query with its upstream span, and a rejection.
    wait_until("all spans have arrived", || {
        gateway.metric("timbr_gateway_trace_spans_exported_total") >= Some(7.0)
            && receiver.said().contains("content_type")
            || receiver.said().contains("api_key_missing")
    });
    let said = receiver.said();
    for part in [
        TRACE,
        CLIENTS_SPAN,
        "gateway-of-the-test",
        "deployment.environment",
        "POST api",
        "POST get_token",
        "http.request.method",
        "http.route",
        "http.response.status_code",
        "client.address",
        "127.0.0.1",
        "error.type",
        "api_key_missing",
        "bearer",
        "verifier",
        "the-request",
        "enduser.id",
        "alice",
        "timbr.key.fingerprint",
    ] {
        assert!(said.contains(part), "{part} in {said}");
    }
    // The backend receives the id of the gateway's span, not of the client's.
    let seen =
        upstream.log().into_iter().find(|seen| seen.header("x-request-id") == "the-request").expect("it arrived");
    let seen = seen.header("traceparent").to_owned();
    let (trace, rest) = seen.strip_prefix("00-").and_then(|rest| rest.split_once('-')).expect("W3C");
    let (span, flags) = rest.split_once('-').expect("W3C");
    assert_eq!((trace, flags), (TRACE, "01"));
    assert_ne!(span, CLIENTS_SPAN);
    assert!(said.contains(span), "the span {span} is among those received: {said}");
    for secret in [&token[3..], "secret", SALT] {
        assert!(!said.contains(secret), "{secret} in {said}");
    }
}

#[test]
fn unsampled_requests_are_not_traced() {
    let (upstream, receiver) = (Upstream::start(), Receiver::start());
    let endpoint = format!("http://{}", receiver.address);
    let variables = [("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()), ("OTEL_BSP_SCHEDULE_DELAY", "50")];
    let (gateway, _log) = start(upstream.address(), &variables);
    let mut client = Client::connect(gateway.http);
    let traceparent = format!("00-{TRACE}-{CLIENTS_SPAN}-00");
    assert_eq!(client.send("GET /untraced", &[("traceparent", &traceparent)], b"").status, 404);
    assert_eq!(client.send("GET /traced", &[], b"").status, 404);
    wait_until("one request was traced", || receiver.said().contains("/traced"));
    assert!(!receiver.said().contains("/untraced") && !receiver.said().contains(TRACE));
}

#[test]
fn an_unavailable_receiver_loses_spans_but_no_request() {
    let upstream = Upstream::start();
    let nobody = format!("http://{}", closed_port());
    let variables = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", nobody.as_str()),
        ("OTEL_BSP_SCHEDULE_DELAY", "10"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "8"),
    ];
    let (gateway, log) = start(upstream.address(), &variables);
    let token = gateway.token();
    let headers = [("x-api-key", token.as_str()), ("content-type", "application/json")];
    let mut client = Client::connect(gateway.http);
    for _ in 0..100 {
        assert_eq!(client.send("POST /timbr/api/query/", &headers, b"{}").status, 200);
    }
    let dropped = "timbr_gateway_trace_spans_dropped_total";
    wait_until("dropped spans are counted", || gateway.metric(dropped) > Some(100.0));
    wait_until("the failure is logged", || has_logged(&log, "trace export failed"));
    assert_eq!(gateway.metric("timbr_gateway_trace_spans_exported_total"), Some(0.0));
}

#[test]
fn queued_spans_are_exported_at_shutdown() {
    let (upstream, receiver) = (Upstream::start(), Receiver::start());
    let endpoint = format!("http://{}", receiver.address);
    let variables = [("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()), ("OTEL_BSP_SCHEDULE_DELAY", "60000")];
    let (mut gateway, log) = start(upstream.address(), &variables);
    for path in ["/one-of-the-last", "/the-last"] {
        assert_eq!(Client::connect(gateway.http).send(&format!("GET {path}"), &[], b"").status, 404);
    }
    gateway.begin_shutdown();
    assert!(gateway.wait().success());
    wait_until("they arrived", || {
        receiver.said().contains("/one-of-the-last") && receiver.said().contains("/the-last")
    });
    assert!(!has_logged(&log, "please report it"));
}
