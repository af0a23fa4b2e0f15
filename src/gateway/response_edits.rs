//! What is changed in the headers of a backend's response. The request decides it, before it is sent.

use http::uri::Authority;

use crate::gateway::affinity::tag_session;
use crate::gateway::redirect::{URL_HEADERS, rewrite_urls};
use crate::http::headers::{HeaderName, Headers};
use crate::upstream::UpstreamClient;

/// The changes to a response.
#[derive(Default)]
pub struct ResponseEdits {
    /// SECURITY: set for a key that is not the client's. With the cookie of a session that the backend began for that
    /// key, the client could act in it after the gateway has revoked the token.
    pub removes_cookies: bool,
    /// The affinity of the request, which is appended to the session ID.
    pub session_tag: Option<u64>,
    /// The host and port that the client used, if the backend receives them as its own name.
    pub forwarded_host: Option<Authority>,
}

impl ResponseEdits {
    /// Applies the changes to a response that was received by `client`. URLs that name the backend become paths.
    pub fn apply(&self, headers: &mut Headers, client: &UpstreamClient) {
        if headers.contains_any(URL_HEADERS) {
            rewrite_urls(headers, |host: &str, port| {
                client.is_backend(host, port) || self.is_forwarded_host(host, port)
            });
        }
        if let Some(hash) = self.session_tag {
            tag_session(headers, hash);
        }
        if self.removes_cookies {
            headers.remove(HeaderName::SetCookie);
        }
    }

    fn is_forwarded_host(&self, host: &str, port: Option<u16>) -> bool {
        let without_default = |port: Option<u16>| port.filter(|port| !matches!(port, 80 | 443));
        let is_same_port = |named: &Authority| without_default(named.port_u16()) == without_default(port);
        self.forwarded_host.as_ref().is_some_and(|named| named.host().eq_ignore_ascii_case(host) && is_same_port(named))
    }
}
