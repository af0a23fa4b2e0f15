//! What clients are told: one sentence or two for each rejection, that say what to do.

use std::borrow::Cow;

use crate::gateway::rejection::Rejection;

impl Rejection {
    /// One sentence for the client: what is wrong, and what to send instead.
    pub(super) fn sentence(&self) -> Cow<'static, str> {
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
                 in a moment."
                    .into()
            }
            Rejection::ApiKeyUnverifiable => {
                "The `x-api-key` could not be checked, as the backend does not answer. Try again in a moment."
                    .into()
            }
            Rejection::ApiKeyCheckBusy => {
                "Too many keys are being checked at the moment. Try again in a few seconds.".into()
            }
            Rejection::CredentialsAmbiguous => {
                "The request has more than one credential. Send exactly one of those that the path takes.".into()
            }
            Rejection::JwtMissing => {
                "The field `x-jwt-token` is missing. Send a token of your identity provider.".into()
            }
            Rejection::JwtInvalid(why) => format!("The `x-jwt-token` is not valid: {why}.").into(),
            Rejection::JwtExpired => {
                "The `x-jwt-token` has expired. Get a new one from your identity provider.".into()
            }
            Rejection::JwtUnacceptable(why) => format!("The `x-jwt-token` cannot be taken here: {why}.").into(),
            Rejection::JwtKeysUnavailable => {
                "The `x-jwt-token` could not be checked, as the keys of its issuer cannot be had. Try again in a \
                 moment."
                    .into()
            }
            Rejection::TooManyFailures(_) => {
                "Too many wrong keys, bearers or passwords came from your address. Wait as long as \
                 `Retry-After` says; a key that is known goes on working meanwhile."
                    .into()
            }
            Rejection::ImpersonationDenied => {
                "`x-api-impersonate-user` is not allowed: no rule of this gateway lets you act as that user. Leave the \
                 field out, or ask for a rule (impersonation.rules)."
                    .into()
            }
            Rejection::NotAuthorized => {
                "You are known here, but not allowed to ask for this. Ask for a rule (authorization.rules).".into()
            }
            Rejection::BasicMissing => {
                "Send `Authorization: Basic`, with `token` for the user's name and your Timbr token for the password."
                    .into()
            }
            Rejection::BasicMalformed => {
                "The field `Authorization` must be `Basic` with base64 of `token:` and your Timbr token.".into()
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
            Rejection::VerifierUnavailable => {
                "Nobody can say at the moment whether the password is right. Try again in a few seconds; tokens \
                 that were given go on working."
                    .into()
            }
            Rejection::UpstreamKeyRenewed => {
                "Your key at the backend had ended and was renewed. The request was not carried out; send it again."
                    .into()
            }
            Rejection::VerifierBusy => {
                "Too many passwords are being checked at the moment. Try again in a few seconds.".into()
            }
            Rejection::RequestBodyTooLarge => "The request's body is larger than this path takes.".into(),
            Rejection::RequestBodyStalled => "The request's body did not arrive in time.".into(),
            Rejection::RequestBodyBroken => "The request's body is not well framed.".into(),
            Rejection::QueueFull => {
                "The Timbr backend is busy, and too many requests wait for it. Send fewer at once, or try again in a \
                 moment. This one was not sent."
                    .into()
            }
            Rejection::QueueTimeout => {
                "The Timbr backend was busy for too long. The request was not sent; try again in a moment.".into()
            }
            Rejection::UpstreamUnavailable => {
                "The Timbr backend is out of service at the moment. The request was not sent; try again in a moment."
                    .into()
            }
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
}
