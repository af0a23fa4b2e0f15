//! Clients that cause disproportionate work. The gateway is a separate process, so that its memory and CPU time can be
//! measured; the limits hold for a debug build.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use crate::support::frames::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, Frames, HEADERS, PING, PRIORITY, RST_STREAM, SETTINGS, WINDOW_UPDATE,
    frame, good_head, header,
};
use crate::support::h2_client::H2Client;
use crate::support::program::Program;
use crate::support::recorder::{Recorder, Reply};
use crate::support::wait_until;

const MIB: usize = 1024 * 1024;

/// `limits.streams`, plus requests that have just ended or been aborted.
const MOST_UPSTREAM: usize = 128 + 16;

fn site(reply: Reply) -> (Program, Recorder, String) {
    let backend = Recorder::start(reply);
    let program = Program::start(backend.address(), &[("TOKENS_FOREIGN", "reject")]);
    let token = program.token();
    (program, backend, token)
}

/// Runs an attack and returns its cost: retained memory and CPU time.
fn cost(program: &Program, attack: impl FnOnce()) -> (usize, Duration) {
    let (memory, cpu) = (program.memory(), program.cpu());
    attack();
    (program.memory().saturating_sub(memory), program.cpu() - cpu)
}

/// Other clients are served in time during the attack.
fn others_are_served(program: &Program) -> Duration {
    let client = H2Client::connect(program.https, &program.authority_pem);
    let spans = (0..20).map(|_| {
        let start = Instant::now();
        assert_eq!(client.send("GET /nowhere", &[], b"").status, 404);
        start.elapsed()
    });
    spans.max().expect("some")
}

#[test]
fn rapid_resets_end_the_connection() {
    let (program, backend, token) = site(Reply::Hold);
    let mut frames = Frames::connect(program.https, &program.authority_pem);
    let head = good_head("GET", "/timbr/api/x", &token);
    let mut patient = Frames::connect(program.https, &program.authority_pem);
    patient.send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &head));
    wait_until("an unreset request is forwarded", || backend.open() == 1);
    drop(patient);
    wait_until("the upstream request ends with its client", || backend.open() == 0);
    let mut sent = 0;
    let (memory, cpu) = cost(&program, || {
        sent = frames.send_until_ended(2000, |number| {
            let stream = 2 * u32::try_from(number).expect("few") + 1;
            let request = frame(HEADERS, END_HEADERS | END_STREAM, stream, &head);
            [request, frame(RST_STREAM, 0, stream, &[0, 0, 0, 8])].concat()
        });
        frames.wait_for(Frames::has_ended);
    });
    let slowest = others_are_served(&program);
    let most = backend.most_open();
    println!("{sent} resets, {most} upstream at most, {memory} bytes, {cpu:?}, others {slowest:?}");
    assert!(frames.has_ended() && most <= MOST_UPSTREAM && slowest < Duration::from_secs(1));
    assert!(memory < 20 * MIB && cpu < Duration::from_secs(5), "{memory} {cpu:?}");
    wait_until("no upstream request remains", || backend.open() == 0);
}

#[test]
fn provoked_resets_end_the_connection() {
    let (program, backend, token) = site(Reply::Hold);
    let head = good_head("GET", "/timbr/api/x", &token);
    // A zero window increment, and a stream that depends on itself: the gateway must reset the stream.
    for (kind, payload) in [(WINDOW_UPDATE, &[0, 0, 0, 0][..]), (PRIORITY, &[0, 0, 0, 0, 0][..])] {
        let mut frames = Frames::connect(program.https, &program.authority_pem);
        let (memory, cpu) = cost(&program, || {
            frames.send_until_ended(2000, |number| {
                let stream = 2 * u32::try_from(number).expect("few") + 1;
                let mut payload = payload.to_vec();
                if kind == PRIORITY {
                    payload[..4].copy_from_slice(&stream.to_be_bytes());
                }
                let request = frame(HEADERS, END_HEADERS | END_STREAM, stream, &head);
                [request, frame(kind, 0, stream, &payload)].concat()
            });
            frames.wait_for(Frames::has_ended);
        });
        println!("kind {kind}: {} upstream at most, {memory} bytes, {cpu:?}", backend.most_open());
        assert!(backend.most_open() <= MOST_UPSTREAM, "{}", backend.most_open());
        assert!(memory < 20 * MIB && cpu < Duration::from_secs(5), "{memory} {cpu:?}");
        if kind == WINDOW_UPDATE {
            assert!(frames.has_ended());
        }
        drop(frames);
        wait_until("no upstream request remains", || backend.open() == 0);
    }
    assert!(others_are_served(&program) < Duration::from_secs(1));
}

#[test]
fn endless_continuation_frames_end_the_connection() {
    let (program, backend, token) = site(Reply::Name);
    let mut frames = Frames::connect(program.https, &program.authority_pem);
    frames.send(&frame(HEADERS, END_STREAM, 1, &good_head("GET", "/timbr/api/x", &token)));
    let part: Vec<u8> = (0..400).flat_map(|_| header("x-y", &[b'v'; 30])).take(16 * 1024).collect();
    let mut sent = 0;
    let (memory, _) = cost(&program, || {
        sent = frames.send_until_ended(200, |_| frame(CONTINUATION, 0, 1, &part));
    });
    println!("{sent} frames of 16 KiB, {memory} bytes");
    // The sent bytes include what is still in socket buffers: the gateway has read less.
    assert!(memory < 5 * MIB, "{sent} {memory}");
    assert!(frames.wait_for(|frames| frames.is_reset(1)) && backend.seen().is_empty());
}

