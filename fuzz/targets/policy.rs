//! Request lines and headers: `METHOD target`, then lines `name: value`. An accepted request has exactly one
//! interpretation.

#![no_main]

use std::sync::LazyLock;

use http::{HeaderValue, Request};
use libfuzzer_sys::fuzz_target;
use timbr_gateway::config::routes::defaults;
use timbr_gateway::gateway::header_policy::{Disposition, POLICY_HEADERS, disposition};
use timbr_gateway::gateway::route::{RouteMatch, RouteTable};
use timbr_gateway::gateway::screen::screen;
use timbr_gateway::http::headers::{Head, HeaderName};
use timbr_gateway::http::media_type::essence;

static ROUTES: LazyLock<RouteTable> = LazyLock::new(|| RouteTable::new(defaults(1 << 20)));

/// The path as a backend sees it: percent-decoded once.
fn decoded(path: &str) -> Vec<u8> {
    let bytes = path.as_bytes();
    let (mut text, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        let escape = bytes.get(at + 1..at + 3).filter(|_| bytes[at] == b'%');
        match escape.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()) {
            Some(byte) => {
                text.push(byte);
                at += 3;
            }
            None => {
                text.push(bytes[at]);
                at += 1;
            }
        }
    }
    text
}

/// Normalizes a header name as WSGI servers do.
fn folded(name: &str) -> String {
    name.to_ascii_lowercase().replace(|c: char| !c.is_ascii_alphanumeric(), "-")
}

fuzz_target!(|data: &[u8]| {
    let mut lines = data.split(|byte| *byte == b'\n');
    let line = lines.next().unwrap_or_default();
    let (method, target) = match line.iter().position(|byte| *byte == b' ') {
        Some(at) => (&line[..at], &line[at + 1..]),
        None => (&b"GET"[..], line),
    };
    let Ok(request) = Request::builder().method(method).uri(target).body(()) else { return };
    let mut parts = request.into_parts().0;
    for line in lines {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let name = http::HeaderName::from_bytes(&line[..colon]);
        let value = HeaderValue::from_bytes(line[colon + 1..].trim_ascii());
        if let (Ok(name), Ok(value)) = (name, value) {
            parts.headers.append(name, value);
        }
    }
    let headers = parts.headers.clone();
    let head = Head::from(parts);
    assert_eq!(head.headers.len(), headers.len());
    for header in head.headers.iter() {
        let name = std::str::from_utf8(header.text()).expect("ASCII");
        assert!(headers.get_all(name).iter().any(|value| value.as_bytes() == header.value));
        if disposition(header.name, header.text()) == Disposition::Forward {
            // A forwarded header cannot be confused with a different header, nor with one that the gateway adds.
            assert_eq!(folded(name), name);
            assert!(!name.starts_with("x-forwarded-"));
        }
    }
    let Ok(route) = ROUTES.find(&head) else { return };
    let path = decoded(head.uri.path());
    let segments: Vec<_> = path.split(|byte| *byte == b'/').skip(1).collect();
    assert!(path.starts_with(b"/timbr"));
    let (last, others) = segments.split_last().expect("at least one segment");
    assert!(others.iter().all(|segment| !segment.is_empty() && **segment != b"."[..] && **segment != b".."[..]));
    assert!(**last != b"."[..] && **last != b".."[..]);
    assert!(!path.iter().any(|byte| byte.is_ascii_control() || *byte == b'\\'));
    assert_eq!(head.headers.all(HeaderName::Host).count().max(1), 1);
    let RouteMatch::Profile(profile, _) = route else { return };
    // The decision also holds for the path that the backend sees.
    // A prefix also matches without its last slash.
    assert!(profile.prefixes.iter().map(String::as_bytes).any(|prefix| {
        path.starts_with(prefix) || prefix.strip_suffix(b"/") == Some(path.as_slice())
    }));
    assert!(profile.methods.contains(&head.method));
    if screen(profile, head, true).is_ok() {
        for name in POLICY_HEADERS.map(HeaderName::as_str) {
            let count: usize = headers
                .keys()
                .filter(|other| folded(other.as_str()) == name)
                .map(|other| headers.get_all(other).iter().count())
                .sum();
            assert!(count <= 1, "{name}");
        }
        if let Some(accepted) = &profile.content_types {
            let content_type = essence(headers["content-type"].as_bytes()).expect("well formed");
            assert!(accepted.iter().any(|accepted| accepted.matches(content_type)));
        }
        if let Some(key) = headers.get("x-api-key") {
            assert!(key.as_bytes().iter().all(|byte| byte.is_ascii_graphic() && *byte != b','));
        }
    }
});
