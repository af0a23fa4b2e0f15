//! Requests that would make a lenient proxy forward unchecked bytes.

use super::{Outcome, Site, between, refused, said_no};

/// A request without a key: any response other than 401 means that it was not checked.
const KEYLESS: &str = "GET /timbr/api/tunnelled HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n\r\n";

#[test]
fn connect_and_the_http2_preface_end_the_connection() {
    let lines: &[&[u8]] = &[
        b"CONNECT gateway.test:443 HTTP/1.1\r\n@H\r\n",
        b"CONNECT 127.0.0.1:80 HTTP/1.1\r\n@H\r\n",
        b"CONNECT @T HTTP/1.1\r\n@H\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00",
    ];
    let site = Site::new(&[]);
    let cases = between("", lines, KEYLESS);
    site.judge_each(&cases, usize::MAX, |outcome| refused(outcome, &[400, 404, 405, 501, 505]));
    assert!(!site.backend.has_bytes("tunnelled"));
}

#[test]
fn trace_and_targets_without_a_path_are_rejected() {
    let lines: &[&[u8]] = &[
        b"TRACE @T HTTP/1.1\r\n@H\r\n",
        b"TRACK @T HTTP/1.1\r\n@H\r\n",
        b"OPTIONS * HTTP/1.1\r\n@H\r\n",
        b"GET * HTTP/1.1\r\n@H\r\n",
        b"POST * HTTP/1.1\r\n@HContent-Length: 5\r\n\r\nhello",
        b"OPTIONS @T HTTP/1.1\r\n@H\r\n",
    ];
    Site::new(&[]).refuses_by_policy(&[400, 404, 405, 501], &between("", lines, ""));
}

/// An offer of TLS or a version of HTTP is silently ignored, any other one is rejected. The next request is handled normally.
#[test]
fn an_upgrade_is_not_granted() {
    let refused: &[&[u8]] = &[
        b"Upgrade: foo\r\n",
        b"Upgrade: foo\r\nConnection: upgrade\r\n",
        b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: eA==\r\nSec-WebSocket-Version: 13\r\n",
        b"Upgrade: h2c, foo\r\nConnection: upgrade\r\n",
        b"Upgrade: TLS/1.2\r\nUpgrade: websocket\r\nConnection: upgrade\r\n",
        b"Upgrade: tlsx/1.2\r\nConnection: upgrade\r\n",
    ];
    let declined: &[&[u8]] = &[
        b"Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAARAAAAA\r\n",
        b"Upgrade: TLS/1.2\r\nConnection: Upgrade\r\n",
        b"Upgrade: h2, HTTP/2.0, TLS/1.3\r\nConnection: upgrade\r\n",
        b"Connection: upgrade\r\n",
    ];
    let site = Site::new(&[]);
    let cases = |wishes| between("GET @T HTTP/1.1\r\n@H", wishes, &format!("\r\n{KEYLESS}"));
    site.judge_each(&cases(declined), 3, |outcome| judged_alone(outcome, 200));
    site.judge_each(&cases(refused), 3, |outcome| judged_alone(outcome, 400));
    assert!(!site.backend.has_bytes("tunnelled"));
    for seen in site.backend.seen() {
        for name in ["upgrade", "connection", "http2-settings"] {
            assert_eq!(seen.count(name), 0, "{seen:?}");
        }
    }
}

/// Three requests with three separate responses.
fn judged_alone(outcome: &Outcome, status: u16) -> Result<(), String> {
    let [first, keyless, last] = &outcome.responses[..] else {
        return Err("not exactly three responses".into());
    };
    said_no(keyless, &[401])?;
    ((first.status, last.status) == (status, 200)).then_some(()).ok_or("not served".to_owned())
}
