//! Builds [`Auth`] at start and for each reload, and decides which state a reload keeps.

use std::collections::BTreeSet;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::auth::Auth;
use crate::auth::authorization::Authorization;
use crate::auth::bearer::BearerOpener;
use crate::auth::failure_limiter::{FailureLimiter, PublishFailure};
use crate::auth::foreign_keys::ForeignKeys;
use crate::auth::impersonation::Impersonation;
use crate::auth::jwt::JwtVerifier;
use crate::auth::key_exchange::KeyExchange;
use crate::auth::keys_file::KnownKeys;
use crate::auth::password_logins::PasswordLogins;
use crate::auth::token::TokenMint;
use crate::auth::token_acceptance::TokenAcceptance;
use crate::auth::token_binding::TokenBinder;
use crate::auth::upstream_keys::UpstreamKeys;
use crate::auth::verifier::{Delegate, LdapDirectory, Platform, RemoteVerifier, UsersFile, Verifier};
use crate::base::clock::Clock;
use crate::base::user_name::UserName;
use crate::config::changes::Changes;
use crate::config::options::{AUTH, TOKENS};
use crate::config::{Config, CredentialMode, Problem, VerifierOptions};
use crate::observability::metrics::StoreMetrics;
use crate::store::{RunningDriver, SaltName, Store, StoreStartError, TokenLimits};

/// The options that each part depends on. A reload that changes one of them builds the part from scratch instead of
/// keeping its state.
const VERIFIER_OPTIONS: [&str; 5] = [AUTH.verifier.key, AUTH.users_file.key, "ldap.", "platform.", "upstream"];
const FOREIGN_KEY_OPTIONS: [&str; 5] =
    ["auth.", "platform.", "upstream", TOKENS.foreign.key, TOKENS.foreign_user_query.key];
const JWT_OPTIONS: [&str; 1] = ["auth.jwt"];
const UPSTREAM_KEY_OPTIONS: [&str; 6] =
    [AUTH.verifier.key, "ldap.", "platform.", "upstream", TOKENS.ttl.key, TOKENS.max.key];
const PASSWORD_OPTIONS: [&str; 5] =
    [AUTH.verifier.key, AUTH.users_file.key, "ldap.", "platform.", TOKENS.foreign_accept_ttl.key];

/// Tokens that ended because their login is not valid any more.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EndedLogins {
    /// The number of tokens.
    pub tokens: usize,
    /// Their users.
    pub users: BTreeSet<UserName>,
}

/// The active state, and the options that changed.
type Previous<'a> = Option<(&'a Auth, &'a Changes)>;

impl Auth {
    /// Reads the configured files. The error reports all problems.
    pub fn new(config: &Config, clock: &Clock) -> Result<Auth, Vec<Problem>> {
        Auth::load(config, None, clock)
    }

    /// Builds the state for a new configuration, and keeps the tokens, counts and cached verdicts that are still valid.
    /// Does not become active before [`Auth::take_over`].
    pub fn rebuild(&self, config: &Config, changes: &Changes, clock: &Clock) -> Result<Auth, Vec<Problem>> {
        Auth::load(config, Some((self, changes)), clock)
    }

