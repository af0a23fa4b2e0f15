//! Tokens, salts, backends and refusals, for operators on this machine.
//!
//! ```text
//! GET  /tokens[?user=NAME][&limit=N]   {"tokens": [{user, fingerprint, minted, expires, last_used}], "more": false}
//! POST /tokens/revoke                  {"user": NAME} or {"fingerprint": HEX} or {"token": TOKEN} or {"all": true}
//! GET  /salts                          {"since_start": false, "salts": [{salt, last_used, users}]}
//! GET  /upstreams                      {"usable": true, "endpoints": [{authority, address, state, …}], "names": […]}
//! ```
//! GET  /refusals, /explain/ID          see `refusals`
//! POST /reload, /drain, /quit          see `orders`
//! GET and PUT /log-level               see `orders`
//!
//! Times are seconds since the Unix epoch.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Either, Full, Limited};
use hyper::body::Incoming;
use serde::Deserialize;
use serde_json::json;
use tokio::time::timeout;
use tracing::{info, warn};

use crate::admin::access::{authorize_change, authorize_read};
use crate::admin::commands::AdminCommandError;
use crate::admin::{AdminBody, AdminContext, commands, rejections};
use crate::auth::Auth;
use crate::base::percent::decode_query_value;
use crate::base::secret::Secret;
use crate::base::user_name::UserName;
use crate::observability::log::{self, label};
use crate::store::{Fingerprint, Revocation, Timestamp, TokenFilter, TokenId, TokenSummary};

/// Tokens that are shown where no limit is given.
const DEFAULT_LIST_LIMIT: usize = 1000;

/// No answer shows more.
const MAX_LIST_LIMIT: usize = 100_000;

/// A longer body asks for nothing that there is.
const MAX_BODY_SIZE: usize = 16 * 1024;

/// What comes before a request's id.
const EXPLAIN_PREFIX: &str = "/explain/";

/// For that body.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// What operators can ask for here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdminCommand {
    List,
    Revoke,
    Salts,
    Refusals,
    Explain,
    Upstreams,
    Reload,
    Drain,
    Quit,
    LogLevel,
}

/// What is to be revoked: one of these.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RevocationRequest {
    user: Option<String>,
    fingerprint: Option<String>,
    token: Option<String>,
    all: Option<bool>,
}

/// Why an operator gets no answer.
pub type AdminError = (StatusCode, String);

impl AdminCommand {
    /// The verb of a path, if it is one.
    pub fn from_path(path: &str) -> Option<AdminCommand> {
        match path {
            "/tokens" => Some(AdminCommand::List),
            "/tokens/revoke" => Some(AdminCommand::Revoke),
            "/salts" => Some(AdminCommand::Salts),
            "/refusals" => Some(AdminCommand::Refusals),
            "/reload" => Some(AdminCommand::Reload),
            "/drain" => Some(AdminCommand::Drain),
            "/quit" => Some(AdminCommand::Quit),
            "/log-level" => Some(AdminCommand::LogLevel),
            path if path.starts_with(EXPLAIN_PREFIX) => Some(AdminCommand::Explain),
            "/upstreams" => Some(AdminCommand::Upstreams),
            _ => None,
        }
    }

    fn methods(self) -> &'static [Method] {
        match self {
            AdminCommand::List
            | AdminCommand::Salts
            | AdminCommand::Upstreams
            | AdminCommand::Refusals
            | AdminCommand::Explain => &[Method::GET],
            AdminCommand::Revoke | AdminCommand::Reload | AdminCommand::Drain | AdminCommand::Quit => {
                &[Method::POST]
            }
            AdminCommand::LogLevel => &[Method::GET, Method::PUT],
        }
    }

    /// Its name in the log.
    fn name(self) -> &'static str {
        match self {
            AdminCommand::List => "tokens",
            AdminCommand::Revoke => "revoke",
            AdminCommand::Salts => "salts",
            AdminCommand::Refusals => "refusals",
            AdminCommand::Explain => "explain",
            AdminCommand::Upstreams => "upstreams",
            AdminCommand::Reload => "reload",
            AdminCommand::Drain => "drain",
            AdminCommand::Quit => "quit",
            AdminCommand::LogLevel => "log-level",
        }
    }
}

