//! A JSON Web Key Set (RFC 7517), reduced to the keys that can verify signatures.

use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyOperations, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, Header};
use serde::Deserialize;
use serde_json::Value;

use crate::base::secret::Secret;

/// Maximum number of keys; bounds the search for a key.
const MAX_KEYS: usize = 100;

/// The keys of an issuer at one time.
pub struct KeySet {
    keys: Vec<VerificationKey>,
    /// Incremented with each new content.
    pub generation: u64,
    /// The JSON text of the set; empty for a secret.
    source_text: Vec<u8>,
}

struct VerificationKey {
    id: Option<String>,
    kind: VerificationKeyKind,
    key: DecodingKey,
}

enum VerificationKeyKind {
    /// A public key, with the algorithms that it supports.
    Public(Vec<Algorithm>),
    Secret,
}

impl KeySet {
    /// Parses a set. Ignores keys of unknown types and keys that are not for signatures. The error completes a sentence
    /// that begins with the file name.
    pub fn parse(text: &[u8], generation: u64) -> Result<KeySet, String> {
        #[derive(Deserialize)]
        struct JwkSet {
            keys: Vec<Value>,
        }
        let set: JwkSet = serde_json::from_slice(text).map_err(|_| "is not a JSON Web Key Set ({\"keys\": [...]})")?;
        if set.keys.len() > MAX_KEYS {
            return Err(format!("has more than {MAX_KEYS} keys"));
        }
        let keys: Vec<_> = set.keys.into_iter().filter_map(VerificationKey::from_jwk).collect();
        if keys.is_empty() {
            return Err("has no key that can verify a signature".to_owned());
        }
        Ok(KeySet { keys, generation, source_text: text.to_owned() })
    }

    /// A set with one HMAC secret.
    pub fn from_secret(secret: &Secret) -> KeySet {
        let key = DecodingKey::from_secret(secret.expose().as_bytes());
        KeySet {
            keys: vec![VerificationKey { id: None, kind: VerificationKeyKind::Secret, key }],
            generation: 0,
            source_text: Vec::new(),
        }
    }

    /// Returns whether the set was parsed from this text.
    pub fn is_parsed_from(&self, text: &[u8]) -> bool {
        self.source_text == text
    }

    /// The number of usable keys.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// The key for a token's header: by its `kid`; without a `kid`, the only key that supports the algorithm.
    ///
    /// SECURITY: a key is used only with algorithms of its own kind, so a public key cannot be used as an HMAC secret.
    pub fn find(&self, header: &Header) -> Option<&DecodingKey> {
        let mut fitting = self.keys.iter().filter(|key| key.is_usable_with(header.alg));
        match (&header.kid, &self.keys[..]) {
            (_, [VerificationKey { kind: VerificationKeyKind::Secret, .. }]) => fitting.next().map(|key| &key.key),
            (Some(id), _) => fitting.find(|key| key.id.as_ref() == Some(id)).map(|key| &key.key),
            (None, _) => {
                let only = fitting.next()?;
                fitting.next().is_none().then_some(&only.key)
            }
        }
    }
}

impl VerificationKey {
    fn from_jwk(value: Value) -> Option<VerificationKey> {
        let jwk: Jwk = serde_json::from_value(value).ok()?;
        if matches!(jwk.common.public_key_use, Some(PublicKeyUse::Encryption | PublicKeyUse::Other(_))) {
            return None;
        }
        // SECURITY: RFC 7517 section 4.3; a key without the operation `verify` must not verify signatures.
        if jwk.common.key_operations.as_ref().is_some_and(|operations| !operations.contains(&KeyOperations::Verify)) {
            return None;
        }
        let mut fitting = usable_algorithms(&jwk.algorithm);
        if let Some(only) = jwk.common.key_algorithm {
            let only = Algorithm::try_from(only).ok()?;
            fitting.retain(|algorithm| *algorithm == only);
        }
        let key = DecodingKey::from_jwk(&jwk).ok()?;
        (!fitting.is_empty()).then(|| VerificationKey {
            id: jwk.common.key_id,
            kind: VerificationKeyKind::Public(fitting),
            key,
        })
    }

