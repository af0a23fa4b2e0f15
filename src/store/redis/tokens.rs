//! Looking tokens up, and making them.

use std::sync::Arc;
use std::time::Duration;

use redis::{SetExpiry, SetOptions, cmd};
use tracing::error;
use zeroize::Zeroizing;

use crate::base::secret::Secret;
use crate::store::keys::RecordName;
use crate::store::redis::event_log::StoreEvent;
use crate::store::redis::{RedisSession, StoreCommandError, StoreCommandResult};
use crate::store::wire::{StoredLogin, StoredToken};
use crate::store::{NewToken, Seed, Timestamp, TokenId, TokenRecord};

/// Before what is sealed stands when the token was last used, which may change while the rest does not.
const LAST_USED_LENGTH: usize = 8;

/// A login as it was found: what it says, and the very bytes, to compare by.
#[derive(Default)]
pub(super) struct FoundLogin {
    login: Option<StoredLogin>,
    bytes: Vec<u8>,
}

impl RedisSession {
    /// The token, if it lives. It is remembered here.
    pub(super) async fn fetch(&self, id: TokenId, salt: u8) -> StoreCommandResult<Option<Arc<TokenRecord>>> {
        let Some(kept) = self.live_token(&id, salt).await? else { return Ok(None) };
        Ok(Some(self.context.memory.insert_fetched(id, self.token_record(kept, salt))))
    }

    /// The login's token: the one that it has, or this one. `endings` is how often tokens had been ended when it was asked for.
    pub(super) async fn mint(
        &self,
        token: NewToken,
        seed: Seed,
        id: TokenId,
        endings: u64,
    ) -> StoreCommandResult<Seed> {
        let found = self.read_login(&token).await?;
        if let Some(seed) = self.reuse_token(&found, &token).await? {
            return Ok(seed);
        }
        // SECURITY: what was ended since counts, although the token would be younger than that: its login was proven before.
        if self.revocation_count.get() != endings {
            return Err(StoreCommandError::Revoked);
        }
        let minted = self.mint_time(&token, &id);
        let expires = Timestamp(minted.0.saturating_add(millis(self.ttl())));
        let kept = StoredToken { id, seed, minted, expires, token };
        self.write(&kept, SetExpiry::PX(self.expiry_millis(expires)), false).await?;
        let now = self.claim_login(&kept, &found).await?;
        if now.login == Some(StoredLogin { seed, id }) {
            self.cache_minted(kept)?;
            return Ok(seed);
        }
        // Another replica was faster. Nobody has been given the token that was made here.
        let _: u64 = self.query(cmd("DEL").arg(self.token_key(0, &id))).await?;
        self.reuse_token(&now, &kept.token).await?.ok_or(StoreCommandError::Unreadable)
    }

    /// The seed of the token that the login has already, if that may still be handed out.
    async fn reuse_token(&self, found: &FoundLogin, token: &NewToken) -> StoreCommandResult<Option<Seed>> {
        let Some(login) = found.login else { return Ok(None) };
        let Some(mut kept) = self.live_token(&login.id, 0).await? else { return Ok(None) };
        if token.upstream_key.is_some() && token.upstream_key != kept.token.upstream_key {
            kept.token.upstream_key.clone_from(&token.upstream_key);
            self.rewrite(&kept, 0).await?;
        }
        if !self.context.memory.can_be_issued(&self.token_record(kept.clone(), 0)) {
            return Ok(None);
        }
        self.cache_minted(kept)?;
        Ok(Some(login.seed))
    }

    /// SECURITY: looked at once more, as time has passed since it was found or made: what was revoked meanwhile has been
    /// searched for in memory already.
    fn cache_minted(&self, kept: StoredToken) -> StoreCommandResult<()> {
        if !self.is_live(&kept) {
            return Err(StoreCommandError::Revoked);
        }
        self.context.memory.insert_minted(kept.id, self.token_record(kept, 0));
        Ok(())
    }

    /// Has the backend shown another key instead of the token; nothing happens if it lives no more.
    pub(super) async fn set_upstream_key(&self, id: TokenId, key: Secret) -> StoreCommandResult<()> {
        for salt in (0..).take(self.context.keys.salt_names().count()) {
            let Some(mut kept) = self.live_token(&id, salt).await? else { continue };
            kept.token.upstream_key = Some(key.clone());
            self.rewrite(&kept, salt).await?;
            self.context.memory.set_upstream_key(&id, key);
            break;
        }
        Ok(())
    }

    /// Writes a living token anew, and has other replicas forget what they know of it.
    async fn rewrite(&self, kept: &StoredToken, salt: u8) -> StoreCommandResult<()> {
        self.write_token(kept, salt, SetExpiry::KEEPTTL, true).await?;
        self.publish(&StoreEvent::Changed(kept.id)).await.map(drop)
    }

    /// The token, if it is there, its time is not over, and it was not revoked.
    async fn live_token(&self, id: &TokenId, salt: u8) -> StoreCommandResult<Option<StoredToken>> {
        let key = self.token_key(salt, id);
        let value: Option<Vec<u8>> = self.query(cmd("GET").arg(&key)).await?;
        let Some(value) = value else { return Ok(None) };
        let Some(kept) = self.unseal_token(&key, &value) else {
            // SECURITY: neither a yes nor a no. It was changed, or written by a version that is yet to come.
            error!("a token in the store cannot be opened");
            return Err(StoreCommandError::Unreadable);
        };
        Ok(self.is_live(&kept).then_some(kept))
    }

