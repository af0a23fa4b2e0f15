//! Mixed traffic with reloads and restarts of the backend, after which what the clients saw, the access log, the metrics and
//! the backend agree, and nothing is left. `SOAK_SECONDS` sets the duration; run with `--nocapture` to see the figures.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::TIMEOUT;
use crate::support::client::Client;
use crate::support::h2_client::{H2Client, tls_stream};
use crate::support::mortal_backend::{Arrived, MortalBackend};
use crate::support::program::{Lines, Program};
use crate::support::{closed_port, wait_until};

/// Pause of a client between two requests.
const PAUSE: Duration = Duration::from_millis(40);
const RELOAD_INTERVAL: Duration = Duration::from_millis(1700);
/// The backend is down for a tenth of this.
const RESTART_INTERVAL: Duration = Duration::from_secs(4);

/// What the client of a request saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    /// The whole response.
    Status(u16),
    /// The connection or stream ended before the end of the response.
    Truncated,
    /// It did not wait for the end, and its request may not have been read.
    Left,
}

/// The clients' requests by their ID.
type Requests = Mutex<HashMap<String, Seen>>;

/// The gateway and the records of all clients.
struct Soak {
    program: Program,
    token: String,
    requests: Requests,
    is_over: AtomicBool,
}

impl Soak {
    /// Runs `request` with a new ID until the end, and records what it saw.
    fn repeat(&self, name: &str, mut request: impl FnMut(&str, usize) -> Seen) {
        for number in 0.. {
            if self.is_over.load(Ordering::Relaxed) {
                return;
            }
            let id = format!("{name}-{number}");
            let seen = request(&id, number);
            self.requests.lock().expect("no panic").insert(id, seen);
            thread::sleep(PAUSE);
        }
    }

    /// Sends requests over connections that are used again while the gateway keeps them open.
    fn repeat_http1<S: Read + Write>(&self, name: &str, connect: impl Fn() -> S, message: impl Fn(&str) -> Message) {
        let mut connection = None;
        self.repeat(name, |id, _| {
            let mut stream = connection.take().unwrap_or_else(&connect);
            let (seen, is_open) = exchange(&mut stream, &message(id));
            connection = is_open.then_some(stream);
            seen
        });
    }

    fn head(&self, line: &str, id: &str, length: usize) -> String {
        format!(
            "{line} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nx-api-key: {}\r\nx-request-id: {id}\r\n\
             Content-Length: {length}\r\n\r\n",
            self.token
        )
    }

    fn message(&self, line: &str, id: &str, length: usize) -> Message {
        Message { head: self.head(line, id, length), body: vec![b' '; length], read_pause: Duration::ZERO }
    }

    fn plain(&self) -> TcpStream {
        let stream = TcpStream::connect(self.program.http).expect("connected");
        stream.set_read_timeout(Some(TIMEOUT)).expect("set");
        stream
    }

    fn h2_client(&self) -> H2Client {
        H2Client::connect(self.program.https, &self.program.authority_pem)
    }

    fn send_http2(&self, client: &H2Client, line: &str, id: &str, length: usize) -> Seen {
        let length_text = length.to_string();
        let headers = [
            ("content-type", "application/json"),
            ("x-api-key", self.token.as_str()),
            ("x-request-id", id),
            ("content-length", length_text.as_str()),
        ];
        let response = client.try_send(line, &headers, &vec![b' '; length]);
        response.map_or(Seen::Truncated, |response| Seen::Status(response.status))
    }

    /// The sum over all series of a metric.
    fn metric(&self, name: &str) -> f64 {
        let admin = self.program.admin.expect("it is on");
        let text = Client::connect(admin).send("GET /metrics", &[("Host", "localhost")], b"");
        let series = text.text().lines().filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            rest.starts_with(['{', ' ']).then(|| rest.rsplit(' ').next()?.parse::<f64>().ok())?
        });
        series.sum()
    }
}

/// A request over HTTP/1.1, and how its response is read.
struct Message {
    head: String,
    body: Vec<u8>,
    read_pause: Duration,
}

