//! The header policy: a request that passes is not ambiguous, and has what its route requires. It does not check
//! the credential.

use http::Method;

use crate::admission::RequestKind;
use crate::auth::jwt::Jwt;
use crate::auth::{ApiKey, BasicKey, BasicPassword, ClientCredential, bearer_token};
use crate::config::{ContentTypeRule, RouteProfile};
use crate::gateway::header_policy::{self, Disposition, POLICY_HEADERS};
use crate::gateway::ontology::requested_ontology;
use crate::gateway::rejection::Rejection;
use crate::http::headers::{Head, HeaderName, HeaderNames, Headers};
use crate::http::media_type::essence;

/// The head of a request that satisfies the header policy of its route. Only [`screen`] makes one.
pub struct Screened {
    head: Head,
    credential: ClientCredential,
    /// Headers that `Connection` declares as hop-by-hop.
    connection_options: Vec<http::HeaderName>,
}

impl Screened {
    /// The only credential of the request. `authenticate` finds its identity.
    pub fn credential(&self) -> &ClientCredential {
        &self.credential
    }

    /// The method, which the route accepts.
    pub fn method(&self) -> &Method {
        &self.head.method
    }

    /// The path, which is not ambiguous, still escaped.
    pub fn path(&self) -> &str {
        self.head.uri.path()
    }

    /// All headers as the client sent them.
    pub fn headers(&self) -> &Headers {
        &self.head.headers
    }

    /// Whether the request opens a stream of events.
    ///
    /// SECURITY: only on a route with such streams, as they need no slot of the upstream.
    pub fn kind(&self, profile: &RouteProfile) -> RequestKind {
        let accept = || self.head.headers.all(HeaderName::Accept);
        let is_stream = profile.has_event_streams
            && self.head.method == Method::GET
            && accept().flat_map(|value| value.split(|byte| *byte == b',')).any(|item| {
                essence(item.trim_ascii()).is_some_and(|essence| essence.eq_ignore_ascii_case(b"text/event-stream"))
            });
        if is_stream { RequestKind::EventStream } else { RequestKind::Query }
    }

    /// The head, the credential and the names in `Connection`, from which `rewrite` makes the request to the backend.
    pub(super) fn into_parts(self) -> (Head, ClientCredential, Vec<http::HeaderName>) {
        (self.head, self.credential, self.connection_options)
    }
}

/// Checks the headers of a request for its route. `has_content` says whether a body follows.
pub fn screen(profile: &RouteProfile, head: Head, has_content: bool) -> Result<Screened, Rejection> {
    reject_ambiguous_headers(&head.headers)?;
    let connection_options = connection_options(&head.headers)?;
    let is_optional = profile.content_type == ContentTypeRule::WithContent && !has_content;
    if let Some(accepted) = &profile.content_types
        && (!is_optional || head.headers.contains(HeaderName::ContentType))
    {
        let is_accepted = |essence: &[u8]| accepted.iter().any(|accepted| accepted.matches(essence));
        require_content_type(&head.headers, is_accepted, || profile.content_type_list())?;
    }
    if content_length(&head.headers).is_some_and(|length| length > profile.max_body) {
        return Err(Rejection::RequestBodyTooLarge);
    }
    let credential = client_credential(profile, &head.headers)?;
    let screened = Screened { head, credential, connection_options };
    if matches!(screened.credential, ClientCredential::Basic(_) | ClientCredential::Password(_)) {
        requested_ontology(&screened)?;
    }
    Ok(screened)
}

const POLICY_NAMES: HeaderNames = HeaderNames::new(&POLICY_HEADERS);

/// SECURITY: headers that decide about the request occur once, in their canonical spelling. A server that uses the
/// first of two values and one that uses the last must not come to different decisions.
pub fn reject_ambiguous_headers(headers: &Headers) -> Result<(), Rejection> {
    let mut seen = HeaderNames::default();
    for header in headers.iter() {
        if !seen.insert(header.name) && POLICY_NAMES.contains(header.name) {
            return Err(Rejection::HeaderRepeated(header.name.as_str()));
        }
        if let Some(name) = header_policy::ambiguous_with(header) {
            return Err(Rejection::HeaderAmbiguous(name.as_str()));
        }
    }
    let mut offers = headers.all(HeaderName::Upgrade).flat_map(|value| value.split(|byte| *byte == b','));
    if offers.any(|offer| !is_optional_upgrade(offer.trim_ascii())) {
        return Err(Rejection::UpgradeRefused);
    }
    Ok(())
}

