//! Users and credentials that are denied for a while, whatever proves them: tokens, keys or JWTs. It does not know how
//! replicas exchange its entries.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::RwLock;

use crate::base::user_name::UserName;
use crate::store::{Fingerprint, Timestamp};

/// What is denied.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum DeniedSubject {
    /// A user, with every credential.
    User(UserName),
    /// One credential: a token, a key or a JWT.
    Credential(Fingerprint),
}

/// The entries that are in effect, with their ends. Shared by all threads.
#[derive(Debug, Default)]
pub struct DenyList {
    /// Read by every request, so that an empty list costs nothing more.
    count: AtomicUsize,
    until: RwLock<HashMap<DeniedSubject, Timestamp>>,
}

impl DenyList {
    /// Adds or replaces an entry. Zero removes it.
    pub fn set(&self, subject: DeniedSubject, until: Timestamp) {
        let mut entries = self.until.write();
        if until == Timestamp(0) {
            entries.remove(&subject);
        } else {
            entries.insert(subject, until);
        }
        self.count.store(entries.len(), Ordering::Release);
    }

    /// Whether the user or the credential is denied. `now` is called only if there are entries.
    pub fn denies(&self, user: Option<&UserName>, credential: Fingerprint, now: impl FnOnce() -> Timestamp) -> bool {
        if self.count.load(Ordering::Acquire) == 0 {
            return false;
        }
        let (now, entries) = (now(), self.until.read());
        let is_denied = |subject: &DeniedSubject| entries.get(subject).is_some_and(|until| now < *until);
        is_denied(&DeniedSubject::Credential(credential))
            || user.is_some_and(|user| is_denied(&DeniedSubject::User(user.clone())))
    }

    /// Removes entries that have ended.
    pub fn sweep(&self, now: Timestamp) {
        if self.count.load(Ordering::Acquire) > 0 {
            let mut entries = self.until.write();
            entries.retain(|_, until| now < *until);
            self.count.store(entries.len(), Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::TokenId;

    #[test]
    fn users_and_credentials_are_denied_until_the_end() {
        let user = |name: &str| UserName::parse(name.as_bytes()).expect("valid");
        let fingerprint = |text: &[u8]| TokenId::from_token(text).fingerprint();
        let list = DenyList::default();
        let denies = |name: Option<&str>, key: &[u8], now| {
            list.denies(name.map(user).as_ref(), fingerprint(key), || Timestamp(now))
        };
        assert!(!denies(Some("alice"), b"a", 1));
        list.set(DeniedSubject::User(user("alice")), Timestamp(10));
        list.set(DeniedSubject::Credential(fingerprint(b"b")), Timestamp(20));
        assert!(denies(Some("alice"), b"a", 9) && !denies(Some("alice"), b"a", 10));
        assert!(denies(Some("bob"), b"b", 19) && denies(None, b"b", 19) && !denies(Some("bob"), b"a", 5));
        list.sweep(Timestamp(10));
        assert_eq!(list.count.load(Ordering::Acquire), 1);
        list.set(DeniedSubject::Credential(fingerprint(b"b")), Timestamp(0));
        assert!(!denies(None, b"b", 11) && list.count.load(Ordering::Acquire) == 0);
    }
}
