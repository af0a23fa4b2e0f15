//! Lists and revokes tokens, and reports the use of salts. Access control is in `access`.
//!
//! ```text
//! GET  /tokens[?user=NAME][&limit=N]   {"tokens": [{user, groups, fingerprint, minted, expires, last_used}],
//!                                      "more": false}
//! POST /tokens/revoke                  {"user": NAME} or {"fingerprint": HEX} or {"token": TOKEN} or {"all": true};
//!                                      also {"dry_run": true} or, without "all", {"deny_seconds": N}
//!                                      {"status": "success", "revoked": N, "denied_until": T}
//! GET  /tokens/denied                  {"denied": [{kind, name, until}], "memory_only": false}
//! POST /tokens/allow                   {"user": NAME} or {"fingerprint": HEX} or {"token": TOKEN}
//!                                      {"status": "success", "was_denied": true}
//! GET  /salts                          {"since_start": false, "salts": [{salt, last_used, users}]}
//! ```
//!
//! Times are in seconds since the Unix epoch.

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use tracing::{info, warn};

use crate::admin::AdminContext;
use crate::admin::routes::{AdminError, Call, CallResult, report_scope};
use crate::base::secret::Secret;
use crate::base::user_name::UserName;
use crate::observability::log::label;
use crate::store::{
    ActiveDenial, DeniedSubject, Fingerprint, MAX_DENIAL, Revocation, Timestamp, TokenFilter, TokenId, TokenSummary,
};

const DEFAULT_LIST_LIMIT: usize = 1000;

const MAX_LIST_LIMIT: usize = 100_000;

/// The body of a revocation: exactly one of the first four members.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RevocationRequest {
    user: Option<String>,
    fingerprint: Option<String>,
    token: Option<String>,
    all: Option<bool>,
    /// Count, but change nothing.
    #[serde(default)]
    dry_run: bool,
    /// Also deny the user or the credential for so long; 0 ends that.
    deny_seconds: Option<u64>,
}

const REVOCATION_FORM: &str = "the body must be one of {\"user\": …}, {\"fingerprint\": …}, {\"token\": …} and \
                               {\"all\": true}, with an optional \"dry_run\" or, without \"all\", \"deny_seconds\"";

/// The body that ends a denial: exactly one member.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AllowRequest {
    user: Option<String>,
    fingerprint: Option<String>,
    token: Option<String>,
}

const ALLOW_FORM: &str = "the body must be one of {\"user\": …}, {\"fingerprint\": …} and {\"token\": …}";

/// What a request wants.
#[derive(Debug, PartialEq, Eq)]
struct RevocationPlan {
    revocation: Revocation,
    is_dry_run: bool,
    denial: Option<(DeniedSubject, Duration)>,
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
        "groups": token.groups.as_ref().map(|groups| groups.iter().collect::<Vec<_>>()),
        "fingerprint": token.fingerprint.to_string(),
        "minted": token.minted.unix_seconds(),
        "expires": token.expires.unix_seconds(),
        "last_used": token.last_used.unix_seconds(),
    })
}

/// Revokes the tokens that the body names, and returns the number of live tokens that this ended.
pub async fn revoke(call: Call<'_>) -> CallResult {
    let auth = &call.admin.snapshot.get().auth;
    let plan = parse_revocation(&call.body, |token| auth.jwt_verifier().credential_id(token));
    let RevocationPlan { revocation, is_dry_run, denial } = plan.map_err(AdminError::bad_request)?;
    let tokens = name_of(&revocation);
    call.note(label!("tokens"), &tokens);
    if is_dry_run {
        call.note(label!("scope"), &"none (dry run)");
        let count = auth.store().count_covered(&revocation).await;
        let count = count.map_err(|_| unavailable("Cannot count the tokens."))?;
        return Ok(json!({ "status": "success", "revoked": count, "dry_run": true }));
    }
    // SECURITY: the denial first, so that no new token is used in between.
    let denied = match denial {
        Some((subject, duration)) => {
            call.note(label!("denied_for"), &humantime::format_duration(duration));
            auth.store().deny(subject, duration).await.map(Some)
        }
        None => Ok(None),
    };
    let revoked = auth.store().revoke(revocation).await;
    match (revoked, denied) {
        (Ok(count), Ok(denied)) => {
            call.note(label!("scope"), &"all replicas");
            call.note(label!("revoked"), &count);
            info!(what = tokens, count, "tokens revoked");
            let mut document = json!({ "status": "success", "revoked": count });
            if let Some(until) = denied {
                document["denied_until"] = until.unix_seconds().into();
            }
            Ok(document)
        }
        _ => {
            call.note(label!("scope"), &"this gateway");
            warn!(what = tokens, "tokens revoked at this gateway only: the token store is unavailable");
            Err(unavailable(
                "The tokens are revoked at this gateway. Other replicas learn of it when the store is available again, \
                 unless this gateway stops before: then revoke them again.",
            ))
        }
    }
}

