//! Looking tokens up, and making them.

use std::sync::Arc;
use std::time::Duration;

use redis::{SetExpiry, SetOptions, cmd};
use tracing::error;
use zeroize::Zeroizing;

use crate::base::secret::Secret;
use crate::store::keys::Name;
use crate::store::redis::event_log::Notice;
use crate::store::redis::{Failed, Outcome, Session};
use crate::store::wire::{KeptLogin, KeptToken};
use crate::store::{NewToken, Seed, Stamp, TokenId, TokenRecord};

/// Before what is sealed stands when the token was last used, which may change while the rest does not.
const STAMP: usize = 8;

/// A login as it was found: what it says, and the very bytes, to compare by.
#[derive(Default)]
pub(super) struct FoundLogin {
    login: Option<KeptLogin>,
    bytes: Vec<u8>,
}

impl Session {
    /// The token, if it lives. It is remembered here.
    pub(super) async fn fetch(&self, id: TokenId, salt: u8) -> Outcome<Option<Arc<TokenRecord>>> {
        let Some(kept) = self.living(&id, salt).await? else { return Ok(None) };
        Ok(Some(self.shared.memory.put_found(id, self.record(kept, salt))))
    }

    /// The login's token: the one that it has, or this one. `endings` is how often tokens had been ended when it was asked for.
    pub(super) async fn mint(&self, token: NewToken, seed: Seed, id: TokenId, endings: u64) -> Outcome<Seed> {
        let found = self.login(&token).await?;
        if let Some(seed) = self.taken_over(&found, &token).await? {
            return Ok(seed);
        }
        // SECURITY: what was ended since counts, although the token would be younger than that: its login was proven before.
        if self.endings.get() != endings {
            return Err(Failed::Overtaken);
        }
        let minted = self.minting_time(&token, &id);
        let expires = Stamp(minted.0.saturating_add(millis(self.ttl())));
        let kept = KeptToken { id, seed, minted, expires, token };
        self.write(&kept, SetExpiry::PX(self.keep_for(expires)), false).await?;
        let now = self.claim(&kept, &found).await?;
        if now.login == Some(KeptLogin { seed, id }) {
            self.remember(kept)?;
            return Ok(seed);
        }
        // Another replica was faster. Nobody has been given the token that was made here.
        let _: u64 = self.query(cmd("DEL").arg(self.token_key(0, &id))).await?;
        self.taken_over(&now, &kept.token).await?.ok_or(Failed::Unreadable)
    }

    /// The seed of the token that the login has already, if that may still be handed out.
    async fn taken_over(&self, found: &FoundLogin, token: &NewToken) -> Outcome<Option<Seed>> {
        let Some(login) = found.login else { return Ok(None) };
        let Some(mut kept) = self.living(&login.id, 0).await? else { return Ok(None) };
        if token.upstream_key.is_some() && token.upstream_key != kept.token.upstream_key {
            kept.token.upstream_key.clone_from(&token.upstream_key);
            self.rewrite(&kept, 0).await?;
        }
        if !self.shared.memory.may_be_handed_out(&self.record(kept.clone(), 0)) {
            return Ok(None);
        }
        self.remember(kept)?;
        Ok(Some(login.seed))
    }

    /// SECURITY: looked at once more, as time has passed since it was found or made: what was revoked meanwhile has been
    /// searched for in memory already.
    fn remember(&self, kept: KeptToken) -> Outcome<()> {
        if !self.lives(&kept) {
            return Err(Failed::Overtaken);
        }
        self.shared.memory.put_minted(kept.id, self.record(kept, 0));
        Ok(())
    }

    /// Has the backend shown another key instead of the token; nothing happens if it lives no more.
    pub(super) async fn set_upstream_key(&self, id: TokenId, key: Secret) -> Outcome<()> {
        for salt in (0..).take(self.shared.keys.salts().count()) {
            let Some(mut kept) = self.living(&id, salt).await? else { continue };
            kept.token.upstream_key = Some(key.clone());
            self.rewrite(&kept, salt).await?;
            self.shared.memory.set_upstream_key(&id, key);
            break;
        }
        Ok(())
    }

    /// Writes a living token anew, and has other replicas forget what they know of it.
    async fn rewrite(&self, kept: &KeptToken, salt: u8) -> Outcome<()> {
        self.write_as(kept, salt, SetExpiry::KEEPTTL, true).await?;
        self.publish(&Notice::Changed(kept.id)).await.map(drop)
    }

    /// The token, if it is there, its time is not over, and it was not revoked.
    async fn living(&self, id: &TokenId, salt: u8) -> Outcome<Option<KeptToken>> {
        let key = self.token_key(salt, id);
        let value: Option<Vec<u8>> = self.query(cmd("GET").arg(&key)).await?;
        let Some(value) = value else { return Ok(None) };
        let Some(kept) = self.open_token(&key, &value) else {
            // SECURITY: neither a yes nor a no. It was changed, or written by a version that is yet to come.
            error!("a token in the store cannot be opened");
            return Err(Failed::Unreadable);
        };
        Ok(self.lives(&kept).then_some(kept))
    }

