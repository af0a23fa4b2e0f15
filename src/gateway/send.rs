//! Sends a rewritten request to the backend, and once more with a renewed key where the backend rejects the user's own.
//! It chooses neither endpoints nor connections; `upstream` does.

use std::time::Instant;

use http::StatusCode;
use tracing::warn;

use crate::auth::Identity;
use crate::auth::upstream_keys::Renewal;
use crate::base::clock;
use crate::gateway::Gateway;
use crate::gateway::exchange::Exchange;
use crate::gateway::rejection::Rejection;
use crate::gateway::rewrite::UpstreamRequest;
use crate::upstream::{RequestBodyError, UpstreamClient, UpstreamError, UpstreamResponse};

impl Gateway {
    /// Sends the request and records how long the backend took.
    pub(super) async fn send(
        &self,
        client: &UpstreamClient,
        request: UpstreamRequest,
        identity: &Identity,
        exchange: &mut Exchange,
    ) -> Result<UpstreamResponse, Rejection> {
        let sent_at = clock::now();
        let result = match identity.renewable_key() {
            None => client
                .send(request, exchange.permit.take(), sent_at)
                .await
                .map_err(|error| rejection_for(&error, exchange)),
            // Boxed, as it is rare and large.
            Some(_) => Box::pin(self.send_with_renewal(client, request, sent_at, identity, exchange)).await,
        };
        match &result {
            Ok(_) => exchange.record.upstream_responded(sent_at),
            Err(_) => exchange.record.upstream_failed(sent_at),
        }
        result
    }

    /// Sends the request, and once more if the backend rejects the upstream key of the user's token and the platform
    /// has a new one. A request that was rejected with 401 was not executed, so the retry is safe.
    async fn send_with_renewal(
        &self,
        client: &UpstreamClient,
        request: UpstreamRequest,
        sent_at: Instant,
        identity: &Identity,
        exchange: &mut Exchange,
    ) -> Result<UpstreamResponse, Rejection> {
        let copy = request.copy_for_resend();
        let response = client.send(request, exchange.permit.take(), sent_at).await;
        let mut response = response.map_err(|error| rejection_for(&error, exchange))?;
        if response.status != StatusCode::UNAUTHORIZED {
            return Ok(response);
        }
        match self.auth.renew_upstream_key(identity, &self.upstreams[0].client).await {
            Some(Renewal::NewKey(key)) => {
                let retry = copy.with_key(&key).ok_or(Rejection::UpstreamKeyRenewed)?;
                let permit = response.body.take_permit();
                client.send(retry, permit, clock::now()).await.map_err(|error| rejection_for(&error, exchange))
            }
            Some(Renewal::TokenRevoked) => Err(Rejection::TokenRevoked),
            Some(Renewal::Unavailable) => Err(Rejection::VerifierUnavailable),
            Some(Renewal::Unchanged) | None => Ok(response),
        }
    }
}

impl From<&RequestBodyError> for Rejection {
    fn from(error: &RequestBodyError) -> Rejection {
        match error {
            RequestBodyError::Stalled => Rejection::RequestBodyStalled,
            RequestBodyError::TooLarge => Rejection::RequestBodyTooLarge,
            RequestBodyError::Broken(_) => Rejection::RequestBodyBroken,
        }
    }
}

/// The rejection for a failed exchange with the backend. The log gets the cause, the client does not.
fn rejection_for(error: &UpstreamError, exchange: &Exchange) -> Rejection {
    let rejection = match error {
        // Logged when the last endpoint was ejected, not for each request.
        UpstreamError::Unavailable => return Rejection::UpstreamUnavailable,
        UpstreamError::Connect(_) => Rejection::UpstreamUnreachable,
        UpstreamError::ConnectTimeout => Rejection::UpstreamConnectTimeout,
        UpstreamError::Closed(_) => Rejection::UpstreamClosed,
        UpstreamError::Invalid(_) | UpstreamError::UnexpectedUpgrade => Rejection::UpstreamInvalid,
        UpstreamError::ResponseTimeout => Rejection::UpstreamTimeout,
        UpstreamError::RequestBody(error) => return error.into(),
    };
    let cause = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
    warn!(request_id = exchange.context().request_id(), cause, "{error}");
    rejection
}
