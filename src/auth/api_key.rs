//! What a client shows to prove who it is. Nothing is proven here.

use aws_lc_rs::rand;
use http::{HeaderName, HeaderValue};

use crate::auth::jwt::Jwt;
use crate::store::TokenId;

/// The field that carries a caller's key.
pub const API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// A key as a client sent it: 1 to 1024 printable ASCII characters, no space and no comma.
///
/// SECURITY: a comma is how two values of a field are joined; which of them a backend would take is unknown.
#[derive(Clone)]
pub struct ApiKey(HeaderValue);

impl ApiKey {
    /// Checks the value of the field.
    pub fn parse(value: &HeaderValue) -> Option<ApiKey> {
        let bytes = value.as_bytes();
        let valid = (1..=1024).contains(&bytes.len())
            && bytes.iter().all(|byte| byte.is_ascii_graphic() && *byte != b',');
        valid.then(|| {
            let mut value = value.clone();
            value.set_sensitive(true);
            ApiKey(value)
        })
    }

    /// The value for the field of another request, marked as sensitive.
    pub fn into_field_value(self) -> HeaderValue {
        self.0
    }

    /// The bytes that were sent.
    pub(super) fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }

    /// A key of the form that Timbr's have, which nobody was given.
    pub(super) fn nobodys() -> ApiKey {
        let mut random = [0; 20];
        rand::fill(&mut random).expect("the system's random source works");
        let text = random.iter().fold("tk_".to_owned(), |text, byte| format!("{text}{byte:02x}"));
        let mut value = HeaderValue::from_str(&text).expect("letters and digits");
        value.set_sensitive(true);
        ApiKey(value)
    }

    pub(super) fn id(&self) -> TokenId {
        TokenId::of(self.0.as_bytes())
    }
}

/// The one credential of a request; whose it is, [`Auth::identify`] tells.
#[derive(Clone)]
pub enum Presented {
    /// `x-api-key`.
    Key(ApiKey),
    /// `x-jwt-token`.
    Jwt(Jwt),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_one_printable_word() {
        let parse = |bytes: &[u8]| HeaderValue::from_bytes(bytes).ok().and_then(|v| ApiKey::parse(&v));
        assert!(parse(b"tk_0123").is_some_and(|key| key.into_field_value().is_sensitive()));
        let long = vec![b'a'; 1025];
        for wrong in [&b""[..], b"a b", b"a,b", b"a\tb", b"caf\xe9", &long] {
            assert!(parse(wrong).is_none(), "{wrong:?}");
        }
    }
}
