//! Access control of the admin listener: which clients are on this machine, and which of them are operators. It knows
//! nothing about routes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use http::header::{AUTHORIZATION, CONTENT_TYPE, FORWARDED, HOST, HeaderName, ORIGIN, VIA};
use http::uri::Authority;
use http::{HeaderMap, HeaderValue, StatusCode};

use crate::admin::routes::AdminError;
use crate::base::secret::Secret;
use crate::config::{AdminCommands, AdminOptions};

/// The client of a connection to the admin listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdminPeer {
    /// A client of `listen.admin`.
    Tcp(IpAddr),
    /// A process on this machine that could open `listen.admin_socket`.
    Process {
        /// Its user.
        uid: u32,
        /// Its process; `None` in a different PID namespace.
        pid: Option<u32>,
    },
}

/// SECURITY: accepts requests from this machine only, even if the listener is bound to other addresses, and not through
/// a proxy on it. The `Host` must be a name of this machine too, against DNS rebinding: a page in a local browser could
/// have its own name resolve to the loopback address. Cross-site requests of a browser are rejected.
pub fn authorize_local(headers: &HeaderMap, peer: AdminPeer) -> Result<(), AdminError> {
    if is_on_this_machine(peer) && has_local_host(headers) && !is_proxied(headers) && !is_cross_site(headers) {
        return Ok(());
    }
    Err(AdminError::new(
        StatusCode::FORBIDDEN,
        "allowed only from the loopback address, with a local host name and without a proxy. From a different machine, use \
         `kubectl port-forward` or `ssh -L`.",
    ))
}

/// SECURITY: a page in a browser on this machine could read the metrics by DNS rebinding, so the `Host` of a local
/// client must be local too. Other machines, such as Prometheus, may use any name: the network decides about them.
pub fn authorize_metrics(headers: &HeaderMap, peer: AdminPeer) -> Result<(), AdminError> {
    if is_cross_site(headers) || (is_on_this_machine(peer) && !has_local_host(headers)) {
        let message = "a client on this machine must use a local host name, such as localhost";
        return Err(AdminError::new(StatusCode::FORBIDDEN, message));
    }
    Ok(())
}

/// SECURITY: decides who may use admin commands and list tokens, among the clients on this machine. The permissions of
/// the socket's file have decided about its clients. Others share the loopback address with every process of the machine
/// or pod.
pub fn authorize_operator(headers: &HeaderMap, peer: AdminPeer, admin: &AdminOptions) -> Result<(), AdminError> {
    let message = match (peer, admin.commands, &admin.token) {
        (AdminPeer::Process { .. }, ..) | (AdminPeer::Tcp(_), AdminCommands::Loopback, _) => return Ok(()),
        (AdminPeer::Tcp(_), AdminCommands::Token, Some(token)) if bearer(headers).as_ref() == Some(token) => {
            return Ok(());
        }
        (AdminPeer::Tcp(_), AdminCommands::Token, _) => {
            "requires the token of listen.admin_token_file: `Authorization: Bearer …` (listen.admin_commands=token)"
        }
        (AdminPeer::Tcp(_), AdminCommands::Socket, _) => {
            "allowed only through the Unix socket (listen.admin_commands=socket)"
        }
    };
    Err(AdminError::new(StatusCode::FORBIDDEN, message))
}

fn bearer(headers: &HeaderMap) -> Option<Secret> {
    let value = headers.get(AUTHORIZATION)?.to_str().ok()?;
    Some(Secret::new(value.strip_prefix("Bearer ")?.to_owned()))
}

/// Any process that can open the Unix socket is on this machine.
fn is_on_this_machine(peer: AdminPeer) -> bool {
    match peer {
        AdminPeer::Tcp(address) => is_this_machine(address),
        AdminPeer::Process { .. } => true,
    }
}

/// Only 127.0.0.1 and ::1: service meshes deliver external traffic from other addresses of 127.0.0.0/8.
fn is_this_machine(address: IpAddr) -> bool {
    matches!(address.to_canonical(), IpAddr::V4(Ipv4Addr::LOCALHOST) | IpAddr::V6(Ipv6Addr::LOCALHOST))
}

fn has_local_host(headers: &HeaderMap) -> bool {
    let host = headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    host.parse::<Authority>().is_ok_and(|host| {
        let name = host.host().trim_start_matches('[').trim_end_matches(']');
        name.eq_ignore_ascii_case("localhost") || name.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
    })
}

/// Returns whether a proxy added a header about the client.
fn is_proxied(headers: &HeaderMap) -> bool {
    headers.keys().any(|name| {
        *name == FORWARDED
            || *name == VIA
            || ["x-forwarded", "x-real-ip", "x-envoy-"].iter().any(|prefix| name.as_str().starts_with(prefix))
    })
}

