//! The head of a response: parsing and writing.

use std::cell::RefCell;
use std::io::Write as _;
use std::time::{Duration, SystemTime};

use http::{Method, StatusCode, Version};

use crate::base::clock;
use crate::http::h1::head::{Framing, HeadError, body_framing, is_keep_alive};
use crate::http::headers::{Header, HeaderName, Headers, ParsedHeaders};

/// How the end of a response body is determined, from the view of its reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyExtent {
    /// As the headers declare.
    Framed(Framing),
    /// At the end of the connection.
    UntilClose,
}

/// A parsed response head.
#[derive(Debug)]
pub struct ResponseHead {
    /// The status code, from 100 to 999.
    pub status: StatusCode,
    /// The headers, including those that apply to one hop only.
    pub headers: Headers,
    /// How the end of the body is determined.
    pub extent: BodyExtent,
    /// Whether the connection can be used for the next request.
    pub keep_alive: bool,
    /// The time after which the peer closes an idle connection, if it announced that.
    pub max_idle: Option<Duration>,
}

/// Parses a complete head, whose end was found before. The headers keep its memory.
///
/// SECURITY: as strict as for requests. With an ambiguous response, an attacker behind a backend could insert a forged
/// response after it.
pub fn parse_response(head: Vec<u8>, method: &Method) -> Result<ResponseHead, HeadError> {
    const MAX_HEADERS: usize = 128;
    let mut storage = [const { std::mem::MaybeUninit::<httparse::Header<'_>>::uninit() }; MAX_HEADERS];
    let mut parsed = httparse::Response::new(&mut []);
    let config = httparse::ParserConfig::default();
    match config.parse_response_with_uninit_headers(&mut parsed, &head, &mut storage) {
        Ok(httparse::Status::Complete(length)) if length == head.len() => {}
        Ok(_) => return Err(HeadError::Malformed("the head is incomplete")),
        Err(httparse::Error::TooManyHeaders) => return Err(HeadError::TooManyHeaders),
        Err(_) => return Err(HeadError::Malformed("a line is neither a status line nor a header")),
    }
    let status = parsed.code.and_then(|code| StatusCode::from_u16(code).ok());
    let status = status.ok_or(HeadError::Malformed("the status is not a number from 100 to 999"))?;
    let version = if parsed.version == Some(1) { Version::HTTP_11 } else { Version::HTTP_10 };
    let headers = ParsedHeaders::new(&head, parsed.headers).into_headers(head);
    let declared = body_framing(&headers, version)?;
    let extent = match declared {
        _ if is_bodiless(method, status) => BodyExtent::Framed(Framing::None),
        Some(framing) => BodyExtent::Framed(framing),
        None => BodyExtent::UntilClose,
    };
    // SECURITY: a peer that declares a body where none can be may send one, and it must not be read as the response to the
    // next request.
    let has_forbidden_body =
        is_bodiless(method, status) && matches!(declared, Some(Framing::Length(_) | Framing::Chunked));
    if has_forbidden_body && status.is_informational() {
        return Err(HeadError::Malformed("an informational response declares a body"));
    }
    let keep_alive = is_keep_alive(&headers, version) && extent != BodyExtent::UntilClose && !has_forbidden_body;
    let max_idle = headers.get(HeaderName::KeepAlive).and_then(max_idle);
    Ok(ResponseHead { status, headers, extent, keep_alive, max_idle })
}

/// The time after which the peer closes an idle connection, from `Keep-Alive: timeout=5, max=100`.
fn max_idle(value: &[u8]) -> Option<Duration> {
    let mut parameters = std::str::from_utf8(value).ok()?.split(',').filter_map(|parameter| parameter.split_once('='));
    let (_, seconds) = parameters.find(|(name, _)| name.trim().eq_ignore_ascii_case("timeout"))?;
    Some(Duration::from_secs(seconds.trim().parse().ok()?))
}

/// Whether a response has no body, regardless of its headers (RFC 9112 section 6.3).
fn is_bodiless(method: &Method, status: StatusCode) -> bool {
    *method == Method::HEAD
        || status == StatusCode::NO_CONTENT
        || status == StatusCode::NOT_MODIFIED
        || status.is_informational()
}

/// How the end of a response body is declared to the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResponseFraming {
    /// There is no body, regardless of the headers.
    None,
    /// After this number of bytes.
    Length(u64),
    /// After the last chunk.
    Chunked,
    /// At the end of the connection: for HTTP/1.0, which has no chunks.
    Close,
}

impl ResponseFraming {
    /// For a response to `method`; `length` is the size of its body, if it is known.
    pub fn choose(method: &Method, version: Version, status: StatusCode, length: Option<u64>) -> ResponseFraming {
        let bodiless = is_bodiless(method, status);
        match length {
            _ if bodiless => ResponseFraming::None,
            Some(length) => ResponseFraming::Length(length),
            None if version == Version::HTTP_11 => ResponseFraming::Chunked,
            None => ResponseFraming::Close,
        }
    }
}

/// Whether the connection stays open, and how the client is informed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Persistence {
    /// It stays open, which is the default of HTTP/1.1.
    Default,
    /// It stays open, which is declared to an HTTP/1.0 client.
    KeepAlive,
    /// It closes after this response.
    Close,
}

