//! The field policy: a request that passes has one reading, and carries what its route demands.

use http::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, UPGRADE};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};

use crate::auth::jwt::{JWT_TENANT, JWT_TOKEN, Jwt};
use crate::auth::{API_KEY, ApiKey, Presented};
use crate::config::{Accepts, RouteProfile};
use crate::gateway::fields::{self, POLICY};
use crate::gateway::rejection::Rejection;
use crate::media_type::essence;

/// The head of a request that satisfies its route's field policy. Only [`screen`] makes one.
pub struct Screened {
    head: Parts,
    presented: Presented,
    nominated: Vec<HeaderName>,
    max_body: u64,
}

impl Screened {
    /// The one credential of the request; whose it is, `authenticate` tells.
    pub fn presented(&self) -> &Presented {
        &self.presented
    }

    /// All fields as the client sent them.
    pub fn fields(&self) -> &HeaderMap {
        &self.head.headers
    }

    /// The parts that `rewrite` makes the upstream's request of.
    pub(super) fn into_parts(self) -> ScreenedParts {
        let Parts { method, uri, headers, .. } = self.head;
        ScreenedParts {
            method,
            uri,
            fields: headers,
            presented: self.presented,
            nominated: self.nominated,
            max_body: self.max_body,
        }
    }
}

/// See [`Screened::into_parts`].
pub(super) struct ScreenedParts {
    pub method: Method,
    pub uri: Uri,
    pub fields: HeaderMap,
    pub presented: Presented,
    /// Fields that `Connection` says are for this hop only.
    pub nominated: Vec<HeaderName>,
    /// Most bytes that the body may have.
    pub max_body: u64,
}

/// Judges the fields of a request for a route.
pub fn screen(profile: &RouteProfile, head: Parts) -> Result<Screened, Rejection> {
    unambiguous(&head.headers)?;
    let nominated = nominated(&head.headers)?;
    let expected = || profile.content_type_list();
    content_type(&head.headers, |essence| profile.content_types.iter().any(|t| t.is(essence)), expected)?;
    let max_body = profile.max_body;
    if stated_length(&head.headers).is_some_and(|length| length > max_body) {
        return Err(Rejection::RequestBodyTooLarge);
    }
    let presented = presented(profile.accepts, &head.headers)?;
    Ok(Screened { head, presented, nominated, max_body })
}

/// SECURITY: fields that decide about the request stand once, in their own spelling. Whoever takes the first and
/// whoever takes the last of two values must not come to different ends.
pub fn unambiguous(fields: &HeaderMap) -> Result<(), Rejection> {
    // As many values as names: then no name has two.
    if fields.len() != fields.keys_len() {
        let repeated = |name: &&str| fields.get_all(*name).iter().nth(1).is_some();
        if let Some(name) = POLICY.into_iter().find(repeated) {
            return Err(Rejection::FieldRepeated(name));
        }
    }
    // A client that offers HTTP/2 is answered in HTTP/1.1, as RFC 9110 section 7.8 has it: some offer it always. Who
    // wants another protocol expects a tunnel, and there is none.
    let other = |value: &HeaderValue| !value.as_bytes().eq_ignore_ascii_case(b"h2c");
    if fields.get_all(UPGRADE).iter().any(other) {
        return Err(Rejection::UpgradeRefused);
    }
    match fields.keys().find_map(|name| fields::mistaken_for(name.as_str())) {
        Some(name) => Err(Rejection::FieldAmbiguous(name)),
        None => Ok(()),
    }
}

/// Checks that `Content-Type` is there, well formed and accepted.
pub fn content_type(
    fields: &HeaderMap,
    accepts: impl Fn(&[u8]) -> bool,
    expected: impl Fn() -> String,
) -> Result<(), Rejection> {
    let Some(value) = fields.get(CONTENT_TYPE) else {
        return Err(Rejection::ContentTypeMissing { expected: expected() });
    };
    match essence(value.as_bytes()) {
        Some(essence) if accepts(essence) => Ok(()),
        _ => Err(Rejection::ContentTypeUnsupported { expected: expected() }),
    }
}

