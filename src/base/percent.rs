//! Percent-encoding (RFC 3986 section 2.1). It knows nothing about URLs beyond a single segment or value.

use std::borrow::Cow;
use std::fmt::Write as _;

use crate::base::hex;

/// Encodes a text for one segment of a path, or one value of a query or a form. Only unreserved characters of RFC 3986
/// are not escaped.
pub fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    encode_into(&mut out, text);
    out
}

/// Appends an encoded text. For secrets, reserve the whole capacity of `out` first, so that it is not reallocated.
pub fn encode_into(out: &mut String, text: &str) {
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
            other => drop(write!(out, "%{other:02X}")),
        }
    }
}

/// Decodes a text; `None` if a `%` is not followed by two digits, or the result is not UTF-8.
pub fn decode(text: &str) -> Option<Cow<'_, str>> {
    if !text.contains('%') {
        return Some(text.into());
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let byte;
        (byte, rest) = match first {
            b'%' => (hex::decode_first(after)?, &after[2..]),
            plain => (*plain, after),
        };
        bytes.push(byte);
    }
    String::from_utf8(bytes).ok().map(Cow::from)
}

/// Decodes a value of a query, where `+` is a space. A `%` that is not followed by two digits is kept.
pub fn decode_query_value(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let byte;
        (byte, rest) = match (first, hex::decode_first(after)) {
            (b'%', Some(byte)) => (byte, &after[2..]),
            (b'+', _) => (b' ', after),
            (plain, _) => (*plain, after),
        };
        bytes.push(byte);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encoded_text_decodes_to_itself() {
        for text in ["", "alice", "a b&c=d/e?f#g%h+i", "José \"q\"", "-._~*"] {
            assert_eq!(decode(&encode(text)).as_deref(), Some(text));
            assert_eq!(decode_query_value(&encode(text)), text);
        }
        assert_eq!(encode("a b/é~"), "a%20b%2F%C3%A9~");
    }

    #[test]
    fn incomplete_escapes_are_rejected_or_kept() {
        for text in ["%", "%4", "a%zz", "%+1", "%ff"] {
            assert_eq!(decode(text), None, "{text}");
        }
        for (text, decoded) in [("%61%", "a%"), ("%4", "%4"), ("a%zz", "a%zz"), ("%+1", "% 1"), ("%41+b", "A b")] {
            assert_eq!(decode_query_value(text), decoded);
        }
    }
}
