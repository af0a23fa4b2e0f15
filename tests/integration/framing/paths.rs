//! Paths that a backend might read as another one, and paths that other gateways answer by themselves.

use super::{Site, between};

#[test]
fn a_path_has_one_reading() {
    let paths: &[&[u8]] = &[
        b"/@T",
        b"/timbr//api/x",
        b"/timbr/api//",
        b"/timbr/./api/x",
        b"/timbr/api/./x",
        b"/timbr/api/../api/x",
        b"/timbr/api/..",
        b"/timbr/api/.",
        b"/timbr/openapi/../api/x",
        b"/timbr/api/%2e%2e/x",
        b"/timbr/api/%2E/x",
        b"/timbr/api/.%2e/x",
        b"/timbr/api/%2fx",
        b"/timbr/api%2fx",
        b"/timbr%2Fapi/x",
        b"/timbr/api/%5cx",
        b"/timbr/api/%5Cx",
        b"/timbr/api/\\x",
        b"/timbr/api\\x",
        b"/timbr/api/x;a=b",
        b"/timbr/api/;/x",
        b"/timbr/api/..;/x",
        b"/timbr/api/%00x",
        b"/timbr/api/x%00",
        b"/timbr/api/%0a",
        b"/timbr/api/%0d%0aX:%20y",
        b"/timbr/api/%zz",
        b"/timbr/api/%",
        b"/timbr/api/%2",
        b"/timbr/api/%u002e",
        b"/timbr/api/%252e%252e/x",
        b"/timbr/api/\xc3\xa4",
        b"/timbr/api/\xff",
        b"/timbr/api/\x80x",
        b"/timbr/api/\xc0\xaex",
        b"/timbr/api/x\"y",
        b"/timbr/api/<x>",
        b"/timbr/api/x|y",
        b"/timbr/api/x^y",
        b"/timbr/api/{x}",
        b"/timbr/api/`x`",
    ];
    Site::new(&[]).refuses_by_policy(&[400], &between("GET ", paths, " HTTP/1.1\r\n@H\r\n"));
}

/// A letter needs no escape. Who writes one hides a word from whoever compares paths as they stand.
#[test]
fn letters_are_not_escaped() {
    let paths: &[&[u8]] = &[
        b"/timbr/api/get_to%6ben",
        b"/timbr/api/get%5Ftoken",
        b"/timbr/%61pi/x",
        b"/timbr/api/%41",
        b"/timbr/api/%7e",
        b"/timbr/api/%2D",
        b"/timbr/api/%30",
    ];
    Site::new(&[]).refuses_by_policy(&[400], &between("POST ", paths, " HTTP/1.1\r\n@H\r\n"));
}

/// Whatever the spelling, no path reaches the backend without a key.
#[test]
fn no_spelling_passes_without_a_key() {
    let site = Site::new(&[]);
    let paths: &[&[u8]] = &[
        b"@T",
        b"/@T",
        b"@T/../../get_token",
        b"/timbr/api/get_token/..@T",
        b"/timbr/api/get_token;@T",
        b"/timbr/api/get_token%2f..@T",
        b"/timbr/api/get_token?@T",
        b"/timbr/api/get_token/x@T",
        b"/TIMBR/API/x",
        b"/timbr/api/get_token%20@T",
        b"/timbr/api/get_token.json",
        b"/livez@T",
    ];
    let end = " HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n\r\n";
    site.judge_each(&between("GET ", paths, end), 1, |outcome| {
        let answer = outcome.answers.first().ok_or("no answer")?;
        super::said_no(answer, &[400, 401, 404, 405])
    });
    let seen = site.backend.seen();
    let expected = |target: &str| target.contains("smuggled") || target.contains("afterwards");
    assert!(seen.iter().all(|seen| expected(&seen.target)), "{seen:#?}");
}

/// What an operator may see is not served where clients come in.
#[test]
fn the_gateway_keeps_its_own_affairs_to_itself() {
    let paths: &[&[u8]] = &[
        b"/metrics",
        b"/metrics/",
        b"/debug",
        b"/debug/pprof/",
        b"/healthz",
        b"/livez",
        b"/readyz",
        b"/admin",
        b"/admin/",
        b"/config",
        b"/status",
        b"/stats",
        b"/server-status",
        b"/.well-known/x",
        b"/",
        b"/favicon.ico",
    ];
    Site::new(&[]).refuses_by_policy(&[404], &between("GET ", paths, " HTTP/1.1\r\n@H\r\n"));
}

#[test]
fn what_was_judged_is_what_is_sent() {
    let site = Site::new(&[]);
    for target in [
        "/timbr/api/a%20b",
        "/timbr/api/%C3%A4",
        "/timbr/api/%c3%a4",
        "/timbr/api/x?a=//b/../c;d\\e|%2e%2f",
        "/timbr/api/x?",
        "/timbr/api/x??a?b",
        "/timbr/api/v1.2/..x/x..",
        "/timbr/api/a+b,c:d@e!$&'()*=~",
    ] {
        let mut wire = crate::support::wire::Wire::connect(site.gateway.http());
        // The template's `@` stands for something else, so the head is put together here.
        wire.send(format!("GET {target} HTTP/1.1\r\n").as_bytes());
        wire.send(&site.fill(0, b"@H\r\n"));
        let answers = wire.read_answers(1, super::CLOSING).answers();
        assert_eq!(answers.first().map(|answer| answer.status), Some(200), "{target}: {answers:?}");
        assert!(site.backend.find(target).is_some(), "{target}: {:?}", site.backend.seen());
    }
}
