//! Bodies that look like requests, and requests that are rejected before their body has arrived.

use std::time::Duration;

use super::{CLOSING, Site};
use crate::support::wire::Wire;

/// A peer that loses track of the framing would parse this as a separate request.
const WITHIN: &str = "GET /timbr/api/within HTTP/1.1\r\nHost: h\r\n\r\n";

#[test]
fn a_body_is_never_parsed_as_a_request() {
    let site = Site::new(&[]);
    let length = WITHIN.len();
    let chunked = format!("Transfer-Encoding: chunked\r\n\r\n{length:x}\r\n{WITHIN}\r\n0\r\n\r\n");
    let lengthy = format!("Content-Length: {length}\r\n\r\n{WITHIN}");
    let cases: Vec<_> = ["GET", "DELETE", "POST", "PUT", "PATCH"]
        .iter()
        .flat_map(|method| [&chunked, &lengthy].map(|rest| format!("{method} @T HTTP/1.1\r\n@H{rest}")))
        .map(|template| (template.clone(), template))
        .collect();
    site.serves(WITHIN.as_bytes(), &cases);
    assert!(site.backend.find("/timbr/api/within").is_none());
}

/// The response to a HEAD has no body; the body of its request must not be parsed as the next request.
#[test]
fn the_body_of_a_head_request_is_never_parsed_as_a_request() {
    let site = Site::new(&[]);
    let mut wire = Wire::connect(site.gateway.http());
    let length = WITHIN.len();
    let head = format!("HEAD @T HTTP/1.1\r\n@HContent-Length: {length}\r\nConnection: close\r\n\r\n{WITHIN}");
    wire.send(&site.fill(0, head.as_bytes()));
    wire.read_for(CLOSING);
    assert!(wire.closed());
    assert_eq!(wire.bytes().windows(9).filter(|nine| nine.starts_with(b"HTTP/1.1 ")).count(), 1);
    site.settle();
    assert!(site.backend.find("/timbr/api/within").is_none());
    assert_eq!(site.backend.violations(), [""; 0]);
}

/// The rejection is sent before the body is read. The rest is drained, or the connection ends; it is never served.
#[test]
fn the_body_of_a_rejected_request_is_never_parsed_as_a_request() {
    let site = Site::new(&[]);
    for (headers, status) in [
        ("Host: h\r\nContent-Type: application/json\r\n", 401),
        ("Host: h\r\nContent-Type: text/html\r\n@K", 415),
        ("Host: h\r\nContent-Type: multipart/form-data; boundary=x\r\n@K", 415),
        ("Host: h\r\n@K", 400),
    ] {
        let good = format!("GET /timbr/api/within HTTP/1.1\r\n{}\r\n", "@H");
        let good = String::from_utf8(site.fill(0, good.as_bytes())).expect("text");
        for copies in [1, 3000] {
            let body = good.repeat(copies);
            let head = format!("POST @T HTTP/1.1\r\n{headers}Content-Length: {}\r\n\r\n", body.len());
            let mut wire = Wire::connect(site.gateway.http());
            wire.send(&site.fill(0, head.as_bytes()));
            wire.send(body.as_bytes());
            wire.finish();
            let responses = wire.read_for(CLOSING).responses();
            let statuses: Vec<_> = responses.iter().map(|response| response.status).collect();
            assert_eq!(statuses, [status], "{headers:?} {copies}");
        }
    }
    site.settle();
    assert!(site.backend.find("/timbr/api/within").is_none());
}

/// The same with an incomplete body: a waiting client receives the rejection.
#[test]
fn a_rejection_does_not_wait_for_the_body() {
    let site = Site::new(&[]);
    for framing in ["Content-Length: 1000000", "Transfer-Encoding: chunked", "Content-Length: 10"] {
        for expect in ["", "Expect: 100-continue\r\n"] {
            let head =
                format!("POST @T HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n{expect}{framing}\r\n\r\n");
            let mut wire = Wire::connect(site.gateway.http());
            wire.send(&site.fill(0, head.as_bytes()));
            let responses = wire.read_for(CLOSING).responses();
            let statuses: Vec<_> = responses.iter().map(|response| response.status).collect();
            assert_eq!(statuses, [401], "{framing} {expect:?}");
            assert!(wire.closed(), "{framing} {expect:?}");
        }
    }
    site.settle();
    let targets: Vec<_> = site.backend.seen().into_iter().map(|seen| seen.target).collect();
    assert_eq!(targets, ["/timbr/api/afterwards"]);
}

/// A client that learns of the close only by the close could lose its next request.
#[test]
fn a_rejection_announces_the_close_that_an_unread_body_causes() {
    let site = Site::new(&[]);
    let chunk = [b"10000\r\n".as_slice(), &[b'x'; 0x10000], b"\r\n"].concat();
    let chunks = |count: usize| [chunk.repeat(count), b"0\r\n\r\n".to_vec()].concat();
    let (half, late) = (Duration::from_millis(50), Duration::from_millis(600));
    for (framing, body, pause, stays_open) in [
        ("Transfer-Encoding: chunked", chunks(2), Duration::ZERO, true),
        ("Transfer-Encoding: chunked", chunks(2), half, true),
        ("Transfer-Encoding: chunked", chunks(2), late, false),
        ("Transfer-Encoding: chunked", chunks(8), Duration::ZERO, false),
        ("Content-Length: 20000", vec![b'x'; 20_000], Duration::ZERO, true),
        ("Content-Length: 20000", vec![b'x'; 20_000], half, true),
        ("Content-Length: 20000", vec![b'x'; 20_000], late, false),
        ("Content-Length: 600000", vec![b'x'; 600_000], Duration::ZERO, false),
    ] {
        let mut wire = Wire::connect(site.gateway.http());
        let head = format!("POST @T HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n{framing}\r\n\r\n");
        wire.send(&site.fill(0, head.as_bytes()));
        for part in body.chunks(body.len() / 2 + 1) {
            std::thread::sleep(pause);
            wire.send(part);
        }
        let response = wire.read_responses(1, Duration::from_secs(5)).responses().remove(0);
        let what = format!("{framing}, {} bytes, {pause:?}", body.len());
        assert_eq!(response.status, 401, "{what}");
        assert_eq!(response.header("connection") != "close", stays_open, "{what}");
        if stays_open {
            wire.send(&site.fill(0, b"GET @T HTTP/1.1\r\n@H\r\n"));
            let both = wire.read_responses(2, Duration::from_secs(5)).responses();
            assert_eq!(both.last().expect("one").status, 200, "{what}");
        }
    }
}
