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
use crate::auth::verifier::{VerifiedLogin, VerifyError, html_form};
use crate::base::secret::Secret;
use crate::config::options::PLATFORM;
use crate::config::{Config, PlatformOptions};
use crate::outbound::http_client::HttpClient;
use crate::tls::{TlsError, backend_tls};

/// How long it is taken for granted that the platform gives no token to strangers.
const ANONYMOUS_CHECK_INTERVAL: Duration = Duration::from_secs(300);

/// The platform.
#[derive(Clone)]
pub struct Platform(Arc<PlatformClient>);

struct PlatformClient {
    origin: HttpClient,
    options: PlatformOptions,
    scheme: &'static str,
    anonymous_checked_at: Mutex<Option<Instant>>,
}

/// Cookies of a session in which somebody is logged in.
///
/// SECURITY: whoever has them is that user. Kept in memory alone.
#[derive(Clone, Debug)]
pub struct PlatformSession(Secret);

/// `{"token": "tk_…"}`.
#[derive(Deserialize)]
struct PlatformToken {
    token: String,
}

impl Platform {
    /// As configured; without an address of its own, it is where the upstream is.
    pub fn new(config: &Config) -> Result<Platform, TlsError> {
        let options = config.platform.clone();
        let (url, origin) = match &options.url {
            Some(url) => {
                let ca_file = options.ca_file.as_deref();
                (url, HttpClient::new(url, ca_file, PLATFORM.ca_file.key, options.timeout)?)
            }
            None => {
                let url = config.upstream.url();
                let tls = backend_tls(&config.upstream)?.swap_remove(0);
                (url, HttpClient::with_tls(url, tls, options.timeout))
            }
        };
        let scheme = if url.tls { "https" } else { "http" };
        Ok(Platform(Arc::new(PlatformClient {
            origin,
            options,
            scheme,
            anonymous_checked_at: Mutex::default(),
        })))
    }

    /// Logs in, and gets the user's key.
    ///
    /// SECURITY: the one proof of a login is the key. What the platform says about the password itself (a redirect
    /// here or there, a page with an error) differs from version to version.
    pub async fn verify(&self, credentials: &Credentials) -> Result<VerifiedLogin, VerifyError> {
        self.check_anonymous_rejected().await?;
        let mut jar = CookieJar::default();
        let login = &self.0.options.login_path;
        let page = self.send(Method::GET, login, &mut jar, Bytes::new()).await?;
        if page.status() != StatusCode::OK {
            return Err(unavailable(&format!("{login} was answered {}", page.status())));
        }
        let csrf = html_form::hidden_field_value(&String::from_utf8_lossy(page.body()), "csrf_token");
        let mut fields =
            vec![("username", credentials.user.as_str()), ("password", credentials.password.expose())];
        if let Some(csrf) = &csrf {
            fields.push(("csrf_token", csrf));
        }
        let filled = Bytes::from_owner(Zeroizing::new(html_form::urlencode_form(&fields).into_bytes()));
        let answer = self.send(Method::POST, login, &mut jar, filled).await?;
        match answer.status() {
            status if status.is_success() || status.is_redirection() => {}
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => return Err(VerifyError::WrongCredentials),
            StatusCode::TOO_MANY_REQUESTS => return Err(VerifyError::Busy),
            other => return Err(unavailable(&format!("the form of {login} was answered {other}"))),
        }
        let key = self.fetch_key(&mut jar).await?;
        Ok(VerifiedLogin { upstream_key: Some(key), session: Some(PlatformSession(jar.to_secret())) })
    }

    /// The user's key, as it is now. `Wrong`: the session has ended.
    pub async fn renew_key(&self, session: &PlatformSession) -> Result<Secret, VerifyError> {
        self.fetch_key(&mut CookieJar::from_secret(&session.0)).await
    }

