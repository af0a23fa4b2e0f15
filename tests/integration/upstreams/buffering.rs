//! Request bodies: what is received before the backend is involved, and whom the pauses of a slow client count against.

use std::thread;
use std::time::{Duration, Instant};

use crate::support::frames::{DATA, END_HEADERS, END_STREAM, Frames, HEADERS, frame, good_head};
use crate::support::gateway::{Gateway, setup};
use crate::support::upstream::{AfterRequest, Upstream};
use crate::support::wait_until;

use super::{JSON, endpoint, gateway, post};

fn head(token: &str, framing: &str) -> String {
    format!(
        "POST /timbr/api/x HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nx-api-key: {token}\r\n{framing}\r\n\r\n"
    )
}

fn with_length(token: &str, length: usize) -> String {
    head(token, &format!("Content-Length: {length}"))
}

#[test]
fn a_request_without_its_body_holds_no_slot() {
    let (upstream, gateway, token) = setup(&[("UPSTREAM_REQUESTS", "1")]);
    let mut slow = gateway.client();
    slow.write(with_length(&token, 100).as_bytes());
    slow.write(&[b' '; 99]);
    let mut frames = Frames::connect(gateway.https(), gateway.certificate_pem());
    frames.send(&frame(HEADERS, END_HEADERS, 1, &good_head("POST", "/timbr/api/x", &token)));
    frames.send(&frame(DATA, 0, 1, b"{"));
    gateway.expect_metric("timbr_gateway_requests_in_flight", 2.0);
    assert_eq!(post(&gateway, &token, "quick").status, 200);
    assert_eq!(upstream.log().len(), 1, "the others are not sent");
    slow.write(b" ");
    assert_eq!(slow.read_response().status, 200);
    frames.send(&frame(DATA, END_STREAM, 1, b"}"));
    assert!(frames.wait_for(|frames| frames.status(1) == Some(200)));
}

#[test]
fn a_small_body_is_sent_in_one_piece_with_its_length() {
    let (upstream, gateway, token) = setup(&[("LIMITS_BUFFER", "1KiB")]);
    for (size, is_buffered) in [(0, true), (1000, true), (3000, false)] {
        let mut client = gateway.client();
        client.write(head(&token, "Transfer-Encoding: chunked").as_bytes());
        for _ in 0..size / 500 {
            client.write(format!("1f4\r\n{}\r\n", "x".repeat(500)).as_bytes());
            thread::sleep(Duration::from_millis(20));
        }
        client.write(b"0\r\n\r\n");
        assert_eq!(client.read_response().status, 200);
        let seen = upstream.log().pop().expect("a request");
        assert_eq!(seen.body.len(), size);
        assert_eq!(!seen.folded_headers("content-length").is_empty(), is_buffered, "{seen:?}");
        assert_eq!(seen.folded_headers("transfer-encoding").is_empty(), is_buffered, "{seen:?}");
    }
}

/// The gateway waits for the client, so neither timeout nor failure is the backend's.
#[test]
fn a_pause_within_an_upload_counts_against_the_client() {
    let upstream = Upstream::start();
    let options = [("UPSTREAM_RESPONSE_TIMEOUT", "300ms"), ("TIMEOUTS_BODY", "1200ms")];
    let (gateway, token) = Gateway::with_token(upstream.address(), &options);
    for (first, length) in [(3, 50), (150_000, 200_000)] {
        for continues in [true, false] {
            let mut client = gateway.client();
            let start = Instant::now();
            client.write(with_length(&token, length).as_bytes());
            client.write(&vec![b' '; first]);
            if continues {
                thread::sleep(Duration::from_millis(700));
                client.write(&vec![b' '; length - first]);
                assert_eq!(client.read_response().status, 200, "{length}");
            } else {
                assert_eq!(client.read_response().rejection(), (408, "request_body_stalled".into()), "{length}");
                assert!(start.elapsed() >= Duration::from_millis(1100), "{:?}", start.elapsed());
            }
        }
    }
    let told = endpoint(&gateway, upstream.address());
    assert_eq!((told["failures"].as_u64(), told["answers"].as_u64()), (Some(0), Some(2)), "{told}");
}

/// A backend that times out reads of slow bodies, as gunicorn does.
#[test]
fn slow_clients_cannot_get_a_backend_ejected() {
    let impatient = || {
        Upstream::with_behaviour_at_head(|stream| {
            stream.set_read_timeout(Some(Duration::from_millis(1500))).expect("set");
            let mut rest = vec![0; 200_000];
            if std::io::Read::read_exact(stream, &mut rest).is_err() {
                let _ = stream.shutdown(std::net::Shutdown::Both);
            }
        })
    };
    let backends = [impatient(), impatient()];
    let gateway = gateway(&backends, &[("UPSTREAM_EJECT_AFTER", "1"), ("TIMEOUTS_BODY", "5s")]);
    let token = gateway.token();
    let mut slow: Vec<_> = (0..4)
        .map(|_| {
            let mut client = gateway.client();
            client.write(with_length(&token, 200_000).as_bytes());
            client.write(&[b' '; 100_000]);
            client
        })
        .collect();
    for client in &mut slow {
        assert_eq!(client.read_response().rejection(), (408, "request_body_stalled".into()));
    }
    for backend in backends {
        let told = endpoint(&gateway, backend);
        assert_eq!((told["state"].as_str(), told["failures"].as_u64()), (Some("usable"), Some(0)), "{told}");
    }
}

/// A client that leaves while its request is queued leaves the queue, whatever the size of its body.
#[test]
fn a_client_with_a_body_leaves_the_queue() {
    let upstream = Upstream::with_behaviour(|_, stream| {
        let _ = std::io::Read::read(stream, &mut [0]);
        AfterRequest::Close
    });
    let (gateway, token) = Gateway::with_token(upstream.address(), &[("UPSTREAM_REQUESTS", "1")]);
    let _first = gateway.begin("POST /timbr/api/x", &[JSON, ("x-api-key", &token)], b"{}");
    wait_until("it has arrived", || upstream.log().len() == 1);
    for size in [100, 60_000] {
        let mut leaving = gateway.client();
        leaving.write(with_length(&token, size).as_bytes());
        leaving.write(&vec![b' '; size]);
        gateway.expect_metric("timbr_gateway_requests_queued", 1.0);
        drop(leaving);
        gateway.expect_metric("timbr_gateway_requests_queued", 0.0);
    }
    assert_eq!(upstream.log().len(), 1);
}
