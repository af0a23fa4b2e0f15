//! What operators are told about a rejection: which step refused, by which option or rule, over which field.
//!
//! SECURITY: names that stand in this source or in the configuration, never what a client sent.

use std::borrow::Cow;

use serde::Serialize;

use crate::gateway::rejection::Rejection;

/// The steps of the path, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// The head is read from the connection.
    Read,
    /// There is a place among the requests in flight.
    Admission,
    /// The request line belongs to a route.
    Route,
    /// The TLS handshake fits the request.
    Handshake,
    /// A bearer becomes a token; the path of `get_token` ends here.
    GetToken,
    /// The fields satisfy the field policy.
    Screen,
    /// The credential says who the caller is.
    Authenticate,
    /// The caller has a place among its own requests.
    Share,
    /// The caller may act as the user that it names.
    Impersonate,
    /// A rule allows what is asked for.
    Authorize,
    /// The backend answers.
    Upstream,
    /// Somewhere: the gateway itself failed.
    Unknown,
}

/// What happened at a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It let the request pass.
    Passed,
    /// It refused the request.
    Refused,
}

impl Step {
    /// What was decided up to here, on the way that requests of this route take.
    pub fn trace(self, route: &str) -> Vec<(Step, Outcome)> {
        use Step::{
            Admission, Authenticate, Authorize, GetToken, Handshake, Impersonate, Read, Route, Screen, Share,
            Upstream,
        };
        const MINTING: &[Step] = &[Read, Admission, Route, Handshake, GetToken];
        const FORWARDING: &[Step] = &[
            Read,
            Admission,
            Route,
            Handshake,
            Screen,
            Authenticate,
            Share,
            Impersonate,
            Authorize,
            Upstream,
        ];
        let way = if route == GET_TOKEN { MINTING } else { FORWARDING };
        let Some(at) = way.iter().position(|step| *step == self) else {
            return vec![(self, Outcome::Refused)];
        };
        let passed = way[..at].iter().map(|step| (*step, Outcome::Passed));
        passed.chain([(self, Outcome::Refused)]).collect()
    }
}

/// The name of the route that the gateway answers itself.
pub(super) const GET_TOKEN: &str = "get_token";

impl Rejection {
    /// The step that refused; `route` is the request's.
    pub fn step(&self, route: &str) -> Step {
        match self {
            Rejection::RequestMalformed(_)
            | Rejection::RequestHeadTooLarge
            | Rejection::TargetTooLong
            | Rejection::RequestHeadStalled => Step::Read,
            Rejection::Overloaded => Step::Admission,
            Rejection::RequestLine(_)
            | Rejection::NotFound
            | Rejection::MethodNotAllowed { .. }
            | Rejection::FieldRepeated("host") => Step::Route,
            Rejection::Misdirected | Rejection::ClientCertificateRequired => Step::Handshake,
            Rejection::Internal => Step::Unknown,
            // That path has no steps of its own behind the handshake.
            _ if route == GET_TOKEN => Step::GetToken,
            Rejection::UpgradeRefused
            | Rejection::FieldRepeated(_)
            | Rejection::FieldAmbiguous(_)
            | Rejection::ConnectionNamesPolicyField(_)
            | Rejection::ContentTypeMissing { .. }
            | Rejection::ContentTypeUnsupported { .. }
            | Rejection::RequestBodyTooLarge
            | Rejection::ApiKeyMissing
            | Rejection::ApiKeyMalformed
            | Rejection::CredentialsAmbiguous
            | Rejection::JwtMissing
            | Rejection::BasicMissing
            | Rejection::BasicMalformed => Step::Screen,
            Rejection::ApiKeyUnknown
            | Rejection::TokenExpired
            | Rejection::TokenStoreUnavailable
            | Rejection::ApiKeyUnverifiable
            | Rejection::ApiKeyCheckBusy
            | Rejection::JwtInvalid(_)
            | Rejection::JwtExpired
            | Rejection::JwtUnacceptable(_)
            | Rejection::JwtKeysUnavailable
            | Rejection::TooManyFailures(_) => Step::Authenticate,
            Rejection::TooManyRequests | Rejection::QueueFull | Rejection::QueueTimeout => Step::Share,
            Rejection::ImpersonationDenied => Step::Impersonate,
            Rejection::NotAuthorized => Step::Authorize,
            Rejection::BearerMissing
            | Rejection::BearerInvalid
            | Rejection::BearerExpired
            | Rejection::BearerFromTheFuture
            | Rejection::BearerWithoutCredentials
            | Rejection::BearerUserName
            | Rejection::CredentialsWrong
            | Rejection::VerifierBusy => Step::GetToken,
            Rejection::VerifierUnavailable
            | Rejection::UpstreamKeyRenewed
            | Rejection::RequestBodyStalled
            | Rejection::RequestBodyBroken
            | Rejection::UpstreamUnavailable
            | Rejection::UpstreamUnreachable
            | Rejection::UpstreamConnectTimeout
            | Rejection::UpstreamClosed
            | Rejection::UpstreamInvalid
            | Rejection::UpstreamTimeout => Step::Upstream,
        }
    }

