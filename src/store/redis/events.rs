//! Events that replicas exchange: each is read by all replicas within a moment, and then forgotten. What must last is
//! in the marks and the tokens.
//! There is one [feed](super::event_feed) for changes and one for credential failures.
//!
//! SECURITY: the score of an event decides only when it is read and removed. Its content, including its time, is sealed.
//! A replayed event is known by its nonce, is too old, or changes nothing.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use aws_lc_rs::rand;
use tracing::warn;

use crate::base::clock::millis;
use crate::store::keys::{KeyNumber, PRIMARY_KEY};
use crate::store::rate_uses::{self, REPLICA_TIMEOUT, UseDecoder};
use crate::store::redis::connection::RedisConnection;
use crate::store::redis::event_feed::{CHANGE_RETENTION, FAILURE_RETENTION, ReadEvents};
use crate::store::redis::{RedisSession, StoreResult};
use crate::store::revocation::Revocation;
use crate::store::{CredentialFailure, Timestamp, TokenId};

/// Later, what other replicas have admitted under a rate limit does not matter any more.
const MAX_USE_AGE: Duration = Duration::from_secs(2);

/// A replica with nothing to report does so nevertheless, so that the others know that it is there.
const PRESENCE_INTERVAL: Duration = Duration::from_secs(5);

/// Further replicas are not counted. Redis could replay the reports of all that have ever existed.
const MAX_REPLICAS: usize = 1000;

/// The number of events that are written in one round trip.
const WRITE_PAGE: usize = 100;

/// Further events are not published: a client that causes this number of failures has reached its limits by then.
const MAX_PENDING: usize = 10_000;

/// A change that the other replicas have to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreEvent {
    /// Tokens minted at this time or earlier were revoked.
    Revoked(Revocation, Timestamp),
    /// A token in the store was changed, so that its copies in memory are out of date.
    Changed(TokenId),
    /// A client uses this token, which the store does not have: a replica that knows it should restore it. With the
    /// key that made it.
    Wanted(TokenId, KeyNumber),
}

impl StoreEvent {
    fn encode(&self, now: Timestamp) -> Vec<u8> {
        let time = |at: Timestamp| at.0.to_be_bytes();
        match self {
            StoreEvent::Revoked(revocation, at) => [b"r", &time(*at)[..], &revocation.encode()].concat(),
            StoreEvent::Changed(id) => [b"c", &time(now)[..], id.bytes()].concat(),
            StoreEvent::Wanted(id, key) => [b"w", &time(now)[..], &[*key], id.bytes()].concat(),
        }
    }

    /// The event with its time.
    fn decode(bytes: &[u8]) -> Option<(StoreEvent, Timestamp)> {
        let (kind, rest) = bytes.split_first()?;
        let (at, rest) = rest.split_first_chunk()?;
        let at = Timestamp(u64::from_be_bytes(*at));
        let id = |bytes: &[u8]| bytes.try_into().ok().map(TokenId::from_bytes);
        let event = match kind {
            b'r' => StoreEvent::Revoked(Revocation::decode(rest)?, at),
            b'c' => StoreEvent::Changed(id(rest)?),
            b'w' => {
                let (key, rest) = rest.split_first()?;
                StoreEvent::Wanted(id(rest)?, *key)
            }
            _ => return None,
        };
        Some((event, at))
    }
}

/// Events that this replica has yet to publish.
#[derive(Default)]
pub struct PendingEvents {
    changes: VecDeque<StoreEvent>,
    failures: Vec<CredentialFailure>,
    /// Distinguishes this replica's failures from others'; created when it is first needed.
    replica_id: Option<[u8; 8]>,
    /// When this replica last reported failures or that there are none.
    reported_at: Option<Instant>,
    /// When each other replica last did.
    replicas: HashMap<[u8; 8], Timestamp>,
}

impl PendingEvents {
    /// SECURITY: a revocation is queued in any case, as only operators make them; the other events are made by clients.
    pub fn add(&mut self, event: StoreEvent) {
        if self.changes.len() < MAX_PENDING || matches!(event, StoreEvent::Revoked(..)) {
            self.changes.push_back(event);
        }
    }

