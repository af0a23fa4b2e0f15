//! Streams of an HTTP/2 connection do not affect each other, and see what HTTP/1.1 clients see.

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use serde_json::Value;

use crate::support::frames::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, Frames, GOAWAY, HEADERS, PING, RST_STREAM, WINDOW_UPDATE, frame,
    good_head, header,
};
use crate::support::gateway::Gateway;
use crate::support::h2_client::H2Client;
use crate::support::program::Program;
use crate::support::upstream::{AfterRequest, Recorded, Upstream, respond, write};
use crate::support::wait_until;

const JSON: (&str, &str) = ("content-type", "application/json");

fn connect(gateway: &Gateway) -> (Frames, String) {
    (Frames::connect(gateway.https(), gateway.certificate_pem()), gateway.token())
}

/// A request without a body.
fn get(stream: u32, path: &str, token: &str) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | END_STREAM, stream, &good_head("GET", path, token))
}

/// The head of a request with a body.
fn post(stream: u32, token: &str, more: &[(&str, &str)]) -> Vec<u8> {
    let mut head = good_head("POST", "/timbr/api/x", token);
    for (name, value) in more {
        head.extend(header(name, value.as_bytes()));
    }
    frame(HEADERS, END_HEADERS, stream, &head)
}

fn window_update(stream: u32, bytes: usize) -> Vec<u8> {
    frame(WINDOW_UPDATE, 0, stream, &u32::try_from(bytes).expect("a window").to_be_bytes())
}

/// Responds with 3 MB on `/large`, and otherwise after 1.5 seconds.
fn large_or_slow(request: &Recorded, stream: &mut std::net::TcpStream) -> AfterRequest {
    if request.line.contains("/large") {
        write(stream, b"HTTP/1.1 200 OK\r\nContent-Length: 3000000\r\n\r\n");
        return write(stream, &vec![b'x'; 3_000_000]);
    }
    thread::sleep(Duration::from_millis(1500));
    respond(stream, 200, "\"done\"")
}

/// A proxy in front of the gateway may share the connection among its users.
#[test]
fn a_response_that_is_not_read_ends_its_stream_only() {
    let gateway = Gateway::start(Upstream::with_behaviour(large_or_slow).address(), &[("TIMEOUTS_WRITE", "400ms")]);
    let (mut frames, token) = connect(&gateway);
    frames.send(&window_update(0, 1 << 30));
    frames.send(&[get(1, "/timbr/api/large", &token), get(3, "/timbr/api/slow", &token)].concat());
    assert!(frames.wait_for(|frames| frames.is_complete(3)), "{:?}", frames.received.last());
    assert_eq!(frames.body(3), b"\"done\"");
    assert!(!frames.has_ended() && frames.is_reset(1) && frames.body(1).len() == 65_535);
    gateway.expect_metric("timbr_gateway_requests_in_flight", 0.0);
    frames.send(&get(5, "/timbr/api/slow", &token));
    assert!(frames.wait_for(|frames| frames.is_complete(5)), "the connection serves further requests");
}

/// The window of the connection is used up by the unread response; when that is aborted, the other one continues.
#[test]
fn an_unread_response_gives_way_to_those_that_are_read() {
    let gateway = Gateway::start(Upstream::with_behaviour(large_or_slow).address(), &[("TIMEOUTS_WRITE", "800ms")]);
    let (mut frames, token) = connect(&gateway);
    frames.send(&get(1, "/timbr/api/large", &token));
    assert!(frames.wait_for(|frames| frames.body(1).len() == 65_535));
    frames.send(&get(3, "/timbr/api/large", &token));
    assert!(frames.wait_for(|frames| frames.is_reset(1)) && !frames.is_reset(3) && !frames.has_ended());
    frames.send(&window_update(0, 65_535));
    assert!(frames.wait_for(|frames| frames.body(3).len() == 65_535));
}

