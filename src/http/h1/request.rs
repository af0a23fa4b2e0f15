//! The head of a request, in both directions.

use bytes::Bytes;
use http::{Method, Uri, Version};

use crate::base::byte_class::ByteClass;
use crate::http::h1::head::{Framing, HeadError, HeadLimits, body_framing, is_keep_alive};
use crate::http::h1::response::write_header;
use crate::http::headers::{Head, HeaderName, Headers, ParsedHeaders};

/// A head that was understood.
#[derive(Debug)]
pub struct RequestHead {
    /// Method, target and fields.
    pub head: Head,
    /// HTTP/1.1 or HTTP/1.0.
    pub version: Version,
    /// Where the body ends.
    pub framing: Framing,
    /// Whether the client wants to go on after this request.
    pub keep_alive: bool,
    /// Whether the client waits for `100 Continue` before it sends the body.
    pub expects_continue: bool,
}

/// So many fields are parsed without memory from the heap.
const STACK_HEADERS: usize = 32;

/// Understands a whole head, whose end [`HeadScanner::find_end`] has found. The fields keep its memory.
pub fn parse_request(head: Vec<u8>, limits: &HeadLimits) -> Result<RequestHead, HeadError> {
    let mut few = [const { std::mem::MaybeUninit::<httparse::Header<'_>>::uninit() }; STACK_HEADERS];
    let mut parsed = httparse::Request::new(&mut []);
    let read = match parsed.parse_with_uninit_headers(&head, &mut few) {
        Ok(status) => ParsedRequest::check(&head, &parsed, status, limits)?,
        Err(httparse::Error::TooManyHeaders) => {
            let mut many = vec![httparse::EMPTY_HEADER; limits.max_headers];
            let mut parsed = httparse::Request::new(&mut many);
            let status = parsed.parse(&head).map_err(head_error)?;
            ParsedRequest::check(&head, &parsed, status, limits)?
        }
        Err(error) => return Err(head_error(error)),
    };
    read.into_request_head(head)
}

fn head_error(error: httparse::Error) -> HeadError {
    HeadError::Malformed(match error {
        httparse::Error::TooManyHeaders => return HeadError::TooManyHeaders,
        httparse::Error::HeaderName => "a field's name has characters that none may have, or is folded",
        httparse::Error::HeaderValue => "a field's value has characters that none may have",
        httparse::Error::Version => "the version is not HTTP/1.1 or HTTP/1.0",
        _ => "the request line is not a method, a target and a version, with one space between them",
    })
}

/// What was found in a head, before its memory is taken over.
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
        const BROKEN: HeadError = HeadError::Malformed("the head breaks off");
        if status != httparse::Status::Complete(head.len()) {
            return Err(BROKEN);
        }
        let target = parsed.path.ok_or(BROKEN)?;
        if target.len() > limits.max_target {
            return Err(HeadError::TargetTooLong);
        }
        if parsed.headers.len() > limits.max_headers {
            return Err(HeadError::TooManyHeaders);
        }
        // SECURITY: `http::Uri` drops a fragment without a word; whoever keeps it sees another path.
        if !ByteClass::TARGET.contains_all(target.as_bytes()) {
            return Err(HeadError::Malformed("the target has characters that none may have"));
        }
        let method = parsed.method.ok_or(BROKEN)?;
        let method = Method::from_bytes(method.as_bytes()).map_err(|_| BROKEN)?;
        let uri = Uri::from_maybe_shared(Bytes::copy_from_slice(target.as_bytes()))
            .map_err(|_| HeadError::Malformed("the target is no path and no URL"))?;
        let version = if parsed.version == Some(1) { Version::HTTP_11 } else { Version::HTTP_10 };
        Ok(ParsedRequest { method, uri, version, headers: ParsedHeaders::new(head, parsed.headers) })
    }

    fn into_request_head(self, head: Vec<u8>) -> Result<RequestHead, HeadError> {
        let ParsedRequest { method, uri, version, headers: fields } = self;
        let fields = fields.into_headers(head);
        check_single_host(&fields, version)?;
        let framing = body_framing(&fields, version)?.unwrap_or(Framing::None);
        let keep_alive = is_keep_alive(&fields, version);
        let expects_continue = version == Version::HTTP_11
            && framing != Framing::None
            && fields
                .get(HeaderName::Expect)
                .is_some_and(|value| value.eq_ignore_ascii_case(b"100-continue"));
        let head = Head { method, uri, headers: fields };
        Ok(RequestHead { head, version, framing, keep_alive, expects_continue })
    }
}

/// RFC 9112 section 3.2: exactly one `Host` in HTTP/1.1, one at most before.
fn check_single_host(fields: &Headers, version: Version) -> Result<(), HeadError> {
    match fields.all(HeaderName::Host).count() {
        1 => Ok(()),
        0 if version == Version::HTTP_10 => Ok(()),
        0 => Err(HeadError::Malformed("the field `Host` is missing")),
        _ => Err(HeadError::Malformed("the field `Host` stands twice")),
    }
}

