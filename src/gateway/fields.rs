//! What becomes of each field of a client's request, in any spelling that a backend might understand.
//!
//! WSGI servers turn `-` into `_`, so to them `x_api_key` and `x-api-key` are one field; others do so with every
//! character that is neither letter nor digit. Names are therefore compared after [`fold`].

use std::borrow::Cow;

/// What becomes of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It goes to the backend.
    Forward,
    /// It ends here: it concerns this connection alone, or the gateway writes the field itself.
    Drop,
}

/// Fields that decide about the request. They may stand once, in this spelling, and `Connection` may not name them.
pub const POLICY: [&str; 8] = [
    "x-api-key",
    "x-jwt-token",
    "x-jwt-tenant-id",
    "x-api-impersonate-user",
    "authorization",
    "content-type",
    "content-length",
    "host",
];

/// What becomes of the field with this name, which is in lower case.
///
/// SECURITY: what the gateway tells the backend about the caller never comes from the caller, in no spelling. A name
/// with other than letters, digits and `-` is another spelling of some name, and WSGI servers take a few such names
/// from a proxy at their word: gunicorn answers for another path than the one that was judged if `SCRIPT_NAME` or
/// `PATH_INFO` come as fields. No client of Timbr's sends one, so all of them end here.
pub fn fate(name: &str) -> Fate {
    if !is_plain(name) {
        return Fate::Drop;
    }
    let dropped = match name {
        // RFC 9110 section 7.6.1.
        "connection"
        | "proxy-connection"
        | "keep-alive"
        | "te"
        | "trailer"
        | "transfer-encoding"
        | "upgrade"
        | "http2-settings"
        | "proxy-authorization"
        | "proxy-authenticate" => true,
        // Written anew, or answered already.
        "host" | "content-length" | "expect" | "x-api-key" | "authorization" | "x-request-id"
        | "traceparent" => true,
        // The caller's address and identity.
        "forwarded"
        | "via"
        | "x-real-ip"
        | "x-client-ip"
        | "true-client-ip"
        | "remote-user"
        | "remote-addr"
        | "x-remote-user"
        | "x-authenticated-user" => true,
        // They make some backends answer for another path or method than the one that was judged.
        "x-original-url"
        | "x-original-uri"
        | "x-rewrite-url"
        | "x-http-method"
        | "x-http-method-override"
        | "x-method-override"
        | "x-script-name"
        | "script-name"
        | "path-info" => true,
        // A certificate that the client claims to have shown.
        "client-cert" | "client-cert-chain" => true,
        other => {
            let claims = ["x-forwarded-", "x-jwt-", "x-client-cert", "x-ssl-", "ssl-client-"];
            claims.iter().any(|claim| other.starts_with(claim))
        }
    };
    if dropped { Fate::Drop } else { Fate::Forward }
}

/// The policy field for which a backend could take `name`, though it is spelled otherwise.
pub fn mistaken_for(name: &str) -> Option<&'static str> {
    match fold(name) {
        Cow::Borrowed(_) => None,
        Cow::Owned(folded) => POLICY.into_iter().find(|policy| *policy == folded),
    }
}

/// The name with `-` for every character that is neither letter nor digit. Borrowed if that changes nothing.
fn fold(name: &str) -> Cow<'_, str> {
    if is_plain(name) {
        return Cow::Borrowed(name);
    }
    Cow::Owned(name.bytes().map(|byte| if is_plain_byte(byte) { char::from(byte) } else { '-' }).collect())
}

fn is_plain(name: &str) -> bool {
    name.bytes().all(is_plain_byte)
}

fn is_plain_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'-'
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_clients_send_goes_through() {
        for name in [
            "nested",
            "results-limit",
            "x-async",
            "x-api-impersonate-user",
            "content-type",
            "accept",
            "accept-encoding",
            "user-agent",
            "cookie",
            "tracestate",
            "custom-field",
        ] {
            assert_eq!(fate(name), Fate::Forward, "{name}");
        }
    }

    #[test]
    fn what_the_gateway_says_about_the_caller_does_not_come_from_the_caller() {
        for name in [
            "x-forwarded-user",
            "x_forwarded_user",
            "x-forwarded_for",
            "x.forwarded.proto",
            "x-real-ip",
            "x_real_ip",
            "forwarded",
            "remote_user",
            "x-jwt-token",
            "x_jwt_tenant_id",
        ] {
            assert_eq!(fate(name), Fate::Drop, "{name}");
        }
    }

    #[test]
    fn what_makes_a_backend_answer_for_another_path_does_not_go_through() {
        for name in [
            "script_name",
            "script-name",
            "path_info",
            "path-info",
            "x-script-name",
            "x_script_name",
            "x-forwarded-prefix",
            "x-forwarded-uri",
            "x-original-url",
            "x-original-uri",
            "x-rewrite-url",
            "custom_field",
            "custom.field",
            "wsgi.url_scheme",
        ] {
            assert_eq!(fate(name), Fate::Drop, "{name}");
        }
    }

    #[test]
    fn other_spellings_of_policy_fields_are_found() {
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
            assert_eq!(mistaken_for(name), expected, "{name}");
        }
    }
}
