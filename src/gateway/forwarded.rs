//! The address of the client behind trusted proxies, from `X-Forwarded-For` or `Forwarded`. It does not know the
//! use of the address.

use std::net::{IpAddr, SocketAddr};
use std::sync::Once;

use ipnet::IpNet;
use tracing::warn;

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

/// Reads the headers of trusted proxies. `peer` is the address of the connection.
///
/// SECURITY: any client can send these headers. They are read only if the peer is trusted, and from the right, where
/// the peer has written: up to the first address that is not a trusted proxy's, which is the client. Everything left
/// of it was written by the client and is discarded.
pub fn resolve_client(peer: IpAddr, headers: &Headers, trusted: &[IpNet]) -> ClientOrigin {
    if !is_trusted(peer, trusted) {
        return ClientOrigin { address: peer, forwarded_for: None, is_tls: None };
    }
    let mut hops = vec![peer];
    for claimed in claimed_addresses(headers).into_iter().rev().take(MAX_HOPS) {
        // An unreadable address ends the chain: nothing left of it can be trusted.
        let Some(address) = claimed else { break };
        hops.push(address);
        if !is_trusted(address, trusted) {
            break;
        }
    }
    let is_tls = match headers.single(HeaderName::XForwardedProto) {
        Some(b"https") => Some(true),
        Some(b"http") => Some(false),
        _ => None,
    };
    let address = hops.last().copied().unwrap_or(peer);
    let texts: Vec<_> = hops.iter().rev().map(ToString::to_string).collect();
    ClientOrigin { address, forwarded_for: Some(texts.join(", ")), is_tls }
}

/// Warns, once in the life of the process, that requests seem to come through a proxy while `trusted_proxies` is empty.
///
/// SECURITY: all clients of such a proxy share its address, and so its failure limits.
pub fn warn_about_unknown_proxy(peer: &Peer, headers: &Headers) {
    static WARNED: Once = Once::new();
    if !WARNED.is_completed()
        && (headers.contains(HeaderName::XForwardedFor) || headers.contains(HeaderName::Forwarded))
    {
        WARNED.call_once(|| {
            warn!(
                peer = peer.address_text.as_str(),
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

/// The addresses in the headers, from left to right; `None` for an invalid one. `X-Forwarded-For` has precedence over
/// `Forwarded`, as most proxies write the former and forward the latter unread.
fn claimed_addresses(headers: &Headers) -> Vec<Option<IpAddr>> {
    let items = |name: HeaderName| {
        headers.all(name).flat_map(|value| value.split(|byte| *byte == b',')).map(<[u8]>::trim_ascii)
    };
    if headers.contains(HeaderName::XForwardedFor) {
        return items(HeaderName::XForwardedFor).map(parse_address).collect();
    }
    items(HeaderName::Forwarded).map(|element| parse_address(for_parameter(element)?)).collect()
}

/// The value of `for` in an element of `Forwarded` (RFC 7239 section 4).
fn for_parameter(element: &[u8]) -> Option<&[u8]> {
    let mut values = element.split(|byte| *byte == b';').map(<[u8]>::trim_ascii).filter_map(|pair| {
        let (name, value) = pair.split_at_checked(4)?;
        name.eq_ignore_ascii_case(b"for=").then_some(value)
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

    fn resolve(peer: &str, headers: &[(&'static str, &'static str)]) -> (String, String, Option<bool>) {
        let trusted = ["10.0.0.0/8", "fd00::/8"].map(|text| text.parse().expect("a network"));
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, HeaderValue::from_static(value));
        }
        let client = resolve_client(peer.parse().expect("an address"), &Headers::from(&map), &trusted);
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
            (&[("x-forwarded-for", "10.3.3.3, 10.2.2.2")], "10.3.3.3", "10.3.3.3, 10.2.2.2, 10.0.0.1"),
            (
                &[("forwarded", "for=6.6.6.6, For=\"[2001:db8::7]:1\";proto=http")],
                "2001:db8::7",
                "2001:db8::7, 10.0.0.1",
            ),
            (&[("forwarded", "for=_hidden")], "10.0.0.1", "10.0.0.1"),
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

    #[test]
    fn a_trusted_proxy_says_whether_the_client_used_tls() {
        for (headers, is_tls) in [
            (&[("x-forwarded-proto", "https")][..], Some(true)),
            (&[("x-forwarded-proto", "http")], Some(false)),
            (&[("x-forwarded-proto", "https, http")], None),
            (&[("x-forwarded-proto", "https"), ("x-forwarded-proto", "http")], None),
        ] {
            assert_eq!(resolve("fd00::1", headers).2, is_tls, "{headers:?}");
        }
    }
}
