//! What request and response heads have in common: where a head ends, and where its body ends.

use http::Version;

use crate::http::headers::{HeaderName, Headers};

/// Limits on the size of a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadLimits {
    /// Maximum number of headers.
    pub max_headers: usize,
    /// Maximum number of bytes, including the request line and line ends.
    pub max_bytes: usize,
}

/// Why a head is rejected. The connection cannot continue, because the start of the next request is unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    /// It is malformed or ambiguous.
    #[error("{0}")]
    Malformed(&'static str),
    /// It exceeds [`HeadLimits::max_bytes`].
    #[error("the request head is too large")]
    TooLarge,
    /// It exceeds [`HeadLimits::max_headers`].
    #[error("the request has too many headers")]
    TooManyHeaders,
    /// Its first line exceeds [`HeadLimits::max_bytes`], or the target is longer than any limit allows.
    #[error("the request target is too long")]
    TargetTooLong,
}

/// How the end of a body is determined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// There is no body.
    None,
    /// After this number of bytes, at least one.
    Length(u64),
    /// After the last chunk.
    Chunked,
}

/// Finds the end of a head while its bytes arrive. Each byte is scanned once, however they are split.
#[derive(Clone, Copy, Debug, Default)]
pub struct HeadScanner {
    scanned: usize,
    lines: usize,
}

impl HeadScanner {
    /// The length of the head at the start of `bytes`, once it is complete. `bytes` are all bytes received so far.
    ///
    /// SECURITY: a line ends with CR LF. A parser that also accepts a bare LF sees different headers.
    pub fn find_end(&mut self, bytes: &[u8], limits: &HeadLimits) -> Result<Option<usize>, HeadError> {
        let from = self.scanned;
        for found in memchr::memchr_iter(b'\n', &bytes[from..]) {
            let at = from + found;
            if at == 0 || bytes[at - 1] != b'\r' {
                return Err(HeadError::Malformed("a line ends without a carriage return"));
            }
            if at >= limits.max_bytes {
                return Err(self.too_large());
            }
            if at >= 3 && bytes[at - 2] == b'\n' {
                return Ok(Some(at + 1));
            }
            if self.lines > limits.max_headers {
                return Err(HeadError::TooManyHeaders);
            }
            self.lines += 1;
        }
        self.scanned = bytes.len();
        if bytes.len() >= limits.max_bytes {
            return Err(self.too_large());
        }
        Ok(None)
    }

    fn too_large(&self) -> HeadError {
        if self.lines == 0 { HeadError::TargetTooLong } else { HeadError::TooLarge }
    }
}

/// The framing that the headers declare (RFC 9112 section 6.3), without leniency; `None` if they declare none.
///
/// SECURITY: a body has one length. Two declarations, equal or not, are an attack or a defect.
pub fn body_framing(headers: &Headers, version: Version) -> Result<Option<Framing>, HeadError> {
    let (mut codings, mut lengths) = (SingleValue::default(), SingleValue::default());
    for header in headers.iter() {
        match header.name {
            HeaderName::TransferEncoding => codings.record(header.value),
            HeaderName::ContentLength => lengths.record(header.value),
            HeaderName::Other if resembles_framing_header(header.text()) => {
                return Err(HeadError::Malformed("a header name resembles `Content-Length` or `Transfer-Encoding`"));
            }
            _ => {}
        }
    }
    match (codings, lengths) {
        (SingleValue::Absent, SingleValue::Absent) => Ok(None),
        (SingleValue::Absent, SingleValue::Present(length)) => match parse_decimal(length) {
            None => Err(HeadError::Malformed("`Content-Length` must be one decimal number")),
            Some(0) => Ok(Some(Framing::None)),
            Some(length) => Ok(Some(Framing::Length(length))),
        },
        (SingleValue::Absent, SingleValue::Duplicate) => {
            Err(HeadError::Malformed("`Content-Length` must be one decimal number"))
        }
        (_, SingleValue::Present(_) | SingleValue::Duplicate) => {
            Err(HeadError::Malformed("`Content-Length` and `Transfer-Encoding` must not be combined"))
        }
        (_, SingleValue::Absent) if version == Version::HTTP_10 => {
            Err(HeadError::Malformed("HTTP/1.0 does not support `Transfer-Encoding`"))
        }
        (SingleValue::Present(coding), SingleValue::Absent) if coding.eq_ignore_ascii_case(b"chunked") => {
            Ok(Some(Framing::Chunked))
        }
        (_, SingleValue::Absent) => Err(HeadError::Malformed("`Transfer-Encoding` must be `chunked`, once")),
    }
}

/// The value of a header that may occur once.
#[derive(Clone, Copy, Default)]
enum SingleValue<'a> {
    #[default]
    Absent,
    Present(&'a [u8]),
    Duplicate,
}

impl<'a> SingleValue<'a> {
    fn record(&mut self, value: &'a [u8]) {
        *self = match self {
            SingleValue::Absent => SingleValue::Present(value),
            SingleValue::Present(_) | SingleValue::Duplicate => SingleValue::Duplicate,
        };
    }
}

/// Whether some programs read this name as one that declares the framing.
fn resembles_framing_header(name: &[u8]) -> bool {
    let frames = [HeaderName::TransferEncoding, HeaderName::ContentLength].map(HeaderName::as_str);
    frames.iter().any(|other| is_lookalike(name, other.as_bytes()))
}

/// Whether some programs, which treat `-` and other characters alike, read a name as `other`.
fn is_lookalike(name: &[u8], other: &[u8]) -> bool {
    let alike = |(a, b): (&u8, &u8)| a == b || (*b == b'-' && !a.is_ascii_alphanumeric());
    name.len() == other.len() && name.iter().zip(other).all(alike)
}

/// A decimal number: digits only, and few enough not to overflow in any program.
fn parse_decimal(text: &[u8]) -> Option<u64> {
    if !(1..=18).contains(&text.len()) || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(text.iter().fold(0, |number, digit| number * 10 + u64::from(digit - b'0')))
}

/// Whether the connection stays open after this message.
pub fn is_keep_alive(headers: &Headers, version: Version) -> bool {
    let (mut close, mut keep) = (false, false);
    for value in headers.all(HeaderName::Connection) {
        for option in value.split(|byte| *byte == b',') {
            let option = option.trim_ascii();
            close |= option.eq_ignore_ascii_case(b"close");
            keep |= option.eq_ignore_ascii_case(b"keep-alive");
        }
    }
    !close && (keep || version == Version::HTTP_11)
}
