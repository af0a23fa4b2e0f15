//! `POST /timbr/api/get_token`: the one request that the gateway answers by itself.

use std::net::IpAddr;

use bytes::Bytes;

use crate::auth::bearer::BearerError;
use crate::auth::failure_limiter::TooMany;
use crate::auth::{Auth, MintError, Minted};
use crate::gateway::rejection::Rejection;
use crate::gateway::screen;
use crate::http::headers::{Fields, Head, HeaderName};
use crate::observability::auth_timing::Steps;

/// Fields and body of the answer: `{"data":["tk_…"],"status":"success"}`.
pub struct Given {
    /// Its fields.
    pub fields: Fields,
    /// Its body.
    pub body: Bytes,
    /// Whose token it is, for the access log.
    pub minted: Minted,
}

/// Opens the bearer, checks the credentials and gives the login's token.
pub async fn get_token(auth: &Auth, head: &Head, client: IpAddr, steps: &Steps) -> Result<Given, Rejection> {
    screen::unambiguous(&head.fields)?;
    let json = |essence: &[u8]| essence.eq_ignore_ascii_case(b"application/json");
    screen::content_type(&head.fields, json, || "`application/json`".to_owned())?;
    let minted = auth.mint(bearer(&head.fields)?, client, steps).await.map_err(refusal)?;

    let mut fields = Fields::new();
    fields.push(HeaderName::ContentType, b"application/json");
    fields.push(HeaderName::CacheControl, b"no-store");
    let body = format!(r#"{{"data":["{}"],"status":"success"}}"#, minted.token.expose());
    Ok(Given { fields, body: Bytes::from(body), minted })
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
