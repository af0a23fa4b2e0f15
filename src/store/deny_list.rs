//! Users and credentials that are denied for a while, whatever proves them (tokens, keys or JWTs), and what an operator
//! has stopped. It does not know how replicas exchange its entries.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::RwLock;

use crate::base::user_name::UserName;
use crate::store::stop::{ActiveStop, StopKind, StopNote, StopTarget};
use crate::store::{Fingerprint, Timestamp};

/// What is denied.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum DeniedSubject {
    /// A user, with every credential. See [`DeniedSubject::user`].
    User(UserName),
    /// One credential: a token, a key or a JWT.
    Credential(Fingerprint),
    /// What an operator has stopped.
    Stopped(StopTarget),
}

impl DeniedSubject {
    /// A user.
    ///
    /// SECURITY: the case of the name does not matter, as it does not matter to some servers. Otherwise a denied user could
    /// log in as `ALICE` where the verifier does not return the name as the server spells it.
    pub fn user(user: &UserName) -> DeniedSubject {
        DeniedSubject::User(user.to_lower_case())
    }
}

/// An entry of the deny list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denial {
    /// When it ends; zero removes the entry.
    pub until: Timestamp,
    /// Present for what an operator has stopped.
    pub note: Option<StopNote>,
}

impl Denial {
    /// Removes an entry.
    pub const END: Denial = Denial { until: Timestamp(0), note: None };
}

/// A user or a credential that is denied.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ActiveDenial {
    /// `user` or `fingerprint`.
    pub kind: &'static str,
    /// The user in lower case, or the fingerprint.
    pub name: String,
    /// When the entry ends.
    pub until: Timestamp,
}

/// The entries that are in effect. Shared by all threads.
#[derive(Debug, Default)]
pub struct DenyList {
    /// Read by every request, so that an empty list costs nothing more.
    count: AtomicUsize,
    entries: RwLock<HashMap<DeniedSubject, Denial>>,
}

impl DenyList {
    /// Adds, replaces or removes an entry.
    pub fn set(&self, subject: DeniedSubject, denial: Denial) {
        let mut entries = self.entries.write();
        if denial.until == Timestamp(0) {
            entries.remove(&subject);
        } else {
            entries.insert(subject, denial);
        }
        self.count.store(entries.len(), Ordering::Release);
    }

    /// Whether there are no entries at all.
    pub fn is_empty(&self) -> bool {
        self.count.load(Ordering::Acquire) == 0
    }

    /// Whether the user or the credential is denied.
    pub fn denies(&self, user: Option<&UserName>, credential: Fingerprint, now: Timestamp) -> bool {
        self.has(&DeniedSubject::Credential(credential), now)
            || user.is_some_and(|user| self.has(&DeniedSubject::user(user), now))
    }

    /// Whether there is an entry of this subject.
    pub fn has(&self, subject: &DeniedSubject, now: Timestamp) -> bool {
        self.entries.read().get(subject).is_some_and(|denial| now < denial.until)
    }

    /// The entry of something that an operator has stopped.
    pub fn find_stop(&self, target: StopTarget, now: Timestamp) -> Option<ActiveStop> {
        let entries = self.entries.read();
        let (subject, denial) = entries.get_key_value(&DeniedSubject::Stopped(target))?;
        active_stop(subject, denial, now)
    }

    /// Whether an ontology is stopped.
    pub fn stops_ontologies(&self) -> bool {
        let is_ontology = |subject: &DeniedSubject| {
            matches!(subject, DeniedSubject::Stopped(StopTarget { kind: StopKind::Ontology, .. }))
        };
        self.entries.read().keys().any(is_ontology)
    }

    /// Everything that operators have stopped, sorted by kind and name.
    pub fn stops(&self, now: Timestamp) -> Vec<ActiveStop> {
        let entries = self.entries.read();
        let mut stops: Vec<_> =
            entries.iter().filter_map(|(subject, denial)| active_stop(subject, denial, now)).collect();
        stops.sort_by_cached_key(|stop| stop.target.to_string());
        stops
    }

