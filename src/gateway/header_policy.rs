//! Which headers of a client are forwarded, in any spelling that a backend might understand. It knows names only, not
//! values.
//!
//! WSGI servers turn `-` into `_`, so they read `x_api_key` and `x-api-key` as the same header; others do so with every
//! character that is neither letter nor digit. Names are therefore compared after [`normalize_name`].

use std::borrow::Cow;

use crate::http::headers::{Header, HeaderName};

/// The treatment of a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disposition {
    /// The backend receives it.
    Forward,
    /// The backend does not receive it: it concerns this connection only, or the gateway writes the header itself.
    Drop,
}

/// The headers on which the gateway bases its decisions. They may occur once, in this spelling, and `Connection` must
/// not name them.
pub const POLICY_HEADERS: [HeaderName; 11] = [
    HeaderName::XApiKey,
    HeaderName::XJwtToken,
    HeaderName::XJwtIssuer,
    HeaderName::XJwtClientId,
    HeaderName::XJwtNonce,
    HeaderName::XJwtTenantId,
    HeaderName::XApiImpersonateUser,
    HeaderName::Authorization,
    HeaderName::ContentType,
    HeaderName::ContentLength,
    HeaderName::Host,
];

/// The treatment of a header by its name; `text` is the name in lower case.
///
/// SECURITY: the headers that describe the caller to the backend never come from the caller, in any spelling. A name
/// with characters other than letters, digits and `-` is a second spelling of some name, and WSGI servers trust a few
/// such names from a proxy: gunicorn serves a path other than the one that was checked if `SCRIPT_NAME` or `PATH_INFO`
/// are headers. No client of Timbr sends such a name, so all of them are dropped.
pub fn disposition(name: HeaderName, text: &[u8]) -> Disposition {
    let is_dropped = match name {
        // For this hop, as the names of `is_hop_by_hop`.
        HeaderName::Http2Settings | HeaderName::ProxyAuthorization => true,
        // The gateway writes its own, or has already handled it.
        HeaderName::Host
        | HeaderName::ContentLength
        | HeaderName::Expect
        | HeaderName::XApiKey
        | HeaderName::Authorization
        | HeaderName::XRequestId
        | HeaderName::Traceparent => true,
        // The caller's address and identity.
        HeaderName::Forwarded
        | HeaderName::Via
        | HeaderName::XForwardedFor
        | HeaderName::XForwardedHost
        | HeaderName::XForwardedProto
        | HeaderName::XForwardedUser
        | HeaderName::XRealIp
        | HeaderName::XClientIp
        | HeaderName::TrueClientIp
        | HeaderName::RemoteUser
        | HeaderName::RemoteAddr
        | HeaderName::XRemoteUser
        | HeaderName::XAuthenticatedUser
        | HeaderName::XJwtToken
        | HeaderName::XJwtIssuer
        | HeaderName::XJwtClientId
        | HeaderName::XJwtNonce
        | HeaderName::XJwtTenantId => true,
        // They make some backends serve a path or method other than the one that was checked.
        HeaderName::XOriginalUrl
        | HeaderName::XOriginalUri
        | HeaderName::XRewriteUrl
        | HeaderName::XHttpMethod
        | HeaderName::XHttpMethodOverride
        | HeaderName::XMethodOverride
        | HeaderName::XScriptName
        | HeaderName::ScriptName
        | HeaderName::PathInfo => true,
        // A certificate that the client claims to have sent.
        HeaderName::ClientCert | HeaderName::ClientCertChain => true,
        HeaderName::Other => {
            matches!(
                text,
                b"x-forwarded"
                    | b"x-original-method"
                    | b"l5d-client-id"
                    | b"x-authenticated-userid"
                    | b"x-anonymous-consumer"
            ) || !is_plain_name(text)
                || CLIENT_CLAIM_PREFIXES.iter().any(|prefix| text.starts_with(prefix.as_bytes()))
        }
        _ => name.is_hop_by_hop(),
    };
    if is_dropped { Disposition::Drop } else { Disposition::Forward }
}

/// Prefixes of headers that describe the caller.
///
/// SECURITY: other gateways and identity-aware proxies report in these the user that they have authenticated. A backend
/// that was behind one of them may still trust it. They are of oauth2-proxy, Authelia, authentik, Caddy, Pomerium, Kong,
/// Vouch, Cloudflare Access, Google IAP and App Engine, AWS ALB, Azure App Service, Tailscale, mod_auth_openidc,
/// Linkerd and the Kubernetes API. `headers.drop` names more.
const CLIENT_CLAIM_PREFIXES: [&str; 28] = [
    "x-forwarded-",
    "x-jwt-",
    "x-client-cert",
    "x-ssl-",
    "ssl-client-",
    "x-auth-",
    "x-authentik-",
    "x-vouch-",
    "x-userinfo",
    "x-id-token",
    "x-access-token",
    "x-webauth-",
    "x-remote-",
    "remote-",
    "x-pomerium-",
    "x-consumer-",
    "x-credential-",
    "cf-access-",
    "x-goog-authenticated-",
    "x-goog-iap-",
    "x-appengine-user-",
    "x-amzn-oidc-",
    "x-amzn-mtls-",
    "x-ms-client-principal",
    "x-ms-token-",
    "tailscale-",
    "oidc-",
    "impersonate-",
];

