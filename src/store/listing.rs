//! The list of live tokens for operators. It contains nothing that could be used as a credential.

use crate::base::groups::Groups;
use crate::base::user_name::UserName;
use crate::store::memory::MemoryStore;
use crate::store::revocation::is_same_user;
use crate::store::time::StoreClock;
use crate::store::{Fingerprint, Timestamp};

/// Which tokens to list.
#[derive(Clone, Debug)]
pub struct TokenFilter {
    /// Only tokens of this user, in any case of the name, as a revocation ends them; `None`: of all users.
    pub user: Option<UserName>,
    /// Maximum number of tokens.
    pub limit: usize,
}

/// Tokens that match a filter.
#[derive(Clone, Debug, Default)]
pub struct TokenListing {
    /// The newest first.
    pub tokens: Vec<TokenSummary>,
    /// True if more tokens match than the limit allows.
    pub truncated: bool,
}

/// The properties of a token that operators may see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenSummary {
    /// The user that it authenticates.
    pub user: UserName,
    /// The user's groups, if the verifier of the login knows them.
    pub groups: Option<Groups>,
    /// Identifies it, as in the log.
    pub fingerprint: Fingerprint,
    /// When it was made.
    pub minted: Timestamp,
    /// When it expires, used or not.
    pub expires: Timestamp,
    /// When it was last used, to about a minute.
    pub last_used: Timestamp,
}

impl TokenFilter {
    pub(super) fn matches(&self, user: &UserName) -> bool {
        self.user.as_ref().is_none_or(|wanted| is_same_user(wanted, user))
    }
}

impl TokenListing {
    /// Adds a token if the limit allows.
    pub(super) fn push(&mut self, token: TokenSummary, filter: &TokenFilter) {
        if self.tokens.len() < filter.limit {
            self.tokens.push(token);
        } else {
            self.truncated = true;
        }
    }

    pub(super) fn into_sorted(mut self) -> TokenListing {
        self.tokens.sort_by_key(|token| (std::cmp::Reverse(token.minted), token.fingerprint));
        self
    }
}

/// The live tokens in memory.
pub(super) fn list_memory(memory: &MemoryStore, store_clock: &StoreClock, filter: &TokenFilter) -> TokenListing {
    let mut listing = TokenListing::default();
    memory.for_each(|id, record| {
        if filter.matches(&record.user) {
            let token = TokenSummary {
                user: record.user.clone(),
                groups: record.groups().cloned(),
                fingerprint: id.fingerprint(),
                minted: record.minted(),
                expires: store_clock.timestamp(record.expires),
                last_used: store_clock.timestamp(record.last_used()).max(record.minted()),
            };
            listing.push(token, filter);
        }
    });
    listing.into_sorted()
}
