//! How entries of the file are sealed: each opens only in its table and under its name.

use crate::store::Timestamp;
use crate::store::file::FileStore;
use crate::store::keys::{PRIMARY_KEY, RecordName};
use crate::store::revocation::Revocation;
use crate::store::wire::{StoredLogin, StoredToken};

impl FileStore {
    pub(super) fn seal_revocation(&self, context: &[u8], revocation: &Revocation, at: Timestamp) -> Vec<u8> {
        self.keys.seal(PRIMARY_KEY, context, &[&at.0.to_be_bytes()[..], &revocation.encode()].concat())
    }

    pub(super) fn open_revocation(&self, context: &[u8], sealed: &[u8]) -> Option<(Revocation, Timestamp)> {
        let (_, plaintext) = self.keys.open(context, sealed)?;
        let (at, revocation) = plaintext.split_first_chunk()?;
        Some((Revocation::decode(revocation)?, Timestamp(u64::from_be_bytes(*at))))
    }

    pub(super) fn unseal_token(&self, name: &[u8; 16], sealed: &[u8]) -> Option<StoredToken> {
        StoredToken::open(&self.keys, &seal_context(b't', name), sealed)
    }

    /// The name and the value of a token's entry.
    pub(super) fn seal_token(&self, stored: &StoredToken, last_used: Timestamp) -> (RecordName, Vec<u8>) {
        let name = self.keys.token_name(stored.token.key, &stored.id);
        let sealed = stored.seal(&self.keys, &seal_context(b't', &name.0));
        (name, [&last_used.0.to_be_bytes()[..], &stored.expires.0.to_be_bytes(), &sealed].concat())
    }

    pub(super) fn unseal_login(&self, name: &RecordName, sealed: &[u8]) -> Option<StoredLogin> {
        StoredLogin::open(&self.keys, &seal_context(b'l', &name.0), sealed)
    }
}

/// The table and the name of an entry: a value that is sealed for it opens nowhere else.
pub(super) fn seal_context(table: u8, name: &[u8; 16]) -> [u8; 17] {
    let mut context = [table; 17];
    context[1..].copy_from_slice(name);
    context
}

/// The last use, the expiry, and the sealed token.
pub(super) fn split_value(value: &[u8]) -> Option<(Timestamp, Timestamp, &[u8])> {
    let (last_used, rest) = value.split_first_chunk()?;
    let (expires, sealed) = rest.split_first_chunk()?;
    Some((Timestamp(u64::from_be_bytes(*last_used)), Timestamp(u64::from_be_bytes(*expires)), sealed))
}