    /// The users and credentials that are denied, with the ends, sorted by kind and name.
    pub fn denials(&self, now: Timestamp) -> Vec<ActiveDenial> {
        let entries = self.entries.read();
        let denial = |(subject, denial): (&DeniedSubject, &Denial)| {
            let (kind, name) = match subject {
                DeniedSubject::User(user) => ("user", user.to_string()),
                DeniedSubject::Credential(fingerprint) => ("fingerprint", fingerprint.to_string()),
                DeniedSubject::Stopped(_) => return None,
            };
            (now < denial.until).then_some(ActiveDenial { kind, name, until: denial.until })
        };
        let mut denials: Vec<_> = entries.iter().filter_map(denial).collect();
        denials.sort();
        denials
    }

    /// Removes entries that have ended.
    pub fn sweep(&self, now: Timestamp) {
        if !self.is_empty() {
            let mut entries = self.entries.write();
            entries.retain(|_, denial| now < denial.until);
            self.count.store(entries.len(), Ordering::Release);
        }
    }
}

fn active_stop(subject: &DeniedSubject, denial: &Denial, now: Timestamp) -> Option<ActiveStop> {
    match (subject, &denial.note) {
        (DeniedSubject::Stopped(target), Some(note)) if now < denial.until => {
            Some(ActiveStop { target: target.clone(), note: note.clone(), until: denial.until })
        }
        _ => None,
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
            list.denies(name.map(user).as_ref(), fingerprint(key), Timestamp(now))
        };
        let until = |time| Denial { until: Timestamp(time), note: None };
        assert!(!denies(Some("alice"), b"a", 1));
        list.set(DeniedSubject::user(&user("Alice")), until(10));
        list.set(DeniedSubject::Credential(fingerprint(b"b")), until(20));
        assert!(denies(Some("ALICE"), b"a", 9), "some servers ignore the case");
        assert!(denies(Some("alice"), b"a", 9) && !denies(Some("alice"), b"a", 10));
        assert!(denies(Some("bob"), b"b", 19) && denies(None, b"b", 19) && !denies(Some("bob"), b"a", 5));
        list.sweep(Timestamp(10));
        assert_eq!(list.count.load(Ordering::Acquire), 1);
        list.set(DeniedSubject::Credential(fingerprint(b"b")), Denial::END);
        assert!(!denies(None, b"b", 11) && list.is_empty());
    }

    #[test]
    fn stops_are_separate_from_denials_and_end() {
        let list = DenyList::default();
        let target = |kind, name| StopTarget::new(kind, name).expect("valid");
        let alice = target(StopKind::User, "alice");
        let note = StopNote { why: "Too many queries.".into(), since: Timestamp(1), has_end: true };
        let denial = Denial { until: Timestamp(10), note: Some(note) };
        list.set(DeniedSubject::Stopped(alice.clone()), denial.clone());
        let user = UserName::parse(b"alice").expect("valid");
        assert!(!list.denies(Some(&user), TokenId::from_token(b"a").fingerprint(), Timestamp(5)));
        assert!(list.find_stop(alice.clone(), Timestamp(9)).is_some());
        assert!(list.find_stop(target(StopKind::User, "ALICE"), Timestamp(9)).is_some());
        assert!(list.find_stop(target(StopKind::Route, "ALICE"), Timestamp(9)).is_none());
        assert!(list.find_stop(alice, Timestamp(10)).is_none() && list.stops(Timestamp(10)).is_empty());
        assert!(list.find_stop(target(StopKind::Route, "alice"), Timestamp(5)).is_none() && !list.stops_ontologies());
        list.set(DeniedSubject::Stopped(target(StopKind::Ontology, "sales")), denial);
        let names: Vec<_> = list.stops(Timestamp(5)).iter().map(|stop| stop.target.to_string()).collect();
        assert_eq!(names, ["ontology sales", "user alice"]);
        assert!(list.stops_ontologies());
    }
}
