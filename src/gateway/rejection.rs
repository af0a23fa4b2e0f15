//! Every way in which the gateway itself says no, and what the client is told.
//!
//! A variant does not compile until it has a status, a reason and a sentence. Reasons are an interface: scripts and
//! alerts match them, so they never change.

use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;

use crate::admission::{Full, NoTurn};
use crate::base::byte_class::needs_no_escapes;
use crate::http::headers::{Fields, HeaderName};

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
    /// More than one credential.
    CredentialsAmbiguous,
    /// No `x-jwt-token`, on a route that takes nothing else.
    JwtMissing,
    /// An `x-jwt-token` that cannot be one, or that nobody known has signed.
    JwtInvalid(&'static str),
    /// An `x-jwt-token` whose time is over.
    JwtExpired,
    /// An `x-jwt-token` that is genuine, and not meant for us, or of no use.
    JwtUnacceptable(&'static str),
    /// The keys of the `x-jwt-token`'s issuer could not be had.
    JwtKeysUnavailable,
    /// Too many wrong credentials; another try has a chance after so long.
    TooManyFailures(Duration),
    /// `x-api-impersonate-user` where the gateway says who the user is.
    ImpersonationDenied,
    /// No rule allows what a proven caller asks for.
    NotAuthorized,
    /// No `Authorization: Basic`, on a route that takes that.
    BasicMissing,
    /// `Authorization: Basic` without a key in it.
    BasicMalformed,
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
    /// Nobody could say whether a password is right, or which key a user has.
    VerifierUnavailable,
    /// Too many passwords are being checked.
    VerifierBusy,
    /// The backend refused the user's key, another one was found, and the request could not be sent again.
    UpstreamKeyRenewed,
    /// The client made too long a pause in its body.
    RequestBodyStalled,
    /// The client's body broke off.
    RequestBodyBroken,
    /// The backend has as many requests as it may have, and as many wait as may.
    QueueFull,
    /// The same, and this one has waited for too long.
    QueueTimeout,
    /// No address of the backend is in use.
    UpstreamUnavailable,
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

impl From<Full> for Rejection {
    fn from(full: Full) -> Rejection {
        match full {
            Full::Everybody => Rejection::Overloaded,
            Full::Caller => Rejection::TooManyRequests,
        }
    }
}

impl From<NoTurn> for Rejection {
    fn from(no_turn: NoTurn) -> Rejection {
        match no_turn {
            NoTurn::Full => Rejection::QueueFull,
            NoTurn::TooLate => Rejection::QueueTimeout,
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
            | Rejection::CredentialsAmbiguous
            | Rejection::RequestBodyBroken => StatusCode::BAD_REQUEST,
            Rejection::ApiKeyMissing
            | Rejection::ApiKeyMalformed
            | Rejection::ApiKeyUnknown
            | Rejection::TokenExpired
            | Rejection::JwtMissing
            | Rejection::JwtInvalid(_)
            | Rejection::JwtExpired
            | Rejection::JwtUnacceptable(_)
            | Rejection::BasicMissing
            | Rejection::BasicMalformed
            | Rejection::BearerMissing
            | Rejection::BearerInvalid
            | Rejection::BearerExpired
            | Rejection::BearerFromTheFuture
            | Rejection::BearerWithoutCredentials
            | Rejection::BearerUserName
            | Rejection::CredentialsWrong => StatusCode::UNAUTHORIZED,
            Rejection::ImpersonationDenied
            | Rejection::NotAuthorized
            | Rejection::ClientCertificateRequired => StatusCode::FORBIDDEN,
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
            Rejection::Overloaded
            | Rejection::QueueFull
            | Rejection::QueueTimeout
            | Rejection::UpstreamUnavailable => StatusCode::SERVICE_UNAVAILABLE,
            Rejection::TokenStoreUnavailable
            | Rejection::JwtKeysUnavailable
            | Rejection::ApiKeyUnverifiable
            | Rejection::ApiKeyCheckBusy
            | Rejection::VerifierUnavailable
            | Rejection::UpstreamKeyRenewed
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
            Rejection::CredentialsAmbiguous => "credentials_ambiguous",
            Rejection::JwtMissing => "jwt_missing",
            Rejection::JwtInvalid(_) => "jwt_invalid",
            Rejection::JwtExpired => "jwt_expired",
            Rejection::JwtUnacceptable(_) => "jwt_unacceptable",
            Rejection::JwtKeysUnavailable => "jwt_keys_unavailable",
            Rejection::TooManyFailures(_) => "too_many_failures",
            Rejection::ImpersonationDenied => "impersonation_denied",
            Rejection::NotAuthorized => "not_authorized",
            Rejection::BasicMissing => "basic_missing",
            Rejection::BasicMalformed => "basic_malformed",
            Rejection::BearerMissing => "bearer_missing",
            Rejection::BearerInvalid => "bearer_invalid",
            Rejection::BearerExpired => "bearer_expired",
            Rejection::BearerFromTheFuture => "bearer_from_the_future",
            Rejection::BearerWithoutCredentials => "bearer_without_credentials",
            Rejection::BearerUserName => "bearer_user_name",
            Rejection::CredentialsWrong => "credentials_wrong",
            Rejection::VerifierUnavailable => "verifier_unavailable",
            Rejection::UpstreamKeyRenewed => "upstream_key_renewed",
            Rejection::VerifierBusy => "verifier_busy",
            Rejection::RequestBodyTooLarge => "request_body_too_large",
            Rejection::RequestBodyStalled => "request_body_stalled",
            Rejection::RequestBodyBroken => "request_body_broken",
            Rejection::QueueFull => "queue_full",
            Rejection::QueueTimeout => "queue_timeout",
            Rejection::UpstreamUnavailable => "upstream_unavailable",
            Rejection::UpstreamUnreachable => "upstream_unreachable",
            Rejection::UpstreamConnectTimeout => "upstream_connect_timeout",
            Rejection::UpstreamClosed => "upstream_closed",
            Rejection::UpstreamInvalid => "upstream_invalid",
            Rejection::UpstreamTimeout => "upstream_timeout",
            Rejection::Internal => "internal_error",
        }
    }

    /// The fields of the answer, and its body in the API's envelope.
    pub fn answer(&self, request_id: &[u8]) -> (Fields, Bytes) {
        // Room for the request's id too.
        let mut fields = Fields::with_capacity(6, 256);
        fields.push(HeaderName::ContentType, b"application/json");
        fields.push(HeaderName::CacheControl, b"no-store");
        if let Some(challenge) = self.challenge() {
            fields.push(HeaderName::WwwAuthenticate, challenge.as_bytes());
        }
        if let Some(seconds) = self.retry_after() {
            fields.push(HeaderName::RetryAfter, itoa::Buffer::new().format(seconds).as_bytes());
        }
        if let Rejection::MethodNotAllowed { allow } = self {
            fields.push(HeaderName::Allow, allow.as_bytes());
        }
        (fields, Bytes::from(envelope(&self.sentence(), self.reason(), request_id)))
    }

    /// What a 401 must say (RFC 9110 section 15.5.2; RFC 6750 section 3 for bearers).
    fn challenge(&self) -> Option<&'static str> {
        match self {
            Rejection::BasicMissing | Rejection::BasicMalformed => Some("Basic realm=\"timbr\""),
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
            | Rejection::QueueFull
            | Rejection::QueueTimeout
            | Rejection::UpstreamUnavailable
            | Rejection::UpstreamUnreachable
            | Rejection::UpstreamConnectTimeout
            | Rejection::UpstreamClosed => Some(1),
            Rejection::TokenStoreUnavailable | Rejection::UpstreamKeyRenewed => Some(1),
            Rejection::ApiKeyUnverifiable | Rejection::JwtKeysUnavailable => Some(2),
            Rejection::VerifierBusy | Rejection::VerifierUnavailable | Rejection::ApiKeyCheckBusy => Some(5),
            // Rounded up: who waits so long must not be early.
            Rejection::TooManyFailures(wait) => Some(wait.as_secs() + 1),
            _ => None,
        }
    }
}

/// The API's envelope. Put together by hand, as refusals are what a flood consists of; ids and reasons are words that need no
/// escapes in JSON, and so are most sentences.
fn envelope(data: &str, reason: &str, request_id: &[u8]) -> Vec<u8> {
    const PARTS: [&str; 4] =
        [r#"{"status":"error","data":"#, r#","reason":""#, r#"","request_id":""#, r#""}"#];
    debug_assert!([reason.as_bytes(), request_id].into_iter().all(needs_no_escapes));
    let known: usize = PARTS.iter().map(|part| part.len()).sum();
    let mut body = Vec::with_capacity(known + data.len() + 2 + reason.len() + request_id.len());
    body.extend_from_slice(PARTS[0].as_bytes());
    append_quoted(&mut body, data);
    body.extend_from_slice(PARTS[1].as_bytes());
    body.extend_from_slice(reason.as_bytes());
    body.extend_from_slice(PARTS[2].as_bytes());
    body.extend_from_slice(request_id);
    body.extend_from_slice(PARTS[3].as_bytes());
    body
}

/// Appends a text as JSON has it.
fn append_quoted(body: &mut Vec<u8>, text: &str) {
    if needs_no_escapes(text.as_bytes()) {
        body.push(b'"');
        body.extend_from_slice(text.as_bytes());
        body.push(b'"');
    } else {
        serde_json::to_writer(body, text).expect("a text can always be written into memory");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::faults::specimens;

    #[test]
    fn an_answer_is_the_apis_envelope() {
        let (fields, body) = Rejection::ApiKeyMissing.answer(b"req-1");
        let body: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
        assert_eq!(body["status"], "error");
        assert_eq!(body["reason"], "api_key_missing");
        assert_eq!(body["request_id"], "req-1");
        assert!(body["data"].as_str().expect("text").contains("x-api-key"));
        assert_eq!(fields.get(HeaderName::ContentType), Some(&b"application/json"[..]));
        assert_eq!(fields.get(HeaderName::CacheControl), Some(&b"no-store"[..]));
    }

    #[test]
    fn an_envelope_is_what_serde_makes_of_it() {
        #[derive(serde::Serialize)]
        struct Envelope<'a> {
            status: &'static str,
            data: &'a str,
            reason: &'static str,
            request_id: &'a str,
        }
        let odd = (0..=0xff_u8).map(|byte| format!("a{}b", char::from(byte)));
        let longer = ["", "plain, with `quotes`", "\"\\/\u{7f}\u{2028}\u{2029}", "… – é 漢 \u{1f980}"]
            .map(str::to_owned);
        let odd = odd.chain(longer).map(|data| (data, "api_key_missing"));
        let all = specimens();
        let told = all.iter().map(|rejection| (rejection.sentence().into_owned(), rejection.reason()));
        // What a client has written stands in this one.
        let quoting = Rejection::ConnectionNamesPolicyField("x\"\\\n\u{1b}-api-key".to_owned());
        let quoting = (quoting.sentence().into_owned(), quoting.reason());
        for (data, reason) in odd.chain(told).chain([quoting]) {
            for request_id in ["req-1.:/+=@_", "0123456789abcdef0123456789abcdef"] {
                let expected = Envelope { status: "error", data: &data, reason, request_id };
                let made = envelope(&data, reason, request_id.as_bytes());
                assert_eq!(made, serde_json::to_vec(&expected).expect("strings serialise"), "{data:?}");
            }
        }
    }

    #[test]
    fn refusals_of_credentials_carry_a_challenge() {
        let challenge = |rejection: Rejection| {
            let fields = rejection.answer(b"").0;
            fields.get(HeaderName::WwwAuthenticate).map(|value| String::from_utf8_lossy(value).into_owned())
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
            assert!(rejection.answer(b"").0.contains(HeaderName::RetryAfter), "{rejection:?}");
        }
        assert!(!Rejection::UpstreamTimeout.answer(b"").0.contains(HeaderName::RetryAfter));
    }
}
