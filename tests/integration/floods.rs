//! Clients that ask for more work than they pay for. The gateway is a process of its own here, so that its memory and
//! its CPU time can be read; the bounds hold for a debug build.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use crate::support::frames::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, Frames, HEADERS, PING, PRIORITY, RST_STREAM, SETTINGS,
    WINDOW_UPDATE, field, frame, good_head,
};
use crate::support::h2_client::H2Client;
use crate::support::program::Program;
use crate::support::recorder::{Recorder, Reply};
use crate::support::wait_until;

const MIB: usize = 1024 * 1024;

/// `limits.streams` and a few that were answered or given up meanwhile.
const MOST_UPSTREAM: usize = 128 + 16;

fn site(reply: Reply) -> (Program, Recorder, String) {
    let backend = Recorder::start(reply);
    let program = Program::start(backend.address(), &[("TOKENS_FOREIGN", "reject")]);
    let token = program.token();
    (program, backend, token)
}

/// Runs an attack and says what it cost: memory that stays, and CPU time.
fn cost(program: &Program, attack: impl FnOnce()) -> (usize, Duration) {
    let (memory, cpu) = (program.memory(), program.cpu());
    attack();
    (program.memory().saturating_sub(memory), program.cpu() - cpu)
}

/// While it goes on, others are served in time.
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
    wait_until("such a request goes up, if it is let", || backend.open() == 1);
    drop(patient);
    wait_until("it is given up with its client", || backend.open() == 0);
    let mut sent = 0;
    let (memory, cpu) = cost(&program, || {
        sent = frames.send_until_ended(2000, |number| {
            let stream = 2 * u32::try_from(number).expect("few") + 1;
            let request = frame(HEADERS, END_HEADERS | END_STREAM, stream, &head);
            [request, frame(RST_STREAM, 0, stream, &[0, 0, 0, 8])].concat()
        });
        frames.wait_for(Frames::is_ended);
    });
    let slowest = others_are_served(&program);
    let most = backend.most_open();
    println!("{sent} resets, {most} upstream at most, {memory} bytes, {cpu:?}, others {slowest:?}");
    assert!(frames.is_ended() && most <= MOST_UPSTREAM && slowest < Duration::from_secs(1));
    assert!(memory < 20 * MIB && cpu < Duration::from_secs(5), "{memory} {cpu:?}");
    wait_until("nothing is left upstream", || backend.open() == 0);
}

#[test]
fn resets_that_the_client_has_us_make_end_the_connection() {
    let (program, backend, token) = site(Reply::Hold);
    let head = good_head("GET", "/timbr/api/x", &token);
    // An increment of nothing, and a stream that depends on itself: the gateway has to reset the stream.
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
            frames.wait_for(Frames::is_ended);
        });
        println!("kind {kind}: {} upstream at most, {memory} bytes, {cpu:?}", backend.most_open());
        assert!(backend.most_open() <= MOST_UPSTREAM, "{}", backend.most_open());
        assert!(memory < 20 * MIB && cpu < Duration::from_secs(5), "{memory} {cpu:?}");
        if kind == WINDOW_UPDATE {
            assert!(frames.is_ended());
        }
        drop(frames);
        wait_until("nothing is left upstream", || backend.open() == 0);
    }
    assert!(others_are_served(&program) < Duration::from_secs(1));
}

#[test]
fn a_head_that_is_continued_without_end_is_cut_off() {
    let (program, backend, token) = site(Reply::Name);
    let mut frames = Frames::connect(program.https, &program.authority_pem);
    frames.send(&frame(HEADERS, END_STREAM, 1, &good_head("GET", "/timbr/api/x", &token)));
    let part: Vec<u8> = (0..400).flat_map(|_| field("x-y", &[b'v'; 30])).take(16 * 1024).collect();
    let mut sent = 0;
    let (memory, _) = cost(&program, || {
        sent = frames.send_until_ended(200, |_| frame(CONTINUATION, 0, 1, &part));
    });
    println!("{sent} frames of 16 KiB, {memory} bytes");
    // What was sent includes what only the sockets hold: the gateway has read less.
    assert!(memory < 5 * MIB, "{sent} {memory}");
    assert!(frames.wait_for(|frames| frames.is_reset(1)) && backend.seen().is_empty());
}

#[test]
fn heads_that_unfold_are_refused() {
    let (program, backend, token) = site(Reply::Name);
    let base = good_head("GET", "/timbr/api/x", &token);
    // One entry of the dynamic table, then references of one byte each.
    let entry = [vec![0x40, 1, b'a', 1, b'b'], vec![0xbe; 50_000]].concat();
    let cookies: Vec<u8> = (0..4096).flat_map(|_| field("cookie", b"a=b")).collect();
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
fn frames_that_do_nothing_come_to_an_end() {
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
            frames.wait_for(Frames::is_ended);
        });
        println!("{name}: {sent} frames, {memory} bytes, {cpu:?}");
        assert!(frames.is_ended(), "{name}: {sent}");
        assert!(memory < 20 * MIB && cpu < Duration::from_secs(2), "{name}: {memory} {cpu:?}");
    }
}

#[test]
fn handshakes_that_end_at_once_leave_nothing() {
    let (program, _backend, _token) = site(Reply::Name);
    let hello = client_hello(&program);
    let (before, cpu) = (program.descriptors(), program.cpu());
    for _ in 0..200 {
        let mut socket = TcpStream::connect(program.https).expect("connected");
        socket.write_all(&hello).expect("sent");
        // A close_notify in the clear.
        let _ = socket.write_all(&[21, 3, 3, 0, 2, 1, 0]);
    }
    wait_until("all are gone", || program.descriptors() <= before);
    let cpu = program.cpu() - cpu;
    println!("{cpu:?}");
    assert!(cpu < Duration::from_secs(2), "{cpu:?}");
}

#[test]
fn a_hello_in_records_of_one_byte_is_answered_or_refused() {
    let (program, _backend, _token) = site(Reply::Name);
    let hello = client_hello(&program);
    let mut socket = TcpStream::connect(program.https).expect("connected");
    socket.set_nodelay(true).expect("set");
    let pieces: Vec<u8> = hello[5..].iter().flat_map(|byte| [22, 3, 1, 0, 1, *byte]).collect();
    let _ = socket.write_all(&pieces);
    socket.set_read_timeout(Some(Duration::from_secs(3))).expect("set");
    let mut first = [0];
    let answer = socket.read(&mut first);
    assert!(matches!(answer, Ok(0 | 1)) && [0, 21, 22].contains(&first[0]), "{answer:?} {first:?}");
    assert!(others_are_served(&program) < Duration::from_secs(1));
}

/// What a client says first.
fn client_hello(program: &Program) -> Vec<u8> {
    let config = crate::support::h2_client::tls_config(&program.authority_pem, &["h2"]);
    let name = rustls::pki_types::ServerName::try_from("localhost").expect("a name");
    let mut connection = rustls::ClientConnection::new(config, name).expect("a connection");
    let mut hello = Vec::new();
    connection.write_tls(&mut hello).expect("written");
    hello
}

/// A flood of one must not be felt by others, even while it goes on.
#[test]
fn others_are_served_meanwhile() {
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
