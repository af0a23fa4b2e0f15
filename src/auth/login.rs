//! Logins: from a bearer with a user name and a password to the token of the login. The verifier checks the password.

use std::net::IpAddr;

use crate::auth::bearer::{self, BearerError, Credentials};
use crate::auth::failure_limiter::{Attempt, TooManyFailures};
use crate::auth::verifier::{VerifiedLogin, Verifier, VerifyError};
use crate::auth::{Auth, MintError, MintFailure, store_outcome};
use crate::base::secret::Secret;
use crate::base::user_name::UserName;
use crate::observability::auth_timing::AuthTiming;
use crate::observability::metrics::AuthOutcome;
use crate::observability::phase::Phase;
use crate::store::{Fingerprint, NewToken, PRIMARY_KEY, TokenId};

/// A token that `get_token` returns.
#[derive(Debug)]
pub struct MintedToken {
    /// The token; a credential.
    pub token: Secret,
    /// The user that the token identifies.
    pub user: UserName,
    /// The token's identifier in logs.
    pub fingerprint: Fingerprint,
}

impl Auth {
    /// Returns the token for the credentials in a bearer: the existing token of this login, or a new one. `client` is
    /// the client's address.
    ///
    /// SECURITY: a bearer that is not authentic and a wrong password count as failures. A bearer that is authentic but
    /// too old, or has no credentials, does not count: its maker has the salt.
    pub async fn mint(&self, bearer: &str, client: IpAddr, timing: &AuthTiming) -> Result<MintedToken, MintFailure> {
        let attempt = self.failure_limiter.begin_attempt(client);
        let opened = timing.measure_sync(Phase::Bearer, || self.bearer_opener.open_with_salt(bearer), bearer_outcome);
        let (salt, login) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                let recorded = match error {
                    BearerError::NotAuthentic => attempt.record_failure(),
                    _ => Ok(()),
                };
                let error = match recorded {
                    Ok(()) => MintError::Bearer(error),
                    Err(wait) => VerifyError::TooManyFailures(wait).into(),
                };
                return Err(MintFailure { error, claimed_user: None });
            }
        };
        let claimed_user = login.user.clone();
        let minting = self.mint_for(login, salt, bearer, attempt, timing);
        minting.await.map_err(|error| MintFailure { error, claimed_user: Some(claimed_user) })
    }

    /// Verifies a login whose bearer is authentic, and returns its token.
    async fn mint_for(
        &self,
        login: Credentials,
        salt: u8,
        bearer: &str,
        attempt: Attempt,
        timing: &AuthTiming,
    ) -> Result<MintedToken, MintError> {
        let verifying = self.verifier.verify(&login, bearer, attempt.clone().for_user(&login.user));
        let VerifiedLogin { user, upstream_key, session, evidence } =
            timing.measure(Phase::Verifier, verifying, verifier_outcome).await?;
        let login = Credentials { user: user.unwrap_or(login.user), ..login };
        // SECURITY: what has proven this login. If it is withdrawn while the password is being checked, the token is
        // not accepted.
        let evidence = match &*self.verifier {
            Verifier::SaltHolder => self.token_binder.salt_evidence(usize::from(salt)),
            Verifier::UsersFile(_) | Verifier::Remote(..) => evidence,
        };
        let binding = self.token_binder.bind(&login.user, &evidence);
        let upstream_key = upstream_key.filter(|_| self.upstream_keys.is_some());
        let token_of = |seed: &_| self.token_mint.token(&login, seed);
        let id_of = |seed: &_| TokenId::from_token(token_of(seed).expose().as_bytes());
        let login_id = self.token_mint.login_id(&login, &binding);
        let unavailable = |_| MintError::StoreUnavailable;
        let seed = match (self.store.find_seed(&login_id, id_of), upstream_key) {
            (Some(seed), None) => seed,
            (Some(seed), Some(key)) => {
                let id = id_of(&seed);
                let storing = self.store.set_upstream_key(&id, key);
                timing.measure(Phase::Store, storing, store_outcome).await.map_err(unavailable)?;
                seed
            }
            (None, upstream_key) => {
                if !self.store.knows_login(&login_id, id_of) {
                    attempt.record_new_token().map_err(|TooManyFailures(wait)| MintError::TooManyTokens(wait))?;
                }
                let user = login.user.clone();
                let new = NewToken { login: login_id, user, upstream_key, binding, key: PRIMARY_KEY };
                // Rounded up: in doubt the store decides.
                let expires = self.store.now().unix_seconds().saturating_add(self.token_ttl.as_secs() + 1);
                let storing = self.store.insert(new, self.token_mint.new_seed(expires), id_of);
                timing.measure(Phase::Store, storing, store_outcome).await.map_err(unavailable)?
            }
        };
        self.store.record_salt_use(self.salt_names[usize::from(salt)], &login.user);
        if let (Some(keys), Some(session)) = (&self.upstream_keys, session) {
            keys.store_session(id_of(&seed), session);
        }
        let fingerprint = id_of(&seed).fingerprint();
        Ok(MintedToken { token: token_of(&seed), fingerprint, user: login.user })
    }
}

fn bearer_outcome(opened: &Result<(u8, bearer::Credentials), BearerError>) -> AuthOutcome {
    if opened.is_ok() { AuthOutcome::Ok } else { AuthOutcome::Refused }
}

fn verifier_outcome(verified: &Result<VerifiedLogin, VerifyError>) -> AuthOutcome {
    match verified {
        Ok(_) => AuthOutcome::Ok,
        Err(VerifyError::WrongCredentials) => AuthOutcome::Refused,
        Err(VerifyError::Unavailable) => AuthOutcome::Unavailable,
        Err(VerifyError::Busy | VerifyError::TooManyFailures(_)) => AuthOutcome::Busy,
    }
}
