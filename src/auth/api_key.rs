//! The credentials of a request, parsed from its headers. Nothing is verified here.

use aws_lc_rs::rand;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use crate::auth::bearer::Credentials;
use crate::auth::jwt::Jwt;
use crate::base::byte_class::ByteClass;
use crate::base::hex;
use crate::base::secret::Secret;
use crate::base::user_name::UserName;
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

/// The user name that Timbr's clients send in `Authorization: Basic` when the password is a key, alone or followed by
/// `@` and an ontology.
const BASIC_USER: &str = "token";

/// A key in `Authorization: Basic`, with the user name that the backend receives unchanged.
#[derive(Clone)]
pub struct BasicKey {
    user: Box<str>,
    key: ApiKey,
}

impl BasicKey {
    /// The key in the value of `Authorization: Basic` (RFC 7617). The user name must be `token` or `token@<ontology>`.
    pub fn parse(value: &[u8]) -> Option<BasicKey> {
        let decoded = decode_basic(value)?;
        let (user, key) = split_basic(&decoded)?;
        let ontology = user.strip_prefix(BASIC_USER)?;
        let is_valid = ontology.is_empty() || ontology.strip_prefix('@').is_some_and(is_ontology);
        let key = ApiKey::parse(key).filter(|_| is_valid)?;
        Some(BasicKey { user: user.into(), key })
    }

    /// The user name as sent.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// The ontology in the user name.
    pub fn ontology(&self) -> Option<&str> {
        self.user.split_once('@').map(|(_, ontology)| ontology)
    }

    /// The key.
    pub fn key(&self) -> &ApiKey {
        &self.key
    }
}

/// A user's name and password in `Authorization: Basic`, with the ontology that may follow the name.
#[derive(Clone)]
pub struct BasicPassword {
    login: Credentials,
    ontology: Option<Box<str>>,
}

impl BasicPassword {
    /// The login in the value of `Authorization: Basic` (RFC 7617): `<name>` or `<name>@<ontology>`, and a password. The
    /// last `@` separates them, so a name with an `@` needs an ontology behind it.
    pub fn parse(value: &[u8]) -> Option<BasicPassword> {
        let decoded = decode_basic(value)?;
        let (user, password) = split_basic(&decoded)?;
        let (name, ontology) = match user.rsplit_once('@') {
            Some((name, ontology)) => (name, Some(ontology)),
            None => (user, None),
        };
        // SECURITY: `token` announces a key, which no verifier must see.
        let announces_key = user.split('@').next() == Some(BASIC_USER);
        let is_valid = !announces_key && ontology.is_none_or(is_ontology) && !password.is_empty();
        let password = std::str::from_utf8(password).ok().filter(|_| is_valid)?;
        let login =
            Credentials { user: UserName::parse(name.as_bytes()).ok()?, password: Secret::new(password.to_owned()) };
        Some(BasicPassword { login, ontology: ontology.map(Box::from) })
    }

    /// The user name and the password, not verified.
    pub fn login(&self) -> &Credentials {
        &self.login
    }

    /// The ontology behind the user name.
    pub fn ontology(&self) -> Option<&str> {
        self.ontology.as_deref()
    }

    /// The user name for the backend, which receives a key as the password.
    pub fn key_user(&self) -> Box<str> {
        match self.ontology() {
            Some(ontology) => format!("{BASIC_USER}@{ontology}").into(),
            None => BASIC_USER.into(),
        }
    }
}

/// What `Authorization: Basic` contains.
fn decode_basic(value: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let (scheme, rest) = value.split_at_checked(6)?;
    STANDARD.decode(rest.trim_ascii()).ok().map(Zeroizing::new).filter(|_| scheme.eq_ignore_ascii_case(b"basic "))
}

/// The user name, and the password behind the first colon.
fn split_basic(decoded: &[u8]) -> Option<(&str, &[u8])> {
    let separator = decoded.iter().position(|byte| *byte == b':')?;
    Some((std::str::from_utf8(&decoded[..separator]).ok()?, &decoded[separator + 1..]))
}

/// SECURITY: with a second `@`, servers could read different names: rules for `sales*` would match `sales@hr`.
fn is_ontology(text: &str) -> bool {
    !text.is_empty() && !text.chars().any(|c| c.is_control() || matches!(c, '/' | '@'))
}

/// The header value `Basic …` for a user name and a key.
pub fn basic_authorization(user: &str, key: &[u8]) -> Zeroizing<String> {
    let pair = Zeroizing::new([user.as_bytes(), b":", key].concat());
    Zeroizing::new(format!("Basic {}", &*Zeroizing::new(STANDARD.encode(&*pair))))
}

/// The token in the value of `Authorization: Bearer` (RFC 6750); `None` for a different scheme.
pub fn bearer_token(value: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = value.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
}

/// The one credential of a request, not yet verified.
#[derive(Clone)]
pub enum ClientCredential {
    /// `x-api-key`.
    Key(ApiKey),
    /// A key in `Authorization: Basic`.
    Basic(BasicKey),
    /// A user's name and password in `Authorization: Basic`.
    Password(BasicPassword),
    /// `x-jwt-token`.
    Jwt(Jwt),
    /// A JWT in `Authorization: Bearer`.
    BearerJwt(Jwt),
    /// On a route without credentials: the sender's `Authorization`, which the gateway does not read.
    Unchecked(Option<Box<[u8]>>),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_basic_authorization_contains_a_key() {
        let value = basic_authorization("token", b"tk_a:b");
        assert_eq!(&*value, "Basic dG9rZW46dGtfYTpi");
        for good in [&*value, "basic dG9rZW46dGtfYTpi", "BASIC  dG9rZW46dGtfYTpi "] {
            let basic = BasicKey::parse(good.as_bytes()).expect(good);
            assert_eq!((basic.key().expose(), basic.user(), basic.ontology()), (&b"tk_a:b"[..], "token", None));
        }
        let value = basic_authorization("token@my sales", b"tk_a");
        let basic = BasicKey::parse(value.as_bytes()).expect("valid");
        assert_eq!((basic.user(), basic.ontology()), ("token@my sales", Some("my sales")));
        for user in ["token@", "token@a\n", "tokens", "alice@sales", "Token", "", "token@a/b", "token@a@b"] {
            assert!(BasicKey::parse(basic_authorization(user, b"tk_a").as_bytes()).is_none(), "{user}");
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
            assert!(BasicKey::parse(wrong.as_bytes()).is_none(), "{wrong}");
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
