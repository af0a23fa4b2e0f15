//! Who says that a password is right. Asked once, when a token is minted; never on the path of a query.

pub mod password_hash;
pub mod users;
mod users_file;

use crate::auth::bearer::Credentials;
use crate::auth::guesses::{Attempt, TooMany};

pub use users_file::UsersFile;

/// The authority over passwords.
pub enum Verifier {
    /// SECURITY: whoever holds the salt may name any user; the password is not looked at.
    SaltHolder,
    /// Hashes from a file.
    UsersFile(UsersFile),
}

/// Why there is no yes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// No such user, or another password; which of them is nobody's business.
    #[error("no such user, or not that password")]
    Wrong,
    /// Too many passwords are being checked.
    #[error("too many passwords are being checked at once")]
    Busy,
    /// The client was wrong too often; the password was not looked at.
    #[error("too many wrong passwords")]
    TooMany(TooMany),
}

impl Verifier {
    /// Asks whether the credentials are right, and notes with the attempt if they are not.
    pub async fn verify(&self, credentials: &Credentials, attempt: Attempt) -> Result<(), VerifyError> {
        match self {
            Verifier::SaltHolder => Ok(()),
            Verifier::UsersFile(users) => users.verify(credentials, attempt).await,
        }
    }

    /// Reads files again that have changed, or all if somebody has `asked` for it; tells whose logins count no more.
    /// Blocks on the file system.
    pub fn look(&self, asked: bool) -> Vec<String> {
        match self {
            Verifier::SaltHolder => Vec::new(),
            Verifier::UsersFile(users) => users.look(asked),
        }
    }

    /// Whether a file cannot be used as it is, and what was read before is in use.
    pub fn is_failing(&self) -> bool {
        match self {
            Verifier::SaltHolder => false,
            Verifier::UsersFile(users) => users.is_failing(),
        }
    }
}