/// Writes a head. Headers that declare the framing are not copied, except that a response without a body may declare
/// the length that the body would have.
pub fn write_response(
    out: &mut Vec<u8>,
    status: StatusCode,
    headers: &Headers,
    framing: ResponseFraming,
    persistence: Persistence,
) {
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(status.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(status.canonical_reason().unwrap_or("Unknown").as_bytes());
    let mut has_date = false;
    for header in headers.iter() {
        match header.name {
            HeaderName::Connection | HeaderName::TransferEncoding => continue,
            HeaderName::ContentLength if framing != ResponseFraming::None || status == StatusCode::NO_CONTENT => {
                continue;
            }
            HeaderName::Date => has_date = true,
            _ => {}
        }
        copy_header(out, header);
    }
    match framing {
        ResponseFraming::Length(length) => {
            let mut text = itoa::Buffer::new();
            write_header(out, HeaderName::ContentLength, text.format(length).as_bytes());
        }
        ResponseFraming::Chunked => write_header(out, HeaderName::TransferEncoding, b"chunked"),
        ResponseFraming::None | ResponseFraming::Close => {}
    }
    match persistence {
        Persistence::Default => {}
        Persistence::KeepAlive => write_header(out, HeaderName::Connection, b"keep-alive"),
        Persistence::Close => write_header(out, HeaderName::Connection, b"close"),
    }
    if !has_date {
        with_date_line(|line| out.extend_from_slice(line));
    }
    out.extend_from_slice(b"\r\n\r\n");
}

/// Writes one header with a known name. Ends the line before it, but not its own.
pub fn write_header(out: &mut Vec<u8>, name: HeaderName, value: &[u8]) {
    debug_assert!(name != HeaderName::Other);
    out.extend_from_slice(name.line_prefix().as_bytes());
    out.extend_from_slice(value);
}

/// Writes a header of a parsed head.
pub fn copy_header(out: &mut Vec<u8>, header: Header<'_>) {
    if header.name != HeaderName::Other {
        return write_header(out, header.name, header.value);
    }
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(header.text());
    out.extend_from_slice(b": ");
    out.extend_from_slice(header.value);
}

/// Passes the value of a `date` header on (RFC 9110 section 6.6.1).
pub fn with_http_date(write: impl FnOnce(&[u8])) {
    with_date_line(|line| write(&line[HeaderName::Date.line_prefix().len()..]));
}

/// Passes the line of a `date` header on. The text is formatted once a second.
fn with_date_line(write: impl FnOnce(&[u8])) {
    thread_local! {
        static DATE_HEADER: RefCell<(u64, Vec<u8>)> = const { RefCell::new((u64::MAX, Vec::new())) };
    }
    let now = clock::unix_time().as_secs();
    DATE_HEADER.with_borrow_mut(|(second, text)| {
        if *second != now {
            *second = now;
            text.clear();
            let date = httpdate::HttpDate::from(SystemTime::UNIX_EPOCH + Duration::from_secs(now));
            let _ = write!(text, "{}{date}", HeaderName::Date.line_prefix());
        }
        write(text);
    });
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderValue};

    use super::*;

    fn written(status: u16, headers: &[(&'static str, &'static str)], framing: ResponseFraming) -> String {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, HeaderValue::from_static(value));
        }
        let mut out = Vec::new();
        let status = StatusCode::from_u16(status).expect("a status");
        write_response(&mut out, status, &Headers::from(&map), framing, Persistence::Default);
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn framing_headers_are_written_once() {
        let headers = [("content-length", "7"), ("transfer-encoding", "x"), ("date", "D"), ("a", "b")];
        assert_eq!(
            written(200, &headers, ResponseFraming::Length(12)),
            "HTTP/1.1 200 OK\r\ndate: D\r\na: b\r\ncontent-length: 12\r\n\r\n"
        );
        let chunked = written(200, &headers, ResponseFraming::Chunked);
        assert!(chunked.contains("transfer-encoding: chunked") && !chunked.contains("content-length"));
        assert!(
            written(200, &headers, ResponseFraming::None).contains("content-length: 7"),
            "as in a response to HEAD"
        );
        assert!(!written(204, &headers, ResponseFraming::None).contains("content-length"));
    }

    #[test]
    fn a_missing_date_is_added() {
        let text = written(599, &[], ResponseFraming::Close);
        assert!(text.starts_with("HTTP/1.1 599 Unknown\r\ndate: ") && text.ends_with(" GMT\r\n\r\n"), "{text}");
    }

    #[test]
    fn bodies_are_framed_as_the_client_can_read_them() {
        let of = |method: Method, version, status, length| {
            ResponseFraming::choose(&method, version, StatusCode::from_u16(status).expect("a status"), length)
        };
        assert_eq!(of(Method::HEAD, Version::HTTP_11, 200, Some(5)), ResponseFraming::None);
        assert_eq!(of(Method::GET, Version::HTTP_11, 304, None), ResponseFraming::None);
        assert_eq!(of(Method::GET, Version::HTTP_11, 200, Some(5)), ResponseFraming::Length(5));
        assert_eq!(of(Method::GET, Version::HTTP_11, 200, None), ResponseFraming::Chunked);
        assert_eq!(of(Method::GET, Version::HTTP_10, 200, None), ResponseFraming::Close);
    }

    fn parsed(text: &str, method: &Method) -> Result<(u16, BodyExtent, bool), HeadError> {
        let head = parse_response(text.as_bytes().to_vec(), method)?;
        Ok((head.status.as_u16(), head.extent, head.keep_alive))
    }

    #[test]
    fn responses_are_parsed() {
        let of = |headers: &str| parsed(&format!("HTTP/1.1 200 OK\r\n{headers}\r\n"), &Method::GET);
        assert_eq!(of("Content-Length: 5\r\n"), Ok((200, BodyExtent::Framed(Framing::Length(5)), true)));
        assert_eq!(of("Content-Length: 0\r\n"), Ok((200, BodyExtent::Framed(Framing::None), true)));
        assert_eq!(of("Transfer-Encoding: chunked\r\n"), Ok((200, BodyExtent::Framed(Framing::Chunked), true)));
        assert_eq!(of(""), Ok((200, BodyExtent::UntilClose, false)));
        assert_eq!(
            of("Content-Length: 5\r\nConnection: close\r\n"),
            Ok((200, BodyExtent::Framed(Framing::Length(5)), false))
        );
        let none = |status, keep_alive| Ok((status, BodyExtent::Framed(Framing::None), keep_alive));
        assert_eq!(parsed("HTTP/1.1 200 OK\r\n\r\n", &Method::HEAD), none(200, true));
        let old = parsed("HTTP/1.0 304 \r\nContent-Length: 5\r\n\r\n", &Method::GET);
        assert_eq!(old, none(304, false));
    }

    #[test]
    fn a_connection_is_not_reused_after_the_head_of_a_body_that_must_not_follow() {
        for (status, method) in [(204, Method::POST), (304, Method::GET), (200, Method::HEAD)] {
            let keeps = |header: &str| {
                let head = parsed(&format!("HTTP/1.1 {status} X\r\n{header}\r\n"), &method).expect("valid");
                assert_eq!(head.1, BodyExtent::Framed(Framing::None));
                head.2
            };
            assert!(keeps("") && keeps("Content-Length: 0\r\n"), "{status}");
            assert!(!keeps("Content-Length: 5\r\n") && !keeps("Transfer-Encoding: chunked\r\n"), "{status}");
        }
        assert!(parsed("HTTP/1.1 102 X\r\nContent-Length: 5\r\n\r\n", &Method::GET).is_err());
    }

    #[test]
    fn the_announced_idle_timeout_is_read() {
        let announced = |value: &str| {
            let text = format!("HTTP/1.1 200 OK\r\nKeep-Alive: {value}\r\nContent-Length: 0\r\n\r\n");
            parse_response(text.into_bytes(), &Method::GET).expect("valid").max_idle.map(|limit| limit.as_secs())
        };
        assert_eq!(announced("timeout=5, max=100"), Some(5));
        assert_eq!(announced("max=3,Timeout = 0"), Some(0));
        assert_eq!((announced("max=3"), announced("timeout=x"), announced("timeout=-1")), (None, None, None));
    }

    #[test]
    fn ambiguous_responses_are_rejected() {
        for text in [
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
            "HTTP/1.1 099 OK\r\n\r\n",
            "HTTP/1.1 2xx OK\r\n\r\n",
            "HTTP/2 200 OK\r\n\r\n",
            "HTTP/1.1 200 OK\r\nA: b\r\n folded\r\n\r\n",
            "HTTP/1.1 200 OK\r\nA : b\r\n\r\n",
            "ICY 200 OK\r\n\r\n",
            "<html>\r\n\r\n",
        ] {
            assert!(parsed(text, &Method::GET).is_err(), "{text:?}");
        }
    }
}
