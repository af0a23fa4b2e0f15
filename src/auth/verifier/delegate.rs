//! The API service behind says whether a password is right: its own `get_token` is asked, with the client's own bearer.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::Full;
use serde::Deserialize;
use tracing::warn;

use crate::auth::verifier::{VerifiedLogin, VerifyError};
use crate::base::secret::Secret;
use crate::config::UpstreamOptions;
use crate::outbound::http_client::{FetchError, HttpClient};
use crate::tls::{TlsError, backend_tls};

/// A service that takes longer to give a token is as good as down.
const LOGIN_TIMEOUT: Duration = Duration::from_secs(15);

const GET_TOKEN_PATH: &str = "/timbr/api/get_token";

/// A connection has so long at least, however many backends share the time that there is.
const MIN_CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// The API service behind, at each of its addresses.
#[derive(Clone)]
pub struct Delegate {
    origins: Arc<[HttpClient]>,
    /// The one that took the last connection is asked first: others may be down.
    preferred: Arc<AtomicUsize>,
}

/// `{"status": "success", "data": ["tk_…"]}`.
///
/// SECURITY: one token and no more. Of several, or of a member that stands twice, another reader might take another one.
#[derive(Deserialize)]
struct GetTokenResponse {
    status: String,
    data: [String; 1],
}

impl Delegate {
    /// The upstream, spoken to as always.
    pub fn new(upstream: &UpstreamOptions) -> Result<Delegate, TlsError> {
        let count = u32::try_from(upstream.urls.len()).unwrap_or(u32::MAX);
        let share = (LOGIN_TIMEOUT / count).max(MIN_CONNECT_TIMEOUT);
        let connect_patience = upstream.connect_timeout.min(share);
        let each = upstream.urls.iter().zip(backend_tls(upstream)?);
        let each = each.map(|(url, tls)| {
            HttpClient::with_tls(url, tls, LOGIN_TIMEOUT).with_connect_timeout(connect_patience)
        });
        Ok(Delegate { origins: each.collect(), preferred: Arc::default() })
    }

    /// Asks one backend, and the next one where there is no connection.
    async fn send(&self, request: Request<Full<Bytes>>) -> Result<Response<Bytes>, FetchError> {
        let (first, count) = (self.preferred.load(Ordering::Relaxed), self.origins.len());
        let mut at = first;
        loop {
            let next = (at + 1) % count;
            match self.origins[at].send(request.clone()).await {
                Err(FetchError::Connect(..)) if next != first => at = next,
                answer => {
                    if at != first && !matches!(answer, Err(FetchError::Connect(..))) {
                        self.preferred.store(at, Ordering::Relaxed);
                    }
                    return answer;
                }
            }
        }
    }

    /// The token that the service gives for this bearer.
    ///
    /// SECURITY: the bearer goes on as it came. One that was made anew here would let an old one in that the service
    /// itself refuses. Only a 200 with a token in it is a yes.
    pub async fn verify(&self, bearer: &str) -> Result<VerifiedLogin, VerifyError> {
        let mut authorization =
            HeaderValue::from_str(&format!("Bearer {bearer}")).map_err(|_| VerifyError::WrongCredentials)?;
        authorization.set_sensitive(true);
        let request = Request::post(GET_TOKEN_PATH)
            .header(CONTENT_TYPE, "application/json")
            .header(AUTHORIZATION, authorization)
            .body(Full::default())
            .expect("a path and three fields are a request");
        let unavailable = |why: String| {
            warn!(why, "the API service behind did not say whether a password is right");
            VerifyError::Unavailable
        };
        let answer = self.send(request).await.map_err(|error| unavailable(error.to_string()))?;
        match answer.status() {
            StatusCode::OK => {}
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => return Err(VerifyError::WrongCredentials),
            other => return Err(unavailable(format!("{GET_TOKEN_PATH} was answered {other}"))),
        }
        let envelope = serde_json::from_slice::<GetTokenResponse>(answer.body()).ok();
        let data = envelope.filter(|envelope| envelope.status == "success").map(|envelope| envelope.data);
        match data {
            Some([key]) if super::is_valid_key(&key) => {
                Ok(VerifiedLogin { upstream_key: Some(Secret::new(key)), session: None })
            }
            _ => Err(unavailable(format!("{GET_TOKEN_PATH} gave not exactly one token"))),
        }
    }
}
