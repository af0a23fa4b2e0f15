//! What replicas tell each other: revocations, changes of tokens, wrong credentials.

use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::rand;
use redis::cmd;
use tracing::warn;

use crate::store::redis::connection::RedisConnection;
use crate::store::redis::tokens::millis;
use crate::store::redis::{RedisSession, StoreCommandResult};
use crate::store::revocation::{Revocation, Revocations};
use crate::store::{CredentialFailure, Timestamp, TokenId};

/// Entries of a stream: their ids, and names and values of their fields.
pub type StreamEntries = Vec<(String, Vec<Vec<u8>>)>;

/// A revocation is kept at least so long, whatever `tokens.ttl` is here: another replica may let tokens live longer.
const MIN_RETENTION: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// Failures older than that have run out of every bucket.
const FAILURE_RETENTION: Duration = Duration::from_secs(60);

/// More failures are not told at once; who makes so many is known by then.
const MAX_PENDING_FAILURES: usize = 10_000;

/// Something that all replicas must know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreEvent {
    /// Tokens that ended; when, if not when the notice was written.
    Revoked(Revocation, Option<Timestamp>),
    /// A token that is another one in the store by now.
    Changed(TokenId),
}

impl StoreEvent {
    fn encode(&self) -> Vec<u8> {
        match self {
            StoreEvent::Revoked(what, at) => {
                [b"r", &at.unwrap_or_default().0.to_be_bytes()[..], &what.encode()].concat()
            }
            StoreEvent::Changed(id) => [b"c", &id.bytes()[..]].concat(),
        }
    }

    fn decode(bytes: &[u8]) -> Option<StoreEvent> {
        match bytes.split_first()? {
            (b'r', rest) => {
                let (at, what) = rest.split_first_chunk()?;
                let at = Some(Timestamp(u64::from_be_bytes(*at))).filter(|at| at.0 > 0);
                Revocation::decode(what).map(|what| StoreEvent::Revoked(what, at))
            }
            (b'c', rest) => rest.try_into().ok().map(TokenId::from_bytes).map(StoreEvent::Changed),
            _ => None,
        }
    }
}

/// How far this replica has read, and what it has yet to tell and to do.
#[derive(Default)]
pub struct EventLog {
    /// Of the last notice that was read; empty before the first one.
    last_event_id: String,
    /// Of the last failures that were read.
    last_failure_id: String,
    /// What the log holds, since it was last begun to be read.
    in_log: Revocations,
    /// Revocations whose tokens may still be in memory.
    unapplied: Vec<(Revocation, Timestamp)>,
    /// Whether there are revocations of this replica's that are not in the log.
    has_unpublished: bool,
    pending_failures: Vec<CredentialFailure>,
    /// What tells this replica's failures from others'; made when it is first needed.
    replica_id: Option<[u8; 8]>,
}

impl EventLog {
    /// So many entries are asked for at once.
    pub const PAGE: usize = 1000;

    /// Has the log read from its beginning: after a failover it may be another one, with ids that were passed already.
    pub fn rewind(&mut self) {
        self.last_event_id.clear();
        self.in_log = Revocations::default();
    }

    /// From where on notices and failures are new.
    pub fn positions(&self, now: Timestamp) -> (String, String) {
        let after = |id: &String| format!("({id}");
        let notices = if self.last_event_id.is_empty() { "-".to_owned() } else { after(&self.last_event_id) };
        let recently = || now.0.saturating_sub(millis(FAILURE_RETENTION)).to_string();
        (notices, if self.last_failure_id.is_empty() { recently() } else { after(&self.last_failure_id) })
    }

    /// A wrong credential that others are to be told of.
    pub fn add_failure(&mut self, failure: CredentialFailure) {
        if self.pending_failures.len() < MAX_PENDING_FAILURES {
            self.pending_failures.push(failure);
        }
    }

    /// Whether there is something that the log does not know yet.
    pub fn has_unpublished(&self) -> bool {
        self.has_unpublished
    }

    fn replica_id(&mut self) -> [u8; 8] {
        *self.replica_id.get_or_insert_with(|| {
            let mut name = [0; 8];
            rand::fill(&mut name).expect("the system's random source works");
            name
        })
    }
}

impl RedisSession {
    /// Ends tokens, here and everywhere.
    pub(super) async fn revoke(&self, what: Revocation) -> StoreCommandResult<()> {
        let published = self.publish(&StoreEvent::Revoked(what.clone(), None)).await;
        let at = *published.as_ref().unwrap_or(&self.context.store_clock.now());
        self.add_revocation(what, at);
        self.remove_revoked().await;
        if published.is_err() {
            self.event_log.borrow_mut().has_unpublished = true;
        }
        published.map(drop)
    }

    /// Writes a notice; when it was written, by the server's clock.
    pub(super) async fn publish(&self, notice: &StoreEvent) -> StoreCommandResult<Timestamp> {
        let key = self.redis_key("notices", "");
        let sealed = self.context.keys.seal(0, key.as_bytes(), &notice.encode());
        let oldest = self.context.store_clock.now().0.saturating_sub(millis(self.ttl().max(MIN_RETENTION)));
        let id: String = self.query(cmd("XADD").arg((&key, "MINID", "~", oldest, "*", "d", sealed))).await?;
        Ok(entry_time(&id))
    }