    fn load(config: &Config, before: Previous<'_>, clock: &Clock) -> Result<Auth, Vec<Problem>> {
        let tokens = &config.tokens;
        let unchanged =
            |options: &[&str]| before.filter(|(_, changes)| !changes.has_any_of(options)).map(|(auth, _)| auth);
        let mut problems = Vec::new();
        let verifier = match unchanged(&VERIFIER_OPTIONS) {
            // It reloads its own file, and reports whose tokens that invalidates.
            Some(auth) => Ok(Arc::clone(&auth.verifier)),
            None => build_verifier(config).map(Arc::new),
        };
        let verifier = verifier.map_err(|problem| problems.push(problem));
        let known_keys = tokens.keys_file.as_deref().map_or(Ok(KnownKeys::default()), KnownKeys::read);
        let known_keys =
            known_keys.map_err(|error| problems.push(Problem::new(TOKENS.keys_file.key, error.to_string())));
        let store = match before {
            Some((auth, _)) => Ok(Arc::clone(&auth.store)),
            None => Store::new(config, clock).map(Arc::new),
        };
        let store = store.map_err(|problem| problems.push(problem));
        let jwt_verifier = match unchanged(&JWT_OPTIONS) {
            Some(auth) => Ok(Arc::clone(&auth.jwt_verifier)),
            None => JwtVerifier::new(&config.auth.jwt, clock).map(Arc::new),
        };
        let jwt_verifier = jwt_verifier.map_err(|of_issuers| problems.extend(of_issuers));
        let (Ok(verifier), Ok(known_keys), Ok(store), Ok(jwt_verifier)) = (verifier, known_keys, store, jwt_verifier)
        else {
            return Err(problems);
        };
        let failure_limiter = Arc::new(build_failure_limiter(config, before, &store, clock));
        let active_limiter = match before {
            Some((auth, _)) => Arc::clone(&auth.active_limiter),
            None => Arc::new(Mutex::new(Arc::downgrade(&failure_limiter))),
        };
        let upstream_keys = match unchanged(&UPSTREAM_KEY_OPTIONS) {
            Some(auth) => auth.upstream_keys.clone(),
            None => config
                .upstream
                .credential
                .is_per_user()
                .then(|| Arc::new(UpstreamKeys::new(Arc::clone(&verifier), tokens.ttl, tokens.max, clock.clone()))),
        };
        let key_exchange = match unchanged(&UPSTREAM_KEY_OPTIONS) {
            Some(auth) => auth.key_exchange.clone(),
            None => (config.upstream.credential == CredentialMode::ShowToken)
                .then(|| Arc::new(KeyExchange::new(clock.clone()))),
        };
        let password_logins = match unchanged(&PASSWORD_OPTIONS) {
            Some(auth) => Arc::clone(&auth.password_logins),
            None => Arc::new(PasswordLogins::new(tokens.foreign_accept_ttl, clock.clone())),
        };
        let foreign_keys = match unchanged(&FOREIGN_KEY_OPTIONS) {
            Some(auth) => Arc::clone(&auth.foreign_keys),
            // SECURITY: a different backend, or connection to it, has not accepted any key yet.
            None => Arc::new(ForeignKeys::new(tokens, clock.clone())),
        };
        Ok(Auth {
            bearer_opener: BearerOpener::new(&config.salts, config.auth.bearer_max_age, clock.clone()),
            token_mint: TokenMint::new(store.key_ring()),
            token_binder: TokenBinder::new(config, store.key_ring()),
            token_ttl: tokens.ttl,
            verifier,
            failure_limiter,
            token_acceptance: TokenAcceptance::default(),
            active_limiter,
            salt_names: config.salts.iter().map(SaltName::new).collect(),
            store,
            known_keys,
            foreign_policy: tokens.foreign,
            foreign_keys,
            jwt_verifier,
            impersonation: Impersonation(config.impersonation.clone()),
            authorization: config.authorization.clone().map(Authorization),
            upstream_keys,
            key_exchange,
            password_logins,
        })
    }

    /// Opens the token store and starts its thread, if it has one. `metrics` reports its health.
    pub fn start_store(&self, metrics: &StoreMetrics) -> Result<Option<RunningDriver>, StoreStartError> {
        // A weak reference: the limiter holds the store, and the store's thread ends when the store is dropped.
        let limiter = Arc::clone(&self.active_limiter);
        let count = move |failure| {
            if let Some(limiter) = limiter.lock().upgrade() {
                limiter.count_remote_failure(failure);
            }
        };
        self.store.start(metrics, Box::new(count))
    }

    /// Replaces the state that this one was rebuilt from. Must be called before the first request uses it. `config`
    /// belongs to this state. Returns the tokens that ended.
    pub fn take_over(&mut self, config: &Config, before: &Auth) -> EndedLogins {
        let tokens = &config.tokens;
        self.store.set_limits(TokenLimits::new(tokens));
        *self.active_limiter.lock() = Arc::downgrade(&self.failure_limiter);
        let is_same =
            Arc::ptr_eq(&self.verifier, &before.verifier) && self.token_binder.is_same_as(&before.token_binder);
        if is_same { EndedLogins::default() } else { self.end_unbound_tokens() }
    }

    /// Frees the entries of tokens whose logins the verifier no longer confirms. They are not accepted in any case.
    pub(super) fn end_unbound_tokens(&self) -> EndedLogins {
        let users = self.store.end_if(|record| !self.token_binder.is_bound(record, &self.verifier));
        EndedLogins { tokens: users.len(), users: users.into_iter().collect() }
    }
}

/// The bucket identifiers are derived from the primary key of the store, so that its replicas share buckets.
fn build_failure_limiter(config: &Config, before: Previous<'_>, store: &Arc<Store>, clock: &Clock) -> FailureLimiter {
    let publish: PublishFailure = Box::new({
        let store = Arc::clone(store);
        move |failure| store.publish_failure(failure)
    });
    let bucket_key = store.key_ring().derive_primary("failures 2");
    match before {
        Some((auth, _)) => auth.failure_limiter.with_limits(&config.limits, &bucket_key, publish),
        None => FailureLimiter::new(&config.limits, &bucket_key, publish, clock.clone()),
    }
}

/// The configured verifier.
fn build_verifier(config: &Config) -> Result<Verifier, Problem> {
    match &config.auth.verifier {
        VerifierOptions::SaltHolder => Ok(Verifier::SaltHolder),
        VerifierOptions::UsersFile(path) => UsersFile::read(path)
            .map(Verifier::UsersFile)
            .map_err(|error| Problem::new(AUTH.users_file.key, error.to_string())),
        VerifierOptions::Platform => Ok(Verifier::remote(RemoteVerifier::Platform(Platform::new(config)?))),
        VerifierOptions::Delegate => Ok(Verifier::remote(RemoteVerifier::Delegate(Delegate::new(&config.upstream)?))),
        VerifierOptions::Ldap(options) => Ok(Verifier::remote(RemoteVerifier::Ldap(LdapDirectory::new(options)?))),
    }
}
