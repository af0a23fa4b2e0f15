//! The length of a body: `Content-Length` and `Transfer-Encoding`.

use super::{Site, between};

const POST: &str = "POST @T HTTP/1.1\r\n@H";

#[test]
fn a_length_is_digits_and_not_repeated() {
    let cases = between(
        POST,
        &[
            b"Content-Length: +5",
            b"Content-Length: -1",
            b"Content-Length: -0",
            b"Content-Length: 5 5",
            b"Content-Length: 5\t5",
            b"Content-Length: 0x5",
            b"Content-Length: 5h",
            b"Content-Length: 5,5",
            b"Content-Length: 5, 5",
            b"Content-Length: 5,",
            b"Content-Length: ,5",
            b"Content-Length: 5.0",
            b"Content-Length: 5e0",
            b"Content-Length: \"5\"",
            b"Content-Length: 5_0",
            b"Content-Length: \xd9\xa5",
            b"Content-Length: 5\xa0",
            b"Content-Length: \x0b5",
            b"Content-Length: 5\x00",
            b"Content-Length:",
            b"Content-Length: ",
            b"Content-Length: 99999999999999999999",
            b"Content-Length: 18446744073709551621",
            b"Content-Length: 340282366920938463463374607431768211461",
            b"Content-Length: 5\r\nContent-Length: 5",
            b"Content-Length: 5\r\nContent-Length: 6",
            b"Content-Length: 0\r\nContent-Length: 5",
            b"Content-Length: 5\r\ncontent-length: 0",
            b"Content-Length:\r\nContent-Length: 5",
            b"Content-Length: 5\r\nX: y\r\nContent-Length:",
            b"Content-Length : 5",
            b"Content-Length\t: 5",
        ],
        "\r\n\r\nhello",
    );
    Site::new(&[]).refuses(&[400], &cases);
}

/// Leading zeros, and white space that the grammar allows, are unambiguous.
#[test]
fn a_length_may_have_leading_zeros_and_white_space() {
    let lengths: &[&[u8]] = &[b"Content-Length: 5", b"Content-Length:5", b"content-length:\t 5 \t"];
    Site::new(&[]).serves(b"hello", &between(POST, lengths, "\r\n\r\nhello"));
}

#[test]
fn a_body_has_one_framing() {
    let both: &[&[u8]] = &[
        b"Content-Length: 5\r\nTransfer-Encoding: chunked",
        b"Transfer-Encoding: chunked\r\nContent-Length: 5",
        b"Content-Length: 0\r\nTransfer-Encoding: chunked",
        b"Transfer-Encoding: chunked\r\nContent-Length: 15",
        b"Content-Length: 5\r\nTransfer-Encoding: identity",
        b"Content-Length: 5\r\nTransfer-Encoding:",
        b"Content-Length: 5\r\nTransfer-Encoding: x",
    ];
    Site::new(&[]).refuses(&[400], &between(POST, both, "\r\n\r\n5\r\nhello\r\n0\r\n\r\n"));
}

#[test]
fn the_only_transfer_coding_is_chunked() {
    let codings: &[&[u8]] = &[
        b"Transfer-Encoding: identity",
        b"Transfer-Encoding: identity, chunked",
        b"Transfer-Encoding: chunked, identity",
        b"Transfer-Encoding: chunked, chunked",
        b"Transfer-Encoding: gzip, chunked",
        b"Transfer-Encoding: chunked, gzip",
        b"Transfer-Encoding: gzip",
        b"Transfer-Encoding: xchunked",
        b"Transfer-Encoding: chunkedx",
        b"Transfer-Encoding: x",
        b"Transfer-Encoding: \"chunked\"",
        b"Transfer-Encoding: 'chunked'",
        b"Transfer-Encoding: chunked;q=1",
        b"Transfer-Encoding: chunk ed",
        b"Transfer-Encoding: ,chunked",
        b"Transfer-Encoding: chunked,",
        b"Transfer-Encoding: \xff\xfechunked",
        b"Transfer-Encoding:",
    ];
    // RFC 9112 section 6.1: 501 for an unknown coding.
    Site::new(&[]).refuses(&[400, 501], &between(POST, codings, "\r\n\r\n5\r\nhello\r\n0\r\n\r\n"));
}

/// Characters that some parsers trim and others do not.
#[test]
fn a_transfer_coding_cannot_be_hidden() {
    let hidden: &[&[u8]] = &[
        b"Transfer-Encoding: \x0bchunked",
        b"Transfer-Encoding:\x0bchunked",
        b"Transfer-Encoding: \x0cchunked",
        b"Transfer-Encoding: \x00chunked",
        b"Transfer-Encoding: chunked\x00",
        b"Transfer-Encoding: \xa0chunked",
        b"Transfer-Encoding: chunked\xa0",
        b"Transfer-Encoding: \x85chunked",
        b"Transfer-Encoding: chunked\x0b",
        b"Transfer-Encoding: \x1fchunked",
        b"Transfer-Encoding: \x7fchunked",
        b"Transfer-Encoding : chunked",
        b"Transfer-Encoding\t: chunked",
        b"Transfer-Encoding\x0b: chunked",
        b"\x0bTransfer-Encoding: chunked",
        b"Transfer-Encoding:\r\n chunked",
        b"Transfer-Encoding:\n chunked",
        b"X: y\nTransfer-Encoding: chunked",
        b"X: y\rTransfer-Encoding: chunked",
        b"Transfer_Encoding: chunked",
        b"Transfer\xadEncoding: chunked",
    ];
    Site::new(&[]).refuses(&[400, 501], &between(POST, hidden, "\r\n\r\n5\r\nhello\r\n0\r\n\r\n"));
}

#[test]
fn transfer_encoding_is_not_repeated() {
    let lines: &[&[u8]] = &[
        b"Transfer-Encoding: identity\r\nTransfer-Encoding: chunked",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: x",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        b"Transfer-Encoding: chunked\r\ntransfer-encoding:",
    ];
    Site::new(&[]).refuses(&[400, 501], &between(POST, lines, "\r\n\r\n5\r\nhello\r\n0\r\n\r\n"));
}

/// HTTP/1.0 has no transfer codings: parsers that support them and parsers that do not disagree about the body.
#[test]
fn http_1_0_with_a_transfer_encoding_is_rejected() {
    let cases = [
        ("alone", "POST @T HTTP/1.0\r\n@HTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"),
        (
            "kept alive",
            "POST @T HTTP/1.0\r\n@HConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        ),
        (
            "with a length",
            "POST @T HTTP/1.0\r\n@HContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        ),
    ];
    Site::new(&[]).refuses(&[400], &cases);
}

/// White space around a value is not part of it (RFC 9110 section 5.5), and codings are case-insensitive.
#[test]
fn a_valid_transfer_coding_is_accepted() {
    let good: &[&[u8]] =
        &[b"Transfer-Encoding: chunked", b"Transfer-Encoding:chunked", b"transfer-encoding:\t Chunked \t"];
    Site::new(&[]).serves(b"hello", &between(POST, good, "\r\n\r\n5\r\nhello\r\n0\r\n\r\n"));
}
