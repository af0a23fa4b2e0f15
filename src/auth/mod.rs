//! Who the caller is. Only this module makes an [`Identity`].

mod api_key;
pub mod authorization;
pub mod bearer;
pub mod failure_limiter;
pub mod foreign_keys;
mod identity;
pub mod impersonation;
pub mod jwt;
mod keys_file;
mod loading;
mod salt_ids;
pub mod token;
mod token_invalidation;
pub mod upstream_keys;
pub mod verifier;

use std::net::IpAddr;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::base::secret::Secret;
use crate::base::user_name::UserName;
use crate::config::ForeignKeyPolicy;
use crate::observability::auth_timing::AuthTiming;
use crate::observability::metrics::AuthOutcome;
use crate::observability::phase::Phase;
use crate::store::{Fingerprint, NewToken, Store, TokenId, TokenRecord, Unavailable};
use crate::upstream::UpstreamClient;

pub use api_key::{ApiKey, ClientCredential, basic_authorization};
pub use identity::Identity;
pub use token_invalidation::InvalidatedTokens;

use authorization::Authorization;
use bearer::{BearerError, BearerOpener};
use failure_limiter::{FailureLimiter, TooManyFailures};
use foreign_keys::{ForeignKeys, KeyVerdict};
use impersonation::Impersonation;
use jwt::{Jwt, JwtError, JwtVerifier};
use keys_file::KnownKeys;
use salt_ids::SaltIds;
use token::TokenMint;
use upstream_keys::{Renewal, UpstreamKeys, sensitive_header_value};
use verifier::{VerifiedLogin, Verifier, VerifyError};

/// Why a key proves nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// A token of this gateway, but none that lives.
    #[error("a token of this gateway that has ended")]
    TokenExpired,
    /// Nobody knows it.
    #[error("nobody knows the key")]
    Unknown,
    /// A token of this gateway's, of which nothing is known here, and the store cannot be asked.
    #[error("the token store does not answer")]
    StoreUnavailable,
    /// The backend could not be asked.
    #[error("the backend could not be asked about the key")]
    Unverifiable,
    /// The backend is being asked about as many keys as it may be at once.
    #[error("too many keys are being asked about")]
    Busy,
    /// A JSON Web Token that proves nobody.
    #[error("the JWT is refused: {0}")]
    Jwt(JwtError),
    /// Nobody knows the key, and its client was wrong too often to have the backend asked.
    #[error("too many wrong keys")]
    TooManyFailures(TooManyFailures),
}

/// Why no token was minted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MintError {
    /// The bearer does not open.
    #[error("the bearer does not open")]
    Bearer(#[from] BearerError),
    /// The password is not right, or could not be checked.
    #[error("the credentials are not right")]
    WrongCredentials,
    /// Nobody could say whether the password is right.
    #[error("the verifier does not answer")]
    VerifierUnavailable,
    /// Too many passwords are being checked.
    #[error("too many passwords are being checked at once")]
    Busy,
    /// The token could not be kept.
    #[error("the token store does not answer")]
    StoreUnavailable,
    /// Not right, or not looked at, as the client was wrong too often.
    #[error("too many wrong bearers or passwords")]
    TooManyFailures(TooManyFailures),
}

impl From<VerifyError> for MintError {
    fn from(error: VerifyError) -> MintError {
        match error {
            VerifyError::WrongCredentials => MintError::WrongCredentials,
            VerifyError::Unavailable => MintError::VerifierUnavailable,
            VerifyError::Busy => MintError::Busy,
            VerifyError::TooManyFailures(wait) => MintError::TooManyFailures(wait),
        }
    }
}

/// A token for a client, and for the log.
#[derive(Debug)]
pub struct MintedToken {
    /// The token.
    pub token: Secret,
    /// Whose it is.
    pub user: UserName,
    /// What logs call it.
    pub fingerprint: Fingerprint,
}

