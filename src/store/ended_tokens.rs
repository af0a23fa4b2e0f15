//! Remembers for a while why tokens have ended, so that their clients learn it. It decides nothing: a token that it does
//! not know is rejected as well.

use std::collections::{HashMap, VecDeque};

use crate::base::clock::Tick;
use crate::base::identity_hasher::IdentityHasher;
use crate::store::TokenId;

/// Why a token is not valid any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenEnd {
    /// It has expired, or the reason is not known.
    Expired,
    /// It was revoked, or its login is not valid any more.
    Revoked,
    /// Newer tokens have taken its place (`tokens.max`).
    Evicted,
}

/// Beyond it, the reasons of the oldest entries are forgotten.
const MAX_ENTRIES: usize = 100_000;

/// Tokens that ended before they expired.
#[derive(Debug, Default)]
pub(super) struct EndedTokens {
    by_id: HashMap<TokenId, EndedToken, IdentityHasher>,
    /// The oldest entry first.
    queue: VecDeque<TokenId>,
}

#[derive(Clone, Copy, Debug)]
struct EndedToken {
    end: TokenEnd,
    /// When it would have expired.
    expires: Tick,
}

impl EndedTokens {
    pub fn add(&mut self, id: TokenId, end: TokenEnd, expires: Tick) {
        if self.by_id.insert(id, EndedToken { end, expires }).is_some() {
            return;
        }
        self.queue.push_back(id);
        if self.queue.len() > MAX_ENTRIES {
            self.remove_oldest();
        }
    }

    pub fn end_of(&self, id: &TokenId, now: Tick) -> TokenEnd {
        let known = self.by_id.get(id).filter(|ended| now < ended.expires);
        known.map_or(TokenEnd::Expired, |ended| ended.end)
    }

    /// When this token would have expired, if it was revoked before.
    pub fn expiry_of_revoked(&self, id: &TokenId, now: Tick) -> Option<Tick> {
        let ended = self.by_id.get(id)?;
        (ended.end == TokenEnd::Revoked && now < ended.expires).then_some(ended.expires)
    }

    pub fn sweep(&mut self, now: Tick) {
        while let Some(oldest) = self.queue.front()
            && self.by_id.get(oldest).is_none_or(|ended| now >= ended.expires)
        {
            self.remove_oldest();
        }
    }

    fn remove_oldest(&mut self) {
        if let Some(oldest) = self.queue.pop_front() {
            self.by_id.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_is_known_until_the_token_would_have_expired() {
        let tick = Tick::from_raw;
        let (revoked, evicted) = (TokenId::from_token(b"r"), TokenId::from_token(b"e"));
        let mut ended = EndedTokens::default();
        ended.add(revoked, TokenEnd::Revoked, tick(10));
        ended.add(evicted, TokenEnd::Evicted, tick(20));
        assert_eq!(ended.end_of(&revoked, tick(9)), TokenEnd::Revoked);
        assert_eq!(ended.end_of(&evicted, tick(9)), TokenEnd::Evicted);
        assert_eq!(ended.end_of(&revoked, tick(10)), TokenEnd::Expired);
        ended.sweep(tick(10));
        assert_eq!((ended.by_id.len(), ended.queue.len()), (1, 1));
        for number in 0..=u32::try_from(MAX_ENTRIES).expect("small") {
            ended.add(TokenId::from_token(&number.to_be_bytes()), TokenEnd::Revoked, tick(10));
        }
        assert_eq!((ended.by_id.len(), ended.queue.len()), (MAX_ENTRIES, MAX_ENTRIES));
    }
}
