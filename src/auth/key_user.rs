//! Asks the backend for the user of a foreign key, by a statement of the operator. Does not decide whether the key is
//! valid.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, StatusCode, Uri};
use http_body_util::{BodyExt, Limited};
use serde_json::{Map, Value};
use tokio::time::timeout;
use tracing::warn;

use crate::auth::ApiKey;
use crate::base::clock;
use crate::base::user_name::UserName;
use crate::http::h1::request::write_request_start;
use crate::http::h1::response::write_header;
use crate::http::headers::HeaderName;
use crate::upstream::{OutgoingMessage, OutgoingRequest, RequestBody, UpstreamClient};

/// The ontology that exists in every Timbr.
const STATEMENT_PATH: &str = "/timbr/openapi/ontology/system_db/query";

/// Includes the response body.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(15);

/// Maximum size of the response.
const MAX_RESPONSE_BYTES: usize = 64 * 1024;

/// The statement of `tokens.foreign_user_query`.
#[derive(Clone, Debug)]
pub struct UserQuery(Arc<str>);

impl UserQuery {
    /// The statement that returns the name of a key's user.
    pub fn new(statement: &str) -> UserQuery {
        UserQuery(statement.into())
    }

    /// The user of a key that the backend has accepted; `None` if it is unknown.
    pub async fn user_of(&self, key: &ApiKey, upstream: &UpstreamClient) -> Option<UserName> {
        let fingerprint = key.id().fingerprint();
        let request = StatementRequest { statement: Bytes::copy_from_slice(self.0.as_bytes()), key: key.clone() };
        let query = async {
            let response = upstream.send(request, None, clock::now()).await.map_err(|error| error.to_string())?;
            if response.status != StatusCode::OK {
                return Err(format!("the response has status {}", response.status));
            }
            let body = Limited::new(response.body, MAX_RESPONSE_BYTES).collect().await.map_err(|e| e.to_string())?;
            user_in_rows(&body.to_bytes()).ok_or_else(|| "the response is not one row with a user name".to_owned())
        };
        let user = timeout(STATEMENT_TIMEOUT, query).await.unwrap_or_else(|_| Err("timeout".to_owned()));
        user.inspect_err(|why| warn!(key = %fingerprint, why, "cannot look up the user of a foreign key")).ok()
    }
}

/// The name in `[{"column": "name"}]`.
///
/// SECURITY: a response with several rows or columns does not say which one is the user.
fn user_in_rows(body: &[u8]) -> Option<UserName> {
    let rows: Vec<Map<String, Value>> = serde_json::from_slice(body).ok()?;
    let [row] = &rows[..] else { return None };
    let mut values = row.values();
    let (Some(Value::String(name)), None) = (values.next(), values.next()) else { return None };
    UserName::parse(name.as_bytes()).ok()
}

/// `POST /timbr/openapi/ontology/system_db/query` with the key.
struct StatementRequest {
    statement: Bytes,
    key: ApiKey,
}

impl OutgoingRequest for StatementRequest {
    fn into_message(self) -> OutgoingMessage {
        let mut head = Vec::new();
        write_request_start(&mut head, &Method::POST, &Uri::from_static(STATEMENT_PATH));
        write_header(&mut head, HeaderName::Host, b"");
        let host = head.len();
        write_header(&mut head, HeaderName::ContentType, b"application/text");
        write_header(&mut head, HeaderName::Accept, b"application/json");
        write_header(&mut head, HeaderName::XApiKey, self.key.expose());
        let body = RequestBody::received(self.statement);
        OutgoingMessage { method: Method::POST, head, host_offset: Some(host), body }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_response_must_be_one_name() {
        let user = |body: &str| user_in_rows(body.as_bytes()).map(|user| user.as_str().to_owned());
        assert_eq!(user(r#"[{"user": "alice"}]"#).as_deref(), Some("alice"));
        for body in [
            "",
            "[]",
            "{}",
            r#"[{"user": "alice"}, {"user": "bob"}]"#,
            r#"[{"user": "alice", "tenant": "acme"}]"#,
            r#"[{"user": 7}]"#,
            r#"[{"user": null}]"#,
            r#"[{"user": "a\nb"}]"#,
            r#"{"status": "error", "data": "no"}"#,
        ] {
            assert_eq!(user(body), None, "{body}");
        }
    }
}
