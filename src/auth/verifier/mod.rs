//! Verifies the password of a login; a request with a token never uses it. Knows nothing about tokens.

mod delegate;
mod html_form;
mod ldap;
pub mod password_hash;
mod platform;
pub mod users;
mod users_file;

use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tracing::warn;

use crate::auth::bearer::Credentials;
use crate::auth::failure_limiter::{Attempt, Charge, TooManyFailures};
use crate::auth::token_binding::Evidence;
use crate::base::groups::Groups;
use crate::base::secret::Secret;
use crate::base::user_name::UserName;
use crate::config::{Config, VerifierOptions};
use crate::tls::TlsError;

pub use delegate::Delegate;
pub use ldap::LdapDirectory;
pub use platform::{Platform, PlatformSession};
pub use users_file::UsersFile;

/// Each login at a remote verifier may occupy one of its threads.
const MAX_CONCURRENT_LOGINS: usize = 16;

/// Maximum time that a login waits for a permit.
const QUEUE_TIMEOUT: Duration = Duration::from_secs(5);

/// The configured way to verify passwords.
pub enum Verifier {
    /// SECURITY: a client with the salt can log in as any user; passwords are not checked.
    SaltHolder,
    /// Password hashes in a file.
    UsersFile(UsersFile),
    /// A remote server.
    Remote(Arc<RemoteVerifier>, Arc<Semaphore>),
}

/// A server that verifies passwords.
pub enum RemoteVerifier {
    /// The platform's login form.
    Platform(Platform),
    /// The `get_token` of the API service.
    Delegate(Delegate),
    /// An LDAP directory.
    Ldap(LdapDirectory),
}

/// The result of a successful login.
#[derive(Debug, Default)]
pub struct VerifiedLogin {
    /// The user's name as the verifier spells it; `None`: as the client sent it.
    ///
    /// SECURITY: servers accept several spellings (`ALICE`, an e-mail address) for one user. Rules, limits, revocations
    /// and the backend must see one name.
    pub user: Option<UserName>,
    /// The user's groups, if the verifier knows them.
    pub groups: Option<Groups>,
    /// The user's own key at the backend, if the verifier provides one.
    pub upstream_key: Option<Secret>,
    /// The session that can renew this key.
    pub session: Option<PlatformSession>,
    /// What has proven the login, if the verifier knows it.
    pub evidence: Evidence,
}

/// Why a password was not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// Unknown user or wrong password; the client must not learn which.
    #[error("unknown user or wrong password")]
    WrongCredentials,
    /// The verifier could not check the password.
    #[error("the verifier is unavailable")]
    Unavailable,
    /// The limit on concurrent logins is reached.
    #[error("too many logins are in progress")]
    Busy,
    /// Too many failures; the password was not checked.
    #[error("too many wrong passwords")]
    TooManyFailures(TooManyFailures),
}

impl Verifier {
    /// A verifier on a remote server, with a concurrency limit.
    pub fn remote(remote: RemoteVerifier) -> Verifier {
        Verifier::Remote(Arc::new(remote), Arc::new(Semaphore::new(MAX_CONCURRENT_LOGINS)))
    }

    /// Verifies the credentials, and records a failure of `attempt` if they are wrong. `bearer` is the bearer that
    /// contained them.
    pub async fn verify(
        &self,
        credentials: &Credentials,
        bearer: &str,
        attempt: Attempt,
    ) -> Result<VerifiedLogin, VerifyError> {
        match self {
            Verifier::SaltHolder => Ok(VerifiedLogin::default()),
            Verifier::UsersFile(users) => users.verify(credentials, attempt).await,
            Verifier::Remote(remote, permits) => {
                // SECURITY: a client with too many failures must not reach the remote server.
                let (permit, charge) = start_check(permits, &attempt).await?;
                let (remote, credentials, bearer) = (Arc::clone(remote), credentials.clone(), bearer.to_owned());
                // A separate task, so that the result counts even if the client disconnects.
                let login = tokio::spawn(async move {
                    let verified = remote.verify(&credentials, &bearer).await;
                    // SECURITY: only a login is refunded. Some servers respond to a wrong password with an error.
                    if verified.is_ok() {
                        charge.refund();
                    }
                    drop(permit);
                    verified
                });
                login.await.unwrap_or(Err(VerifyError::Unavailable))
            }
        }
    }

    /// The platform, if it is the verifier.
    pub fn platform(&self) -> Option<&Platform> {
        match self {
            Verifier::Remote(remote, _) => match &**remote {
                RemoteVerifier::Platform(platform) => Some(platform),
                RemoteVerifier::Delegate(_) | RemoteVerifier::Ldap(_) => None,
            },
            Verifier::SaltHolder | Verifier::UsersFile(_) => None,
        }
    }

    /// The users file, if it is the verifier.
    pub fn users_file(&self) -> Option<&UsersFile> {
        match self {
            Verifier::UsersFile(users) => Some(users),
            Verifier::SaltHolder | Verifier::Remote(..) => None,
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

/// Checks the server that verifies passwords as far as that is possible without one. `None` if there is no such server,
/// or if it is the backend.
pub async fn check_server(config: &Config) -> Option<Result<(), String>> {
    let text = |error: TlsError| error.to_string();
    match &config.auth.verifier {
        VerifierOptions::Ldap(options) => {
            let check = async { LdapDirectory::new(options).map_err(text)?.check().await };
            Some(check.await)
        }
        VerifierOptions::Platform => {
            let check = async {
                let platform = Platform::new(config).map_err(text)?;
                platform.check().await.map_err(|_| "see the log above".to_owned())
            };
            Some(check.await)
        }
        VerifierOptions::SaltHolder | VerifierOptions::UsersFile(_) | VerifierOptions::Delegate => None,
    }
}

/// Waits until a password may be verified: the failure limits allow it, and a permit is free.
async fn start_check(
    permits: &Arc<Semaphore>,
    attempt: &Attempt,
) -> Result<(OwnedSemaphorePermit, Charge), VerifyError> {
    let starting = async {
        let reservation = attempt.reserve_after_others().await.map_err(VerifyError::TooManyFailures)?;
        let permit = Arc::clone(permits).acquire_owned().await.map_err(|_| VerifyError::Busy)?;
        Ok((permit, reservation.start()))
    };
    timeout(QUEUE_TIMEOUT, starting).await.unwrap_or(Err(VerifyError::Busy))
}

/// Logs why a server could not verify a password.
fn unavailable(server: &str, why: impl Display) -> VerifyError {
    warn!(why = why.to_string(), "cannot verify a password at {server}");
    VerifyError::Unavailable
}
