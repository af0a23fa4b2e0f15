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

use crate::admin::access::{may_ask, may_change};
use crate::admin::commands::Answered;
use crate::admin::{Admin, Body, commands, rejections};
use crate::auth::Auth;
use crate::base::percent::decode_query_value;
use crate::base::secret::Secret;
use crate::base::user_name::UserName;
use crate::observability::log::{self, label};
use crate::store::{Filter, Fingerprint, Revocation, Stamp, TokenId, TokenLine};

/// Tokens that are shown where no limit is given.
const USUAL: usize = 1000;

/// No answer shows more.
const MOST: usize = 100_000;

/// A longer body asks for nothing that there is.
const MOST_BODY: usize = 16 * 1024;

/// What comes before a request's id.
const EXPLAIN: &str = "/explain/";

/// For that body.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// What operators can ask for here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
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
struct Order {
    user: Option<String>,
    fingerprint: Option<String>,
    token: Option<String>,
    all: Option<bool>,
}

/// Why an operator gets no answer.
pub type Refusal = (StatusCode, String);

impl Verb {
    /// The verb of a path, if it is one.
    pub fn of(path: &str) -> Option<Verb> {
        match path {
            "/tokens" => Some(Verb::List),
            "/tokens/revoke" => Some(Verb::Revoke),
            "/salts" => Some(Verb::Salts),
            "/refusals" => Some(Verb::Refusals),
            "/reload" => Some(Verb::Reload),
            "/drain" => Some(Verb::Drain),
            "/quit" => Some(Verb::Quit),
            "/log-level" => Some(Verb::LogLevel),
            path if path.starts_with(EXPLAIN) => Some(Verb::Explain),
            "/upstreams" => Some(Verb::Upstreams),
            _ => None,
        }
    }

    fn methods(self) -> &'static [Method] {
        match self {
            Verb::List | Verb::Salts | Verb::Upstreams | Verb::Refusals | Verb::Explain => &[Method::GET],
            Verb::Revoke | Verb::Reload | Verb::Drain | Verb::Quit => &[Method::POST],
            Verb::LogLevel => &[Method::GET, Method::PUT],
        }
    }

    /// Its name in the log.
    fn word(self) -> &'static str {
        match self {
            Verb::List => "tokens",
            Verb::Revoke => "revoke",
            Verb::Salts => "salts",
            Verb::Refusals => "refusals",
            Verb::Explain => "explain",
            Verb::Upstreams => "upstreams",
            Verb::Reload => "reload",
            Verb::Drain => "drain",
            Verb::Quit => "quit",
            Verb::LogLevel => "log-level",
        }
    }
}

/// Does what is asked, if who asks may.
pub async fn answer(
    verb: Verb,
    request: Request<Incoming>,
    peer: SocketAddr,
    admin: &Admin,
) -> Response<Body> {
    if let Err(refusal) = may_ask(&request, peer) {
        return refused(refusal);
    }
    let methods = verb.methods();
    if !methods.contains(request.method()) {
        let names = methods.iter().map(Method::as_str).collect::<Vec<_>>();
        let told = format!("this takes {}", names.join(" or "));
        let mut response = refused((StatusCode::METHOD_NOT_ALLOWED, told));
        let allow = HeaderValue::from_str(&names.join(", ")).expect("methods are words");
        response.headers_mut().insert(ALLOW, allow);
        return response;
    }
    if *request.method() == Method::GET {
        return answer_of(look(verb, &request, admin).await.map_err(Answered::from));
    }
    if let Err(refusal) = may_change(&request) {
        return refused(refusal);
    }
    let done = change(verb, request, admin).await;
    log::audit(|record| {
        record.text(label!("what"), verb.word());
        record.text(label!("decision"), if done.is_ok() { "done" } else { "failed" });
        record.text(label!("client"), &peer.ip().to_string());
    });
    answer_of(done)
}

async fn look(verb: Verb, request: &Request<Incoming>, admin: &Admin) -> Result<serde_json::Value, Refusal> {
    let query = request.uri().query().unwrap_or_default();
    match verb {
        Verb::List => list(query, &admin.auth.now()).await,
        Verb::Salts => salts(&admin.auth.now()).await,
        Verb::Refusals => rejections::list(query, &admin.refusals),
        Verb::Explain => rejections::explain(&request.uri().path()[EXPLAIN.len()..], &admin.refusals),
        Verb::Upstreams => Ok(json!(admin.backends.now().status())),
        Verb::LogLevel => commands::log_level(),
        Verb::Revoke | Verb::Reload | Verb::Drain | Verb::Quit => unreachable!("they take no GET"),
    }
}

async fn change(
    verb: Verb,
    request: Request<Incoming>,
    admin: &Admin,
) -> Result<serde_json::Value, Answered> {
    let body = body_of(request).await?;
    match verb {
        Verb::Revoke => Ok(revoke(&body, &admin.auth.now()).await?),
        Verb::Reload => commands::reload(&admin.control).await,
        Verb::Drain => Ok(commands::drain(&admin.control)),
        Verb::Quit => Ok(commands::quit(&admin.control)),
        Verb::LogLevel => Ok(commands::set_log_level(&body)?),
        Verb::List | Verb::Salts | Verb::Refusals | Verb::Explain | Verb::Upstreams => {
            unreachable!("they take GET alone")
        }
    }
}

