//! Revokes tokens, and remembers which are revoked since when. It does not know how replicas exchange revocations, nor
//! why a token is revoked.

use std::collections::HashMap;
use std::time::Duration;

use crate::base::user_name::UserName;
use crate::store::deny_list::{ActiveDenial, Denial, DeniedSubject, DenyList};
use crate::store::memory::MemoryStore;
use crate::store::stop::{self, ActiveStop, StopKind, StopNote, StopTarget};
use crate::store::{Fingerprint, Store, Timestamp, TokenFilter, TokenId, TokenRecord, TokenSummary, Unavailable};

impl Store {
    /// Revokes tokens everywhere, and returns the number of live tokens that this ended. After `Ok`, this gateway
    /// rejects them, and within a second the other replicas do. `Unavailable` means that only this gateway rejects
    /// them: it publishes the revocation when the store is available again, unless the process ends first.
    pub async fn revoke(&self, revocation: Revocation) -> Result<u64, Unavailable> {
        match &self.driver {
            None => Ok(revoke_in_memory(&self.memory, &revocation)),
            Some(driver) if driver.is_shared => self.record_operation("revoke", driver.revoke(revocation)).await,
            Some(driver) => {
                // SECURITY: here in any case, even if the disk does not respond.
                let count = revoke_in_memory(&self.memory, &revocation);
                Ok(count + self.record_operation("revoke", driver.revoke(revocation)).await?)
            }
        }
    }

    /// Denies a user or a credential for this time, at most [`MAX_DENIAL`]; zero ends that. Returns the end. Effective
    /// as [`Store::revoke`] is.
    pub async fn deny(&self, subject: DeniedSubject, duration: Duration) -> Result<Timestamp, Unavailable> {
        self.set_denial(subject, duration, None).await
    }

    /// Stops an ontology, a user or a route, with this text for the clients, for this time or for [`MAX_DENIAL`]. Returns
    /// the end. Effective as [`Store::revoke`] is.
    pub async fn stop(
        &self,
        target: StopTarget,
        why: &str,
        duration: Option<Duration>,
    ) -> Result<Timestamp, Unavailable> {
        let note = StopNote { why: why.into(), since: self.now(), has_end: duration.is_some() };
        self.set_denial(DeniedSubject::Stopped(target), duration.unwrap_or(MAX_DENIAL), Some(note)).await
    }

    /// Ends what [`Store::stop`] began.
    pub async fn resume(&self, target: StopTarget) -> Result<(), Unavailable> {
        self.set_denial(DeniedSubject::Stopped(target), Duration::ZERO, None).await.map(|_| ())
    }

    async fn set_denial(
        &self,
        subject: DeniedSubject,
        duration: Duration,
        note: Option<StopNote>,
    ) -> Result<Timestamp, Unavailable> {
        let until = if duration.is_zero() { Timestamp(0) } else { self.now().after(duration.min(MAX_DENIAL)) };
        let denial = Revocation::Deny(subject, Denial { until, note });
        // SECURITY: here in any case, even if the store is unavailable.
        denial.apply_denial(&self.memory);
        self.revoke(denial).await?;
        Ok(until)
    }

    /// Whether a user or a credential is denied. Never waits.
    pub fn denies(&self, user: Option<&UserName>, credential: Fingerprint) -> bool {
        self.deny_list().is_some_and(|list| list.denies(user, credential, self.now()))
    }

    /// Whether logins of this user are rejected. Never waits.
    pub fn denies_logins_of(&self, user: &UserName) -> bool {
        let stopped = || StopTarget::new(StopKind::User, user.as_str()).map(DeniedSubject::Stopped);
        self.deny_list().is_some_and(|list| {
            let mut subjects = std::iter::once(DeniedSubject::user(user)).chain(stopped());
            subjects.any(|subject| list.has(&subject, self.now()))
        })
    }

    /// Whether anything is denied or stopped: one read.
    pub fn has_denials(&self) -> bool {
        self.deny_list().is_some()
    }

    /// Who is denied. Never waits.
    pub fn denials(&self) -> Vec<ActiveDenial> {
        self.deny_list().map(|list| list.denials(self.now())).unwrap_or_default()
    }

    /// Ends a denial. True if there was one. Effective as [`Store::revoke`] is.
    pub async fn allow(&self, subject: DeniedSubject) -> Result<bool, Unavailable> {
        let was_denied = self.deny_list().is_some_and(|list| list.has(&subject, self.now()));
        self.set_denial(subject, Duration::ZERO, None).await.map(|_| was_denied)
    }

