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
use crate::config::Foreign;
use crate::observability::auth_timing::Steps;
use crate::observability::metrics::{Outcome, Step};
use crate::store::{Fingerprint, NewToken, Store, TokenId, TokenRecord, Unavailable};
use crate::upstream::Upstream;

pub use api_key::{ApiKey, Presented, basic};
pub use identity::Identity;
pub use token_invalidation::Ended;

use authorization::Authorization;
use bearer::{BearerError, BearerOpener};
use failure_limiter::{Guesses, TooMany};
use foreign_keys::{ForeignKeys, Verdict};
use impersonation::Impersonation;
use jwt::{Jwt, JwtError, Jwts};
use keys_file::KnownKeys;
use salt_ids::SaltNumbers;
use token::TokenMint;
use upstream_keys::{Renewal, UpstreamKeys, field_value};
use verifier::{Verified, Verifier, VerifyError};

/// Why a key proves nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// A token of this gateway, but none that lives.
    #[error("a token of this gateway that has ended")]
    Ended,
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
    TooMany(TooMany),
}

/// Why no token was minted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MintError {
    /// The bearer does not open.
    #[error("the bearer does not open")]
    Bearer(#[from] BearerError),
    /// The password is not right, or could not be checked.
    #[error("the credentials are not right")]
    Wrong,
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
    TooMany(TooMany),
}

impl From<VerifyError> for MintError {
    fn from(error: VerifyError) -> MintError {
        match error {
            VerifyError::Wrong => MintError::Wrong,
            VerifyError::Unavailable => MintError::VerifierUnavailable,
            VerifyError::Busy => MintError::Busy,
            VerifyError::TooMany(wait) => MintError::TooMany(wait),
        }
    }
}

/// A token for a client, and for the log.
#[derive(Debug)]
pub struct Minted {
    /// The token.
    pub token: Secret,
    /// Whose it is.
    pub user: UserName,
    /// What logs call it.
    pub fingerprint: Fingerprint,
}

/// Everything that is needed to tell who calls; shared by all workers.
pub struct Auth {
    opener: BearerOpener,
    mint: TokenMint,
    verifier: Arc<Verifier>,
    /// Another one if it is another verifier that ended what the one before had let in.
    verifier_number: u64,
    store: Arc<Store>,
    salts: Vec<String>,
    /// The numbers of the salts, by which the store knows them.
    salt_numbers: Vec<u8>,
    numbering: Arc<SaltNumbers>,
    known_keys: KnownKeys,
    foreign: Foreign,
    foreign_keys: ForeignKeys,
    guesses: Arc<Guesses>,
    /// Who hears of the failures that other replicas saw.
    hearer: Arc<Mutex<Weak<Guesses>>>,
    jwts: Arc<Jwts>,
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
    pub async fn mint(&self, bearer: &str, client: IpAddr, steps: &Steps) -> Result<Minted, MintError> {
        let attempt = self.guesses.attempt(client);
        let opened = steps.of_now(Step::Bearer, || self.opener.open_and_tell(bearer), of_bearer);
        let (salt, login) = match opened {
            Ok(opened) => opened,
            Err(BearerError::NotAuthentic) => {
                attempt.fail().map_err(MintError::TooMany)?;
                return Err(MintError::Bearer(BearerError::NotAuthentic));
            }
            Err(error) => return Err(error.into()),
        };
        let attempt = attempt.of(&login.user);
        let proof = self.store.proof(self.verifier_number);
        let verifying = self.verifier.verify(&login, bearer, attempt);
        let Verified { upstream_key, session } = steps.of(Step::Verifier, verifying, of_verifier).await?;
        // SECURITY: a password that was right when it was looked at need not be so any more: tokens were ended meanwhile.
        if !self.store.accepts(proof) {
            return Err(MintError::StoreUnavailable);
        }
        let upstream_key = upstream_key.filter(|_| self.upstream_keys.is_some());
        let token_of = |seed: &_| self.mint.token(&login, seed);
        let id_of = |seed: &_| TokenId::of(token_of(seed).expose().as_bytes());
        let login_id = self.mint.login_id(&login);
        let unavailable = |_| MintError::StoreUnavailable;
        let seed = match (self.store.seed_of(&login_id, id_of), upstream_key) {
            (Some(seed), None) => seed,
            (Some(seed), Some(key)) => {
                let id = id_of(&seed);
                let keeping = self.store.set_upstream_key(&id, key);
                steps.of(Step::Store, keeping, of_store).await.map_err(unavailable)?;
                seed
            }
            (None, upstream_key) => {
                let salt = self.salt_numbers[0];
                let new = NewToken { login: login_id, user: login.user.clone(), upstream_key, salt };
                let keeping = self.store.insert(new, self.mint.seed(), proof, id_of);
                steps.of(Step::Store, keeping, of_store).await.map_err(unavailable)?
            }
        };
        self.store.note_salt_use(self.salt_numbers[usize::from(salt)], &login.user);
        if let (Some(keys), Some(session)) = (&self.upstream_keys, session) {
            keys.keep(id_of(&seed), session);
        }
        let fingerprint = id_of(&seed).fingerprint();
        Ok(Minted { token: token_of(&seed), fingerprint, user: login.user })
    }

