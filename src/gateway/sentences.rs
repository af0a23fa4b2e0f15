//! What clients are told: one sentence or two for each rejection, that say what to do.

use crate::gateway::rejection::Rejection;

impl Rejection {
    /// One sentence for the client: what is wrong, and what to send instead.
    pub(super) fn sentence(&self) -> String {
        match self {
            Rejection::Misdirected => {
                "The connection was made for another host than the request names. Connect anew for this one.".to_owned()
            }
            Rejection::ClientCertificateRequired => {
                "This path takes clients with a certificate alone. Show one in the TLS handshake.".to_owned()
            }
            Rejection::Overloaded => "Too many requests are being answered. Try again in a moment.".to_owned(),
            Rejection::TooManyRequests => {
                "Too many requests with this key are being answered. Wait for some of them to end.".to_owned()
            }
            Rejection::RequestMalformed(what) => format!("This is no valid HTTP request: {what}."),
            Rejection::RequestHeadTooLarge => {
                "The request's fields are too many or too large. Send fewer or shorter ones.".to_owned()
            }
            Rejection::TargetTooLong => {
                "The request's target is too long. Send what is long in the body of a POST.".to_owned()
            }
            Rejection::RequestHeadStalled => {
                "The request did not arrive in time. Send it without a pause.".to_owned()
            }
            Rejection::UpgradeRefused => {
                "No other protocol is spoken here. Leave out the field `Upgrade`.".to_owned()
            }
            Rejection::RequestLine(what) => format!(
                "The request's target is refused: {what}. Send a plain path, such as /timbr/api/query/."
            ),
            Rejection::NotFound => "Nothing is served here. The API's paths begin with /timbr/api/ or \
                                    /timbr/openapi/."
                .to_owned(),
            Rejection::MethodNotAllowed { allow } => format!("This path takes {allow}."),
            Rejection::FieldRepeated(name) => format!("Send the field `{name}` once."),
            Rejection::FieldAmbiguous(name) => {
                format!("A field's name can be mistaken for `{name}`. Spell `{name}` so, or leave it out.")
            }
            Rejection::ConnectionNamesPolicyField(name) => {
                format!("The field `Connection` must not name `{name}`.")
            }
            Rejection::ContentTypeMissing { expected } => {
                format!("The field `Content-Type` is missing. Send it with {expected}, with GET too.")
            }
            Rejection::ContentTypeUnsupported { expected } => {
                format!("The field `Content-Type` must be {expected} here.")
            }
            Rejection::ApiKeyMissing => "The field `x-api-key` is missing. Send the token that \
                                         POST /timbr/api/get_token gave, or your Timbr token."
                .to_owned(),
            Rejection::ApiKeyMalformed => {
                "The field `x-api-key` must be one token of printable characters, without spaces or commas."
                    .to_owned()
            }
            Rejection::ApiKeyUnknown => "The `x-api-key` is not valid. Ask for a token with \
                                         POST /timbr/api/get_token, or check your Timbr token."
                .to_owned(),
            Rejection::TokenExpired => {
                "The token has expired or was revoked. Ask for a new one with POST /timbr/api/get_token."
                    .to_owned()
            }
            Rejection::TokenStoreUnavailable => {
                "The token could not be looked up or kept, as the gateway's token store does not answer. Try again \
                 in a moment."
                    .to_owned()
            }
            Rejection::ApiKeyUnverifiable => {
                "The `x-api-key` could not be checked, as the backend does not answer. Try again in a moment."
                    .to_owned()
            }
            Rejection::ApiKeyCheckBusy => {
                "Too many keys are being checked at the moment. Try again in a few seconds.".to_owned()
            }
            Rejection::CredentialsAmbiguous => {
                "The request has more than one credential. Send exactly one of those that the path takes.".to_owned()
            }
            Rejection::JwtMissing => {
                "The field `x-jwt-token` is missing. Send a token of your identity provider.".to_owned()
            }
            Rejection::JwtInvalid(why) => format!("The `x-jwt-token` is not valid: {why}."),
            Rejection::JwtExpired => {
                "The `x-jwt-token` has expired. Get a new one from your identity provider.".to_owned()
            }
            Rejection::JwtUnacceptable(why) => format!("The `x-jwt-token` cannot be taken here: {why}."),
            Rejection::JwtKeysUnavailable => {
                "The `x-jwt-token` could not be checked, as the keys of its issuer cannot be had. Try again in a \
                 moment."
                    .to_owned()
            }
            Rejection::TooManyFailures(_) => {
                "Too many wrong keys, bearers or passwords came from your address. Wait as long as \
                 `Retry-After` says; a key that is known goes on working meanwhile."
                    .to_owned()
            }
            Rejection::ImpersonationDenied => {
                "`x-api-impersonate-user` is not allowed: no rule of this gateway lets you act as that user. Leave the \
                 field out, or ask for a rule (impersonation.rules)."
                    .to_owned()
            }
            Rejection::BearerMissing => {
                "Send `Authorization: Bearer <token>`, a Fernet token of base64(username:password) made with \
                 API_AUTH_SALT."
                    .to_owned()
            }
            Rejection::BearerInvalid => {
                "The bearer is not a Fernet token made with this API's API_AUTH_SALT, or it was changed on \
                 the way."
                    .to_owned()
            }
            Rejection::BearerExpired => "The bearer was made too long ago. Make a new one.".to_owned(),
            Rejection::BearerFromTheFuture => {
                "The bearer was made in the future. Set the clock of the machine that makes it.".to_owned()
            }
            Rejection::BearerWithoutCredentials => {
                "The bearer opens, but does not hold base64(username:password).".to_owned()
            }
            Rejection::BearerUserName => {
                "The bearer opens, but its user name has other than printable ASCII characters, or spaces \
                 at its ends."
                    .to_owned()
            }
            Rejection::CredentialsWrong => "No such user, or not that password.".to_owned(),
            Rejection::VerifierUnavailable => {
                "Nobody can say at the moment whether the password is right. Try again in a few seconds; tokens \
                 that were given go on working."
                    .to_owned()
            }
            Rejection::UpstreamKeyRenewed => {
                "Your key at the backend had ended and was renewed. The request was not carried out; send it again."
                    .to_owned()
            }
            Rejection::VerifierBusy => {
                "Too many passwords are being checked at the moment. Try again in a few seconds.".to_owned()
            }
            Rejection::RequestBodyTooLarge => "The request's body is larger than this path takes.".to_owned(),
            Rejection::RequestBodyStalled => "The request's body did not arrive in time.".to_owned(),
            Rejection::RequestBodyBroken => "The request's body is not well framed.".to_owned(),
            Rejection::UpstreamUnreachable => {
                "The Timbr backend cannot be reached. The request was not sent; try again in a moment."
                    .to_owned()
            }
            Rejection::UpstreamConnectTimeout => {
                "The Timbr backend does not take connections. The request was not sent; try again in a moment."
                    .to_owned()
            }
            Rejection::UpstreamClosed => {
                "The Timbr backend closed the connection without an answer. The request may have been \
                 carried out."
                    .to_owned()
            }
            Rejection::UpstreamInvalid => {
                "The Timbr backend's answer is not valid HTTP. The request may have been carried out."
                    .to_owned()
            }
            Rejection::UpstreamTimeout => {
                "The Timbr backend did not answer in time. The request may have been carried out.".to_owned()
            }
            Rejection::Internal => "The gateway failed over this request, which may have been carried out. Its \
                                    log says more under the request's id."
                .to_owned(),
        }
    }
}