    async fn fetch_key(&self, jar: &mut CookieJar) -> Result<Secret, VerifyError> {
        let path = &self.0.options.token_path;
        let answer = self.send(Method::GET, path, jar, Bytes::new()).await?;
        match answer.status() {
            StatusCode::OK => match serde_json::from_slice::<PlatformToken>(answer.body()) {
                Ok(PlatformToken { token }) if super::is_valid_key(&token) => Ok(Secret::new(token)),
                _ => Err(unavailable(&format!("{path} has no member `token`, or no key in it"))),
            },
            // To the form: nobody is logged in.
            status if status.is_redirection() => Err(VerifyError::WrongCredentials),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(VerifyError::WrongCredentials),
            other => Err(unavailable(&format!("{path} was answered {other}"))),
        }
    }

    /// SECURITY: where a stranger is given a token, getting one proves nothing. Asked now and then.
    async fn check_anonymous_rejected(&self) -> Result<(), VerifyError> {
        let mut controlled = self.0.anonymous_checked_at.lock().await;
        if controlled.is_some_and(|at| at.elapsed() < ANONYMOUS_CHECK_INTERVAL) {
            return Ok(());
        }
        match self.fetch_key(&mut CookieJar::default()).await {
            Err(VerifyError::WrongCredentials) => {
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

    async fn send(
        &self,
        method: Method,
        path: &str,
        jar: &mut CookieJar,
        body: Bytes,
    ) -> Result<Response<Bytes>, VerifyError> {
        let mut request = Request::new(Full::new(body));
        *request.uri_mut() = path.parse().expect("the configuration has checked it");
        let fields = request.headers_mut();
        fields.insert(ACCEPT, HeaderValue::from_static("application/json, text/html;q=0.9, */*;q=0.1"));
        if method == Method::POST {
            fields.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
            // Flask-WTF wants it over TLS.
            let from = format!("{}://{}{path}", self.0.scheme, self.0.origin.authority());
            fields.extend(HeaderValue::from_str(&from).ok().map(|from| (REFERER, from)));
        }
        fields.extend(jar.cookie_header().map(|cookies| (COOKIE, cookies)));
        *request.method_mut() = method;
        let answer = self.0.origin.send(request).await.map_err(|error| unavailable(&error.to_string()))?;
        jar.store_cookies(answer.headers());
        Ok(answer)
    }
}

fn unavailable(why: &str) -> VerifyError {
    warn!(why, "the platform did not say whether a password is right");
    VerifyError::Unavailable
}

/// Cookies by name. All are of one server and of one minute, so their attributes do not matter.
#[derive(Default)]
struct CookieJar(BTreeMap<String, String>);

impl CookieJar {
    fn from_secret(secret: &Secret) -> CookieJar {
        CookieJar(secret.expose().split("; ").filter_map(parse_cookie).collect())
    }

    fn store_cookies(&mut self, fields: &HeaderMap) {
        for value in fields.get_all(SET_COOKIE) {
            let text = value.to_str().unwrap_or_default();
            self.0.extend(parse_cookie(text.split(';').next().unwrap_or_default()));
        }
    }

    fn to_secret(&self) -> Secret {
        let pairs: Vec<_> = self.0.iter().map(|(name, value)| format!("{name}={value}")).collect();
        Secret::new(pairs.join("; "))
    }

    fn cookie_header(&self) -> Option<HeaderValue> {
        let mut value = HeaderValue::from_str(self.to_secret().expose()).ok()?;
        value.set_sensitive(true);
        (!self.0.is_empty()).then_some(value)
    }
}

fn parse_cookie(text: &str) -> Option<(String, String)> {
    let (name, value) = text.trim().split_once('=')?;
    (!name.is_empty()).then(|| (name.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_jar_keeps_the_last_of_each_name() {
        let mut jar = CookieJar::default();
        let mut fields = HeaderMap::new();
        assert!(jar.cookie_header().is_none());
        for cookie in ["session=a; HttpOnly; Path=/", "other=x=y", "session=b; Path=/", "nonsense"] {
            fields.append(SET_COOKIE, HeaderValue::from_static(cookie));
        }
        jar.store_cookies(&fields);
        let field = jar.cookie_header().expect("cookies");
        assert_eq!(field, "other=x=y; session=b");
        assert!(field.is_sensitive());
        assert_eq!(CookieJar::from_secret(&jar.to_secret()).0, jar.0);
    }
}
