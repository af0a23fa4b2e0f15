//! Sorted sets in Redis that hold sealed events by the time of the server that received them. Scripts read that clock, so
//! that a reader and a writer cannot disagree on it. This module does not know what events contain.

use std::collections::HashSet;
use std::time::Duration;

use redis::{Cmd, Value};
use zeroize::Zeroizing;

use crate::base::clock::millis;
use crate::store::Timestamp;
use crate::store::keys::{KeyNumber, PRIMARY_KEY};
use crate::store::redis::connection::RedisConnection;
use crate::store::redis::{RedisSession, StoreError, StoreResult, parse, redis_command};

/// Appends `ARGV[1]`, for at least `ARGV[2]` milliseconds.
pub(super) const WRITE: &str = "local t = redis.call('TIME')
redis.call('ZADD', KEYS[1], t[1] * 1000 + math.floor(t[2] / 1000), ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 1";

/// Returns the time of the server, and a page of `ARGV[5]` events from `ARGV[4]` on that were written since `ARGV[1]`
/// minus `ARGV[3]`. If the clock of the server has been set back, all of the last `ARGV[2]` milliseconds. Removes older
/// ones, and those that seem to be from the next day.
pub(super) const READ: &str = "local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local oldest = now - ARGV[2]
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', oldest)
redis.call('ZREMRANGEBYSCORE', KEYS[1], now + 86400000, '+inf')
local from = tonumber(ARGV[1])
if from > now then from = oldest else from = math.max(oldest, from - ARGV[3]) end
local found = redis.call('ZRANGE', KEYS[1], from, '+inf', 'BYSCORE', 'LIMIT', ARGV[4], ARGV[5])
table.insert(found, 1, now)
return found";

/// Replicas that were disconnected for longer read the marks again.
pub const CHANGE_RETENTION: Duration = Duration::from_secs(3600);

/// A replica that starts does not count older failures: a limit is per minute.
pub const FAILURE_RETENTION: Duration = Duration::from_secs(60);

/// A clock of a server that is set back by less than this hides no change.
const CHANGE_OVERLAP: Duration = Duration::from_secs(60);

const FAILURE_OVERLAP: Duration = Duration::from_secs(2);

/// The maximum number of events in one read.
const PAGE: usize = 1000;

/// The length of the nonce with which a sealed value begins.
const NONCE_LENGTH: usize = 12;

/// A sorted set of events, and how far this replica has read it.
pub struct EventFeed {
    name: &'static str,
    retention: Duration,
    overlap: Duration,
    /// The time of the server at the last complete read, in milliseconds.
    read_until: u64,
    /// The nonces of the events in the last complete read.
    seen: HashSet<[u8; NONCE_LENGTH]>,
}

impl EventFeed {
    pub fn changes() -> EventFeed {
        EventFeed::new("events", CHANGE_RETENTION, CHANGE_OVERLAP)
    }

    pub fn failures() -> EventFeed {
        EventFeed::new("attempts", FAILURE_RETENTION, FAILURE_OVERLAP)
    }

    fn new(name: &'static str, retention: Duration, overlap: Duration) -> EventFeed {
        EventFeed { name, retention, overlap, read_until: 0, seen: HashSet::new() }
    }

    /// Takes the new ones of the events that were read, and remembers all.
    fn take_new(&mut self, page: EventPage) -> Vec<Vec<u8>> {
        let nonce = |event: &Vec<u8>| event.first_chunk::<NONCE_LENGTH>().copied().unwrap_or_default();
        let all: HashSet<_> = page.events.iter().map(nonce).collect();
        let new = page.events.into_iter().filter(|event| !self.seen.contains(&nonce(event))).collect();
        self.seen = all;
        self.read_until = page.now;
        new
    }

    fn read_command(&self, script_hash: &str, key: &str, offset: usize) -> Cmd {
        let (retention, overlap) = (millis(self.retention), millis(self.overlap));
        redis_command("EVALSHA", (script_hash, 1, key, self.read_until, retention, overlap, offset, PAGE))
    }
}

/// A response of the script [`READ`].
pub struct EventPage {
    now: u64,
    events: Vec<Vec<u8>>,
}

impl EventPage {
    fn parse(value: Value) -> StoreResult<EventPage> {
        let Value::Array(values) = value else { return Err(StoreError::Unreadable) };
        let mut values = values.into_iter();
        let now = values.next().map(parse).transpose()?.ok_or(StoreError::Unreadable)?;
        Ok(EventPage { now, events: values.map(parse).collect::<StoreResult<_>>()? })
    }
}

/// What one poll has read, with events that an earlier poll has applied.
pub struct ReadEvents {
    pub changes: EventPage,
    pub failures: EventPage,
    /// True if some changes may have been removed since the last poll.
    pub has_gap: bool,
}

impl ReadEvents {
    /// The time of the server.
    pub fn now(&self) -> Timestamp {
        Timestamp(self.changes.now)
    }
}

impl RedisSession {
    /// The commands that read the first page of each feed, for one round trip.
    pub(super) fn read_commands(&self) -> [Cmd; 2] {
        let feeds = self.feeds.borrow();
        feeds.each_ref().map(|feed| feed.read_command(self.read_events.get_hash(), &self.redis_key(feed.name, ""), 0))
    }

    /// Completes the read with further pages.
    pub(super) async fn finish_read(
        &self,
        connection: &mut RedisConnection,
        first_pages: [Value; 2],
    ) -> StoreResult<ReadEvents> {
        let [changes, failures] = first_pages;
        let changes = self.finish_feed(connection, 0, changes).await?;
        let failures = self.finish_feed(connection, 1, failures).await?;
        let feed = &self.feeds.borrow()[0];
        let has_gap = changes.now.saturating_sub(feed.read_until) >= millis(feed.retention);
        Ok(ReadEvents { changes, failures, has_gap })
    }

    async fn finish_feed(
        &self,
        connection: &mut RedisConnection,
        index: usize,
        first_page: Value,
    ) -> StoreResult<EventPage> {
        let mut page = EventPage::parse(first_page)?;
        while page.events.len() >= PAGE && page.events.len().is_multiple_of(PAGE) {
            let command = {
                let feed = &self.feeds.borrow()[index];
                feed.read_command(self.read_events.get_hash(), &self.redis_key(feed.name, ""), page.events.len())
            };
            let more = EventPage::parse(command.query_async(connection).await?)?;
            if more.events.is_empty() {
                break;
            }
            page.events.extend(more.events);
        }
        Ok(page)
    }

    pub(super) fn take_new(&self, index: usize, page: EventPage) -> Vec<Vec<u8>> {
        self.feeds.borrow_mut()[index].take_new(page)
    }

    pub(super) fn open_event(&self, feed: usize, sealed: &[u8]) -> Option<(KeyNumber, Zeroizing<Vec<u8>>)> {
        let key = self.redis_key(self.feeds.borrow()[feed].name, "");
        self.context.keys.open(key.as_bytes(), sealed)
    }

    pub(super) fn write_command(&self, feed: usize, plaintext: &[u8]) -> Cmd {
        let feed = &self.feeds.borrow()[feed];
        let key = self.redis_key(feed.name, "");
        let sealed = self.context.keys.seal(PRIMARY_KEY, key.as_bytes(), plaintext);
        redis_command("EVALSHA", (self.write_event.get_hash(), 1, key, sealed, millis(feed.retention)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_taken_once_while_reads_overlap() {
        let event = |n: u8| vec![n; 20];
        let mut feed = EventFeed::changes();
        let mut read =
            |now, events: &[u8]| feed.take_new(EventPage { now, events: events.iter().copied().map(event).collect() });
        assert_eq!(read(10, &[1, 2]), [event(1), event(2)]);
        assert_eq!(read(20, &[1, 2, 3]), [event(3)]);
        assert_eq!(read(5, &[3, 4]), [event(4)], "the server's clock was set back");
        assert_eq!(feed.read_until, 5);
    }
}
