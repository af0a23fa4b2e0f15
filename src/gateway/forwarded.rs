//! The address of the client behind trusted proxies, from `X-Forwarded-For` or `Forwarded`. It does not know the
//! use of the address.

use std::net::{IpAddr, SocketAddr};
use std::sync::Once;

use ipnet::IpNet;
use tracing::warn;

use crate::base::client_address;
use crate::config::ProxyHeader;
use crate::gateway::context::Peer;
use crate::http::headers::{HeaderName, Headers};

/// Maximum number of proxies in a chain. The rest of a longer list is ignored.
const MAX_HOPS: usize = 32;

/// The client of a request, as far as trusted proxies say.
#[derive(Debug, PartialEq, Eq)]
pub struct ClientOrigin {
    /// The address of the client.
    pub address: IpAddr,
    /// The value of `X-Forwarded-For` for the backend: the client and the trusted proxies. `None`: the peer only.
    pub forwarded_for: Option<String>,
    /// True if the client used TLS; `None` unless a trusted proxy says so.
    pub is_tls: Option<bool>,
}

/// Reads the header of trusted proxies. `peer` is the address of the connection.
///
/// SECURITY: any client can send these headers. They are read only if the peer is trusted, and from the right, where
/// the peer has written: up to the first address that is not a trusted proxy's, which is the client. Everything left
/// of it was written by the client and is discarded. Only one of the headers is read, as a proxy that does not write
/// the other one forwards what the client wrote.
pub fn resolve_client(peer: IpAddr, headers: &Headers, trusted: &[IpNet], header: ProxyHeader) -> ClientOrigin {
    if !is_trusted(peer, trusted) {
        return ClientOrigin { address: peer, forwarded_for: None, is_tls: None };
    }
    let mut hops = vec![peer];
    let mut proto = match header {
        ProxyHeader::XForwardedFor => headers.single(HeaderName::XForwardedProto),
        ProxyHeader::Forwarded => None,
    };
    for (claimed, claimed_proto) in claims(headers, header) {
        // An unreadable address ends the chain: nothing left of it can be trusted.
        let Some(address) = claimed else { break };
        hops.push(address);
        if header == ProxyHeader::Forwarded {
            // Not that of a proxy further on, which describes the connection of the proxy before it.
            proto = claimed_proto;
        }
        if !is_trusted(address, trusted) {
            break;
        }
    }
    let is_proto = |name: &[u8]| proto.is_some_and(|proto| proto.eq_ignore_ascii_case(name));
    let is_tls = (is_proto(b"https") || is_proto(b"http")).then(|| is_proto(b"https"));
    let address = hops.last().copied().unwrap_or(peer);
    let texts: Vec<_> = hops.iter().rev().map(|address| client_address::to_text(*address)).collect();
    ClientOrigin { address, forwarded_for: Some(texts.join(", ")), is_tls }
}

/// Warns, once in the life of the process, that requests seem to come through a proxy while `trusted_proxies` is empty.
///
/// SECURITY: all clients of such a proxy share its address, and so its failure limits.
pub fn warn_about_unknown_proxy(peer: &Peer, headers: &Headers) {
    static WARNED: Once = Once::new();
    let is_claim = |name| matches!(name, HeaderName::XForwardedFor | HeaderName::Forwarded);
    if !WARNED.is_completed() && headers.iter().any(|header| is_claim(header.name)) {
        WARNED.call_once(|| {
            warn!(
                peer = &*peer.address_text,
                "a request has X-Forwarded-For or Forwarded, but trusted_proxies is empty: if it comes from a proxy, all \
                 clients of the proxy share one address in the limits and the logs. Add the proxy to trusted_proxies"
            );
        });
    }
}

/// True if an address is in one of the trusted networks.
pub fn is_trusted(address: IpAddr, trusted: &[IpNet]) -> bool {
    trusted.iter().any(|network| network.contains(&address))
}

/// The address that one proxy reports, `None` for an invalid one, and the scheme that its client used.
type Claim<'a> = (Option<IpAddr>, Option<&'a [u8]>);

