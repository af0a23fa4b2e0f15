//! The same over TLS and HTTP/2.

use crate::support::bearer::bearer;
use crate::support::frames::{DATA, END_HEADERS, END_STREAM, Frames, HEADERS, RST_STREAM, frame, good_head};
use crate::support::gateway::Gateway;
use crate::support::h2_client::H2Client;
use crate::support::upstream::{Upstream, write};

const JSON: (&str, &str) = ("content-type", "application/json");

#[test]
fn token_and_query_work_and_refusals_are_the_same() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(upstream.address(), &[("TOKENS_FOREIGN", "reject")]);
    let client = H2Client::connect(gateway.https(), gateway.certificate_pem());
    let authorization = format!("bearer {}", bearer("alice", "secret"));
    let given = client.send("POST /timbr/api/get_token", &[JSON, ("authorization", &authorization)], b"");
    assert_eq!(given.status, 200);
    let token = given.json()["data"][0].as_str().expect("a token").to_owned();
    let key = ("x-api-key", token.as_str());

    for (line, fields, status, reason) in [
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
        let refused = client.send(line, fields, b"");
        assert_eq!(
            (refused.status, refused.json()["reason"].as_str()),
            (status, Some(reason)),
            "{line} {fields:?}"
        );
    }
    assert!(upstream.log().is_empty());

    let answer = client.send("POST /timbr/api/x", &[JSON, key], b"{}");
    assert_eq!(answer.status, 200);
    let seen = upstream.only();
    assert_eq!((seen.body.as_slice(), seen.field("x-forwarded-proto")), (&b"{}"[..], "https"));
    assert_eq!(seen.field("x-forwarded-host"), "localhost");
    // HTTP/2 needs no length; where the client states none, the backend gets chunks.
    assert_eq!(seen.field("transfer-encoding"), "chunked");
    let stated = [JSON, key, ("content-length", "2")];
    assert_eq!(client.send("POST /timbr/api/x", &stated, b"{}").status, 200);
    assert_eq!(upstream.log()[1].field("content-length"), "2");
}

#[test]
fn a_head_request_that_is_refused_gets_no_body() {
    let gateway = Gateway::start(Upstream::start().address(), &[]);
    let client = H2Client::connect(gateway.https(), gateway.certificate_pem());
    for line in ["HEAD /elsewhere", "HEAD /timbr/api/x"] {
        let refused = client.send(line, &[JSON], b"");
        assert!(refused.status >= 400 && refused.body.is_empty(), "{line}");
    }
}

/// There are clients that lose an answer when its stream is reset while they are sending.
#[test]
fn a_refused_request_may_send_a_small_body_to_the_end() {
    let gateway = Gateway::start(Upstream::start().address(), &[]);
    let mut frames = Frames::connect(gateway.https(), gateway.certificate_pem());
    let head = good_head("POST", "/timbr/api/x", "nobody's");
    let part = frame(DATA, 0, 1, &[b'x'; 16 * 1024]);
    frames.send(&frame(HEADERS, END_HEADERS, 1, &head));
    assert!(frames.wait_for(|frames| frames.has_answered(1)), "before the body comes");
    let mut others = (3..).step_by(2);
    // Frames are dealt with in their order: what there was to say about the stream is said before this is answered.
    let mut catch_up = |frames: &mut Frames| {
        let other = others.next().expect("some");
        frames.send(&frame(HEADERS, END_HEADERS | END_STREAM, other, &head));
        assert!(frames.wait_for(|frames| frames.has_answered(other)));
    };
    for sent in [4, 8, 12, 16] {
        frames.send(&part.repeat(4));
        catch_up(&mut frames);
        assert!(!frames.is_reset(1), "after {sent} parts");
    }
    // A large one is not waited for, and no error is said.
    frames.send(&part);
    assert!(frames.wait_for(|frames| frames.is_reset(1)));
    let reset = frames.came.iter().find(|came| came.kind == RST_STREAM).expect("one");
    assert_eq!((reset.stream, reset.code()), (1, 0));

    frames.send(&frame(HEADERS, END_HEADERS, 101, &head));
    assert!(frames.wait_for(|frames| frames.has_answered(101)));
    frames.send(&frame(DATA, END_STREAM, 101, b"the end"));
    frames.send(&frame(HEADERS, END_HEADERS | END_STREAM, 103, &head));
    assert!(frames.wait_for(|frames| frames.has_answered(103)) && !frames.is_reset(101));
}

#[test]
fn cookies_that_were_split_arrive_as_one() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(upstream.address(), &[]);
    let token = gateway.token();
    let client = H2Client::connect(gateway.https(), gateway.certificate_pem());
    let fields = [JSON, ("x-api-key", token.as_str()), ("cookie", "a=b"), ("cookie", "c=d")];
    assert_eq!(client.send("GET /timbr/api/x", &fields, b"").status, 200);
    assert_eq!(upstream.only().folded("cookie"), ["a=b; c=d"]);
}

#[test]
fn a_large_answer_comes_whole() {
    let upstream = Upstream::behaving(|_, stream| {
        write(stream, b"HTTP/1.1 200 OK\r\nContent-Length: 8388608\r\n\r\n");
        write(stream, &vec![b'x'; 8 * 1024 * 1024])
    });
    let gateway = Gateway::start(upstream.address(), &[]);
    let token = gateway.token();
    let client = H2Client::connect(gateway.https(), gateway.certificate_pem());
    let answer = client.send("GET /timbr/api/x", &[JSON, ("x-api-key", &token)], b"");
    assert_eq!(answer.body.len(), 8 * 1024 * 1024);
}

#[test]
fn many_streams_share_a_connection() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(upstream.address(), &[]);
    let token = gateway.token();
    let client = H2Client::connect(gateway.https(), gateway.certificate_pem());
    std::thread::scope(|scope| {
        for _ in 0..20 {
            scope.spawn(|| {
                let answer = client.send("POST /timbr/api/x", &[JSON, ("x-api-key", &token)], b"{}");
                assert_eq!(answer.status, 200);
            });
        }
    });
    assert_eq!(upstream.log().len(), 20);
}

#[test]
fn an_answer_that_breaks_off_resets_its_stream() {
    let upstream = Upstream::behaving(|_, stream| {
        write(stream, b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf");
        crate::support::upstream::Then::Reset
    });
    let gateway = Gateway::start(upstream.address(), &[]);
    let token = gateway.token();
    let client = H2Client::connect(gateway.https(), gateway.certificate_pem());
    let broken = client.try_send("GET /timbr/api/x", &[JSON, ("x-api-key", &token)], b"");
    assert!(broken.expect_err("never an answer that looks whole").is_reset());
}