#[test]
fn a_request_is_in_flight_until_its_response_has_left() {
    let options = [("LISTEN_ADMIN", "127.0.0.1:0"), ("LOG_ACCESS", "true")];
    let upstream = Upstream::with_behaviour(|_, stream| respond(stream, 200, &"x".repeat(15_000)));
    let (program, lines) = Program::start_logged(upstream.address(), &options);
    let token = program.token();
    let mut frames = Frames::connect(program.https, &program.authority_pem);
    frames.send(&frame(crate::support::frames::SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 1])); // A window of one byte.
    frames.send(&get(1, "/timbr/api/left", &token));
    assert!(frames.wait_for(|frames| frames.body(1).len() == 1));
    let has_left = |line: &Value| line["path"] == "/timbr/api/left";
    assert!(lines.matching(has_left).is_empty());
    drop(frames);
    let line = lines.expect("the line is written", has_left);
    assert_eq!((&line["sent"], &line["complete"]), (&1.into(), &false.into()), "{line}");

    let mut frames = Frames::connect(program.https, &program.authority_pem);
    frames.send(&get(1, "/timbr/api/taken", &token));
    assert!(frames.wait_for(|frames| frames.is_complete(1)));
    let line = lines.expect("the line is written", |line| line["path"] == "/timbr/api/taken");
    assert_eq!((&line["sent"], &line["complete"]), (&15_000.into(), &true.into()), "{line}");
}

#[test]
fn bodies_of_waiting_requests_do_not_fill_the_window_of_the_connection() {
    const WAITING: u32 = 40;
    let (release, released) = mpsc::channel::<()>();
    let released = std::sync::Mutex::new(released);
    let upstream = Upstream::with_behaviour(move |request, stream| {
        if request.line.contains("/first") {
            let _ = released.lock().expect("no panic").recv();
        }
        respond(stream, 200, "{}")
    });
    let gateway = Gateway::start(upstream.address(), &[("UPSTREAM_REQUESTS", "1")]);
    let (mut frames, token) = connect(&gateway);
    frames.send(&get(1, "/timbr/api/first", &token));
    wait_until("the backend is busy", || upstream.log().len() == 1);
    for stream in (0..WAITING).map(|number| 3 + 2 * number) {
        frames.send(&post(stream, &token, &[("content-length", "65535")]));
        for (flags, length) in [(0, 16_384), (0, 16_384), (0, 16_384), (END_STREAM, 16_383)] {
            frames.send(&frame(DATA, flags, stream, &vec![b'x'; length]));
        }
    }
    // A client that exceeds a window has its connection closed.
    assert!(!frames.wait_for(Frames::has_ended), "{:?}", frames.received.last());
    release.send(()).expect("the backend waits");
    assert!(frames.wait_for(|frames| (0..WAITING).all(|number| frames.is_complete(3 + 2 * number))));
    assert!(upstream.log().iter().skip(1).all(|request| request.body.len() == 65_535));
}

#[test]
fn a_client_that_expects_100_continue_gets_it_when_its_request_is_accepted() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(upstream.address(), &[("TOKENS_FOREIGN", "reject")]);
    let (mut frames, token) = connect(&gateway);
    let expects = [("expect", "100-continue"), ("content-length", "5")];
    let heads = |frames: &Frames, stream: u32| {
        frames.received.iter().filter(|frame| frame.kind == HEADERS && frame.stream == stream).count()
    };
    frames.send(&post(1, &token, &expects));
    assert!(frames.wait_for(|frames| heads(frames, 1) == 1));
    assert_eq!(frames.status(1), Some(100));
    frames.send(&frame(DATA, END_STREAM, 1, b"hello"));
    assert!(frames.wait_for(|frames| frames.is_complete(1)) && heads(&frames, 1) == 2);
    assert_eq!(upstream.only_request().body, b"hello");

    frames.send(&post(3, "unknown-key", &expects));
    assert!(frames.wait_for(|frames| frames.is_complete(3)));
    assert_eq!((frames.status(3), heads(&frames, 3)), (Some(401), 1));
    // A client that does not wait needs no 100.
    frames.send(&[post(5, &token, &expects), frame(DATA, END_STREAM, 5, b"hello")].concat());
    assert!(frames.wait_for(|frames| frames.is_complete(5)) && frames.status(5) == Some(200));
}

