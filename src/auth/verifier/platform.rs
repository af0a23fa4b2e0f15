//! The platform says whether a password is right, and gives the user's own key: its login form is filled in (with its CSRF
//! token and session cookie, as Flask-AppBuilder has them), and the page with the user's token is opened.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, COOKIE, REFERER, SET_COOKIE};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use serde::Deserialize;
use tokio::sync::Mutex;
use tracing::{error, warn};
use zeroize::Zeroizing;

use crate::auth::bearer::Credentials;
use crate::auth::verifier::{Verified, VerifyError, html_form};
use crate::base::secret::Secret;
use crate::config::{Config, PlatformOptions};
use crate::outbound::http_client::Origin;
use crate::tls::{TlsError, upstream_tls};

/// How long it is taken for granted that the platform gives no token to strangers.
const CONTROL_INTERVAL: Duration = Duration::from_secs(300);

/// The platform.
#[derive(Clone)]
pub struct Platform(Arc<Inner>);

struct Inner {
    origin: Origin,
    options: PlatformOptions,
    scheme: &'static str,
    controlled: Mutex<Option<Instant>>,
}

/// Cookies of a session in which somebody is logged in.
///
/// SECURITY: whoever has them is that user. Kept in memory alone.
#[derive(Clone, Debug)]
pub struct Session(Secret);

/// `{"token": "tk_…"}`.
#[derive(Deserialize)]
struct Token {
    token: String,
}

impl Platform {
    /// As configured; without an address of its own, it is where the upstream is.
    pub fn new(config: &Config) -> Result<Platform, TlsError> {
        let options = config.platform.clone();
        let (url, origin) = match &options.url {
            Some(url) => {
                let ca_file = options.ca_file.as_deref();
                (url, Origin::new(url, ca_file, "platform.ca_file", options.timeout)?)
            }
            None => {
                let url = config.upstream.url();
                let tls = upstream_tls(&config.upstream)?.swap_remove(0);
                (url, Origin::with_tls(url, tls, options.timeout))
            }
        };
        let scheme = if url.tls { "https" } else { "http" };
        Ok(Platform(Arc::new(Inner { origin, options, scheme, controlled: Mutex::default() })))
    }

    /// Logs in, and gets the user's key.
    ///
    /// SECURITY: the one proof of a login is the key. What the platform says about the password itself (a redirect
    /// here or there, a page with an error) differs from version to version.
    pub async fn verify(&self, credentials: &Credentials) -> Result<Verified, VerifyError> {
        self.control().await?;
        let mut jar = Jar::default();
        let login = &self.0.options.login_path;
        let page = self.ask(Method::GET, login, &mut jar, Bytes::new()).await?;
        if page.status() != StatusCode::OK {
            return Err(unavailable(&format!("{login} was answered {}", page.status())));
        }
        let csrf = html_form::hidden_value(&String::from_utf8_lossy(page.body()), "csrf_token");
        let mut fields =
            vec![("username", credentials.user.as_str()), ("password", credentials.password.expose())];
        if let Some(csrf) = &csrf {
            fields.push(("csrf_token", csrf));
        }
        let filled = Bytes::from_owner(Zeroizing::new(html_form::encoded(&fields).into_bytes()));
        let answer = self.ask(Method::POST, login, &mut jar, filled).await?;
        match answer.status() {
            status if status.is_success() || status.is_redirection() => {}
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => return Err(VerifyError::Wrong),
            StatusCode::TOO_MANY_REQUESTS => return Err(VerifyError::Busy),
            other => return Err(unavailable(&format!("the form of {login} was answered {other}"))),
        }
        let key = self.key(&mut jar).await?;
        Ok(Verified { upstream_key: Some(key), session: Some(Session(jar.secret())) })
    }

    /// The user's key, as it is now. `Wrong`: the session has ended.
    pub async fn key_of(&self, session: &Session) -> Result<Secret, VerifyError> {
        self.key(&mut Jar::of(&session.0)).await
    }