    /// SECURITY: what the store says is not all: a token that came back with a failover may have been revoked.
    pub(super) fn lives(&self, kept: &KeptToken) -> bool {
        let revoked = self.revocations.borrow().last_about(&kept.id, &kept.token.user);
        self.shared.calendar.now() < kept.expires && kept.minted > revoked
    }

    /// Now, but after whatever ended all tokens of its sort.
    fn minting_time(&self, token: &NewToken, id: &TokenId) -> Stamp {
        let revoked = self.revocations.borrow().last_about(id, &token.user);
        self.shared.calendar.now().max(Stamp(revoked.0 + 1))
    }

    async fn login(&self, token: &NewToken) -> Outcome<FoundLogin> {
        let key = self.login_key(token);
        let bytes: Option<Vec<u8>> = self.query(cmd("GET").arg(&key)).await?;
        Ok(self.open_login(&key, bytes.unwrap_or_default()))
    }

    /// Points the login to a token, unless it points elsewhere by now; where it points then.
    pub(super) async fn claim(&self, kept: &KeptToken, found: &FoundLogin) -> Outcome<FoundLogin> {
        let key = self.login_key(&kept.token);
        let login = KeptLogin { seed: kept.seed, id: kept.id };
        let sealed = self.shared.keys.seal(0, key.as_bytes(), &login.write());
        let mut connection = self.connection()?;
        let mut script = self.claim.key(&key);
        script.arg(&found.bytes).arg(sealed).arg(millis(self.ttl()));
        let bytes: Vec<u8> = self.in_time(script.invoke_async(&mut connection)).await?;
        Ok(self.open_login(&key, bytes))
    }

    /// One that cannot be opened is none: it is replaced, by a token that can.
    fn open_login(&self, key: &str, bytes: Vec<u8>) -> FoundLogin {
        let opened = self.shared.keys.open(key.as_bytes(), &bytes);
        FoundLogin { login: opened.and_then(|(_, text)| KeptLogin::read(&text)), bytes }
    }

    async fn write(&self, kept: &KeptToken, expiry: SetExpiry, only_if_there: bool) -> Outcome<()> {
        self.write_as(kept, 0, expiry, only_if_there).await
    }

    async fn write_as(
        &self,
        kept: &KeptToken,
        salt: u8,
        expiry: SetExpiry,
        only_if_there: bool,
    ) -> Outcome<()> {
        let key = self.token_key(salt, &kept.id);
        let value = self.value_of(kept, salt, &key);
        let mut options = SetOptions::default().with_expiration(expiry);
        if only_if_there {
            options = options.conditional_set(redis::ExistenceCheck::XX);
        }
        self.query::<redis::Value>(cmd("SET").arg(&key).arg(value).arg(options)).await.map(drop)
    }

    /// The value of a token that is used just now.
    pub(super) fn value_of(&self, kept: &KeptToken, salt: u8, key: &str) -> Vec<u8> {
        let sealed = self.shared.keys.seal(salt, key.as_bytes(), &kept.write());
        let used = self.shared.calendar.now().max(kept.minted);
        [&used.0.to_be_bytes()[..], &sealed].concat()
    }

    /// The token in a value, whichever salt sealed it.
    pub(super) fn open_token(&self, key: &str, value: &[u8]) -> Option<KeptToken> {
        let sealed = value.get(STAMP..)?;
        let (_, text): (u8, Zeroizing<Vec<u8>>) = self.shared.keys.open(key.as_bytes(), sealed)?;
        KeptToken::read(&text)
    }

    /// When the token in a value was last used, as far as was told.
    pub(super) fn last_used(value: &[u8]) -> Stamp {
        value.first_chunk().map_or(Stamp::default(), |bytes| Stamp(u64::from_be_bytes(*bytes)))
    }

    /// Looking it up is a use.
    fn record(&self, kept: KeptToken, salt: u8) -> TokenRecord {
        let expires = self.shared.calendar.tick(kept.expires);
        TokenRecord::new(kept.token, kept.seed, kept.minted, self.shared.clock.now(), expires).with_salt(salt)
    }

    pub(super) fn token_key(&self, salt: u8, id: &TokenId) -> String {
        self.key("t:", self.shared.keys.token(salt, id))
    }

    fn login_key(&self, token: &NewToken) -> String {
        let name: Name = self.shared.keys.login(&token.login);
        self.key("l:", name)
    }

    pub(super) fn ttl(&self) -> Duration {
        self.shared.memory.limits().ttl
    }

    /// How many milliseconds the store keeps a token that was used just now. Uses are told with a delay, so one that may
    /// idle out is given that much more.
    pub(super) fn keep_for(&self, expires: Stamp) -> u64 {
        let left = expires.0.saturating_sub(self.shared.calendar.now().0).max(1);
        let idle = self.shared.memory.limits().idle_ttl;
        idle.map_or(left, |idle| left.min(millis(idle + self.use_interval())))
    }
}

pub(super) fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}
