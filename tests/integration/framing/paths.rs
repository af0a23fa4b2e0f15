//! Paths that a backend might interpret as a different one, and paths that other gateways serve themselves.

use super::{Site, between};

#[test]
fn ambiguous_paths_are_rejected() {
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
        b"/timbr/api/%7f",
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

/// Letters need no escape. An escaped letter hides a word from path comparisons.
#[test]
fn escaped_letters_are_rejected() {
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

/// No spelling of a path reaches the backend without a key.
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
        let response = outcome.responses.first().ok_or("no response")?;
        super::said_no(response, &[400, 401, 404, 405])
    });
    let seen = site.backend.seen();
    let expected = |target: &str| target.contains("smuggled") || target.contains("afterwards");
    assert!(seen.iter().all(|seen| expected(&seen.target)), "{seen:#?}");
}

/// Admin paths are not served on the client listeners.
#[test]
fn admin_paths_are_not_served_to_clients() {
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
fn the_checked_target_is_the_forwarded_target() {
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
        // The template's `@` has a different meaning, so the head is built here.
        wire.send(format!("GET {target} HTTP/1.1\r\n").as_bytes());
        wire.send(&site.fill(0, b"@H\r\n"));
        let responses = wire.read_responses(1, super::CLOSING).responses();
        assert_eq!(responses.first().map(|response| response.status), Some(200), "{target}: {responses:?}");
        assert!(site.backend.find(target).is_some(), "{target}: {:?}", site.backend.seen());
    }
}