    /// Queues a failure for the other replicas.
    pub fn add_failure(&mut self, failure: CredentialFailure) {
        if self.failures.len() < MAX_PENDING {
            self.failures.push(failure);
        }
    }

    /// Records the report of a replica, and returns the number of replicas, this one included.
    fn count_replicas(&mut self, report: Option<([u8; 8], Timestamp)>, now: Timestamp) -> usize {
        if let Some((id, at)) = report
            && (self.replicas.len() < MAX_REPLICAS - 1 || self.replicas.contains_key(&id))
        {
            let last = self.replicas.entry(id).or_default();
            *last = at.max(*last);
        }
        self.replicas.retain(|_, at| now.millis_since(*at) < millis(REPLICA_TIMEOUT));
        self.replicas.len() + 1
    }

    fn replica_id(&mut self) -> [u8; 8] {
        *self.replica_id.get_or_insert_with(|| {
            let mut id = [0; 8];
            rand::fill(&mut id).expect("the system's random source works");
            id
        })
    }
}

impl RedisSession {
    /// Applies what other replicas, or this one, have published.
    ///
    /// SECURITY: events count as seen only now. A poll that fails after its read, such as in the marks, applies nothing,
    /// and the next poll finds them again.
    pub(super) async fn apply_events(&self, read: ReadEvents) {
        let now = self.context.store_clock.now();
        for sealed in self.take_new(0, read.changes) {
            let opened = self.open_event(0, &sealed);
            let event = opened.and_then(|(key, text)| Some((key, StoreEvent::decode(&text)?)));
            let Some((key, (event, at))) = event else {
                warn!(
                    "cannot read an event in the token store: check that all replicas have the same store.key and version"
                );
                continue;
            };
            self.context.store_clock.advance_to(at);
            match event {
                StoreEvent::Revoked(revocation, at) => {
                    // Its mark has the same key.
                    if key == PRIMARY_KEY {
                        self.marks_in_store.borrow_mut().add(&revocation, at);
                    }
                    self.add_revocation(revocation, at);
                }
                // Replayed, it would only cause a further lookup.
                StoreEvent::Changed(_) | StoreEvent::Wanted(..) if now.millis_since(at) > millis(CHANGE_RETENTION) => {}
                StoreEvent::Changed(id) => drop(self.context.memory.remove(&id)),
                StoreEvent::Wanted(id, key) if usize::from(key) < self.context.keys.numbers().count() => {
                    self.restore_soon(id, key);
                }
                StoreEvent::Wanted(..) => {}
            }
        }
        self.remove_revoked().await;
        self.apply_failures(self.take_new(1, read.failures));
    }

    /// Counts the failures, and the requests under rate limits, that other replicas have published.
    ///
    /// SECURITY: reports are sealed with the key of the store. A server that repeats or withholds some makes limits
    /// stricter, or leaves each replica at its own limit.
    fn apply_failures(&self, new: Vec<Vec<u8>>) {
        let own_id = self.pending_events.borrow_mut().replica_id();
        let (now, rate_uses) = (self.context.store_clock.now(), &self.availability.rate_uses);
        for sealed in new {
            let Some((_, plaintext)) = self.open_event(1, &sealed) else { continue };
            let Some((at, rest)) = plaintext.split_first_chunk() else { continue };
            let Some((replica_id, failures)) = rest.split_first_chunk::<8>() else { continue };
            let at = Timestamp(u64::from_be_bytes(*at));
            if *replica_id == own_id || now.millis_since(at) > millis(FAILURE_RETENTION) {
                continue;
            }
            self.pending_events.borrow_mut().count_replicas(Some((*replica_id, at)), now);
            let mut decoder = UseDecoder::default();
            for entry in failures.chunks_exact(9) {
                let (kind, bucket) = (entry[0], u64::from_be_bytes(entry[1..].try_into().expect("eight bytes")));
                if !decoder.read(kind, bucket) {
                    (self.on_failure)(CredentialFailure { kind, bucket });
                }
            }
            if now.millis_since(at) <= millis(MAX_USE_AGE) {
                rate_uses.add_others(decoder.uses);
            }
        }
        rate_uses.set_replicas(self.pending_events.borrow_mut().count_replicas(None, now), Instant::now());
    }

