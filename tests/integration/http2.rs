//! Requests over TLS and HTTP/2.

use crate::support::bearer::bearer;
use crate::support::frames::{DATA, END_HEADERS, END_STREAM, Frames, HEADERS, RST_STREAM, frame, good_head};
use crate::support::gateway::{Gateway, setup};
use crate::support::h2_client::H2Client;
use crate::support::upstream::{Upstream, write};

const JSON: (&str, &str) = ("content-type", "application/json");

#[test]
fn token_query_and_rejections_work_over_http2() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(upstream.address(), &[("TOKENS_FOREIGN", "reject")]);
    let client = H2Client::connect(gateway.https(), gateway.certificate_pem());
    let authorization = format!("bearer {}", bearer("alice", "secret"));
    let given = client.send("POST /timbr/api/get_token", &[JSON, ("authorization", &authorization)], b"");
    assert_eq!(given.status, 200);
    let token = given.json()["data"][0].as_str().expect("a token").to_owned();
    let key = ("x-api-key", token.as_str());

    for (line, headers, status, reason) in [
        ("GET /timbr/api/x", &[JSON][..], 401, "api_key_missing"),
        ("GET /timbr/api/x", &[JSON, ("x-api-key", "bad")], 401, "api_key_unknown"),
        ("GET /timbr/api/x", &[JSON, key, key], 400, "field_repeated"),
        ("GET /timbr/api/x", &[JSON, key, ("x_api_key", "bad")], 400, "field_ambiguous"),
        ("GET /timbr/api/x", &[key], 400, "content_type_missing"),
        ("POST /timbr/api/x", &[("content-type", "text/plain"), key], 415, "content_type_unsupported"),
        ("GET /timbr/api//x", &[JSON, key], 400, "request_line_ambiguous"),
        ("GET /timbr/api/x", &[JSON, key, ("host", "elsewhere")], 400, "request_line_ambiguous"),
        ("GET /elsewhere", &[JSON, key], 404, "not_found"),
    ] {
        let refused = client.send(line, headers, b"");
        assert_eq!((refused.status, refused.json()["reason"].as_str()), (status, Some(reason)), "{line} {headers:?}");
    }
    assert!(upstream.log().is_empty());

    let response = client.send("POST /timbr/api/x", &[JSON, key], b"{}");
    assert_eq!(response.status, 200);
    let seen = upstream.only_request();
    assert_eq!((seen.body.as_slice(), seen.header("x-forwarded-proto")), (&b"{}"[..], "https"));
    assert_eq!(seen.header("x-forwarded-host"), "localhost");
    // HTTP/2 requires no length; the backend gets one all the same.
    assert_eq!(seen.header("content-length"), "2");
    let stated = [JSON, key, ("content-length", "2")];
    assert_eq!(client.send("POST /timbr/api/x", &stated, b"{}").status, 200);
    assert_eq!(upstream.log()[1].header("content-length"), "2");
}

#[test]
fn a_rejected_head_request_gets_no_body() {
    let gateway = Gateway::start(Upstream::start().address(), &[]);
    let client = H2Client::connect(gateway.https(), gateway.certificate_pem());
    for line in ["HEAD /elsewhere", "HEAD /timbr/api/x"] {
        let refused = client.send(line, &[JSON], b"");
        assert!(refused.status >= 400 && refused.body.is_empty(), "{line}");
    }
}

/// Some clients lose a response when its stream is reset while they are sending.
#[test]
fn a_rejected_request_may_finish_a_small_body() {
    let gateway = Gateway::start(Upstream::start().address(), &[]);
    let mut frames = Frames::connect(gateway.https(), gateway.certificate_pem());
    let head = good_head("POST", "/timbr/api/x", "unknown-key");
    let part = frame(DATA, 0, 1, &[b'x'; 16 * 1024]);
    frames.send(&frame(HEADERS, END_HEADERS, 1, &head));
    assert!(frames.wait_for(|frames| frames.has_body(1)), "before the body arrives");
    let mut others = (3..).step_by(2);
    // Frames are handled in order: everything about the stream is sent before the response to this one.
    let mut catch_up = |frames: &mut Frames| {
        let other = others.next().expect("some");
        frames.send(&frame(HEADERS, END_HEADERS | END_STREAM, other, &head));
        assert!(frames.wait_for(|frames| frames.has_body(other)));
    };
    for sent in [4, 8, 12, 16] {
        frames.send(&part.repeat(4));
        catch_up(&mut frames);
        assert!(!frames.is_reset(1), "after {sent} parts");
    }
    // The rest of a large body is not awaited, and the stream ends without an error.
    frames.send(&part);
    assert!(frames.wait_for(|frames| frames.is_reset(1)));
    let reset = frames.received.iter().find(|received| received.kind == RST_STREAM).expect("one");
    assert_eq!((reset.stream, reset.code()), (1, 0));

    frames.send(&frame(HEADERS, END_HEADERS, 101, &head));
    assert!(frames.wait_for(|frames| frames.has_body(101)));
    frames.send(&frame(DATA, END_STREAM, 101, b"the end"));
    frames.send(&frame(HEADERS, END_HEADERS | END_STREAM, 103, &head));
    assert!(frames.wait_for(|frames| frames.has_body(103)) && !frames.is_reset(101));
}

#[test]
fn split_cookies_are_joined() {
    let (upstream, gateway, token) = setup(&[]);
    let client = H2Client::connect(gateway.https(), gateway.certificate_pem());
    let headers = [JSON, ("x-api-key", token.as_str()), ("cookie", "a=b"), ("cookie", "c=d")];
    assert_eq!(client.send("GET /timbr/api/x", &headers, b"").status, 200);
    assert_eq!(upstream.only_request().folded_headers("cookie"), ["a=b; c=d"]);
}

#[test]
fn a_large_response_arrives_complete() {
    let upstream = Upstream::with_behaviour(|_, stream| {
        write(stream, b"HTTP/1.1 200 OK\r\nContent-Length: 8388608\r\n\r\n");
        write(stream, &vec![b'x'; 8 * 1024 * 1024])
    });
    let (gateway, token) = Gateway::with_token(upstream.address(), &[]);
    let client = H2Client::connect(gateway.https(), gateway.certificate_pem());
    let response = client.send("GET /timbr/api/x", &[JSON, ("x-api-key", &token)], b"");
    assert_eq!(response.body.len(), 8 * 1024 * 1024);
}

#[test]
fn many_streams_share_a_connection() {
    let (upstream, gateway, token) = setup(&[]);
    let client = H2Client::connect(gateway.https(), gateway.certificate_pem());
    std::thread::scope(|scope| {
        for _ in 0..20 {
            scope.spawn(|| {
                let response = client.send("POST /timbr/api/x", &[JSON, ("x-api-key", &token)], b"{}");
                assert_eq!(response.status, 200);
            });
        }
    });
    assert_eq!(upstream.log().len(), 20);
}

#[test]
fn a_truncated_response_resets_its_stream() {
    let upstream = Upstream::with_behaviour(|_, stream| {
        write(stream, b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf");
        crate::support::upstream::AfterRequest::Reset
    });
    let (gateway, token) = Gateway::with_token(upstream.address(), &[]);
    let client = H2Client::connect(gateway.https(), gateway.certificate_pem());
    let broken = client.try_send("GET /timbr/api/x", &[JSON, ("x-api-key", &token)], b"");
    assert!(broken.expect_err("the truncated response must not look complete").is_reset());
}
