//! Looks tokens up, and mints them so that all replicas give a login the same token.

use std::time::Duration;

use redis::{Cmd, ExistenceCheck, SetExpiry, SetOptions};
use tracing::error;

use crate::base::clock::millis;
use crate::base::secret::Secret;
use crate::store::keys::{KeyNumber, PRIMARY_KEY};
use crate::store::redis::events::StoreEvent;
use crate::store::redis::usage::MAX_TOKEN_WRITE_INTERVAL;
use crate::store::redis::{RedisSession, StoreError, StoreResult, redis_command};
use crate::store::wire::{StoredLogin, StoredToken};
use crate::store::{FetchedToken, NewToken, Seed, Timestamp, TokenEnd, TokenId};

/// The last use precedes the sealed token, so that it can be written alone.
const LAST_USED_LENGTH: usize = 8;

/// A login in the store; the default if there is none.
#[derive(Default)]
struct FoundLogin {
    /// `None` if no key opens the value.
    login: Option<StoredLogin>,
    /// The value, for compare-and-set.
    bytes: Vec<u8>,
}

/// What the store has for a token.
enum FoundToken {
    Missing,
    /// It was revoked.
    Tombstone,
    /// Live, expired or revoked.
    Token(Box<StoredToken>),
}

impl RedisSession {
    /// The token, if it is live. Adds it to the memory.
    pub(super) async fn fetch(&self, id: TokenId, key: KeyNumber) -> StoreResult<FetchedToken> {
        let stored = match self.read_token(&id, key).await? {
            FoundToken::Missing => match self.context.memory.end_of(&id) {
                TokenEnd::Expired if self.ask_for(id, key) => return Err(StoreError::Missing),
                end => return Ok(Err(end)),
            },
            FoundToken::Tombstone => return Ok(Err(TokenEnd::Revoked)),
            FoundToken::Token(stored) if self.is_revoked(&stored) => return Ok(Err(TokenEnd::Revoked)),
            FoundToken::Token(stored) if !self.is_live(&stored) => return Ok(Err(TokenEnd::Expired)),
            FoundToken::Token(stored) => *stored,
        };
        let record = stored.into_record(&self.context.store_clock);
        Ok(Ok(self.context.memory.insert_fetched(record)))
    }

    /// The login's token: the one that it has, or this new one. `known` is the one that this replica knows, and
    /// `revocations` the number of revocations when the token was requested.
    pub(super) async fn mint(
        &self,
        token: NewToken,
        seed: Seed,
        id: TokenId,
        known: Option<(TokenId, Seed)>,
        revocations: u64,
    ) -> StoreResult<Seed> {
        let found = self.read_login(&token).await?;
        if let Some(seed) = self.reuse_token(&found, &token).await? {
            return Ok(seed);
        }
        // The store has lost the token, which the client may still have.
        if let Some((known, seed)) = known
            && found.login.is_none_or(|login| login.id == known)
            && self.restore_known(known).await?
        {
            if let Some(key) = token.upstream_key {
                self.set_upstream_key(known, key).await?;
            }
            return Ok(seed);
        }
        // SECURITY: the new token would be younger than a revocation since the request, but the login was proven
        // before it.
        if self.revocation_count.get() != revocations {
            return Err(StoreError::Revoked);
        }
        let now = self.context.store_clock.now();
        let minted = self.revocations.borrow().mint_time(&id, &token.user, now);
        let stored = StoredToken { id, seed, minted, expires: now.after(self.ttl()), token };
        self.write_token(&stored, self.new_token_options(&stored)).await?;
        let current = self.claim_login(&stored, &found).await?;
        if current.login == Some(stored.login()) {
            self.cache_minted(stored)?;
            return Ok(seed);
        }
        // A different replica was faster. No client has received the new token.
        let _: u64 = self.query(&redis_command("DEL", self.token_key(stored.token.key, &id))).await?;
        self.reuse_token(&current, &stored.token).await?.ok_or(StoreError::Unreadable)
    }

