//! `POST /timbr/api/get_token`: exchanges a bearer for a token. Such a request is never forwarded.

use crate::auth::bearer::BearerError;
use crate::auth::failure_limiter::TooManyFailures;
use crate::auth::verifier::VerifyError;
use crate::auth::{MintError, MintFailure, MintedToken};
use crate::base::user_name::UserName;
use crate::gateway::Gateway;
use crate::gateway::exchange::Exchange;
use crate::gateway::rejection::Rejection;
use crate::gateway::respond::GatewayResponse;
use crate::gateway::screen::{reject_ambiguous_headers, require_content_type};
use crate::gateway::stop::reject_if_stopped;
use crate::http::headers::{Head, HeaderName, Headers};
use crate::store::{StopKind, Store};

/// The name of this route in logs, metrics and `explain`.
pub(super) const ROUTE_NAME: &str = "get_token";

impl Gateway {
    /// Opens the bearer, checks the credentials, and responds with the token of the login:
    /// `{"data":["tk_…"],"status":"success"}`.
    pub(super) async fn get_token(&self, head: &Head, exchange: &mut Exchange) -> Result<GatewayResponse, Rejection> {
        exchange.set_route(&self.route_metrics.get_token);
        let minted = match self.mint(head, exchange).await {
            Ok(minted) => minted,
            Err((rejection, claimed_user)) => {
                exchange.record.audit_failed_login(rejection.reason(), claimed_user.as_ref());
                return Err(rejection);
            }
        };
        let body = format!(r#"{{"data":["{}"],"status":"success"}}"#, minted.token.expose());
        let allowed = self.reject_denied_login(&minted);
        exchange.record.user = Some(minted.user);
        exchange.record.key = Some(minted.id.fingerprint());
        allowed.inspect_err(|rejection| exchange.record.audit("mint", rejection.reason()))?;
        // SECURITY: the token does not leave the gateway without a line about it, if the audit log is required.
        if exchange.record.audit_login().await.is_err() {
            exchange.record.audit("mint", Rejection::AuditUnavailable.reason());
            return Err(Rejection::AuditUnavailable);
        }
        Ok(GatewayResponse::json(body))
    }

    pub(super) fn reject_denied_login(&self, minted: &MintedToken) -> Result<(), Rejection> {
        let store = self.auth.store();
        if store.denies(Some(&minted.user), minted.id.fingerprint()) {
            return Err(Rejection::CredentialDenied);
        }
        reject_if_stopped(store, StopKind::User, minted.user.as_str())
    }

    /// The error has the user that an authentic bearer names.
    async fn mint(&self, head: &Head, exchange: &mut Exchange) -> Result<MintedToken, (Rejection, Option<UserName>)> {
        let admitted = reject_if_stopped(self.auth.store(), StopKind::Route, ROUTE_NAME)
            .and_then(|()| exchange.permit().begin_authentication().map_err(Rejection::from));
        let bearer = admitted.and_then(|()| screen_login(&head.headers)).map_err(|rejection| (rejection, None))?;
        let (client, timing) = (exchange.context().origin.address, &exchange.record.timing);
        let minted = self.auth.mint(bearer, client, &self.upstreams[0].client, timing).await;
        minted.map_err(|MintFailure { error, claimed_user }| {
            // This one is proven.
            let claimed_user = match &error {
                MintError::Denied(user) => {
                    exchange.record.user = Some(user.clone());
                    None
                }
                _ => claimed_user,
            };
            (mint_rejection(error, self.auth.store()), claimed_user)
        })
    }
}

fn screen_login(headers: &Headers) -> Result<&str, Rejection> {
    reject_ambiguous_headers(headers)?;
    let is_json = |essence: &[u8]| essence.eq_ignore_ascii_case(b"application/json");
    require_content_type(headers, is_json, || "`application/json`".to_owned())?;
    bearer_token(headers)
}

/// The token of `Authorization: Bearer <token>`; the case of the scheme does not matter (RFC 9110 section 11.1).
fn bearer_token(headers: &Headers) -> Result<&str, Rejection> {
    let value = headers.get(HeaderName::Authorization).ok_or(Rejection::BearerMissing)?;
    let value = std::str::from_utf8(value).map_err(|_| Rejection::BearerInvalid)?;
    let (scheme, token) = value.split_once(' ').unwrap_or((value, ""));
    match token.trim_matches(' ') {
        _ if !scheme.eq_ignore_ascii_case("bearer") => Err(Rejection::BearerMissing),
        "" => Err(Rejection::BearerMissing),
        token => Ok(token),
    }
}

pub(super) fn mint_rejection(error: MintError, store: &Store) -> Rejection {
    match error {
        MintError::Denied(user) => {
            let stopped = reject_if_stopped(store, StopKind::User, user.as_str());
            stopped.err().unwrap_or(Rejection::CredentialDenied)
        }
        MintError::Bearer(BearerError::NotAuthentic) => Rejection::BearerInvalid,
        MintError::Bearer(BearerError::TooOld) => Rejection::BearerExpired,
        MintError::Bearer(BearerError::MadeInFuture) => Rejection::BearerFromTheFuture,
        MintError::Bearer(BearerError::NoCredentials) => Rejection::BearerWithoutCredentials,
        MintError::Bearer(BearerError::InvalidUserName) => Rejection::BearerUserName,
        MintError::Exchange(error) => error.into(),
        MintError::TooManyTokens(wait) => Rejection::TooManyTokens(wait),
        MintError::StoreUnavailable => Rejection::TokenStoreUnavailable,
        MintError::Login(VerifyError::Unavailable) => Rejection::VerifierUnavailable,
        MintError::Login(VerifyError::Busy) => Rejection::VerifierBusy,
        MintError::Login(VerifyError::WrongCredentials) => Rejection::CredentialsWrong,
        MintError::Login(VerifyError::TooManyFailures(TooManyFailures(wait))) => Rejection::TooManyFailures(wait),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_authorization(value: &str) -> Result<String, &'static str> {
        let mut headers = Headers::new();
        headers.push(HeaderName::Authorization, value.as_bytes());
        bearer_token(&headers).map(str::to_owned).map_err(|rejection| rejection.reason())
    }

    #[test]
    fn the_scheme_is_bearer_in_any_case() {
        for value in ["Bearer abc=", "bearer abc=", "BEARER  abc=", "Bearer abc= "] {
            assert_eq!(parse_authorization(value), Ok("abc=".into()), "{value}");
        }
        for value in ["Bearer", "Bearer ", "Basic abc=", "abc=", "Bearerabc="] {
            assert_eq!(parse_authorization(value), Err("bearer_missing"), "{value}");
        }
        assert_eq!(bearer_token(&Headers::new()), Err(Rejection::BearerMissing));
    }
}