/// Does what is asked, if who asks may.
pub async fn respond(
    verb: AdminCommand,
    request: Request<Incoming>,
    peer: SocketAddr,
    admin: &AdminContext,
) -> Response<AdminBody> {
    if let Err(refusal) = authorize_read(&request, peer) {
        return error_response(refusal);
    }
    let methods = verb.methods();
    if !methods.contains(request.method()) {
        let names = methods.iter().map(Method::as_str).collect::<Vec<_>>();
        let told = format!("this takes {}", names.join(" or "));
        let mut response = error_response((StatusCode::METHOD_NOT_ALLOWED, told));
        let allow = HeaderValue::from_str(&names.join(", ")).expect("methods are words");
        response.headers_mut().insert(ALLOW, allow);
        return response;
    }
    if *request.method() == Method::GET {
        return command_response(read(verb, &request, admin).await.map_err(AdminCommandError::from));
    }
    if let Err(refusal) = authorize_change(&request) {
        return error_response(refusal);
    }
    let done = change(verb, request, admin).await;
    log::write_audit(|record| {
        record.text(label!("what"), verb.name());
        record.text(label!("decision"), if done.is_ok() { "done" } else { "failed" });
        record.text(label!("client"), &peer.ip().to_string());
    });
    command_response(done)
}

async fn read(
    verb: AdminCommand,
    request: &Request<Incoming>,
    admin: &AdminContext,
) -> Result<serde_json::Value, AdminError> {
    let query = request.uri().query().unwrap_or_default();
    match verb {
        AdminCommand::List => list_tokens(query, &admin.snapshot.get().auth).await,
        AdminCommand::Salts => list_salts(&admin.snapshot.get().auth).await,
        AdminCommand::Refusals => rejections::list(query, &admin.recent_rejections),
        AdminCommand::Explain => {
            rejections::explain(&request.uri().path()[EXPLAIN_PREFIX.len()..], &admin.recent_rejections)
        }
        AdminCommand::Upstreams => Ok(json!(admin.snapshot.get().backends.status())),
        AdminCommand::LogLevel => commands::log_level(),
        AdminCommand::Revoke | AdminCommand::Reload | AdminCommand::Drain | AdminCommand::Quit => {
            unreachable!("they take no GET")
        }
    }
}

async fn change(
    verb: AdminCommand,
    request: Request<Incoming>,
    admin: &AdminContext,
) -> Result<serde_json::Value, AdminCommandError> {
    let body = read_body(request).await?;
    match verb {
        AdminCommand::Revoke => Ok(revoke(&body, &admin.snapshot.get().auth).await?),
        AdminCommand::Reload => commands::reload(&admin.control).await,
        AdminCommand::Drain => Ok(commands::drain(&admin.control)),
        AdminCommand::Quit => Ok(commands::quit(&admin.control)),
        AdminCommand::LogLevel => Ok(commands::set_log_level(&body)?),
        AdminCommand::List
        | AdminCommand::Salts
        | AdminCommand::Refusals
        | AdminCommand::Explain
        | AdminCommand::Upstreams => {
            unreachable!("they take GET alone")
        }
    }
}

fn command_response(done: Result<serde_json::Value, AdminCommandError>) -> Response<AdminBody> {
    match done {
        Ok(body) => json_response(StatusCode::OK, &body),
        Err(AdminCommandError::Message(refusal)) => error_response(refusal),
        Err(AdminCommandError::Document(status, body)) => json_response(status, &body),
    }
}

async fn read_body(request: Request<Incoming>) -> Result<Bytes, AdminError> {
    let body = timeout(BODY_TIMEOUT, Limited::new(request.into_body(), MAX_BODY_SIZE).collect()).await;
    let bad = || (StatusCode::BAD_REQUEST, "the body is too long, or did not come".to_owned());
    body.ok().and_then(Result::ok).map(http_body_util::Collected::to_bytes).ok_or_else(bad)
}

async fn list_tokens(query: &str, auth: &Auth) -> Result<serde_json::Value, AdminError> {
    let bad = |message: String| (StatusCode::BAD_REQUEST, message);
    let mut filter = TokenFilter { user: None, limit: DEFAULT_LIST_LIMIT };
    for (name, value) in
        query.split('&').filter(|pair| !pair.is_empty()).map(|p| p.split_once('=').unwrap_or((p, "")))
    {
        match name {
            "user" => filter.user = Some(parse_user(&decode_query_value(value)).map_err(bad)?),
            "limit" => match value.parse() {
                Ok(most @ 1..=MAX_LIST_LIMIT) => filter.limit = most,
                _ => return Err(bad(format!("limit is a number from 1 to {MAX_LIST_LIMIT}"))),
            },
            _ => return Err(bad("this takes user and limit".to_owned())),
        }
    }
    let listing = auth.store().list(filter).await.map_err(|_| unavailable("No tokens can be listed."))?;
    let lines: Vec<_> = listing.tokens.iter().map(token_json).collect();
    Ok(json!({ "tokens": lines, "more": listing.truncated }))
}