/// Everything that is needed to tell who calls; shared by all workers.
pub struct Auth {
    bearer_opener: BearerOpener,
    token_mint: TokenMint,
    verifier: Arc<Verifier>,
    /// Another one if it is another verifier that ended what the one before had let in.
    verifier_generation: u64,
    store: Arc<Store>,
    salt_names: Vec<String>,
    /// The numbers of the salts, by which the store knows them.
    salt_ids: Vec<u8>,
    known_salts: Arc<SaltIds>,
    known_keys: KnownKeys,
    foreign_policy: ForeignKeyPolicy,
    foreign_keys: ForeignKeys,
    failure_limiter: Arc<FailureLimiter>,
    /// Who hears of the failures that other replicas saw.
    active_limiter: Arc<Mutex<Weak<FailureLimiter>>>,
    jwt_verifier: Arc<JwtVerifier>,
    impersonation: Impersonation,
    authorization: Option<Authorization>,
    /// Where a token stands for its user's own key.
    upstream_keys: Option<Arc<UpstreamKeys>>,
}

impl Auth {
    /// The token for the credentials in a bearer: the one that this login has, or a new one. `client` is who asks.
    ///
    /// SECURITY: a bearer that does not open and a password that is wrong are guesses. One that opens but is too old, or
    /// holds no credentials, was made by somebody with the salt.
    pub async fn mint(
        &self,
        bearer: &str,
        client: IpAddr,
        steps: &AuthTiming,
    ) -> Result<MintedToken, MintError> {
        let attempt = self.failure_limiter.begin_attempt(client);
        let opened =
            steps.measure_sync(Phase::Bearer, || self.bearer_opener.open_with_salt(bearer), bearer_outcome);
        let (salt, login) = match opened {
            Ok(opened) => opened,
            Err(BearerError::NotAuthentic) => {
                attempt.try_record_failure().map_err(MintError::TooManyFailures)?;
                return Err(MintError::Bearer(BearerError::NotAuthentic));
            }
            Err(error) => return Err(error.into()),
        };
        let attempt = attempt.for_user(&login.user);
        let proof = self.store.proof_for(self.verifier_generation);
        let verifying = self.verifier.verify(&login, bearer, attempt);
        let VerifiedLogin { upstream_key, session } =
            steps.measure(Phase::Verifier, verifying, verifier_outcome).await?;
        // SECURITY: a password that was right when it was looked at need not be so any more: tokens were ended meanwhile.
        if !self.store.is_proof_valid(proof) {
            return Err(MintError::StoreUnavailable);
        }
        let upstream_key = upstream_key.filter(|_| self.upstream_keys.is_some());
        let token_of = |seed: &_| self.token_mint.token(&login, seed);
        let id_of = |seed: &_| TokenId::from_token(token_of(seed).expose().as_bytes());
        let login_id = self.token_mint.login_id(&login);
        let unavailable = |_| MintError::StoreUnavailable;
        let seed = match (self.store.find_seed(&login_id, id_of), upstream_key) {
            (Some(seed), None) => seed,
            (Some(seed), Some(key)) => {
                let id = id_of(&seed);
                let keeping = self.store.set_upstream_key(&id, key);
                steps.measure(Phase::Store, keeping, store_outcome).await.map_err(unavailable)?;
                seed
            }
            (None, upstream_key) => {
                let salt = self.salt_ids[0];
                let new = NewToken { login: login_id, user: login.user.clone(), upstream_key, salt };
                let keeping = self.store.insert(new, self.token_mint.new_seed(), proof, id_of);
                steps.measure(Phase::Store, keeping, store_outcome).await.map_err(unavailable)?
            }
        };
        self.store.record_salt_use(self.salt_ids[usize::from(salt)], &login.user);
        if let (Some(keys), Some(session)) = (&self.upstream_keys, session) {
            keys.store_session(id_of(&seed), session);
        }
        let fingerprint = id_of(&seed).fingerprint();
        Ok(MintedToken { token: token_of(&seed), fingerprint, user: login.user })
    }