/// The policy header that a backend could take this header for, although it is spelled differently.
pub fn ambiguous_with(header: Header<'_>) -> Option<HeaderName> {
    // Known names have the canonical spelling.
    if header.name != HeaderName::Other {
        return None;
    }
    name_ambiguous_with(header.text())
}

/// The policy header that a backend could take a name for; `name` is in lower case.
pub fn name_ambiguous_with(name: &[u8]) -> Option<HeaderName> {
    match normalize_name(name) {
        Cow::Borrowed(_) => None,
        Cow::Owned(normalized) => POLICY_HEADERS.into_iter().find(|policy| *policy.as_str().as_bytes() == *normalized),
    }
}

/// The name with `-` for every character that is neither letter nor digit. Borrowed if that changes nothing.
fn normalize_name(name: &[u8]) -> Cow<'_, [u8]> {
    if is_plain_name(name) {
        return Cow::Borrowed(name);
    }
    Cow::Owned(name.iter().map(|byte| if is_plain_byte(*byte) { *byte } else { b'-' }).collect())
}

fn is_plain_name(name: &[u8]) -> bool {
    name.iter().copied().all(is_plain_byte)
}

fn is_plain_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'-'
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disposition(text: &str) -> Disposition {
        super::disposition(HeaderName::parse(text.as_bytes()), text.as_bytes())
    }

    fn ambiguous_with(text: &str) -> Option<&'static str> {
        name_ambiguous_with(text.as_bytes()).map(HeaderName::as_str)
    }

    const FORWARDED: &str = "nested results-limit x-async x-api-impersonate-user content-type accept accept-encoding \
                             user-agent cookie tracestate custom-field";

    const IDENTITY: &str = "x-forwarded-user x_forwarded_user x-forwarded_for x.forwarded.proto x-real-ip x_real_ip \
                            x-auth-request-user x-webauth-user x-remote-group remote-email x-pomerium-jwt-assertion \
                            x-consumer-username x-credential-identifier cf-access-authenticated-user-email \
                            x-goog-authenticated-user-email x-goog-iap-jwt-assertion x-amzn-oidc-identity \
                            x-ms-client-principal-name impersonate-user l5d-client-id x-auth-user \
                            x-authentik-username x-vouch-user x-userinfo x-access-token x-ms-token-aad-id-token \
                            tailscale-user-login oidc-claim-sub forwarded remote_user x-jwt-token x_jwt_tenant_id";

    const PATH_OVERRIDES: &str = "script_name script-name path_info path-info x-script-name x_script_name \
                                  x-forwarded-prefix x-forwarded-uri x-original-url x-original-uri x-rewrite-url \
                                  custom_field custom.field wsgi.url_scheme";

    #[test]
    fn identities_and_paths_of_the_client_are_dropped_and_other_headers_forwarded() {
        for (names, expected) in
            [(FORWARDED, Disposition::Forward), (IDENTITY, Disposition::Drop), (PATH_OVERRIDES, Disposition::Drop)]
        {
            for name in names.split(' ') {
                assert_eq!(disposition(name), expected, "{name}");
            }
        }
    }

    #[test]
    fn known_names_with_a_claim_prefix_are_dropped() {
        for prefix in CLIENT_CLAIM_PREFIXES {
            for name in ["for", "user", "token", "tenant-id", "host", "proto", "cert", "", "x"] {
                assert_eq!(disposition(&format!("{prefix}{name}")), Disposition::Drop, "{prefix}{name}");
            }
        }
    }

    #[test]
    fn other_spellings_of_policy_headers_are_detected() {
        for (name, expected) in [
            ("x_api_key", Some("x-api-key")),
            ("x-api_key", Some("x-api-key")),
            ("x.api!key", Some("x-api-key")),
            ("x_api_impersonate_user", Some("x-api-impersonate-user")),
            ("content_type", Some("content-type")),
            ("content_length", Some("content-length")),
            ("x-api-key", None),
            ("x-api-key2", None),
            ("custom_field", None),
        ] {
            assert_eq!(ambiguous_with(name), expected, "{name}");
        }
    }
}