    /// Whose a credential is; `client` is who shows it.
    pub async fn identify(
        &self,
        presented: &Presented,
        client: IpAddr,
        upstream: &Upstream,
        steps: &Steps,
    ) -> Result<Identity, KeyError> {
        match presented {
            Presented::Key(key) | Presented::Basic(key) => {
                self.identify_key(key, client, upstream, steps).await
            }
            Presented::Jwt(jwt) => self.identify_jwt(jwt, client, steps).await,
        }
    }

    /// SECURITY: a token that nobody has signed is a guess. One that has expired, or is meant for others, is none: it was
    /// made by an issuer that we know.
    async fn identify_jwt(&self, jwt: &Jwt, client: IpAddr, steps: &Steps) -> Result<Identity, KeyError> {
        let id = jwt.id();
        match self.jwts.verify(jwt, id, steps).await {
            Ok(user) => Ok(Identity::of_jwt(user, id.fingerprint())),
            Err(JwtError::Invalid(why)) => {
                self.guesses.attempt(client).fail().map_err(KeyError::TooMany)?;
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
        upstream: &Upstream,
        steps: &Steps,
    ) -> Result<Identity, KeyError> {
        let id = key.id();
        let fingerprint = id.fingerprint();
        if let Some(known) = self.known_keys.find(&id) {
            let upstream_key = known.upstream_key.as_deref().cloned();
            return Ok(Identity::of(Some(known.user.clone()), upstream_key, fingerprint));
        }
        if let Some(record) = self.store.find(&id) {
            return self.minted(id, &record);
        }
        if let Some(salt) = self.mint.maker(key.expose()) {
            // SECURITY: a store that does not answer is neither a yes nor a no. In the heap, as it is seldom asked and every
            // request would have to be as large.
            let salt = self.salt_numbers[usize::from(salt)];
            return match Box::pin(steps.of(Step::Store, self.store.fetch(&id, salt), of_store)).await {
                Ok(Some(record)) => self.minted(id, &record),
                Ok(None) => Err(KeyError::Ended),
                Err(Unavailable) => Err(KeyError::StoreUnavailable),
            };
        }
        let attempt = self.guesses.attempt(client);
        let verdict = match self.foreign {
            Foreign::Reject => Verdict::Bad,
            Foreign::Forward => Verdict::Good,
            Foreign::Verify => match self.foreign_keys.remembered(&id) {
                Some(verdict) => verdict,
                None => {
                    // SECURITY: else every made-up key would be a request to the backend, and a right guess among them
                    // would stand out.
                    attempt.look().map_err(KeyError::TooMany)?;
                    // In the heap, as it is seldom asked and every request would have to be as large.
                    let asking = self.foreign_keys.judge(id, key, upstream);
                    Box::pin(steps.of(Step::ForeignCheck, asking, of_verdict)).await
                }
            },
        };
        match verdict {
            Verdict::Good => Ok(Identity::of(None, None, fingerprint)),
            Verdict::Bad => {
                attempt.fail().map_err(KeyError::TooMany)?;
                Err(KeyError::Unknown)
            }
            Verdict::Unknown => Err(KeyError::Unverifiable),
            Verdict::Busy => Err(KeyError::Busy),
        }
    }

    /// SECURITY: where tokens stand for keys, one without says nothing to the backend: it was made when they did not.
    fn minted(&self, id: TokenId, record: &TokenRecord) -> Result<Identity, KeyError> {
        let upstream_key = match &self.upstream_keys {
            None => None,
            Some(_) => Some(record.upstream_key().and_then(field_value).ok_or(KeyError::Ended)?),
        };
        Ok(Identity::of_token(id, record.user.clone(), upstream_key))
    }

    /// The backend has refused the key that a token stands for; `None` if it is none of those.
    pub async fn renew(&self, identity: &Identity) -> Option<Renewal> {
        let (id, refused) = identity.stands_for()?;
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
        self.jwts.sweep();
        self.upstream_keys.iter().for_each(|keys| keys.sweep());
        self.guesses.sweep();
    }

    /// The store of tokens, for operators.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// What operators call the salts, the primary one first.
    pub fn salts(&self) -> &[String] {
        &self.salts
    }

    /// The numbers by which the store knows the salts, in the same order.
    pub fn salt_numbers(&self) -> &[u8] {
        &self.salt_numbers
    }

    /// Reads the verifier's files again if they have changed, or if somebody has `asked` for it. Blocks on the file system.
    ///
    /// SECURITY: who was taken out of the file, or has another password now, loses the tokens that the old one gave.
    pub fn look(&self, asked: bool) {
        self.jwts.look(asked);
        let ended = self.verifier.look(asked);
        if !ended.is_empty() {
            self.store.end_of(&ended.into_iter().collect());
        }
    }

    /// Whether a file of the verifier's cannot be used as it is.
    pub fn is_failing(&self) -> bool {
        self.verifier.is_failing()
    }

    /// Token issuers and their keys: the very same after a reload that changes nothing about them.
    pub fn issuers(&self) -> &Arc<Jwts> {
        &self.jwts
    }

    /// How many token issuers' keys could not be read or fetched the last time.
    pub fn failing_issuers(&self) -> usize {
        self.jwts.failing()
    }

    /// How many keys `tokens.keys_file` holds.
    pub fn known_keys(&self) -> usize {
        self.known_keys.len()
    }
}

fn of_bearer(opened: &Result<(u8, bearer::Credentials), BearerError>) -> Outcome {
    if opened.is_ok() { Outcome::Ok } else { Outcome::Refused }
}

fn of_verifier(verified: &Result<Verified, VerifyError>) -> Outcome {
    match verified {
        Ok(_) => Outcome::Ok,
        Err(VerifyError::Wrong) => Outcome::Refused,
        Err(VerifyError::Unavailable) => Outcome::Unavailable,
        Err(VerifyError::Busy | VerifyError::TooMany(_)) => Outcome::Busy,
    }
}

fn of_store<T>(answer: &Result<T, Unavailable>) -> Outcome {
    if answer.is_ok() { Outcome::Ok } else { Outcome::Unavailable }
}

fn of_verdict(verdict: &Verdict) -> Outcome {
    match verdict {
        Verdict::Good => Outcome::Ok,
        Verdict::Bad => Outcome::Refused,
        Verdict::Unknown => Outcome::Unavailable,
        Verdict::Busy => Outcome::Busy,
    }
}
