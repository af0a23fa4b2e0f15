//! Requests that the gateway itself sends to the backend, with the credential of a client: statements, and checks of
//! keys. Knows no users.

use std::error::Error;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, StatusCode, Uri};
use http_body_util::{BodyExt, Limited};
use tokio::time::timeout;

use crate::auth::ApiKey;
use crate::auth::jwt::Jwt;
use crate::base::clock;
use crate::http::h1::request::write_request_start;
use crate::http::h1::response::write_header;
use crate::http::headers::HeaderName;
use crate::upstream::{OutgoingMessage, OutgoingRequest, RequestBody, UpstreamClient};

/// A documented, cheap endpoint that every valid key may use.
pub const CHECK_PATH: &str = "/timbr/api/get_ontologies/";

/// The ontology that exists in every Timbr.
const STATEMENT_PATH: &str = "/timbr/openapi/ontology/system_db/query";

/// Includes the response body.
const TIMEOUT: Duration = Duration::from_secs(15);

/// What proves the client to the backend.
#[derive(Clone)]
pub enum SystemCredential {
    /// A key that the backend has issued.
    Key(ApiKey),
    /// A JWT with the headers beside it.
    Jwt(Jwt),
}

/// Why the response is not usable.
#[derive(Debug, PartialEq, Eq)]
pub enum SystemQueryError {
    /// The backend rejects the credential.
    Rejected,
    /// Everything else, for the log.
    Failed(String),
}

/// Sends a statement to the ontology `system_db`, and returns the body of a response with status 200.
pub async fn query(
    statement: &str,
    credential: SystemCredential,
    upstream: &UpstreamClient,
) -> Result<Bytes, SystemQueryError> {
    /// Of one row.
    const MAX_RESPONSE_BYTES: usize = 64 * 1024;
    let body = RequestBody::received(Bytes::copy_from_slice(statement.as_bytes()));
    let (method, path, content_type) = (Method::POST, STATEMENT_PATH, "application/text");
    let request = SystemRequest { method, path, content_type, credential, body };
    request.send(upstream, MAX_RESPONSE_BYTES).await
}

/// Asks for the ontologies of a key, and returns the body of a response with status 200.
pub async fn request_ontologies(key: ApiKey, upstream: &UpstreamClient) -> Result<Bytes, SystemQueryError> {
    /// Of a list of all ontologies.
    const MAX_RESPONSE_BYTES: usize = 1024 * 1024;
    let (method, path, content_type) = (Method::GET, CHECK_PATH, "application/json");
    let credential = SystemCredential::Key(key);
    let request = SystemRequest { method, path, content_type, credential, body: RequestBody::empty() };
    request.send(upstream, MAX_RESPONSE_BYTES).await
}

/// A request of the gateway itself.
struct SystemRequest {
    method: Method,
    path: &'static str,
    content_type: &'static str,
    credential: SystemCredential,
    body: RequestBody,
}

impl SystemRequest {
    async fn send(self, upstream: &UpstreamClient, max_bytes: usize) -> Result<Bytes, SystemQueryError> {
        let failed = |why: &dyn ToString| SystemQueryError::Failed(why.to_string());
        let exchange = async {
            let response = upstream.send(self, None, clock::now()).await.map_err(|error| match error.source() {
                Some(cause) => failed(&format!("{error}: {cause}")),
                None => failed(&error),
            })?;
            check_status(response.status)?;
            let body = Limited::new(response.body, max_bytes).collect().await.map_err(|error| failed(&error))?;
            Ok(body.to_bytes())
        };
        timeout(TIMEOUT, exchange).await.unwrap_or_else(|_| Err(failed(&"timeout")))
    }
}

/// SECURITY: only 200 proves a credential. A platform redirects unknown users to its login page.
fn check_status(status: StatusCode) -> Result<(), SystemQueryError> {
    match status {
        StatusCode::OK => Ok(()),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(SystemQueryError::Rejected),
        other => Err(SystemQueryError::Failed(format!("the response has status {other}"))),
    }
}

impl OutgoingRequest for SystemRequest {
    fn into_message(self) -> Box<OutgoingMessage> {
        let mut head = Vec::new();
        write_request_start(&mut head, &self.method, &Uri::from_static(self.path));
        write_header(&mut head, HeaderName::Host, b"");
        let host = head.len();
        write_header(&mut head, HeaderName::ContentType, self.content_type.as_bytes());
        write_header(&mut head, HeaderName::Accept, b"application/json");
        match &self.credential {
            SystemCredential::Key(key) => write_header(&mut head, HeaderName::XApiKey, key.expose()),
            SystemCredential::Jwt(jwt) => {
                write_header(&mut head, HeaderName::XJwtToken, jwt.expose());
                jwt.headers().for_each(|(name, value)| write_header(&mut head, name, value.as_bytes()));
            }
        }
        Box::new(OutgoingMessage { method: self.method, head, host_offset: Some(host), body: self.body })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_status_200_accepts_a_key() {
        for status in [201, 302, 400, 404, 429, 500, 503] {
            let checked = check_status(StatusCode::from_u16(status).expect("valid"));
            assert!(matches!(checked, Err(SystemQueryError::Failed(_))), "{status}");
        }
        assert_eq!(check_status(StatusCode::OK), Ok(()));
        for status in [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN] {
            assert_eq!(check_status(status), Err(SystemQueryError::Rejected));
        }
    }
}
