//! How what tells callers apart is put together, at the start and with each reload.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::auth::Auth;
use crate::auth::authorization::Authorization;
use crate::auth::bearer::BearerOpener;
use crate::auth::failure_limiter::{Guesses, Tell};
use crate::auth::foreign_keys::{ForeignKeys, Memory};
use crate::auth::impersonation::Impersonation;
use crate::auth::jwt::Jwts;
use crate::auth::keys_file::KnownKeys;
use crate::auth::salt_ids::SaltNumbers;
use crate::auth::token::TokenMint;
use crate::auth::token_invalidation::{Ended, ended};
use crate::auth::upstream_keys::UpstreamKeys;
use crate::auth::verifier::{Delegate, Directory, Platform, Remote, UsersFile, Verifier};
use crate::base::clock::Clock;
use crate::config::changes::Changes;
use crate::config::{Config, Problem, VerifierOptions};
use crate::observability::metrics::StoreMetrics;
use crate::store::{Limits, Running, StartError, Store, derived, salt_name};

/// What a verifier is made of, and what the backend's word about a key depends on. With one of these another, nothing is
/// taken over from before.
const VERIFIER: [&str; 5] = ["auth.verifier", "auth.users_file", "ldap.", "platform.", "upstream"];
const FOREIGN: [&str; 4] = ["auth.", "platform.", "upstream", "tokens.foreign"];
const JWTS: [&str; 1] = ["auth.jwt"];
const UPSTREAM_KEYS: [&str; 6] =
    ["auth.verifier", "ldap.", "platform.", "upstream", "tokens.ttl", "tokens.max"];

/// What was in force before, and what is another now.
type Before<'a> = Option<(&'a Auth, &'a Changes)>;

impl Auth {
    /// Reads the files that the configuration names; all that is wrong with them is told at once.
    pub fn new(config: &Config, clock: &Clock) -> Result<Auth, Vec<Problem>> {
        Auth::load(config, None, clock)
    }

    /// The same for another configuration, with the tokens, counts and answers of this one, where those are still true.
    /// Nothing comes into force before [`Auth::take_over`].
    pub fn anew(&self, config: &Config, changes: &Changes, clock: &Clock) -> Result<Auth, Vec<Problem>> {
        Auth::load(config, Some((self, changes)), clock)
    }

    fn load(config: &Config, before: Before<'_>, clock: &Clock) -> Result<Auth, Vec<Problem>> {
        let tokens = &config.tokens;
        let kept = |options: &[&str]| before.filter(|(_, new)| !new.touch(options)).map(|(auth, _)| auth);
        let verifier = match kept(&VERIFIER) {
            // It looks after its file by itself, and knows whose logins a change of that ends.
            Some(auth) => Ok(Arc::clone(&auth.verifier)),
            None => verifier(config).map(Arc::new),
        };
        let known_keys = tokens.keys_file.as_deref().map_or(Ok(KnownKeys::default()), KnownKeys::read);
        let known_keys = known_keys.map_err(|error| Problem::new("tokens.keys_file", error.to_string()));
        let jwts = match kept(&JWTS) {
            Some(auth) => Ok(Arc::clone(&auth.jwts)),
            None => Jwts::new(&config.auth.jwt, clock).map(Arc::new),
        };
        let store = match before {
            Some((auth, _)) => Ok(Arc::clone(&auth.store)),
            None => Store::new(config, clock).map(Arc::new),
        };
        let numbering = before.map_or_else(Arc::default, |(auth, _)| Arc::clone(&auth.numbering));
        let salt_numbers = numbers(&numbering, config);
        let (verifier, known_keys, jwts, store, salt_numbers) =
            match (verifier, known_keys, jwts, store, salt_numbers) {
                (Ok(verifier), Ok(known_keys), Ok(jwts), Ok(store), Ok(salt_numbers)) => {
                    (verifier, known_keys, jwts, store, salt_numbers)
                }
                (verifier, known_keys, jwts, store, salt_numbers) => {
                    let one_each = verifier.err().into_iter().chain(known_keys.err()).chain(store.err());
                    let one_each = one_each.chain(salt_numbers.err());
                    return Err(one_each.chain(jwts.err().into_iter().flatten()).collect());
                }
            };
        let guesses = Arc::new(guesses(config, before, &store, clock));
        let hearer = match before {
            Some((auth, _)) => Arc::clone(&auth.hearer),
            None => Arc::new(Mutex::new(Arc::downgrade(&guesses))),
        };
        let upstream_keys = match kept(&UPSTREAM_KEYS) {
            Some(auth) => auth.upstream_keys.clone(),
            None => config.upstream.credential.is_of_each_user().then(|| {
                let platform = verifier.platform().cloned();
                Arc::new(UpstreamKeys::new(platform, tokens.ttl, tokens.max, clock.clone()))
            }),
        };
        let foreign_keys = match kept(&FOREIGN) {
            Some(auth) => auth.foreign_keys.clone(),
            // SECURITY: another backend, or another way to it, has not said yes to anything yet.
            None => {
                let memory = Memory { accept: tokens.foreign_accept_ttl, reject: tokens.foreign_reject_ttl };
                ForeignKeys::new(memory, clock.clone())
            }
        };
        Ok(Auth {
            opener: BearerOpener::new(&config.salts, config.auth.bearer_max_age, clock.clone()),
            mint: TokenMint::new(&config.salts),
            verifier,
            verifier_number: before.map_or(0, |(auth, _)| auth.verifier_number),
            guesses,
            hearer,
            salts: config.salts.iter().map(salt_name).collect(),
            salt_numbers,
            numbering,
            store,
            known_keys,
            foreign: tokens.foreign,
            foreign_keys,
            jwts,
            impersonation: Impersonation::new(config.impersonation.clone()),
            authorization: config.authorization.clone().map(Authorization::new),
            upstream_keys,
        })
    }