fn answer_of(done: Result<serde_json::Value, Answered>) -> Response<Body> {
    match done {
        Ok(body) => json_of(StatusCode::OK, &body),
        Err(Answered::Refusal(refusal)) => refused(refusal),
        Err(Answered::Body(status, body)) => json_of(status, &body),
    }
}

async fn body_of(request: Request<Incoming>) -> Result<Bytes, Refusal> {
    let body = timeout(BODY_TIMEOUT, Limited::new(request.into_body(), MOST_BODY).collect()).await;
    let bad = || (StatusCode::BAD_REQUEST, "the body is too long, or did not come".to_owned());
    body.ok().and_then(Result::ok).map(http_body_util::Collected::to_bytes).ok_or_else(bad)
}

async fn list(query: &str, auth: &Auth) -> Result<serde_json::Value, Refusal> {
    let bad = |message: String| (StatusCode::BAD_REQUEST, message);
    let mut filter = Filter { user: None, most: USUAL };
    for (name, value) in
        query.split('&').filter(|pair| !pair.is_empty()).map(|p| p.split_once('=').unwrap_or((p, "")))
    {
        match name {
            "user" => filter.user = Some(user(&decode_query_value(value)).map_err(bad)?),
            "limit" => match value.parse() {
                Ok(most @ 1..=MOST) => filter.most = most,
                _ => return Err(bad(format!("limit is a number from 1 to {MOST}"))),
            },
            _ => return Err(bad("this takes user and limit".to_owned())),
        }
    }
    let listing = auth.store().list(filter).await.map_err(|_| unavailable("No tokens can be listed."))?;
    let lines: Vec<_> = listing.tokens.iter().map(line).collect();
    Ok(json!({ "tokens": lines, "more": listing.cut }))
}

fn line(token: &TokenLine) -> serde_json::Value {
    json!({
        "user": token.user.as_str(),
        "fingerprint": token.fingerprint.to_string(),
        "minted": token.minted.unix_seconds(),
        "expires": token.expires.unix_seconds(),
        "last_used": token.last_used.unix_seconds(),
    })
}

async fn revoke(body: &[u8], auth: &Auth) -> Result<serde_json::Value, Refusal> {
    let bad = |message: String| (StatusCode::BAD_REQUEST, message);
    let what = order(body).map_err(bad)?;
    let revoked = auth.store().revoke(what.clone()).await;
    let told = match &what {
        Revocation::All => "all".to_owned(),
        Revocation::User(user) => format!("user {user}"),
        Revocation::Token(fingerprint) => format!("token {fingerprint}"),
    };
    log::audit(|record| {
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
fn order(body: &[u8]) -> Result<Revocation, String> {
    const FORM: &str =
        "the body is one of {\"user\": …}, {\"fingerprint\": …}, {\"token\": …} and {\"all\": true}";
    // SECURITY: not the parser's own words, which may quote a token.
    let order: Order = serde_json::from_slice(body).map_err(|_| FORM.to_owned())?;
    match (order.user, order.fingerprint, order.token.map(Secret::new), order.all) {
        (Some(name), None, None, None) => user(&name).map(Revocation::User),
        (None, Some(text), None, None) => Fingerprint::from_hex(&text)
            .map(Revocation::Token)
            .ok_or_else(|| "a fingerprint has 8 hex digits, as in the log and in the list".to_owned()),
        (None, None, Some(token), None) => {
            Ok(Revocation::Token(TokenId::of(token.expose().as_bytes()).fingerprint()))
        }
        (None, None, None, Some(true)) => Ok(Revocation::All),
        _ => Err(FORM.to_owned()),
    }
}

fn user(name: &str) -> Result<UserName, String> {
    UserName::parse(name.as_bytes()).map_err(|error| error.to_string())
}

async fn salts(auth: &Auth) -> Result<serde_json::Value, Refusal> {
    let store = auth.store();
    let uses = store
        .salt_uses(auth.salt_numbers())
        .await
        .map_err(|_| unavailable("Nothing is known of the salts."))?;
    let salts: Vec<_> = auth
        .salts()
        .iter()
        .zip(uses)
        .map(|(salt, all)| json!({ "salt": salt, "last_used": all.last.map(Stamp::unix_seconds), "users": all.users }))
        .collect();
    Ok(json!({ "since_start": store.is_memory_alone(), "salts": salts }))
}

fn unavailable(what: &str) -> Refusal {
    (StatusCode::SERVICE_UNAVAILABLE, format!("the token store does not answer. {what}"))
}

fn refused((status, sentence): Refusal) -> Response<Body> {
    json_of(status, &json!({ "status": "error", "data": sentence }))
}

fn json_of(status: StatusCode, body: &serde_json::Value) -> Response<Body> {
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
    fn an_order_names_one_thing() {
        let fingerprint = TokenId::of(b"tk_x").fingerprint();
        let alice = UserName::parse(b"alice").expect("valid");
        for (body, meant) in [
            (r#"{"user":"alice"}"#.to_owned(), Revocation::User(alice)),
            (format!(r#"{{"fingerprint":"{fingerprint}"}}"#), Revocation::Token(fingerprint)),
            (r#"{"token":"tk_x"}"#.to_owned(), Revocation::Token(fingerprint)),
            (r#"{"all":true}"#.to_owned(), Revocation::All),
        ] {
            assert_eq!(order(body.as_bytes()), Ok(meant), "{body}");
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
            assert!(order(body.as_bytes()).is_err(), "{body}");
        }
        let error = order(br#"{"token":"tk_secret","x":1}"#).expect_err("unknown");
        assert!(!error.contains("tk_secret"));
    }
}
