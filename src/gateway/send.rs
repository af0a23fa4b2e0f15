//! Sends a rewritten request to the backend, and once more with a renewed key where the backend rejects the user's own.
//! It chooses neither endpoints nor connections; `upstream` does.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::StatusCode;
use tokio::time::timeout;
use tracing::warn;

use crate::admission::RequestPermit;
use crate::auth::upstream_keys::Renewal;
use crate::auth::{Auth, Identity};
use crate::base::clock;
use crate::gateway::access_record::UpstreamEnd;
use crate::gateway::exchange::Exchange;
use crate::gateway::padded_body::{PaddedBody, PendingExchange};
use crate::gateway::rejection::Rejection;
use crate::gateway::respond::GatewayResponse;
use crate::gateway::rewrite::UpstreamRequest;
use crate::gateway::{Gateway, GatewayUpstream};
use crate::upstream::{OutgoingRequest, RequestBodyError, UpstreamClient, UpstreamError, UpstreamResponse};

/// What an exchange with the backend needs, besides the request.
struct Sender<'a> {
    auth: &'a Auth,
    /// The index of the upstream.
    upstream: usize,
    client: &'a UpstreamClient,
    /// Of the default upstream, which verifies keys.
    key_client: &'a UpstreamClient,
    identity: &'a Identity,
    /// Whether the backend receives a token of the gateway.
    is_gateway_token: bool,
    request_id: &'a [u8],
    sent_at: Instant,
}

impl Gateway {
    /// Sends the request, records how long the backend took, and makes the client's response of the backend's.
    pub(super) async fn send(
        &self,
        upstream: &GatewayUpstream,
        request: UpstreamRequest,
        identity: &Identity,
        exchange: &mut Exchange,
    ) -> Result<GatewayResponse, Rejection> {
        if let Some(interval) = exchange.padding {
            // Boxed, as it is rare.
            return Box::pin(self.send_with_padding(upstream, request, identity.clone(), interval, exchange)).await;
        }
        let (sent_at, permit) = (clock::now(), exchange.permit.take());
        let sender = Sender {
            auth: &self.auth,
            upstream: upstream.index,
            client: &upstream.client,
            key_client: &self.upstreams[0].client,
            identity,
            is_gateway_token: upstream.rewriter.is_gateway_token_forwarded(identity),
            request_id: exchange.context().request_id_bytes(),
            sent_at,
        };
        let result = sender.send(request, permit).await;
        exchange.record.record_upstream_end(sent_at, UpstreamEnd::from_result(&result));
        result.map(|response| GatewayResponse::from_upstream(response, &exchange.edits, &upstream.client))
    }

    /// Sends the request. If the backend does not respond within `interval`, the response to the client begins: see
    /// [`PaddedBody`].
    async fn send_with_padding(
        &self,
        upstream: &GatewayUpstream,
        request: UpstreamRequest,
        identity: Identity,
        interval: Duration,
        exchange: &mut Exchange,
    ) -> Result<GatewayResponse, Rejection> {
        let (sent_at, permit) = (clock::now(), exchange.permit.take());
        let (auth, index, client) = (Arc::clone(&self.auth), upstream.index, upstream.client.clone());
        let key_client = self.upstreams[0].client.clone();
        let is_gateway_token = upstream.rewriter.is_gateway_token_forwarded(&identity);
        let request_id = exchange.context().request_id_bytes().to_owned();
        let mut pending: PendingExchange = Box::pin(async move {
            let (auth, client, key_client, identity) = (&*auth, &client, &key_client, &identity);
            let request_id = &request_id[..];
            let upstream = index;
            let sender = Sender { auth, upstream, client, key_client, identity, is_gateway_token, request_id, sent_at };
            sender.send(request, permit).await
        });
        match timeout(interval, pending.as_mut()).await {
            Ok(result) => {
                exchange.record.record_upstream_end(sent_at, UpstreamEnd::from_result(&result));
                result.map(|response| GatewayResponse::from_upstream(response, &exchange.edits, &upstream.client))
            }
            Err(_) => {
                let recorder = self.rejection_recorder.clone();
                Ok(GatewayResponse::padded(PaddedBody::new(pending, interval, sent_at, recorder)))
            }
        }
    }
}

impl Sender<'_> {
    /// Sends the request, and once more if the backend rejects the user's key and there is a new one.
    async fn send(
        &self,
        request: UpstreamRequest,
        permit: Option<Box<RequestPermit>>,
    ) -> Result<UpstreamResponse, Rejection> {
        let response = match self.identity.renewable_key() {
            None => self.send_once(request, permit, self.sent_at).await?,
            // Boxed, as it is rare and large.
            Some(_) => Box::pin(self.send_with_renewal(request, permit)).await?,
        };
        if self.is_gateway_token {
            self.auth.token_acceptance().record(response.status);
        }
        Ok(response)
    }

    async fn send_once(
        &self,
        request: UpstreamRequest,
        permit: Option<Box<RequestPermit>>,
        sent_at: Instant,
    ) -> Result<UpstreamResponse, Rejection> {
        self.client.send(request, permit, sent_at).await.map_err(|error| rejection_for(&error, self.request_id))
    }

    /// Sends the request, and once more if the backend rejects the upstream key of the user's token and the platform
    /// has a new one. A request that was rejected with 401 was not executed, so the retry is safe.
    async fn send_with_renewal(
        &self,
        request: UpstreamRequest,
        permit: Option<Box<RequestPermit>>,
    ) -> Result<UpstreamResponse, Rejection> {
        let copy = request.copy_for_resend();
        let mut response = self.send_once(request, permit, self.sent_at).await?;
        if response.status != StatusCode::UNAUTHORIZED {
            return Ok(response);
        }
        match self.auth.renew_upstream_key(self.identity, self.key_client).await {
            Some(Renewal::NewKey(key)) => {
                let retry = copy.ok_or(Rejection::UpstreamKeyRenewed)?.with_key(&key);
                let mut permit = response.body.take_permit();
                drop(response);
                if let Some(permit) = &mut permit {
                    // A complete response has passed its slot on.
                    let affinity = retry.options().affinity;
                    permit.wait_for_slot(self.upstream, &self.client.endpoints(), affinity).await?;
                }
                self.send_once(retry, permit, clock::now()).await
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
fn rejection_for(error: &UpstreamError, request_id: &[u8]) -> Rejection {
    let rejection = match error {
        UpstreamError::Connect(_) => Rejection::UpstreamUnreachable,
        UpstreamError::ConnectTimeout => Rejection::UpstreamConnectTimeout,
        UpstreamError::Closed(_) => Rejection::UpstreamClosed,
        UpstreamError::Invalid(_) | UpstreamError::UnexpectedUpgrade => Rejection::UpstreamInvalid,
        UpstreamError::ResponseTimeout => Rejection::UpstreamTimeout,
        UpstreamError::RequestBody(error) => return error.into(),
        // The failure to connect is counted for its endpoint.
        UpstreamError::Queue(error) => return (*error).into(),
    };
    let cause = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
    let request_id = std::str::from_utf8(request_id).unwrap_or_default();
    warn!(request_id, cause, "{error}");
    rejection
}