    /// Takes new notices to heart.
    pub(super) async fn apply_events(&self, entries: StreamEntries) {
        let key = self.redis_key("notices", "");
        for (id, fields) in entries {
            let at = entry_time(&id);
            self.event_log.borrow_mut().last_event_id = id;
            let opened = fields.get(1).and_then(|sealed| self.context.keys.open(key.as_bytes(), sealed));
            match opened.and_then(|(_, text)| StoreEvent::decode(&text)) {
                Some(StoreEvent::Revoked(what, when)) => {
                    let at = when.unwrap_or(at);
                    self.event_log.borrow_mut().in_log.add(&what, at);
                    self.add_revocation(what, at);
                }
                Some(StoreEvent::Changed(id)) => self.context.memory.remove(&id),
                None => warn!(
                    "a notice in the token store cannot be opened: do all replicas have the same salts and version?"
                ),
            }
        }
        self.remove_revoked().await;
        self.revocations
            .borrow_mut()
            .remove_outdated(self.context.store_clock.now(), self.ttl().max(MIN_RETENTION));
    }

    /// SECURITY: known first, so that no token comes into memory any more that the search below has missed.
    fn add_revocation(&self, what: Revocation, at: Timestamp) {
        if self.revocations.borrow_mut().add(&what, at) {
            self.event_log.borrow_mut().unapplied.push((what, at));
        }
    }

    /// Searches the memory for what was revoked, beside this thread's other work. What was not finished is done next time.
    async fn remove_revoked(&self) {
        let unheeded = self.event_log.borrow().unapplied.clone();
        if unheeded.is_empty() {
            return;
        }
        let done = unheeded.clone();
        if !self.context.memory.is_empty() {
            let memory = Arc::clone(&self.context.memory);
            let search = move || {
                memory.remove_if(|id, record| {
                    unheeded.iter().any(|(what, at)| record.minted <= *at && what.covers(id, &record.user))
                })
            };
            if tokio::task::spawn_blocking(search).await.is_err() {
                return;
            }
        }
        // Others may have searched for some of them meanwhile.
        self.event_log.borrow_mut().unapplied.retain(|one| !done.contains(one));
    }

    /// Writes revocations that this replica knows of and the log does not: a failover may have lost them.
    pub(super) async fn repair_log(&self, connection: &mut RedisConnection) -> StoreCommandResult<()> {
        let lost: Vec<_> = {
            let (notices, known) = (self.event_log.borrow(), self.revocations.borrow());
            known.iter().filter(|(what, at)| notices.in_log.time_of(what) < *at).collect()
        };
        let key = self.redis_key("notices", "");
        for (what, at) in lost {
            let notice = StoreEvent::Revoked(what, Some(at)).encode();
            let sealed = self.context.keys.seal(0, key.as_bytes(), &notice);
            let _: String = cmd("XADD").arg((&key, "*", "d", sealed)).query_async(connection).await?;
        }
        self.event_log.borrow_mut().has_unpublished = false;
        Ok(())
    }

    /// Tells others of the failures since the last time.
    pub(super) async fn publish_failures(&self, connection: &mut RedisConnection) -> StoreCommandResult<()> {
        let (failures, replica) = {
            let mut notices = self.event_log.borrow_mut();
            (std::mem::take(&mut notices.pending_failures), notices.replica_id())
        };
        if failures.is_empty() {
            return Ok(());
        }
        let key = self.redis_key("failures", "");
        let mut text = replica.to_vec();
        for failure in failures {
            text.push(failure.kind);
            text.extend(failure.bucket.to_be_bytes());
        }
        let sealed = self.context.keys.seal(0, key.as_bytes(), &text);
        let oldest = self.context.store_clock.now().0.saturating_sub(millis(FAILURE_RETENTION));
        let _: String =
            cmd("XADD").arg((&key, "MINID", "~", oldest, "*", "d", sealed)).query_async(connection).await?;
        Ok(())
    }

    /// Counts the failures that others have told of.
    pub(super) fn apply_failures(&self, entries: StreamEntries) {
        let key = self.redis_key("failures", "");
        let own = self.event_log.borrow_mut().replica_id();
        for (id, fields) in entries {
            self.event_log.borrow_mut().last_failure_id = id;
            let opened = fields.get(1).and_then(|sealed| self.context.keys.open(key.as_bytes(), sealed));
            let Some((_, text)) = opened else { continue };
            let Some((replica, failures)) = text.split_first_chunk::<8>() else { continue };
            if *replica == own {
                continue;
            }
            for failure in failures.chunks_exact(9) {
                let bucket = u64::from_be_bytes(failure[1..].try_into().expect("eight bytes"));
                (self.on_failure)(CredentialFailure { kind: failure[0], bucket });
            }
        }
    }
}

/// The time in an entry's id.
fn entry_time(id: &str) -> Timestamp {
    Timestamp(id.split('-').next().and_then(|millis| millis.parse().ok()).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let id = TokenId::from_token(b"x");
        for notice in [
            StoreEvent::Revoked(Revocation::All, None),
            StoreEvent::Revoked(Revocation::Token(id.fingerprint()), Some(Timestamp(7))),
            StoreEvent::Changed(id),
        ] {
            assert_eq!(StoreEvent::decode(&notice.encode()), Some(notice));
        }
        for wrong in [&b""[..], b"r", b"r12345678", b"c123", b"x"] {
            assert_eq!(StoreEvent::decode(wrong), None);
        }
        assert_eq!(entry_time("1700000000123-4"), Timestamp(1_700_000_000_123));
    }

    #[test]
    fn reading_begins_at_the_beginning_and_goes_on_where_it_was() {
        let mut notices = EventLog::default();
        assert_eq!(notices.positions(Timestamp(100_000)), ("-".into(), "40000".into()));
        notices.last_event_id = "5-0".into();
        notices.last_failure_id = "6-1".into();
        assert_eq!(notices.positions(Timestamp(100_000)), ("(5-0".into(), "(6-1".into()));
        notices.rewind();
        assert_eq!(notices.positions(Timestamp(100_000)), ("-".into(), "(6-1".into()));
    }
}
