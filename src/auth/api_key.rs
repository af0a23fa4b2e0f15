//! What a client shows to prove who it is. Nothing is proven here.

use aws_lc_rs::rand;

use crate::auth::jwt::Jwt;
use crate::store::TokenId;

/// A key as a client sent it: 1 to 1024 printable ASCII characters, no space and no comma.
///
/// SECURITY: a comma is how two values of a field are joined; which of them a backend would take is unknown.
#[derive(Clone)]
pub struct ApiKey(Box<[u8]>);

impl ApiKey {
    /// Checks the value of the field.
    pub fn parse(value: &[u8]) -> Option<ApiKey> {
        let valid = (1..=1024).contains(&value.len())
            && value.iter().all(|byte| byte.is_ascii_graphic() && *byte != b',');
        valid.then(|| ApiKey(value.into()))
    }

    /// The value for the field of another request.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// A key of the form that Timbr's have, which nobody was given.
    pub(super) fn nobodys() -> ApiKey {
        let mut random = [0; 20];
        rand::fill(&mut random).expect("the system's random source works");
        let text = random.iter().fold("tk_".to_owned(), |text, byte| format!("{text}{byte:02x}"));
        ApiKey(text.into_bytes().into())
    }

    pub(super) fn id(&self) -> TokenId {
        TokenId::of(&self.0)
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
        assert!(ApiKey::parse(b"tk_0123").is_some_and(|key| key.expose() == b"tk_0123"));
        let long = vec![b'a'; 1025];
        for wrong in [&b""[..], b"a b", b"a,b", b"a\tb", b"caf\xe9", &long] {
            assert!(ApiKey::parse(wrong).is_none(), "{wrong:?}");
        }
    }
}
