//! The credentials of a request, parsed from its headers. Nothing is verified here.

use aws_lc_rs::rand;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use crate::auth::jwt::Jwt;
use crate::base::byte_class::ByteClass;
use crate::base::hex;
use crate::store::TokenId;

/// An API key as sent by a client: 1 to 1024 printable ASCII characters without space and comma.
///
/// SECURITY: a comma joins two values of a header; which of them a backend would use is unknown.
#[derive(Clone)]
pub struct ApiKey(Box<[u8]>);

impl ApiKey {
    /// Parses a header value; `None` if it is not one key.
    pub fn parse(value: &[u8]) -> Option<ApiKey> {
        ApiKey::is_valid(value).then(|| ApiKey(value.into()))
    }

    /// Whether a value has the form of a key. Makes no copy of it.
    pub fn is_valid(value: &[u8]) -> bool {
        (1..=1024).contains(&value.len()) && ByteClass::API_KEY.contains_all(value)
    }

    /// The header value, to send in a request.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// A random key in the form of Timbr's keys, which is not assigned to any user.
    pub(super) fn random() -> ApiKey {
        let mut random = [0; 20];
        rand::fill(&mut random).expect("the system's random source works");
        ApiKey(format!("tk_{}", hex::encode(&random)).into_bytes().into())
    }

    pub(super) fn id(&self) -> TokenId {
        TokenId::from_token(&self.0)
    }
}

/// The user name that Timbr's clients send in `Authorization: Basic` when the password is a key.
const BASIC_USER: &str = "token:";

impl ApiKey {
    /// The key in the value of `Authorization: Basic` (RFC 7617).
    pub fn parse_basic(value: &[u8]) -> Option<ApiKey> {
        let (scheme, rest) = value.split_at_checked(6)?;
        let decoded = Zeroizing::new(STANDARD.decode(rest.trim_ascii()).ok()?);
        let key = decoded.strip_prefix(BASIC_USER.as_bytes())?;
        ApiKey::parse(key).filter(|_| scheme.eq_ignore_ascii_case(b"basic "))
    }
}

/// The header value `Basic …` for a key.
pub fn basic_authorization(key: &[u8]) -> Zeroizing<String> {
    let pair = Zeroizing::new([BASIC_USER.as_bytes(), key].concat());
    Zeroizing::new(format!("Basic {}", &*Zeroizing::new(STANDARD.encode(&*pair))))
}

/// The one credential of a request, not yet verified.
#[derive(Clone)]
pub enum ClientCredential {
    /// `x-api-key`.
    Key(ApiKey),
    /// A key as the password of the user `token` in `Authorization: Basic`.
    Basic(ApiKey),
    /// `x-jwt-token`.
    Jwt(Jwt),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_basic_authorization_contains_a_key() {
        let value = basic_authorization(b"tk_a:b");
        assert_eq!(&*value, "Basic dG9rZW46dGtfYTpi");
        for good in [&*value, "basic dG9rZW46dGtfYTpi", "BASIC  dG9rZW46dGtfYTpi "] {
            assert!(ApiKey::parse_basic(good.as_bytes()).is_some_and(|key| key.expose() == b"tk_a:b"), "{good}");
        }
        // `alice:tk_a`, `token:` without a key, a key with a comma, invalid base64, a different scheme.
        for wrong in [
            "Basic YWxpY2U6dGtfYQ==",
            "Basic dG9rZW46",
            "Basic dG9rZW46YSxi",
            "Basic dG9rZW46dGtfYTp",
            "Basic tk_a",
            "Bearer dG9rZW46dGtfYTpi",
            "Basic",
            "",
        ] {
            assert!(ApiKey::parse_basic(wrong.as_bytes()).is_none(), "{wrong}");
        }
    }

    #[test]
    fn a_key_is_printable_without_spaces_and_commas() {
        assert!(ApiKey::parse(b"tk_0123").is_some_and(|key| key.expose() == b"tk_0123"));
        let long = vec![b'a'; 1025];
        for wrong in [&b""[..], b"a b", b"a,b", b"a\tb", b"caf\xe9", &long] {
            assert!(ApiKey::parse(wrong).is_none(), "{wrong:?}");
        }
    }
}