/// Writes a request line in HTTP/1.1, its target in origin form, but for its end: fields and [`end_request`] follow.
pub fn write_request_start(out: &mut Vec<u8>, method: &Method, uri: &Uri) {
    out.extend_from_slice(method.as_str().as_bytes());
    out.push(b' ');
    let target = uri.path_and_query().map_or("/", |target| target.as_str());
    // A URL may have a query and no path; an origin form always has one (RFC 9112 section 3.2.1).
    if target.starts_with('?') {
        out.push(b'/');
    }
    out.extend_from_slice(target.as_bytes());
    out.extend_from_slice(b" HTTP/1.1");
}

/// Writes the field that says how the body is framed, and the end of the head.
pub fn write_request_end(out: &mut Vec<u8>, method: &Method, framing: Framing) {
    match framing {
        // RFC 9110 section 8.6: where a body would mean something, its absence is said.
        Framing::None if matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::DELETE) => {
        }
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

    const LIMITS: HeadLimits = HeadLimits { max_headers: 100, max_bytes: 32 * 1024, max_target: 8 * 1024 };

    fn head(text: &[u8]) -> Result<RequestHead, HeadError> {
        match HeadScanner::default().find_end(text, &LIMITS)? {
            Some(end) => parse_request(text[..end].to_vec(), &LIMITS),
            None => Err(HeadError::Malformed("unfinished")),
        }
    }

    fn with(fields: &str) -> Result<RequestHead, HeadError> {
        head(format!("POST /p HTTP/1.1\r\nHost: h\r\n{fields}\r\n").as_bytes())
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
        let head =
            with("Content-Type: application/json\r\nX-Api-Key: k \r\nContent-Length: 5\r\n").expect("good");
        assert_eq!((head.head.method.as_str(), head.head.uri.path()), ("POST", "/p"));
        assert_eq!(
            head.head.headers.get(HeaderName::XApiKey),
            Some(&b"k"[..]),
            "blanks around a value are no part of it"
        );
        assert_eq!((head.framing, head.keep_alive), (Framing::Length(5), true));
        assert!(!with("Connection: foo, Close\r\n").expect("good").keep_alive);
        assert!(with("Expect: 100-Continue\r\nContent-Length: 1\r\n").expect("good").expects_continue);
        assert_eq!(with("Transfer-Encoding: Chunked\r\n").expect("good").framing, Framing::Chunked);
        assert_eq!(with("Content-Length: 0\r\n").expect("good").framing, Framing::None);
    }

    #[test]
    fn http_1_0_closes_without_keep_alive() {
        let ten = |fields: &str| super::tests::head(format!("GET / HTTP/1.0\r\n{fields}\r\n").as_bytes());
        assert!(!ten("").expect("good").keep_alive);
        assert!(ten("Connection: Keep-Alive\r\n").expect("good").keep_alive);
        assert!(ten("Transfer-Encoding: chunked\r\n").is_err());
    }

    #[test]
    fn ambiguous_lengths_are_rejected() {
        for value in ["+5", "-1", "5 5", "0x5", "5,5", "", "5, 5", "5;", "1e1", "99999999999999999999", "٥"]
        {
            assert!(with(&format!("Content-Length: {value}\r\n")).is_err(), "{value:?}");
        }
        for value in
            ["identity", "chunked, identity", "identity, chunked", "chunked, chunked", "xchunked", ""]
        {
            assert!(with(&format!("Transfer-Encoding: {value}\r\n")).is_err(), "{value:?}");
        }
        for fields in [
            "Content-Length: 5\r\nContent-Length: 5\r\n",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
            "Transfer_Encoding: chunked\r\n",
            "Content_Length: 5\r\n",
            "Content-Length: 5\r\ncontent-length: 6\r\n",
        ] {
            assert!(with(fields).is_err(), "{fields:?}");
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

    #[test]
    fn heads_are_bounded_while_they_arrive() {
        let mut scanner = HeadScanner::default();
        let long = vec![b'a'; LIMITS.max_target + 21];
        assert_eq!(scanner.find_end(&long, &LIMITS), Err(HeadError::TargetTooLong));
        let text = format!("GET /{} HTTP/1.1\r\nHost: h\r\n\r\n", "a".repeat(LIMITS.max_target));
        assert_eq!(head(text.as_bytes()).expect_err("too long"), HeadError::TargetTooLong);
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
        for (framing, said) in [
            (Framing::None, "content-length: 0\r\n"),
            (Framing::Length(5), "content-length: 5\r\n"),
            (Framing::Chunked, "transfer-encoding: chunked\r\n"),
        ] {
            let text = written(&Method::POST, "/a?b=c", framing);
            assert_eq!(text, format!("POST /a?b=c HTTP/1.1\r\nhost: h\r\n{said}\r\n"));
            assert_eq!(head(text.as_bytes()).expect("good").framing, framing);
        }
        assert!(!written(&Method::GET, "/", Framing::None).contains("length"));
    }
}
