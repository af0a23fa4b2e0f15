//! Every way in which the gateway itself says no, and what the client is told.
//!
//! A variant does not compile until it has a status, a reason and a sentence. Reasons are an interface: scripts and
//! alerts match them, so they never change.

use std::borrow::Cow;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use serde::Serialize;

use crate::admission::Full;
use crate::fields::{Fields, Name};

/// Why a request was not answered by the backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// What came is no request, or has more than one reading.
    RequestMalformed(&'static str),
    /// Too many fields, or too many bytes of them.
    RequestHeadTooLarge,
    /// A target that is too long.
    TargetTooLong,
    /// The client made too long a pause in the head.
    RequestHeadStalled,
    /// For another host than the connection was made for.
    Misdirected,
    /// A route that insists on a client's certificate, and there is none.
    ClientCertificateRequired,
    /// Too many requests are in flight.
    Overloaded,
    /// Too many requests are in flight with this key.
    TooManyRequests,
    /// `Upgrade` to a protocol that is not spoken here.
    UpgradeRefused,
    /// The request line names no path, another host than `Host`, or a path with more than one reading.
    RequestLine(&'static str),
    /// No route has this path.
    NotFound,
    /// The path has other methods.
    MethodNotAllowed {
        /// Value of the `Allow` field.
        allow: String,
    },
    /// A field that may stand once stands more often.
    FieldRepeated(&'static str),
    /// A field whose name a backend would take for another one's.
    FieldAmbiguous(&'static str),
    /// `Connection` names a field that decides about the request.
    ConnectionNamesPolicyField(String),
    /// No `Content-Type`.
    ContentTypeMissing {
        /// What would be taken, for the sentence.
        expected: String,
    },
    /// A `Content-Type` that is none of the route's, or none at all.
    ContentTypeUnsupported {
        /// What would be taken, for the sentence.
        expected: String,
    },
    /// A body that is larger than the route takes.
    RequestBodyTooLarge,
    /// No `x-api-key`.
    ApiKeyMissing,
    /// An `x-api-key` that cannot be one.
    ApiKeyMalformed,
    /// An `x-api-key` that nobody knows.
    ApiKeyUnknown,
    /// A token of ours that has ended.
    TokenExpired,
    /// The store of tokens could not be asked, or could not keep one.
    TokenStoreUnavailable,
    /// The backend could not be asked about a key.
    ApiKeyUnverifiable,
    /// The backend is being asked about too many keys.
    ApiKeyCheckBusy,
    /// Too many wrong credentials; another try has a chance after so long.
    TooManyFailures(Duration),
    /// `x-api-impersonate-user` where the gateway says who the user is.
    ImpersonationDenied,
    /// No `Authorization: Bearer`.
    BearerMissing,
    /// A bearer that does not open.
    BearerInvalid,
    /// A bearer that is too old.
    BearerExpired,
    /// A bearer from the future.
    BearerFromTheFuture,
    /// A bearer without user and password in it.
    BearerWithoutCredentials,
    /// A bearer with a user name that cannot be passed on.
    BearerUserName,
    /// Wrong user or password.
    CredentialsWrong,
    /// Too many passwords are being checked.
    VerifierBusy,
    /// The client made too long a pause in its body.
    RequestBodyStalled,
    /// The client's body broke off.
    RequestBodyBroken,
    /// No connection to the backend.
    UpstreamUnreachable,
    /// No connection to the backend in time.
    UpstreamConnectTimeout,
    /// The backend closed the connection without an answer.
    UpstreamClosed,
    /// The backend's answer is not HTTP.
    UpstreamInvalid,
    /// No answer from the backend in time.
    UpstreamTimeout,
    /// The gateway itself failed.
    Internal,
}

/// The answer's body.
#[derive(Serialize)]
struct Envelope<'a> {
    status: &'static str,
    data: &'a str,
    reason: &'static str,
    request_id: &'a str,
}

impl From<Full> for Rejection {
    fn from(full: Full) -> Rejection {
        match full {
            Full::Everybody => Rejection::Overloaded,
            Full::Caller => Rejection::TooManyRequests,
        }
    }
}

impl Rejection {
    /// The HTTP status.
    pub fn status(&self) -> StatusCode {
        match self {
            Rejection::RequestMalformed(_)
            | Rejection::UpgradeRefused
            | Rejection::RequestLine(_)
            | Rejection::FieldRepeated(_)
            | Rejection::FieldAmbiguous(_)
            | Rejection::ConnectionNamesPolicyField(_)
            | Rejection::ContentTypeMissing { .. }
            | Rejection::RequestBodyBroken => StatusCode::BAD_REQUEST,
            Rejection::ApiKeyMissing
            | Rejection::ApiKeyMalformed
            | Rejection::ApiKeyUnknown
            | Rejection::TokenExpired
            | Rejection::BearerMissing
            | Rejection::BearerInvalid
            | Rejection::BearerExpired
            | Rejection::BearerFromTheFuture
            | Rejection::BearerWithoutCredentials
            | Rejection::BearerUserName
            | Rejection::CredentialsWrong => StatusCode::UNAUTHORIZED,
            Rejection::ImpersonationDenied | Rejection::ClientCertificateRequired => StatusCode::FORBIDDEN,
            Rejection::Misdirected => StatusCode::MISDIRECTED_REQUEST,
            Rejection::NotFound => StatusCode::NOT_FOUND,
            Rejection::MethodNotAllowed { .. } => StatusCode::METHOD_NOT_ALLOWED,
            Rejection::RequestBodyStalled | Rejection::RequestHeadStalled => StatusCode::REQUEST_TIMEOUT,
            Rejection::RequestHeadTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Rejection::TargetTooLong => StatusCode::URI_TOO_LONG,
            Rejection::RequestBodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Rejection::ContentTypeUnsupported { .. } => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Rejection::UpstreamUnreachable | Rejection::UpstreamClosed | Rejection::UpstreamInvalid => {
                StatusCode::BAD_GATEWAY
            }
            Rejection::TooManyFailures(_) | Rejection::TooManyRequests => StatusCode::TOO_MANY_REQUESTS,
            Rejection::Overloaded => StatusCode::SERVICE_UNAVAILABLE,
            Rejection::TokenStoreUnavailable
            | Rejection::ApiKeyUnverifiable
            | Rejection::ApiKeyCheckBusy
            | Rejection::VerifierBusy => StatusCode::SERVICE_UNAVAILABLE,
            Rejection::UpstreamConnectTimeout | Rejection::UpstreamTimeout => StatusCode::GATEWAY_TIMEOUT,
            Rejection::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// The stable word for machines.
    pub fn reason(&self) -> &'static str {
        match self {
            Rejection::RequestMalformed(_) => "request_malformed",
            Rejection::Misdirected => "misdirected",
            Rejection::ClientCertificateRequired => "client_certificate_required",
            Rejection::Overloaded => "overloaded",
            Rejection::TooManyRequests => "too_many_requests",
            Rejection::RequestHeadTooLarge => "request_head_too_large",
            Rejection::TargetTooLong => "target_too_long",
            Rejection::RequestHeadStalled => "request_head_stalled",
            Rejection::UpgradeRefused => "upgrade_refused",
            Rejection::RequestLine(_) => "request_line_ambiguous",
            Rejection::NotFound => "not_found",
            Rejection::MethodNotAllowed { .. } => "method_not_allowed",
            Rejection::FieldRepeated(_) => "field_repeated",
            Rejection::FieldAmbiguous(_) => "field_ambiguous",
            Rejection::ConnectionNamesPolicyField(_) => "connection_names_policy_field",
            Rejection::ContentTypeMissing { .. } => "content_type_missing",
            Rejection::ContentTypeUnsupported { .. } => "content_type_unsupported",
            Rejection::ApiKeyMissing => "api_key_missing",
            Rejection::ApiKeyMalformed => "api_key_malformed",
            Rejection::ApiKeyUnknown => "api_key_unknown",
            Rejection::TokenExpired => "token_expired",
            Rejection::TokenStoreUnavailable => "token_store_unavailable",
            Rejection::ApiKeyUnverifiable => "api_key_unverifiable",
            Rejection::ApiKeyCheckBusy => "api_key_check_busy",
            Rejection::TooManyFailures(_) => "too_many_failures",
            Rejection::ImpersonationDenied => "impersonation_denied",
            Rejection::BearerMissing => "bearer_missing",
            Rejection::BearerInvalid => "bearer_invalid",
            Rejection::BearerExpired => "bearer_expired",
            Rejection::BearerFromTheFuture => "bearer_from_the_future",
            Rejection::BearerWithoutCredentials => "bearer_without_credentials",
            Rejection::BearerUserName => "bearer_user_name",
            Rejection::CredentialsWrong => "credentials_wrong",
            Rejection::VerifierBusy => "verifier_busy",
            Rejection::RequestBodyTooLarge => "request_body_too_large",
            Rejection::RequestBodyStalled => "request_body_stalled",
            Rejection::RequestBodyBroken => "request_body_broken",
            Rejection::UpstreamUnreachable => "upstream_unreachable",
            Rejection::UpstreamConnectTimeout => "upstream_connect_timeout",
            Rejection::UpstreamClosed => "upstream_closed",
            Rejection::UpstreamInvalid => "upstream_invalid",
            Rejection::UpstreamTimeout => "upstream_timeout",
            Rejection::Internal => "internal_error",
        }
    }

    /// One sentence for the client: what is wrong, and what to send instead.
    fn sentence(&self) -> Cow<'static, str> {
        match self {
            Rejection::Misdirected => {
                "The connection was made for another host than the request names. Connect anew for this one.".into()
            }
            Rejection::ClientCertificateRequired => {
                "This path takes clients with a certificate alone. Show one in the TLS handshake.".into()
            }
            Rejection::Overloaded => "Too many requests are being answered. Try again in a moment.".into(),
            Rejection::TooManyRequests => {
                "Too many requests with this key are being answered. Wait for some of them to end.".into()
            }
            Rejection::RequestMalformed(what) => format!("This is no valid HTTP request: {what}.").into(),
            Rejection::RequestHeadTooLarge => {
                "The request's fields are too many or too large. Send fewer or shorter ones.".into()
            }
            Rejection::TargetTooLong => {
                "The request's target is too long. Send what is long in the body of a POST.".into()
            }
            Rejection::RequestHeadStalled => {
                "The request did not arrive in time. Send it without a pause.".into()
            }
            Rejection::UpgradeRefused => {
                "No other protocol is spoken here. Leave out the field `Upgrade`.".into()
            }
            Rejection::RequestLine(what) => format!(
                "The request's target is refused: {what}. Send a plain path, such as /timbr/api/query/."
            ).into(),
            Rejection::NotFound => "Nothing is served here. The API's paths begin with /timbr/api/ or \
                                    /timbr/openapi/."
                .into(),
            Rejection::MethodNotAllowed { allow } => format!("This path takes {allow}.").into(),
            Rejection::FieldRepeated(name) => format!("Send the field `{name}` once.").into(),
            Rejection::FieldAmbiguous(name) => {
                format!("A field's name can be mistaken for `{name}`. Spell `{name}` so, or leave it out.").into()
            }
            Rejection::ConnectionNamesPolicyField(name) => {
                format!("The field `Connection` must not name `{name}`.").into()
            }
            Rejection::ContentTypeMissing { expected } => {
                format!("The field `Content-Type` is missing. Send it with {expected}, with GET too.").into()
            }
            Rejection::ContentTypeUnsupported { expected } => {
                format!("The field `Content-Type` must be {expected} here.").into()
            }
            Rejection::ApiKeyMissing => "The field `x-api-key` is missing. Send the token that \
                                         POST /timbr/api/get_token gave, or your Timbr token."
                .into(),
            Rejection::ApiKeyMalformed => {
                "The field `x-api-key` must be one token of printable characters, without spaces or commas."
                    .into()
            }
            Rejection::ApiKeyUnknown => "The `x-api-key` is not valid. Ask for a token with \
                                         POST /timbr/api/get_token, or check your Timbr token."
                .into(),
            Rejection::TokenExpired => {
                "The token has expired or was revoked. Ask for a new one with POST /timbr/api/get_token."
                    .into()
            }
            Rejection::TokenStoreUnavailable => {
                "The token could not be looked up or kept, as the gateway's token store does not answer. Try again \
                 in a moment.".into()
            }
            Rejection::ApiKeyUnverifiable => {
                "The `x-api-key` could not be checked, as the backend does not answer. Try again in a moment."
                    .into()
            }
            Rejection::ApiKeyCheckBusy => {
                "Too many keys are being checked at the moment. Try again in a few seconds.".into()
            }
            Rejection::TooManyFailures(_) => {
                "Too many wrong keys, bearers or passwords came from your address. Wait as long as \
                 `Retry-After` says; a key that is known goes on working meanwhile."
                    .into()
            }
            Rejection::ImpersonationDenied => {
                "`x-api-impersonate-user` is not allowed with this key: you act as the user who owns it. Leave \
                 the field out."
                    .into()
            }
            Rejection::BearerMissing => {
                "Send `Authorization: Bearer <token>`, a Fernet token of base64(username:password) made with \
                 API_AUTH_SALT."
                    .into()
            }
            Rejection::BearerInvalid => {
                "The bearer is not a Fernet token made with this API's API_AUTH_SALT, or it was changed on \
                 the way."
                    .into()
            }
            Rejection::BearerExpired => "The bearer was made too long ago. Make a new one.".into(),
            Rejection::BearerFromTheFuture => {
                "The bearer was made in the future. Set the clock of the machine that makes it.".into()
            }
            Rejection::BearerWithoutCredentials => {
                "The bearer opens, but does not hold base64(username:password).".into()
            }
            Rejection::BearerUserName => {
                "The bearer opens, but its user name has other than printable ASCII characters, or spaces \
                 at its ends."
                    .into()
            }
            Rejection::CredentialsWrong => "No such user, or not that password.".into(),
            Rejection::VerifierBusy => {
                "Too many passwords are being checked at the moment. Try again in a few seconds.".into()
            }
            Rejection::RequestBodyTooLarge => "The request's body is larger than this path takes.".into(),
            Rejection::RequestBodyStalled => "The request's body did not arrive in time.".into(),
            Rejection::RequestBodyBroken => "The request's body is not well framed.".into(),
            Rejection::UpstreamUnreachable => {
                "The Timbr backend cannot be reached. The request was not sent; try again in a moment."
                    .into()
            }
            Rejection::UpstreamConnectTimeout => {
                "The Timbr backend does not take connections. The request was not sent; try again in a moment."
                    .into()
            }
            Rejection::UpstreamClosed => {
                "The Timbr backend closed the connection without an answer. The request may have been \
                 carried out."
                    .into()
            }
            Rejection::UpstreamInvalid => {
                "The Timbr backend's answer is not valid HTTP. The request may have been carried out."
                    .into()
            }
            Rejection::UpstreamTimeout => {
                "The Timbr backend did not answer in time. The request may have been carried out.".into()
            }
            Rejection::Internal => "The gateway failed over this request, which may have been carried out. Its \
                                    log says more under the request's id."
                .into(),
        }
    }

    /// The fields of the answer, and its body in the API's envelope.
    pub fn answer(&self, request_id: &str) -> (Fields, Bytes) {
        // Room for the request's id too.
        let mut fields = Fields::with_capacity(6, 256);
        fields.push(Name::ContentType, b"application/json");
        fields.push(Name::CacheControl, b"no-store");
        if let Some(challenge) = self.challenge() {
            fields.push(Name::WwwAuthenticate, challenge.as_bytes());
        }
        if let Some(seconds) = self.retry_after() {
            fields.push(Name::RetryAfter, itoa::Buffer::new().format(seconds).as_bytes());
        }
        if let Rejection::MethodNotAllowed { allow } = self {
            fields.push(Name::Allow, allow.as_bytes());
        }
        let data = self.sentence();
        let envelope = Envelope { status: "error", data: &data, reason: self.reason(), request_id };
        let body = serde_json::to_vec(&envelope).expect("strings serialise");
        (fields, Bytes::from(body))
    }

    /// What a 401 must say (RFC 9110 section 15.5.2; RFC 6750 section 3 for bearers).
    fn challenge(&self) -> Option<&'static str> {
        match self {
            Rejection::BearerMissing => Some("Bearer realm=\"timbr\""),
            Rejection::BearerInvalid
            | Rejection::BearerExpired
            | Rejection::BearerFromTheFuture
            | Rejection::BearerWithoutCredentials
            | Rejection::BearerUserName
            | Rejection::CredentialsWrong => Some("Bearer realm=\"timbr\", error=\"invalid_token\""),
            other if other.status() == StatusCode::UNAUTHORIZED => Some("ApiKey realm=\"timbr\""),
            _ => None,
        }
    }

    /// Seconds after which another try has a chance.
    fn retry_after(&self) -> Option<u64> {
        match self {
            Rejection::Overloaded
            | Rejection::TooManyRequests
            | Rejection::UpstreamUnreachable
            | Rejection::UpstreamConnectTimeout
            | Rejection::UpstreamClosed => Some(1),
            Rejection::TokenStoreUnavailable => Some(1),
            Rejection::ApiKeyUnverifiable => Some(2),
            Rejection::VerifierBusy | Rejection::ApiKeyCheckBusy => Some(5),
            // Rounded up: who waits so long must not be early.
            Rejection::TooManyFailures(wait) => Some(wait.as_secs() + 1),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_the_apis_envelope() {
        let (fields, body) = Rejection::ApiKeyMissing.answer("req-1");
        let body: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
        assert_eq!(body["status"], "error");
        assert_eq!(body["reason"], "api_key_missing");
        assert_eq!(body["request_id"], "req-1");
        assert!(body["data"].as_str().expect("text").contains("x-api-key"));
        assert_eq!(fields.get(Name::ContentType), Some(&b"application/json"[..]));
        assert_eq!(fields.get(Name::CacheControl), Some(&b"no-store"[..]));
    }

    #[test]
    fn refusals_of_credentials_carry_a_challenge() {
        let challenge = |rejection: Rejection| {
            let fields = rejection.answer("").0;
            fields.get(Name::WwwAuthenticate).map(|value| String::from_utf8_lossy(value).into_owned())
        };
        assert_eq!(challenge(Rejection::BearerMissing).as_deref(), Some("Bearer realm=\"timbr\""));
        assert!(challenge(Rejection::CredentialsWrong).is_some_and(|told| told.starts_with("Bearer ")));
        assert_eq!(challenge(Rejection::TokenExpired).as_deref(), Some("ApiKey realm=\"timbr\""));
        assert_eq!(challenge(Rejection::NotFound), None);
    }

    #[test]
    fn what_passes_says_when_to_try_again() {
        for rejection in
            [Rejection::UpstreamUnreachable, Rejection::ApiKeyUnverifiable, Rejection::VerifierBusy]
        {
            assert!(rejection.answer("").0.contains(Name::RetryAfter), "{rejection:?}");
        }
        assert!(!Rejection::UpstreamTimeout.answer("").0.contains(Name::RetryAfter));
    }
}
