//! Validates the claims of a JWT. Signatures are verified in `issuer`.

use jsonwebtoken::dangerous::insecure_decode_claims;
use serde_json::{Map, Value};

use crate::auth::jwt::JwtError;
use crate::base::user_name::UserName;

/// The required claims of an issuer's tokens.
pub struct ClaimRules {
    pub issuer: String,
    pub audiences: Vec<String>,
    pub user_claim: String,
    /// Allowed clock difference in seconds.
    pub leeway: u64,
}

/// Claims by name.
pub type Claims = Map<String, Value>;

/// The `iss` claim of a token. SECURITY: not verified; use it only to select the issuer's keys.
pub fn claimed_issuer(token: &[u8]) -> Option<String> {
    let claims: Claims = insecure_decode_claims(token).ok()?;
    claims.get("iss")?.as_str().map(str::to_owned)
}

impl ClaimRules {
    /// Validates the claims of a token with a verified signature. Returns the user and the expiry in seconds of Unix
    /// time, leeway included.
    pub fn validate(&self, claims: &Claims, now: u64) -> Result<(UserName, u64), JwtError> {
        let no = JwtError::Unacceptable;
        if claims.get("iss").and_then(Value::as_str) != Some(&self.issuer) {
            return Err(JwtError::Invalid("its issuer is unknown"));
        }
        // SECURITY: a token without expiry would be valid forever.
        let ends = claims.get("exp").ok_or(no("it has no `exp`"))?;
        let ends = numeric_date(ends).ok_or(no("its `exp` is not a time"))?.saturating_add(self.leeway);
        if now >= ends {
            return Err(JwtError::Expired);
        }
        for (name, error) in [("nbf", "it is not valid yet (`nbf`)"), ("iat", "it was issued in the future (`iat`)")] {
            if let Some(value) = claims.get(name) {
                let begins = numeric_date(value).ok_or(no("its `nbf` or `iat` is not a time"))?;
                if begins > now.saturating_add(self.leeway) {
                    return Err(no(error));
                }
            }
        }
        if !self.is_accepted_audience(claims.get("aud")) {
            return Err(no("its audience (`aud`) is not accepted"));
        }
        let user = claims.get(&self.user_claim).and_then(Value::as_str);
        let user = user.ok_or(no("it has no user claim"))?;
        let user = UserName::parse(user.as_bytes())
            .map_err(|_| no("its user name cannot be sent in a header: not printable ASCII, or too long"))?;
        Ok((user, ends))
    }

    fn is_accepted_audience(&self, audience: Option<&Value>) -> bool {
        let ours = |value: &Value| value.as_str().is_some_and(|text| self.audiences.iter().any(|our| our == text));
        match audience {
            Some(Value::Array(all)) => all.iter().any(ours),
            Some(one) => ours(one),
            None => false,
        }
    }
}

/// Whole seconds of a `NumericDate`, which may have a fraction (RFC 7519 section 2).
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
        let mut claims = json!({"iss": "https://idp", "aud": "timbr", "exp": 1100, "email": "alice@example.com"});
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
    fn valid_claims_give_a_user_and_an_expiry() {
        for change in
            [json!({}), json!({"aud": ["other", "timbr-2"]}), json!({"nbf": 1030, "iat": 1030}), json!({"exp": 1100.9})]
        {
            assert_eq!(judge(&change), Ok(("alice@example.com".to_owned(), 1130)), "{change}");
        }
        assert_eq!(judge(&json!({"exp": 971})).expect("within the leeway").1, 1001);
    }

    #[test]
    fn invalid_claims_are_rejected() {
        for (change, expected) in [
            (json!({"exp": 970}), "it has expired"),
            (json!({"exp": null}), "it has no `exp`"),
            (json!({"exp": "1100"}), "its `exp` is not a time"),
            (json!({"exp": -1}), "its `exp` is not a time"),
            (json!({"nbf": 1031}), "not valid yet"),
            (json!({"iat": 1031}), "issued in the future"),
            (json!({"iat": "x"}), "is not a time"),
            (json!({"aud": null}), "is not accepted"),
            (json!({"aud": "timbr-3"}), "is not accepted"),
            (json!({"aud": []}), "is not accepted"),
            (json!({"aud": {"timbr": 1}}), "is not accepted"),
            (json!({"iss": "https://evil"}), "is unknown"),
            (json!({"email": null}), "has no user claim"),
            (json!({"email": ["a"]}), "has no user claim"),
            (json!({"email": "a\nb"}), "cannot be sent in a header"),
        ] {
            let error = judge(&change).expect_err("refused").to_string();
            assert!(error.contains(expected), "{change}: {error}");
        }
    }
}