    /// SECURITY: what the store says is not all: a token that came back with a failover may have been revoked.
    pub(super) fn is_live(&self, kept: &StoredToken) -> bool {
        let revoked = self.revocations.borrow().latest_covering(&kept.id, &kept.token.user);
        self.context.store_clock.now() < kept.expires && kept.minted > revoked
    }

    /// Now, but after whatever ended all tokens of its sort.
    fn mint_time(&self, token: &NewToken, id: &TokenId) -> Timestamp {
        let revoked = self.revocations.borrow().latest_covering(id, &token.user);
        self.context.store_clock.now().max(Timestamp(revoked.0 + 1))
    }

    async fn read_login(&self, token: &NewToken) -> StoreCommandResult<FoundLogin> {
        let key = self.login_key(token);
        let bytes: Option<Vec<u8>> = self.query(cmd("GET").arg(&key)).await?;
        Ok(self.unseal_login(&key, bytes.unwrap_or_default()))
    }

    /// Points the login to a token, unless it points elsewhere by now; where it points then.
    pub(super) async fn claim_login(
        &self,
        kept: &StoredToken,
        found: &FoundLogin,
    ) -> StoreCommandResult<FoundLogin> {
        let key = self.login_key(&kept.token);
        let login = StoredLogin { seed: kept.seed, id: kept.id };
        let sealed = self.context.keys.seal(0, key.as_bytes(), &login.encode());
        let mut connection = self.connection()?;
        let mut script = self.claim.key(&key);
        script.arg(&found.bytes).arg(sealed).arg(millis(self.ttl()));
        let bytes: Vec<u8> = self.with_timeout(script.invoke_async(&mut connection)).await?;
        Ok(self.unseal_login(&key, bytes))
    }

    /// One that cannot be opened is none: it is replaced, by a token that can.
    fn unseal_login(&self, key: &str, bytes: Vec<u8>) -> FoundLogin {
        let opened = self.context.keys.open(key.as_bytes(), &bytes);
        FoundLogin { login: opened.and_then(|(_, text)| StoredLogin::decode(&text)), bytes }
    }

    async fn write(
        &self,
        kept: &StoredToken,
        expiry: SetExpiry,
        only_if_there: bool,
    ) -> StoreCommandResult<()> {
        self.write_token(kept, 0, expiry, only_if_there).await
    }

    async fn write_token(
        &self,
        kept: &StoredToken,
        salt: u8,
        expiry: SetExpiry,
        only_if_there: bool,
    ) -> StoreCommandResult<()> {
        let key = self.token_key(salt, &kept.id);
        let value = self.seal_token(kept, salt, &key);
        let mut options = SetOptions::default().with_expiration(expiry);
        if only_if_there {
            options = options.conditional_set(redis::ExistenceCheck::XX);
        }
        self.query::<redis::Value>(cmd("SET").arg(&key).arg(value).arg(options)).await.map(drop)
    }

    /// The value of a token that is used just now.
    pub(super) fn seal_token(&self, kept: &StoredToken, salt: u8, key: &str) -> Vec<u8> {
        let sealed = self.context.keys.seal(salt, key.as_bytes(), &kept.encode());
        let used = self.context.store_clock.now().max(kept.minted);
        [&used.0.to_be_bytes()[..], &sealed].concat()
    }

    /// The token in a value, whichever salt sealed it.
    pub(super) fn unseal_token(&self, key: &str, value: &[u8]) -> Option<StoredToken> {
        let sealed = value.get(LAST_USED_LENGTH..)?;
        let (_, text): (u8, Zeroizing<Vec<u8>>) = self.context.keys.open(key.as_bytes(), sealed)?;
        StoredToken::decode(&text)
    }

    /// When the token in a value was last used, as far as was told.
    pub(super) fn last_used(value: &[u8]) -> Timestamp {
        value.first_chunk().map_or(Timestamp::default(), |bytes| Timestamp(u64::from_be_bytes(*bytes)))
    }

    /// Looking it up is a use.
    fn token_record(&self, kept: StoredToken, salt: u8) -> TokenRecord {
        let expires = self.context.store_clock.tick(kept.expires);
        TokenRecord::new(kept.token, kept.seed, kept.minted, self.context.clock.now(), expires)
            .with_salt(salt)
    }

    pub(super) fn token_key(&self, salt: u8, id: &TokenId) -> String {
        self.redis_key("t:", self.context.keys.token_name(salt, id))
    }

    fn login_key(&self, token: &NewToken) -> String {
        let name: RecordName = self.context.keys.login_name(&token.login);
        self.redis_key("l:", name)
    }

    pub(super) fn ttl(&self) -> Duration {
        self.context.memory.limits().ttl
    }

    /// How many milliseconds the store keeps a token that was used just now. Uses are told with a delay, so one that may
    /// idle out is given that much more.
    pub(super) fn expiry_millis(&self, expires: Timestamp) -> u64 {
        let left = expires.0.saturating_sub(self.context.store_clock.now().0).max(1);
        let idle = self.context.memory.limits().idle_ttl;
        idle.map_or(left, |idle| left.min(millis(idle + self.token_write_interval())))
    }
}

pub(super) fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}
