//! What ends before its time.

use crate::store::{Fingerprint, TokenId};

/// Which tokens end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Revocation {
    /// The one that logs call so. Two live tokens share a fingerprint once in four thousand million: then both end.
    Token(Fingerprint),
}

impl Revocation {
    /// Whether it is about this token.
    pub fn covers(&self, id: &TokenId) -> bool {
        match self {
            Revocation::Token(fingerprint) => id.fingerprint() == *fingerprint,
        }
    }
}
