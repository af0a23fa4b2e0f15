//! What heads of requests and of answers have in common: where they end, and where their bodies do.

use http::Version;

use crate::http::headers::{HeaderName, Headers};

/// How large a head may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadLimits {
    /// Most fields.
    pub max_headers: usize,
    /// Most bytes, request line and line ends included.
    pub max_bytes: usize,
    /// Most bytes of the target.
    pub max_target: usize,
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
    TooManyHeaders,
    /// A longer target than allowed.
    #[error("the request's target is too long")]
    TargetTooLong,
}

/// Where a body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// There is none.
    None,
    /// After so many bytes, one at least.
    Length(u64),
    /// Where its last chunk says.
    Chunked,
}

/// Looks for the end of a head as its bytes come, each byte once however they come.
#[derive(Clone, Copy, Debug, Default)]
pub struct HeadScanner {
    scanned: usize,
    lines: usize,
}

impl HeadScanner {
    /// The length of the head that `bytes` begins with, once it is there whole. `bytes` is all that came so far.
    ///
    /// SECURITY: a line ends with CR LF. Whoever takes LF alone for an end sees other fields than whoever does not.
    pub fn find_end(&mut self, bytes: &[u8], limits: &HeadLimits) -> Result<Option<usize>, HeadError> {
        let from = self.scanned;
        for found in memchr::memchr_iter(b'\n', &bytes[from..]) {
            let at = from + found;
            if at == 0 || bytes[at - 1] != b'\r' {
                return Err(HeadError::Malformed("a line ends without a carriage return"));
            }
            if at >= limits.max_bytes {
                return Err(HeadError::TooLarge);
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
        // 20 bytes are room for the longest method served, the version and the blanks between.
        if self.lines == 0 && bytes.len() > limits.max_target + 20 {
            return Err(HeadError::TargetTooLong);
        }
        if bytes.len() >= limits.max_bytes {
            return Err(HeadError::TooLarge);
        }
        Ok(None)
    }
}

/// What the fields say about the body (RFC 9112 section 6.3), without leniencies. `None`: they say nothing.
///
/// SECURITY: a body has one length. Two statements about it, equal or not, are an attack or a defect.
pub fn body_framing(fields: &Headers, version: Version) -> Result<Option<Framing>, HeadError> {
    let (mut codings, mut lengths) = (SingleValue::default(), SingleValue::default());
    for field in fields.iter() {
        match field.name {
            HeaderName::TransferEncoding => codings.record(field.value),
            HeaderName::ContentLength => lengths.record(field.value),
            HeaderName::Other if resembles_framing_header(field.text()) => {
                return Err(HeadError::Malformed("a field's name can be taken for one that frames the body"));
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
            Err(HeadError::Malformed("`Content-Length` and `Transfer-Encoding` exclude each other"))
        }
        (_, SingleValue::Absent) if version == Version::HTTP_10 => {
            Err(HeadError::Malformed("HTTP/1.0 has no `Transfer-Encoding`"))
        }
        (SingleValue::Present(coding), SingleValue::Absent) if coding.eq_ignore_ascii_case(b"chunked") => {
            Ok(Some(Framing::Chunked))
        }
        (_, SingleValue::Absent) => Err(HeadError::Malformed("`Transfer-Encoding` must be `chunked`, once")),
    }
}

/// A value that may stand once.
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

/// Whether some programs frame a body by the field that is called so.
fn resembles_framing_header(name: &[u8]) -> bool {
    let frames = [HeaderName::TransferEncoding, HeaderName::ContentLength].map(HeaderName::as_str);
    frames.iter().any(|other| is_lookalike(name, other.as_bytes()))
}

/// Whether some programs, for which `-` and `_` are the same, take a name for another one.
fn is_lookalike(name: &[u8], other: &[u8]) -> bool {
    let alike = |(a, b): (&u8, &u8)| a == b || (*b == b'-' && !a.is_ascii_alphanumeric());
    name.len() == other.len() && name.iter().zip(other).all(alike)
}

/// Digits and nothing else, few enough that nobody's integers overflow.
fn parse_decimal(text: &[u8]) -> Option<u64> {
    if !(1..=18).contains(&text.len()) || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(text.iter().fold(0, |number, digit| number * 10 + u64::from(digit - b'0')))
}

/// Whether the connection goes on after this message.
pub fn is_keep_alive(fields: &Headers, version: Version) -> bool {
    let (mut close, mut keep) = (false, false);
    for value in fields.all(HeaderName::Connection) {
        for option in value.split(|byte| *byte == b',') {
            let option = option.trim_ascii();
            close |= option.eq_ignore_ascii_case(b"close");
            keep |= option.eq_ignore_ascii_case(b"keep-alive");
        }
    }
    !close && (keep || version == Version::HTTP_11)
}