fn name_of(revocation: &Revocation) -> String {
    match revocation {
        Revocation::User(user) => format!("user {user}"),
        Revocation::Token(fingerprint) => format!("token {fingerprint}"),
        Revocation::All | Revocation::Deny(..) => "all".to_owned(),
    }
}

/// Whom to deny, besides revoking the tokens.
fn subject_of(revocation: &Revocation) -> Option<DeniedSubject> {
    match revocation {
        Revocation::User(user) => Some(DeniedSubject::user(user)),
        Revocation::Token(fingerprint) => Some(DeniedSubject::Credential(*fingerprint)),
        Revocation::All | Revocation::Deny(..) => None,
    }
}

/// Lists the users and credentials that are denied.
pub fn list_denied(admin: &AdminContext) -> Value {
    let snapshot = admin.snapshot.get();
    let store = snapshot.auth.store();
    let json = |denial: &ActiveDenial| json!({ "kind": denial.kind, "name": denial.name, "until": denial.until.unix_seconds() });
    json!({ "denied": store.denials().iter().map(json).collect::<Vec<_>>(), "memory_only": store.is_memory_only() })
}

/// Ends the denial of the user or the credential that the body names. Revokes nothing.
pub async fn allow(call: Call<'_>) -> CallResult {
    let auth = &call.admin.snapshot.get().auth;
    // SECURITY: not the parser's message, which may quote a token.
    let request = serde_json::from_slice(&call.body).map_err(|_| AdminError::bad_request(ALLOW_FORM))?;
    let AllowRequest { user, fingerprint, token } = request;
    let request = RevocationRequest { user, fingerprint, token, ..RevocationRequest::default() };
    let revocation = request.revocation(ALLOW_FORM, |token| auth.jwt_verifier().credential_id(token));
    let revocation = revocation.map_err(AdminError::bad_request)?;
    let subject = subject_of(&revocation).expect("it names a user or a credential");
    let name = name_of(&revocation);
    call.note(label!("tokens"), &name);
    let allowed = auth.store().allow(subject).await;
    let was_denied = report_scope(&call, allowed)?;
    if was_denied {
        info!(what = name, "a denial was ended by an operator");
    }
    Ok(json!({ "status": "success", "was_denied": was_denied }))
}

fn parse_revocation(body: &[u8], id_of: impl Fn(&[u8]) -> Option<TokenId>) -> Result<RevocationPlan, String> {
    let form = || REVOCATION_FORM.to_owned();
    // SECURITY: not the parser's message, which may quote a token.
    let request: RevocationRequest = serde_json::from_slice(body).map_err(|_| form())?;
    let (is_dry_run, denial) = (request.dry_run, request.deny_seconds.map(Duration::from_secs));
    let revocation = request.revocation(REVOCATION_FORM, id_of)?;
    let denial = match (denial, subject_of(&revocation)) {
        (None, _) => None,
        (Some(_), _) if is_dry_run => return Err(form()),
        (Some(duration), _) if duration > MAX_DENIAL => {
            return Err("deny_seconds (--deny-for) must be at most 30 days".to_owned());
        }
        (Some(duration), Some(subject)) => Some((subject, duration)),
        (Some(_), None) => return Err(form()),
    };
    Ok(RevocationPlan { revocation, is_dry_run, denial })
}

impl RevocationRequest {
    /// The tokens that it names. `form` is the error unless it names exactly one thing.
    fn revocation(self, form: &str, id_of: impl Fn(&[u8]) -> Option<TokenId>) -> Result<Revocation, String> {
        match (self.user, self.fingerprint, self.token.map(Secret::new), self.all) {
            (Some(name), None, None, None) => parse_user(&name).map(Revocation::User),
            (None, Some(text), None, None) => Fingerprint::from_hex(&text)
                .map(Revocation::Token)
                .ok_or_else(|| "a fingerprint has 8 hex digits, as in the log and in the list".to_owned()),
            (None, None, Some(token), None) => {
                let id = id_of(token.expose().as_bytes());
                id.map(|id| Revocation::Token(id.fingerprint())).ok_or_else(|| {
                    "the gateway accepts no encrypted JWT with this text; take the fingerprint from the access log (`key`)"
                        .to_owned()
                })
            }
            (None, None, None, Some(true)) => Ok(Revocation::All),
            _ => Err(form.to_owned()),
        }
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

    fn parse(body: &[u8]) -> Result<RevocationPlan, String> {
        parse_revocation(body, |token| Some(TokenId::from_token(token)))
    }

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
            let plan = RevocationPlan { revocation, is_dry_run: false, denial: None };
            assert_eq!(parse(body.as_bytes()), Ok(plan), "{body}");
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
            r#"{"all":true,"deny_seconds":5}"#,
            r#"{"user":"alice","deny_seconds":5,"dry_run":true}"#,
            r#"{"user":"alice","deny_seconds":2592001}"#,
        ] {
            assert!(parse(body.as_bytes()).is_err(), "{body}");
        }
        let error = parse(br#"{"token":"tk_secret","x":1}"#).expect_err("unknown");
        assert!(!error.contains("tk_secret"));
    }
}
