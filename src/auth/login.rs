//! Logins: from a user name and a password, or a JWT, to the token of the login. The verifier checks passwords.

use std::net::IpAddr;

use crate::auth::bearer::{BearerError, Credentials};
use crate::auth::failure_limiter::{Attempt, TooManyFailures};
use crate::auth::identity::LoginAge;
use crate::auth::key_exchange::ExchangeError;
use crate::auth::token::LoginTokens;
use crate::auth::upstream_keys::sensitive_header_value;
use crate::auth::verifier::{VerifiedLogin, Verifier, VerifyError};
use crate::auth::{Auth, BasicPassword, Identity, KeyError, MintError, MintFailure, store_outcome, token_binding};
use crate::base::groups::Groups;
use crate::base::secret::Secret;
use crate::base::user_name::UserName;
use crate::observability::auth_timing::AuthTiming;
use crate::observability::metrics::AuthOutcome;
use crate::observability::phase::Phase;
use crate::store::{NewToken, PRIMARY_KEY, TokenId};
use crate::upstream::UpstreamClient;

/// A token that `get_token` returns.
#[derive(Debug)]
pub struct MintedToken {
    /// The token; a credential.
    pub token: Secret,
    /// The user that the token identifies.
    pub user: UserName,
    /// The hash of the token.
    pub id: TokenId,
}

impl Auth {
    /// Returns the token for the credentials in a bearer: the existing token of this login, or a new one. `client` is
    /// the client's address.
    ///
    /// SECURITY: a bearer that is not authentic and a wrong password count as failures. A bearer that is authentic but
    /// too old, or has no credentials, does not count: its maker has the salt.
    pub async fn mint(
        &self,
        bearer: &str,
        client: IpAddr,
        upstream: &UpstreamClient,
        timing: &AuthTiming,
    ) -> Result<MintedToken, MintFailure> {
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
        let proof = LoginProof { salt: Some(salt), bearer };
        let minting = self.mint_for(login, proof, attempt, upstream, timing);
        match minting.await {
            Ok(minted) => {
                self.store.record_salt_use(self.salt_names[usize::from(salt)], &minted.user);
                Ok(minted)
            }
            Err(error) => Err(MintFailure { error, claimed_user: Some(claimed_user) }),
        }
    }

    /// Verifies a login, and returns its token.
    async fn mint_for(
        &self,
        login: Credentials,
        LoginProof { salt, bearer }: LoginProof<'_>,
        attempt: Attempt,
        upstream: &UpstreamClient,
        timing: &AuthTiming,
    ) -> Result<MintedToken, MintError> {
        let verifying = self.verifier.verify(&login, bearer, attempt.clone().for_user(&login.user));
        let VerifiedLogin { user, groups, upstream_key, session, evidence } =
            timing.measure(Phase::Verifier, verifying, verifier_outcome).await?;
        let login = Credentials { user: user.unwrap_or(login.user), ..login };
        // SECURITY: what has proven this login. If it is withdrawn while the password is being checked, the token is
        // not accepted.
        let evidence = match (&*self.verifier, salt) {
            (Verifier::SaltHolder, Some(salt)) => self.token_binder.salt_evidence(usize::from(salt)),
            // SECURITY: nothing has proven it.
            (Verifier::SaltHolder, None) => return Err(VerifyError::WrongCredentials.into()),
            (Verifier::UsersFile(_) | Verifier::Remote(..), _) => evidence,
        };
        let upstream_key = match (upstream_key.filter(|_| self.upstream_keys.is_some()), &self.key_exchange) {
            (Some(key), Some(exchange)) => {
                Some(exchange.key_of_login(&key, upstream).await.map_err(MintError::Exchange)?)
            }
            (None, Some(_)) => return Err(MintError::Exchange(ExchangeError::Rejected)),
            (key, None) => key,
        };
        let (id, token) = self.token_of(&login, (&evidence, groups), upstream_key, &attempt, timing).await?;
        if let (Some(keys), Some(session)) = (&self.upstream_keys, session) {
            keys.store_session(id, session);
        }
        Ok(MintedToken { token, id, user: login.user })
    }

