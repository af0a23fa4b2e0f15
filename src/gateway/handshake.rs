//! Checks a request against the TLS handshake of its connection: the host of the certificate, and the client
//! certificate.

use http::uri::Authority;

use crate::config::RouteProfile;
use crate::gateway::context::Peer;
use crate::gateway::rejection::Rejection;
use crate::http::headers::{Head, HeaderName};

/// SECURITY: rejects a request for a host other than the handshake's (RFC 9110 section 15.5.20), unless the certificate
/// covers that host too: then the client is right to reuse this connection.
pub fn require_host_of_certificate(peer: &Peer, head: &Head) -> Result<(), Rejection> {
    let Some(sni) = &peer.sni else { return Ok(()) };
    let authority = head.uri.authority().map(Authority::as_str);
    let header = || head.headers.get(HeaderName::Host).and_then(|value| std::str::from_utf8(value).ok());
    let Some(host) = authority.or_else(header) else { return Ok(()) };
    let host = name_of(host).to_ascii_lowercase();
    if host == *sni.requested || sni.names.covers(&host) { Ok(()) } else { Err(Rejection::Misdirected) }
}

/// The name without its port and without a final dot, which marks a complete DNS name and is never part of a server name
/// (RFC 6066 section 3).
fn name_of(host: &str) -> &str {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    name.strip_suffix('.').unwrap_or(name)
}

/// SECURITY: the handshake has already verified the certificate, if there is one; here it only must be present.
pub fn require_client_certificate(peer: &Peer, profile: &RouteProfile) -> Result<(), Rejection> {
    if profile.client_certificate && peer.certificate_subject.is_none() {
        return Err(Rejection::ClientCertificateRequired);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_and_a_final_dot_are_not_part_of_the_name() {
        for (host, name) in [
            ("a.b:443", "a.b"),
            ("a.b", "a.b"),
            ("a.b.", "a.b"),
            ("a.b.:443", "a.b"),
            ("a.b..", "a.b."),
            ("[::1]:443", "[::1]"),
            ("[::1]", "[::1]"),
            ("1.2.3.4:1", "1.2.3.4"),
        ] {
            assert_eq!(name_of(host), name);
        }
    }
}
