//! Who the client is, behind proxies that are trusted to say so.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use crate::http::headers::{HeaderName, Headers};

/// Addresses that a request may have come by; a longer list is no client's.
const MAX_HOPS: usize = 32;

/// What is believed of where a request comes from.
#[derive(Debug, PartialEq, Eq)]
pub struct ClientOrigin {
    /// The client.
    pub address: IpAddr,
    /// The client and the proxies between, for whoever stands behind us. `None`: the peer, and nobody else.
    pub forwarded_for: Option<String>,
    /// Whether the client spoke TLS, if a proxy has said so.
    pub is_tls: Option<bool>,
}

/// Reads what trusted proxies have said. `peer` is whom we are connected with.
///
/// SECURITY: anybody can send these fields. They are read only if the peer is trusted, and from the right, where the
/// peer has written: up to the first address that is not a trusted proxy's, which is the client. What stands left of it
/// is the client's own word, and goes nowhere.
pub fn resolve_client(peer: IpAddr, fields: &Headers, trusted: &[IpNet]) -> ClientOrigin {
    if !is_trusted(peer, trusted) {
        return ClientOrigin { address: peer, forwarded_for: None, is_tls: None };
    }
    let mut hops = vec![peer];
    for claimed in claimed_addresses(fields).into_iter().rev().take(MAX_HOPS) {
        // What cannot be read ends the chain: further left anything could stand.
        let Some(address) = claimed else { break };
        hops.push(address);
        if !is_trusted(address, trusted) {
            break;
        }
    }
    let secure = match fields.single(HeaderName::XForwardedProto) {
        Some(b"https") => Some(true),
        Some(b"http") => Some(false),
        _ => None,
    };
    let address = hops.last().copied().unwrap_or(peer);
    let texts: Vec<_> = hops.iter().rev().map(ToString::to_string).collect();
    ClientOrigin { address, forwarded_for: Some(texts.join(", ")), is_tls: secure }
}

/// Whether an address is one of these.
pub fn is_trusted(address: IpAddr, trusted: &[IpNet]) -> bool {
    trusted.iter().any(|network| network.contains(&address))
}

/// The addresses that the fields name, from left to right; `None` for what is no address. `X-Forwarded-For` goes before
/// `Forwarded`, as it is what most proxies write and the others pass on unread.
fn claimed_addresses(fields: &Headers) -> Vec<Option<IpAddr>> {
    let items = |name: HeaderName| {
        fields.all(name).flat_map(|value| value.split(|byte| *byte == b',')).map(<[u8]>::trim_ascii)
    };
    if fields.contains(HeaderName::XForwardedFor) {
        return items(HeaderName::XForwardedFor).map(parse_address).collect();
    }
    items(HeaderName::Forwarded).map(|element| parse_address(for_parameter(element)?)).collect()
}

/// The value of `for` in an element of `Forwarded` (RFC 7239 section 4).
fn for_parameter(element: &[u8]) -> Option<&[u8]> {
    let mut found = element.split(|byte| *byte == b';').map(<[u8]>::trim_ascii).filter_map(|pair| {
        let (name, value) = pair.split_at_checked(4)?;
        name.eq_ignore_ascii_case(b"for=").then_some(value)
    });
    let value = found.next()?;
    if found.next().is_some() {
        return None;
    }
    Some(value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\"")).unwrap_or(value))
}

/// An address, perhaps in brackets and with a port.
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

    fn origin_of(peer: &str, fields: &[(&'static str, &'static str)]) -> (String, String, Option<bool>) {
        let trusted = ["10.0.0.0/8", "fd00::/8"].map(|text| text.parse().expect("a network"));
        let mut map = HeaderMap::new();
        for (name, value) in fields {
            map.append(*name, HeaderValue::from_static(value));
        }
        let found = resolve_client(peer.parse().expect("an address"), &Headers::from(&map), &trusted);
        (found.address.to_string(), found.forwarded_for.unwrap_or_else(|| peer.to_owned()), found.is_tls)
    }

    #[test]
    fn untrusted_peers_cannot_set_the_client_address() {
        let fields =
            [("x-forwarded-for", "1.1.1.1"), ("forwarded", "for=1.1.1.1"), ("x-forwarded-proto", "https")];
        assert_eq!(origin_of("192.0.2.9", &fields), ("192.0.2.9".into(), "192.0.2.9".into(), None));
    }

    #[test]
    fn the_client_is_the_first_untrusted_address_from_the_right() {
        for (fields, address, hops) in [
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
            assert_eq!(origin_of("10.0.0.1", fields), (address.into(), hops.into(), None), "{fields:?}");
        }
    }

    #[test]
    fn a_proxy_says_whether_tls_was_spoken() {
        for (fields, secure) in [
            (&[("x-forwarded-proto", "https")][..], Some(true)),
            (&[("x-forwarded-proto", "http")], Some(false)),
            (&[("x-forwarded-proto", "https, http")], None),
            (&[("x-forwarded-proto", "https"), ("x-forwarded-proto", "http")], None),
        ] {
            assert_eq!(origin_of("fd00::1", fields).2, secure, "{fields:?}");
        }
    }
}
