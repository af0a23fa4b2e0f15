//! Lists and revokes tokens, and reports the use of salts. Access control is in `access`.
//!
//! ```text
//! GET  /tokens[?user=NAME][&limit=N]   {"tokens": [{user, fingerprint, minted, expires, last_used}], "more": false}
//! POST /tokens/revoke                  {"user": NAME} or {"fingerprint": HEX} or {"token": TOKEN} or {"all": true}
//! GET  /salts                          {"since_start": false, "salts": [{salt, last_used, users}]}
//! ```
//!
//! Times are in seconds since the Unix epoch.

use serde::Deserialize;
use serde_json::{Value, json};
use tracing::{info, warn};

use crate::admin::routes::{AdminError, Call, CallResult};
use crate::base::secret::Secret;
use crate::base::user_name::UserName;
use crate::observability::log::label;
use crate::store::{Fingerprint, Revocation, Timestamp, TokenFilter, TokenId, TokenSummary};

const DEFAULT_LIST_LIMIT: usize = 1000;

const MAX_LIST_LIMIT: usize = 100_000;

/// The body of a revocation: exactly one member.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RevocationRequest {
    user: Option<String>,
    fingerprint: Option<String>,
    token: Option<String>,
    all: Option<bool>,
}

/// Lists active tokens: those of one user or of all, up to a limit.
pub async fn list(call: Call<'_>) -> CallResult {
    let mut filter = TokenFilter { user: None, limit: DEFAULT_LIST_LIMIT };
    for (name, value) in call.parameters() {
        match name {
            "user" => filter.user = Some(parse_user(&value).map_err(AdminError::bad_request)?),
            "limit" => match value.parse() {
                Ok(limit @ 1..=MAX_LIST_LIMIT) => filter.limit = limit,
                _ => {
                    let message = format!("limit must be a number from 1 to {MAX_LIST_LIMIT}");
                    return Err(AdminError::bad_request(message));
                }
            },
            _ => return Err(AdminError::bad_request("unknown parameter; use user and limit")),
        }
    }
    let auth = &call.admin.snapshot.get().auth;
    let listing = auth.store().list(filter).await.map_err(|_| unavailable("Cannot list the tokens."))?;
    let tokens: Vec<_> = listing.tokens.iter().map(token_json).collect();
    Ok(json!({ "tokens": tokens, "more": listing.truncated }))
}

fn token_json(token: &TokenSummary) -> Value {
    json!({
        "user": token.user.as_str(),
        "fingerprint": token.fingerprint.to_string(),
        "minted": token.minted.unix_seconds(),
        "expires": token.expires.unix_seconds(),
        "last_used": token.last_used.unix_seconds(),
    })
}

/// Revokes the tokens that the body names.
pub async fn revoke(call: Call<'_>) -> CallResult {
    let revocation = parse_revocation(&call.body).map_err(AdminError::bad_request)?;
    let revoked = call.admin.snapshot.get().auth.store().revoke(revocation.clone()).await;
    let tokens = match &revocation {
        Revocation::All => "all".to_owned(),
        Revocation::User(user) => format!("user {user}"),
        Revocation::Token(fingerprint) => format!("token {fingerprint}"),
    };
    call.note(label!("tokens"), &tokens);
    call.note(label!("scope"), if revoked.is_ok() { "all replicas" } else { "this gateway" });
    if revoked.is_err() {
        warn!(what = tokens, "tokens revoked at this gateway only: the token store is unavailable");
        return Err(unavailable(
            "The tokens are revoked at this gateway. Other replicas learn of it when the store is available again, unless \
             this gateway stops before: then revoke them again.",
        ));
    }
    info!(what = tokens, "tokens revoked");
    Ok(json!({ "status": "success" }))
}

fn parse_revocation(body: &[u8]) -> Result<Revocation, String> {
    const FORM: &str =
        "the body must be one of {\"user\": …}, {\"fingerprint\": …}, {\"token\": …} and {\"all\": true}";
    // SECURITY: not the parser's message, which may quote a token.
    let request: RevocationRequest = serde_json::from_slice(body).map_err(|_| FORM.to_owned())?;
    match (request.user, request.fingerprint, request.token.map(Secret::new), request.all) {
        (Some(name), None, None, None) => parse_user(&name).map(Revocation::User),
        (None, Some(text), None, None) => Fingerprint::from_hex(&text)
            .map(Revocation::Token)
            .ok_or_else(|| "a fingerprint has 8 hex digits, as in the log and in the list".to_owned()),
        (None, None, Some(token), None) => {
            Ok(Revocation::Token(TokenId::from_token(token.expose().as_bytes()).fingerprint()))
        }
        (None, None, None, Some(true)) => Ok(Revocation::All),
        _ => Err(FORM.to_owned()),
    }
}

fn parse_user(name: &str) -> Result<UserName, String> {
    UserName::parse(name.as_bytes()).map_err(|error| error.to_string())
}

/// Lists the salts with their last use.
pub async fn list_salts(call: Call<'_>) -> CallResult {
    let auth = &call.admin.snapshot.get().auth;
    let store = auth.store();
    let usage =
        store.salt_usage(auth.salt_names()).await.map_err(|_| unavailable("The use of the salts is not known."))?;
    let salts: Vec<_> = auth
        .salt_names()
        .iter()
        .zip(usage)
        .map(|(salt, usage)| {
            let last_used = usage.last_used.map(Timestamp::unix_seconds);
            json!({ "salt": salt.to_string(), "last_used": last_used, "users": usage.users })
        })
        .collect();
    Ok(json!({ "since_start": store.is_memory_only(), "salts": salts }))
}

fn unavailable(consequence: &str) -> AdminError {
    AdminError::unavailable(format!("the token store is unavailable. {consequence}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_revocation_request_names_exactly_one_target() {
        let fingerprint = TokenId::from_token(b"tk_x").fingerprint();
        let alice = UserName::parse(b"alice").expect("valid");
        for (body, revocation) in [
            (r#"{"user":"alice"}"#.to_owned(), Revocation::User(alice)),
            (format!(r#"{{"fingerprint":"{fingerprint}"}}"#), Revocation::Token(fingerprint)),
            (r#"{"token":"tk_x"}"#.to_owned(), Revocation::Token(fingerprint)),
            (r#"{"all":true}"#.to_owned(), Revocation::All),
        ] {
            assert_eq!(parse_revocation(body.as_bytes()), Ok(revocation), "{body}");
        }
        for body in [
            "",
            "{}",
            "[]",
            r#"{"all":false}"#,
            r#"{"user":"alice","all":true}"#,
            r#"{"users":"alice"}"#,
            r#"{"user":"a:b"}"#,
            r#"{"fingerprint":"abc"}"#,
            r#"{"fingerprint":"+1234567"}"#,
            r#"{"token":1}"#,
        ] {
            assert!(parse_revocation(body.as_bytes()).is_err(), "{body}");
        }
        let error = parse_revocation(br#"{"token":"tk_secret","x":1}"#).expect_err("unknown");
        assert!(!error.contains("tk_secret"));
    }
}
