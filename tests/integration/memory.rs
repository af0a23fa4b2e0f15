//! What clients can make the gateway hold in memory, and the limit on all of it. The gateway is a separate process. Run
//! with `--nocapture` to see the figures of docs/attacks.md.

use std::io::Write;
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};

use rustls::{ClientConnection, StreamOwned};

use crate::support::client::{Client, JSON};
use crate::support::frames::{END_HEADERS, END_STREAM, Frames, HEADERS, SETTINGS, WINDOW_UPDATE, frame, good_head};
use crate::support::h2_client::{H2Client, tls_stream};
use crate::support::program::Program;
use crate::support::upstream::{Upstream, respond};

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

type Tls = StreamOwned<ClientConnection, TcpStream>;

fn https1(program: &Program) -> Tls {
    tls_stream(program.https, &program.authority_pem, &["http/1.1"])
}

fn frames(program: &Program) -> Frames {
    Frames::connect(program.https, &program.authority_pem)
}

fn head(method: &str, token: &str, more: &str) -> String {
    format!(
        "{method} /timbr/api/x HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nx-api-key: {token}\r\n{more}"
    )
}

/// Sends as much as the gateway and the kernel accept.
fn fill(stream: &mut Tls, bytes: &[u8]) {
    stream.sock.set_write_timeout(Some(Duration::from_millis(20))).expect("set");
    for part in bytes.chunks(16 * KIB) {
        if stream.write_all(part).is_err() {
            return;
        }
    }
}

/// Streams whose bodies are larger than the buffers of the kernel. They stay open until they are dropped.
fn uploads(program: &Program, token: &str, count: usize, time: Duration) -> impl Sized + use<> {
    let client = H2Client::connect(program.https, &program.authority_pem);
    let headers = [("content-type", "application/json"), ("x-api-key", token)];
    let held = client.begin_uploads("POST /timbr/api/x", &headers, count, 8 * MIB, time);
    (held, client)
}

/// The memory for each of `count` clients or streams, in KiB.
fn cost<T>(name: &str, upstream: std::net::SocketAddr, count: usize, attack: impl Fn(&Program, &str) -> T) -> usize {
    let program = Program::start(upstream, &[("TOKENS_FOREIGN", "reject")]);
    let token = program.token();
    drop(attack(&program, &token));
    // What the process keeps for later is not counted twice.
    let before = Program::start(upstream, &[]).memory().min(program.memory());
    let program = Program::start(upstream, &[("TOKENS_FOREIGN", "reject")]);
    let token = program.token();
    let held = attack(&program, &token);
    thread::sleep(Duration::from_millis(500));
    let each = program.memory().saturating_sub(before) / count / KIB;
    println!("{name}: {each} KiB for each of {count}");
    drop(held);
    each
}

#[test]
fn what_each_client_can_hold_is_bounded() {
    let silent = Upstream::with_behaviour_at_head(|_| {});
    let large = Upstream::with_behaviour(|_, stream| respond(stream, 200, &"x".repeat(8 * MIB)));
    let idle = cost("idle TLS connections", silent, 300, |program, _| {
        let request = b"GET /elsewhere HTTP/1.1\r\nHost: localhost\r\n\r\n";
        let mut all: Vec<_> = (0..300).map(|_| https1(program)).collect();
        all.iter_mut().for_each(|stream| fill(stream, request));
        all
    });
    let heads = cost("unfinished heads of 31 KiB over TLS", silent, 300, |program, token| {
        let head = head("GET", token, &format!("x-note: {}", "x".repeat(7 * KIB)).repeat(1));
        let more = format!("\r\nx-note: {}", "x".repeat(7 * KIB)).repeat(3);
        let mut all: Vec<_> = (0..300).map(|_| https1(program)).collect();
        all.iter_mut().for_each(|stream| fill(stream, format!("{head}{more}").as_bytes()));
        all
    });
    let upload = cost("HTTP/1.1 uploads over TLS that the backend does not take", silent, 150, |program, token| {
        let head = head("POST", token, "Content-Length: 10000000\r\n\r\n");
        let body = vec![b'x'; MIB];
        let mut all: Vec<_> = (0..150).map(|_| https1(program)).collect();
        all.iter_mut().for_each(|stream| fill(stream, &[head.as_bytes(), &body].concat()));
        all
    });
    let stream = cost("HTTP/2 uploads that the backend does not take", silent, 200, |program, token| {
        [
            uploads(program, token, 100, Duration::from_millis(1500)),
            uploads(program, token, 100, Duration::from_millis(1500)),
        ]
    });
    let unread = cost("HTTP/2 responses whose stream is not read", large.address(), 100, |program, token| {
        let mut frames = frames(program);
        frames.send(&frame(WINDOW_UPDATE, 0, 0, &(1_u32 << 30).to_be_bytes()));
        for number in 0..100 {
            let head = good_head("GET", "/timbr/api/x", token);
            frames.send(&frame(HEADERS, END_HEADERS | END_STREAM, 1 + 2 * number, &head));
        }
        let mut have_all = || frames.wait_for(|frames| (0..100).all(|number| frames.has_body(1 + 2 * number)));
        assert!((0..10).any(|_| have_all()), "the responses begin");
        frames
    });
    let blocked = cost("HTTP/2 responses whose socket is not read", large.address(), 100, |program, token| {
        let mut tls = tls_stream(program.https, &program.authority_pem, &["h2"]);
        let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        bytes.extend(frame(SETTINGS, 0, 0, &[0, 4, 0x3f, 0xff, 0xff, 0xff]));
        bytes.extend(frame(WINDOW_UPDATE, 0, 0, &(1_u32 << 30).to_be_bytes()));
        for number in 0..100 {
            let head = good_head("GET", "/timbr/api/x", token);
            bytes.extend(frame(HEADERS, END_HEADERS | END_STREAM, 1 + 2 * number, &head));
        }
        tls.write_all(&bytes).expect("sent");
        thread::sleep(Duration::from_millis(500));
        tls
    });
    for (each, most) in [(idle, 32), (heads, 96), (upload, 256), (stream, 224), (unread, 256), (blocked, 192)] {
        assert!(each <= most, "{each} KiB, at most {most}");
    }
}

