//! Header lines: their boundaries and characters.

use super::{Site, between};

const POST: &str = "POST @T HTTP/1.1\r\n@H";

#[test]
fn a_header_is_one_line() {
    let folded: &[&[u8]] = &[
        b"X: a\r\n b\r\n",
        b"X: a\r\n\tb\r\n",
        b"X:\r\n b\r\n",
        b"X: a\r\n \r\n",
        b"X: a\r\n\t\r\n",
        b"X: a\r\n Content-Length: 5\r\n",
        b"X: a\r\n Transfer-Encoding: chunked\r\n",
    ];
    Site::new(&[]).refuses(&[400], &between(POST, folded, "\r\n"));
}

#[test]
fn nothing_may_precede_the_first_header() {
    let spaces: &[&[u8]] = &[b" Host: h\r\n", b"\tHost: h\r\n", b" \r\n", b"\t\r\n", b" X: y\r\n", b"\x0bX: y\r\n"];
    Site::new(&[]).refuses(&[400], &between("GET @T HTTP/1.1\r\n", spaces, "@H\r\n"));
}

#[test]
fn header_lines_end_in_crlf() {
    let cases = [
        ("all bare LF", "GET @T HTTP/1.1\nHost: h\nContent-Type: application/json\n\n"),
        ("request line", "GET @T HTTP/1.1\n@H\r\n"),
        ("a field", "GET @T HTTP/1.1\r\n@HX: y\nZ: y\r\n\r\n"),
        ("the last header", "GET @T HTTP/1.1\r\n@HX: y\n\r\n"),
        ("the empty line", "GET @T HTTP/1.1\r\n@H\n"),
        ("LF before CRLF", "GET @T HTTP/1.1\r\n@HX: y\n\r\nZ: y\r\n\r\n"),
        ("bare CR between headers", "GET @T HTTP/1.1\r\n@HX: y\rZ: y\r\n\r\n"),
        ("bare CR in a value", "GET @T HTTP/1.1\r\n@HX: a\rb\r\n\r\n"),
        ("bare CR in a name", "GET @T HTTP/1.1\r\n@HX\rY: a\r\n\r\n"),
        ("bare CR after the request line", "GET @T HTTP/1.1\r@H\r\n"),
        ("CR CR LF", "GET @T HTTP/1.1\r\n@HX: y\r\r\n\r\n"),
        ("CR CR LF at the end", "GET @T HTTP/1.1\r\n@H\r\r\n"),
        ("bare CR twice", "GET @T HTTP/1.1\r\n@HX: y\r\r"),
    ];
    Site::new(&[]).refuses(&[400], &cases);
}

#[test]
fn a_header_name_is_a_token() {
    let names: &[&[u8]] = &[
        b": x",
        b" : x",
        b"X Y: z",
        b"X\x00: y",
        b"X\x0b: y",
        b"X\x7f: y",
        b"X\x80: y",
        b"\xc3\xa4: y",
        b"X(: y",
        b"X,Y: z",
        b"X/Y: z",
        b"X[0]: z",
        b"X@Y: z",
        b"\"X\": z",
        b"X{}: z",
        b"X;Y: z",
        b"X=Y: z",
        b"X\\Y: z",
        b"X",
        b"X Y",
        b"\x00: y",
        b"X\xa0: y",
    ];
    Site::new(&[]).refuses(&[400], &between(POST, names, "\r\n\r\n"));
}

#[test]
fn a_value_has_no_control_characters() {
    let values: &[&[u8]] = &[
        b"X: a\x00b",
        b"X: \x00",
        b"X: a\x01b",
        b"X: a\x08b",
        b"X: a\x0bb",
        b"X: a\x0cb",
        b"X: a\x1bb",
        b"X: a\x7fb",
        b"x-request-id: a\x00b",
    ];
    Site::new(&[]).refuses(&[400], &between(POST, values, "\r\n\r\n"));
}

/// A name whose length overflowed some parser's counter hid the length behind it.
#[test]
fn a_long_name_does_not_hide_a_length() {
    for length in [255, 256, 270, 32_767, 65_535, 65_536, 65_806] {
        let name = "a".repeat(length);
        let two = format!("Content-Length: 0\r\n{name}: x\r\nContent-Length: 70\r\n\r\n");
        let cases = between(POST, &[two.as_bytes()], "");
        Site::new(&[]).refuses(&[400, 431], &cases);
    }
}
