//! The field policy: a request that passes has one reading, and carries what its route demands.

use http::{Method, Uri};

use crate::auth::jwt::Jwt;
use crate::auth::{ApiKey, ClientCredential};
use crate::config::{AcceptedCredentials, RouteProfile};
use crate::gateway::header_policy::{self, Disposition, POLICY_HEADERS};
use crate::gateway::rejection::Rejection;
use crate::http::headers::{Head, HeaderName, Headers};
use crate::http::media_type::essence;

/// The head of a request that satisfies its route's field policy. Only [`screen`] makes one.
pub struct Screened {
    head: Head,
    credential: ClientCredential,
    connection_options: Vec<http::HeaderName>,
    max_body: u64,
}

impl Screened {
    /// The one credential of the request; whose it is, `authenticate` tells.
    pub fn credential(&self) -> &ClientCredential {
        &self.credential
    }

    /// Its method.
    pub fn method(&self) -> &Method {
        &self.head.method
    }

    /// Its path.
    pub fn path(&self) -> &str {
        self.head.uri.path()
    }

    /// All fields as the client sent them.
    pub fn fields(&self) -> &Headers {
        &self.head.headers
    }

    /// The parts that `rewrite` makes the upstream's request of.
    pub(super) fn into_parts(self) -> ScreenedParts {
        let Screened {
            head: Head { method, uri, headers: fields },
            credential: presented,
            connection_options: nominated,
            max_body,
        } = self;
        ScreenedParts { method, uri, fields, credential: presented, connection_options: nominated, max_body }
    }
}

/// See [`Screened::into_parts`].
pub(super) struct ScreenedParts {
    pub method: Method,
    pub uri: Uri,
    pub fields: Headers,
    pub credential: ClientCredential,
    /// Fields that `Connection` says are for this hop only.
    pub connection_options: Vec<http::HeaderName>,
    /// Most bytes that the body may have.
    pub max_body: u64,
}

/// Judges the fields of a request for a route.
pub fn screen(profile: &RouteProfile, head: Head) -> Result<Screened, Rejection> {
    reject_ambiguous_headers(&head.headers)?;
    let nominated = connection_options(&head.headers)?;
    let expected = || profile.content_type_list();
    require_content_type(
        &head.headers,
        |essence| profile.content_types.iter().any(|t| t.matches(essence)),
        expected,
    )?;
    let max_body = profile.max_body;
    if content_length(&head.headers).is_some_and(|length| length > max_body) {
        return Err(Rejection::RequestBodyTooLarge);
    }
    let presented = client_credential(profile.accepts, &head.headers)?;
    Ok(Screened { head, credential: presented, connection_options: nominated, max_body })
}

/// SECURITY: fields that decide about the request stand once, in their own spelling. Whoever takes the first and
/// whoever takes the last of two values must not come to different ends.
pub fn reject_ambiguous_headers(fields: &Headers) -> Result<(), Rejection> {
    let mut seen = [false; POLICY_HEADERS.len()];
    for field in fields.iter() {
        if let Some(decides) = POLICY_HEADERS.iter().position(|name| *name == field.name)
            && std::mem::replace(&mut seen[decides], true)
        {
            return Err(Rejection::FieldRepeated(field.name.as_str()));
        }
        if let Some(name) = header_policy::ambiguous_with(field) {
            return Err(Rejection::FieldAmbiguous(name.as_str()));
        }
    }
    // A client that offers HTTP/2 is answered in HTTP/1.1, as RFC 9110 section 7.8 has it: some offer it always. Who
    // wants another protocol expects a tunnel, and there is none.
    if fields.all(HeaderName::Upgrade).any(|value| !value.eq_ignore_ascii_case(b"h2c")) {
        return Err(Rejection::UpgradeRefused);
    }
    Ok(())
}

/// Checks that `Content-Type` is there, well formed and accepted.
pub fn require_content_type(
    fields: &Headers,
    accepts: impl Fn(&[u8]) -> bool,
    expected: impl Fn() -> String,
) -> Result<(), Rejection> {
    let Some(value) = fields.get(HeaderName::ContentType) else {
        return Err(Rejection::ContentTypeMissing(expected()));
    };
    match essence(value) {
        Some(essence) if accepts(essence) => Ok(()),
        _ => Err(Rejection::ContentTypeUnsupported(expected())),
    }
}

/// What `Content-Length` says. A body without one is counted on its way.
fn content_length(fields: &Headers) -> Option<u64> {
    std::str::from_utf8(fields.get(HeaderName::ContentLength)?).ok()?.parse().ok()
}