    /// The token of a proven login: the existing one, or a new one.
    ///
    /// SECURITY: a login with other groups than before is a different one, so that it does not receive a token with the
    /// groups of an earlier login.
    async fn token_of(
        &self,
        login: &Credentials,
        (evidence, groups): (&[u8], Option<Groups>),
        upstream_key: Option<Secret>,
        attempt: &Attempt,
        timing: &AuthTiming,
    ) -> Result<(TokenId, Secret), MintError> {
        let binding = self.token_binder.bind(&login.user, evidence);
        let tokens = LoginTokens::new(&self.token_mint, login);
        let id_of = |seed: &_| tokens.id(seed);
        let login_id = self.token_mint.login_id(login, &binding, groups.as_ref());
        let unavailable = |_| MintError::StoreUnavailable;
        let seed = match (self.store.find_seed(&login.user, &login_id, id_of), upstream_key) {
            (Some(seed), None) => seed,
            (Some(seed), Some(key)) => {
                let id = id_of(&seed);
                let storing = self.store.set_upstream_key(&id, key);
                timing.measure(Phase::Store, storing, store_outcome).await.map_err(unavailable)?;
                seed
            }
            (None, upstream_key) => {
                if self.store.denies_logins_of(&login.user) {
                    return Err(MintError::Denied(login.user.clone()));
                }
                if !self.store.knows_login(&login.user, &login_id, id_of) {
                    attempt.record_new_token().map_err(|TooManyFailures(wait)| MintError::TooManyTokens(wait))?;
                }
                let user = login.user.clone();
                let new = NewToken { login: login_id, user, groups, upstream_key, binding, key: PRIMARY_KEY };
                // Rounded up: in doubt the store decides.
                let expires = self.store.now().unix_seconds().saturating_add(self.token_ttl.as_secs() + 1);
                let storing = self.store.insert(new, self.token_mint.new_seed(expires), id_of);
                timing.measure(Phase::Store, storing, store_outcome).await.map_err(unavailable)?
            }
        };
        Ok(tokens.into_token(&seed))
    }

    /// A token for the user of a JWT, in place of the user's own key. `None` if there can be none: the issuer is
    /// unknown, or the backend would have to receive a key that the gateway does not have.
    ///
    /// SECURITY: the token ends with the issuer's entry in the configuration, or with a change of the groups' claims
    /// there, but not with the JWT. Its login has no password, which no other login has, so that no two logins share a
    /// token.
    pub async fn mint_for_jwt(
        &self,
        identity: &Identity,
        client: IpAddr,
        timing: &AuthTiming,
    ) -> Result<Option<MintedToken>, MintError> {
        let (Some(issuer), Some(user)) = (identity.jwt_issuer(), identity.user()) else { return Ok(None) };
        let upstream_key = match (&self.upstream_keys, identity.upstream_key()) {
            (Some(_), None) => return Ok(None),
            (Some(_), Some(key)) => Some(Secret::new(key.to_str().unwrap_or_default().to_owned())),
            (None, _) => None,
        };
        let login = Credentials { user: user.clone(), password: Secret::new(String::new()) };
        let evidence = token_binding::jwt_evidence(self.jwt_verifier.issuer_options(issuer));
        let attempt = self.failure_limiter.begin_attempt(client);
        let proven = (&*evidence, identity.groups().cloned());
        let (id, token) = self.token_of(&login, proven, upstream_key, &attempt, timing).await?;
        Ok(Some(MintedToken { token, id, user: login.user }))
    }

    /// The identity of a login with a user name and a password: that of its token, which the client does not receive.
    /// A right password is verified once and then for a while not again.
    pub(super) async fn identify_password(
        &self,
        basic: &BasicPassword,
        client: IpAddr,
        upstream: &UpstreamClient,
        timing: &AuthTiming,
    ) -> Result<Identity, KeyError> {
        if matches!(*self.verifier, Verifier::SaltHolder) {
            return Err(KeyError::PasswordUnsupported);
        }
        let login = basic.login();
        let key = self.password_logins.key(login);
        if let Some((id, token)) = self.password_logins.find(&key)
            && let Some(record) = self.store.find(&id)
            && let Ok(identity) = self.token_identity(id, &record)
        {
            return Ok(identity.with_login_token(token, LoginAge::Known));
        }
        let bearer = self.bearer_opener.make(login);
        let proof = LoginProof { salt: None, bearer: bearer.expose() };
        let attempt = self.failure_limiter.begin_attempt(client);
        // Boxed, as it is rare and large.
        let minting = Box::pin(self.mint_for(login.clone(), proof, attempt, upstream, timing));
        let MintedToken { token, id, .. } = minting.await.map_err(KeyError::Login)?;
        let record = self.store.find(&id).ok_or(KeyError::StoreUnavailable)?;
        let identity = self.token_identity(id, &record)?;
        let token = sensitive_header_value(&token).expect("a token is hex digits");
        self.password_logins.insert(key, id, token.clone());
        Ok(identity.with_login_token(token, LoginAge::New))
    }
}

/// What came with a login.
struct LoginProof<'a> {
    /// The salt that the client's bearer was made with; `None` without a bearer of the client.
    salt: Option<u8>,
    /// The bearer for the API service.
    bearer: &'a str,
}

fn bearer_outcome(opened: &Result<(u8, Credentials), BearerError>) -> AuthOutcome {
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
