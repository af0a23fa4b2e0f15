//! Verifies passwords at the platform's login form, with the CSRF token and session cookie of Flask-AppBuilder, and
//! fetches the user's own key from the token page. Knows nothing about the gateway's tokens.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, COOKIE, REFERER, SET_COOKIE};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use serde::Deserialize;
use tokio::sync::Mutex;
use tracing::error;
use zeroize::Zeroizing;

use crate::auth::ApiKey;
use crate::auth::bearer::Credentials;
use crate::auth::upstream_keys::sensitive_header_value;
use crate::auth::verifier::{VerifiedLogin, VerifyError, html_form, unavailable};
use crate::base::secret::Secret;
use crate::base::user_name::UserName;
use crate::config::options::PLATFORM;
use crate::config::{Config, PlatformOptions};
use crate::outbound::http_client::HttpClient;
use crate::tls::{TlsError, backend_tls};

/// The server in log messages.
const SERVER: &str = "the platform";

/// Validity of a successful check that anonymous requests get no token.
const ANONYMOUS_CHECK_INTERVAL: Duration = Duration::from_secs(300);

/// The platform as verifier.
pub struct Platform {
    origin: HttpClient,
    options: PlatformOptions,
    scheme: &'static str,
    anonymous_checked_at: Mutex<Option<Instant>>,
}

/// The cookies of a logged-in session.
///
/// SECURITY: a credential of the user. Stored only in memory.
#[derive(Clone, Debug)]
pub struct PlatformSession(Secret);

/// `{"token": "tk_…"}`.
#[derive(Deserialize)]
struct PlatformToken {
    token: String,
}

/// `{"username": "alice"}`, also inside of `{"result": …}`.
#[derive(Deserialize)]
struct PlatformUser {
    username: Option<String>,
    result: Option<PlatformUserResult>,
}

#[derive(Deserialize)]
struct PlatformUserResult {
    username: String,
}