#[test]
fn an_early_response_arrives_before_the_end_of_the_upload() {
    let upstream = Upstream::with_behaviour_at_head(|stream| {
        respond(stream, 403, "{\"status\":\"error\"}");
    });
    let gateway = Gateway::start(upstream, &[("LIMITS_BUFFER", "16KiB")]);
    let (mut frames, token) = connect(&gateway);
    let part = frame(DATA, 0, 1, &[b'x'; 16_000]);
    frames.send(&post(1, &token, &[("content-length", "160007")]));
    frames.send(&part.repeat(2));
    assert!(frames.wait_for(|frames| frames.is_complete(1)), "{:?}", frames.received.last());
    assert_eq!(frames.status(1), Some(403));
    for _ in 0..4 {
        frames.send(&part.repeat(2));
        // A response to a later request shows that the frames before it were handled.
        thread::sleep(Duration::from_millis(50));
        frames.send(&[]);
        assert!(!frames.is_reset(1));
    }
    frames.send(&frame(DATA, END_STREAM, 1, b"the end"));
    frames.send(&get(3, "/elsewhere", &token));
    assert!(frames.wait_for(|frames| frames.is_complete(3)) && !frames.is_reset(1));
}

/// Whether blanks belong to a value depends on the program that reads it.
#[test]
fn values_with_blanks_at_an_end_are_rejected() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(upstream.address(), &[]);
    let (mut frames, token) = connect(&gateway);
    let values = [" a", "a ", "\ta", "a\t", " ", "\t"];
    for (stream, value) in (1..).step_by(2).zip(values) {
        let head = [good_head("GET", "/timbr/api/x", &token), header("x-note", value.as_bytes())].concat();
        frames.send(&frame(HEADERS, END_HEADERS | END_STREAM, stream, &head));
        assert!(frames.wait_for(|frames| frames.is_complete(stream)), "{value:?}");
        let body = String::from_utf8(frames.body(stream)).expect("text");
        assert!(frames.status(stream) == Some(400) && body.contains("request_malformed"), "{value:?}: {body}");
    }
    assert!(upstream.log().is_empty());
    let head = [good_head("GET", "/timbr/api/x", &token), header("x-note", b"a b"), header("x-empty", b"")].concat();
    frames.send(&frame(HEADERS, END_HEADERS | END_STREAM, 101, &head));
    assert!(frames.wait_for(|frames| frames.is_complete(101)) && frames.status(101) == Some(200));
}

/// As Elixir's Mint does.
#[test]
fn two_window_updates_for_each_small_data_frame_are_normal() {
    const PIECES: usize = 400;
    let (next, pieces) = mpsc::channel::<()>();
    let pieces = std::sync::Mutex::new(pieces);
    let upstream = Upstream::with_behaviour(move |_, stream| {
        write(stream, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
        let pieces = pieces.lock().expect("no panic");
        for _ in 0..PIECES {
            let _ = pieces.recv();
            write(stream, b"1\r\ny\r\n");
        }
        write(stream, b"0\r\n\r\n")
    });
    let gateway = Gateway::start(upstream.address(), &[("LIMITS_CONTROL_FRAMES", "60")]);
    let (mut frames, token) = connect(&gateway);
    frames.send(&get(1, "/timbr/api/x", &token));
    for received in 1..=PIECES {
        next.send(()).expect("the backend waits");
        assert!(frames.wait_for(|frames| frames.body(1).len() == received), "{received}");
        frames.send(&[window_update(0, 1), window_update(1, 1)].concat());
    }
    assert!(frames.wait_for(|frames| frames.is_complete(1)) && !frames.has_ended());
}

/// Each byte of window would cause a frame.
#[test]
fn a_client_that_opens_its_window_byte_by_byte_is_limited() {
    let upstream = Upstream::with_behaviour(|_, stream| respond(stream, 200, &"x".repeat(100_000)));
    let gateway = Gateway::start(upstream.address(), &[("LIMITS_CONTROL_FRAMES", "60")]);
    let (mut frames, token) = connect(&gateway);
    frames.send(&frame(crate::support::frames::SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]));
    frames.send(&get(1, "/timbr/api/x", &token));
    let sent = (0..1000).take_while(|_| {
        frames.send(&window_update(1, 1));
        let received = frames.body(1).len();
        frames.wait_for(|frames| frames.body(1).len() > received || frames.has_ended()) && !frames.has_ended()
    });
    assert!(sent.count() < 300);
}