/// Whether a client that offers this protocol in `Upgrade` also accepts plain HTTP: TLS and other versions of HTTP. Some
/// clients offer them in each request (Apache HttpClient: `TLS/1.2`), and RFC 9110 section 7.8 allows a server to ignore
/// the offer. With any other protocol the client expects a tunnel, which the gateway does not provide.
fn is_optional_upgrade(protocol: &[u8]) -> bool {
    let name = protocol.split(|byte| *byte == b'/').next().unwrap_or_default();
    [&b""[..], b"h2c", b"h2", b"http", b"tls"].iter().any(|optional| name.eq_ignore_ascii_case(optional))
}

/// Checks that `Content-Type` is present, well formed and accepted. `accepted_list` is for the message to the client.
pub fn require_content_type(
    headers: &Headers,
    is_accepted: impl Fn(&[u8]) -> bool,
    accepted_list: impl Fn() -> String,
) -> Result<(), Rejection> {
    let Some(value) = headers.get(HeaderName::ContentType) else {
        return Err(Rejection::ContentTypeMissing(accepted_list()));
    };
    match essence(value) {
        Some(essence) if is_accepted(essence) => Ok(()),
        _ => Err(Rejection::ContentTypeUnsupported(accepted_list())),
    }
}

/// The value of `Content-Length`. A body without one is counted while it is forwarded.
fn content_length(headers: &Headers) -> Option<u64> {
    std::str::from_utf8(headers.get(HeaderName::ContentLength)?).ok()?.parse().ok()
}

/// SECURITY: exactly one credential, whether the route accepts it or not, so that no server has to choose between two.
/// `Authorization` counts only where its scheme is accepted, because many clients always send it.
fn client_credential(profile: &RouteProfile, headers: &Headers) -> Result<ClientCredential, Rejection> {
    let accepts = profile.accepts;
    let authorization = headers.get(HeaderName::Authorization);
    if accepts.none {
        return Ok(ClientCredential::Unchecked(authorization.map(Box::from)));
    }
    let basic = authorization.filter(|_| accepts.basic);
    let bearer = authorization.filter(|_| accepts.bearer).and_then(bearer_token);
    match (headers.get(HeaderName::XApiKey), headers.get(HeaderName::XJwtToken), basic.or(bearer)) {
        (None, Some(token), None) if accepts.jwt => {
            let jwt = Jwt::parse(token, headers);
            jwt.map(ClientCredential::Jwt).ok_or(Rejection::JwtInvalid("it does not have the form of a JWT"))
        }
        (Some(key), None, None) if accepts.api_key => {
            ApiKey::parse(key).map(ClientCredential::Key).ok_or(Rejection::ApiKeyMalformed)
        }
        (None, None, Some(token)) if bearer.is_some() => bearer_credential(profile, token, headers),
        (None, None, Some(value)) => {
            let key = BasicKey::parse(value).map(ClientCredential::Basic);
            let password = || BasicPassword::parse(value).map(ClientCredential::Password);
            key.or_else(password).ok_or(Rejection::BasicMalformed)
        }
        (Some(_), Some(_), _) | (Some(_), _, Some(_)) | (_, Some(_), Some(_)) => Err(Rejection::CredentialsAmbiguous),
        // The configuration has removed JWTs from the credentials of the route.
        (None, Some(_), None) if accepts.api_key && !accepts.jwt && !profile.has_explicit_credentials => {
            Err(Rejection::JwtNotConfigured)
        }
        _ if accepts.api_key => Err(Rejection::ApiKeyMissing),
        _ if accepts.basic => Err(Rejection::BasicMissing),
        _ => Err(Rejection::JwtMissing),
    }
}