    /// Whose a credential is; `client` is who shows it.
    pub async fn identify(
        &self,
        presented: &ClientCredential,
        client: IpAddr,
        upstream: &UpstreamClient,
        steps: &AuthTiming,
    ) -> Result<Identity, KeyError> {
        match presented {
            ClientCredential::Key(key) | ClientCredential::Basic(key) => {
                self.identify_key(key, client, upstream, steps).await
            }
            ClientCredential::Jwt(jwt) => self.identify_jwt(jwt, client, steps).await,
        }
    }

    /// SECURITY: a token that nobody has signed is a guess. One that has expired, or is meant for others, is none: it was
    /// made by an issuer that we know.
    async fn identify_jwt(
        &self,
        jwt: &Jwt,
        client: IpAddr,
        steps: &AuthTiming,
    ) -> Result<Identity, KeyError> {
        let id = jwt.id();
        match self.jwt_verifier.verify(jwt, id, steps).await {
            Ok(user) => Ok(Identity::from_jwt(user, id.fingerprint())),
            Err(JwtError::Invalid(why)) => {
                self.failure_limiter
                    .begin_attempt(client)
                    .try_record_failure()
                    .map_err(KeyError::TooManyFailures)?;
                Err(KeyError::Jwt(JwtError::Invalid(why)))
            }
            Err(error) => Err(KeyError::Jwt(error)),
        }
    }

    /// SECURITY: every way out of here that is not an error was proven by a map that only this process fills, by a
    /// file of the operator, or by the backend itself; `tokens.foreign=forward` is the operator's word that the
    /// backend judges every request.
    ///
    /// What is known passes however often others at the same address were wrong. A token of ours that has ended is no
    /// guess: nobody can make one up without the salt.
    async fn identify_key(
        &self,
        key: &ApiKey,
        client: IpAddr,
        upstream: &UpstreamClient,
        steps: &AuthTiming,
    ) -> Result<Identity, KeyError> {
        let id = key.id();
        let fingerprint = id.fingerprint();
        if let Some(known) = self.known_keys.find(&id) {
            let upstream_key = known.upstream_key.as_deref().cloned();
            return Ok(Identity::from_key(Some(known.user.clone()), upstream_key, fingerprint));
        }
        if let Some(record) = self.store.find(&id) {
            return self.token_identity(id, &record);
        }
        if let Some(salt) = self.token_mint.salt_index_of(key.expose()) {
            // SECURITY: a store that does not answer is neither a yes nor a no. In the heap, as it is seldom asked and every
            // request would have to be as large.
            let salt = self.salt_ids[usize::from(salt)];
            return match Box::pin(steps.measure(Phase::Store, self.store.fetch(&id, salt), store_outcome))
                .await
            {
                Ok(Some(record)) => self.token_identity(id, &record),
                Ok(None) => Err(KeyError::TokenExpired),
                Err(Unavailable) => Err(KeyError::StoreUnavailable),
            };
        }
        let attempt = self.failure_limiter.begin_attempt(client);
        let verdict = match self.foreign_policy {
            ForeignKeyPolicy::Reject => KeyVerdict::Rejected,
            ForeignKeyPolicy::Forward => KeyVerdict::Accepted,
            ForeignKeyPolicy::Verify => match self.foreign_keys.cached(&id) {
                Some(verdict) => verdict,
                None => {
                    // SECURITY: else every made-up key would be a request to the backend, and a right guess among them
                    // would stand out.
                    attempt.check_limits().map_err(KeyError::TooManyFailures)?;
                    // In the heap, as it is seldom asked and every request would have to be as large.
                    let asking = self.foreign_keys.check(id, key, upstream);
                    Box::pin(steps.measure(Phase::ForeignCheck, asking, verdict_outcome)).await
                }
            },
        };
        match verdict {
            KeyVerdict::Accepted => Ok(Identity::from_key(None, None, fingerprint)),
            KeyVerdict::Rejected => {
                attempt.try_record_failure().map_err(KeyError::TooManyFailures)?;
                Err(KeyError::Unknown)
            }
            KeyVerdict::Unknown => Err(KeyError::Unverifiable),
            KeyVerdict::Busy => Err(KeyError::Busy),
        }
    }

