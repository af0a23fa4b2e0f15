//! Asks the backend for the user of a foreign key, by a statement of the operator. Does not decide whether the key is
//! valid.

use serde_json::{Map, Value};
use tracing::warn;

use crate::auth::ApiKey;
use crate::auth::system_query::{SystemCredential, SystemQueryError, query};
use crate::base::user_name::UserName;
use crate::upstream::UpstreamClient;

/// The user of a key that the backend has accepted; `None` if it is unknown. `statement` is that of
/// `tokens.foreign_user_query`.
pub async fn user_of_key(statement: &str, key: &ApiKey, upstream: &UpstreamClient) -> Option<UserName> {
    let fingerprint = key.id().fingerprint();
    let user = match query(statement, SystemCredential::Key(key.clone()), upstream).await {
        Ok(body) => user_in_rows(&body).ok_or_else(|| "the response is not one row with a user name".to_owned()),
        Err(SystemQueryError::Rejected) => Err("the backend rejects the key".to_owned()),
        Err(SystemQueryError::Failed(why)) => Err(why),
    };
    user.inspect_err(|why| warn!(key = %fingerprint, why, "cannot look up the user of a foreign key")).ok()
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
