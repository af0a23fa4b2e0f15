//! Who the caller is. Only this module makes an [`Identity`].

pub mod bearer;
pub mod foreign;
pub mod guesses;
mod keys_file;
pub mod token;
mod verifier;

use std::net::IpAddr;
use std::sync::Arc;

use aws_lc_rs::rand;
use http::HeaderValue;
use prometheus_client::metrics::gauge::Gauge;

use crate::clock::Clock;
use crate::config::{Config, Foreign, Problem, VerifierOptions};
use crate::secret::Secret;
use crate::store::{
    Fingerprint, NewToken, Running, StartError, Store, TokenId, TokenRecord, Unavailable, derived, salt_name,
};
use crate::upstream::Upstream;
use crate::user_name::UserName;

use bearer::{BearerError, BearerOpener};
use foreign::{ForeignKeys, Memory, Verdict};
use guesses::{Guesses, TooMany};
use keys_file::KnownKeys;
use token::TokenMint;
use verifier::{UsersFile, Verifier, VerifyError};

/// A key as a client sent it: 1 to 1024 printable ASCII characters, no space and no comma.
///
/// SECURITY: a comma is how two values of a field are joined; which of them a backend would take is unknown.
#[derive(Clone)]
pub struct ApiKey(Box<[u8]>);

impl ApiKey {
    /// Checks the value of the field.
    pub fn parse(value: &[u8]) -> Option<ApiKey> {
        let valid = (1..=1024).contains(&value.len())
            && value.iter().all(|byte| byte.is_ascii_graphic() && *byte != b',');
        valid.then(|| ApiKey(value.into()))
    }

    /// The value for the field of another request.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// A key of the form that Timbr's have, which nobody was given.
    fn nobodys() -> ApiKey {
        let mut random = [0; 20];
        rand::fill(&mut random).expect("the system's random source works");
        let text = random.iter().fold("tk_".to_owned(), |text, byte| format!("{text}{byte:02x}"));
        ApiKey(text.into_bytes().into())
    }

    fn id(&self) -> TokenId {
        TokenId::of(&self.0)
    }
}

/// A caller whose key was proven, and what follows from it.
#[derive(Debug)]
pub struct Identity {
    user: Option<UserName>,
    upstream_key: Option<HeaderValue>,
    minted: bool,
    fingerprint: Fingerprint,
}

impl Identity {
    fn minted(record: &TokenRecord, fingerprint: Fingerprint) -> Identity {
        Identity { user: Some(record.user.clone()), upstream_key: None, minted: true, fingerprint }
    }

    /// Whose the key is; unknown of foreign keys.
    pub fn user(&self) -> Option<&UserName> {
        self.user.as_ref()
    }

    /// What `tokens.keys_file` wants the backend to be shown instead of the key.
    pub fn upstream_key(&self) -> Option<&HeaderValue> {
        self.upstream_key.as_ref()
    }

    /// Whether the key is a token that the gateway made. To the backend such a token says nothing by itself.
    pub fn is_minted(&self) -> bool {
        self.minted
    }

    /// Who is behind the key, to count by: the user, or whoever holds a foreign key.
    pub fn caller(&self) -> impl std::hash::Hash + use<'_> {
        let name = self.user().map(UserName::as_str);
        (name, name.is_none().then_some(self.fingerprint))
    }

    /// What logs call the key.
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }
}

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
    verifier: Verifier,
    store: Arc<Store>,
    salts: Vec<String>,
    known_keys: KnownKeys,
    foreign: Foreign,
    foreign_keys: ForeignKeys,
    guesses: Arc<Guesses>,
}

impl Auth {
    /// Reads the files that the configuration names; all that is wrong with them is told at once.
    pub fn new(config: &Config, clock: &Clock) -> Result<Auth, Vec<Problem>> {
        let tokens = &config.tokens;
        let verifier = match &config.auth.verifier {
            VerifierOptions::SaltHolder => Ok(Verifier::SaltHolder),
            VerifierOptions::UsersFile(path) => UsersFile::read(path)
                .map(Verifier::UsersFile)
                .map_err(|error| Problem::new("auth.users_file", error.to_string())),
        };
        let known_keys = match tokens.keys_file.as_deref() {
            None => Ok(KnownKeys::default()),
            Some(path) => {
                KnownKeys::read(path).map_err(|error| Problem::new("tokens.keys_file", error.to_string()))
            }
        };
        let store = Store::new(config, clock);
        let (verifier, known_keys, store) = match (verifier, known_keys, store) {
            (Ok(verifier), Ok(known_keys), Ok(store)) => (verifier, known_keys, store),
            (verifier, known_keys, store) => {
                return Err(verifier.err().into_iter().chain(known_keys.err()).chain(store.err()).collect());
            }
        };
        let store = Arc::new(store);
        let tell = Box::new({
            let store = Arc::clone(&store);
            move |failure| store.tell_failure(failure)
        });
        let names = derived(&config.salts[0], "timbr-gateway failures 1");
        let guesses = Guesses::shared(config.failures, &names, tell, clock.clone());
        let memory = Memory { accept: tokens.foreign_accept_ttl, reject: tokens.foreign_reject_ttl };
        Ok(Auth {
            opener: BearerOpener::new(&config.salts, config.auth.bearer_max_age, clock.clone()),
            mint: TokenMint::new(&config.salts),
            verifier,
            guesses: Arc::new(guesses),
            salts: config.salts.iter().map(salt_name).collect(),
            store,
            known_keys,
            foreign: tokens.foreign,
            foreign_keys: ForeignKeys::new(memory, clock.clone()),
        })
    }

