//! The API service behind says whether a password is right: its own `get_token` is asked, with the client's own bearer.

use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::Full;
use serde::Deserialize;
use tracing::warn;

use crate::auth::verifier::{Verified, VerifyError};
use crate::config::UpstreamOptions;
use crate::fetch::{FetchError, Origin};
use crate::secret::Secret;
use crate::tls::{TlsError, upstream_tls};

/// A service that takes longer to give a token is as good as down.
const PATIENCE: Duration = Duration::from_secs(15);

const GET_TOKEN: &str = "/timbr/api/get_token";

/// The API service behind, at each of its addresses.
#[derive(Clone)]
pub struct Delegate(Vec<Origin>);

/// `{"status": "success", "data": ["tk_…"]}`.
///
/// SECURITY: one token and no more. Of several, or of a member that stands twice, another reader might take another one.
#[derive(Deserialize)]
struct Envelope {
    status: String,
    data: [String; 1],
}

impl Delegate {
    /// The upstream, spoken to as always.
    pub fn new(upstream: &UpstreamOptions) -> Result<Delegate, TlsError> {
        let each = upstream.urls.iter().zip(upstream_tls(upstream)?);
        Ok(Delegate(each.map(|(url, tls)| Origin::with_tls(url, tls, PATIENCE)).collect()))
    }

    /// Asks one backend, and the next one where there is no connection.
    async fn ask(&self, request: Request<Full<Bytes>>) -> Result<Response<Bytes>, FetchError> {
        let (last, others) = self.0.split_last().expect("there is one backend at least");
        for origin in others {
            match origin.ask(request.clone()).await {
                Err(FetchError::Connect(..)) => {}
                answer => return answer,
            }
        }
        last.ask(request).await
    }

    /// The token that the service gives for this bearer.
    ///
    /// SECURITY: the bearer goes on as it came. One that was made anew here would let an old one in that the service
    /// itself refuses. Only a 200 with a token in it is a yes.
    pub async fn verify(&self, bearer: &str) -> Result<Verified, VerifyError> {
        let mut authorization =
            HeaderValue::from_str(&format!("Bearer {bearer}")).map_err(|_| VerifyError::Wrong)?;
        authorization.set_sensitive(true);
        let request = Request::post(GET_TOKEN)
            .header(CONTENT_TYPE, "application/json")
            .header(AUTHORIZATION, authorization)
            .body(Full::default())
            .expect("a path and three fields are a request");
        let unavailable = |why: String| {
            warn!(why, "the API service behind did not say whether a password is right");
            VerifyError::Unavailable
        };
        let answer = self.ask(request).await.map_err(|error| unavailable(error.to_string()))?;
        match answer.status() {
            StatusCode::OK => {}
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => return Err(VerifyError::Wrong),
            other => return Err(unavailable(format!("{GET_TOKEN} was answered {other}"))),
        }
        let envelope = serde_json::from_slice::<Envelope>(answer.body()).ok();
        let data = envelope.filter(|envelope| envelope.status == "success").map(|envelope| envelope.data);
        match data {
            Some([key]) if super::is_key(&key) => {
                Ok(Verified { upstream_key: Some(Secret::new(key)), session: None })
            }
            _ => Err(unavailable(format!("{GET_TOKEN} gave not exactly one token"))),
        }
    }
}
