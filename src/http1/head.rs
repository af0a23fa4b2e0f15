//! The head of a request: the request line and the fields.

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, EXPECT, HOST, TRANSFER_ENCODING};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, Version};

/// How large a head may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadLimits {
    /// Most fields.
    pub fields: usize,
    /// Most bytes, request line and line ends included.
    pub bytes: usize,
    /// Most bytes of the target.
    pub target: usize,
}

/// Why a head is refused. The connection cannot go on: nobody knows where the next request begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    /// It has no reading, or more than one.
    #[error("{0}")]
    Malformed(&'static str),
    /// More bytes than allowed.
    #[error("the request's head is too large")]
    TooLarge,
    /// More fields than allowed.
    #[error("the request has too many fields")]
    TooManyFields,
    /// A longer target than allowed.
    #[error("the request's target is too long")]
    TargetTooLong,
}

/// Where the body of a request ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// There is none.
    None,
    /// After so many bytes, one at least.
    Length(u64),
    /// Where its last chunk says.
    Chunked,
}

/// A head that was understood.
#[derive(Debug)]
pub struct RequestHead {
    /// Method, target, version and fields.
    pub parts: Parts,
    /// Where the body ends.
    pub framing: Framing,
    /// Whether the client wants to go on after this request.
    pub keep_alive: bool,
    /// Whether the client waits for `100 Continue` before it sends the body.
    pub expects_continue: bool,
}

/// Looks for the end of a head as its bytes come, each byte once however they come.
#[derive(Clone, Copy, Debug, Default)]
pub struct HeadScanner {
    seen: usize,
    lines: usize,
}

impl HeadScanner {
    /// The length of the head that `bytes` begins with, once it is there whole. `bytes` is all that came so far.
    ///
    /// SECURITY: a line ends with CR LF. Whoever takes LF alone for an end sees other fields than whoever does not.
    pub fn find_end(&mut self, bytes: &[u8], limits: &HeadLimits) -> Result<Option<usize>, HeadError> {
        let from = self.seen;
        for found in memchr::memchr_iter(b'\n', &bytes[from..]) {
            let at = from + found;
            if at == 0 || bytes[at - 1] != b'\r' {
                return Err(HeadError::Malformed("a line ends without a carriage return"));
            }
            if at >= limits.bytes {
                return Err(HeadError::TooLarge);
            }
            if at >= 3 && bytes[at - 2] == b'\n' {
                return Ok(Some(at + 1));
            }
            if self.lines > limits.fields {
                return Err(HeadError::TooManyFields);
            }
            self.lines += 1;
        }
        self.seen = bytes.len();
        // 20 bytes are room for the longest method served, the version and the blanks between.
        if self.lines == 0 && bytes.len() > limits.target + 20 {
            return Err(HeadError::TargetTooLong);
        }
        if bytes.len() >= limits.bytes {
            return Err(HeadError::TooLarge);
        }
        Ok(None)
    }
}

/// So many fields are parsed without memory from the heap.
const USUAL_FIELDS: usize = 64;