/// The claims in the header, from right to left.
fn claims(headers: &Headers, header: ProxyHeader) -> impl Iterator<Item = Claim<'_>> {
    let name = match header {
        ProxyHeader::XForwardedFor => HeaderName::XForwardedFor,
        ProxyHeader::Forwarded => HeaderName::Forwarded,
    };
    let values: Vec<_> = headers.all(name).collect();
    let entries = values.into_iter().rev().flat_map(|value| split_from_right(value, b','));
    entries.take(MAX_HOPS).map(move |entry| match header {
        ProxyHeader::XForwardedFor => (parse_address(entry), None),
        ProxyHeader::Forwarded => (parameter(entry, b"for=").and_then(parse_address), parameter(entry, b"proto=")),
    })
}

/// Splits a text at the separators that are not in a quoted string (RFC 9110 section 5.6.4), the last part first.
///
/// SECURITY: a proxy may quote what the client sent, such as a host with a comma. And from the right, because only what
/// the proxies wrote is known to be complete: a quote that the client left open must not include their entries.
fn split_from_right(text: &[u8], separator: u8) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let text = rest?;
        let mut is_quoted = false;
        let at = text.iter().enumerate().rposition(|(at, byte)| {
            let is_escaped = || text[..at].iter().rev().take_while(|byte| **byte == b'\\').count() % 2 == 1;
            is_quoted ^= *byte == b'"' && !is_escaped();
            *byte == separator && !is_quoted
        });
        rest = at.map(|at| &text[..at]);
        Some(text[at.map_or(0, |at| at + 1)..].trim_ascii())
    })
}

/// The value of a parameter in an element of `Forwarded` (RFC 7239 section 4). `start` is its name and `=`.
fn parameter<'a>(element: &'a [u8], start: &[u8]) -> Option<&'a [u8]> {
    let mut values = split_from_right(element, b';').filter_map(|pair| {
        let (name, value) = pair.split_at_checked(start.len())?;
        name.eq_ignore_ascii_case(start).then_some(value)
    });
    let value = values.next()?;
    if values.next().is_some() {
        return None;
    }
    Some(value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\"")).unwrap_or(value))
}