/// The library limits frames that are smaller than their cost.
#[test]
fn a_body_in_small_frames_is_accepted_whatever_the_number_of_streams() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(upstream.address(), &[("LIMITS_STREAMS", "1")]);
    let (mut frames, token) = connect(&gateway);
    let pieces = [frame(DATA, 0, 1, b"x").repeat(1999), frame(DATA, END_STREAM, 1, b"x")].concat();
    frames.send(&[post(1, &token, &[]), pieces].concat());
    assert!(frames.wait_for(|frames| frames.is_complete(1)), "{:?}", frames.received.last());
    assert_eq!(upstream.only_request().body.len(), 2000);
}

#[test]
fn responses_without_a_body_are_complete_whatever_their_headers_say() {
    let upstream = Upstream::with_behaviour(|request, stream| {
        let status = request.line.rsplit('/').nth(1).and_then(|path| path.split(' ').next()).expect("a path");
        write(stream, format!("HTTP/1.1 {status} X\r\nContent-Length: 5\r\nContent-Type: a/b\r\n\r\n").as_bytes())
    });
    let (gateway, token) = Gateway::with_token(upstream.address(), &[]);
    let client = H2Client::connect(gateway.https(), gateway.certificate_pem());
    for line in ["GET /timbr/api/204", "GET /timbr/api/304", "HEAD /timbr/api/200"] {
        let response = client.send(line, &[JSON, ("x-api-key", &token)], b"");
        assert!(line.ends_with(&response.status.to_string()) && response.body.is_empty(), "{line}: {response:?}");
    }
    gateway.expect_metric("timbr_gateway_requests_in_flight", 0.0);
}

#[test]
fn ping_acknowledgements_without_a_ping_write_no_warnings() {
    let upstream = Upstream::start();
    let (program, lines) = Program::start_logged(upstream.address(), &[]);
    let mut frames = Frames::connect(program.https, &program.authority_pem);
    frames.send(&frame(PING, 1, 0, &[1; 8]).repeat(20));
    frames.send(&get(1, "/timbr/api/seen", "unknown-key"));
    assert!(frames.wait_for(|frames| frames.is_complete(1)));
    lines.expect("the request is logged", |line| line["path"] == "/timbr/api/seen");
    let of_libraries = |line: &Value| line["target"].as_str().is_some_and(|target| target.starts_with("h2"));
    assert!(lines.matching(of_libraries).is_empty());
}

/// The response is over when the client has it, so that a reset does not overtake it.
#[test]
fn a_stream_whose_upload_is_too_large_to_discard_is_reset_after_its_response() {
    let gateway = Gateway::start(Upstream::start().address(), &[]);
    let (mut frames, _) = connect(&gateway);
    frames.send(&post(1, "unknown-key", &[]));
    let mut sent = 0;
    let mut send_body = |frames: &mut Frames, count: usize| {
        let size = count * 16_384;
        assert!(frames.wait_for(|frames| 64 * 1024 + frames.added_window(1) >= sent + size), "the window grows");
        sent += size;
        frames.send(&frame(DATA, 0, 1, &[b'x'; 16_384]).repeat(count));
    };
    send_body(&mut frames, 3);
    assert!(frames.wait_for(|frames| frames.is_complete(1)));
    for _ in 0..5 {
        send_body(&mut frames, 3);
        thread::sleep(Duration::from_millis(30));
    }
    assert!(!frames.is_reset(1), "{:?}", frames.received.last());
    send_body(&mut frames, 2);
    assert!(frames.wait_for(|frames| frames.is_reset(1)));
    let reset = frames.received.iter().find(|received| received.kind == RST_STREAM).expect("one");
    assert_eq!((reset.stream, reset.code()), (1, 0));
}

