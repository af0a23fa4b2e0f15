//! Parses URLs of other servers. Connects to none.

use std::net::IpAddr;

use crate::config::ServerUrl;

/// A URL with a path on a remote server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResourceUrl {
    /// Scheme, host and port.
    pub origin: ServerUrl,
    /// Path and query: `/realms/timbr/certs?x=1`.
    pub target: String,
}

/// Parses `http://host[:port]` or `https://host[:port]`. The error reads as a sentence after the key: "must be …".
pub fn parse_origin(url: &str) -> Result<ServerUrl, String> {
    const FORM: &str = "must be http://host:port or https://host[:port]";
    let ResourceUrl { origin, target } = parse(url, FORM)?;
    if target != "/" {
        return Err(format!("{FORM}, without a path"));
    }
    Ok(origin)
}

/// Parses a URL with a path whose response is trusted.
///
/// SECURITY: a response over plain HTTP from a remote machine could be forged on the network.
pub fn parse_trusted_resource(url: &str) -> Result<ResourceUrl, String> {
    let resource = parse(url, "must be https://host[:port]/path")?;
    if !resource.origin.tls && !is_loopback(&resource.origin.host) {
        return Err(
            "must be https://, because its response is trusted; http:// is allowed on this machine only".to_owned()
        );
    }
    Ok(resource)
}

/// Parses a URL with a path whose response is not trusted.
pub fn parse_resource(url: &str) -> Result<ResourceUrl, String> {
    parse(url, "must be http://host:port/path or https://host[:port]/path")
}

/// Whether a host is a loopback address or `localhost`.
pub fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn parse(url: &str, form: &str) -> Result<ResourceUrl, String> {
    // SECURITY: checked first, because the other errors show the URL, which here contains a password.
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
    // `port()` is also `None` for a port above 65535; the authority is then longer than the host.
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
    fn trusted_resources_need_tls_or_a_loopback_address() {
        let jwks = parse_trusted_resource("https://idp.example.com/realms/timbr/certs?x=1").expect("valid");
        assert_eq!((jwks.origin.port, jwks.target.as_str()), (443, "/realms/timbr/certs?x=1"));
        for url in ["http://127.0.0.1:8080/jwks", "http://localhost/jwks", "http://[::1]:1/"] {
            assert!(parse_trusted_resource(url).is_ok(), "{url}");
        }
        for url in ["http://idp.example.com/jwks", "https://u:p@idp/jwks", "idp", "ftp://idp/jwks", "https://"] {
            let error = parse_trusted_resource(url).expect_err(url);
            assert!(error.contains("must be https://") && !error.contains("u:p"), "{error}");
        }
    }
}