    /// What operators have stopped. Never waits.
    pub fn stops(&self) -> Vec<ActiveStop> {
        self.deny_list().map(|list| list.stops(self.now())).unwrap_or_default()
    }

    /// The entry of one thing that an operator has stopped. Never waits.
    pub fn find_stop(&self, target: impl FnOnce() -> Option<StopTarget>) -> Option<ActiveStop> {
        self.deny_list()?.find_stop(target()?, self.now())
    }

    /// Whether an ontology is stopped. Never waits.
    pub fn stops_ontologies(&self) -> bool {
        self.deny_list().is_some_and(DenyList::stops_ontologies)
    }

    /// The time until a stop ends.
    pub fn time_left(&self, stop: &ActiveStop) -> Duration {
        Duration::from_millis(stop.until.millis_since(self.now()))
    }

    /// `None` while it is empty, which costs one read.
    fn deny_list(&self) -> Option<&DenyList> {
        Some(self.memory.deny_list()).filter(|list| !list.is_empty())
    }

    /// The number of live tokens that a revocation would end.
    pub async fn count_covered(&self, revocation: &Revocation) -> Result<u64, Unavailable> {
        let user = if let Revocation::User(name) = revocation { Some(name.clone()) } else { None };
        let live = self.list(TokenFilter { user, limit: usize::MAX }).await?.tokens;
        let is_covered = |token: &&TokenSummary| match revocation {
            Revocation::Token(fingerprint) => token.fingerprint == *fingerprint,
            Revocation::User(_) | Revocation::All => true,
            Revocation::Deny(..) => false,
        };
        Ok(live.iter().filter(is_covered).count() as u64)
    }

    /// Ends the tokens in the memory of this process for which the predicate is true, and returns the users of those
    /// that were live, one for each token.
    ///
    /// For tokens whose binding does not hold any more: each replica decides that by itself, and so it does after a
    /// restart.
    pub fn end_if(&self, predicate: impl Fn(&TokenRecord) -> bool) -> Vec<UserName> {
        let mut users = Vec::new();
        self.memory.revoke_if(|_, record| predicate(record), |_, record| users.push(record.user.clone()));
        users
    }
}

/// Revokes the tokens in memory, and returns the number of those that were live.
pub(super) fn revoke_in_memory(memory: &MemoryStore, revocation: &Revocation) -> u64 {
    if let Revocation::Deny(..) = revocation {
        revocation.apply_denial(memory);
        return 0;
    }
    let mut count = 0;
    memory.revoke_if(|id, record| revocation.covers(id, &record.user), |_, _| count += 1);
    count
}

/// Which tokens to revoke, or whom to deny.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Revocation {
    /// The token with this fingerprint. If two live tokens share it, which has a probability of 1 in 4 × 10⁹, both
    /// end.
    Token(Fingerprint),
    /// All tokens of a user, in any case of the name: see [`DeniedSubject::user`].
    User(UserName),
    /// All tokens.
    All,
    /// Ends no token, but sets or removes an entry of the deny list.
    Deny(DeniedSubject, Denial),
}

/// Entries of the deny list are kept as long as revocations, which is at least this long.
pub const MAX_DENIAL: Duration = Duration::from_secs(30 * 24 * 60 * 60);

impl Revocation {
    /// True if it applies to this token.
    pub fn covers(&self, id: &TokenId, user: &UserName) -> bool {
        match self {
            Revocation::Token(fingerprint) => id.fingerprint() == *fingerprint,
            Revocation::User(name) => is_same_user(name, user),
            Revocation::All => true,
            Revocation::Deny(..) => false,
        }
    }

    /// Identifies the mark of this revocation, which a later one of the same kind replaces.
    pub(super) fn mark_id(&self) -> Vec<u8> {
        match self {
            Revocation::Deny(subject, _) => Revocation::Deny(subject.clone(), Denial::END).encode(),
            other => other.encode(),
        }
    }

    /// Whether it is an entry of the deny list that has ended.
    pub(super) fn has_ended(&self, now: Timestamp) -> bool {
        matches!(self, Revocation::Deny(_, denial) if denial.until <= now)
    }

