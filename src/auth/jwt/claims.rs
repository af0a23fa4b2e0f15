//! What a token says, and whether that is acceptable. Signatures are `issuer`'s.

use jsonwebtoken::dangerous::insecure_decode_claims;
use serde_json::{Map, Value};

use crate::auth::jwt::JwtError;
use crate::base::user_name::UserName;

/// What must stand in a token.
pub struct ClaimRules {
    pub issuer: String,
    pub audiences: Vec<String>,
    pub user_claim: String,
    /// Seconds by which clocks may differ.
    pub leeway: u64,
}

/// Claims by their names.
pub type Claims = Map<String, Value>;

/// Whom a token claims to be of. SECURITY: nothing has been verified; it only says whose keys to try.
pub fn claimed_issuer(token: &[u8]) -> Option<String> {
    let claims: Claims = insecure_decode_claims(token).ok()?;
    claims.get("iss")?.as_str().map(str::to_owned)
}

impl ClaimRules {
    /// The user of a token whose signature is right, and when it ends, leeway included.
    pub fn validate(&self, claims: &Claims, now: u64) -> Result<(UserName, u64), JwtError> {
        let no = JwtError::Unacceptable;
        if claims.get("iss").and_then(Value::as_str) != Some(&self.issuer) {
            return Err(JwtError::Invalid("its issuer is not known here"));
        }
        // SECURITY: a token without an end would be good forever.
        let ends = claims.get("exp").ok_or(no("it has no `exp`"))?;
        let ends = numeric_date(ends).ok_or(no("its `exp` is no time"))?.saturating_add(self.leeway);
        if now >= ends {
            return Err(JwtError::Expired);
        }
        for (name, error) in
            [("nbf", "it is not valid yet (`nbf`)"), ("iat", "it was made in the future (`iat`)")]
        {
            if let Some(value) = claims.get(name) {
                let begins = numeric_date(value).ok_or(no("its `nbf` or `iat` is no time"))?;
                if begins > now.saturating_add(self.leeway) {
                    return Err(no(error));
                }
            }
        }
        if !self.is_accepted_audience(claims.get("aud")) {
            return Err(no("it is meant for others (`aud`)"));
        }
        let user = claims.get(&self.user_claim).and_then(Value::as_str);
        let user = user.ok_or(no("it lacks the claim that names the user"))?;
        let user = UserName::parse(user.as_bytes()).map_err(|_| {
            no("the name of its user cannot be a header field: other than printable ASCII, or too long")
        })?;
        Ok((user, ends))
    }

    fn is_accepted_audience(&self, audience: Option<&Value>) -> bool {
        let ours =
            |value: &Value| value.as_str().is_some_and(|text| self.audiences.iter().any(|our| our == text));
        match audience {
            Some(Value::Array(all)) => all.iter().any(ours),
            Some(one) => ours(one),
            None => false,
        }
    }
}

/// RFC 7519 section 2: a `NumericDate` may have a fraction.
fn numeric_date(value: &Value) -> Option<u64> {
    match value.as_u64() {
        Some(seconds) => Some(seconds),
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the range is checked")]
        None => value.as_f64().filter(|time| (0.0..1e15).contains(time)).map(|time| time as u64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn judge(change: &Value) -> Result<(String, u64), JwtError> {
        let rules = ClaimRules {
            issuer: "https://idp".to_owned(),
            audiences: vec!["timbr".to_owned(), "timbr-2".to_owned()],
            user_claim: "email".to_owned(),
            leeway: 30,
        };
        let mut claims =
            json!({"iss": "https://idp", "aud": "timbr", "exp": 1100, "email": "alice@example.com"});
        for (name, value) in change.as_object().expect("an object") {
            let claims = claims.as_object_mut().expect("an object");
            if value.is_null() {
                drop(claims.remove(name));
            } else {
                drop(claims.insert(name.clone(), value.clone()));
            }
        }
        let judged = rules.validate(claims.as_object().expect("an object"), 1000);
        judged.map(|(user, ends)| (user.as_str().to_owned(), ends))
    }

    #[test]
    fn what_is_in_order_names_a_user_and_an_end() {
        for change in [
            json!({}),
            json!({"aud": ["other", "timbr-2"]}),
            json!({"nbf": 1030, "iat": 1030}),
            json!({"exp": 1100.9}),
        ] {
            assert_eq!(judge(&change), Ok(("alice@example.com".to_owned(), 1130)), "{change}");
        }
        assert_eq!(judge(&json!({"exp": 971})).expect("within the leeway").1, 1001);
    }

    #[test]
    fn what_is_not_is_refused() {
        for (change, expected) in [
            (json!({"exp": 970}), "it has expired"),
            (json!({"exp": null}), "it has no `exp`"),
            (json!({"exp": "1100"}), "its `exp` is no time"),
            (json!({"exp": -1}), "its `exp` is no time"),
            (json!({"nbf": 1031}), "not valid yet"),
            (json!({"iat": 1031}), "made in the future"),
            (json!({"iat": "x"}), "is no time"),
            (json!({"aud": null}), "meant for others"),
            (json!({"aud": "timbr-3"}), "meant for others"),
            (json!({"aud": []}), "meant for others"),
            (json!({"aud": {"timbr": 1}}), "meant for others"),
            (json!({"iss": "https://evil"}), "not known here"),
            (json!({"email": null}), "lacks the claim"),
            (json!({"email": ["a"]}), "lacks the claim"),
            (json!({"email": "a\nb"}), "cannot be a header field"),
        ] {
            let error = judge(&change).expect_err("refused").to_string();
            assert!(error.contains(expected), "{change}: {error}");
        }
    }
}
