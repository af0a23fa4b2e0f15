//! An identity provider: keys, a published set of them, and tokens.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use rcgen::KeyPair;
use serde_json::{Value, json};

use crate::support::upstream::{Recorded, Then, Upstream, answer};

pub const ISSUER: &str = "https://idp.test";

/// A key with its name.
pub struct SigningKey {
    pub id: String,
    key: EncodingKey,
    pub public: Value,
}

impl SigningKey {
    pub fn new(id: &str) -> SigningKey {
        let pair = KeyPair::generate().expect("a P-256 key");
        let key = EncodingKey::from_ec_der(&pair.serialize_der());
        let jwk = Jwk::from_encoding_key(&key, Algorithm::ES256).expect("its public half");
        let mut public = serde_json::to_value(jwk).expect("JSON");
        public["kid"] = id.into();
        SigningKey { id: id.to_owned(), key, public }
    }

    /// A token with these claims.
    pub fn sign(&self, claims: &Value) -> String {
        let mut header = Header::new(Algorithm::ES256);
        header.kid = Some(self.id.clone());
        encode(&header, claims, &self.key).expect("signed")
    }
}

/// Publishes its keys at `/keys`.
pub struct Idp {
    set: Arc<Mutex<Vec<Value>>>,
    server: Upstream,
}

impl Idp {
    pub fn start(keys: &[&SigningKey]) -> Idp {
        let set = Arc::<Mutex<Vec<Value>>>::default();
        let shown = Arc::clone(&set);
        let server = Upstream::behaving(move |request: &Recorded, stream| -> Then {
            assert_eq!(request.line, "GET /keys HTTP/1.1");
            let keys = shown.lock().expect("no panic").clone();
            match keys.is_empty() {
                true => answer(stream, 500, "{}"),
                false => answer(stream, 200, &json!({"keys": keys}).to_string()),
            }
        });
        let idp = Idp { set, server };
        idp.publish(keys);
        idp
    }

    /// From now on these; none is an outage.
    pub fn publish(&self, keys: &[&SigningKey]) {
        *self.set.lock().expect("no panic") = keys.iter().map(|key| key.public.clone()).collect();
    }

    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// How often its keys were fetched.
    pub fn fetched(&self) -> usize {
        self.server.log().len()
    }

    /// The option that has them fetched.
    pub fn option(&self, more: &str) -> String {
        format!(
            "[{{issuer: '{ISSUER}', jwks_url: 'http://{}/keys', audiences: timbr, user_claim: email{more}}}]",
            self.address()
        )
    }
}

/// Claims that are in order for an hour, changed by what `change` says.
pub fn claims(now: u64, change: &Value) -> Value {
    let mut claims = json!({"iss": ISSUER, "aud": "timbr", "exp": now + 3600, "email": "alice@example.com"});
    for (name, value) in change.as_object().expect("an object") {
        claims[name] = value.clone();
    }
    claims
}
