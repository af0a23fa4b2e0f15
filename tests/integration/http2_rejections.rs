//! What the HTTP/2 library decides on its own is visible to operators: each rejected request has a reason.

use std::io::{Read, Write};
use std::sync::mpsc;
use std::time::Duration;

use crate::support::client::JSON;
use crate::support::frames::{
    END_HEADERS, END_STREAM, Frames, GOAWAY, HEADERS, PING, PRIORITY, SETTINGS, WINDOW_UPDATE, frame, good_head, header,
};
use crate::support::gateway::Gateway;
use crate::support::h2_client::tls_stream;
use crate::support::program::Program;
use crate::support::upstream::{Upstream, respond};
use crate::support::wait_until;

fn rejected(reason: &str) -> String {
    format!("timbr_gateway_rejections_total{{reason=\"{reason}\"}}")
}

fn get(stream: u32, head: &[u8]) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | END_STREAM, stream, head)
}

/// A backend whose responses wait for a message each.
fn held() -> (Upstream, mpsc::Sender<()>) {
    let (release, released) = mpsc::channel::<()>();
    let released = std::sync::Mutex::new(released);
    let upstream = Upstream::with_behaviour(move |_, stream| {
        let _ = released.lock().expect("no panic").recv();
        respond(stream, 200, "{}")
    });
    (upstream, release)
}

#[test]
fn malformed_requests_are_counted_with_their_reason() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(upstream.address(), &[]);
    let mut frames = Frames::connect(gateway.https(), gateway.certificate_pem());
    let good = good_head("GET", "/timbr/api/x", &gateway.token());
    let with = |name: &str, value: &str| [&good[..], &header(name, value.as_bytes())].concat();
    let heads = [
        with("connection", "keep-alive"),
        with("te", "gzip"),
        with(":path", "/"),
        with("content-length", "x"),
        with("content-length", "5"),
        header(":method", b"GET"),
    ];
    let streams = (1..).step_by(2);
    for (stream, head) in streams.clone().zip(&heads) {
        frames.send(&get(stream, head));
    }
    assert!(frames.wait_for(|frames| streams.clone().take(heads.len()).all(|stream| frames.is_reset(stream))));
    gateway.expect_metric(&rejected("request_malformed"), 6.0);
    frames.send(&get(101, &good));
    assert!(frames.wait_for(|frames| frames.is_complete(101)) && frames.status(101) == Some(200));
    assert_eq!(upstream.log().len(), 1);
}

/// RFC 9113 section 6.5.2: until a client has received the SETTINGS, it may open any number of streams.
#[test]
fn refused_streams_do_not_end_the_admitted_ones() {
    const OPENED: u32 = 200;
    let (upstream, release) = held();
    let gateway = Gateway::start(upstream.address(), &[("LIMITS_STREAMS", "10")]);
    let mut frames = Frames::connect(gateway.https(), gateway.certificate_pem());
    let head = good_head("GET", "/timbr/api/x", &gateway.token());
    let streams = || (0..OPENED).map(|number| 1 + 2 * number);
    frames.send(&streams().flat_map(|stream| get(stream, &head)).collect::<Vec<_>>());
    assert!(frames.wait_for(|frames| streams().skip(10).all(|stream| frames.is_reset(stream))));
    assert!(!frames.has_ended(), "{:?}", frames.received.last());
    (0..10).for_each(|_| release.send(()).expect("the backend waits"));
    assert!(frames.wait_for(|frames| streams().take(10).all(|stream| frames.is_complete(stream))));
    gateway.expect_metric(&rejected("stream_refused"), 190.0);
}

/// The GOAWAY for too many errors cannot be sent: the client has closed its side with a GOAWAY, or does not read.
#[test]
fn errors_of_a_client_that_gets_no_goaway_delay_no_others() {
    let upstream = Upstream::with_behaviour(|_, stream| respond(stream, 200, &"x".repeat(8 << 20)));
    let gateway = Gateway::start(upstream.address(), &[("WORKERS", "1")]);
    let token = gateway.token();
    let bad = [&good_head("GET", "/timbr/api/x", &token)[..], &header("connection", b"close")].concat();
    let errors = |first: u32| (0..100).flat_map(|number| get(first + 2 * number, &bad)).collect::<Vec<_>>();
    let is_served = || gateway.client().send("GET /elsewhere", &[JSON], b"").status == 404;

    let mut leaving = Frames::connect(gateway.https(), gateway.certificate_pem());
    leaving.send(&[frame(GOAWAY, 0, 0, &[0; 8]), errors(1)].concat());
    assert!((0..20).all(|_| is_served()));

    let mut blocked = tls_stream(gateway.https(), gateway.certificate_pem(), &["h2"]);
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend(frame(SETTINGS, 0, 0, &[0, 4, 0x3f, 0xff, 0xff, 0xff]));
    bytes.extend(frame(WINDOW_UPDATE, 0, 0, &(1_u32 << 30).to_be_bytes()));
    bytes.extend(get(1, &good_head("GET", "/timbr/api/x", &token)));
    blocked.write_all(&bytes).expect("sent");
    wait_until("the response has begun", || upstream.log().len() == 1);
    std::thread::sleep(Duration::from_millis(300));
    blocked.write_all(&errors(3)).expect("sent");
    // It makes room for some of the frames.
    for _ in 0..20 {
        let _ = blocked.read(&mut [0; 64 << 10]);
        assert!(is_served());
    }
}

/// A proxy may send the requests of many users over one connection.
#[test]
fn heads_with_forbidden_bytes_do_not_end_the_connection() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(upstream.address(), &[("LIMITS_RESETS", "5")]);
    let mut frames = Frames::connect(gateway.https(), gateway.certificate_pem());
    let good = good_head("GET", "/timbr/api/x", &gateway.token());
    let malformed = [&good[..], &header("x-note", b"a\0b")].concat();
    for stream in (1..=41).step_by(2) {
        frames.send(&get(stream, &malformed));
        assert!(frames.wait_for(|frames| frames.is_reset(stream)));
    }
    frames.send(&get(43, &good));
    assert!(frames.wait_for(|frames| frames.is_complete(43)) && frames.status(43) == Some(200));
}

#[test]
fn requests_in_flight_of_a_failed_connection_have_a_reason() {
    let (upstream, _release) = held();
    let options = [("LISTEN_ADMIN", "127.0.0.1:0"), ("LIMITS_RESETS", "5")];
    let (program, lines) = Program::start_logged(upstream.address(), &options);
    let head = |path: &str| good_head("GET", path, &program.token());
    // Streams that depend on themselves.
    let provoked = (1..=6).flat_map(|number: u32| {
        let stream = 1 + 2 * number;
        let dependency = [&stream.to_be_bytes()[..], &[0]].concat();
        [get(stream, &head("/timbr/api/reset")), frame(PRIORITY, 0, stream, &dependency)].concat()
    });
    for (path, error) in [("/timbr/api/frame", frame(PING, 0, 0, b"short")), ("/timbr/api/resets", provoked.collect())]
    {
        let mut frames = Frames::connect(program.https, &program.authority_pem);
        let before = upstream.log().len();
        frames.send(&get(1, &head(path)));
        wait_until("the request is forwarded", || upstream.log().len() > before);
        frames.send(&error);
        assert!(frames.wait_for(Frames::has_ended));
        let line = lines.expect("its line is written", |line| line["path"] == path);
        assert_eq!(line["reason"], "connection_error", "{path}");
    }
}