    fn is_usable_with(&self, algorithm: Algorithm) -> bool {
        match &self.kind {
            VerificationKeyKind::Public(algorithms) => algorithms.contains(&algorithm),
            VerificationKeyKind::Secret => {
                matches!(algorithm, Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512)
            }
        }
    }
}

/// The algorithms that a key supports.
///
/// SECURITY: secrets do not belong in a published set, so `oct` keys support none.
fn usable_algorithms(parameters: &AlgorithmParameters) -> Vec<Algorithm> {
    use Algorithm::{ES256, ES384, EdDSA, PS256, PS384, PS512, RS256, RS384, RS512};
    match parameters {
        AlgorithmParameters::RSA(_) => vec![RS256, RS384, RS512, PS256, PS384, PS512],
        AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P256 => vec![ES256],
        AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P384 => vec![ES384],
        AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => vec![EdDSA],
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EC: &str = r#"{"kty": "EC", "crv": "P-256", "kid": "KID", "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU", "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"MORE}"#;

    fn key(id: &str, more: &str) -> String {
        EC.replace("KID", id).replace("MORE", more)
    }

    fn finds(set: &KeySet, kid: Option<&str>, alg: Algorithm) -> bool {
        let mut header = Header::new(alg);
        header.kid = kid.map(str::to_owned);
        set.find(&header).is_some()
    }

    #[test]
    fn a_key_is_found_by_id_and_algorithm() {
        let oct = r#"{"kty": "oct", "kid": "s", "k": "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0"}"#;
        let enc = key("e", r#", "use": "enc""#);
        let other = r#"{"kty": "new", "kid": "n"}"#;
        let text = format!(r#"{{"keys": [{}, {oct}, {enc}, {other}, 7]}}"#, key("a", r#", "use": "sig""#));
        let set = KeySet::parse(text.as_bytes(), 1).expect("valid");
        assert_eq!(set.len(), 1);
        assert!(finds(&set, Some("a"), Algorithm::ES256) && finds(&set, None, Algorithm::ES256));
        for (kid, alg) in [
            (Some("a"), Algorithm::RS256),
            (Some("a"), Algorithm::HS256),
            (Some("s"), Algorithm::HS256),
            (Some("e"), Algorithm::ES256),
            (Some("b"), Algorithm::ES256),
        ] {
            assert!(!finds(&set, kid, alg), "{kid:?} {alg:?}");
        }
    }

    #[test]
    fn a_key_without_the_operation_verify_is_ignored() {
        let keys = [
            key("sign", r#", "key_ops": ["sign"]"#),
            key("none", r#", "key_ops": []"#),
            key("derive", r#", "key_ops": ["deriveKey", "x"], "use": "sig""#),
            key("verify", r#", "key_ops": ["sign", "verify"]"#),
        ];
        let text = format!(r#"{{"keys": [{}]}}"#, keys.join(", "));
        let set = KeySet::parse(text.as_bytes(), 1).expect("valid");
        assert_eq!(set.len(), 1);
        assert!(finds(&set, Some("verify"), Algorithm::ES256));
    }

    #[test]
    fn without_an_id_the_key_must_be_unambiguous() {
        let text = format!(r#"{{"keys": [{}, {}]}}"#, key("a", ""), key("b", ""));
        let set = KeySet::parse(text.as_bytes(), 1).expect("valid");
        assert!(!finds(&set, None, Algorithm::ES256) && finds(&set, Some("b"), Algorithm::ES256));
    }

    #[test]
    fn an_invalid_set_is_rejected() {
        for text in ["", "[]", "{}", r#"{"keys": []}"#, r#"{"keys": [{"kty": "oct", "k": "YQ"}]}"#] {
            assert!(KeySet::parse(text.as_bytes(), 1).is_err(), "{text}");
        }
    }
}
