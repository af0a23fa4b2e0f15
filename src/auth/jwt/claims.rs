//! Validates the claims of a JWT. Signatures are verified in `issuer`.

use jsonwebtoken::dangerous::insecure_decode_claims;
use serde_json::{Map, Value};

use crate::auth::jwt::{Jwt, JwtCaller, JwtError};
use crate::base::glob::Glob;
use crate::base::groups::Groups;
use crate::base::user_name::UserName;
use crate::config::jwt::{IssuerOptions, RequiredClaim};
use crate::http::headers::HeaderName;

/// The required claims of an issuer's tokens.
pub struct ClaimRules {
    options: IssuerOptions,
    /// The index of the issuer.
    index: usize,
    /// Allowed clock difference in seconds.
    leeway: u64,
}

/// What a token with a verified signature and valid claims proves.
#[derive(Clone, Debug)]
pub struct VerifiedClaims {
    /// The caller. The user has the prefix and the tenant that the configuration adds.
    pub caller: JwtCaller,
    audiences: Box<[Box<str>]>,
    nonce: Option<Box<str>>,
    /// From `tenant_claim`.
    tenant: Option<Box<str>>,
}

/// Claims by name.
pub type Claims = Map<String, Value>;

/// The `iss` claim of a token. SECURITY: not verified; use it only to select the issuer's keys.
pub fn claimed_issuer(token: &[u8]) -> Option<String> {
    let claims: Claims = insecure_decode_claims(token).ok()?;
    claims.get("iss")?.as_str().map(str::to_owned)
}

impl ClaimRules {
    /// The rules of the issuer with this index.
    pub fn new(options: &IssuerOptions, index: usize, leeway: u64) -> ClaimRules {
        ClaimRules { options: options.clone(), index, leeway }
    }

    /// The options of the issuer.
    pub fn options(&self) -> &IssuerOptions {
        &self.options
    }

    /// Validates the claims of a token with a verified signature. `now` is in seconds of Unix time.
    pub fn validate(&self, claims: &Claims, now: u64) -> Result<VerifiedClaims, JwtError> {
        let no = JwtError::Unacceptable;
        let IssuerOptions { issuer, audiences: ours, required_claims, tenant_claim, .. } = &self.options;
        if claims.get("iss").and_then(Value::as_str) != Some(issuer) {
            return Err(JwtError::Invalid("its issuer is unknown"));
        }
        let expires_at = self.validate_times(claims, now)?;
        let audiences = texts(claims.get("aud"));
        if !audiences.iter().any(|audience| ours.iter().any(|our| **our == **audience)) {
            return Err(no("its audience (`aud`) is not accepted"));
        }
        if !required_claims.iter().all(|required| has_claim(claims, required)) {
            return Err(no("it does not have the claims that its issuer's entry requires"));
        }
        let tenant = tenant_claim.as_deref().and_then(|name| find(claims, name)).and_then(Value::as_str);
        Ok(VerifiedClaims {
            caller: JwtCaller {
                user: self.user(claims, tenant)?,
                groups: self.groups(claims)?,
                expires_at,
                issuer: self.index,
            },
            audiences: audiences.into(),
            nonce: claims.get("nonce").and_then(Value::as_str).map(Box::from),
            tenant: tenant.map(Box::from),
        })
    }

    fn groups(&self, claims: &Claims) -> Result<Option<Groups>, JwtError> {
        if self.options.groups_claims.is_empty() {
            return Ok(None);
        }
        let names = self.options.groups_claims.iter().flat_map(|name| texts(find(claims, name))).collect();
        Groups::new(names).map(Some).ok_or(JwtError::Unacceptable("it has too many groups"))
    }

    /// Returns the end of the token's life.
    fn validate_times(&self, claims: &Claims, now: u64) -> Result<u64, JwtError> {
        let no = JwtError::Unacceptable;
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
        Ok(ends)
    }