    /// The seed of the token that the login has, if it can still be issued. Updates its upstream key.
    async fn reuse_token(&self, found: &FoundLogin, token: &NewToken) -> StoreResult<Option<Seed>> {
        let Some(login) = found.login else { return Ok(None) };
        let Some(mut stored) = self.live_token(&login.id, PRIMARY_KEY).await? else { return Ok(None) };
        if token.upstream_key.is_some() && token.upstream_key != stored.token.upstream_key {
            stored.token.upstream_key.clone_from(&token.upstream_key);
            self.rewrite_token(&stored).await?;
        }
        let record = stored.clone().into_record(&self.context.store_clock);
        if !self.context.memory.can_be_issued(&record) {
            return Ok(None);
        }
        self.cache_minted(stored)?;
        Ok(Some(login.seed))
    }

    /// SECURITY: checks again whether the token is live. If it has been revoked since it was read or written, the
    /// search for revoked tokens in memory may be over already.
    fn cache_minted(&self, stored: StoredToken) -> StoreResult<()> {
        if !self.is_live(&stored) {
            return Err(StoreError::Revoked);
        }
        self.context.memory.insert_minted(stored.into_record(&self.context.store_clock));
        Ok(())
    }

    /// Replaces the key that the backend receives instead of the token. Does nothing if the token is not live.
    pub(super) async fn set_upstream_key(&self, id: TokenId, upstream_key: Secret) -> StoreResult<()> {
        for key in self.context.keys.numbers() {
            let Some(mut stored) = self.live_token(&id, key).await? else { continue };
            stored.token.upstream_key = Some(upstream_key.clone());
            self.rewrite_token(&stored).await?;
            self.context.memory.set_upstream_key(&id, &upstream_key);
            break;
        }
        Ok(())
    }

    /// Writes a changed token, and makes the other replicas drop their copies.
    async fn rewrite_token(&self, stored: &StoredToken) -> StoreResult<()> {
        let options = SetOptions::default().with_expiration(SetExpiry::KEEPTTL).conditional_set(ExistenceCheck::XX);
        self.write_token(stored, options).await?;
        self.publish(StoreEvent::Changed(stored.id)).await
    }

    /// The token, if it exists and is live.
    async fn live_token(&self, id: &TokenId, key: KeyNumber) -> StoreResult<Option<StoredToken>> {
        match self.read_token(id, key).await? {
            FoundToken::Token(stored) => Ok(Some(*stored).filter(|stored| self.is_live(stored))),
            FoundToken::Missing | FoundToken::Tombstone => Ok(None),
        }
    }

    /// What the store has for a token.
    ///
    /// SECURITY: its lifetime is limited from now on, in case the clock was wrong when it was minted. One that was
    /// minted before an idle lifetime was configured is subject to it; the store may know its last use late.
    async fn read_token(&self, id: &TokenId, key: KeyNumber) -> StoreResult<FoundToken> {
        let redis_key = self.token_key(key, id);
        let value: Option<Vec<u8>> = self.query(&redis_command("GET", &redis_key)).await?;
        let Some(value) = value else { return Ok(FoundToken::Missing) };
        let Some(mut stored) = self.unseal_token(&redis_key, &value) else {
            let sealed = value.get(LAST_USED_LENGTH..).unwrap_or_default();
            if StoredToken::is_tombstone(&self.context.keys, redis_key.as_bytes(), sealed) {
                return Ok(FoundToken::Tombstone);
            }
            // SECURITY: neither accepted nor rejected. It was tampered with, or written by a newer version.
            error!("cannot read a token in the token store");
            return Err(StoreError::Unreadable);
        };
        let limits = self.context.memory.limits();
        self.context.store_clock.advance_to(stored.minted);
        stored.limit_lifetime(&self.context.store_clock, limits.ttl);
        if let Some(idle_ttl) = limits.idle_ttl {
            let idle_at = RedisSession::last_used(&value).after(idle_ttl + MAX_TOKEN_WRITE_INTERVAL);
            stored.expires = stored.expires.min(idle_at);
        }
        Ok(FoundToken::Token(Box::new(stored)))
    }

    /// True if the token is neither expired nor revoked.
    pub(super) fn is_live(&self, stored: &StoredToken) -> bool {
        self.context.store_clock.now() < stored.expires && !self.is_revoked(stored)
    }

