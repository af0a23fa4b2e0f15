//! The head of a request: parsing and writing. It knows nothing about routes and policies.

use bytes::Bytes;
use http::{Method, Uri, Version};

use crate::base::byte_class::ByteClass;
use crate::http::h1::head::{Framing, HeadError, HeadLimits, body_framing, is_keep_alive};
use crate::http::h1::response::write_header;
use crate::http::headers::{Head, HeaderName, Headers, ParsedHeaders};

/// A parsed request head.
#[derive(Debug)]
pub struct RequestHead {
    /// Method, target and headers.
    pub head: Head,
    /// HTTP/1.1 or HTTP/1.0.
    pub version: Version,
    /// How the end of the body is determined.
    pub framing: Framing,
    /// Whether the client keeps the connection open after this request.
    pub keep_alive: bool,
    /// Whether the client waits for `100 Continue` before it sends the body.
    pub expects_continue: bool,
}

/// Maximum length of a target that [`Uri`] can hold.
const MAX_TARGET: usize = 65_534;

/// The cause of the rejection of a target that `http` does not accept.
pub const INVALID_TARGET: &str = "the target is not a path, or has characters that must be percent-encoded";

/// Up to this number of headers is parsed without a heap allocation.
const STACK_HEADERS: usize = 32;

/// Parses a complete head, whose end [`HeadScanner::find_end`](super::head::HeadScanner::find_end) has found. The
/// headers keep its memory.
pub fn parse_request(head: Vec<u8>, limits: &HeadLimits) -> Result<RequestHead, HeadError> {
    let mut on_stack = [const { std::mem::MaybeUninit::<httparse::Header<'_>>::uninit() }; STACK_HEADERS];
    let mut parsed = httparse::Request::new(&mut []);
    let request = match parsed.parse_with_uninit_headers(&head, &mut on_stack) {
        Ok(status) => ParsedRequest::check(&head, &parsed, status, limits)?,
        Err(httparse::Error::TooManyHeaders) => {
            let mut on_heap = vec![httparse::EMPTY_HEADER; limits.max_headers];
            let mut parsed = httparse::Request::new(&mut on_heap);
            let status = parsed.parse(&head).map_err(head_error)?;
            ParsedRequest::check(&head, &parsed, status, limits)?
        }
        Err(error) => return Err(head_error(error)),
    };
    request.into_request_head(head)
}

fn head_error(error: httparse::Error) -> HeadError {
    HeadError::Malformed(match error {
        httparse::Error::TooManyHeaders => return HeadError::TooManyHeaders,
        httparse::Error::HeaderName => "a header name has invalid characters, or a header is folded",
        httparse::Error::HeaderValue => "a header value has invalid characters",
        httparse::Error::Version => "the version is not HTTP/1.1 or HTTP/1.0",
        _ => "the request line is not a method, a target and a version, with one space between them",
    })
}

/// The parts of a head, before ownership of its memory is taken.
struct ParsedRequest {
    method: Method,
    uri: Uri,
    version: Version,
    headers: ParsedHeaders,
}

impl ParsedRequest {
    fn check(
        head: &[u8],
        parsed: &httparse::Request<'_, '_>,
        status: httparse::Status<usize>,
        limits: &HeadLimits,
    ) -> Result<ParsedRequest, HeadError> {
        const BROKEN: HeadError = HeadError::Malformed("the head is incomplete");
        if status != httparse::Status::Complete(head.len()) {
            return Err(BROKEN);
        }
        let target = parsed.path.ok_or(BROKEN)?;
        // The gateway compares it with `limits.uri`, as over HTTP/2, once it knows the route.
        if target.len() > MAX_TARGET {
            return Err(HeadError::TargetTooLong);
        }
        if parsed.headers.len() > limits.max_headers {
            return Err(HeadError::TooManyHeaders);
        }
        // SECURITY: `http::Uri` silently drops a fragment; a program that keeps it sees a different path.
        if !ByteClass::TARGET.contains_all(target.as_bytes()) {
            return Err(HeadError::Malformed("the target has characters that must be percent-encoded"));
        }
        let method = parsed.method.ok_or(BROKEN)?;
        let method = Method::from_bytes(method.as_bytes()).map_err(|_| BROKEN)?;
        let uri = Uri::from_maybe_shared(Bytes::copy_from_slice(target.as_bytes()))
            .map_err(|_| HeadError::Malformed(INVALID_TARGET))?;
        let version = if parsed.version == Some(1) { Version::HTTP_11 } else { Version::HTTP_10 };
        Ok(ParsedRequest { method, uri, version, headers: ParsedHeaders::new(head, parsed.headers) })
    }

    fn into_request_head(self, head: Vec<u8>) -> Result<RequestHead, HeadError> {
        let ParsedRequest { method, uri, version, headers } = self;
        let size = head.len();
        let headers = headers.into_headers(head);
        check_single_host(&headers, version)?;
        let framing = body_framing(&headers, version)?.unwrap_or(Framing::None);
        let keep_alive = is_keep_alive(&headers, version);
        let expects_continue = version == Version::HTTP_11
            && framing != Framing::None
            && headers.get(HeaderName::Expect).is_some_and(|value| value.eq_ignore_ascii_case(b"100-continue"));
        let head = Head { method, uri, headers, size };
        Ok(RequestHead { head, version, framing, keep_alive, expects_continue })
    }
}

/// Exactly one `Host` in HTTP/1.1, at most one in HTTP/1.0 (RFC 9112 section 3.2).
fn check_single_host(headers: &Headers, version: Version) -> Result<(), HeadError> {
    match headers.all(HeaderName::Host).count() {
        1 => Ok(()),
        0 if version == Version::HTTP_10 => Ok(()),
        0 => Err(HeadError::Malformed("the header `Host` is missing")),
        _ => Err(HeadError::Malformed("the header `Host` occurs twice")),
    }
}

/// Writes an HTTP/1.1 request line, with the target in origin form, but without its line end: headers and
/// [`write_request_end`] follow.
pub fn write_request_start(out: &mut Vec<u8>, method: &Method, uri: &Uri) {
    out.extend_from_slice(method.as_str().as_bytes());
    out.push(b' ');
    let target = uri.path_and_query().map_or("/", |target| target.as_str());
    // A URL may have a query without a path; the origin form always has a path (RFC 9112 section 3.2.1).
    if target.starts_with('?') {
        out.push(b'/');
    }
    out.extend_from_slice(target.as_bytes());
    out.extend_from_slice(b" HTTP/1.1");
}

/// Writes the header that declares the framing of the body, and the end of the head.
pub fn write_request_end(out: &mut Vec<u8>, method: &Method, framing: Framing) {
    match framing {
        // RFC 9110 section 8.6: if the method gives a body a meaning, its absence is declared.
        Framing::None if matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::DELETE) => {}
        Framing::None => write_header(out, HeaderName::ContentLength, b"0"),
        Framing::Length(length) => {
            write_header(out, HeaderName::ContentLength, itoa::Buffer::new().format(length).as_bytes());
        }
        Framing::Chunked => write_header(out, HeaderName::TransferEncoding, b"chunked"),
    }
    out.extend_from_slice(b"\r\n\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::h1::head::HeadScanner;

    const LIMITS: HeadLimits = HeadLimits { max_headers: 100, max_bytes: 32 * 1024 };

    fn head(text: &[u8]) -> Result<RequestHead, HeadError> {
        match HeadScanner::default().find_end(text, &LIMITS)? {
            Some(end) => parse_request(text[..end].to_vec(), &LIMITS),
            None => Err(HeadError::Malformed("unfinished")),
        }
    }

    fn with(headers: &str) -> Result<RequestHead, HeadError> {
        head(format!("POST /p HTTP/1.1\r\nHost: h\r\n{headers}\r\n").as_bytes())
    }

    #[test]
    fn a_query_without_a_path_gets_one() {
        let read = head(b"GET http://h?x HTTP/1.1\r\nHost: h\r\n\r\n").expect("a request");
        let mut out = Vec::new();
        write_request_start(&mut out, &read.head.method, &read.head.uri);
        assert!(out.starts_with(b"GET /?x HTTP/1.1"), "{}", out.escape_ascii());
    }

    #[test]
    fn a_plain_request_is_parsed() {
        let head = with("Content-Type: application/json\r\nX-Api-Key: k \r\nContent-Length: 5\r\n").expect("good");
        assert_eq!((head.head.method.as_str(), head.head.uri.path()), ("POST", "/p"));
        assert_eq!(
            head.head.headers.get(HeaderName::XApiKey),
            Some(&b"k"[..]),
            "whitespace around a value is not part of it"
        );
        assert_eq!((head.framing, head.keep_alive), (Framing::Length(5), true));
        assert!(!with("Connection: foo, Close\r\n").expect("good").keep_alive);
        assert!(with("Expect: 100-Continue\r\nContent-Length: 1\r\n").expect("good").expects_continue);
        assert_eq!(with("Transfer-Encoding: Chunked\r\n").expect("good").framing, Framing::Chunked);
        assert_eq!(with("Content-Length: 0\r\n").expect("good").framing, Framing::None);
    }

    #[test]
    fn http_1_0_closes_without_keep_alive() {
        let ten = |headers: &str| super::tests::head(format!("GET / HTTP/1.0\r\n{headers}\r\n").as_bytes());
        assert!(!ten("").expect("good").keep_alive);
        assert!(ten("Connection: Keep-Alive\r\n").expect("good").keep_alive);
        assert!(ten("Transfer-Encoding: chunked\r\n").is_err());
    }

    #[test]
    fn ambiguous_lengths_are_rejected() {
        for value in ["+5", "-1", "5 5", "0x5", "5,5", "", "5, 5", "5;", "1e1", "99999999999999999999", "٥"] {
            assert!(with(&format!("Content-Length: {value}\r\n")).is_err(), "{value:?}");
        }
        for value in ["identity", "chunked, identity", "identity, chunked", "chunked, chunked", "xchunked", ""] {
            assert!(with(&format!("Transfer-Encoding: {value}\r\n")).is_err(), "{value:?}");
        }
        for headers in [
            "Content-Length: 5\r\nContent-Length: 5\r\n",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
            "Transfer_Encoding: chunked\r\n",
            "Content_Length: 5\r\n",
            "Content-Length: 5\r\ncontent-length: 6\r\n",
        ] {
            assert!(with(headers).is_err(), "{headers:?}");
        }
        for blank in [b'\x0b', b'\x0c', b'\0', b'\xa0'] {
            let mut text = b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: ".to_vec();
            text.push(blank);
            text.extend_from_slice(b"chunked\r\n\r\n");
            assert!(head(&text).is_err(), "{blank:#x}");
        }
    }

    #[test]
    fn ambiguous_lines_and_headers_are_rejected() {
        for text in [
            "GET / HTTP/1.1\nHost: h\n\n",
            "GET / HTTP/1.1\r\nHost: h\nX: y\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: h\r\nX: a\rb\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: h\r\n folded\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: h\r\n\tfolded\r\n\r\n",
            "GET / HTTP/1.1\r\n Host: h\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: h\r\nX : y\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: h\r\n: y\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: h\r\nX y: y\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: h\r\nX: a\0b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: h\r\nX\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: h\r\nÄ: y\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: h\r\nHost: h\r\n\r\n",
            "GET / HTTP/1.1\r\n\r\n",
            "GET  / HTTP/1.1\r\nHost: h\r\n\r\n",
            "GET /  HTTP/1.1\r\nHost: h\r\n\r\n",
            "GET\t/ HTTP/1.1\r\nHost: h\r\n\r\n",
            "GET / HTTP/1.1 \r\nHost: h\r\n\r\n",
            "GET /\r\nHost: h\r\n\r\n",
            "GET / HTTP/1.2\r\nHost: h\r\n\r\n",
            "GET / HTTP/2.0\r\nHost: h\r\n\r\n",
            "GET / http/1.1\r\nHost: h\r\n\r\n",
            "GET /a#b HTTP/1.1\r\nHost: h\r\n\r\n",
            "GET /ä HTTP/1.1\r\nHost: h\r\n\r\n",
            "G(T / HTTP/1.1\r\nHost: h\r\n\r\n",
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        ] {
            assert!(matches!(head(text.as_bytes()), Err(HeadError::Malformed(_))), "{text:?}");
        }
    }

    /// A user types filters into the URL of curl, which does not escape them.
    #[test]
    fn a_target_that_must_be_escaped_is_rejected_with_that_advice() {
        for query in ["name=José", "age>30", "age<30", "name=\"a\""] {
            let text = format!("GET /x?{query} HTTP/1.1\r\nHost: h\r\n\r\n");
            let Err(HeadError::Malformed(cause)) = head(text.as_bytes()) else { panic!("{query}") };
            assert!(cause.ends_with("has characters that must be percent-encoded"), "{query}: {cause}");
        }
    }

    #[test]
    fn heads_are_bounded_while_they_arrive() {
        let mut scanner = HeadScanner::default();
        let long = vec![b'a'; LIMITS.max_bytes];
        assert_eq!(scanner.find_end(&long[1..], &LIMITS), Ok(None));
        assert_eq!(scanner.find_end(&long, &LIMITS), Err(HeadError::TargetTooLong));
        let text = format!("GET /{} HTTP/1.1\r\nHost: h\r\n\r\n", "a".repeat(LIMITS.max_bytes));
        assert_eq!(head(text.as_bytes()).expect_err("too long"), HeadError::TargetTooLong);
        let wide = HeadLimits { max_bytes: 256 * 1024, ..LIMITS };
        let text = format!("GET /{} HTTP/1.1\r\nHost: h\r\n\r\n", "a".repeat(MAX_TARGET));
        assert_eq!(parse_request(text.into_bytes(), &wide).expect_err("too long"), HeadError::TargetTooLong);
        let text = format!("GET / HTTP/1.1\r\nHost: h\r\nX: {}", "a".repeat(LIMITS.max_bytes));
        assert_eq!(head(text.as_bytes()).expect_err("too large"), HeadError::TooLarge);
        assert!(with(&"a: b\r\n".repeat(99)).is_ok());
        assert_eq!(with(&"a: b\r\n".repeat(100)).expect_err("too many"), HeadError::TooManyHeaders);
    }

    #[test]
    fn the_end_is_found_in_any_segmentation() {
        let text = b"GET / HTTP/1.1\r\nHost: h\r\n\r\nrest";
        let end = text.len() - 4;
        let mut scanner = HeadScanner::default();
        for length in 0..end {
            assert_eq!(scanner.find_end(&text[..length], &LIMITS), Ok(None), "{length}");
        }
        assert_eq!(scanner.find_end(text, &LIMITS), Ok(Some(end)));
    }

    #[test]
    fn written_requests_parse_back() {
        let written = |method: &Method, target: &str, framing| {
            let mut out = Vec::new();
            write_request_start(&mut out, method, &target.parse().expect("a target"));
            write_header(&mut out, HeaderName::Host, b"h");
            write_request_end(&mut out, method, framing);
            String::from_utf8(out).expect("text")
        };
        for (framing, header) in [
            (Framing::None, "content-length: 0\r\n"),
            (Framing::Length(5), "content-length: 5\r\n"),
            (Framing::Chunked, "transfer-encoding: chunked\r\n"),
        ] {
            let text = written(&Method::POST, "/a?b=c", framing);
            assert_eq!(text, format!("POST /a?b=c HTTP/1.1\r\nhost: h\r\n{header}\r\n"));
            assert_eq!(head(text.as_bytes()).expect("good").framing, framing);
        }
        assert!(!written(&Method::GET, "/", Framing::None).contains("length"));
    }
}
