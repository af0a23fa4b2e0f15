//! Why a credential or a login is not accepted. It does not know the responses: `gateway::rejection` does.

use std::time::Duration;

use crate::auth::bearer::BearerError;
use crate::auth::failure_limiter::TooManyFailures;
use crate::auth::jwt::JwtError;
use crate::auth::key_exchange::ExchangeError;
use crate::auth::verifier::VerifyError;
use crate::base::user_name::UserName;
use crate::store::TokenEnd;

/// Why a credential was not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// A token of this gateway that is not valid any more.
    #[error("the token is not valid any more")]
    TokenEnded(TokenEnd),
    /// Neither the gateway nor, if it was consulted, the backend knows the key.
    #[error("unknown key")]
    Unknown,
    /// A token of this gateway that is not in memory, while the store is unavailable.
    #[error("the token store is unavailable")]
    StoreUnavailable,
    /// The backend could not verify the key.
    #[error("the backend could not verify the key")]
    Unverifiable,
    /// The limit on concurrent key checks at the backend is reached.
    #[error("too many keys are being verified")]
    Busy,
    /// A JSON Web Token that was not accepted.
    #[error("JWT rejected: {0}")]
    Jwt(JwtError),
    /// A user name with a password, which no verifier can check.
    #[error("passwords are not checked")]
    PasswordUnsupported,
    /// A user name with a password that was not accepted.
    #[error("login rejected: {0}")]
    Login(MintError),
    /// A valid login without a key of its user at the backend.
    #[error("no key of the user")]
    Exchange(ExchangeError),
    /// An unknown key from a client address with too many failures. The backend was not consulted.
    #[error("too many wrong keys")]
    TooManyFailures(TooManyFailures),
}

/// Why no token was made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MintError {
    /// The login is right, but an operator denies this user, or has stopped it. No token is stored, as none is delivered.
    #[error("the user {0} is denied or stopped")]
    Denied(UserName),
    /// The bearer could not be opened.
    #[error("the bearer cannot be opened")]
    Bearer(#[from] BearerError),
    /// The login was not accepted, or the client has too many failures.
    #[error(transparent)]
    Login(#[from] VerifyError),
    /// The login is valid, but its user got no key from the backend.
    #[error("no key of the user")]
    Exchange(ExchangeError),
    /// Too many new tokens for the client's address.
    #[error("too many new tokens")]
    TooManyTokens(Duration),
    /// The token could not be stored.
    #[error("the token store is unavailable")]
    StoreUnavailable,
}

/// A login that got no token.
#[derive(Debug)]
pub struct MintFailure {
    /// Why.
    pub error: MintError,
    /// The user that an authentic bearer names, for the audit log. The password was not verified.
    pub claimed_user: Option<UserName>,
}