    /// Opens the store of tokens and starts its thread, if it has one. `metrics` show how it does.
    pub fn start_store(&self, metrics: &StoreMetrics) -> Result<Option<Running>, StartError> {
        // Not to hold what holds the store: its thread ends when nobody has it any more.
        let hearer = Arc::clone(&self.hearer);
        let heard = move |failure| {
            if let Some(guesses) = hearer.lock().upgrade() {
                guesses.heard(failure);
            }
        };
        self.store.start(metrics, Box::new(heard))
    }

    /// Comes into force instead of the one from which it was made anew; each with its configuration. To be called before the
    /// first request meets it. Tells whose tokens ended with that.
    ///
    /// SECURITY: tokens of salts that were taken away end here, and so do those that would not be given any more.
    pub fn take_over(&mut self, config: &Config, (before, before_config): (&Auth, &Config)) -> Ended {
        let tokens = &config.tokens;
        self.store.set_limits(Limits { ttl: tokens.ttl, idle_ttl: tokens.idle_ttl, max: tokens.max });
        self.store.keep_salts(&self.salt_numbers);
        *self.hearer.lock() = Arc::downgrade(&self.guesses);
        let ended = ended((before_config, &before.verifier), (config, &self.verifier));
        if !matches!(ended, Ended::Nobody) {
            // Logins that the one before is still about to let in are not kept.
            self.verifier_number += 1;
            self.store.only_verifier(self.verifier_number);
        }
        match &ended {
            Ended::Nobody => {}
            Ended::Users(users) => self.store.end_of(users),
            Ended::All => self.store.end_all(),
        }
        ended
    }
}

fn numbers(numbering: &SaltNumbers, config: &Config) -> Result<Vec<u8>, Problem> {
    let too_many =
        || Problem::new("api_auth_salt", "has had too many values since the start: restart the gateway");
    numbering.of(&config.salts).ok_or_else(too_many)
}

/// Buckets have names that the primary salt gives, so that replicas with the same one mean the same.
fn guesses(config: &Config, before: Before<'_>, store: &Arc<Store>, clock: &Clock) -> Guesses {
    let tell: Tell = Box::new({
        let store = Arc::clone(store);
        move |failure| store.tell_failure(failure)
    });
    let names = derived(&config.salts[0], "timbr-gateway failures 1");
    match before {
        Some((auth, _)) => auth.guesses.anew(config.failures, &names, tell),
        None => Guesses::shared(config.failures, &names, tell, clock.clone()),
    }
}

/// The authority over passwords, as configured.
fn verifier(config: &Config) -> Result<Verifier, Problem> {
    match &config.auth.verifier {
        VerifierOptions::SaltHolder => Ok(Verifier::SaltHolder),
        VerifierOptions::UsersFile(path) => UsersFile::read(path)
            .map(Verifier::UsersFile)
            .map_err(|error| Problem::new("auth.users_file", error.to_string())),
        VerifierOptions::Platform => Platform::new(config)
            .map(|platform| Verifier::remote(Remote::Platform(platform)))
            .map_err(|error| Problem::new(error.option(), error.to_string())),
        VerifierOptions::Delegate => Delegate::new(&config.upstream)
            .map(|delegate| Verifier::remote(Remote::Delegate(delegate)))
            .map_err(|error| Problem::new(error.option(), error.to_string())),
        VerifierOptions::Ldap(options) => Directory::new(options)
            .map(|directory| Verifier::remote(Remote::Ldap(directory)))
            .map_err(|error| Problem::new(error.option(), error.to_string())),
    }
}