    async fn key(&self, jar: &mut Jar) -> Result<Secret, VerifyError> {
        let path = &self.0.options.token_path;
        let answer = self.ask(Method::GET, path, jar, Bytes::new()).await?;
        match answer.status() {
            StatusCode::OK => match serde_json::from_slice::<Token>(answer.body()) {
                Ok(Token { token }) if super::is_key(&token) => Ok(Secret::new(token)),
                _ => Err(unavailable(&format!("{path} has no member `token`, or no key in it"))),
            },
            // To the form: nobody is logged in.
            status if status.is_redirection() => Err(VerifyError::Wrong),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(VerifyError::Wrong),
            other => Err(unavailable(&format!("{path} was answered {other}"))),
        }
    }

    /// SECURITY: where a stranger is given a token, getting one proves nothing. Asked now and then.
    async fn control(&self) -> Result<(), VerifyError> {
        let mut controlled = self.0.controlled.lock().await;
        if controlled.is_some_and(|at| at.elapsed() < CONTROL_INTERVAL) {
            return Ok(());
        }
        match self.key(&mut Jar::default()).await {
            Err(VerifyError::Wrong) => {
                *controlled = Some(Instant::now());
                Ok(())
            }
            Ok(_) => {
                let path = &self.0.options.token_path;
                error!(
                    path,
                    "the platform gives a token to who is not logged in, so that no password proves anything"
                );
                Err(VerifyError::Unavailable)
            }
            Err(error) => Err(error),
        }
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        jar: &mut Jar,
        body: Bytes,
    ) -> Result<Response<Bytes>, VerifyError> {
        let mut request = Request::new(Full::new(body));
        *request.uri_mut() = path.parse().expect("the configuration has checked it");
        let fields = request.headers_mut();
        fields.insert(ACCEPT, HeaderValue::from_static("application/json, text/html;q=0.9, */*;q=0.1"));
        if method == Method::POST {
            fields.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
            // Flask-WTF wants it over TLS.
            let from = format!("{}://{}{path}", self.0.scheme, self.0.origin.name());
            fields.extend(HeaderValue::from_str(&from).ok().map(|from| (REFERER, from)));
        }
        fields.extend(jar.field().map(|cookies| (COOKIE, cookies)));
        *request.method_mut() = method;
        let answer = self.0.origin.ask(request).await.map_err(|error| unavailable(&error.to_string()))?;
        jar.take(answer.headers());
        Ok(answer)
    }
}

fn unavailable(why: &str) -> VerifyError {
    warn!(why, "the platform did not say whether a password is right");
    VerifyError::Unavailable
}

/// Cookies by name. All are of one server and of one minute, so their attributes do not matter.
#[derive(Default)]
struct Jar(BTreeMap<String, String>);

impl Jar {
    fn of(secret: &Secret) -> Jar {
        Jar(secret.expose().split("; ").filter_map(pair).collect())
    }

    fn take(&mut self, fields: &HeaderMap) {
        for value in fields.get_all(SET_COOKIE) {
            let text = value.to_str().unwrap_or_default();
            self.0.extend(pair(text.split(';').next().unwrap_or_default()));
        }
    }

    fn secret(&self) -> Secret {
        let pairs: Vec<_> = self.0.iter().map(|(name, value)| format!("{name}={value}")).collect();
        Secret::new(pairs.join("; "))
    }

    fn field(&self) -> Option<HeaderValue> {
        let mut value = HeaderValue::from_str(self.secret().expose()).ok()?;
        value.set_sensitive(true);
        (!self.0.is_empty()).then_some(value)
    }
}

fn pair(text: &str) -> Option<(String, String)> {
    let (name, value) = text.trim().split_once('=')?;
    (!name.is_empty()).then(|| (name.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_jar_keeps_the_last_of_each_name() {
        let mut jar = Jar::default();
        let mut fields = HeaderMap::new();
        assert!(jar.field().is_none());
        for cookie in ["session=a; HttpOnly; Path=/", "other=x=y", "session=b; Path=/", "nonsense"] {
            fields.append(SET_COOKIE, HeaderValue::from_static(cookie));
        }
        jar.take(&fields);
        let field = jar.field().expect("cookies");
        assert_eq!(field, "other=x=y; session=b");
        assert!(field.is_sensitive());
        assert_eq!(Jar::of(&jar.secret()).0, jar.0);
    }
}