/// Of responses that arrive at the same time, for requests that were admitted while memory was free.
#[test]
fn responses_that_are_not_read_share_a_part_of_the_memory() {
    const LIMIT: usize = 56 * MIB;
    const STREAMS: u32 = 64;
    const CONNECTIONS: usize = 7;
    let (body, arrived) = ("x".repeat(MIB), AtomicUsize::new(0));
    let upstream = Upstream::with_behaviour(move |_, stream| {
        arrived.fetch_add(1, Ordering::SeqCst);
        while arrived.load(Ordering::SeqCst) < CONNECTIONS * STREAMS as usize {
            thread::sleep(Duration::from_millis(5));
        }
        respond(stream, 200, &body)
    });
    let options = [("TOKENS_FOREIGN", "reject"), ("LIMITS_MEMORY", "56MiB"), ("TIMEOUTS_WRITE", "300s")];
    let program = Program::start(upstream.address(), &options);
    let token = program.token();
    let mut clients: Vec<_> = (0..CONNECTIONS).map(|_| frames(&program)).collect();
    let streams = || (0..STREAMS).map(|number| 1 + 2 * number);
    for client in &mut clients {
        client.send(&frame(WINDOW_UPDATE, 0, 0, &(1_u32 << 30).to_be_bytes()));
        for stream in streams() {
            client.send(&frame(HEADERS, END_HEADERS | END_STREAM, stream, &good_head("GET", "/timbr/api/x", &token)));
        }
    }
    let have_all = |frames: &Frames| streams().all(|stream| frames.has_body(stream));
    let most = thread::scope(|scope| {
        // All sockets are read at the same time: while memory is exhausted, one that is not read is soon reset.
        let begin = |client: &mut Frames| assert!((0..10).any(|_| client.wait_for(have_all)), "the responses begin");
        let readers: Vec<_> = clients.iter_mut().map(|client| scope.spawn(move || begin(client))).collect();
        let mut most = 0;
        while !readers.iter().all(ScopedJoinHandle::is_finished) {
            most = most.max(program.memory());
            thread::sleep(Duration::from_millis(5));
        }
        most.max(program.memory())
    });
    println!("{} MiB with {} responses that are not read", most / MIB, CONNECTIONS * STREAMS as usize);
    assert!(most < LIMIT + LIMIT / 4, "{most}");
}

/// The limit is that of the whole process; the attacks do not know each other.
#[test]
fn memory_is_limited_and_returned() {
    const LIMIT: usize = 56 * MIB;
    let silent = Upstream::with_behaviour_at_head(|_| {});
    let options = [
        ("TOKENS_FOREIGN", "reject"),
        ("LIMITS_MEMORY", "56MiB"),
        ("TIMEOUTS_BODY", "300s"),
        ("LIMITS_REQUESTS_PER_IDENTITY", "4000"),
    ];
    let program = Program::start(silent, &options);
    let token = program.token();
    let status = || Client::connect(program.http).try_send("GET /elsewhere", &[JSON]).map(|response| response.status);
    assert_eq!(status(), Some(404));
    let mut idle = https1(&program);
    fill(&mut idle, b"GET /elsewhere HTTP/1.1\r\nHost: localhost\r\n\r\n");

    let start = Instant::now();
    let mut attackers = Vec::new();
    while status() != Some(503) {
        assert!(attackers.len() < 40, "{} bytes", program.memory());
        attackers.push(uploads(&program, &token, 64, Duration::from_millis(500)));
    }
    println!("{} MiB after {:?} and {} uploads", program.memory() / MIB, start.elapsed(), 64 * attackers.len());
    let mut most = 0;
    for _ in 0..6 {
        attackers.push(uploads(&program, &token, 64, Duration::from_millis(500)));
        most = most.max(program.memory());
    }
    println!("at most {} MiB", most / MIB);
    assert!(most < LIMIT + LIMIT / 4, "{most}");
    // The idle connection has been closed.
    let mut rest = Vec::new();
    std::io::Read::read_to_end(&mut idle, &mut rest).expect("a graceful end");

    drop(attackers);
    let start = Instant::now();
    while status() != Some(404) {
        assert!(start.elapsed() < Duration::from_secs(40), "{} bytes", program.memory());
        thread::sleep(Duration::from_millis(100));
    }
    println!("{} MiB and available again after {:?}", program.memory() / MIB, start.elapsed());
}
