//! Exchanges events between replicas: revocations and changed tokens in one stream, credential failures in a second
//! one.
//!
//! It knows how entries are encoded and how far this replica has read, but not when to read: see `heartbeat`.

use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::rand;
use redis::{Cmd, cmd};
use tracing::warn;
use zeroize::Zeroizing;

use crate::store::keys::PRIMARY_KEY;
use crate::store::redis::connection::RedisConnection;
use crate::store::redis::{RedisSession, StoreResult};
use crate::store::revocation::{Revocation, Revocations};
use crate::store::{CredentialFailure, Timestamp, TokenId};

/// Entries of a stream: their ids, and the names and values of their fields.
pub type StreamEntries = Vec<(String, Vec<Vec<u8>>)>;

/// The minimum time that revocations stay in the log, as `tokens.ttl` may be longer at a different replica.
const MIN_RETENTION: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// Older failures no longer count toward any limit.
const FAILURE_RETENTION: Duration = Duration::from_secs(60);

/// Further failures are not published: a client that causes this number has reached its limits by then.
const MAX_PENDING_FAILURES: usize = 10_000;

/// An entry of the event log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreEvent {
    /// Tokens were revoked, at this time; `None`: when the entry was written.
    Revoked(Revocation, Option<Timestamp>),
    /// A token in the store was changed, so that its copies in memory are out of date.
    Changed(TokenId),
}

impl StoreEvent {
    fn encode(&self) -> Vec<u8> {
        match self {
            StoreEvent::Revoked(revocation, at) => {
                [b"r", &at.unwrap_or_default().0.to_be_bytes()[..], &revocation.encode()].concat()
            }
            StoreEvent::Changed(id) => [b"c", &id.bytes()[..]].concat(),
        }
    }

    fn decode(bytes: &[u8]) -> Option<StoreEvent> {
        match bytes.split_first()? {
            (b'r', rest) => {
                let (at, revocation) = rest.split_first_chunk()?;
                let at = Some(Timestamp(u64::from_be_bytes(*at))).filter(|at| at.0 > 0);
                Revocation::decode(revocation).map(|revocation| StoreEvent::Revoked(revocation, at))
            }
            (b'c', rest) => rest.try_into().ok().map(TokenId::from_bytes).map(StoreEvent::Changed),
            _ => None,
        }
    }
}

/// The read position of this replica, and the events that it has yet to publish and to apply.
#[derive(Default)]
pub struct EventLog {
    /// The id of the last event that was read; empty: none since the last rewind.
    last_event_id: String,
    /// The id of the last entry of failures that was read; empty: none.
    last_failure_id: String,
    /// The revocations in the log, as far as it has been read since the last rewind.
    in_log: Revocations,
    /// Revocations whose tokens may still be in memory.
    unapplied: Vec<(Revocation, Timestamp)>,
    /// True if a revocation of this replica could not be written to the log.
    has_unpublished: bool,
    pending_failures: Vec<CredentialFailure>,
    /// Distinguishes this replica's failures from others'; created when it is first needed.
    replica_id: Option<[u8; 8]>,
}

impl EventLog {
    /// Maximum number of entries in one read.
    pub const PAGE: usize = 1000;

    /// Starts to read the log from its beginning. After a failover, the new server may have entries with ids lower
    /// than those read from the old one.
    pub fn rewind(&mut self) {
        self.last_event_id.clear();
        self.in_log = Revocations::default();
    }

    /// The start of the range of new events, and of new failures, as XRANGE takes it.
    pub fn positions(&self, now: Timestamp) -> (String, String) {
        let after = |id: &String| format!("({id}");
        let events = if self.last_event_id.is_empty() { "-".to_owned() } else { after(&self.last_event_id) };
        let failures = if self.last_failure_id.is_empty() {
            now.before(FAILURE_RETENTION).0.to_string()
        } else {
            after(&self.last_failure_id)
        };
        (events, failures)
    }

    /// Queues a failure for the other replicas.
    pub fn add_failure(&mut self, failure: CredentialFailure) {
        if self.pending_failures.len() < MAX_PENDING_FAILURES {
            self.pending_failures.push(failure);
        }
    }

