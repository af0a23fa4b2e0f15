//! The ways to authenticate that a 401 of a route offers besides that of the rejection.

use std::borrow::Cow;

use crate::config::RouteProfile;
use crate::gateway::context::RequestContext;
use crate::gateway::rejection::BASIC_CHALLENGE;
use crate::http::headers::{Head, HeaderName};

/// The value of a second `WWW-Authenticate`. `has_oauth` says whether MCP clients can log in with OAuth.
pub fn route_challenge(
    profile: &RouteProfile,
    has_oauth: bool,
    head: &Head,
    context: &RequestContext,
) -> Option<Cow<'static, str>> {
    if profile.accepts.basic {
        return Some(Cow::Borrowed(BASIC_CHALLENGE));
    }
    (has_oauth && profile.has_event_streams).then(|| oauth_challenge(profile, head, context).map(Cow::Owned))?
}

/// Where a client finds out how to get an access token (RFC 9728 section 5.1): the URL as the client can reach it.
///
/// `route` has checked that the host is a valid one, so that it needs no escapes.
fn oauth_challenge(profile: &RouteProfile, head: &Head, context: &RequestContext) -> Option<String> {
    let authority = head.uri.authority().map(|authority| authority.as_str().as_bytes());
    let host = std::str::from_utf8(authority.or_else(|| head.headers.get(HeaderName::Host))?).ok()?;
    let resource = profile.prefixes.first()?.trim_end_matches('/');
    let scheme = context.scheme();
    Some(format!("Bearer resource_metadata=\"{scheme}://{host}/.well-known/oauth-protected-resource{resource}\""))
}
