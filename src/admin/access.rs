//! Who may look at what operators see, and change it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use http::header::{CONTENT_TYPE, FORWARDED, HOST, HeaderName, ORIGIN, VIA};
use http::uri::Authority;
use http::{HeaderMap, HeaderValue, Request, StatusCode};

use crate::admin::api::AdminError;

/// SECURITY: from this machine alone, whatever the listener is bound to, and not by way of a proxy on it. The name that
/// the request gives the host must be this machine's too: a page in a browser here could have its own name resolve to
/// the loopback address. And where the browser says that a page of another site asks, it is none of its business.
pub fn authorize_read<T>(request: &Request<T>, peer: SocketAddr) -> Result<(), AdminError> {
    let fields = request.headers();
    if is_this_machine(peer.ip()) && has_local_host(fields) && !is_proxied(fields) && !is_cross_site(fields) {
        return Ok(());
    }
    Err((
        StatusCode::FORBIDDEN,
        "operators are answered on the loopback address only, by its own name and without a proxy. From elsewhere: \
         `kubectl port-forward`, or `ssh -L`."
            .to_owned(),
    ))
}

/// The two addresses only that programs here have by themselves: service meshes deliver what comes from elsewhere from
/// others of 127.0.0.0/8.
fn is_this_machine(address: IpAddr) -> bool {
    matches!(address.to_canonical(), IpAddr::V4(Ipv4Addr::LOCALHOST) | IpAddr::V6(Ipv6Addr::LOCALHOST))
}

fn has_local_host(fields: &HeaderMap) -> bool {
    let host = fields.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    host.parse::<Authority>().is_ok_and(|host| {
        let name = host.host().trim_start_matches('[').trim_end_matches(']');
        name.eq_ignore_ascii_case("localhost") || name.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
    })
}

/// Whether a proxy tells for whom it asks.
fn is_proxied(fields: &HeaderMap) -> bool {
    fields.keys().any(|name| {
        *name == FORWARDED
            || *name == VIA
            || ["x-forwarded", "x-real-ip", "x-envoy-"].iter().any(|begin| name.as_str().starts_with(begin))
    })
}

/// Fetch Metadata. A link on another site that is followed shows what it leads to to nobody but who followed it.
fn is_cross_site(fields: &HeaderMap) -> bool {
    let says = |name: &str| fields.get(name).and_then(|value| value.to_str().ok());
    says("sec-fetch-site").is_some_and(|site| !matches!(site, "same-origin" | "none"))
        && says("sec-fetch-mode") != Some("navigate")
}

/// SECURITY: a page of another site that is open in a browser on this machine must not change anything. Such a page cannot
/// send this type without being allowed to first, which nobody does here; and where the browser says whose page it is, it
/// must be one of ours.
pub fn authorize_change<T>(request: &Request<T>) -> Result<(), AdminError> {
    let field = |name: &HeaderName| request.headers().get(name).and_then(|value| value.to_str().ok());
    if field(&CONTENT_TYPE) != Some("application/json") {
        return Err((StatusCode::UNSUPPORTED_MEDIA_TYPE, "this takes application/json".to_owned()));
    }
    let host = field(&HOST).unwrap_or_default();
    let is_ours =
        |origin: &HeaderValue| origin.to_str().is_ok_and(|origin| origin == format!("http://{host}"));
    if request.headers().get_all(ORIGIN).iter().all(is_ours) {
        return Ok(());
    }
    Err((StatusCode::FORBIDDEN, "a page of another site cannot change anything here".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_of_another_site_cannot_change_anything() {
        let may = |fields: &[(HeaderName, &str)]| {
            let mut request = Request::builder().header(HOST, "127.0.0.1:9180");
            for (name, value) in fields {
                request = request.header(name, *value);
            }
            authorize_change(&request.body(()).expect("a request")).is_ok()
        };
        let json = (CONTENT_TYPE, "application/json");
        assert!(may(std::slice::from_ref(&json)));
        assert!(may(&[json.clone(), (ORIGIN, "http://127.0.0.1:9180")]), "the page that is served here");
        for origin in [
            "http://evil.test",
            "null",
            "http://127.0.0.1:80",
            "https://127.0.0.1:9180",
            "http://localhost:9180",
        ] {
            assert!(!may(&[json.clone(), (ORIGIN, origin)]), "{origin}");
        }
        assert!(!may(&[json.clone(), (ORIGIN, "http://127.0.0.1:9180"), (ORIGIN, "http://evil.test")]));
        for form in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"] {
            assert!(!may(&[(CONTENT_TYPE, form)]), "{form}");
        }
        assert!(!may(&[]));
    }

    #[test]
    fn only_loopback_clients_with_a_local_host_name_are_allowed() {
        let ask = |peer: &str, host: &str| {
            let request = Request::builder().header(HOST, host).body(()).expect("a request");
            authorize_read(&request, SocketAddr::new(peer.parse().expect("an address"), 1)).is_ok()
        };
        for host in ["127.0.0.1:9180", "localhost", "LOCALHOST:1", "[::1]:9180", "127.1.2.3"] {
            assert!(ask("127.0.0.1", host) && ask("::1", host) && ask("::ffff:127.0.0.1", host), "{host}");
            assert!(!ask("192.0.2.1", host) && !ask("127.0.0.6", host), "{host}");
        }
        for host in ["evil.example", "evil.example:9180", "", "10.0.0.1", "localhost.evil.example", "::1:1:"]
        {
            assert!(!ask("127.0.0.1", host), "{host}");
        }
    }

    #[test]
    fn proxied_and_cross_site_requests_are_rejected() {
        let ask = |fields: &[(&str, &str)]| {
            let request = Request::builder().header(HOST, "localhost");
            let request = fields.iter().fold(request, |request, (name, value)| request.header(*name, *value));
            let peer = SocketAddr::from(([127, 0, 0, 1], 1));
            authorize_read(&request.body(()).expect("a request"), peer).is_ok()
        };
        for name in [
            "forwarded",
            "via",
            "x-forwarded-for",
            "x-forwarded-client-cert",
            "x-real-ip",
            "x-envoy-peer-metadata",
        ] {
            assert!(!ask(&[(name, "x")]), "{name}");
        }
        for site in ["cross-site", "same-site"] {
            assert!(!ask(&[("sec-fetch-site", site), ("sec-fetch-mode", "no-cors")]), "{site}");
            assert!(ask(&[("sec-fetch-site", site), ("sec-fetch-mode", "navigate")]), "{site}");
        }
        assert!(ask(&[("sec-fetch-site", "same-origin"), ("sec-fetch-mode", "cors")]));
        assert!(ask(&[("sec-fetch-site", "none"), ("sec-fetch-mode", "navigate")]) && ask(&[]));
    }
}