/// Understands a whole head, whose end [`HeadScanner::find_end`] has found. Values share its memory.
pub fn parse_request(bytes: &Bytes, limits: &HeadLimits) -> Result<RequestHead, HeadError> {
    let mut few = [const { std::mem::MaybeUninit::<httparse::Header<'_>>::uninit() }; USUAL_FIELDS];
    let mut parsed = httparse::Request::new(&mut []);
    match parsed.parse_with_uninit_headers(bytes, &mut few) {
        Ok(status) => convert(bytes, &parsed, status, limits),
        Err(httparse::Error::TooManyHeaders) => {
            let mut many = vec![httparse::EMPTY_HEADER; limits.fields];
            let mut parsed = httparse::Request::new(&mut many);
            match parsed.parse(bytes) {
                Ok(status) => convert(bytes, &parsed, status, limits),
                Err(error) => Err(refusal(error)),
            }
        }
        Err(error) => Err(refusal(error)),
    }
}

fn refusal(error: httparse::Error) -> HeadError {
    HeadError::Malformed(match error {
        httparse::Error::TooManyHeaders => return HeadError::TooManyFields,
        httparse::Error::HeaderName => "a field's name has characters that none may have, or is folded",
        httparse::Error::HeaderValue => "a field's value has characters that none may have",
        httparse::Error::Version => "the version is not HTTP/1.1 or HTTP/1.0",
        _ => "the request line is not a method, a target and a version, with one space between them",
    })
}

fn convert(
    bytes: &Bytes,
    parsed: &httparse::Request<'_, '_>,
    status: httparse::Status<usize>,
    limits: &HeadLimits,
) -> Result<RequestHead, HeadError> {
    const BROKEN: HeadError = HeadError::Malformed("the head breaks off");
    if status != httparse::Status::Complete(bytes.len()) {
        return Err(BROKEN);
    }
    let target = parsed.path.ok_or(BROKEN)?;
    if target.len() > limits.target {
        return Err(HeadError::TargetTooLong);
    }
    if parsed.headers.len() > limits.fields {
        return Err(HeadError::TooManyFields);
    }
    // SECURITY: `http::Uri` drops a fragment without a word; whoever keeps it sees another path.
    if !target.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#') {
        return Err(HeadError::Malformed("the target has characters that none may have"));
    }
    let method = parsed.method.ok_or(BROKEN)?;
    let method = Method::from_bytes(method.as_bytes()).map_err(|_| BROKEN)?;
    let uri = Uri::from_maybe_shared(bytes.slice_ref(target.as_bytes()))
        .map_err(|_| HeadError::Malformed("the target is no path and no URL"))?;
    let mut fields = HeaderMap::with_capacity(parsed.headers.len());
    for field in parsed.headers.iter() {
        // The parser stops the request at bytes that are no token, an empty name included.
        let name = HeaderName::from_bytes(field.name.as_bytes())
            .map_err(|_| HeadError::Malformed("a field's name has characters that none may have"))?;
        let value = HeaderValue::from_maybe_shared(bytes.slice_ref(field.value))
            .map_err(|_| HeadError::Malformed("a field's value has characters that none may have"))?;
        fields.try_append(name, value).map_err(|_| HeadError::TooManyFields)?;
    }
    let version = if parsed.version == Some(1) { Version::HTTP_11 } else { Version::HTTP_10 };
    one_host(&fields, version)?;
    let framing = framing(&fields, version)?;
    let keep_alive = keeps_alive(&fields, version);
    let expects_continue = version == Version::HTTP_11
        && framing != Framing::None
        && fields.get(EXPECT).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"));
    let mut request = Request::new(());
    *request.method_mut() = method;
    *request.uri_mut() = uri;
    *request.version_mut() = version;
    *request.headers_mut() = fields;
    Ok(RequestHead { parts: request.into_parts().0, framing, keep_alive, expects_continue })
}

/// RFC 9112 section 3.2: exactly one `Host` in HTTP/1.1, one at most before.
fn one_host(fields: &HeaderMap, version: Version) -> Result<(), HeadError> {
    match fields.get_all(HOST).iter().count() {
        1 => Ok(()),
        0 if version == Version::HTTP_10 => Ok(()),
        0 => Err(HeadError::Malformed("the field `Host` is missing")),
        _ => Err(HeadError::Malformed("the field `Host` stands twice")),
    }
}

/// RFC 9112 section 6.3, without its leniencies.
///
/// SECURITY: a body has one length. Two statements about it, equal or not, are an attack or a defect.
fn framing(fields: &HeaderMap, version: Version) -> Result<Framing, HeadError> {
    let mut codings = fields.get_all(TRANSFER_ENCODING).iter();
    let mut lengths = fields.get_all(CONTENT_LENGTH).iter();
    match (codings.next(), lengths.next()) {
        (None, None) => Ok(Framing::None),
        (Some(_), Some(_)) => {
            Err(HeadError::Malformed("`Content-Length` and `Transfer-Encoding` exclude each other"))
        }
        (Some(_), None) if version == Version::HTTP_10 => {
            Err(HeadError::Malformed("HTTP/1.0 has no `Transfer-Encoding`"))
        }
        (Some(coding), None) => {
            if codings.next().is_some() || !coding.as_bytes().eq_ignore_ascii_case(b"chunked") {
                return Err(HeadError::Malformed("`Transfer-Encoding` must be `chunked`, once"));
            }
            Ok(Framing::Chunked)
        }
        (None, Some(length)) => {
            let (None, Some(length)) = (lengths.next(), decimal(length.as_bytes())) else {
                return Err(HeadError::Malformed("`Content-Length` must be one decimal number"));
            };
            Ok(if length == 0 { Framing::None } else { Framing::Length(length) })
        }
    }
}

/// Digits and nothing else, few enough that nobody's integers overflow.
fn decimal(text: &[u8]) -> Option<u64> {
    if !(1..=18).contains(&text.len()) || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(text.iter().fold(0, |number, digit| number * 10 + u64::from(digit - b'0')))
}

fn keeps_alive(fields: &HeaderMap, version: Version) -> bool {
    let (mut close, mut keep) = (false, false);
    for value in fields.get_all(CONNECTION) {
        for option in value.as_bytes().split(|byte| *byte == b',') {
            let option = option.trim_ascii();
            close |= option.eq_ignore_ascii_case(b"close");
            keep |= option.eq_ignore_ascii_case(b"keep-alive");
        }
    }
    !close && (keep || version == Version::HTTP_11)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: HeadLimits = HeadLimits { fields: 100, bytes: 32 * 1024, target: 8 * 1024 };

    fn head(text: &[u8]) -> Result<RequestHead, HeadError> {
        match HeadScanner::default().find_end(text, &LIMITS)? {
            Some(end) => parse_request(&Bytes::copy_from_slice(&text[..end]), &LIMITS),
            None => Err(HeadError::Malformed("unfinished")),
        }
    }

    fn with(fields: &str) -> Result<RequestHead, HeadError> {
        head(format!("POST /p HTTP/1.1\r\nHost: h\r\n{fields}\r\n").as_bytes())
    }

    #[test]
    fn a_plain_request_is_understood() {
        let head =
            with("Content-Type: application/json\r\nX-Api-Key: k \r\nContent-Length: 5\r\n").expect("good");
        assert_eq!((head.parts.method.as_str(), head.parts.uri.path()), ("POST", "/p"));
        assert_eq!(head.parts.headers["x-api-key"], "k", "blanks around a value are no part of it");
        assert_eq!((head.framing, head.keep_alive), (Framing::Length(5), true));
        assert!(!with("Connection: foo, Close\r\n").expect("good").keep_alive);
        assert!(with("Expect: 100-Continue\r\nContent-Length: 1\r\n").expect("good").expects_continue);
        assert_eq!(with("Transfer-Encoding: Chunked\r\n").expect("good").framing, Framing::Chunked);
        assert_eq!(with("Content-Length: 0\r\n").expect("good").framing, Framing::None);
    }

    #[test]
    fn http_1_0_closes_unless_asked() {
        let ten = |fields: &str| super::tests::head(format!("GET / HTTP/1.0\r\n{fields}\r\n").as_bytes());
        assert!(!ten("").expect("good").keep_alive);
        assert!(ten("Connection: Keep-Alive\r\n").expect("good").keep_alive);
        assert!(ten("Transfer-Encoding: chunked\r\n").is_err());
    }

    #[test]
    fn lengths_with_two_readings_are_refused() {
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
    fn lines_and_fields_with_two_readings_are_refused() {
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
    fn heads_are_bounded_while_they_come() {
        let mut scanner = HeadScanner::default();
        let long = vec![b'a'; LIMITS.target + 21];
        assert_eq!(scanner.find_end(&long, &LIMITS), Err(HeadError::TargetTooLong));
        let text = format!("GET /{} HTTP/1.1\r\nHost: h\r\n\r\n", "a".repeat(LIMITS.target));
        assert_eq!(head(text.as_bytes()).expect_err("too long"), HeadError::TargetTooLong);
        let text = format!("GET / HTTP/1.1\r\nHost: h\r\nX: {}", "a".repeat(LIMITS.bytes));
        assert_eq!(head(text.as_bytes()).expect_err("too large"), HeadError::TooLarge);
        assert!(with(&"a: b\r\n".repeat(99)).is_ok());
        assert_eq!(with(&"a: b\r\n".repeat(100)).expect_err("too many"), HeadError::TooManyFields);
    }

    #[test]
    fn the_end_is_found_however_the_bytes_come() {
        let text = b"GET / HTTP/1.1\r\nHost: h\r\n\r\nrest";
        let end = text.len() - 4;
        let mut scanner = HeadScanner::default();
        for length in 0..end {
            assert_eq!(scanner.find_end(&text[..length], &LIMITS), Ok(None), "{length}");
        }
        assert_eq!(scanner.find_end(text, &LIMITS), Ok(Some(end)));
    }
}
