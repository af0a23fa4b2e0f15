//! Who says that a password is right. Asked once, when a token is minted; never on the path of a query.

mod delegate;
mod html_form;
mod ldap;
pub mod password_hash;
mod platform;
pub mod users;
mod users_file;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::auth::bearer::Credentials;
use crate::auth::failure_limiter::{Attempt, TooMany};
use crate::base::byte_class::Octets;
use crate::base::secret::Secret;

pub use delegate::Delegate;
pub use ldap::Directory;
pub use platform::{Platform, Session};
pub use users_file::UsersFile;

/// Most logins that another server is asked about at once. Each may hold one of its threads.
const MOST_AT_ONCE: usize = 16;

/// So long a login waits for its turn to be asked about.
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// The authority over passwords.
pub enum Verifier {
    /// SECURITY: whoever holds the salt may name any user; the password is not looked at.
    SaltHolder,
    /// Hashes from a file.
    UsersFile(UsersFile),
    /// Another server.
    Remote(Remote, Arc<Semaphore>),
}

/// A server that says whether a password is right.
#[derive(Clone)]
pub enum Remote {
    /// The platform's login form.
    Platform(Platform),
    /// The API service behind.
    Delegate(Delegate),
    /// A directory.
    Ldap(Directory),
}

/// What follows from a right password.
#[derive(Debug, Default)]
pub struct Verified {
    /// The user's own key at the backend.
    pub upstream_key: Option<Secret>,
    /// In which another one can be had when that one is refused.
    pub session: Option<Session>,
}

/// Why there is no yes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// No such user, or another password; which of them is nobody's business.
    #[error("no such user, or not that password")]
    Wrong,
    /// Nobody could say.
    #[error("the verifier does not answer")]
    Unavailable,
    /// Too many passwords are being checked.
    #[error("too many passwords are being checked at once")]
    Busy,
    /// The client was wrong too often; the password was not looked at.
    #[error("too many wrong passwords")]
    TooMany(TooMany),
}

impl Verifier {
    /// One that asks another server.
    pub fn remote(remote: Remote) -> Verifier {
        Verifier::Remote(remote, Arc::new(Semaphore::new(MOST_AT_ONCE)))
    }

    /// Asks whether the credentials are right, and notes with the attempt if they are not. `bearer` is what they came in.
    pub async fn verify(
        &self,
        credentials: &Credentials,
        bearer: &str,
        attempt: Attempt,
    ) -> Result<Verified, VerifyError> {
        match self {
            Verifier::SaltHolder => Ok(Verified::default()),
            Verifier::UsersFile(users) => {
                users.verify(credentials, attempt).await.map(|()| Verified::default())
            }
            Verifier::Remote(remote, turns) => {
                // SECURITY: who was wrong too often has nobody asked, before and after waiting for a turn.
                attempt.look().map_err(VerifyError::TooMany)?;
                let turn = timeout(LONGEST_WAIT, Arc::clone(turns).acquire_owned()).await;
                let Ok(Ok(turn)) = turn else { return Err(VerifyError::Busy) };
                attempt.look().map_err(VerifyError::TooMany)?;
                let (remote, credentials, bearer) = (remote.clone(), credentials.clone(), bearer.to_owned());
                // A task of its own, so that a wrong password is noted although its client has gone away.
                let asking = tokio::spawn(async move {
                    let verified = remote.verify(&credentials, &bearer).await;
                    if matches!(verified, Err(VerifyError::Wrong)) {
                        attempt.failed();
                    }
                    drop(turn);
                    verified
                });
                asking.await.unwrap_or(Err(VerifyError::Unavailable))
            }
        }
    }

    /// The platform, if that is asked.
    pub fn platform(&self) -> Option<&Platform> {
        match self {
            Verifier::Remote(Remote::Platform(platform), _) => Some(platform),
            _ => None,
        }
    }

    /// Reads files again that have changed, or all if somebody has `asked` for it; tells whose logins count no more.
    /// Blocks on the file system.
    pub fn look(&self, asked: bool) -> Vec<String> {
        match self {
            Verifier::SaltHolder | Verifier::Remote(..) => Vec::new(),
            Verifier::UsersFile(users) => users.look(asked),
        }
    }

    /// Users whose passwords another verifier of the same kind, in force before, took and this one does not, as far as is
    /// known here.
    pub fn ended_since(&self, before: &Verifier) -> Vec<String> {
        match (self, before) {
            (Verifier::UsersFile(users), Verifier::UsersFile(before)) => users.ended_since(before),
            _ => Vec::new(),
        }
    }

    /// Whether a file cannot be used as it is, and what was read before is in use.
    pub fn is_failing(&self) -> bool {
        match self {
            Verifier::SaltHolder | Verifier::Remote(..) => false,
            Verifier::UsersFile(users) => users.is_failing(),
        }
    }
}

impl Remote {
    async fn verify(&self, credentials: &Credentials, bearer: &str) -> Result<Verified, VerifyError> {
        match self {
            Remote::Platform(platform) => platform.verify(credentials).await,
            Remote::Delegate(delegate) => delegate.verify(bearer).await,
            Remote::Ldap(directory) => directory.verify(credentials).await,
        }
    }
}

/// Whether a text that another server gave can be a key in a field.
fn is_key(text: &str) -> bool {
    (1..=1024).contains(&text.len()) && Octets::KEY.are_all(text.as_bytes())
}