    /// The field that it is about.
    pub fn field(&self) -> Option<&'static str> {
        Some(match self {
            Rejection::FieldRepeated(name) | Rejection::FieldAmbiguous(name) => name,
            // SECURITY: what it names is the client's text and may be anything, a key too.
            Rejection::ConnectionNamesPolicyField(_) => "connection",
            Rejection::ContentTypeMissing { .. } | Rejection::ContentTypeUnsupported { .. } => "content-type",
            Rejection::UpgradeRefused => "upgrade",
            Rejection::Misdirected => "host",
            Rejection::ApiKeyMissing
            | Rejection::ApiKeyMalformed
            | Rejection::ApiKeyUnknown
            | Rejection::TokenExpired
            | Rejection::ApiKeyUnverifiable => "x-api-key",
            Rejection::JwtMissing
            | Rejection::JwtInvalid(_)
            | Rejection::JwtExpired
            | Rejection::JwtUnacceptable(_)
            | Rejection::JwtKeysUnavailable => "x-jwt-token",
            Rejection::ImpersonationDenied => "x-api-impersonate-user",
            Rejection::BasicMissing
            | Rejection::BasicMalformed
            | Rejection::BearerMissing
            | Rejection::BearerInvalid
            | Rejection::BearerExpired
            | Rejection::BearerFromTheFuture
            | Rejection::BearerWithoutCredentials
            | Rejection::BearerUserName => "authorization",
            _ => return None,
        })
    }

    /// The options that decide it, the first one before all; a key of `routes` stands as `routes.…`.
    pub fn rules(&self) -> &'static [&'static str] {
        match self {
            Rejection::RequestHeadTooLarge => &["limits.headers", "limits.header_size"],
            Rejection::TargetTooLong => &["limits.uri"],
            Rejection::RequestHeadStalled => &["timeouts.header"],
            Rejection::Misdirected => &["tls.certificates", "tls.cert_file"],
            Rejection::ClientCertificateRequired => &["routes.client_certificate"],
            Rejection::Overloaded => &["limits.requests"],
            Rejection::TooManyRequests => &["limits.requests_per_identity"],
            Rejection::NotFound => &["routes.prefix"],
            Rejection::MethodNotAllowed { .. } => &["routes.methods"],
            Rejection::ContentTypeMissing { .. } | Rejection::ContentTypeUnsupported { .. } => {
                &["routes.content_types"]
            }
            Rejection::RequestBodyTooLarge => &["limits.body", "routes.max_body"],
            Rejection::RequestBodyStalled => &["timeouts.body", "limits.body_rate"],
            Rejection::ApiKeyMissing | Rejection::JwtMissing | Rejection::BasicMissing => {
                &["routes.credentials"]
            }
            Rejection::ApiKeyUnknown | Rejection::ApiKeyUnverifiable | Rejection::ApiKeyCheckBusy => {
                &["tokens.foreign"]
            }
            Rejection::TokenExpired => &["tokens.ttl"],
            Rejection::TokenStoreUnavailable => &["store.kind", "store.timeout"],
            Rejection::JwtInvalid(_) | Rejection::JwtUnacceptable(_) | Rejection::JwtKeysUnavailable => {
                &["auth.jwt_issuers"]
            }
            Rejection::JwtExpired => &["auth.jwt_leeway"],
            Rejection::TooManyFailures(_) => &["limits.failures_per_address", "limits.failures_per_user"],
            Rejection::ImpersonationDenied => &["impersonation.rules", "impersonation.own_keys"],
            Rejection::NotAuthorized => &["authorization.rules"],
            Rejection::BearerInvalid => &["api_auth_salt"],
            Rejection::BearerExpired => &["auth.bearer_max_age"],
            Rejection::CredentialsWrong | Rejection::VerifierUnavailable | Rejection::VerifierBusy => {
                &["auth.verifier"]
            }
            Rejection::UpstreamKeyRenewed => &["upstream.credential"],
            Rejection::UpstreamUnreachable | Rejection::UpstreamClosed | Rejection::UpstreamInvalid => {
                &["upstream.url"]
            }
            Rejection::QueueFull => &["upstream.queue", "upstream.requests"],
            Rejection::QueueTimeout => &["upstream.queue_timeout", "upstream.requests"],
            Rejection::UpstreamUnavailable => &["upstream.eject_after", "upstream.health_path"],
            Rejection::UpstreamConnectTimeout => &["upstream.connect_timeout"],
            Rejection::UpstreamTimeout => &["upstream.response_timeout"],
            Rejection::RequestMalformed(_)
            | Rejection::RequestLine(_)
            | Rejection::UpgradeRefused
            | Rejection::FieldRepeated(_)
            | Rejection::FieldAmbiguous(_)
            | Rejection::ConnectionNamesPolicyField(_)
            | Rejection::ApiKeyMalformed
            | Rejection::CredentialsAmbiguous
            | Rejection::BasicMalformed
            | Rejection::BearerMissing
            | Rejection::BearerFromTheFuture
            | Rejection::BearerWithoutCredentials
            | Rejection::BearerUserName
            | Rejection::RequestBodyBroken
            | Rejection::Internal => &[],
        }
    }

    /// What exactly, where the reason has several meanings. Sentences of this source, and what the configuration says.
    pub fn detail(&self) -> Option<Cow<'static, str>> {
        match self {
            Rejection::RequestMalformed(what)
            | Rejection::RequestLine(what)
            | Rejection::JwtInvalid(what)
            | Rejection::JwtUnacceptable(what) => Some((*what).into()),
            Rejection::MethodNotAllowed { allow } => Some(format!("the path takes {allow}").into()),
            Rejection::ContentTypeMissing { expected } | Rejection::ContentTypeUnsupported { expected } => {
                Some(format!("the route takes {expected}").into())
            }
            Rejection::TooManyFailures(wait) => {
                Some(format!("there is room again after {} s", wait.as_secs() + 1).into())
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::options;

    #[test]
    fn a_trace_ends_with_the_step_that_refused() {
        let trace = Rejection::ApiKeyMissing.step("api").trace("api");
        let steps: Vec<_> = trace.iter().map(|(step, _)| *step).collect();
        assert_eq!(steps, [Step::Read, Step::Admission, Step::Route, Step::Handshake, Step::Screen]);
        let refused: Vec<_> = trace.iter().filter(|(_, outcome)| *outcome == Outcome::Refused).collect();
        assert_eq!(refused, [&(Step::Screen, Outcome::Refused)]);
        assert_eq!(Rejection::BearerExpired.step(GET_TOKEN).trace(GET_TOKEN).len(), 5);
        assert_eq!(Rejection::Internal.step("api").trace("api"), [(Step::Unknown, Outcome::Refused)]);
    }

    #[test]
    fn the_step_depends_on_the_way_that_the_request_took() {
        let missing = Rejection::ContentTypeMissing { expected: "application/json".to_owned() };
        assert_eq!((missing.step("api"), missing.step(GET_TOKEN)), (Step::Screen, Step::GetToken));
        assert_eq!(Rejection::FieldRepeated("host").step(""), Step::Route);
        assert_eq!(Rejection::FieldRepeated("x-api-key").step("api"), Step::Screen);
    }

    #[test]
    fn options_that_are_named_are_there() {
        let wait = std::time::Duration::from_secs(1);
        for rejection in [
            Rejection::RequestHeadTooLarge,
            Rejection::TargetTooLong,
            Rejection::RequestHeadStalled,
            Rejection::Misdirected,
            Rejection::Overloaded,
            Rejection::TooManyRequests,
            Rejection::RequestBodyTooLarge,
            Rejection::RequestBodyStalled,
            Rejection::ApiKeyUnknown,
            Rejection::TokenExpired,
            Rejection::TokenStoreUnavailable,
            Rejection::JwtInvalid(""),
            Rejection::JwtExpired,
            Rejection::TooManyFailures(wait),
            Rejection::ImpersonationDenied,
            Rejection::NotAuthorized,
            Rejection::BearerInvalid,
            Rejection::BearerExpired,
            Rejection::CredentialsWrong,
            Rejection::UpstreamKeyRenewed,
            Rejection::UpstreamUnreachable,
            Rejection::UpstreamConnectTimeout,
            Rejection::UpstreamTimeout,
        ] {
            for key in rejection.rules() {
                let is_known = key.starts_with("routes.") || options::find(key).is_some();
                assert!(is_known, "{key} of {rejection:?}");
            }
            assert!(!rejection.rules().is_empty(), "{rejection:?}");
        }
    }

    #[test]
    fn nothing_that_a_client_wrote_is_told() {
        let rejection = Rejection::ConnectionNamesPolicyField("tk_secret".to_owned());
        let told = format!("{:?}{:?}{:?}", rejection.field(), rejection.rules(), rejection.detail());
        assert!(!told.contains("tk_secret"), "{told}");
    }
}