/// SECURITY: exactly one credential, so that nobody has to choose whom to believe; whether the route takes it or not.
/// `Authorization` is none where the route does not take it: many clients send one to everybody.
fn client_credential(accepts: AcceptedCredentials, fields: &Headers) -> Result<ClientCredential, Rejection> {
    let basic = fields.get(HeaderName::Authorization).filter(|_| accepts.basic);
    match (fields.get(HeaderName::XApiKey), fields.get(HeaderName::XJwtToken), basic) {
        (None, Some(token), None) if accepts.jwt => {
            let jwt = Jwt::parse(token, fields.get(HeaderName::XJwtTenantId));
            jwt.map(ClientCredential::Jwt).ok_or(Rejection::JwtInvalid("it does not have the form of one"))
        }
        (Some(key), None, None) if accepts.api_key => {
            ApiKey::parse(key).map(ClientCredential::Key).ok_or(Rejection::ApiKeyMalformed)
        }
        (None, None, Some(value)) => {
            ApiKey::parse_basic(value).map(ClientCredential::Basic).ok_or(Rejection::BasicMalformed)
        }
        (Some(_), Some(_), _) | (Some(_), _, Some(_)) | (_, Some(_), Some(_)) => {
            Err(Rejection::CredentialsAmbiguous)
        }
        _ if accepts.api_key => Err(Rejection::ApiKeyMissing),
        _ if accepts.basic => Err(Rejection::BasicMissing),
        _ => Err(Rejection::JwtMissing),
    }
}

/// The fields that `Connection` names.
///
/// SECURITY: it may not name a field that decides about the request or that the gateway writes: some intermediary
/// behind us could strip what we have judged or written.
fn connection_options(fields: &Headers) -> Result<Vec<http::HeaderName>, Rejection> {
    let mut names = Vec::new();
    for value in fields.all(HeaderName::Connection) {
        for option in value.split(|byte| *byte == b',') {
            let option = option.trim_ascii();
            if option.is_empty() || is_persistence_option(option) {
                continue;
            }
            let Ok(text) = http::HeaderName::from_bytes(option) else {
                let text = String::from_utf8_lossy(option).into_owned();
                return Err(Rejection::ConnectionNamesPolicyField(text));
            };
            let name = HeaderName::parse(option);
            let decides = POLICY_HEADERS.contains(&name)
                || header_policy::name_ambiguous_with(text.as_str().as_bytes()).is_some();
            let hop = matches!(
                name,
                HeaderName::Te
                    | HeaderName::Trailer
                    | HeaderName::Upgrade
                    | HeaderName::Http2Settings
                    | HeaderName::TransferEncoding
            );
            if decides
                || (!hop && header_policy::disposition(name, text.as_str().as_bytes()) == Disposition::Drop)
            {
                return Err(Rejection::ConnectionNamesPolicyField(text.as_str().to_owned()));
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

    fn screened(profile: usize, fields: &[(&str, &str)]) -> Result<Screened, Rejection> {
        let mut builder = http::Request::builder().uri("/timbr/api/query/");
        for (name, value) in fields {
            builder = builder.header(*name, *value);
        }
        let head = Head::from(builder.body(()).expect("a request").into_parts().0);
        screen(&routes::defaults(1000)[profile], head)
    }

    fn reason(profile: usize, fields: &[(&str, &str)]) -> &'static str {
        screened(profile, fields).map(drop).map_or_else(|rejection| rejection.reason(), |()| "")
    }

    const JSON: (&str, &str) = ("content-type", "application/json");
    const KEY: (&str, &str) = ("x-api-key", "tk_1");

    #[test]
    fn a_complete_request_passes() {
        for fields in [
            &[JSON, KEY][..],
            &[("Content-Type", "application/json; charset=utf-8"), ("X-Api-Key", "tk_1")],
            &[JSON, KEY, ("connection", "keep-alive, close"), ("accept", "a"), ("accept", "b")],
            &[JSON, KEY, ("custom_field", "1"), ("connection", "custom")],
        ] {
            assert_eq!(reason(0, fields), "", "{fields:?}");
        }
        assert_eq!(reason(1, &[("content-type", "application/text"), KEY]), "");
    }

    #[test]
    fn each_missing_part_has_its_own_reason() {
        for (fields, expected) in [
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
            assert_eq!(reason(0, fields), expected, "{fields:?}");
        }
    }

    #[test]
    fn a_content_length_over_the_limit_is_rejected() {
        assert_eq!(reason(0, &[JSON, KEY, ("content-length", "1000")]), "");
        assert_eq!(reason(0, &[JSON, KEY, ("content-length", "1001")]), "request_body_too_large");
    }

    #[test]
    fn policy_headers_occur_once_in_canonical_spelling() {
        for (fields, expected) in [
            (&[JSON, KEY, KEY][..], "field_repeated"),
            (&[JSON, JSON, KEY], "field_repeated"),
            (&[JSON, KEY, ("authorization", "a"), ("authorization", "b")], "field_repeated"),
            (
                &[JSON, KEY, ("x-api-impersonate-user", "a"), ("x-api-impersonate-user", "b")],
                "field_repeated",
            ),
            (&[JSON, KEY, ("x_api_key", "tk_2")], "field_ambiguous"),
            (&[JSON, ("x_api_key", "tk_1")], "field_ambiguous"),
            (&[JSON, KEY, ("content_type", "text/html")], "field_ambiguous"),
            (&[JSON, KEY, ("x_api_impersonate_user", "root")], "field_ambiguous"),
        ] {
            assert_eq!(reason(0, fields), expected, "{fields:?}");
        }
    }

    #[test]
    fn connection_must_not_name_policy_headers() {
        for name in ["x-api-key", "Content-Type", "x-forwarded-for", "x-api-impersonate-user", "host", "a b"]
        {
            let fields = [JSON, KEY, ("connection", name)];
            assert_eq!(reason(0, &fields), "connection_names_policy_field", "{name}");
        }
    }
}