    /// SECURITY: an issuer may only name the users that the configuration gives it, so that none can use the name of
    /// another issuer's user.
    fn user(&self, claims: &Claims, tenant: Option<&str>) -> Result<UserName, JwtError> {
        let no = JwtError::Unacceptable;
        let options = &self.options;
        let name = find(claims, &options.user_claim).and_then(Value::as_str).ok_or(no("it has no user claim"))?;
        if options.users.as_ref().is_some_and(|users| !Glob::any(users, name)) {
            return Err(no("its issuer may not name this user"));
        }
        let tenant = match (options.tenant_user, tenant, options.tenants.as_deref()) {
            (false, ..) => String::new(),
            // A `/` in the tenant could make it look like a different tenant with a different user.
            (true, Some(tenant), _) if !tenant.is_empty() && !tenant.contains('/') => format!("{tenant}/"),
            // The configuration has checked that there is one.
            (true, None, Some([tenant])) if options.tenant_claim.is_none() => format!("{tenant}/"),
            (true, ..) => return Err(no("it has no tenant claim")),
        };
        UserName::parse(format!("{}{tenant}{name}", options.user_prefix).as_bytes())
            .map_err(|_| no("its user name cannot be sent in a header: not printable ASCII, or too long"))
    }

    /// Checks the headers that the client sent beside a token.
    ///
    /// SECURITY: the token does not authenticate them, so they must agree with its claims: the backend may use them in
    /// place of its own settings.
    pub fn check_headers(&self, jwt: &Jwt, verified: &VerifiedClaims) -> Result<(), JwtError> {
        let no = JwtError::Unacceptable;
        let IssuerOptions { issuer, tenants, tenant_claim, .. } = &self.options;
        let tenant = jwt.header(HeaderName::XJwtTenantId);
        let is_tenant = |tenants: &Vec<String>| tenant.is_some_and(|tenant| tenants.iter().any(|t| t == tenant));
        if !tenants.as_ref().is_none_or(is_tenant) {
            return Err(no("`x-jwt-tenant-id` is not a tenant of its issuer"));
        }
        if tenant_claim.is_some() && tenant.is_some() && tenant != verified.tenant.as_deref() {
            return Err(no("`x-jwt-tenant-id` is not its tenant"));
        }
        if jwt.header(HeaderName::XJwtIssuer).is_some_and(|other| other != issuer) {
            return Err(no("`x-jwt-issuer` is not its issuer (`iss`)"));
        }
        let is_audience = |client_id: &str| verified.audiences.iter().any(|audience| **audience == *client_id);
        if jwt.header(HeaderName::XJwtClientId).is_some_and(|client_id| !is_audience(client_id)) {
            return Err(no("`x-jwt-client-id` is not its audience (`aud`)"));
        }
        let nonce = jwt.header(HeaderName::XJwtNonce);
        if nonce.is_some() && nonce != verified.nonce.as_deref() {
            return Err(no("`x-jwt-nonce` is not its `nonce`"));
        }
        Ok(())
    }
}

/// The claim with this name or, if there is none, at this path: `realm_access.roles`.
fn find<'a>(claims: &'a Claims, name: &str) -> Option<&'a Value> {
    claims.get(name).or_else(|| {
        let (first, rest) = name.split_once('.')?;
        find(claims.get(first)?.as_object()?, rest)
    })
}

/// The texts of a claim that is a text or a list of texts.
fn texts(value: Option<&Value>) -> Vec<Box<str>> {
    match value {
        Some(Value::Array(all)) => all.iter().filter_map(Value::as_str).map(Box::from).collect(),
        Some(Value::String(one)) => vec![one.as_str().into()],
        _ => Vec::new(),
    }
}

