//! Verifies passwords at the `get_token` of the API service, with the client's own bearer. Never sees the password.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use serde::Deserialize;

use crate::auth::ApiKey;
use crate::auth::upstream_keys::sensitive_header_value;
use crate::auth::verifier::{VerifiedLogin, VerifyError, unavailable};
use crate::base::secret::Secret;
use crate::config::UpstreamOptions;
use crate::outbound::http_client::{FetchError, HttpClient};
use crate::tls::{TlsError, backend_tls};

/// Timeout for one `get_token` request.
const LOGIN_TIMEOUT: Duration = Duration::from_secs(15);

const GET_TOKEN_PATH: &str = "/timbr/api/get_token";

/// The backends share [`LOGIN_TIMEOUT`] for connecting, but each has at least this time.
const MIN_CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// The API service, with all its URLs.
pub struct Delegate {
    origins: Vec<HttpClient>,
    /// The index of the backend that accepted the last connection; it is tried first.
    preferred: AtomicUsize,
}

/// `{"status": "success", "data": ["tk_…"]}`.
///
/// SECURITY: exactly one token. With several tokens, or a duplicate member, different parsers could use different ones.
#[derive(Deserialize)]
struct GetTokenResponse {
    status: String,
    data: [String; 1],
}

impl Delegate {
    /// Uses the URLs and TLS options of the upstream.
    pub fn new(upstream: &UpstreamOptions) -> Result<Delegate, TlsError> {
        let count = u32::try_from(upstream.urls.len()).unwrap_or(u32::MAX);
        let share = (LOGIN_TIMEOUT / count).max(MIN_CONNECT_TIMEOUT);
        let connect_timeout = upstream.connect_timeout.min(share);
        let each = upstream.urls.iter().zip(backend_tls(upstream)?);
        let each =
            each.map(|(url, tls)| HttpClient::with_tls(url, tls, LOGIN_TIMEOUT).with_connect_timeout(connect_timeout));
        Ok(Delegate { origins: each.collect(), preferred: AtomicUsize::default() })
    }

    /// Sends the request to a backend, and to the next one if the connection fails.
    async fn send(&self, request: Request<Full<Bytes>>) -> Result<Response<Bytes>, FetchError> {
        let (first, count) = (self.preferred.load(Ordering::Relaxed), self.origins.len());
        let mut at = first;
        loop {
            let next = (at + 1) % count;
            match self.origins[at].send(request.clone()).await {
                Err(FetchError::Connect(..)) if next != first => at = next,
                result => {
                    if at != first && !matches!(result, Err(FetchError::Connect(..))) {
                        self.preferred.store(at, Ordering::Relaxed);
                    }
                    return result;
                }
            }
        }
    }

    /// Returns the token that the service issues for this bearer.
    ///
    /// SECURITY: the bearer is forwarded unchanged. A re-encrypted one would be accepted although the service may
    /// reject the original as too old. Only a 200 response with a token is accepted.
    pub async fn verify(&self, bearer: &str) -> Result<VerifiedLogin, VerifyError> {
        let authorization = Secret::new(format!("Bearer {bearer}"));
        let authorization = sensitive_header_value(&authorization).ok_or(VerifyError::WrongCredentials)?;
        let request = Request::post(GET_TOKEN_PATH)
            .header(CONTENT_TYPE, "application/json")
            .header(AUTHORIZATION, authorization)
            .body(Full::default())
            .expect("the path and the headers are valid");
        let unavailable = |why: String| unavailable("the API service", why);
        let response = self.send(request).await.map_err(|error| unavailable(error.to_string()))?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => return Err(VerifyError::WrongCredentials),
            other => return Err(unavailable(format!("the response of {GET_TOKEN_PATH} has status {other}"))),
        }
        let envelope = serde_json::from_slice::<GetTokenResponse>(response.body()).ok();
        let data = envelope.filter(|envelope| envelope.status == "success").map(|envelope| envelope.data);
        match data {
            Some([key]) if ApiKey::is_valid(key.as_bytes()) => {
                Ok(VerifiedLogin { upstream_key: Some(Secret::new(key)), ..VerifiedLogin::default() })
            }
            _ => Err(unavailable(format!("the response of {GET_TOKEN_PATH} does not contain exactly one token"))),
        }
    }
}
