//! The host of a request, and the syntax of the request line.

use super::{Site, between};

#[test]
fn a_request_line_has_three_parts_and_single_spaces() {
    let lines: &[&[u8]] = &[
        b"GET  @T HTTP/1.1",
        b"GET @T  HTTP/1.1",
        b"GET @T HTTP/1.1 ",
        b" GET @T HTTP/1.1",
        b"GET\t@T HTTP/1.1",
        b"GET @T\tHTTP/1.1",
        b"GET @T\x0bHTTP/1.1",
        b"GET @T x HTTP/1.1",
        b"GET @T",
        b"GET @T ",
        b"GET",
        b"GET HTTP/1.1",
        b"@T HTTP/1.1",
        b"G\x00T @T HTTP/1.1",
        b"GET( @T HTTP/1.1",
        b"G\xc3\x84T @T HTTP/1.1",
        b"\x00GET @T HTTP/1.1",
        b"GET @T\x00 HTTP/1.1",
        b"GET @T\x7f HTTP/1.1",
        b"\rGET @T HTTP/1.1",
        b"\nGET @T HTTP/1.1",
        b"GET @T\rHTTP/1.1",
        b"\x16\x03\x01\x00\x05hello",
    ];
    Site::new(&[]).refuses(&[400], &between("", lines, "\r\n@H\r\n"));
}

#[test]
fn a_version_is_1_0_or_1_1() {
    let versions: &[&[u8]] = &[
        b"HTTP/1.2",
        b"HTTP/2.0",
        b"HTTP/2",
        b"HTTP/3.0",
        b"HTTP/0.9",
        b"HTTP/1",
        b"HTTP/1.",
        b"HTTP/1.11",
        b"HTTP/01.1",
        b"HTTP/1.1x",
        b"HTTP/1,1",
        b"HTTP/11",
        b"http/1.1",
        b"Http/1.1",
        b"HTTPS/1.1",
        b"ICY/1.1",
        b"HTTP /1.1",
        b"HTTP/ 1.1",
    ];
    // 505 is the response for a version that exists.
    Site::new(&[]).refuses(&[400, 505], &between("GET @T ", versions, "\r\n@H\r\n"));
}

#[test]
fn a_request_has_one_host() {
    let rest = "Content-Type: application/json\r\n@K\r\n";
    let hosts: &[&[u8]] = &[
        b"",
        b"Host: a\r\nHost: a\r\n",
        b"Host: a\r\nHost: b\r\n",
        b"Host: a\r\nhost:\r\n",
        b"Host:\r\n",
        b"Host: a, b\r\n",
        b"Host: a,a\r\n",
        b"Host: a b\r\n",
        b"Host: a\tb\r\n",
        b"Host: a/b\r\n",
        b"Host: a?b\r\n",
        b"Host: a#b\r\n",
        b"Host: a\\b\r\n",
        b"Host: user@a\r\n",
        b"Host: http://a\r\n",
        b"Host: a;b\r\n",
        b"Host: \"a\"\r\n",
        b"Host: <a>\r\n",
        b"Host: a\xc3\xa4\r\n",
        b"Host: a:80:80\r\n",
        b"Host: a:\xd9\xa5\r\n",
        b"Host: a:x\r\n",
        b"Host: a:99999999999\r\n",
        b"Host: [::1\r\n",
        b"Host: ::1]\r\n",
        b"Host: :80\r\n",
    ];
    Site::new(&[]).refuses_by_policy(&[400], &between("GET @T HTTP/1.1\r\n", hosts, rest));
}

#[test]
fn valid_hosts_are_accepted() {
    let rest = "Content-Type: application/json\r\n@K\r\n";
    let hosts: &[&[u8]] = &[b"Host: a\r\n", b"host:a.test:8443\r\n", b"HOST: 127.0.0.1\r\n", b"Host: [::1]:80\r\n"];
    Site::new(&[]).serves(b"", &between("GET @T HTTP/1.1\r\n", hosts, rest));
}

#[test]
fn target_and_host_must_agree() {
    let site = Site::new(&[]);
    let others: &[&[u8]] = &[
        b"http://other@T",
        b"http://gateway.test:81@T",
        b"http://gateway.test:443@T",
        b"https://gateway.test:80@T",
        b"http://gateway.test:080@T",
        b"http://gateway.test.@T",
        b"http://user@gateway.test@T",
        b"http://gateway.test@other@T",
        b"http://@T",
        b"http:@T",
        b"ftp://gateway.test@T",
        b"file://@T",
        b"//gateway.test@T",
        b"gateway.test@T",
        b"@T#fragment",
        b"/timbr/api/get_token#@T",
        b"@T?a#b",
    ];
    site.refuses_by_policy(&[400], &between("GET ", others, " HTTP/1.1\r\n@H\r\n"));
    let same: &[&[u8]] = &[b"http://gateway.test@T", b"http://GATEWAY.test@T", b"HTTP://gateway.test:80@T"];
    site.serves(b"", &between("GET ", same, " HTTP/1.1\r\n@H\r\n"));
}