fn token_json(token: &TokenSummary) -> serde_json::Value {
    json!({
        "user": token.user.as_str(),
        "fingerprint": token.fingerprint.to_string(),
        "minted": token.minted.unix_seconds(),
        "expires": token.expires.unix_seconds(),
        "last_used": token.last_used.unix_seconds(),
    })
}

async fn revoke(body: &[u8], auth: &Auth) -> Result<serde_json::Value, AdminError> {
    let bad = |message: String| (StatusCode::BAD_REQUEST, message);
    let what = parse_revocation(body).map_err(bad)?;
    let revoked = auth.store().revoke(what.clone()).await;
    let told = match &what {
        Revocation::All => "all".to_owned(),
        Revocation::User(user) => format!("user {user}"),
        Revocation::Token(fingerprint) => format!("token {fingerprint}"),
    };
    log::write_audit(|record| {
        record.text(label!("what"), "revocation");
        record.text(label!("decision"), if revoked.is_ok() { "done" } else { "done here only" });
        record.text(label!("tokens"), &told);
    });
    if revoked.is_err() {
        warn!(what = told, "tokens were revoked here, but the token store could not be told");
        return Err(unavailable(
            "They have ended at this gateway. Other replicas hear of it when the store answers again, unless this gateway \
             ends before: revoke them again then.",
        ));
    }
    info!(what = told, "tokens were revoked");
    Ok(json!({ "status": "success" }))
}

/// The one thing that the body names.
fn parse_revocation(body: &[u8]) -> Result<Revocation, String> {
    const FORM: &str =
        "the body is one of {\"user\": …}, {\"fingerprint\": …}, {\"token\": …} and {\"all\": true}";
    // SECURITY: not the parser's own words, which may quote a token.
    let order: RevocationRequest = serde_json::from_slice(body).map_err(|_| FORM.to_owned())?;
    match (order.user, order.fingerprint, order.token.map(Secret::new), order.all) {
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

async fn list_salts(auth: &Auth) -> Result<serde_json::Value, AdminError> {
    let store = auth.store();
    let uses =
        store.salt_usage(auth.salt_ids()).await.map_err(|_| unavailable("Nothing is known of the salts."))?;
    let salts: Vec<_> = auth
        .salt_names()
        .iter()
        .zip(uses)
        .map(|(salt, all)| json!({ "salt": salt, "last_used": all.last_used.map(Timestamp::unix_seconds), "users": all.users }))
        .collect();
    Ok(json!({ "since_start": store.is_memory_only(), "salts": salts }))
}

fn unavailable(what: &str) -> AdminError {
    (StatusCode::SERVICE_UNAVAILABLE, format!("the token store does not answer. {what}"))
}

fn error_response((status, sentence): AdminError) -> Response<AdminBody> {
    json_response(status, &json!({ "status": "error", "data": sentence }))
}

fn json_response(status: StatusCode, body: &serde_json::Value) -> Response<AdminBody> {
    let mut response = Response::new(Either::Left(Full::new(Bytes::from(format!("{body}\n")))));
    *response.status_mut() = status;
    let fields = response.headers_mut();
    fields.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    fields.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_revocation_request_names_exactly_one_target() {
        let fingerprint = TokenId::from_token(b"tk_x").fingerprint();
        let alice = UserName::parse(b"alice").expect("valid");
        for (body, meant) in [
            (r#"{"user":"alice"}"#.to_owned(), Revocation::User(alice)),
            (format!(r#"{{"fingerprint":"{fingerprint}"}}"#), Revocation::Token(fingerprint)),
            (r#"{"token":"tk_x"}"#.to_owned(), Revocation::Token(fingerprint)),
            (r#"{"all":true}"#.to_owned(), Revocation::All),
        ] {
            assert_eq!(parse_revocation(body.as_bytes()), Ok(meant), "{body}");
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
