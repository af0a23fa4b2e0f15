//! Tokens, salts, backends and refusals, for operators on this machine.
//!
//! ```text
//! GET  /tokens[?user=NAME][&limit=N]   {"tokens": [{user, fingerprint, minted, expires, last_used}], "more": false}
//! POST /tokens/revoke                  {"user": NAME} or {"fingerprint": HEX} or {"token": TOKEN} or {"all": true}
//! GET  /salts                          {"since_start": false, "salts": [{salt, last_used, users}]}
//! GET  /upstreams                      {"usable": true, "endpoints": [{authority, address, state, …}], "names": […]}
//! ```
//! GET  /refusals, /explain/ID          see `refusals`
//!
//! Times are seconds since the Unix epoch.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HOST};
use http::uri::Authority;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Either, Full, Limited};
use hyper::body::Incoming;
use serde::Deserialize;
use serde_json::json;
use tokio::time::timeout;
use tracing::{info, warn};

use crate::admin::{Admin, Body, refusals};
use crate::auth::Auth;
use crate::secret::Secret;
use crate::store::{Filter, Fingerprint, Revocation, Stamp, TokenId, TokenLine};
use crate::telemetry::{self, label};
use crate::user_name::UserName;

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
            path if path.starts_with(EXPLAIN) => Some(Verb::Explain),
            "/upstreams" => Some(Verb::Upstreams),
            _ => None,
        }
    }

    fn method(self) -> Method {
        match self {
            Verb::List | Verb::Salts | Verb::Upstreams | Verb::Refusals | Verb::Explain => Method::GET,
            Verb::Revoke => Method::POST,
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
    let Admin { auth, refusals, backends, .. } = admin;
    if let Err(refusal) = may_ask(&request, peer) {
        return refused(refusal);
    }
    if *request.method() != verb.method() {
        let mut response = refused((StatusCode::METHOD_NOT_ALLOWED, format!("this takes {}", verb.method())));
        let allow = HeaderValue::from_str(verb.method().as_str()).expect("a method is a word");
        response.headers_mut().insert(ALLOW, allow);
        return response;
    }
    let done = match verb {
        Verb::List => list(request.uri().query().unwrap_or_default(), auth).await,
        Verb::Revoke => revoke(request, auth).await,
        Verb::Salts => salts(auth).await,
        Verb::Refusals => refusals::list(request.uri().query().unwrap_or_default(), refusals),
        Verb::Explain => refusals::explain(&request.uri().path()[EXPLAIN.len()..], refusals),
        Verb::Upstreams => Ok(json!(backends.status())),
    };
    match done {
        Ok(body) => json_of(StatusCode::OK, &body),
        Err(refusal) => refused(refusal),
    }
}

/// SECURITY: from this machine alone, whatever the listener is bound to. The name that the request gives the host must be
/// this machine's too: a page in a browser here could have its own name resolve to the loopback address.
pub fn may_ask<T>(request: &Request<T>, peer: SocketAddr) -> Result<(), Refusal> {
    let from_here = peer.ip().to_canonical().is_loopback();
    let host = request.headers().get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let to_here = host.parse::<Authority>().is_ok_and(|host| {
        let name = host.host().trim_start_matches('[').trim_end_matches(']');
        name.eq_ignore_ascii_case("localhost") || name.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
    });
    if from_here && to_here {
        return Ok(());
    }
    Err((
        StatusCode::FORBIDDEN,
        "this is shown, and tokens are revoked, on the loopback address only, under its own name. From elsewhere: \
         `kubectl port-forward`, or `ssh -L`.".to_owned(),
    ))
}

async fn list(query: &str, auth: &Auth) -> Result<serde_json::Value, Refusal> {
    let bad = |message: String| (StatusCode::BAD_REQUEST, message);
    let mut filter = Filter { user: None, most: USUAL };
    for (name, value) in
        query.split('&').filter(|pair| !pair.is_empty()).map(|p| p.split_once('=').unwrap_or((p, "")))
    {
        match name {
            "user" => filter.user = Some(user(&unescaped(value)).map_err(bad)?),
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

async fn revoke(request: Request<Incoming>, auth: &Auth) -> Result<serde_json::Value, Refusal> {
    // SECURITY: a form of another site cannot send this type without asking first.
    let is_json = request.headers().get(CONTENT_TYPE).is_some_and(|value| value == "application/json");
    if !is_json {
        return Err((StatusCode::UNSUPPORTED_MEDIA_TYPE, "this takes application/json".to_owned()));
    }
    let body = timeout(BODY_TIMEOUT, Limited::new(request.into_body(), MOST_BODY).collect()).await;
    let bad = |message: &str| (StatusCode::BAD_REQUEST, message.to_owned());
    let Ok(Ok(body)) = body else { return Err(bad("the body is too long, or did not come")) };
    let what = order(&body.to_bytes()).map_err(|message| bad(&message))?;
    let revoked = auth.store().revoke(what.clone()).await;
    let told = match &what {
        Revocation::All => "all".to_owned(),
        Revocation::User(user) => format!("user {user}"),
        Revocation::Token(fingerprint) => format!("token {fingerprint}"),
    };
    telemetry::audit(|record| {
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
        .salt_uses(auth.salts().len())
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

/// A value of the query as it was meant; what is no escape stays as it is.
pub fn unescaped(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, behind)) = rest.split_first() {
        let digits = std::str::from_utf8(behind.get(..2).unwrap_or_default()).unwrap_or_default();
        match (first, u8::from_str_radix(digits, 16)) {
            (b'%', Ok(byte)) if digits.len() == 2 && !digits.starts_with('+') => {
                bytes.push(byte);
                rest = &behind[2..];
            }
            _ => {
                bytes.push(if first == b'+' { b' ' } else { first });
                rest = behind;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
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
    fn only_this_machine_may_ask_and_only_by_its_own_name() {
        let ask = |peer: &str, host: &str| {
            let request = Request::builder().header(HOST, host).body(()).expect("a request");
            may_ask(&request, SocketAddr::new(peer.parse().expect("an address"), 1)).is_ok()
        };
        for host in ["127.0.0.1:9180", "localhost", "LOCALHOST:1", "[::1]:9180", "127.1.2.3"] {
            assert!(ask("127.0.0.1", host) && ask("::1", host) && ask("::ffff:127.0.0.1", host), "{host}");
            assert!(!ask("192.0.2.1", host), "{host}");
        }
        for host in ["evil.example", "evil.example:9180", "", "10.0.0.1", "localhost.evil.example", "::1:1:"]
        {
            assert!(!ask("127.0.0.1", host), "{host}");
        }
    }

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

    #[test]
    fn escapes_of_a_query_are_undone() {
        for (text, meant) in
            [("a%20b", "a b"), ("a+b", "a b"), ("%61%", "a%"), ("%zz", "%zz"), ("%+1", "% 1"), ("", "")]
        {
            assert_eq!(unescaped(text), meant, "{text}");
        }
    }
}