    /// SECURITY: where tokens stand for keys, one without says nothing to the backend: it was made when they did not.
    fn token_identity(&self, id: TokenId, record: &TokenRecord) -> Result<Identity, KeyError> {
        let upstream_key = match &self.upstream_keys {
            None => None,
            Some(_) => {
                Some(record.upstream_key().and_then(sensitive_header_value).ok_or(KeyError::TokenExpired)?)
            }
        };
        Ok(Identity::from_token(id, record.user.clone(), upstream_key))
    }

    /// The backend has refused the key that a token stands for; `None` if it is none of those.
    pub async fn renew_upstream_key(&self, identity: &Identity) -> Option<Renewal> {
        let (id, refused) = identity.renewable_key()?;
        Some(self.upstream_keys.as_ref()?.renew(&self.store, id, refused).await)
    }

    /// Who may act as whom.
    pub fn impersonation(&self) -> &Impersonation {
        &self.impersonation
    }

    /// Who may ask for what, where that is configured.
    pub fn authorization(&self) -> Option<&Authorization> {
        self.authorization.as_ref()
    }

    /// Forgets what has ended. Called now and then, off the path of requests.
    pub fn sweep(&self) {
        self.store.sweep();
        self.foreign_keys.sweep();
        self.jwt_verifier.sweep();
        self.upstream_keys.iter().for_each(|keys| keys.sweep());
        self.failure_limiter.sweep();
    }

    /// The store of tokens, for operators.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// What operators call the salts, the primary one first.
    pub fn salt_names(&self) -> &[String] {
        &self.salt_names
    }

    /// The numbers by which the store knows the salts, in the same order.
    pub fn salt_ids(&self) -> &[u8] {
        &self.salt_ids
    }

    /// Reads the verifier's files again if they have changed, or if somebody has `asked` for it. Blocks on the file system.
    ///
    /// SECURITY: who was taken out of the file, or has another password now, loses the tokens that the old one gave.
    pub fn reload_files(&self, asked: bool) {
        self.jwt_verifier.reload_key_files(asked);
        let ended = self.verifier.reload_files(asked);
        if !ended.is_empty() {
            self.store.revoke_users(&ended.into_iter().collect());
        }
    }

    /// Whether a file of the verifier's cannot be used as it is.
    pub fn is_verifier_failing(&self) -> bool {
        self.verifier.is_failing()
    }

    /// Token issuers and their keys: the very same after a reload that changes nothing about them.
    pub fn jwt_verifier(&self) -> &Arc<JwtVerifier> {
        &self.jwt_verifier
    }

    /// How many token issuers' keys could not be read or fetched the last time.
    pub fn failing_issuer_count(&self) -> usize {
        self.jwt_verifier.failing_issuer_count()
    }

    /// How many keys `tokens.keys_file` holds.
    pub fn known_key_count(&self) -> usize {
        self.known_keys.len()
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

fn store_outcome<T>(answer: &Result<T, Unavailable>) -> AuthOutcome {
    if answer.is_ok() { AuthOutcome::Ok } else { AuthOutcome::Unavailable }
}

fn verdict_outcome(verdict: &KeyVerdict) -> AuthOutcome {
    match verdict {
        KeyVerdict::Accepted => AuthOutcome::Ok,
        KeyVerdict::Rejected => AuthOutcome::Refused,
        KeyVerdict::Unknown => AuthOutcome::Unavailable,
        KeyVerdict::Busy => AuthOutcome::Busy,
    }
}