impl Platform {
    /// Uses `platform.url`, or the first upstream URL if that is not set.
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
        Ok(Platform { origin, options, scheme, anonymous_checked_at: Mutex::default() })
    }

    /// Logs in and fetches the user's key.
    ///
    /// SECURITY: only the key proves a login. The response to the login form (a redirect or an error page) differs
    /// between versions.
    pub async fn verify(&self, credentials: &Credentials) -> Result<VerifiedLogin, VerifyError> {
        self.check_anonymous_rejected().await?;
        let mut jar = CookieJar::default();
        let page = self.fetch_login_page(&mut jar).await?;
        let login = &self.options.login_path;
        let csrf = html_form::hidden_field_value(&String::from_utf8_lossy(page.body()), "csrf_token");
        let mut fields = vec![("username", credentials.user.as_str()), ("password", credentials.password.expose())];
        if let Some(csrf) = &csrf {
            fields.push(("csrf_token", csrf));
        }
        let form = Bytes::from_owner(Zeroizing::new(html_form::urlencode_form(&fields).into_bytes()));
        let response = self.send(Method::POST, login, &mut jar, form).await?;
        match response.status() {
            status if status.is_success() || status.is_redirection() => {}
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => return Err(VerifyError::WrongCredentials),
            StatusCode::TOO_MANY_REQUESTS => return Err(VerifyError::Busy),
            other => {
                return Err(unavailable(SERVER, format!("the login form at {login} has status {other}")));
            }
        }
        let key = self.fetch_key(&mut jar).await?;
        let user = self.fetch_user(&mut jar).await?;
        Ok(VerifiedLogin {
            user,
            upstream_key: Some(key),
            session: Some(PlatformSession(jar.to_secret())),
            ..VerifiedLogin::default()
        })
    }

    /// Checks what needs no user: the login page, and that the token page returns no token without a login. The log has
    /// the cause of an error.
    pub async fn check(&self) -> Result<(), VerifyError> {
        self.check_anonymous_rejected().await?;
        self.fetch_login_page(&mut CookieJar::default()).await.map(drop)
    }

    async fn fetch_login_page(&self, jar: &mut CookieJar) -> Result<Response<Bytes>, VerifyError> {
        let path = &self.options.login_path;
        let page = self.send(Method::GET, path, jar, Bytes::new()).await?;
        match page.status() {
            StatusCode::OK => Ok(page),
            other => Err(unavailable(SERVER, format!("the login page {path} has status {other}"))),
        }
    }

    /// Fetches the name of the session's user, if there is a page for it.
    async fn fetch_user(&self, jar: &mut CookieJar) -> Result<Option<UserName>, VerifyError> {
        let Some(path) = &self.options.user_path else { return Ok(None) };
        let response = self.send(Method::GET, path, jar, Bytes::new()).await?;
        let page = serde_json::from_slice::<PlatformUser>(response.body()).ok();
        let name = page.filter(|_| response.status() == StatusCode::OK).and_then(|page| match page {
            PlatformUser { username: Some(name), result: None } => Some(name),
            PlatformUser { username: None, result: Some(PlatformUserResult { username }) } => Some(username),
            _ => None,
        });
        let user = name.and_then(|name| UserName::parse(name.as_bytes()).ok());
        match user {
            Some(user) => Ok(Some(user)),
            None => Err(unavailable(SERVER, format!("the response of {path} has no valid `username`"))),
        }
    }

    /// Fetches the user's current key. `WrongCredentials` means that the session has expired.
    pub async fn renew_key(&self, session: &PlatformSession) -> Result<Secret, VerifyError> {
        self.fetch_key(&mut CookieJar::from_secret(&session.0)).await
    }

    async fn fetch_key(&self, jar: &mut CookieJar) -> Result<Secret, VerifyError> {
        let path = &self.options.token_path;
        let response = self.send(Method::GET, path, jar, Bytes::new()).await?;
        match response.status() {
            StatusCode::OK => match serde_json::from_slice::<PlatformToken>(response.body()) {
                Ok(PlatformToken { token }) if ApiKey::is_valid(token.as_bytes()) => Ok(Secret::new(token)),
                _ => Err(unavailable(SERVER, format!("the response of {path} has no valid `token`"))),
            },
            // A redirect to the login form: the session is not logged in.
            status if status.is_redirection() => Err(VerifyError::WrongCredentials),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(VerifyError::WrongCredentials),
            other => Err(unavailable(SERVER, format!("the token page {path} has status {other}"))),
        }
    }

    /// Checks periodically that an anonymous request gets no token.
    ///
    /// SECURITY: otherwise a token would not prove a login.
    async fn check_anonymous_rejected(&self) -> Result<(), VerifyError> {
        let mut checked_at = self.anonymous_checked_at.lock().await;
        if checked_at.is_some_and(|at| at.elapsed() < ANONYMOUS_CHECK_INTERVAL) {
            return Ok(());
        }
        match self.fetch_key(&mut CookieJar::default()).await {
            Err(VerifyError::WrongCredentials) => {
                *checked_at = Some(Instant::now());
                Ok(())
            }
            Ok(_) => {
                let path = &self.options.token_path;
                error!(path, "the platform returns a token without a login, so passwords cannot be verified");
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
        let headers = request.headers_mut();
        headers.insert(ACCEPT, HeaderValue::from_static("application/json, text/html;q=0.9, */*;q=0.1"));
        if method == Method::POST {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
            // Flask-WTF requires it over TLS.
            let referer = format!("{}://{}{path}", self.scheme, self.origin.authority());
            headers.extend(HeaderValue::from_str(&referer).ok().map(|referer| (REFERER, referer)));
        }
        headers.extend(jar.cookie_header().map(|cookies| (COOKIE, cookies)));
        *request.method_mut() = method;
        let response = self.origin.send(request).await.map_err(|error| unavailable(SERVER, error))?;
        jar.store_cookies(response.headers());
        Ok(response)
    }
}

/// Cookies by name. The attributes are ignored: all cookies are of one server and used within a minute.
#[derive(Default)]
struct CookieJar(BTreeMap<String, String>);

impl CookieJar {
    fn from_secret(secret: &Secret) -> CookieJar {
        CookieJar(secret.expose().split("; ").filter_map(parse_cookie).collect())
    }

    fn store_cookies(&mut self, headers: &HeaderMap) {
        for value in headers.get_all(SET_COOKIE) {
            let text = value.to_str().unwrap_or_default();
            self.0.extend(parse_cookie(text.split(';').next().unwrap_or_default()));
        }
    }

    fn to_secret(&self) -> Secret {
        let pairs: Vec<_> = self.0.iter().map(|(name, value)| format!("{name}={value}")).collect();
        Secret::new(pairs.join("; "))
    }

    fn cookie_header(&self) -> Option<HeaderValue> {
        sensitive_header_value(&self.to_secret()).filter(|_| !self.0.is_empty())
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
    fn the_last_cookie_of_a_name_is_kept() {
        let mut jar = CookieJar::default();
        let mut headers = HeaderMap::new();
        assert!(jar.cookie_header().is_none());
        for cookie in ["session=a; HttpOnly; Path=/", "other=x=y", "session=b; Path=/", "nonsense"] {
            headers.append(SET_COOKIE, HeaderValue::from_static(cookie));
        }
        jar.store_cookies(&headers);
        let header = jar.cookie_header().expect("cookies");
        assert_eq!(header, "other=x=y; session=b");
        assert!(header.is_sensitive());
        assert_eq!(CookieJar::from_secret(&jar.to_secret()).0, jar.0);
    }
}
