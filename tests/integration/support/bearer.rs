//! Bearers, made as in the documentation's script.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use timbr_gateway::auth::bearer::make_bearer;
use timbr_gateway::base::secret::Secret;

/// The salt of all test gateways.
pub const SALT: &str = "cw_0x689RpI-jtRR7oE8h_eQsKImvJapLeSbXpwF4e4=";

/// The bearer of a user, made with [`SALT`].
pub fn bearer(user: &str, password: &str) -> String {
    bearer_with(SALT, user, password)
}

/// The value of an `Authorization` header with a name and password.
pub fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

/// The bearer of a user, made with this salt.
pub fn bearer_with(salt: &str, user: &str, password: &str) -> String {
    let bearer = make_bearer(&Secret::new(salt.into()), user, &Secret::new(password.into()));
    bearer.expect("the salt is a Fernet key").expose().to_owned()
}
