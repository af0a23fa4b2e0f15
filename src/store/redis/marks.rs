//! Revocations in the store: for each user, for each revoked token and for all, since when tokens are valid ("not
//! before"). One hash holds these marks, sealed. Every replica has them in memory, so a lookup needs no further request.
//!
//! SECURITY: the times are sealed. Replicas keep the latest that they know and write it back, so an older value that
//! replaces it has no effect while one of them runs.

use std::time::Duration;

use redis::Cmd;

use crate::base::clock::millis;
use crate::store::Timestamp;
use crate::store::keys::PRIMARY_KEY;
use crate::store::redis::connection::RedisConnection;
use crate::store::redis::{RedisSession, StoreResult, redis_command};
use crate::store::revocation::{Revocation, Revocations};

/// The minimum time that marks are kept, as `tokens.ttl` may be longer at a different replica.
const MIN_RETENTION: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// The number of marks in one round trip.
const PAGE: usize = 1000;

/// A field of the hash.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Mark {
    revocation: Revocation,
    /// Tokens minted at this time or earlier are revoked.
    at: Timestamp,
    /// Every covered token has expired by then.
    until: Timestamp,
}

impl Mark {
    fn encode(&self) -> Vec<u8> {
        [&self.at.0.to_be_bytes()[..], &self.until.0.to_be_bytes(), &self.revocation.encode()].concat()
    }

    fn decode(bytes: &[u8]) -> Option<Mark> {
        let (at, rest) = bytes.split_first_chunk()?;
        let (until, revocation) = rest.split_first_chunk()?;
        let time = |bytes: &[u8; 8]| Timestamp(u64::from_be_bytes(*bytes));
        Some(Mark { revocation: Revocation::decode(revocation)?, at: time(at), until: time(until) })
    }
}

impl RedisSession {
    /// The time for which marks are kept.
    pub(super) fn mark_retention(&self) -> Duration {
        self.ttl().max(MIN_RETENTION)
    }

    /// Writes a mark to the store. If that fails, it is written with the next poll that succeeds.
    pub(super) async fn write_mark(&self, revocation: &Revocation, at: Timestamp) -> StoreResult<()> {
        self.has_unwritten_marks.set(true);
        let [set, expire] = self.mark_commands(revocation, at);
        let _: u64 = self.query(&set).await?;
        let _: u64 = self.query(&expire).await?;
        self.marks_in_store.borrow_mut().add(revocation, at);
        Ok(())
    }

    fn mark_commands(&self, revocation: &Revocation, at: Timestamp) -> [Cmd; 2] {
        let key = self.redis_key("marks", "");
        let field = self.context.keys.mark_name(&revocation.mark_id()).to_string();
        let until = at.after(self.mark_retention());
        let mark = Mark { revocation: revocation.clone(), at, until };
        let sealed = self.context.keys.seal(PRIMARY_KEY, &mark_context(&key, &field), &mark.encode());
        let expire = redis_command("PEXPIRE", (&key, millis(self.mark_retention())));
        [redis_command("HSET", (key, field, sealed)), expire]
    }

    /// Reads and applies all marks. Those that the store lacks are written with the next write: a failover may have lost
    /// them.
    pub(super) async fn read_marks(&self, connection: &mut RedisConnection) -> StoreResult<()> {
        let key = self.redis_key("marks", "");
        let (mut in_store, mut outdated) = (Revocations::default(), Vec::new());
        let mut cursor = "0".to_owned();
        loop {
            let scan = redis_command("HSCAN", (&key, &cursor, "COUNT", PAGE));
            let (next, fields): (String, Vec<(String, Vec<u8>)>) =
                self.with_timeout(scan.query_async(connection)).await?;
            for (field, sealed) in fields {
                let opened = self.context.keys.open(&mark_context(&key, &field), &sealed);
                let mark = opened.and_then(|(number, plaintext)| Some((number, Mark::decode(&plaintext)?)));
                // One that cannot be read may belong to a replica with a newer key.
                let Some((number, Mark { revocation, at, until })) = mark else { continue };
                if until < self.context.store_clock.now() {
                    outdated.push(field);
                    continue;
                }
                self.context.store_clock.advance_to(at);
                // The others are written again: their key may be removed from the configuration.
                if number == PRIMARY_KEY {
                    in_store.add(&revocation, at);
                }
                self.add_revocation(revocation, at);
            }
            if next == "0" {
                break;
            }
            cursor = next;
        }
        for fields in outdated.chunks(PAGE) {
            let remove = redis_command("HDEL", (&key, fields));
            let _: u64 = self.with_timeout(remove.query_async(connection)).await?;
        }
        *self.marks_in_store.borrow_mut() = in_store;
        self.has_unwritten_marks.set(true);
        self.lacks_marks.update(|lacks| lacks || !self.missing_marks().is_empty());
        self.remove_revoked().await;
        Ok(())
    }

    /// The marks that this replica knows and the store lacks, without those that are not kept any more.
    fn missing_marks(&self) -> Vec<(Revocation, Timestamp)> {
        let (in_store, known) = (self.marks_in_store.borrow(), self.revocations.borrow());
        let oldest = self.context.store_clock.now().before(self.mark_retention());
        known.iter().filter(|(revocation, at)| in_store.time_of(revocation) < *at && *at > oldest).collect()
    }

    /// Writes the marks that this replica knows and the store lacks.
    pub(super) async fn write_missing_marks(&self, connection: &mut RedisConnection) -> StoreResult<()> {
        if !self.has_unwritten_marks.get() {
            return Ok(());
        }
        let missing = self.missing_marks();
        for page in missing.chunks(PAGE) {
            let commands = page.iter().flat_map(|(revocation, at)| self.mark_commands(revocation, *at));
            let _: Vec<u64> = self.with_timeout(connection.query_all(commands)).await?;
            let mut in_store = self.marks_in_store.borrow_mut();
            for (revocation, at) in page {
                in_store.add(revocation, *at);
            }
        }
        if self.lacks_marks.get() {
            // SECURITY: a replica may have read the marks before, and no event has these. All read them again.
            self.renew_epoch(connection).await?;
            self.lacks_marks.set(false);
        }
        // Meanwhile, a further revocation may have failed to write its own.
        self.has_unwritten_marks.set(!missing.is_empty());
        self.revocations.borrow_mut().remove_outdated(self.context.store_clock.now(), self.mark_retention());
        Ok(())
    }
}

/// A mark cannot be moved to a different field.
fn mark_context(key: &str, field: &str) -> Vec<u8> {
    [key.as_bytes(), b"\0", field.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_survives_encoding() {
        let mark = Mark { revocation: Revocation::All, at: Timestamp(7), until: Timestamp(9) };
        assert_eq!(Mark::decode(&mark.encode()), Some(mark.clone()));
        assert_eq!(Mark::decode(&mark.encode()[..16]), None);
    }
}
