//! Media types as RFC 9110 section 8.3.1 defines them: `type/subtype`, then parameters. It knows nothing about which
//! types are allowed.

use std::fmt;

use crate::base::byte_class::ByteClass;
use crate::http::headers::is_value_byte;

/// A type and subtype in lower case, without parameters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MediaType(String);

impl MediaType {
    /// Parses a media type of the configuration: no parameters, no wildcard.
    pub fn parse_bare(text: &str) -> Option<MediaType> {
        let valid = essence(text.as_bytes()).is_some_and(|essence| essence.len() == text.len());
        (valid && !text.contains('*')).then(|| MediaType(text.to_ascii_lowercase()))
    }

    /// The `type/subtype` in lower case.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether `essence` names this type, in any letter case.
    pub fn matches(&self, essence: &[u8]) -> bool {
        self.0.as_bytes().eq_ignore_ascii_case(essence)
    }
}

impl fmt::Display for MediaType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The `type/subtype` of a `Content-Type` value; `None` if the value, including its parameters, is malformed.
pub fn essence(value: &[u8]) -> Option<&[u8]> {
    let (main, rest) = split_token(value)?;
    let (sub, mut rest) = split_token(rest.strip_prefix(b"/")?)?;
    let essence = &value[..main.len() + 1 + sub.len()];
    loop {
        rest = rest.trim_ascii_start();
        if rest.is_empty() {
            return Some(essence);
        }
        rest = rest.strip_prefix(b";")?.trim_ascii_start();
        if rest.is_empty() || rest.starts_with(b";") {
            continue; // RFC 9110 section 5.6.6 lets a parameter be empty.
        }
        let (_, after_name) = split_token(rest)?;
        rest = parameter_value(after_name.strip_prefix(b"=")?)?;
    }
}

fn parameter_value(text: &[u8]) -> Option<&[u8]> {
    match text.strip_prefix(b"\"") {
        Some(quoted) => skip_quoted_string(quoted),
        None => split_token(text).map(|(_, rest)| rest),
    }
}

fn skip_quoted_string(mut text: &[u8]) -> Option<&[u8]> {
    loop {
        text = match text {
            [b'"', rest @ ..] => return Some(rest),
            [b'\\', escaped, rest @ ..] if is_value_byte(*escaped) => rest,
            [plain, rest @ ..] if is_value_byte(*plain) && *plain != b'\\' => rest,
            _ => return None,
        }
    }
}

/// Splits a non-empty token (RFC 9110 section 5.6.2) off the front.
fn split_token(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = ByteClass::TOKEN.first_outside(text).unwrap_or(text.len());
    (end > 0).then(|| text.split_at(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn well_formed_values_give_their_essence() {
        for (value, expected) in [
            ("application/json", "application/json"),
            ("Application/JSON", "Application/JSON"),
            ("application/json; charset=utf-8", "application/json"),
            ("application/json;charset=\"utf-8\"", "application/json"),
            ("text/plain ; a=b ; c=\"d;\\\"e\"", "text/plain"),
            ("text/plain;", "text/plain"),
            ("text/plain;;a=b", "text/plain"),
        ] {
            assert_eq!(essence(value.as_bytes()), Some(expected.as_bytes()), "{value}");
        }
    }

    #[test]
    fn malformed_values_have_no_essence() {
        for value in [
            "",
            "application",
            "application/",
            "/json",
            "application/json, text/plain",
            "application/json charset=utf-8",
            "application/json; charset",
            "application/json; charset=",
            "application/json; charset=\"utf-8",
            "application /json",
            " application/json",
            "application/json\u{1}",
            "application/json; a=\"\u{1}\"",
        ] {
            assert_eq!(essence(value.as_bytes()), None, "{value:?}");
        }
    }

    #[test]
    fn a_longer_name_is_a_different_type() {
        let json = MediaType::parse_bare("application/json").expect("valid");
        assert!(json.matches(b"APPLICATION/json"));
        assert!(!json.matches(b"application/jsonp"));
        assert!(!json.matches(b"application/problem+json"));
    }

    #[test]
    fn a_configured_type_is_bare() {
        assert!(MediaType::parse_bare("text/plain; charset=utf-8").is_none());
        assert!(MediaType::parse_bare("text/*").is_none());
        assert!(MediaType::parse_bare("*/*").is_none());
    }
}