/// A key, or a JWT, which is recognized by its form; keys of Timbr begin with `tk_`.
fn bearer_credential(profile: &RouteProfile, token: &[u8], headers: &Headers) -> Result<ClientCredential, Rejection> {
    let jwt = if token.starts_with(b"tk_") { None } else { Jwt::parse(token, headers) };
    match jwt {
        Some(jwt) if profile.accepts.jwt => Ok(ClientCredential::BearerJwt(jwt)),
        Some(_) => Err(Rejection::JwtNotConfigured),
        None => ApiKey::parse(token).map(ClientCredential::Key).ok_or(Rejection::ApiKeyMalformed),
    }
}

/// The headers that `Connection` names.
///
/// SECURITY: it must not name a header on which the gateway decides or which it writes: a proxy behind the gateway
/// could remove what was checked or written.
fn connection_options(headers: &Headers) -> Result<Vec<http::HeaderName>, Rejection> {
    let mut names = Vec::new();
    for value in headers.all(HeaderName::Connection) {
        for option in value.split(|byte| *byte == b',') {
            let option = option.trim_ascii();
            if option.is_empty() || is_persistence_option(option) {
                continue;
            }
            let Ok(text) = http::HeaderName::from_bytes(option) else {
                let text = String::from_utf8_lossy(option).into_owned();
                return Err(Rejection::ConnectionNamesPolicyHeader(text));
            };
            let lower_case = text.as_str().as_bytes();
            let name = HeaderName::parse(option);
            let is_policy = POLICY_HEADERS.contains(&name) || header_policy::name_ambiguous_with(lower_case).is_some();
            let is_hop_by_hop = matches!(
                name,
                HeaderName::Te
                    | HeaderName::Trailer
                    | HeaderName::Upgrade
                    | HeaderName::Http2Settings
                    | HeaderName::TransferEncoding
            );
            let is_dropped = || header_policy::disposition(name, lower_case) == Disposition::Drop;
            if is_policy || (!is_hop_by_hop && is_dropped()) {
                return Err(Rejection::ConnectionNamesPolicyHeader(text.as_str().to_owned()));
            }
            names.push(text);
        }
    }
    Ok(names)
}

fn is_persistence_option(option: &[u8]) -> bool {
    option.eq_ignore_ascii_case(b"close") || option.eq_ignore_ascii_case(b"keep-alive")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::routes;

    fn reason(profile: usize, headers: &[(&str, &str)]) -> &'static str {
        let mut builder = http::Request::builder().uri("/timbr/api/query/");
        for (name, value) in headers {
            builder = builder.header(*name, *value);
        }
        let head = Head::from(builder.body(()).expect("a request").into_parts().0);
        screen(&routes::defaults(1000)[profile], head, false).err().map_or("", |rejection| rejection.reason())
    }

    const JSON: (&str, &str) = ("content-type", "application/json");
    const KEY: (&str, &str) = ("x-api-key", "tk_1");

    #[test]
    fn a_complete_request_passes() {
        for headers in [
            &[JSON, KEY][..],
            &[("Content-Type", "application/json; charset=utf-8"), ("X-Api-Key", "tk_1")],
            &[JSON, KEY, ("connection", "keep-alive, close"), ("accept", "a"), ("accept", "b")],
            &[JSON, KEY, ("custom_field", "1"), ("connection", "custom")],
        ] {
            assert_eq!(reason(0, headers), "", "{headers:?}");
        }
        assert_eq!(reason(1, &[("content-type", "application/text"), KEY]), "");
    }

    #[test]
    fn each_missing_part_has_its_own_reason() {
        for (headers, expected) in [
            (&[KEY][..], "content_type_missing"),
            (&[("content-type", "text/html"), KEY], "content_type_unsupported"),
            (&[("content-type", "application/jsonp"), KEY], "content_type_unsupported"),
            (&[("content-type", "application/json, text/html"), KEY], "content_type_unsupported"),
            (&[("content-type", ""), KEY], "content_type_unsupported"),
            (&[("content-type", "multipart/form-data; boundary=x"), KEY], "content_type_unsupported"),
            (&[JSON], "api_key_missing"),
            (&[JSON, ("x-api-key", "")], "api_key_malformed"),
            (&[JSON, ("x-api-key", "good,bad")], "api_key_malformed"),
            (&[JSON, ("x-api-key", "a b")], "api_key_malformed"),
        ] {
            assert_eq!(reason(0, headers), expected, "{headers:?}");
        }
    }
}
