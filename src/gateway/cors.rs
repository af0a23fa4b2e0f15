//! Lets pages of other origins use a route (the CORS protocol of the Fetch standard): the response to a preflight, and
//! the headers that allow a page to read a response or a rejection.

use http::{Method, StatusCode};

use crate::config::{CorsOptions, RouteProfile};
use crate::gateway::respond::GatewayResponse;
use crate::http::headers::{Head, HeaderName, Headers};

/// What the page that sent a request may do with the response.
pub struct CorsGrant {
    /// `None`: the route has no page of this origin, so the browser keeps the response from it, or the request has none.
    origin: Option<Box<[u8]>>,
    credentials: bool,
    exposed: &'static [u8],
}

/// The headers of a response that a page may read, besides those that the standard allows.
const EXPOSED: &[u8] = b"x-request-id, retry-after, www-authenticate";
const EXPOSED_BY_MCP: &[u8] = b"mcp-session-id, x-request-id, retry-after, www-authenticate";

impl CorsGrant {
    /// The grant for a request; `None` on routes without `cors`. Requests of other clients get none, but a cache must not
    /// serve their responses to pages.
    pub fn for_request(profile: &RouteProfile, headers: &Headers) -> Option<CorsGrant> {
        let cors = profile.cors.as_ref()?;
        let exposed = if profile.has_event_streams { EXPOSED_BY_MCP } else { EXPOSED };
        let origin = headers.single(HeaderName::Origin).filter(|origin| is_allowed(cors, origin)).map(Box::from);
        Some(CorsGrant { origin, credentials: cors.credentials, exposed })
    }

    /// Adds the headers to a response.
    pub fn write(&self, headers: &mut Headers) {
        headers.push(HeaderName::Vary, b"origin");
        let Some(origin) = &self.origin else { return };
        headers.push(HeaderName::AccessControlAllowOrigin, origin);
        headers.push_text("access-control-expose-headers", self.exposed);
        if self.credentials {
            headers.push_text("access-control-allow-credentials", b"true");
        }
    }
}

/// SECURITY: origins are compared byte for byte; a browser sends them in one form.
fn is_allowed(cors: &CorsOptions, origin: &[u8]) -> bool {
    cors.origins.is_empty() || cors.origins.iter().any(|allowed| allowed.as_bytes() == origin)
}

/// Whether a request is a preflight: it asks for permission, and is never forwarded.
pub fn is_preflight(head: &Head) -> bool {
    head.method == Method::OPTIONS
        && head.headers.contains(HeaderName::Origin)
        && head.headers.iter().any(|header| header.text() == b"access-control-request-method")
}

/// The response to a preflight. Without the permission, the headers are missing.
pub fn preflight_response(profile: &RouteProfile, grant: Option<&CorsGrant>) -> GatewayResponse {
    let mut headers = Headers::new();
    if let (Some(cors), Some(CorsGrant { origin: Some(_), .. })) = (&profile.cors, grant) {
        let methods = if cors.methods.is_empty() { &profile.methods } else { &cors.methods };
        let methods: Vec<_> = methods.iter().map(Method::as_str).collect();
        headers.push_text("access-control-allow-methods", methods.join(", ").as_bytes());
        headers.push_text("access-control-allow-headers", cors.headers.join(", ").as_bytes());
        headers.push_text("access-control-max-age", cors.max_age.as_secs().to_string().as_bytes());
    }
    GatewayResponse::local(StatusCode::NO_CONTENT, headers, bytes::Bytes::new())
}
