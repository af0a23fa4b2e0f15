//! A request with a key of the user's own, which the backend may refuse although the user's token lives.

use std::time::Instant;

use http::StatusCode;

use crate::auth::Identity;
use crate::auth::upstream_keys::Renewal;
use crate::base::clock;
use crate::gateway::access_log::AccessLine;
use crate::gateway::rejection::Rejection;
use crate::gateway::rewrite::UpstreamRequest;
use crate::gateway::{Gateway, rejection_of};
use crate::upstream::Response;

impl Gateway {
    /// Sends the request, and once more with another key if the backend refuses the one that the user's token stands for
    /// and the platform has a new one. A refusal has carried nothing out, so sending twice does no harm.
    pub(super) async fn send_renewing(
        &self,
        mut request: UpstreamRequest,
        asked: Instant,
        identity: &Identity,
        line: &AccessLine,
    ) -> Result<Response, Rejection> {
        let spare = request.spare();
        let response =
            self.upstream.send(request, asked).await.map_err(|error| rejection_of(&error, line))?;
        if response.status != StatusCode::UNAUTHORIZED {
            return Ok(response);
        }
        match self.auth.renew(identity).await {
            Some(Renewal::Key(key)) => {
                let again = spare.with_key(&key).ok_or(Rejection::UpstreamKeyRenewed)?;
                self.upstream.send(again, clock::now()).await.map_err(|error| rejection_of(&error, line))
            }
            Some(Renewal::Ended) => Err(Rejection::TokenExpired),
            Some(Renewal::Unavailable) => Err(Rejection::VerifierUnavailable),
            Some(Renewal::Same) | None => Ok(response),
        }
    }
}
