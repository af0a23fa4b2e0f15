//! Addresses of other servers.

use std::net::IpAddr;

use crate::config::ServerUrl;

/// One thing on another server: where to ask, and for what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResourceUrl {
    /// The server.
    pub origin: ServerUrl,
    /// Path and query.
    pub target: String,
}

/// Reads `http://host[:port]` or `https://host[:port]`.
pub fn parse_origin(url: &str) -> Result<ServerUrl, String> {
    const FORM: &str = "must be http://host:port or https://host[:port]";
    let ResourceUrl { origin, target } = parse(url, FORM)?;
    if target != "/" {
        return Err(format!("{FORM}, without a path: the client's path is forwarded as it is"));
    }
    Ok(origin)
}

/// Reads a URL with a path, of which an answer is believed.
///
/// SECURITY: what comes over plain HTTP from another machine could come from anybody on the way.
pub fn parse_trusted_resource(url: &str) -> Result<ResourceUrl, String> {
    let resource = parse(url, "must be https://host[:port]/path")?;
    if !resource.origin.tls && !is_loopback(&resource.origin.host) {
        return Err("must be https://…, as what it says is believed; http:// only on this machine".to_owned());
    }
    Ok(resource)
}

/// Reads a URL with a path, to which something is sent and of which nothing is believed.
pub fn parse_resource(url: &str) -> Result<ResourceUrl, String> {
    parse(url, "must be http://host:port/path or https://host[:port]/path")
}

/// Whether a host is this machine.
pub fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn parse(url: &str, form: &str) -> Result<ResourceUrl, String> {
    // SECURITY: first of all, as the other errors show the URL.
    if url.contains('@') {
        return Err(format!("{form}, without a user name or password"));
    }
    let wrong = || format!("{form}, not {url:?}");
    let uri: http::Uri = url.parse().map_err(|_| wrong())?;
    let tls = match uri.scheme_str() {
        Some("http") => false,
        Some("https") => true,
        _ => return Err(wrong()),
    };
    let authority = uri.authority().ok_or_else(wrong)?;
    let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
    // `port()` is `None` for a port beyond 65535 too; then more than the host stands there.
    let bare = authority.as_str() == authority.host();
    if host.is_empty() || authority.port_u16().is_some() == bare {
        return Err(wrong());
    }
    let port = authority.port_u16().unwrap_or(if tls { 443 } else { 80 });
    let target = uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str).to_owned();
    Ok(ResourceUrl { origin: ServerUrl { tls, host, port }, target })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_believed_comes_over_tls_or_from_this_machine() {
        let jwks = parse_trusted_resource("https://idp.example.com/realms/timbr/certs?x=1").expect("valid");
        assert_eq!((jwks.origin.port, jwks.target.as_str()), (443, "/realms/timbr/certs?x=1"));
        for url in ["http://127.0.0.1:8080/jwks", "http://localhost/jwks", "http://[::1]:1/"] {
            assert!(parse_trusted_resource(url).is_ok(), "{url}");
        }
        for url in
            ["http://idp.example.com/jwks", "https://u:p@idp/jwks", "idp", "ftp://idp/jwks", "https://"]
        {
            let error = parse_trusted_resource(url).expect_err(url);
            assert!(error.contains("must be https://") && !error.contains("u:p"), "{error}");
        }
    }
}
