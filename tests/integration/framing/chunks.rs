//! Chunked bodies. The head may have been forwarded before the error is detected; the end of the body never is.

use super::{Site, between};

const CHUNKED: &str = "POST @T HTTP/1.1\r\n@HTransfer-Encoding: chunked\r\n\r\n";

/// Completes the body for a parser that overlooks the error.
const END: &str = "\r\n0\r\n\r\n";

#[test]
fn a_size_is_hexadecimal_digits() {
    let chunks: &[&[u8]] = &[
        b"10000000000000005\r\nhello",
        b"FFFFFFFFFFFFFFFFF\r\nhello",
        b"FFFFFFFFFFFFFFFF\r\nhello",
        b"8000000000000005\r\nhello",
        b"0000000000000000000000000000000000000005\r\nhello",
        b"0x5\r\nhello",
        b"0X5\r\nhello",
        b"5h\r\nhello",
        b"+5\r\nhello",
        b"-5\r\nhello",
        b"_5\r\nhello",
        b"5_\r\nhello",
        b" 5\r\nhello",
        b"5 5\r\nhello",
        b"\t5\r\nhello",
        b"5\x00\r\nhello",
        b"5\x0b\r\nhello",
        b"5,\r\nhello",
        b"\xef\xbc\x95\r\nhello",
        b"\r\nhello",
        b";x\r\nhello",
        b"5\r\nhello\r\n\r\n5\r\nhello",
        b"five\r\nhello",
    ];
    Site::new(&[]).refuses_within_the_body(&[400], &between(CHUNKED, chunks, END));
}

#[test]
fn white_space_is_accepted_around_a_chunk_extension_only() {
    let site = Site::new(&[]);
    let refused: &[&[u8]] = &[
        b"5 ;\r\nhello",
        b"5; \r\nhello",
        b"5;\r\nhello",
        b"5 \r\nhello",
        b"5\t\r\nhello",
        b"5 x\r\nhello",
        b"5 ;\nx\r\nhello",
    ];
    site.refuses_within_the_body(&[400], &between(CHUNKED, refused, END));
    let served: &[&[u8]] = &[b"5 ;x\r\nhello", b"5\t; x = y\r\nhello", b"5; x ;y\r\nhello", b"5 ; x=\"a b\" \r\nhello"];
    site.serves(b"hello", &between(CHUNKED, served, END));
}

#[test]
fn chunk_lines_end_in_crlf() {
    let chunks: &[&[u8]] = &[
        b"5\nhello",
        b"5\rhello",
        b"5\r\r\nhello",
        b"5\n\r\nhello",
        b"5;x\nhello",
        b"5;x=\"\n\"\r\nhello",
        b"5;x\ry\r\nhello",
        b"5\r\nhello\n0\r\n\r\n",
        b"5\r\nhello\r0\r\n\r\n",
        b"5\r\nhelloXX0\r\n\r\n",
        b"5\r\nhello0\r\n\r\n",
        b"5\r\nhello world\r\n0\r\n\r\n",
        b"4\r\nhello\r\n0\r\n\r\n",
        b"5\r\nhello\r\n0\n\n",
        b"5\r\nhello\r\n0\nX: y\n\n",
        b"5\r\nhello\r\n0\r\n\n",
        b"5\r\nhello\r\n0\r\n\rX",
    ];
    Site::new(&[]).refuses_within_the_body(&[400], &between(CHUNKED, chunks, END));
}

#[test]
fn chunk_extensions_are_limited() {
    let long = format!("5;{}\r\nhello", "x".repeat(17 * 1024));
    let many = "1;xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\r\na\r\n".repeat(2000);
    let cases = between(CHUNKED, &[long.as_bytes()], END);
    let site = Site::new(&[]);
    site.refuses_within_the_body(&[400, 413, 431], &cases);
    // Each extension is short, but there is hardly any data.
    let many = between(CHUNKED, &[many.trim_end().as_bytes()], END);
    site.refuses_within_the_body(&[400, 413, 431], &many);
}

#[test]
fn trailers_are_checked_like_headers() {
    let trailers: &[&[u8]] = &[
        b"no colon\r\n",
        b": x\r\n",
        b" x: y\r\n",
        b"x: y\r\n z\r\n",
        b"x : y\r\n",
        b"x: y\n",
        b"x: a\rb\r\n",
        b"x: a\x00b\r\n",
        b"x\x80: y\r\n",
    ];
    let head = format!("{CHUNKED}5\r\nhello\r\n0\r\n");
    Site::new(&[]).refuses_within_the_body(&[400], &between(&head, trailers, "\r\n"));
}

#[test]
fn trailers_are_limited_in_size_and_number() {
    let long = format!("x: {}\r\n", "y".repeat(70_000));
    let many = "x: y\r\n".repeat(10_000);
    let head = format!("{CHUNKED}5\r\nhello\r\n0\r\n");
    let cases = between(&head, &[long.as_bytes(), many.as_bytes()], "\r\n");
    Site::new(&[]).refuses_within_the_body(&[400, 413, 431], &cases);
}

/// A trailer arrives after the policy decision: it is rejected or ignored, but never has an effect.
#[test]
fn a_trailer_does_not_affect_policy() {
    let site = Site::new(&[]);
    let head = "POST @T HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n";
    let keyless = format!("{head}Transfer-Encoding: chunked\r\nTrailer: x-api-key\r\n\r\n5\r\nhello\r\n0\r\n");
    site.refuses_by_policy(&[400, 401], &between(&keyless, &[b"@K"], "\r\n"));
}

#[test]
fn a_trailer_is_not_forwarded() {
    let site = Site::new(&[]);
    let head = format!("{CHUNKED}5\r\nhello\r\n0\r\n");
    let trailers: &[&[u8]] = &[
        b"Content-Length: 3\r\n",
        b"Transfer-Encoding: identity\r\n",
        b"x-api-key: other\r\n",
        b"x-forwarded-user: root\r\n",
        b"x-api-impersonate-user: root\r\n",
        b"harmless: trailer-mark\r\n",
    ];
    site.judge_each(&between(&head, trailers, "\r\n"), 2, |outcome| {
        if outcome.responses.first().is_some_and(|response| response.status == 400) {
            return super::refused(outcome, &[400]);
        }
        super::served(outcome, b"hello")
    });
    for mark in ["identity", "other", "root", "trailer-mark"] {
        assert!(!site.backend.has_bytes(mark), "{mark} went upstream");
    }
}

#[test]
fn valid_chunks_are_joined() {
    let chunks: &[&[u8]] = &[
        b"5\r\nhello\r\n0\r\n\r\n",
        b"05\r\nhello\r\n000\r\n\r\n",
        b"1\r\nh\r\n4\r\nello\r\n0\r\n\r\n",
        b"5;name=value\r\nhello\r\n0;last\r\n\r\n",
        b"5;name=\"a;b\"\r\nhello\r\n0\r\n\r\n",
    ];
    let site = Site::new(&[]);
    site.serves(b"hello", &between(CHUNKED, chunks, ""));
    assert!(!site.backend.has_bytes("name"), "extensions are not forwarded");
}