/// A connection with a request in flight, whose response waits for a message.
fn with_request_in_flight() -> (Gateway, Frames, String, Upstream, mpsc::Sender<()>) {
    let (release, released) = mpsc::channel::<()>();
    let released = std::sync::Mutex::new(released);
    let upstream = Upstream::with_behaviour(move |_, stream| {
        let _ = released.lock().expect("no panic").recv();
        respond(stream, 200, "\"done\"")
    });
    let gateway = Gateway::start(upstream.address(), &[]);
    let (mut frames, token) = connect(&gateway);
    frames.send(&get(1, "/timbr/api/first", &token));
    wait_until("the first request is forwarded", || upstream.log().len() == 1);
    (gateway, frames, token, upstream, release)
}

/// A literal with Huffman coding. Its name is the bytes behind the first one, or the name of a static table entry.
fn coded(start: &[u8], value: &[u8]) -> Vec<u8> {
    [start, &[0x80 | u8::try_from(value.len()).expect("short")], value].concat()
}

/// The library removes a fragment, and ends the connection for a value that it cannot represent.
#[test]
fn a_malformed_head_ends_its_stream_only() {
    let (_gateway, mut frames, token, upstream, release) = with_request_in_flight();
    let good = good_head("GET", "/timbr/api/x", &token);
    let with = |name: &str, value: &[u8]| [&good[..], &header(name, value)].concat();
    let heads = [
        good_head("GET", "/timbr/api/x#y", &token),
        good_head("GET", "/timbr/api/x?a=1#", &token),
        good_head("GET", "/timbr/api/x\0", &token),
        good_head("G T", "/timbr/api/x", &token),
        with("x-note", b"a\0b"),
        with("x-note", b"a\nb"),
        with("x-note", b"a\r\nx-api-key: b"),
        with("x y", b"a"),
        with("X-Upper", b"a"),
        with("te", b"gzip"),
        with(":path", b"/\xe9"),
        with(":authority", b"\xff"),
        with(":scheme", b"\xff"),
        with(":protocol", b"\xff"),
        with(":unknown", b"a"),
        with(":status", b"200"),
        // `/a` and 0; `/` and 0xe9; `P T`; `a`, 0 and `b`; `a` and a line feed: without and with indexing.
        [&good[..], &coded(&[0x04], &[0x60, 0x7f, 0xf8])].concat(),
        [&good[..], &coded(&[0x44], &[0x63, 0xff, 0xfe, 0xbf])].concat(),
        [&good[..], &coded(&[0x02], &[0xd6, 0xa6, 0xff])].concat(),
        [&good[..], &coded(&[0, 1, b'x'], &[0x1f, 0xfe, 0x23])].concat(),
        [&good[..], &coded(&[0x40, 1, b'x'], &[0x1f, 0xfe, 0x23])].concat(),
        [&good[..], &coded(&[0, 1, b'x'], &[0x1f, 0xff, 0xff, 0xff, 0x9f])].concat(),
        [&good[..], &coded(&[0x40, 1, b'x'], &[0x1f, 0xff, 0xff, 0xff, 0x9f])].concat(),
        // `Upper`, `x`, 0 and `y`, and `:foo` as names.
        [&good[..], &coded(&[0x40], &[0xe1, 0x5d, 0x65, 0xb3]), &[1, b'a']].concat(),
        [&good[..], &coded(&[0], &[0xf3, 0xff, 0x8f, 0x5f]), &[1, b'a']].concat(),
        [&good[..], &coded(&[0], &[0xb9, 0x29, 0xcf]), &[1, b'a']].concat(),
    ];
    for (stream, head) in (3..).step_by(2).zip(heads) {
        let (first, second) = head.split_at(head.len() / 2);
        match stream % 4 {
            1 => frames.send(&frame(HEADERS, END_HEADERS | END_STREAM, stream, &head)),
            _ => {
                frames.send(&frame(HEADERS, END_STREAM, stream, first));
                frames.send(&frame(CONTINUATION, END_HEADERS, stream, second))
            }
        };
        // RFC 9113 section 8.1.1: a stream error.
        assert!(frames.wait_for(|frames| frames.is_reset(stream)), "{stream}");
        assert!(!frames.has_ended() && frames.status(stream).is_none(), "{stream}");
    }
    // SECURITY: the library has stored other bytes for it.
    frames.send(&frame(HEADERS, END_HEADERS | END_STREAM, 101, &[&good[..], &[0x40, 1, b'x', 1, 0]].concat()));
    frames.send(&frame(HEADERS, END_HEADERS | END_STREAM, 103, &[&good[..], &[0xbe]].concat()));
    assert!(frames.wait_for(|frames| frames.is_reset(101) && frames.is_reset(103)) && !frames.has_ended());
    release.send(()).expect("the backend waits");
    assert!(frames.wait_for(|frames| frames.is_complete(1)) && frames.body(1) == b"\"done\"");
    assert_eq!(upstream.log().len(), 1);
}