    /// Publishes an event. If that fails, it is published with the next poll that succeeds.
    pub(super) async fn publish(&self, event: StoreEvent) -> StoreResult<()> {
        let command = self.write_command(0, &event.encode(self.context.store_clock.now()));
        let published = self.query::<u64>(&command).await;
        if published.is_err() {
            self.pending_events.borrow_mut().add(event);
        }
        published.map(drop)
    }

    /// Publishes what could not be published before, and the failures since the last call.
    ///
    /// SECURITY: the caller abandons this after a timeout, and other replicas may not read the marks for hours. So a
    /// change stays pending until its write has succeeded. One that is published twice has no further effect.
    pub(super) async fn publish_pending(&self, connection: &mut RedisConnection) -> StoreResult<()> {
        loop {
            let page: Vec<_> = {
                let (events, now) = (self.pending_events.borrow(), self.context.store_clock.now());
                let page = events.changes.iter().take(WRITE_PAGE);
                page.map(|event| self.write_command(0, &event.encode(now))).collect()
            };
            if page.is_empty() {
                break;
            }
            let count = page.len();
            let _: Vec<u64> = connection.query_all(page.into_iter()).await?;
            // Meanwhile, others have only appended.
            self.pending_events.borrow_mut().changes.drain(..count);
        }
        let rate_uses = &self.availability.rate_uses;
        let uses = rate_uses.take_own();
        let (failures, replica_id) = {
            let mut events = self.pending_events.borrow_mut();
            // Until a report is accepted, each poll tries one.
            let is_due =
                !rate_uses.is_written() || events.reported_at.is_none_or(|at| at.elapsed() >= PRESENCE_INTERVAL);
            if events.failures.is_empty() && uses.is_empty() && !is_due {
                return Ok(());
            }
            events.reported_at = Some(Instant::now());
            (std::mem::take(&mut events.failures), events.replica_id())
        };
        // The time, the replica's id, then 9 bytes for each failure. Best effort: it counts here in any case.
        let mut plaintext = [self.context.store_clock.now().0.to_be_bytes(), replica_id].concat();
        for failure in failures {
            plaintext.push(failure.kind);
            plaintext.extend(failure.bucket.to_be_bytes());
        }
        rate_uses::encode(&uses, &mut plaintext);
        Ok(self.write_command(1, &plaintext).query_async::<u64>(connection).await.map(drop)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_survive_encoding() {
        let (id, now) = (TokenId::from_token(b"x"), Timestamp(7));
        for event in [
            StoreEvent::Revoked(Revocation::All, now),
            StoreEvent::Revoked(Revocation::Token(id.fingerprint()), now),
            StoreEvent::Changed(id),
            StoreEvent::Wanted(id, 3),
        ] {
            assert_eq!(StoreEvent::decode(&event.encode(now)), Some((event, now)));
        }
        for invalid in [&b""[..], b"r", b"r12345678", b"c12345678123", b"x12345678a"] {
            assert_eq!(StoreEvent::decode(invalid), None);
        }
    }

    #[test]
    fn a_full_queue_takes_revocations_only() {
        let mut events = PendingEvents::default();
        let wanted = StoreEvent::Wanted(TokenId::from_token(b"x"), 0);
        for _ in 0..MAX_PENDING + 1 {
            events.add(wanted.clone());
        }
        let revoked = StoreEvent::Revoked(Revocation::All, Timestamp(1));
        events.add(revoked.clone());
        assert_eq!((events.changes.len(), events.changes.back()), (MAX_PENDING + 1, Some(&revoked)));
    }

    #[test]
    fn the_number_of_replicas_is_bounded() {
        let mut events = PendingEvents::default();
        let mut count =
            |id: u64, at, now| events.count_replicas(Some((id.to_be_bytes(), Timestamp(at))), Timestamp(now));
        assert_eq!([count(1, 50, 60), count(2, 60, 60), count(1, 40, 60)], [2, 3, 3]);
        assert_eq!(count(2, 15_055, 15_055), 2, "the other one has stopped");
        assert_eq!((0..5000).map(|id| count(id, 15_055, 15_055)).max(), Some(MAX_REPLICAS));
        assert_eq!(count(1, 40_000, 40_000), 2, "known ones are still updated");
    }
}
