//! Which route a request belongs to. It reads the request line and `Host` only, no other header.

use std::net::Ipv6Addr;

use http::{Method, Uri};

use crate::base::byte_class::ByteClass;
use crate::base::hex;
use crate::config::RouteProfile;
use crate::config::routes::requires_credential;
use crate::gateway::cors::{self, CorsGrant};
use crate::gateway::rejection::Rejection;
use crate::http::headers::{Head, HeaderName, Headers};

/// The route of a request.
#[derive(Debug)]
pub enum RouteMatch<'a> {
    /// The gateway responds itself.
    GetToken,
    /// The request is forwarded if it satisfies the profile. The number is the index in [`RouteTable::names`].
    Profile(&'a RouteProfile, usize),
    /// A browser asks whether a page may send a request; the gateway responds itself.
    Preflight(&'a RouteProfile, usize),
}

/// The route profiles, and their prefixes.
pub struct RouteTable {
    profiles: Vec<RouteProfile>,
    /// With the number of the profile, the longest one first.
    prefixes: Vec<(String, usize)>,
    has_cors: bool,
}

impl RouteTable {
    /// Sorts the prefixes. The configuration has checked that they differ.
    pub fn new(profiles: Vec<RouteProfile>) -> RouteTable {
        let of_profile = |(number, profile): (usize, &RouteProfile)| {
            profile.prefixes.iter().map(|prefix| (prefix.clone(), number)).collect::<Vec<_>>()
        };
        let mut prefixes: Vec<_> = profiles.iter().enumerate().flat_map(of_profile).collect();
        prefixes.sort_by_key(|(prefix, _)| std::cmp::Reverse(prefix.len()));
        RouteTable { has_cors: profiles.iter().any(|profile| profile.cors.is_some()), profiles, prefixes }
    }

    /// What a page may do with the response to a request, which may be a rejection that precedes the route.
    pub fn cors_grant(&self, head: &Head) -> Option<CorsGrant> {
        let path = head.uri.path();
        if !self.has_cors || is_get_token(path) {
            return None;
        }
        CorsGrant::for_request(&self.profiles[self.number_of(path)?], &head.headers)
    }

    /// The number of the profile with the longest prefix of a path.
    fn number_of(&self, path: &str) -> Option<usize> {
        self.prefixes.iter().find(|(prefix, _)| has_prefix(path, prefix)).map(|(_, number)| *number)
    }

    /// The names of the profiles, by their numbers.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.profiles.iter().map(|profile| profile.name.as_str())
    }

    /// Finds the route of a request, or rejects a target that is ambiguous or has no route.
    pub fn find(&self, head: &Head) -> Result<RouteMatch<'_>, Rejection> {
        require_single_host(&head.uri, &head.headers)?;
        let path = head.uri.path();
        reject_ambiguous_path(path)?;
        if is_get_token(path) {
            return match head.method {
                Method::POST => Ok(RouteMatch::GetToken),
                _ => Err(Rejection::MethodNotAllowed("POST".to_owned())),
            };
        }
        let number = self.number_of(path).ok_or(Rejection::NotFound)?;
        let profile = &self.profiles[number];
        if profile.accepts.none {
            self.reject_protected_path(path)?;
        }
        if profile.cors.is_some() && cors::is_preflight(head) {
            return Ok(RouteMatch::Preflight(profile, number));
        }
        if !profile.methods.contains(&head.method) {
            let methods: Vec<_> = profile.methods.iter().map(Method::as_str).collect();
            return Err(Rejection::MethodNotAllowed(methods.join(", ")));
        }
        Ok(RouteMatch::Profile(profile, number))
    }

    /// SECURITY: a path of a route without credentials must not be one that requires a credential, not even in a
    /// different case: a backend that ignores case would serve it. That includes the paths of Timbr whose own route is
    /// not enabled. Otherwise no rule, limit or revocation would apply to them.
    fn reject_protected_path(&self, path: &str) -> Result<(), Rejection> {
        if requires_credential(path) {
            return Err(Rejection::NotFound);
        }
        let matches = |(prefix, _): &&(String, usize)| {
            let without_slash = &prefix.as_bytes()[..prefix.len() - 1];
            let start = path.as_bytes().get(..prefix.len());
            start.is_some_and(|start| start.eq_ignore_ascii_case(prefix.as_bytes()))
                || without_slash.eq_ignore_ascii_case(path.as_bytes())
        };
        match self.prefixes.iter().find(matches) {
            Some((_, number)) if !self.profiles[*number].accepts.none => Err(Rejection::NotFound),
            _ => Ok(()),
        }
    }
}

