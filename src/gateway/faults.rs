//! Whose fault a refusal is, for the catalogue of `docs/errors.md`; and one of each kind, to make that of.

use std::time::Duration;

use crate::gateway::rejection::Rejection;

/// Who has to change something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The client's request, or what lies between it and the gateway.
    Client,
    /// The client's credentials.
    Credentials,
    /// Rules and limits that the operator has set, or clients that go beyond them.
    Rules,
    /// A server that the gateway asks: the backend, the store, the verifier, an issuer.
    Servers,
    /// The gateway itself.
    Gateway,
}

impl Fault {
    /// The word of the catalogue.
    pub fn word(self) -> &'static str {
        match self {
            Fault::Client => "the request",
            Fault::Credentials => "the credentials",
            Fault::Rules => "rules and limits",
            Fault::Servers => "another server",
            Fault::Gateway => "the gateway",
        }
    }
}

impl Rejection {
    /// Whose fault it is.
    pub fn fault(&self) -> Fault {
        match self {
            Rejection::RequestMalformed(_)
            | Rejection::RequestHeadTooLarge
            | Rejection::TargetTooLong
            | Rejection::RequestHeadStalled
            | Rejection::Misdirected
            | Rejection::UpgradeRefused
            | Rejection::RequestLine(_)
            | Rejection::NotFound
            | Rejection::MethodNotAllowed { .. }
            | Rejection::FieldRepeated(_)
            | Rejection::FieldAmbiguous(_)
            | Rejection::ConnectionNamesPolicyField(_)
            | Rejection::ContentTypeMissing { .. }
            | Rejection::ContentTypeUnsupported { .. }
            | Rejection::RequestBodyTooLarge
            | Rejection::RequestBodyStalled
            | Rejection::RequestBodyBroken => Fault::Client,
            Rejection::ClientCertificateRequired
            | Rejection::ApiKeyMissing
            | Rejection::ApiKeyMalformed
            | Rejection::ApiKeyUnknown
            | Rejection::TokenExpired
            | Rejection::CredentialsAmbiguous
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
            | Rejection::CredentialsWrong => Fault::Credentials,
            Rejection::Overloaded
            | Rejection::TooManyRequests
            | Rejection::TooManyFailures(_)
            | Rejection::QueueFull
            | Rejection::QueueTimeout
            | Rejection::ApiKeyCheckBusy
            | Rejection::VerifierBusy
            | Rejection::ImpersonationDenied
            | Rejection::NotAuthorized => Fault::Rules,
            Rejection::TokenStoreUnavailable
            | Rejection::ApiKeyUnverifiable
            | Rejection::JwtKeysUnavailable
            | Rejection::VerifierUnavailable
            | Rejection::UpstreamKeyRenewed
            | Rejection::UpstreamUnavailable
            | Rejection::UpstreamUnreachable
            | Rejection::UpstreamConnectTimeout
            | Rejection::UpstreamClosed
            | Rejection::UpstreamInvalid
            | Rejection::UpstreamTimeout => Fault::Servers,
            Rejection::Internal => Fault::Gateway,
        }
    }
}

/// One of each, with `…` for what differs. A test of the documents finds a kind that is missing here.
pub fn specimens() -> Vec<Rejection> {
    const ANY: &str = "…";
    let expected = || ANY.to_owned();
    vec![
        Rejection::RequestMalformed(ANY),
        Rejection::RequestHeadTooLarge,
        Rejection::TargetTooLong,
        Rejection::RequestHeadStalled,
        Rejection::Misdirected,
        Rejection::ClientCertificateRequired,
        Rejection::Overloaded,
        Rejection::TooManyRequests,
        Rejection::QueueFull,
        Rejection::QueueTimeout,
        Rejection::UpgradeRefused,
        Rejection::RequestLine(ANY),
        Rejection::NotFound,
        Rejection::MethodNotAllowed { allow: expected() },
        Rejection::FieldRepeated(ANY),
        Rejection::FieldAmbiguous(ANY),
        Rejection::ConnectionNamesPolicyField(expected()),
        Rejection::ContentTypeMissing { expected: expected() },
        Rejection::ContentTypeUnsupported { expected: expected() },
        Rejection::RequestBodyTooLarge,
        Rejection::ApiKeyMissing,
        Rejection::ApiKeyMalformed,
        Rejection::ApiKeyUnknown,
        Rejection::TokenExpired,
        Rejection::TokenStoreUnavailable,
        Rejection::ApiKeyUnverifiable,
        Rejection::ApiKeyCheckBusy,
        Rejection::CredentialsAmbiguous,
        Rejection::JwtMissing,
        Rejection::JwtInvalid(ANY),
        Rejection::JwtExpired,
        Rejection::JwtUnacceptable(ANY),
        Rejection::JwtKeysUnavailable,
        Rejection::TooManyFailures(Duration::ZERO),
        Rejection::ImpersonationDenied,
        Rejection::NotAuthorized,
        Rejection::BasicMissing,
        Rejection::BasicMalformed,
        Rejection::BearerMissing,
        Rejection::BearerInvalid,
        Rejection::BearerExpired,
        Rejection::BearerFromTheFuture,
        Rejection::BearerWithoutCredentials,
        Rejection::BearerUserName,
        Rejection::CredentialsWrong,
        Rejection::VerifierUnavailable,
        Rejection::VerifierBusy,
        Rejection::UpstreamKeyRenewed,
        Rejection::RequestBodyStalled,
        Rejection::RequestBodyBroken,
        Rejection::UpstreamUnavailable,
        Rejection::UpstreamUnreachable,
        Rejection::UpstreamConnectTimeout,
        Rejection::UpstreamClosed,
        Rejection::UpstreamInvalid,
        Rejection::UpstreamTimeout,
        Rejection::Internal,
    ]
}