/// Parses an address, optionally in brackets and with a port.
fn parse_address(text: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(text).ok()?;
    let bare = text.parse::<IpAddr>().or_else(|_| text.parse::<SocketAddr>().map(|with_port| with_port.ip()));
    let bracketed = || text.strip_prefix('[')?.strip_suffix(']')?.parse::<IpAddr>().ok();
    bare.ok().or_else(bracketed).map(|address| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderValue};

    use super::*;

    type TestHeaders = [(&'static str, &'static str)];

    fn resolve(peer: &str, headers: &TestHeaders) -> (String, String, Option<bool>) {
        resolve_by(ProxyHeader::XForwardedFor, peer, headers)
    }

    fn resolve_by(header: ProxyHeader, peer: &str, headers: &TestHeaders) -> (String, String, Option<bool>) {
        let trusted = ["10.0.0.0/8", "fd00::/8"].map(|text| text.parse().expect("a network"));
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, HeaderValue::from_static(value));
        }
        let client = resolve_client(peer.parse().expect("an address"), &Headers::from(&map), &trusted, header);
        let forwarded_for = client.forwarded_for.unwrap_or_else(|| peer.to_owned());
        (client.address.to_string(), forwarded_for, client.is_tls)
    }

    #[test]
    fn untrusted_peers_cannot_set_the_client_address() {
        let headers = [("x-forwarded-for", "1.1.1.1"), ("forwarded", "for=1.1.1.1"), ("x-forwarded-proto", "https")];
        assert_eq!(resolve("192.0.2.9", &headers), ("192.0.2.9".into(), "192.0.2.9".into(), None));
    }

    #[test]
    fn the_client_is_the_first_untrusted_address_from_the_right() {
        for (headers, address, hops) in [
            (&[("x-forwarded-for", "203.0.113.5")][..], "203.0.113.5", "203.0.113.5, 10.0.0.1"),
            (
                &[("x-forwarded-for", "6.6.6.6, 203.0.113.5, 10.9.9.9")],
                "203.0.113.5",
                "203.0.113.5, 10.9.9.9, 10.0.0.1",
            ),
            (
                &[("x-forwarded-for", "6.6.6.6"), ("x-forwarded-for", "203.0.113.5:4711")],
                "203.0.113.5",
                "203.0.113.5, 10.0.0.1",
            ),
            (&[("x-forwarded-for", "203.0.113.5, unknown, 10.2.2.2")], "10.2.2.2", "10.2.2.2, 10.0.0.1"),
            (&[("x-forwarded-for", "garbage")], "10.0.0.1", "10.0.0.1"),
            (&[("x-forwarded-for", "6.6.6.6,")], "10.0.0.1", "10.0.0.1"),
            (&[("x-forwarded-for", "10.3.3.3, 10.2.2.2")], "10.3.3.3", "10.3.3.3, 10.2.2.2, 10.0.0.1"),
            (&[("forwarded", "for=6.6.6.6")], "10.0.0.1", "10.0.0.1"),
            (
                &[("forwarded", "for=6.6.6.6"), ("x-forwarded-for", "203.0.113.5")],
                "203.0.113.5",
                "203.0.113.5, 10.0.0.1",
            ),
            (&[], "10.0.0.1", "10.0.0.1"),
        ] {
            assert_eq!(resolve("10.0.0.1", headers), (address.into(), hops.into(), None), "{headers:?}");
        }
    }

    /// A proxy that writes one of the headers forwards the other one as the client wrote it.
    #[test]
    fn only_the_configured_header_is_read() {
        for (forwarded, address, hops, is_tls) in [
            ("for=6.6.6.6, For=\"[2001:db8::7]:1\";Proto=http", "2001:db8::7", "2001:db8::7, 10.0.0.1", Some(false)),
            (
                "for=6.6.6.6;proto=http, for=203.0.113.5;proto=https, for=10.2.2.2;proto=http",
                "203.0.113.5",
                "203.0.113.5, 10.2.2.2, 10.0.0.1",
                Some(true),
            ),
            ("for=203.0.113.5, for=10.2.2.2;proto=https", "203.0.113.5", "203.0.113.5, 10.2.2.2, 10.0.0.1", None),
            ("for=203.0.113.5;proto=HTTPS", "203.0.113.5", "203.0.113.5, 10.0.0.1", Some(true)),
            ("for=203.0.113.5;proto=https;proto=http", "203.0.113.5", "203.0.113.5, 10.0.0.1", None),
            ("for=_hidden", "10.0.0.1", "10.0.0.1", None),
            ("for=unknown;proto=http, for=10.2.2.2;proto=https", "10.2.2.2", "10.2.2.2, 10.0.0.1", Some(true)),
            ("for=203.0.113.5, ", "10.0.0.1", "10.0.0.1", None),
            ("proto=https", "10.0.0.1", "10.0.0.1", None),
            // The host that the client sent, in quotes.
            ("for=203.0.113.5;host=\"x,for=6.6.6.6;proto=https\"", "203.0.113.5", "203.0.113.5, 10.0.0.1", None),
            ("for=203.0.113.5;host=\"x\\\",for=6.6.6.6;x=\"", "203.0.113.5", "203.0.113.5, 10.0.0.1", None),
            ("for=203.0.113.5;host=\"a;for=6.6.6.6\"", "203.0.113.5", "203.0.113.5, 10.0.0.1", None),
            // A quote that the client left open.
            ("for=\"6.6.6.6, for=203.0.113.5;proto=http", "203.0.113.5", "203.0.113.5, 10.0.0.1", Some(false)),
            ("for=6.6.6.6;x=\", for=10.2.2.2", "10.2.2.2", "10.2.2.2, 10.0.0.1", None),
        ] {
            let headers = [("forwarded", forwarded), ("x-forwarded-for", "7.7.7.7"), ("x-forwarded-proto", "https")];
            let result = resolve_by(ProxyHeader::Forwarded, "10.0.0.1", &headers);
            assert_eq!(result, (address.into(), hops.into(), is_tls), "{forwarded}");
        }
    }

    #[test]
    fn a_trusted_proxy_says_whether_the_client_used_tls() {
        for (headers, is_tls) in [
            (&[("x-forwarded-proto", "https")][..], Some(true)),
            (&[("x-forwarded-proto", "HTTP")], Some(false)),
            (&[("x-forwarded-proto", "https, http")], None),
            (&[("x-forwarded-proto", "https"), ("x-forwarded-proto", "http")], None),
        ] {
            assert_eq!(resolve("fd00::1", headers).2, is_tls, "{headers:?}");
        }
    }
}