/// As over HTTP/1.1.
#[test]
fn a_target_that_must_be_escaped_is_rejected_with_a_reason() {
    let (_gateway, mut frames, token, upstream, _release) = with_request_in_flight();
    let start = good_head("GET", "/", &token);
    let heads = [
        good_head("GET", "/timbr/api/x?a>b", &token),
        good_head("GET", "/timbr/api/x?a=\"b\"", &token),
        good_head("GET", "/timbr/api/x y", &token),
        good_head("GET", "timbr/api/x", &token),
        // `:path: /x?a>b`, in place of the `:path` that follows `:authority`.
        {
            let path = header(":path", b"/");
            let at = start.windows(path.len()).position(|part| part == path).expect("it has a path");
            let (before, after) = (&start[..at], &start[at + path.len()..]);
            [before, &coded(&[0x44], &[0x63, 0xcf, 0xf8, 0x3f, 0xfb, 0x8f]), after].concat()
        },
    ];
    for (stream, head) in (3..).step_by(2).zip(heads) {
        frames.send(&frame(HEADERS, END_HEADERS | END_STREAM, stream, &head));
        assert!(frames.wait_for(|frames| frames.is_complete(stream)), "{stream}");
        let body = String::from_utf8(frames.body(stream)).expect("text");
        assert!(frames.status(stream) == Some(400) && body.contains("percent-encoded"), "{stream}: {body}");
    }
    assert_eq!(upstream.log().len(), 1);
}

/// The connection ends after its requests in flight.
#[test]
fn a_head_that_is_far_too_large_ends_no_other_stream() {
    let large = header("x-large", &[b'a'; 12_000]);
    let in_frames = |block: &[u8]| {
        let mut frames = frame(HEADERS, END_STREAM, 3, &block[..12_000]);
        block[12_000..].chunks(16_000).for_each(|part| frames.extend(frame(CONTINUATION, 0, 3, part)));
        [frames, frame(CONTINUATION, END_HEADERS, 3, b"")].concat()
    };
    let entry = [&[0x40, 1, b'x', 0x7f, 0x80, 0x1e][..], &[b'a'; 127 + (30 << 7)]].concat();
    let bomb = [&entry[..], &[0xbe; 300]].concat();
    for frames_of_head in [in_frames(&large.repeat(25)), frame(HEADERS, END_STREAM | END_HEADERS, 3, &bomb)] {
        let (_gateway, mut frames, token, upstream, release) = with_request_in_flight();
        frames.send(&frames_of_head);
        assert!(frames.wait_for(|frames| frames.is_complete(3)), "{:?}", frames.received.last());
        let body = String::from_utf8(frames.body(3)).expect("text");
        assert!(body.contains("request_head_too_large"), "{body}");
        // SECURITY: the compression state is lost, so nothing of a later head is served.
        frames.send(&get(5, "/timbr/api/x", &token));
        frames.send(&frame(HEADERS, END_HEADERS | END_STREAM, 7, &[0x82]));
        assert!(frames.wait_for(|frames| frames.is_reset(5) && frames.is_reset(7)));
        assert!(!frames.has_ended() && frames.received.iter().any(|frame| frame.kind == GOAWAY));
        release.send(()).expect("the backend waits");
        assert!(frames.wait_for(|frames| frames.is_complete(1)) && frames.body(1) == b"\"done\"");
        assert_eq!(upstream.log().len(), 1);
    }
}
