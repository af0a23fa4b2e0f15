//! Tokens that a response depends on while it lasts. What ends a token is decided elsewhere.

use std::sync::Arc;

use crate::store::{Store, TokenId, TokenRecord};

/// A token that was found before.
#[derive(Debug)]
pub struct HeldToken {
    id: TokenId,
    /// As it was last in memory.
    record: Option<Arc<TokenRecord>>,
    /// [`crate::store::MemoryStore::revocation_count`] before that.
    revocations: u64,
}

impl Store {
    /// Looks a token up, for later calls of [`Store::recheck`]. Records no use. Never waits.
    pub fn hold(&self, id: TokenId) -> HeldToken {
        // Before the lookup, so that a revocation in between is noticed.
        let revocations = self.memory.revocation_count();
        HeldToken { id, record: self.memory.peek(&id), revocations }
    }

    /// Looks the token up again. False if it was revoked or has expired. Records no use. Never waits.
    ///
    /// A token of a shared store may have left the memory while it is valid: it was evicted, or changed at a different
    /// replica. Until a request fetches it again, it counts as unused.
    pub fn recheck(&self, held: &mut HeldToken) -> bool {
        let found = self.hold(held.id);
        if found.record.is_some() {
            *held = found;
        } else if !self.is_shared() || found.revocations != held.revocations {
            // SECURITY: a revocation finds only tokens in memory, so one that is not there ends with any revocation.
            return false;
        }
        held.record.as_ref().is_some_and(|record| self.memory.is_live(record, self.clock.now()))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::base::clock::Clock;
    use crate::store::{KeyRing, NewToken, Seed, Timestamp, TokenLimits};

    const HOUR: Duration = Duration::from_secs(3600);

    fn id_of(seed: &Seed) -> TokenId {
        TokenId::from_token(seed)
    }

    #[test]
    fn a_held_token_ends_without_use_and_when_it_leaves_a_memory_that_nobody_shares() {
        let clock = Clock::manual(0);
        let limits = TokenLimits { ttl: HOUR, idle_ttl: Some(HOUR / 4), max: 2, max_per_user: 0 };
        let store = Store::in_memory(limits, KeyRing::new(&[]), clock.clone());
        let hold = |number: u8| {
            store.memory.insert(NewToken::example("alice", number), [number; 20], Timestamp(0), id_of);
            store.hold(id_of(&[number; 20]))
        };
        let mut held = hold(1);
        for _ in 0..3 {
            clock.advance(HOUR / 13);
            assert!(store.recheck(&mut held));
        }
        clock.advance(HOUR / 13);
        assert!(!store.recheck(&mut held), "a check is not a use");
        let (mut evicted, mut revoked) = (hold(2), hold(3));
        assert!(store.recheck(&mut evicted) && store.recheck(&mut revoked));
        hold(4);
        assert!(!store.recheck(&mut evicted));
        store.end_if(|_| true);
        assert!(!store.recheck(&mut revoked));
    }
}
