//! What operators are shown of tokens.

use crate::base::user_name::UserName;
use crate::store::memory::MemoryStore;
use crate::store::time::Calendar;
use crate::store::{Fingerprint, Stamp, TokenId, TokenRecord};

/// Which tokens to show.
#[derive(Clone, Debug)]
pub struct Filter {
    /// Of this user alone.
    pub user: Option<UserName>,
    /// At most so many.
    pub most: usize,
}

/// Tokens that were found.
#[derive(Clone, Debug, Default)]
pub struct Listing {
    /// The newest first.
    pub tokens: Vec<TokenLine>,
    /// Whether there are more.
    pub cut: bool,
}

/// What is told of a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenLine {
    /// Whose it is.
    pub user: UserName,
    /// What logs call it.
    pub fingerprint: Fingerprint,
    /// When it was made.
    pub minted: Stamp,
    /// When it ends, used or not.
    pub expires: Stamp,
    /// When it was last used, to a minute or so.
    pub last_used: Stamp,
}

impl Filter {
    pub(super) fn wants(&self, user: &UserName) -> bool {
        self.user.as_ref().is_none_or(|wanted| wanted == user)
    }
}

impl Listing {
    pub(super) fn add(&mut self, line: TokenLine, filter: &Filter) {
        if self.tokens.len() < filter.most {
            self.tokens.push(line);
        } else {
            self.cut = true;
        }
    }

    pub(super) fn sorted(mut self) -> Listing {
        self.tokens.sort_by_key(|line| (std::cmp::Reverse(line.minted), line.fingerprint));
        self
    }
}

/// What is told of a token in memory.
pub(super) fn line_of(id: &TokenId, record: &TokenRecord, calendar: &Calendar) -> TokenLine {
    TokenLine {
        user: record.user.clone(),
        fingerprint: id.fingerprint(),
        minted: record.minted,
        expires: calendar.stamp(record.expires),
        last_used: calendar.stamp(record.last_used()),
    }
}

/// The live tokens of the memory.
pub(super) fn of_memory(memory: &MemoryStore, calendar: &Calendar, filter: &Filter) -> Listing {
    let mut listing = Listing::default();
    memory.for_each(|id, record| {
        if filter.wants(&record.user) {
            listing.add(line_of(id, record, calendar), filter);
        }
    });
    listing.sorted()
}
