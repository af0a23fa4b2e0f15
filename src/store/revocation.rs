//! What ends before its time.

use std::collections::HashMap;
use std::time::Duration;

use crate::base::user_name::UserName;
use crate::store::{Fingerprint, Timestamp, TokenId};

/// Which tokens end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Revocation {
    /// The one that logs call so. Two live tokens share a fingerprint once in four thousand million: then both end.
    Token(Fingerprint),
    /// All of a user.
    User(UserName),
    /// All.
    All,
}

impl Revocation {
    /// Whether it is about this token.
    pub fn covers(&self, id: &TokenId, user: &UserName) -> bool {
        match self {
            Revocation::Token(fingerprint) => id.fingerprint() == *fingerprint,
            Revocation::User(name) => name == user,
            Revocation::All => true,
        }
    }

    /// The bytes that are sealed.
    pub(super) fn encode(&self) -> Vec<u8> {
        match self {
            Revocation::Token(fingerprint) => [b"t", &fingerprint.bytes()[..]].concat(),
            Revocation::User(name) => [b"u", name.as_str().as_bytes()].concat(),
            Revocation::All => b"a".to_vec(),
        }
    }

    /// The revocation in bytes that were sealed.
    pub(super) fn decode(bytes: &[u8]) -> Option<Revocation> {
        match bytes.split_first()? {
            (b't', rest) => rest.try_into().ok().map(Fingerprint::from_bytes).map(Revocation::Token),
            (b'u', rest) => UserName::parse(rest).ok().map(Revocation::User),
            (b'a', []) => Some(Revocation::All),
            _ => None,
        }
    }
}

/// Revocations of a time, each of which concerns the tokens that were minted before it.
#[derive(Debug, Default)]
pub struct Revocations {
    tokens: HashMap<Fingerprint, Timestamp>,
    users: HashMap<UserName, Timestamp>,
    all: Timestamp,
}

impl Revocations {
    /// Adds one; false if it was known.
    pub fn add(&mut self, what: &Revocation, at: Timestamp) -> bool {
        let place = match what {
            Revocation::Token(fingerprint) => self.tokens.entry(*fingerprint).or_default(),
            Revocation::User(name) => self.users.entry(name.clone()).or_default(),
            Revocation::All => &mut self.all,
        };
        let news = at > *place;
        *place = at.max(*place);
        news
    }

    /// The last moment at which such a token would have had to be minted to be revoked; zero if it is not concerned.
    pub fn latest_covering(&self, id: &TokenId, user: &UserName) -> Timestamp {
        let token = self.tokens.get(&id.fingerprint()).copied().unwrap_or_default();
        let user = self.users.get(user).copied().unwrap_or_default();
        token.max(user).max(self.all)
    }

    /// When this one was, the last time; zero if it is not known.
    pub fn time_of(&self, what: &Revocation) -> Timestamp {
        match what {
            Revocation::Token(fingerprint) => self.tokens.get(fingerprint).copied().unwrap_or_default(),
            Revocation::User(name) => self.users.get(name).copied().unwrap_or_default(),
            Revocation::All => self.all,
        }
    }

    /// Forgets those that no live token is old enough for.
    pub fn remove_outdated(&mut self, now: Timestamp, ttl: Duration) {
        let oldest = now.0.saturating_sub(u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX));
        self.tokens.retain(|_, at| at.0 >= oldest);
        self.users.retain(|_, at| at.0 >= oldest);
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (Revocation, Timestamp)> {
        let tokens = self.tokens.iter().map(|(fingerprint, at)| (Revocation::Token(*fingerprint), *at));
        let users = self.users.iter().map(|(name, at)| (Revocation::User(name.clone()), *at));
        let all = (self.all > Timestamp(0)).then_some((Revocation::All, self.all));
        tokens.chain(users).chain(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_revocation_concerns_what_was_minted_before_it() {
        let user = |name: &str| UserName::parse(name.as_bytes()).expect("valid");
        let (alices, bobs) = (TokenId::from_token(b"a"), TokenId::from_token(b"b"));
        let mut all = Revocations::default();
        assert!(all.add(&Revocation::User(user("alice")), Timestamp(10)));
        assert!(!all.add(&Revocation::User(user("alice")), Timestamp(9)), "an older one changes nothing");
        assert!(all.add(&Revocation::Token(bobs.fingerprint()), Timestamp(20)));
        assert_eq!(all.latest_covering(&alices, &user("alice")), Timestamp(10));
        assert_eq!(all.latest_covering(&bobs, &user("bob")), Timestamp(20));
        assert_eq!(all.latest_covering(&alices, &user("bob")), Timestamp(0));
        all.remove_outdated(Timestamp(1015), Duration::from_secs(1));
        assert_eq!(all.iter().count(), 1);
        assert!(all.add(&Revocation::All, Timestamp(30)));
        assert_eq!(all.latest_covering(&alices, &user("carol")), Timestamp(30));
    }

    #[test]
    fn what_is_written_is_read() {
        let user = UserName::parse(b"alice").expect("valid");
        let token = Revocation::Token(TokenId::from_token(b"a").fingerprint());
        for revocation in [token, Revocation::User(user), Revocation::All] {
            assert_eq!(Revocation::decode(&revocation.encode()), Some(revocation));
        }
        for wrong in [&b""[..], b"a1", b"t123", b"t12345", b"u", b"x"] {
            assert_eq!(Revocation::decode(wrong), None);
        }
    }
}
