//! What the TLS handshake has to say about a request.

use http::Uri;

use crate::config::RouteProfile;
use crate::gateway::context::Peer;
use crate::gateway::rejection::Rejection;
use crate::http::headers::{HeaderName, Headers};

/// SECURITY: a request for a host that the connection was not made for is refused (RFC 9110 section 15.5.20), unless
/// the certificate that was shown is for that host too: its client would have taken this connection for that host's.
pub fn require_host_of_certificate(client: &Peer, uri: &Uri, fields: &Headers) -> Result<(), Rejection> {
    let Some(served) = &client.sni else { return Ok(()) };
    let authority = uri.authority().map(http::uri::Authority::as_str);
    let field = || fields.get(HeaderName::Host).and_then(|value| std::str::from_utf8(value).ok());
    let Some(host) = authority.or_else(field) else { return Ok(()) };
    let host = strip_port(host).to_ascii_lowercase();
    if host == *served.requested || served.names.covers(&host) { Ok(()) } else { Err(Rejection::Misdirected) }
}

fn strip_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
}

/// SECURITY: the handshake has verified the certificate, if there is one; here it is only asked for.
pub fn require_client_certificate(client: &Peer, profile: &RouteProfile) -> Result<(), Rejection> {
    if profile.client_certificate && client.certificate_subject.is_none() {
        return Err(Rejection::ClientCertificateRequired);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_is_not_part_of_the_name() {
        for (host, name) in [
            ("a.b:443", "a.b"),
            ("a.b", "a.b"),
            ("[::1]:443", "[::1]"),
            ("[::1]", "[::1]"),
            ("1.2.3.4:1", "1.2.3.4"),
        ] {
            assert_eq!(strip_port(host), name);
        }
    }
}