    /// Applies an entry of the deny list.
    pub(super) fn apply_denial(&self, memory: &MemoryStore) {
        if let Revocation::Deny(subject, denial) = self {
            memory.deny_list().set(subject.clone(), denial.clone());
        }
    }

    /// The plaintext for the event log.
    pub(super) fn encode(&self) -> Vec<u8> {
        match self {
            Revocation::Token(fingerprint) => [b"t", &fingerprint.bytes()[..]].concat(),
            Revocation::User(name) => [b"u", name.to_lower_case().as_str().as_bytes()].concat(),
            Revocation::All => b"a".to_vec(),
            Revocation::Deny(subject, Denial { until, note }) => {
                let (kind, subject) = match subject {
                    DeniedSubject::User(user) => (b"d", Revocation::User(user.clone()).encode()),
                    DeniedSubject::Credential(fingerprint) => (b"d", Revocation::Token(*fingerprint).encode()),
                    DeniedSubject::Stopped(target) => (b"s", stop::encode(target, note.as_ref())),
                };
                [kind, &until.0.to_be_bytes()[..], &subject].concat()
            }
        }
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Revocation> {
        match bytes.split_first()? {
            (b't', rest) => rest.try_into().ok().map(Fingerprint::from_bytes).map(Revocation::Token),
            (b'u', rest) => UserName::parse(rest).ok().map(Revocation::User),
            (b'a', []) => Some(Revocation::All),
            (b'd', rest) => {
                let (until, subject) = rest.split_first_chunk()?;
                let subject = match Revocation::decode(subject)? {
                    Revocation::User(user) => DeniedSubject::user(&user),
                    Revocation::Token(fingerprint) => DeniedSubject::Credential(fingerprint),
                    Revocation::All | Revocation::Deny(..) => return None,
                };
                let until = Timestamp(u64::from_be_bytes(*until));
                Some(Revocation::Deny(subject, Denial { until, note: None }))
            }
            (b's', rest) => {
                let (until, rest) = rest.split_first_chunk()?;
                let (target, note) = stop::decode(rest)?;
                let until = Timestamp(u64::from_be_bytes(*until));
                Some(Revocation::Deny(DeniedSubject::Stopped(target), Denial { until, note }))
            }
            _ => None,
        }
    }
}

pub(super) fn is_same_user(one: &UserName, other: &UserName) -> bool {
    one.as_str().eq_ignore_ascii_case(other.as_str())
}

/// The latest time of each revocation, the ends of denials included, by [`Revocation::mark_id`]. It applies to tokens
/// minted at that time or earlier.
#[derive(Debug, Default)]
pub struct Revocations(HashMap<Vec<u8>, (Revocation, Timestamp)>);

impl Revocations {
    /// Adds a revocation. False if it or a later one was known.
    pub fn add(&mut self, revocation: &Revocation, at: Timestamp) -> bool {
        let is_new = at > self.time_of(revocation);
        if is_new {
            self.0.insert(revocation.mark_id(), (revocation.clone(), at));
        }
        is_new
    }

    /// The latest revocation that covers this token: it is revoked if it was minted then or earlier. Zero if none
    /// does.
    pub fn latest_covering(&self, id: &TokenId, user: &UserName) -> Timestamp {
        let covering = [Revocation::Token(id.fingerprint()), Revocation::User(user.clone()), Revocation::All];
        covering.iter().map(|revocation| self.time_of(revocation)).max().unwrap_or_default()
    }

    /// A time for a revocation that is made now: later than the one that is known, so that it covers what that did not.
    pub fn next_time(&self, revocation: &Revocation, now: Timestamp) -> Timestamp {
        now.max(Timestamp(self.time_of(revocation).0.saturating_add(1)))
    }

    /// A time for a token that is minted now: later than every revocation that covers it.
    pub fn mint_time(&self, id: &TokenId, user: &UserName, now: Timestamp) -> Timestamp {
        now.max(Timestamp(self.latest_covering(id, user).0.saturating_add(1)))
    }

    /// The latest time of this revocation; zero if it is unknown.
    pub fn time_of(&self, revocation: &Revocation) -> Timestamp {
        self.0.get(&revocation.mark_id()).map(|(_, at)| *at).unwrap_or_default()
    }

