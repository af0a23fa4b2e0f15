//! API keys from requests, and modified tokens.

#![no_main]

use std::sync::LazyLock;

use http::HeaderValue;
use libfuzzer_sys::fuzz_target;
use timbr_gateway::auth::ApiKey;
use timbr_gateway::auth::bearer::Credentials;
use timbr_gateway::auth::token::TokenMint;
use timbr_gateway::base::secret::Secret;
use timbr_gateway::base::user_name::UserName;
use timbr_gateway::config::StoreKey;
use timbr_gateway::store::{KeyRing, TokenId};

static MINT: LazyLock<TokenMint> =
    LazyLock::new(|| TokenMint::new(&KeyRing::new(&[StoreKey::random()])));
static TOKEN: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let user = UserName::parse(b"alice").expect("a name");
    let login = Credentials { user, password: Secret::new("secret".to_owned()) };
    MINT.token(&login, &[7; 20]).expose().as_bytes().to_vec()
});

fuzz_target!(|data: &[u8]| {
    // The keyed checksum has 64 bits, so a random input does not match it by chance.
    assert!(data == TOKEN.as_slice() || MINT.recognize(data).is_none());
    let mut changed = TOKEN.clone();
    for change in data.chunks_exact(2).take(4) {
        let at = usize::from(change[0]) % changed.len();
        changed[at] = change[1];
    }
    assert_eq!(MINT.recognize(&changed).is_some(), changed == *TOKEN);
    assert!(MINT.recognize(&[&TOKEN[..], data].concat()).is_none() || data.is_empty());
    // An accepted key is a valid header value.
    if let Some(key) = ApiKey::parse(data) {
        assert!(HeaderValue::from_bytes(key.expose()).is_ok_and(|value| value == data));
    }
    if let Ok(text) = std::str::from_utf8(data)
        && let Some(id) = TokenId::from_hex(text)
    {
        assert_eq!(id.fingerprint().to_string(), text[..8].to_ascii_lowercase());
    }
    if let Ok(name) = UserName::parse(data) {
        assert_eq!(name.as_str().as_bytes(), data);
    }
});