    /// True if the log lacks a revocation of this replica.
    pub fn has_unpublished(&self) -> bool {
        self.has_unpublished
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
    /// Revokes tokens, here and at the other replicas. Returns the number of live tokens that this ended.
    pub(super) async fn revoke(&self, revocation: Revocation) -> StoreResult<u64> {
        let count = self.count(&revocation).await;
        let published = self.publish(&StoreEvent::Revoked(revocation.clone(), None)).await;
        let at = *published.as_ref().unwrap_or(&self.context.store_clock.now());
        self.add_revocation(revocation, at);
        self.remove_revoked().await;
        if published.is_err() {
            self.event_log.borrow_mut().has_unpublished = true;
        }
        published.and(count)
    }

    /// Writes an event, and returns the time of its entry by the server's clock.
    pub(super) async fn publish(&self, event: &StoreEvent) -> StoreResult<Timestamp> {
        let retention = self.ttl().max(MIN_RETENTION);
        let id: String = self.query(&self.append("notices", Some(retention), &event.encode())).await?;
        Ok(entry_time(&id))
    }

    /// The command that seals an entry and appends it to a stream. It also removes entries older than the retention.
    fn append(&self, stream: &str, retention: Option<Duration>, plaintext: &[u8]) -> Cmd {
        let key = self.redis_key(stream, "");
        let sealed = self.context.keys.seal(PRIMARY_KEY, key.as_bytes(), plaintext);
        let mut command = cmd("XADD");
        command.arg(key);
        if let Some(retention) = retention {
            command.arg(("MINID", "~", self.context.store_clock.now().before(retention).0));
        }
        command.arg(("*", "d", sealed));
        command
    }

    /// The plaintext of an entry; `None` if no key opens it.
    fn open_entry(&self, stream: &str, fields: &[Vec<u8>]) -> Option<Zeroizing<Vec<u8>>> {
        let key = self.redis_key(stream, "");
        let (_, plaintext) = self.context.keys.open(key.as_bytes(), fields.get(1)?)?;
        Some(plaintext)
    }

    pub(super) async fn apply_events(&self, entries: StreamEntries) {
        for (id, fields) in entries {
            let written_at = entry_time(&id);
            self.event_log.borrow_mut().last_event_id = id;
            let event = self.open_entry("notices", &fields).and_then(|text| StoreEvent::decode(&text));
            match event {
                Some(StoreEvent::Revoked(revocation, at)) => {
                    let at = at.unwrap_or(written_at);
                    self.event_log.borrow_mut().in_log.add(&revocation, at);
                    self.add_revocation(revocation, at);
                }
                Some(StoreEvent::Changed(id)) => drop(self.context.memory.remove(&id)),
                None => warn!(
                    "cannot read an event in the token store: check that all replicas have the same store.key and version"
                ),
            }
        }
        self.remove_revoked().await;
        let retention = self.ttl().max(MIN_RETENTION);
        self.revocations.borrow_mut().remove_outdated(self.context.store_clock.now(), retention);
    }

    /// SECURITY: comes before [`RedisSession::remove_revoked`]. From here on, no covered token is added to the
    /// memory, so that the search cannot miss one.
    fn add_revocation(&self, revocation: Revocation, at: Timestamp) {
        if self.revocations.borrow_mut().add(&revocation, at) {
            self.event_log.borrow_mut().unapplied.push((revocation, at));
        }
    }

    /// Removes revoked tokens from memory, on a separate thread. If that fails, the next call does it.
    async fn remove_revoked(&self) {
        let unapplied = self.event_log.borrow().unapplied.clone();
        if unapplied.is_empty() {
            return;
        }
        let applied = unapplied.clone();
        if !self.context.memory.is_empty() {
            let memory = Arc::clone(&self.context.memory);
            let search = move || {
                memory.revoke_if(
                    |id, record| {
                        let is_covered = |(revocation, at): &(Revocation, Timestamp)| {
                            record.minted <= *at && revocation.covers(id, &record.user)
                        };
                        unapplied.iter().any(is_covered)
                    },
                    |_, _| {},
                );
            };
            if tokio::task::spawn_blocking(search).await.is_err() {
                return;
            }
        }
        // Concurrent calls may have applied and removed some of them.
        self.event_log.borrow_mut().unapplied.retain(|revocation| !applied.contains(revocation));
    }

    /// Writes the revocations that this replica knows and the log lacks: a failover may have lost them.
    pub(super) async fn repair_log(&self, connection: &mut RedisConnection) -> StoreResult<()> {
        let missing: Vec<_> = {
            let (event_log, known) = (self.event_log.borrow(), self.revocations.borrow());
            known.iter().filter(|(revocation, at)| event_log.in_log.time_of(revocation) < *at).collect()
        };
        for (revocation, at) in missing {
            let event = StoreEvent::Revoked(revocation, Some(at));
            let _: String = self.append("notices", None, &event.encode()).query_async(connection).await?;
        }
        self.event_log.borrow_mut().has_unpublished = false;
        Ok(())
    }

    /// Publishes the failures since the last call, as one entry: the replica's id, then 9 bytes for each failure.
    pub(super) async fn publish_failures(&self, connection: &mut RedisConnection) -> StoreResult<()> {
        let (failures, replica_id) = {
            let mut event_log = self.event_log.borrow_mut();
            (std::mem::take(&mut event_log.pending_failures), event_log.replica_id())
        };
        if failures.is_empty() {
            return Ok(());
        }
        let mut plaintext = replica_id.to_vec();
        for failure in failures {
            plaintext.push(failure.kind);
            plaintext.extend(failure.bucket.to_be_bytes());
        }
        let command = self.append("failures", Some(FAILURE_RETENTION), &plaintext);
        let _: String = command.query_async(connection).await?;
        Ok(())
    }

    /// Counts the failures that other replicas have published.
    pub(super) fn apply_failures(&self, entries: StreamEntries) {
        let own_id = self.event_log.borrow_mut().replica_id();
        for (id, fields) in entries {
            self.event_log.borrow_mut().last_failure_id = id;
            let Some(plaintext) = self.open_entry("failures", &fields) else { continue };
            let Some((replica_id, failures)) = plaintext.split_first_chunk::<8>() else { continue };
            if *replica_id == own_id {
                continue;
            }
            for failure in failures.chunks_exact(9) {
                let bucket = u64::from_be_bytes(failure[1..].try_into().expect("eight bytes"));
                (self.on_failure)(CredentialFailure { kind: failure[0], bucket });
            }
        }
    }
}

/// The time in the id of an entry.
fn entry_time(id: &str) -> Timestamp {
    Timestamp(id.split('-').next().and_then(|millis| millis.parse().ok()).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_survive_encoding() {
        let id = TokenId::from_token(b"x");
        for event in [
            StoreEvent::Revoked(Revocation::All, None),
            StoreEvent::Revoked(Revocation::Token(id.fingerprint()), Some(Timestamp(7))),
            StoreEvent::Changed(id),
        ] {
            assert_eq!(StoreEvent::decode(&event.encode()), Some(event));
        }
        for invalid in [&b""[..], b"r", b"r12345678", b"c123", b"x"] {
            assert_eq!(StoreEvent::decode(invalid), None);
        }
        assert_eq!(entry_time("1700000000123-4"), Timestamp(1_700_000_000_123));
    }

    #[test]
    fn reading_continues_after_the_last_entry_until_a_rewind() {
        let mut event_log = EventLog::default();
        assert_eq!(event_log.positions(Timestamp(100_000)), ("-".into(), "40000".into()));
        event_log.last_event_id = "5-0".into();
        event_log.last_failure_id = "6-1".into();
        assert_eq!(event_log.positions(Timestamp(100_000)), ("(5-0".into(), "(6-1".into()));
        event_log.rewind();
        assert_eq!(event_log.positions(Timestamp(100_000)), ("-".into(), "(6-1".into()));
    }
}