    /// SECURITY: existence in the store does not suffice: a failover may have brought a revoked token back.
    fn is_revoked(&self, stored: &StoredToken) -> bool {
        stored.minted <= self.revocations.borrow().latest_covering(&stored.id, &stored.token.user)
    }

    async fn read_login(&self, token: &NewToken) -> StoreResult<FoundLogin> {
        let key = self.login_key(token);
        let bytes: Option<Vec<u8>> = self.query(&redis_command("GET", &key)).await?;
        Ok(self.unseal_login(&key, bytes.unwrap_or_default()))
    }

    /// Gives the login this token, unless its value has changed since it was `found`. Returns its current value.
    async fn claim_login(&self, stored: &StoredToken, found: &FoundLogin) -> StoreResult<FoundLogin> {
        let key = self.login_key(&stored.token);
        let sealed = stored.login().seal(&self.context.keys, key.as_bytes());
        let mut connection = self.connection()?;
        let mut script = self.claim.key(&key);
        script.arg(&found.bytes).arg(sealed).arg(millis(self.ttl()));
        let bytes: Vec<u8> = self.with_timeout(script.invoke_async(&mut connection)).await?;
        Ok(self.unseal_login(&key, bytes))
    }

    /// Gives the login this token, unless it has one.
    pub(super) fn claim_command(&self, stored: &StoredToken) -> Cmd {
        let key = self.login_key(&stored.token);
        let sealed = stored.login().seal(&self.context.keys, key.as_bytes());
        redis_command("EVALSHA", (self.claim.get_hash(), 1, key, "", sealed, millis(self.ttl())))
    }

    /// A value that no key opens counts as no login, so it is replaced.
    fn unseal_login(&self, key: &str, bytes: Vec<u8>) -> FoundLogin {
        FoundLogin { login: StoredLogin::open(&self.context.keys, key.as_bytes(), &bytes), bytes }
    }

    /// False if a condition in the options was not met.
    async fn write_token(&self, stored: &StoredToken, options: SetOptions) -> StoreResult<bool> {
        let key = self.token_key(stored.token.key, &stored.id);
        let value = self.seal_token(stored, &key);
        let written: Option<String> = self.query(&redis_command("SET", (&key, value, options))).await?;
        Ok(written.is_some())
    }

    pub(super) fn new_token_options(&self, stored: &StoredToken) -> SetOptions {
        SetOptions::default().with_expiration(SetExpiry::PX(self.expiry_millis(stored.expires)))
    }

    /// The value of a token, which counts as used now.
    pub(super) fn seal_token(&self, stored: &StoredToken, key: &str) -> Vec<u8> {
        let sealed = stored.seal(&self.context.keys, key.as_bytes());
        let last_used = self.context.store_clock.now().max(stored.minted);
        [&last_used.0.to_be_bytes()[..], &sealed].concat()
    }

    /// The token in a value; `None` if no key opens it.
    pub(super) fn unseal_token(&self, key: &str, value: &[u8]) -> Option<StoredToken> {
        StoredToken::open(&self.context.keys, key.as_bytes(), value.get(LAST_USED_LENGTH..)?)
    }

    /// The last use in a value, which replicas write with a delay.
    pub(super) fn last_used(value: &[u8]) -> Timestamp {
        value.first_chunk().map_or(Timestamp::default(), |bytes| Timestamp(u64::from_be_bytes(*bytes)))
    }

    pub(super) fn token_key(&self, key: KeyNumber, id: &TokenId) -> String {
        self.redis_key("t:", self.context.keys.token_name(key, id))
    }

    fn login_key(&self, token: &NewToken) -> String {
        self.redis_key("l:", self.context.keys.login_name(&token.login))
    }

    pub(super) fn ttl(&self) -> Duration {
        self.context.memory.limits().ttl
    }

    /// The expiry in the store, in milliseconds, of a token that is used now. With an idle lifetime it adds the delay
    /// with which uses are written.
    pub(super) fn expiry_millis(&self, expires: Timestamp) -> u64 {
        let remaining = expires.millis_since(self.context.store_clock.now()).max(1);
        let idle_ttl = self.context.memory.limits().idle_ttl;
        idle_ttl.map_or(remaining, |ttl| remaining.min(millis(ttl + self.token_write_interval())))
    }
}
