//! What a client receives that sends the statement `SHOW TOKEN`: `tokens.show_token`. It reads the body of the request,
//! and forwards nothing.

use bytes::Bytes;

use crate::auth::{ApiKey, ClientCredential, Identity};
use crate::config::ShowTokenPolicy;
use crate::gateway::Gateway;
use crate::gateway::authorize::StatementSource;
use crate::gateway::exchange::Exchange;
use crate::gateway::get_token::mint_rejection;
use crate::gateway::rejection::Rejection;
use crate::gateway::respond::GatewayResponse;
use crate::gateway::screen::Screened;
use crate::http::statement::{StatementFormat, TokenRequest};

/// A request whose statement decides whether it is forwarded.
pub struct ShowTokenCheck {
    policy: ShowTokenPolicy,
    source: StatementSource,
    /// The key that the client has sent.
    own_key: Option<ApiKey>,
}

impl ShowTokenCheck {
    /// `None` if the request is forwarded in any case.
    pub fn for_request(
        policy: ShowTokenPolicy,
        screened: &Screened,
        has_content: bool,
        identity: &Identity,
    ) -> Option<ShowTokenCheck> {
        // Without a credential, the backend has no user whose key it could return.
        if policy == ShowTokenPolicy::Backend || !has_content || identity.is_unauthenticated() {
            return None;
        }
        let own_key = match screened.credential() {
            ClientCredential::Key(key) => Some(key.clone()),
            ClientCredential::Basic(basic) => Some(basic.key().clone()),
            _ => None,
        };
        Some(ShowTokenCheck { policy, source: StatementSource::of_request(screened)?, own_key })
    }
}

impl Gateway {
    /// Responds to a request for the user's key; `None` for all other requests. `body` is `None` if it is larger than
    /// `limits.buffer`.
    ///
    /// SECURITY: a statement that cannot be read is rejected: it may be that one. No response contains a key that the
    /// client did not send.
    pub(super) async fn show_token(
        &self,
        check: ShowTokenCheck,
        body: Option<Bytes>,
        identity: &Identity,
        exchange: &mut Exchange,
    ) -> Result<Option<GatewayResponse>, Rejection> {
        let ShowTokenCheck { policy, source, own_key } = check;
        let format = source.format;
        let readable = source.plain_text(body.as_deref());
        let request = readable.map_or(TokenRequest::Possible, |body| TokenRequest::read(format, body));
        let is_minting = policy == ShowTokenPolicy::Mint && identity.impersonated_user().is_none();
        let token = match (request, format) {
            (TokenRequest::No, _) => return Ok(None),
            (TokenRequest::Certain, StatementFormat::Sql | StatementFormat::Json) if is_minting => match own_key {
                Some(key) => Some(String::from_utf8_lossy(key.expose()).into_owned()),
                None => self.token_for_jwt(identity, exchange).await?,
            },
            _ => None,
        };
        let Some(token) = token else {
            exchange.record.audit("show_token", "denied");
            return Err(Rejection::ShowTokenDenied);
        };
        let rows = serde_json::json!([{ "token": token }]);
        let body = match format {
            StatementFormat::Json => serde_json::json!({ "data": rows, "status": "success" }),
            _ => rows,
        };
        Ok(Some(GatewayResponse::json(body.to_string())))
    }

    async fn token_for_jwt(&self, identity: &Identity, exchange: &mut Exchange) -> Result<Option<String>, Rejection> {
        let (client, timing) = (exchange.context().origin.address, &exchange.record.timing);
        let minted = self.auth.mint_for_jwt(identity, client, timing).await;
        let minted = minted.map_err(|error| mint_rejection(error, self.auth.store()))?;
        let Some(minted) = minted else { return Ok(None) };
        self.reject_denied_login(&minted)?;
        exchange.record.key = Some(minted.id.fingerprint());
        // SECURITY: the token does not leave the gateway without a line about it, if the audit log is required.
        exchange.record.audit_login().await.map_err(|_| Rejection::AuditUnavailable)?;
        Ok(Some(minted.token.expose().to_owned()))
    }
}
