//! `POST /timbr/api/get_token`: the one request that the gateway answers by itself.

use bytes::Bytes;
use http::StatusCode;

use crate::auth::bearer::BearerError;
use crate::auth::failure_limiter::TooMany;
use crate::auth::{MintError, Minted};
use crate::gateway::Gateway;
use crate::gateway::exchange::Exchange;
use crate::gateway::rejection::Rejection;
use crate::gateway::respond::Answer;
use crate::gateway::screen;
use crate::http::headers::{Fields, Head, HeaderName};

/// The name of this route in logs, metrics and `explain`.
pub(super) const ROUTE_NAME: &str = "get_token";

impl Gateway {
    /// Opens the bearer, checks the credentials and responds with the token of the login:
    /// `{"data":["tk_…"],"status":"success"}`.
    pub(super) async fn get_token(&self, head: &Head, exchange: &mut Exchange) -> Result<Answer, Rejection> {
        exchange.set_route(&self.counted.get_token);
        let minted = match self.mint(head, exchange).await {
            Ok(minted) => minted,
            Err(rejection) => {
                exchange.record.audit("mint", rejection.reason());
                return Err(rejection);
            }
        };
        let mut headers = Fields::new();
        headers.push(HeaderName::ContentType, b"application/json");
        headers.push(HeaderName::CacheControl, b"no-store");
        let body = format!(r#"{{"data":["{}"],"status":"success"}}"#, minted.token.expose());
        exchange.record.user = Some(minted.user);
        exchange.record.key = Some(minted.fingerprint);
        exchange.record.audit("mint", "granted");
        Ok(Answer::own(StatusCode::OK, headers, Bytes::from(body)))
    }

    async fn mint(&self, head: &Head, exchange: &Exchange) -> Result<Minted, Rejection> {
        screen::unambiguous(&head.fields)?;
        let is_json = |essence: &[u8]| essence.eq_ignore_ascii_case(b"application/json");
        screen::content_type(&head.fields, is_json, || "`application/json`".to_owned())?;
        let (client, timing) = (exchange.context().origin.address, &exchange.record.timing);
        self.auth.mint(bearer(&head.fields)?, client, timing).await.map_err(refusal)
    }
}

/// The token of `Authorization: Bearer <token>`; the scheme's letter case does not matter (RFC 9110 section 11.1).
fn bearer(fields: &Fields) -> Result<&str, Rejection> {
    let value = fields.get(HeaderName::Authorization).ok_or(Rejection::BearerMissing)?;
    let value = std::str::from_utf8(value).map_err(|_| Rejection::BearerInvalid)?;
    let (scheme, token) = value.split_once(' ').unwrap_or((value, ""));
    match token.trim_matches(' ') {
        _ if !scheme.eq_ignore_ascii_case("bearer") => Err(Rejection::BearerMissing),
        "" => Err(Rejection::BearerMissing),
        token => Ok(token),
    }
}

fn refusal(error: MintError) -> Rejection {
    match error {
        MintError::Bearer(BearerError::NotAuthentic) => Rejection::BearerInvalid,
        MintError::Bearer(BearerError::TooOld) => Rejection::BearerExpired,
        MintError::Bearer(BearerError::FromTheFuture) => Rejection::BearerFromTheFuture,
        MintError::Bearer(BearerError::NoCredentials) => Rejection::BearerWithoutCredentials,
        MintError::Bearer(BearerError::UserName) => Rejection::BearerUserName,
        MintError::StoreUnavailable => Rejection::TokenStoreUnavailable,
        MintError::VerifierUnavailable => Rejection::VerifierUnavailable,
        MintError::Busy => Rejection::VerifierBusy,
        MintError::Wrong => Rejection::CredentialsWrong,
        MintError::TooMany(TooMany(wait)) => Rejection::TooManyFailures(wait),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(value: &str) -> Result<String, &'static str> {
        let mut fields = Fields::new();
        fields.push(HeaderName::Authorization, value.as_bytes());
        bearer(&fields).map(str::to_owned).map_err(|rejection| rejection.reason())
    }

    #[test]
    fn the_scheme_is_bearer_in_any_case() {
        for value in ["Bearer abc=", "bearer abc=", "BEARER  abc=", "Bearer abc= "] {
            assert_eq!(of(value), Ok("abc=".into()), "{value}");
        }
        for value in ["Bearer", "Bearer ", "Basic abc=", "abc=", "Bearerabc="] {
            assert_eq!(of(value), Err("bearer_missing"), "{value}");
        }
        assert_eq!(bearer(&Fields::new()), Err(Rejection::BearerMissing));
    }
}
