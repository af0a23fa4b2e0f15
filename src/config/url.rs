//! Parses URLs of other servers. Connects to none.

use std::net::IpAddr;

use crate::config::ServerUrl;

/// Maximum length of the path of a Unix socket: `sun_path` has 108 bytes with a zero at the end.
pub const MAX_SOCKET_PATH: usize = 107;

const HTTP: [(&str, u16); 2] = [("http", 80), ("https", 443)];

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
    let ResourceUrl { origin, target } = parse(url, FORM, HTTP)?;
    if target != "/" {
        return Err(format!("{FORM}, without a path"));
    }
    Ok(origin)
}

/// Parses the URL of a server: like [`parse_origin`], or `unix:/path` for a Unix socket.
pub fn parse_server(url: &str) -> Result<ServerUrl, String> {
    match url.strip_prefix("unix:") {
        Some(path) => unix_server(path),
        None => parse_origin(url).map_err(|error| match url.contains("unix") {
            true => format!("{error}; a Unix socket is unix:/path, with HTTP and without TLS"),
            false => error,
        }),
    }
}

fn unix_server(path: &str) -> Result<ServerUrl, String> {
    // `unix:///path` is the same URL.
    let path = path.strip_prefix("//").unwrap_or(path);
    let is_path = path.starts_with('/') && !path.ends_with('/') && !path.contains(char::is_whitespace);
    if !is_path {
        return Err(format!(
            "must be unix:/path, with the absolute path of a socket, not {:?}",
            format!("unix:{path}")
        ));
    }
    check_socket_path(path)?;
    Ok(ServerUrl { tls: false, host: "localhost".to_owned(), port: 80, socket: Some(path.into()) })
}

/// Checks the length of the path of a Unix socket, which the kernel limits.
pub fn check_socket_path(path: &str) -> Result<(), String> {
    if path.len() > MAX_SOCKET_PATH {
        return Err(format!(
            "has a path of {} bytes; the maximum for a socket is {MAX_SOCKET_PATH}: use a shorter one",
            path.len()
        ));
    }
    Ok(())
}

/// Parses a URL with a path whose response is trusted.
///
/// SECURITY: a response over plain HTTP from a remote machine could be forged on the network.
pub fn parse_trusted_resource(url: &str) -> Result<ResourceUrl, String> {
    let resource = parse(url, "must be https://host[:port]/path", HTTP)?;
    if !resource.origin.tls && !is_loopback(&resource.origin.host) {
        return Err(
            "must be https://, because its response is trusted; http:// is allowed on this machine only".to_owned()
        );
    }
    Ok(resource)
}

/// Parses a URL with a path whose response is not trusted.
pub fn parse_resource(url: &str) -> Result<ResourceUrl, String> {
    parse(url, "must be http://host:port/path or https://host[:port]/path", HTTP)
}

/// Whether a host is a loopback address or `localhost`.
pub fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Parses a URL with one of two schemes, of which the second one uses TLS, and their default ports.
pub fn parse(url: &str, form: &str, schemes: [(&str, u16); 2]) -> Result<ResourceUrl, String> {
    // SECURITY: checked first, because the other errors show the URL, which here contains a password.
    if url.contains('@') {
        return Err(format!("{form}, without a user name or password"));
    }
    let wrong = || format!("{form}, not {url:?}");
    let uri: http::Uri = url.parse().map_err(|_| wrong())?;
    let scheme = schemes.iter().position(|(name, _)| uri.scheme_str() == Some(*name)).ok_or_else(wrong)?;
    let authority = uri.authority().ok_or_else(wrong)?;
    let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
    // `port()` is also `None` for a port above 65535; the authority is then longer than the host.
    let bare = authority.as_str() == authority.host();
    if host.is_empty() || authority.port_u16().is_some() == bare {
        return Err(wrong());
    }
    let port = authority.port_u16().unwrap_or(schemes[scheme].1);
    let target = uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str).to_owned();
    Ok(ResourceUrl { origin: ServerUrl { tls: scheme == 1, host, port, socket: None }, target })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unix_sockets_have_an_absolute_path() {
        for url in ["unix:/run/timbr.sock", "unix:///run/timbr.sock"] {
            let server = parse_server(url).expect(url);
            assert_eq!((server.authority(), server.name()), ("localhost".into(), "unix:/run/timbr.sock".into()));
        }
        assert_eq!(parse_server("http://unix:8000").map(|server| server.socket), Ok(None), "a host name");
        let long = format!("unix:/{}", "x".repeat(107));
        for (url, expected) in [
            ("unix:run/timbr.sock", "must be unix:/path"),
            ("unix:", "must be unix:/path"),
            ("unix:/run/", "must be unix:/path"),
            ("unix:/run/timbr.sock /x", "must be unix:/path"),
            ("http+unix:/run/timbr.sock", "a Unix socket is unix:/path"),
            ("http://unix:/run/timbr.sock", "a Unix socket is unix:/path"),
            ("https+unix:///run/timbr.sock", "without TLS"),
            (&long, "the maximum for a socket is 107"),
        ] {
            let error = parse_server(url).expect_err(url);
            assert!(error.contains(expected), "{url}: {error}");
        }
        let others = parse_resource("unix:/run/timbr.sock").expect_err("not for resources");
        assert!(others.contains("must be http://"), "{others}");
    }

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