/// Whether the gateway itself responds at a path, independent of the routes.
fn is_get_token(path: &str) -> bool {
    matches!(path, "/timbr/api/get_token" | "/timbr/api/get_token/")
}

/// SECURITY: a prefix also matches without its last slash. Backends commonly serve both spellings, so
/// `/timbr/api/clear_cache` must not reach a wider route, with wider rules, than `/timbr/api/clear_cache/`.
fn has_prefix(path: &str, prefix: &str) -> bool {
    let Some((last, without_last)) = prefix.as_bytes().split_last() else { return true };
    match path.as_bytes().get(without_last.len()) {
        // Most paths have no slash where a prefix ends.
        Some(byte) => byte == last && path.starts_with(prefix),
        None => *last == b'/' && without_last == path.as_bytes(),
    }
}

/// SECURITY: the request must name one host: in `Host`, in an absolute target or in `:authority`, or the same one in
/// several of them. A server behind the gateway may use any of them.
fn require_single_host(uri: &Uri, headers: &Headers) -> Result<(), Rejection> {
    let mut values = headers.all(HeaderName::Host);
    let header = values.next();
    if values.next().is_some() {
        return Err(Rejection::HeaderRepeated("host"));
    }
    match (uri.authority(), header) {
        (None, None) => Err(Rejection::RequestLineAmbiguous("it does not name a host")),
        (Some(authority), _) if authority.as_str().contains('@') => {
            Err(Rejection::RequestLineAmbiguous("its host contains user information"))
        }
        _ if uri.scheme_str().is_some_and(|scheme| !matches!(scheme, "http" | "https")) => {
            Err(Rejection::RequestLineAmbiguous("its scheme is neither http nor https"))
        }
        (Some(authority), Some(header)) if !is_same_host(authority.as_str().as_bytes(), header, uri.scheme_str()) => {
            Err(Rejection::RequestLineAmbiguous("it and the `Host` header name different hosts"))
        }
        (Some(authority), _) if !is_host(authority.as_str().as_bytes()) => {
            Err(Rejection::RequestLineAmbiguous("its authority is not a valid host"))
        }
        (None, Some(header)) if !is_host(header) => {
            Err(Rejection::RequestLineAmbiguous("the `Host` header is not a valid host"))
        }
        _ => Ok(()),
    }
}

/// True if both are the same name with the same port, where the default port of the scheme equals none (RFC 9110 section
/// 4.2.3).
fn is_same_host(one: &[u8], other: &[u8], scheme: Option<&str>) -> bool {
    let default_port: &[u8] = match scheme {
        Some("http") => b":80",
        Some("https") => b":443",
        _ => b"",
    };
    let [one, other] = [one, other].map(|host| host.strip_suffix(default_port).unwrap_or(host));
    one.eq_ignore_ascii_case(other)
}

/// True for a name or an address, IPv6 in brackets, with an optional port.
fn is_host(host: &[u8]) -> bool {
    let (is_name, port) = match host {
        [b'[', rest @ ..] => {
            let Some(end) = rest.iter().position(|byte| *byte == b']') else { return false };
            let is_address = std::str::from_utf8(&rest[..end]).is_ok_and(|text| text.parse::<Ipv6Addr>().is_ok());
            (is_address, &rest[end + 1..])
        }
        _ => {
            let end = host.iter().position(|byte| *byte == b':').unwrap_or(host.len());
            (end > 0 && ByteClass::HOST.contains_all(&host[..end]), &host[end..])
        }
    };
    let is_port = |port: &[u8]| {
        (1..=5).contains(&port.len())
            && port.iter().all(u8::is_ascii_digit)
            && std::str::from_utf8(port).is_ok_and(|text| text.parse::<u16>().is_ok())
    };
    is_name
        && match port {
            [] => true,
            [b':', port @ ..] => is_port(port),
            _ => false,
        }
}