#[test]
fn hpack_bombs_are_rejected() {
    let (program, backend, token) = site(Reply::Name);
    let base = good_head("GET", "/timbr/api/x", &token);
    // One dynamic table entry, then references of one byte each.
    let entry = [vec![0x40, 1, b'a', 1, b'b'], vec![0xbe; 50_000]].concat();
    let cookies: Vec<u8> = (0..4096).flat_map(|_| header("cookie", b"a=b")).collect();
    for bomb in [entry, cookies] {
        let (memory, cpu) = cost(&program, || {
            for _ in 0..20 {
                let mut frames = Frames::connect(program.https, &program.authority_pem);
                let block = [&base[..], &bomb].concat();
                let mut parts: Vec<_> = block.chunks(16_000).collect();
                let last = parts.pop().expect("some");
                for (number, part) in parts.iter().enumerate() {
                    let (kind, flags) = if number == 0 { (HEADERS, END_STREAM) } else { (CONTINUATION, 0) };
                    frames.send(&frame(kind, flags, 1, part));
                }
                frames.send(&frame(CONTINUATION, END_HEADERS, 1, last));
                assert!(frames.wait_for(|frames| frames.is_reset(1) || frames.status(1) == Some(431)));
            }
        });
        println!("{memory} bytes, {cpu:?}");
        assert!(memory < 10 * MIB && cpu < Duration::from_secs(5), "{memory} {cpu:?}");
    }
    assert!(backend.seen().is_empty());
}

#[test]
fn floods_of_control_frames_end_the_connection() {
    let (program, _backend, token) = site(Reply::Hold);
    let post = frame(HEADERS, END_HEADERS, 1, &good_head("POST", "/timbr/api/query/", &token));
    for (name, flood) in [
        ("PING", frame(PING, 0, 0, &[7; 8])),
        ("SETTINGS", frame(SETTINGS, 0, 0, &[])),
        ("PRIORITY", frame(PRIORITY, 0, 3, &[0, 0, 0, 0, 1])),
        ("DATA", frame(DATA, 0, 1, &[])),
        ("unknown", frame(0xfa, 0, 0, &[])),
    ] {
        let mut frames = Frames::connect(program.https, &program.authority_pem);
        frames.send(&post);
        let mut sent = 0;
        let (memory, cpu) = cost(&program, || {
            sent = frames.send_until_ended(100_000, |_| flood.clone());
            frames.wait_for(Frames::has_ended);
        });
        println!("{name}: {sent} frames, {memory} bytes, {cpu:?}");
        assert!(frames.has_ended(), "{name}: {sent}");
        assert!(memory < 20 * MIB && cpu < Duration::from_secs(2), "{name}: {memory} {cpu:?}");
    }
}

#[test]
fn aborted_handshakes_leave_nothing_behind() {
    let (program, _backend, _token) = site(Reply::Name);
    let hello = client_hello(&program);
    let (before, cpu) = (program.settled_descriptors(), program.cpu());
    for _ in 0..200 {
        let mut socket = TcpStream::connect(program.https).expect("connected");
        socket.write_all(&hello).expect("sent");
        // An unencrypted close_notify.
        let _ = socket.write_all(&[21, 3, 3, 0, 2, 1, 0]);
    }
    wait_until("all connections are closed", || program.descriptors() <= before);
    let cpu = program.cpu() - cpu;
    println!("{cpu:?}");
    assert!(cpu < Duration::from_secs(2), "{cpu:?}");
}

#[test]
fn a_client_hello_in_one_byte_records_is_handled() {
    let (program, _backend, _token) = site(Reply::Name);
    let hello = client_hello(&program);
    let mut socket = TcpStream::connect(program.https).expect("connected");
    socket.set_nodelay(true).expect("set");
    let pieces: Vec<u8> = hello[5..].iter().flat_map(|byte| [22, 3, 1, 0, 1, *byte]).collect();
    let _ = socket.write_all(&pieces);
    socket.set_read_timeout(Some(Duration::from_secs(3))).expect("set");
    let mut first = [0];
    let response = socket.read(&mut first);
    assert!(matches!(response, Ok(0 | 1)) && [0, 21, 22].contains(&first[0]), "{response:?} {first:?}");
    assert!(others_are_served(&program) < Duration::from_secs(1));
}

/// The first bytes of a TLS client.
fn client_hello(program: &Program) -> Vec<u8> {
    let config = crate::support::h2_client::tls_config(&program.authority_pem, &["h2"]);
    let name = rustls::pki_types::ServerName::try_from("localhost").expect("a name");
    let mut connection = rustls::ClientConnection::new(config, name).expect("a connection");
    let mut hello = Vec::new();
    connection.write_tls(&mut hello).expect("written");
    hello
}

/// Other clients must not notice a flood, even while it lasts.
#[test]
fn other_clients_are_served_during_a_flood() {
    let (program, _backend, _token) = site(Reply::Name);
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let end = Instant::now() + Duration::from_secs(2);
                while Instant::now() < end {
                    let mut frames = Frames::connect(program.https, &program.authority_pem);
                    frames.send_until_ended(20_000, |_| frame(PING, 0, 0, &[7; 8]));
                }
            });
        }
        let slowest = others_are_served(&program);
        println!("{slowest:?}");
        assert!(slowest < Duration::from_secs(1), "{slowest:?}");
    });
}