/// Sends a request and reads the response. Returns also whether the connection can be used again.
fn exchange(stream: &mut (impl Read + Write), message: &Message) -> (Seen, bool) {
    // The gateway may reject an upload, and close the connection after its response.
    let is_sent = stream.write_all(message.head.as_bytes()).and_then(|()| stream.write_all(&message.body)).is_ok();
    let mut received = Vec::new();
    let mut part = [0; 16 * 1024];
    loop {
        if let Some(end) = received.windows(4).position(|four| four == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&received[..end]).to_ascii_lowercase();
            let header = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
            let length: usize = header("content-length").and_then(|length| length.parse().ok()).expect("a length");
            if received.len() >= end + 4 + length {
                assert_eq!(received.len(), end + 4 + length, "bytes after the response");
                let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
                return (Seen::Status(status), is_sent && header("connection") != Some("close"));
            }
        }
        match stream.read(&mut part) {
            Ok(count) if count > 0 => received.extend_from_slice(&part[..count]),
            _ => return (Seen::Truncated, false),
        }
        thread::sleep(message.read_pause);
    }
}

/// Reloads the configuration and restarts the backend until the time is over. Returns the number of each.
fn disturb(soak: &Soak, mut backend: Option<MortalBackend>, arrived: &Arrived, time: Duration) -> (u32, u32) {
    let address = backend.as_ref().expect("it runs").address();
    let (begun, mut reloads, mut restarts) = (Instant::now(), 0, 0);
    while begun.elapsed() < time {
        thread::sleep(Duration::from_millis(50));
        if begun.elapsed() > RELOAD_INTERVAL * (reloads + 1) {
            soak.program.signal("HUP");
            reloads += 1;
        }
        if begun.elapsed() > RESTART_INTERVAL * (restarts + 1) {
            backend.take().expect("it runs").kill();
            thread::sleep(RESTART_INTERVAL / 10);
            backend = Some(MortalBackend::start(address, arrived));
            restarts += 1;
        }
    }
    soak.is_over.store(true, Ordering::Relaxed);
    // It serves what is still in flight.
    std::mem::forget(backend);
    (reloads, restarts)
}