/// SECURITY: a path that two parsers could read differently is rejected, never normalized: the backend must receive the
/// path that was checked here.
fn reject_ambiguous_path(path: &str) -> Result<(), Rejection> {
    let reject = |cause| Err(Rejection::RequestLineAmbiguous(cause));
    if !path.starts_with('/') {
        return reject("it is not a path");
    }
    let bytes = path.as_bytes();
    let mut checked = 0;
    while let Some(offset) = ByteClass::PATH.first_outside(&bytes[checked..]) {
        let i = checked + offset;
        checked = i + 1;
        match bytes[i] {
            b'/' if bytes.get(i + 1) == Some(&b'/') => return reject("it has an empty segment (`//`)"),
            b'/' if is_dot_segment(&bytes[i + 1..]) => return reject("it has a `.` or `..` segment"),
            b'\\' | b';' | b'#' => return reject("it contains `\\`, `;` or `#`"),
            b'%' => match hex::decode_first(&bytes[i + 1..]) {
                None => return reject("it contains a `%` that is not an escape"),
                Some(b'.' | b'/' | b'\\') => return reject("it contains an escaped `.`, `/` or `\\`"),
                // SECURITY: a server that unescapes twice reads a path that was not checked.
                Some(b'%') if hex::decode_first(&bytes[i + 3..]).is_some() => {
                    return reject("it contains a character that is escaped twice");
                }
                Some(control) if control < b' ' || control == 0x7f => {
                    return reject("it contains an escaped control character");
                }
                // SECURITY: by RFC 3986 section 2.3 the escaped and the plain spelling are equivalent, so a backend
                // serves `%6bb/` as `kb/`. A route with a narrower prefix is compared byte by byte and would be
                // bypassed.
                Some(b) if b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'~') => {
                    return reject("it contains an escaped letter, digit, `-`, `_` or `~`");
                }
                Some(_) => {}
            },
            b'/' => {}
            _ => return reject("it contains an unescaped special character"),
        }
    }
    Ok(())
}

fn is_dot_segment(after_slash: &[u8]) -> bool {
    let end = after_slash.iter().position(|byte| *byte == b'/').unwrap_or(after_slash.len());
    matches!(&after_slash[..end], b"." | b"..")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::routes;

    fn head(method: &str, target: &str) -> Head {
        let request = http::Request::builder().method(method).uri(target).header("host", "h").body(());
        request.expect("a request").into_parts().0.into()
    }

    fn find(method: &str, target: &str) -> Result<String, Rejection> {
        let routes = RouteTable::new(routes::defaults(1000));
        match routes.find(&head(method, target))? {
            RouteMatch::GetToken => Ok("get_token".into()),
            RouteMatch::Profile(profile, _) | RouteMatch::Preflight(profile, _) => Ok(profile.name.clone()),
        }
    }

    #[test]
    fn paths_have_routes() {
        for (method, target, name) in [
            ("POST", "/timbr/api/get_token", "get_token"),
            ("POST", "/timbr/api/get_token/", "get_token"),
            ("POST", "/timbr/api/get_token?x=1", "get_token"),
            ("GET", "/timbr/api/get_tokens", "api"),
            ("GET", "/timbr/api/q/onto/concept/a%20b?x=a//b", "api"),
            ("POST", "/timbr/openapi/ontology/x/query?datasource=y", "openapi"),
            ("GET", "/timbr/api/q/o/view/v1.2/..x", "api"),
        ] {
            assert_eq!(find(method, target), Ok(name.to_owned()), "{method} {target}");
        }
    }

    #[test]
    fn other_paths_have_no_route() {
        for target in ["/", "/timbr", "/timbr/ap", "/timbr/apix/", "/Timbr/api/x", "/metrics", "/livez"] {
            assert_eq!(find("GET", target), Err(Rejection::NotFound), "{target}");
        }
        for (method, target, allowed) in [
            ("GET", "/timbr/api/get_token", "POST"),
            ("TRACE", "/timbr/api/x", "GET, HEAD, POST, PUT, PATCH, DELETE"),
            ("OPTIONS", "/timbr/api/x", "GET, HEAD, POST, PUT, PATCH, DELETE"),
        ] {
            let expected = Rejection::MethodNotAllowed(allowed.into());
            assert_eq!(find(method, target), Err(expected), "{method} {target}");
        }
    }

    #[test]
    fn the_longest_prefix_wins_and_matches_without_its_last_slash() {
        let mut profiles = routes::defaults(1000);
        let kb = RouteProfile { name: "kb".into(), prefixes: vec!["/timbr/api/kb/".into()], ..profiles[0].clone() };
        profiles.push(kb);
        let routes = RouteTable::new(profiles);
        for (target, name) in [
            ("/timbr/api/kb", "kb"),
            ("/timbr/api/kb?x=/", "kb"),
            ("/timbr/api/kb/", "kb"),
            ("/timbr/api/kb/x", "kb"),
            ("/timbr/api/kbx", "api"),
            ("/timbr/api", "api"),
        ] {
            let head = head("POST", target);
            let found = routes.find(&head).expect("a route");
            assert!(matches!(found, RouteMatch::Profile(profile, _) if profile.name == name), "{target}");
        }
    }
}