    /// Removes revocations older than `ttl`: every token they cover has expired.
    pub fn remove_outdated(&mut self, now: Timestamp, ttl: Duration) {
        let oldest = now.before(ttl);
        self.0.retain(|_, (revocation, at)| *at >= oldest || *revocation == Revocation::All);
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All known revocations with their latest times.
    pub fn iter(&self) -> impl Iterator<Item = (Revocation, Timestamp)> {
        self.0.values().cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::clock::Clock;
    use crate::config::{Sources, load};
    use crate::store::NewToken;

    #[test]
    fn a_revocation_covers_tokens_minted_before_it() {
        let user = |name: &str| UserName::parse(name.as_bytes()).expect("valid");
        let (alices, bobs) = (TokenId::from_token(b"a"), TokenId::from_token(b"b"));
        let mut revocations = Revocations::default();
        assert!(revocations.add(&Revocation::User(user("alice")), Timestamp(10)));
        assert!(!revocations.add(&Revocation::User(user("alice")), Timestamp(9)), "an older one changes nothing");
        assert!(revocations.add(&Revocation::Token(bobs.fingerprint()), Timestamp(20)));
        assert_eq!(revocations.latest_covering(&alices, &user("alice")), Timestamp(10));
        assert_eq!(revocations.latest_covering(&bobs, &user("bob")), Timestamp(20));
        assert_eq!(revocations.latest_covering(&alices, &user("bob")), Timestamp(0));
        revocations.remove_outdated(Timestamp(1015), Duration::from_secs(1));
        assert_eq!(revocations.iter().count(), 1);
        assert!(revocations.add(&Revocation::All, Timestamp(30)));
        assert_eq!(revocations.latest_covering(&alices, &user("carol")), Timestamp(30));
        revocations.remove_outdated(Timestamp(9000), Duration::from_secs(1));
        assert_eq!(revocations.iter().collect::<Vec<_>>(), [(Revocation::All, Timestamp(30))]);
    }

    #[test]
    fn revocations_survive_encoding() {
        let user = UserName::parse(b"alice").expect("valid");
        let token = Revocation::Token(TokenId::from_token(b"a").fingerprint());
        let denial = |note| Denial { until: Timestamp(1 << 40), note };
        let note = StopNote { why: "Too slow.".into(), since: Timestamp(1 << 39), has_end: false };
        let target = StopTarget::new(StopKind::Ontology, "sales").expect("valid");
        let denials = [
            Revocation::Deny(DeniedSubject::User(user.clone()), denial(None)),
            Revocation::Deny(DeniedSubject::Credential(TokenId::from_token(b"a").fingerprint()), denial(None)),
            Revocation::Deny(DeniedSubject::Stopped(target.clone()), denial(Some(note))),
            Revocation::Deny(DeniedSubject::Stopped(target), Denial::END),
        ];
        assert_eq!(denials[2].mark_id(), denials[3].mark_id());
        for revocation in [token, Revocation::User(user), Revocation::All].into_iter().chain(denials) {
            assert_eq!(Revocation::decode(&revocation.encode()), Some(revocation));
        }
        for invalid in [&b""[..], b"a1", b"t123", b"t12345", b"u", b"x", b"d12345678a", b"d1", b"s12345678o"] {
            assert_eq!(Revocation::decode(invalid), None);
        }
    }

    #[tokio::test]
    async fn tokens_end_although_the_disk_does_not_respond() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("tokens");
        let environment = [
            ("API_AUTH_SALT", "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="),
            ("TIMBR_GATEWAY_UPSTREAM_URL", "http://127.0.0.1:1"),
            ("TIMBR_GATEWAY_STORE_KIND", "file"),
            ("TIMBR_GATEWAY_STORE_PATH", path.to_str().expect("text")),
        ];
        let environment = environment.map(|(name, value)| (name.into(), value.into())).into();
        let (config, _) = load(&Sources { environment, ..Sources::default() }).expect("valid");
        let store = Store::new(&config, &Clock::manual(1_000)).expect("a store");
        // Its thread executes nothing.
        store.driver.as_ref().expect("there is a file").availability.mark_authoritative();
        store.memory.insert(NewToken::example("alice", 1), [1; 20], store.now(), |seed| TokenId::from_token(seed));
        let id = TokenId::from_token(&[1; 20]);
        assert!(store.find(&id).is_some());
        let revoked = tokio::time::timeout(Duration::from_millis(1), store.revoke(Revocation::All)).await;
        assert!(revoked.is_err() && store.find(&id).is_none());
    }
}