    /// The token for the credentials in a bearer: the one that this login has, or a new one. `client` is who asks.
    ///
    /// SECURITY: a bearer that does not open and a password that is wrong are guesses. One that opens but is too old, or
    /// holds no credentials, was made by somebody with the salt.
    pub async fn mint(&self, bearer: &str, client: IpAddr) -> Result<Minted, MintError> {
        let attempt = self.guesses.attempt(client);
        let (salt, login) = match self.opener.open_and_tell(bearer) {
            Ok(opened) => opened,
            Err(BearerError::NotAuthentic) => {
                attempt.fail().map_err(MintError::TooMany)?;
                return Err(MintError::Bearer(BearerError::NotAuthentic));
            }
            Err(error) => return Err(error.into()),
        };
        let attempt = attempt.of(&login.user);
        self.verifier.verify(&login, attempt).await?;
        let token_of = |seed: &_| self.mint.token(&login, seed);
        let id_of = |seed: &_| TokenId::of(token_of(seed).expose().as_bytes());
        let login_id = self.mint.login_id(&login);
        let seed = match self.store.seed_of(&login_id, id_of) {
            Some(seed) => seed,
            None => {
                let new = NewToken { login: login_id, user: login.user.clone(), upstream_key: None };
                self.store
                    .insert(new, self.mint.seed(), id_of)
                    .await
                    .map_err(|_| MintError::StoreUnavailable)?
            }
        };
        self.store.note_salt_use(salt, &login.user);
        let fingerprint = id_of(&seed).fingerprint();
        Ok(Minted { token: token_of(&seed), fingerprint, user: login.user })
    }

    /// Whose a key is; `client` is who shows it.
    ///
    /// SECURITY: every way out of here that is not an error was proven by a map that only this process fills, by a
    /// file of the operator, or by the backend itself; `tokens.foreign=forward` is the operator's word that the
    /// backend judges every request.
    ///
    /// What is known passes however often others at the same address were wrong. A token of ours that has ended is no
    /// guess: nobody can make one up without the salt.
    pub async fn identify(
        &self,
        key: &ApiKey,
        client: IpAddr,
        upstream: &Upstream,
    ) -> Result<Identity, KeyError> {
        let id = key.id();
        let fingerprint = id.fingerprint();
        if let Some(known) = self.known_keys.find(&id) {
            let upstream_key = known.upstream_key.clone();
            return Ok(Identity { user: Some(known.user.clone()), upstream_key, minted: false, fingerprint });
        }
        if let Some(record) = self.store.find(&id) {
            return Ok(Identity::minted(&record, fingerprint));
        }
        if let Some(salt) = self.mint.maker(&key.0) {
            // SECURITY: a store that does not answer is neither a yes nor a no. In the heap, as it is seldom asked and every
            // request would have to be as large.
            return match Box::pin(self.store.fetch(&id, salt)).await {
                Ok(Some(record)) => Ok(Identity::minted(&record, fingerprint)),
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
                    Box::pin(self.foreign_keys.judge(id, key, upstream)).await
                }
            },
        };
        match verdict {
            Verdict::Good => Ok(Identity { user: None, upstream_key: None, minted: false, fingerprint }),
            Verdict::Bad => {
                attempt.fail().map_err(KeyError::TooMany)?;
                Err(KeyError::Unknown)
            }
            Verdict::Unknown => Err(KeyError::Unverifiable),
            Verdict::Busy => Err(KeyError::Busy),
        }
    }

    /// Forgets what has ended. Called now and then, off the path of requests.
    pub fn sweep(&self) {
        self.store.sweep();
        self.foreign_keys.sweep();
        self.guesses.sweep();
    }

    /// Opens the store of tokens and starts its thread, if it has one. `up` shows whether it answers.
    pub fn start_store(&self, up: &Gauge) -> Result<Option<Running>, StartError> {
        // Not to hold what holds the store: its thread ends when nobody has it any more.
        let guesses = Arc::downgrade(&self.guesses);
        let heard = move |failure| {
            if let Some(guesses) = guesses.upgrade() {
                guesses.heard(failure);
            }
        };
        self.store.start(up, Box::new(heard))
    }

    /// The store of tokens, for operators.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// What operators call the salts, the primary one first.
    pub fn salts(&self) -> &[String] {
        &self.salts
    }

    /// How many keys `tokens.keys_file` holds.
    pub fn known_keys(&self) -> usize {
        self.known_keys.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_one_printable_word() {
        assert!(ApiKey::parse(b"tk_0123").is_some_and(|key| key.expose() == b"tk_0123"));
        let long = vec![b'a'; 1025];
        for wrong in [&b""[..], b"a b", b"a,b", b"a\tb", b"caf\xe9", &long] {
            assert!(ApiKey::parse(wrong).is_none(), "{wrong:?}");
        }
    }
}
