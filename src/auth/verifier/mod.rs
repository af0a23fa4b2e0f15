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
use crate::auth::failure_limiter::{Attempt, TooManyFailures};
use crate::base::byte_class::ByteClass;
use crate::base::secret::Secret;

pub use delegate::Delegate;
pub use ldap::LdapDirectory;
pub use platform::{Platform, PlatformSession};
pub use users_file::UsersFile;

/// Most logins that another server is asked about at once. Each may hold one of its threads.
const MAX_CONCURRENT_LOGINS: usize = 16;

/// So long a login waits for its turn to be asked about.
const QUEUE_TIMEOUT: Duration = Duration::from_secs(5);

/// The authority over passwords.
pub enum Verifier {
    /// SECURITY: whoever holds the salt may name any user; the password is not looked at.
    SaltHolder,
    /// Hashes from a file.
    UsersFile(UsersFile),
    /// Another server.
    Remote(RemoteVerifier, Arc<Semaphore>),
}

/// A server that says whether a password is right.
#[derive(Clone)]
pub enum RemoteVerifier {
    /// The platform's login form.
    Platform(Platform),
    /// The API service behind.
    Delegate(Delegate),
    /// A directory.
    Ldap(LdapDirectory),
}

/// What follows from a right password.
#[derive(Debug, Default)]
pub struct VerifiedLogin {
    /// The user's own key at the backend.
    pub upstream_key: Option<Secret>,
    /// In which another one can be had when that one is refused.
    pub session: Option<PlatformSession>,
}

/// Why there is no yes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// No such user, or another password; which of them is nobody's business.
    #[error("no such user, or not that password")]
    WrongCredentials,
    /// Nobody could say.
    #[error("the verifier does not answer")]
    Unavailable,
    /// Too many passwords are being checked.
    #[error("too many passwords are being checked at once")]
    Busy,
    /// The client was wrong too often; the password was not looked at.
    #[error("too many wrong passwords")]
    TooManyFailures(TooManyFailures),
}

impl Verifier {
    /// One that asks another server.
    pub fn remote(remote: RemoteVerifier) -> Verifier {
        Verifier::Remote(remote, Arc::new(Semaphore::new(MAX_CONCURRENT_LOGINS)))
    }

    /// Asks whether the credentials are right, and notes with the attempt if they are not. `bearer` is what they came in.
    pub async fn verify(
        &self,
        credentials: &Credentials,
        bearer: &str,
        attempt: Attempt,
    ) -> Result<VerifiedLogin, VerifyError> {
        match self {
            Verifier::SaltHolder => Ok(VerifiedLogin::default()),
            Verifier::UsersFile(users) => {
                users.verify(credentials, attempt).await.map(|()| VerifiedLogin::default())
            }
            Verifier::Remote(remote, turns) => {
                // SECURITY: who was wrong too often has nobody asked, before and after waiting for a turn.
                attempt.check_limits().map_err(VerifyError::TooManyFailures)?;
                let turn = timeout(QUEUE_TIMEOUT, Arc::clone(turns).acquire_owned()).await;
                let Ok(Ok(turn)) = turn else { return Err(VerifyError::Busy) };
                attempt.check_limits().map_err(VerifyError::TooManyFailures)?;
                let (remote, credentials, bearer) = (remote.clone(), credentials.clone(), bearer.to_owned());
                // A task of its own, so that a wrong password is noted although its client has gone away.
                let asking = tokio::spawn(async move {
                    let verified = remote.verify(&credentials, &bearer).await;
                    if matches!(verified, Err(VerifyError::WrongCredentials)) {
                        attempt.record_failure();
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
            Verifier::Remote(RemoteVerifier::Platform(platform), _) => Some(platform),
            _ => None,
        }
    }

    /// Reads files again that have changed, or all if somebody has `asked` for it; tells whose logins count no more.
    /// Blocks on the file system.
    pub fn reload_files(&self, asked: bool) -> Vec<String> {
        match self {
            Verifier::SaltHolder | Verifier::Remote(..) => Vec::new(),
            Verifier::UsersFile(users) => users.reload(asked),
        }
    }

    /// Users whose passwords another verifier of the same kind, in force before, took and this one does not, as far as is
    /// known here.
    pub fn changed_users_since(&self, before: &Verifier) -> Vec<String> {
        match (self, before) {
            (Verifier::UsersFile(users), Verifier::UsersFile(before)) => users.changed_users_since(before),
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

impl RemoteVerifier {
    async fn verify(&self, credentials: &Credentials, bearer: &str) -> Result<VerifiedLogin, VerifyError> {
        match self {
            RemoteVerifier::Platform(platform) => platform.verify(credentials).await,
            RemoteVerifier::Delegate(delegate) => delegate.verify(bearer).await,
            RemoteVerifier::Ldap(directory) => directory.verify(credentials).await,
        }
    }
}

/// Whether a text that another server gave can be a key in a field.
fn is_valid_key(text: &str) -> bool {
    (1..=1024).contains(&text.len()) && ByteClass::API_KEY.contains_all(text.as_bytes())
}
