//! An identity provider: signs tokens and publishes its keys.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use rcgen::KeyPair;
use serde_json::{Value, json};

use crate::support::upstream::{AfterRequest, Recorded, Upstream, respond};

pub const ISSUER: &str = "https://idp.test";

/// A signing key with its id.
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
        self.sign_with(&header, claims)
    }

    /// A token with this header.
    pub fn sign_with(&self, header: &Header, claims: &Value) -> String {
        encode(header, claims, &self.key).expect("signed")
    }
}

/// Publishes keys at `/keys`.
pub struct Idp {
    set: Arc<Mutex<Vec<Value>>>,
    server: Upstream,
}

impl Idp {
    pub fn start(keys: &[&SigningKey]) -> Idp {
        let set = Arc::<Mutex<Vec<Value>>>::default();
        let shown = Arc::clone(&set);
        let server = Upstream::with_behaviour(move |request: &Recorded, stream| -> AfterRequest {
            let keys = shown.lock().expect("no panic").clone();
            if request.line.starts_with("GET /discovery") {
                let issuer = if request.line.contains("wrong") { "https://other" } else { ISSUER };
                let jwks_uri = format!("http://{}/keys", request.header("host"));
                return respond(stream, 200, &json!({"issuer": issuer, "jwks_uri": jwks_uri}).to_string());
            }
            assert_eq!(request.line, "GET /keys HTTP/1.1");
            match keys.is_empty() {
                true => respond(stream, 500, "{}"),
                false => respond(stream, 200, &json!({"keys": keys}).to_string()),
            }
        });
        let idp = Idp { set, server };
        idp.publish(keys);
        idp
    }

    /// Replaces the published keys. An empty list is an outage.
    pub fn publish(&self, keys: &[&SigningKey]) {
        *self.set.lock().expect("no panic") = keys.iter().map(|key| key.public.clone()).collect();
    }

    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// The number of fetches.
    pub fn fetched(&self) -> usize {
        self.server.log().len()
    }

    /// The value of `auth.jwt_issuers` for this provider.
    pub fn option(&self, more: &str) -> String {
        format!(
            "[{{issuer: '{ISSUER}', jwks_url: 'http://{}/keys', audiences: timbr, user_claim: email{more}}}]",
            self.address()
        )
    }
}

/// Valid claims with an hour to live, modified by `change`.
pub fn claims(now: u64, change: &Value) -> Value {
    let mut claims = json!({"iss": ISSUER, "aud": "timbr", "exp": now + 3600, "email": "alice@example.com"});
    for (name, value) in change.as_object().expect("an object") {
        claims[name] = value.clone();
    }
    claims
}