/// What `Content-Length` says. A body without one is counted on its way.
fn stated_length(fields: &HeaderMap) -> Option<u64> {
    fields.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// SECURITY: exactly one credential, so that nobody has to choose whom to believe; whether the route takes it or not.
fn presented(accepts: Accepts, fields: &HeaderMap) -> Result<Presented, Rejection> {
    match (fields.get(API_KEY), fields.get(JWT_TOKEN)) {
        (Some(_), Some(_)) => Err(Rejection::CredentialsAmbiguous),
        (None, Some(token)) if accepts.jwt => {
            let jwt = Jwt::parse(token, fields.get(JWT_TENANT));
            jwt.map(Presented::Jwt).ok_or(Rejection::JwtInvalid("it does not have the form of one"))
        }
        (Some(key), None) if accepts.api_key => {
            ApiKey::parse(key).map(Presented::Key).ok_or(Rejection::ApiKeyMalformed)
        }
        _ if accepts.api_key => Err(Rejection::ApiKeyMissing),
        _ => Err(Rejection::JwtMissing),
    }
}

/// The fields that `Connection` names.
///
/// SECURITY: it may not name a field that decides about the request or that the gateway writes: some intermediary
/// behind us could strip what we have judged or written.
fn nominated(fields: &HeaderMap) -> Result<Vec<HeaderName>, Rejection> {
    let mut names = Vec::new();
    for value in fields.get_all(CONNECTION) {
        for option in value.as_bytes().split(|byte| *byte == b',') {
            let option = option.trim_ascii();
            if option.is_empty() || is_usual(option) {
                continue;
            }
            let Ok(name) = HeaderName::from_bytes(option) else {
                let name = String::from_utf8_lossy(option).into_owned();
                return Err(Rejection::ConnectionNamesPolicyField(name));
            };
            let decides = POLICY.contains(&name.as_str()) || fields::mistaken_for(name.as_str()).is_some();
            let hop = matches!(
                name.as_str(),
                "te" | "trailer" | "upgrade" | "http2-settings" | "transfer-encoding"
            );
            if decides || (!hop && fields::fate(name.as_str()) == fields::Fate::Drop) {
                return Err(Rejection::ConnectionNamesPolicyField(name.as_str().to_owned()));
            }
            names.push(name);
        }
    }
    Ok(names)
}

fn is_usual(option: &[u8]) -> bool {
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
        let head = builder.body(()).expect("a request").into_parts().0;
        screen(&routes::defaults(1000)[profile], head)
    }

    fn reason(profile: usize, fields: &[(&str, &str)]) -> &'static str {
        screened(profile, fields).map(drop).map_or_else(|rejection| rejection.reason(), |()| "")
    }

    const JSON: (&str, &str) = ("content-type", "application/json");
    const KEY: (&str, &str) = ("x-api-key", "tk_1");

    #[test]
    fn a_request_that_has_everything_passes() {
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
    fn each_lack_has_its_own_reason() {
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
    fn a_body_that_states_to_be_too_large_is_refused_before_it_comes() {
        assert_eq!(reason(0, &[JSON, KEY, ("content-length", "1000")]), "");
        assert_eq!(reason(0, &[JSON, KEY, ("content-length", "1001")]), "request_body_too_large");
    }

    #[test]
    fn what_decides_stands_once_in_its_own_spelling() {
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
    fn connection_names_no_field_that_decides() {
        for name in ["x-api-key", "Content-Type", "x-forwarded-for", "x-api-impersonate-user", "host", "a b"]
        {
            let fields = [JSON, KEY, ("connection", name)];
            assert_eq!(reason(0, &fields), "connection_names_policy_field", "{name}");
        }
    }
}