#[test]
fn counters_agree_and_nothing_is_left_after_mixed_traffic() {
    let seconds = std::env::var("SOAK_SECONDS").map_or(10, |text| text.parse().expect("a number"));
    let (arrived, address) = (Arrived::default(), closed_port());
    let backend = MortalBackend::start(address, &arrived);
    let options = [("LISTEN_ADMIN", "127.0.0.1:0"), ("WORKERS", "2"), ("UPSTREAM_REQUESTS", "8")];
    let (program, lines) = Program::start_logged(address, &options);
    let token = program.token();
    // The request for the token has no ID of ours.
    wait_until("the first line", || !access_lines(&lines).is_empty());
    let soak = Soak { program, token, requests: Requests::default(), is_over: AtomicBool::new(false) };
    let before = soak.program.memory();
    let (reloads, restarts) = thread::scope(|scope| {
        let soak = &soak;
        let get = "GET /timbr/api/x";
        let post = "POST /timbr/api/x";
        scope.spawn(move || soak.repeat_http1("plain", || soak.plain(), |id| soak.message(post, id, 2)));
        let tls = move || tls_stream(soak.program.https, &soak.program.authority_pem, &["http/1.1"]);
        scope.spawn(move || soak.repeat_http1("tls", tls, |id| soak.message(post, id, 2)));
        scope.spawn(move || soak.repeat_http1("get", || soak.plain(), |id| soak.message(get, id, 0)));
        scope.spawn(move || soak.repeat_http1("upload", || soak.plain(), |id| soak.message(post, id, 200_000)));
        scope.spawn(move || soak.repeat_http1("tls-upload", tls, |id| soak.message(post, id, 200_000)));
        scope.spawn(move || {
            let large = "POST /timbr/api/large";
            let message = |id: &str| Message { read_pause: Duration::from_millis(5), ..soak.message(large, id, 2) };
            soak.repeat_http1("slow", || soak.plain(), message);
        });
        for (name, length) in [("h2", 2), ("h2-upload", 200_000)] {
            scope.spawn(move || {
                let client = soak.h2_client();
                soak.repeat(name, |id, _| soak.send_http2(&client, post, id, length));
            });
        }
        scope.spawn(move || {
            soak.repeat("leave", |id, number| {
                let mut stream = soak.plain();
                let length = if number % 2 == 0 { 2 } else { 200_000 };
                // Of the upload, only a part.
                let body = vec![b' '; length.min(100_000)];
                stream.write_all(&[soak.head(post, id, length).as_bytes(), &body].concat()).expect("sent");
                thread::sleep(Duration::from_millis(number as u64 % 8));
                Seen::Left
            });
        });
        scope.spawn(move || {
            let client = soak.h2_client();
            soak.repeat("h2-leave", |id, number| {
                let headers = [("content-type", "application/json"), ("x-api-key", &*soak.token), ("x-request-id", id)];
                let is_time = Instant::now() + Duration::from_millis(number as u64 % 8);
                client.send_and_reset(post, &headers, || Instant::now() > is_time, || true);
                Seen::Left
            });
        });
        disturb(soak, Some(backend), &arrived, Duration::from_secs(seconds))
    });
    for gauge in ["requests_in_flight", "requests_queued", "client_connections", "upstream_requests_in_flight"] {
        wait_until(gauge, || soak.metric(&format!("timbr_gateway_{gauge}")) == 0.0);
    }
    for gauge in ["upstream_requests_abandoned", "upstream_connections"] {
        wait_until(gauge, || soak.metric(&format!("timbr_gateway_{gauge}")) == 0.0);
    }
    let counted = soak.metric("timbr_gateway_requests_total");
    wait_until("all lines", || access_lines(&lines).len() as f64 == counted);
    let lines = access_lines(&lines);
    let requests = soak.requests.lock().expect("no panic");
    let arrived = arrived.lock().expect("no panic");
    let count = |is_counted: &dyn Fn(&Seen) -> bool| requests.values().filter(|seen| is_counted(seen)).count();
    println!(
        "{seconds} s, {reloads} reloads, {restarts} restarts: {} requests, {} lines, {} at the backend; 200: {}, 502: {}, \
         truncated: {}, left: {}; memory {} KiB before, {} KiB after",
        requests.len(),
        lines.len(),
        arrived.len(),
        count(&|seen| *seen == Seen::Status(200)),
        count(&|seen| *seen == Seen::Status(502)),
        count(&|seen| *seen == Seen::Truncated),
        count(&|seen| *seen == Seen::Left),
        before / 1024,
        soak.program.memory() / 1024
    );
    agree(&requests, &lines, &arrived);
}

/// The lines of the access log, with their request's ID.
fn access_lines(lines: &Lines) -> Vec<Value> {
    lines.matching(|line| line["total_ms"].is_number())
}

fn agree(requests: &HashMap<String, Seen>, lines: &[Value], arrived: &HashMap<String, u32>) {
    let mut logged: HashMap<&str, &Value> = HashMap::new();
    for line in lines {
        let id = line["request_id"].as_str().expect("an ID");
        assert!(logged.insert(id, line).is_none(), "two lines for {id}");
        let is_ours = requests.contains_key(id) || line["path"] == "/timbr/api/get_token";
        assert!(is_ours, "a line without a request: {line}");
    }
    for (id, seen) in requests {
        let (line, times) = (logged.get(id.as_str()), arrived.get(id).copied().unwrap_or_default());
        match (seen, line) {
            (Seen::Left, None) => assert_eq!(times, 0, "{id} was sent without a line"),
            (Seen::Left, Some(_)) => {}
            (Seen::Status(status), Some(line)) => {
                assert_eq!(
                    (line["status"].as_u64(), &line["complete"]),
                    (Some((*status).into()), &true.into()),
                    "{line}"
                );
                assert!([200, 502].contains(status), "{line}");
                assert!(*status != 200 || times > 0, "{id} did not arrive");
            }
            (Seen::Truncated, Some(line)) => assert_eq!(line["complete"], false, "{line}"),
            (_, None) => panic!("no line for {id}: {seen:?}"),
        }
        // A GET may be sent again on a new connection.
        assert!(times <= if id.starts_with("get") { 2 } else { 1 }, "{id} arrived {times} times");
    }
}
