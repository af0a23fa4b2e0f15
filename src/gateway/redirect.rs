//! Rewrites the URLs in a response that name the backend itself. It does not know which backend sent the response.

use crate::http::headers::{HeaderName, HeaderNames, Headers};

/// The headers that contain a URL for the client.
pub const URL_HEADERS: HeaderNames = HeaderNames::new(&WITH_URL);

const WITH_URL: [HeaderName; 3] = [HeaderName::Location, HeaderName::ContentLocation, HeaderName::Refresh];

/// Replaces URLs of the backend by their path, which the client resolves against the scheme, host and port that it used.
///
/// SECURITY: a client that follows a redirect to the backend sends its key past the gateway, possibly unencrypted. The
/// replacement is a path and not a URL, because `Host` is chosen by the client.
///
/// `names_backend` returns whether a URL with this host and port names the backend; the port is `None` if the URL has
/// none.
pub fn rewrite_urls(headers: &mut Headers, names_backend: impl Fn(&str, Option<u16>) -> bool) {
    for name in WITH_URL {
        let rewritten = |value: &[u8]| {
            // Not every backend writes UTF-8: each byte becomes a character, and in the end a byte again.
            let value: String = value.iter().copied().map(char::from).collect();
            let start = if name == HeaderName::Refresh { start_of_refresh_url(&value) } else { 0 };
            let (before, url) = value.split_at(start);
            let (url, after) = url.find(['"', '\'']).map_or((url, ""), |end| url.split_at(end));
            let text = format!("{before}{}{after}", local_reference(url, &names_backend)?);
            Some(text.chars().map(|byte| u8::try_from(byte).expect("made from a byte")).collect::<Vec<u8>>())
        };
        let values: Vec<_> = headers.all(name).map(|value| (value.to_vec(), rewritten(value))).collect();
        if values.iter().all(|(_, rewritten)| rewritten.is_none()) {
            continue;
        }
        headers.remove(name);
        for (value, rewritten) in values {
            headers.push(name, rewritten.as_ref().unwrap_or(&value));
        }
    }
}

/// Where the URL begins in `5; url=http://…`, `0;URL='http://…'` or `0; http://…`, as browsers read it.
fn start_of_refresh_url(value: &str) -> usize {
    let rest = value.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.').trim_start();
    let rest = rest.strip_prefix([';', ',']).unwrap_or(rest).trim_start();
    let named = rest.split_at_checked("url".len()).filter(|(key, _)| key.eq_ignore_ascii_case("url"));
    let rest = named.and_then(|(_, rest)| rest.trim_start().strip_prefix('=')).map_or(rest, str::trim_start);
    value.len() - rest.strip_prefix(['"', '\'']).unwrap_or(rest).len()
}

/// The path, query and fragment of a URL that names the backend; `None` for any other URL or path.
fn local_reference(url: &str, names_backend: impl Fn(&str, Option<u16>) -> bool) -> Option<String> {
    let rest = ["http://", "https://", "//"].iter().find_map(|scheme| {
        let (start, rest) = url.split_at_checked(scheme.len())?;
        start.eq_ignore_ascii_case(scheme).then_some(rest)
    })?;
    let (authority, rest) = rest.split_at(rest.find(['/', '\\', '?', '#']).unwrap_or(rest.len()));
    let authority = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port.parse().ok()?)),
        _ => (authority, None),
    };
    if !names_backend(host, port) {
        return None;
    }
    // SECURITY: what begins with two slashes is a URL of a different host; clients also read `\` as a slash and ignore
    // tabs.
    let is_ambiguous = matches!(rest.as_bytes(), [b'/', b'/' | b'\\' | b'\t', ..] | [b'\\', ..]);
    Some(match rest.starts_with('/') {
        _ if is_ambiguous => format!("/.{}{rest}", if rest.starts_with('/') { "" } else { "/" }),
        true => rest.to_owned(),
        false => format!("/{rest}"),
    })
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderValue};

    use super::*;

    fn rewritten(name: &'static str, value: &str) -> String {
        String::from_utf8(rewritten_bytes(name, value.as_bytes())).expect("text")
    }

    fn rewritten_bytes(name: &'static str, value: &[u8]) -> Vec<u8> {
        let mut map = HeaderMap::new();
        map.append(name, HeaderValue::from_bytes(value).expect("valid"));
        let mut headers = Headers::from(&map);
        rewrite_urls(&mut headers, |host: &str, port| {
            host.eq_ignore_ascii_case("backend") && matches!(port, None | Some(80 | 8000)) || host == "[::1]"
        });
        let values: Vec<_> = headers.all(HeaderName::parse(name.as_bytes())).collect();
        assert_eq!(values.len(), 1);
        values[0].to_vec()
    }

    #[test]
    fn urls_of_the_backend_become_paths() {
        for (url, expected) in [
            ("http://backend:8000/timbr/api/query/?a=1#b", "/timbr/api/query/?a=1#b"),
            ("HTTPS://Backend/x", "/x"),
            ("//backend:8000/x", "/x"),
            ("http://user:secret@backend:8000/x", "/x"),
            ("http://backend", "/"),
            ("http://backend?a", "/?a"),
            ("http://[::1]:8000/x", "/x"),
            ("http://[::1]/x", "/x"),
        ] {
            assert_eq!(rewritten("location", url), expected, "{url}");
            assert_eq!(rewritten("content-location", url), expected, "{url}");
        }
    }

    #[test]
    fn other_urls_and_paths_are_unchanged() {
        for url in [
            "https://elsewhere.example/x?next=http://backend:8000/",
            "http://backend:9000/x",
            "http://backend.example/x",
            "http://elsewhere@other/",
            "http://backend:x/",
            "/x",
            "x",
            "",
            "ftp://backend/",
        ] {
            assert_eq!(rewritten("location", url), url);
        }
    }

    #[test]
    fn bytes_that_are_not_utf8_hide_no_url() {
        for (before, after) in [(&b"http://backend:8000/caf\xe9"[..], &b"/caf\xe9"[..]), (b"/caf\xe9", b"/caf\xe9")] {
            assert_eq!(rewritten_bytes("location", before), after);
        }
        assert_eq!(rewritten("location", "http://backend:8000/café"), "/café");
    }

    /// A path that a client would read as a URL of a different host.
    #[test]
    fn a_path_never_names_a_host() {
        for (url, expected) in [
            ("http://backend//elsewhere.example/", "/.//elsewhere.example/"),
            ("http://backend/\\elsewhere.example/", "/./\\elsewhere.example/"),
            ("http://backend\\elsewhere.example/", "/./\\elsewhere.example/"),
            ("http://backend/\t/elsewhere.example/", "/./\t/elsewhere.example/"),
        ] {
            assert_eq!(rewritten("location", url), expected, "{url}");
        }
    }

    #[test]
    fn the_url_of_a_refresh_is_rewritten() {
        for (value, expected) in [
            ("5; url=http://backend:8000/x", "5; url=/x"),
            ("0;URL = 'http://backend:8000/x?y'", "0;URL = '/x?y'"),
            ("0; url=\"http://backend/\"", "0; url=\"/\""),
            ("0;http://backend:8000/x", "0;/x"),
            ("0.5 , 'http://backend/?url=y'", "0.5 , '/?url=y'"),
            ("5; url=http://elsewhere.example/", "5; url=http://elsewhere.example/"),
            ("5; url=/x", "5; url=/x"),
            ("5", "5"),
            ("5; url", "5; url"),
        ] {
            assert_eq!(rewritten("refresh", value), expected, "{value}");
        }
    }
}