/// Returns whether a page of a different site sent the request, by Fetch Metadata. Following a link is allowed: only
/// the user sees the page, and not the site with the link.
fn is_cross_site(headers: &HeaderMap) -> bool {
    let value = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    value("sec-fetch-site").is_some_and(|site| !matches!(site, "same-origin" | "none"))
        && value("sec-fetch-mode") != Some("navigate")
}

/// SECURITY: prevents cross-site request forgery by a page in a local browser. Such a page cannot send this content
/// type without a CORS preflight, which always fails here; and if the browser sends `Origin`, it must be this listener.
pub fn authorize_change(headers: &HeaderMap) -> Result<(), AdminError> {
    let value = |name: &HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    if value(&CONTENT_TYPE) != Some("application/json") {
        return Err(AdminError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "content-type must be application/json"));
    }
    let host = value(&HOST).unwrap_or_default();
    let is_same_origin = |origin: &HeaderValue| origin.to_str().is_ok_and(|origin| origin == format!("http://{host}"));
    if headers.get_all(ORIGIN).iter().all(is_same_origin) {
        return Ok(());
    }
    Err(AdminError::new(StatusCode::FORBIDDEN, "a page of a different site cannot change anything here"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(host: &str, all: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in [("host", host)].iter().chain(all) {
            let name: HeaderName = name.parse().expect("a name");
            headers.append(name, HeaderValue::from_str(value).expect("a value"));
        }
        headers
    }

    const LOOPBACK: AdminPeer = AdminPeer::Tcp(IpAddr::V4(Ipv4Addr::LOCALHOST));

    #[test]
    fn metrics_are_for_other_machines_and_local_host_names() {
        let is_allowed = |peer, host: &str| authorize_metrics(&headers(host, &[]), peer).is_ok();
        let remote = AdminPeer::Tcp(Ipv4Addr::new(192, 0, 2, 1).into());
        assert!(is_allowed(remote, "gateway.monitoring:9180") && is_allowed(LOOPBACK, "localhost:9180"));
        assert!(!is_allowed(LOOPBACK, "evil.example:9180"));
        let cross_site = [("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "no-cors")];
        assert!(authorize_metrics(&headers("192.0.2.7", &cross_site), remote).is_err());
    }

    #[test]
    fn a_page_of_another_site_cannot_change_anything() {
        let may = |all: &[(&str, &str)]| authorize_change(&headers("127.0.0.1:9180", all)).is_ok();
        let json = ("content-type", "application/json");
        assert!(may(&[json]));
        assert!(may(&[json, ("origin", "http://127.0.0.1:9180")]), "the page that is served here");
        for origin in
            ["http://evil.test", "null", "http://127.0.0.1:80", "https://127.0.0.1:9180", "http://localhost:9180"]
        {
            assert!(!may(&[json, ("origin", origin)]), "{origin}");
        }
        assert!(!may(&[json, ("origin", "http://127.0.0.1:9180"), ("origin", "http://evil.test")]));
        for form in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"] {
            assert!(!may(&[("content-type", form)]), "{form}");
        }
        assert!(!may(&[]));
    }

    #[test]
    fn only_loopback_clients_with_a_local_host_name_are_allowed() {
        let is_allowed = |peer: &str, host: &str| {
            let peer = AdminPeer::Tcp(peer.parse().expect("an address"));
            authorize_local(&headers(host, &[]), peer).is_ok()
        };
        for host in ["127.0.0.1:9180", "localhost", "LOCALHOST:1", "[::1]:9180", "127.1.2.3"] {
            for peer in ["127.0.0.1", "::1", "::ffff:127.0.0.1"] {
                assert!(is_allowed(peer, host), "{peer} {host}");
            }
            for peer in ["192.0.2.1", "127.0.0.6"] {
                assert!(!is_allowed(peer, host), "{peer} {host}");
            }
        }
        for host in ["evil.example", "evil.example:9180", "", "10.0.0.1", "localhost.evil.example", "::1:1:"] {
            assert!(!is_allowed("127.0.0.1", host), "{host}");
        }
    }

    #[test]
    fn proxied_and_cross_site_requests_are_rejected() {
        let is_allowed = |all: &[(&str, &str)]| authorize_local(&headers("localhost", all), LOOPBACK).is_ok();
        for name in
            ["forwarded", "via", "x-forwarded-for", "x-forwarded-client-cert", "x-real-ip", "x-envoy-peer-metadata"]
        {
            assert!(!is_allowed(&[(name, "x")]), "{name}");
        }
        for site in ["cross-site", "same-site"] {
            assert!(!is_allowed(&[("sec-fetch-site", site), ("sec-fetch-mode", "no-cors")]), "{site}");
            assert!(is_allowed(&[("sec-fetch-site", site), ("sec-fetch-mode", "navigate")]), "{site}");
        }
        assert!(is_allowed(&[("sec-fetch-site", "same-origin"), ("sec-fetch-mode", "cors")]));
        assert!(is_allowed(&[("sec-fetch-site", "none"), ("sec-fetch-mode", "navigate")]));
        assert!(is_allowed(&[]));
    }
}
