//! What operators are shown of tokens.

use crate::base::user_name::UserName;
use crate::store::memory::MemoryStore;
use crate::store::time::StoreClock;
use crate::store::{Fingerprint, Timestamp, TokenId, TokenRecord};

/// Which tokens to show.
#[derive(Clone, Debug)]
pub struct TokenFilter {
    /// Of this user alone.
    pub user: Option<UserName>,
    /// At most so many.
    pub limit: usize,
}

/// Tokens that were found.
#[derive(Clone, Debug, Default)]
pub struct TokenListing {
    /// The newest first.
    pub tokens: Vec<TokenSummary>,
    /// Whether there are more.
    pub truncated: bool,
}

/// What is told of a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenSummary {
    /// Whose it is.
    pub user: UserName,
    /// What logs call it.
    pub fingerprint: Fingerprint,
    /// When it was made.
    pub minted: Timestamp,
    /// When it ends, used or not.
    pub expires: Timestamp,
    /// When it was last used, to a minute or so.
    pub last_used: Timestamp,
}

impl TokenFilter {
    pub(super) fn matches(&self, user: &UserName) -> bool {
        self.user.as_ref().is_none_or(|wanted| wanted == user)
    }
}

impl TokenListing {
    pub(super) fn push(&mut self, line: TokenSummary, filter: &TokenFilter) {
        if self.tokens.len() < filter.limit {
            self.tokens.push(line);
        } else {
            self.truncated = true;
        }
    }

    pub(super) fn into_sorted(mut self) -> TokenListing {
        self.tokens.sort_by_key(|line| (std::cmp::Reverse(line.minted), line.fingerprint));
        self
    }
}

/// What is told of a token in memory.
pub(super) fn summarize(id: &TokenId, record: &TokenRecord, calendar: &StoreClock) -> TokenSummary {
    TokenSummary {
        user: record.user.clone(),
        fingerprint: id.fingerprint(),
        minted: record.minted,
        expires: calendar.timestamp(record.expires),
        last_used: calendar.timestamp(record.last_used()),
    }
}

/// The live tokens of the memory.
pub(super) fn list_memory(memory: &MemoryStore, calendar: &StoreClock, filter: &TokenFilter) -> TokenListing {
    let mut listing = TokenListing::default();
    memory.for_each(|id, record| {
        if filter.matches(&record.user) {
            listing.push(summarize(id, record, calendar), filter);
        }
    });
    listing.into_sorted()
}