/// Whether a claim, or one item of its list, has an accepted value. Scopes are one text with words (RFC 8693 section
/// 4.2).
fn has_claim(claims: &Claims, required: &RequiredClaim) -> bool {
    let accepts = |text: &str| Glob::any(&required.values, text);
    let accepts_value = |value: &Value| match value {
        Value::String(text) if matches!(required.name.as_str(), "scope" | "scp") => text.split(' ').any(accepts),
        Value::String(text) => accepts(text),
        Value::Bool(_) | Value::Number(_) => accepts(&value.to_string()),
        _ => false,
    };
    match find(claims, &required.name) {
        Some(Value::Array(all)) => all.iter().any(accepts_value),
        Some(value) => accepts_value(value),
        None => false,
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

    fn rules(more: &str) -> ClaimRules {
        let issuer = format!(
            "[{{issuer: 'https://idp', jwks_url: 'https://idp/k', audiences: [timbr, timbr-2], user_claim: email{more}}}]"
        );
        let config = crate::config::testing::load("", &[("AUTH_JWT_ISSUERS", &issuer)]).expect("valid");
        ClaimRules::new(&config.auth.jwt.issuers[0], 0, 30)
    }

    fn verified(more: &str, change: &Value) -> Result<VerifiedClaims, JwtError> {
        let mut claims = json!({"iss": "https://idp", "aud": "timbr", "exp": 1100, "email": "alice@example.com"});
        for (name, value) in change.as_object().expect("an object") {
            let claims = claims.as_object_mut().expect("an object");
            if value.is_null() {
                drop(claims.remove(name));
            } else {
                drop(claims.insert(name.clone(), value.clone()));
            }
        }
        rules(more).validate(claims.as_object().expect("an object"), 1000)
    }

    fn judge(change: &Value) -> Result<(String, u64), JwtError> {
        let caller = verified("", change)?.caller;
        Ok((caller.user.as_str().to_owned(), caller.expires_at))
    }

    fn user(more: &str, change: &Value) -> String {
        match verified(more, change) {
            Ok(verified) => verified.caller.user.as_str().to_owned(),
            Err(error) => format!("error: {error}"),
        }
    }

    #[test]
    fn an_issuer_names_its_own_users_only() {
        let none = json!({});
        assert_eq!(user(", user_prefix: corp-", &none), "corp-alice@example.com");
        assert_eq!(user(", users: '*@example.com'", &none), "alice@example.com");
        for name in ["root", "alice@example.com.evil", ""] {
            let refused = user(", users: '*@example.com'", &json!({"email": name}));
            assert_eq!(refused, "error: its issuer may not name this user", "{name}");
        }
    }

    #[test]
    fn a_user_name_can_have_a_tenant() {
        let none = json!({});
        assert_eq!(user(", tenants: acme, tenant_user: true", &none), "acme/alice@example.com");
        let by_claim = ", tenant_claim: tid, tenant_user: true";
        assert_eq!(user(by_claim, &json!({"tid": "t1"})), "t1/alice@example.com");
        for claims in [json!({}), json!({"tid": ""}), json!({"tid": "a/b"}), json!({"tid": ["t1"]})] {
            assert_eq!(user(by_claim, &claims), "error: it has no tenant claim", "{claims}");
        }
    }

    #[test]
    fn groups_are_read_from_claims_at_any_depth() {
        let groups = |more: &str, claims: &Value| {
            let groups = verified(more, claims).expect("valid").caller.groups;
            groups.map(|groups| groups.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        let claims = json!({"groups": ["a", 7, "b"], "realm_access": {"roles": ["c"]}, "https://x.y/role": "d"});
        assert_eq!(groups("", &claims), None);
        assert_eq!(groups(", groups_claims: missing", &claims), Some(Vec::new()));
        let all = groups(", groups_claims: [groups, realm_access.roles, 'https://x.y/role']", &claims);
        assert_eq!(all.expect("groups"), ["a", "b", "c", "d"]);
    }

    #[test]
    fn required_claims_must_have_an_accepted_value() {
        let required = ", required_claims: {azp: [timbr-web, 'svc-*'], email_verified: 'true', scope: timbr.query}";
        let good = json!({"azp": "svc-1", "email_verified": true, "scope": "openid timbr.query"});
        assert_eq!(user(required, &good), "alice@example.com");
        for (name, value) in [
            ("azp", json!("other")),
            ("azp", Value::Null),
            ("email_verified", json!(false)),
            ("scope", json!("openid timbr.queries")),
            ("scope", json!({"timbr.query": 1})),
        ] {
            let mut claims = good.clone();
            claims[name] = value;
            assert!(user(required, &claims).contains("does not have the claims"), "{claims}");
        }
    }

    #[test]
    fn headers_beside_the_token_must_agree_with_it() {
        let claims = json!({"aud": ["timbr", "account"], "nonce": "n-1", "tid": "t1"});
        let more = ", tenant_claim: tid";
        let check = |name: &str, value: &str| {
            let mut headers = crate::http::headers::Headers::new();
            headers.push(HeaderName::parse(name.as_bytes()), value.as_bytes());
            let jwt = Jwt::parse(b"a.b.c", &headers).expect("valid");
            rules(more).check_headers(&jwt, &verified(more, &claims).expect("valid"))
        };
        for (name, good, wrong) in [
            ("x-jwt-issuer", "https://idp", "https://idp/"),
            ("x-jwt-client-id", "account", "other"),
            ("x-jwt-nonce", "n-1", "n-2"),
            ("x-jwt-tenant-id", "t1", "t2"),
        ] {
            assert_eq!(check(name, good), Ok(()), "{name}");
            assert!(matches!(check(name, wrong), Err(JwtError::Unacceptable(why)) if why.contains(name)), "{name}");
        }
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
