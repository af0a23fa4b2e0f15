//! What replicas tell each other: revocations, changes of tokens, wrong credentials.

use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::rand;
use redis::cmd;
use tracing::warn;

use crate::store::redis::connection::Connection;
use crate::store::redis::tokens::millis;
use crate::store::redis::{Outcome, Session};
use crate::store::revocation::{Revocation, Revocations};
use crate::store::{Failure, Stamp, TokenId};

/// Entries of a stream: their ids, and names and values of their fields.
pub type Entries = Vec<(String, Vec<Vec<u8>>)>;

/// A revocation is kept at least so long, whatever `tokens.ttl` is here: another replica may let tokens live longer.
const LEAST_KEPT: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// Failures older than that have run out of every bucket.
const FAILURES_KEPT: Duration = Duration::from_secs(60);

/// More failures are not told at once; who makes so many is known by then.
const MOST_FAILURES: usize = 10_000;

/// Something that all replicas must know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// Tokens that ended; when, if not when the notice was written.
    Revoked(Revocation, Option<Stamp>),
    /// A token that is another one in the store by now.
    Changed(TokenId),
}

impl Notice {
    fn write(&self) -> Vec<u8> {
        match self {
            Notice::Revoked(what, at) => {
                [b"r", &at.unwrap_or_default().0.to_be_bytes()[..], &what.write()].concat()
            }
            Notice::Changed(id) => [b"c", &id.bytes()[..]].concat(),
        }
    }

    fn read(bytes: &[u8]) -> Option<Notice> {
        match bytes.split_first()? {
            (b'r', rest) => {
                let (at, what) = rest.split_first_chunk()?;
                let at = Some(Stamp(u64::from_be_bytes(*at))).filter(|at| at.0 > 0);
                Revocation::read(what).map(|what| Notice::Revoked(what, at))
            }
            (b'c', rest) => rest.try_into().ok().map(TokenId::from_bytes).map(Notice::Changed),
            _ => None,
        }
    }
}

/// How far this replica has read, and what it has yet to tell and to do.
#[derive(Default)]
pub struct Notices {
    /// Of the last notice that was read; empty before the first one.
    read: String,
    /// Of the last failures that were read.
    failures_read: String,
    /// What the log holds, since it was last begun to be read.
    in_log: Revocations,
    /// Revocations whose tokens may still be in memory.
    unheeded: Vec<(Revocation, Stamp)>,
    /// Whether there are revocations of this replica's that are not in the log.
    untold: bool,
    failures: Vec<Failure>,
    /// What tells this replica's failures from others'; made when it is first needed.
    replica: Option<[u8; 8]>,
}

impl Notices {
    /// So many entries are asked for at once.
    pub const PAGE: usize = 1000;

    /// Has the log read from its beginning: after a failover it may be another one, with ids that were passed already.
    pub fn begin_anew(&mut self) {
        self.read.clear();
        self.in_log = Revocations::default();
    }

    /// From where on notices and failures are new.
    pub fn positions(&self, now: Stamp) -> (String, String) {
        let after = |id: &String| format!("({id}");
        let notices = if self.read.is_empty() { "-".to_owned() } else { after(&self.read) };
        let recently = || now.0.saturating_sub(millis(FAILURES_KEPT)).to_string();
        (notices, if self.failures_read.is_empty() { recently() } else { after(&self.failures_read) })
    }

    /// A wrong credential that others are to be told of.
    pub fn failed(&mut self, failure: Failure) {
        if self.failures.len() < MOST_FAILURES {
            self.failures.push(failure);
        }
    }

    /// Whether there is something that the log does not know yet.
    pub fn is_untold(&self) -> bool {
        self.untold
    }

    fn replica(&mut self) -> [u8; 8] {
        *self.replica.get_or_insert_with(|| {
            let mut name = [0; 8];
            rand::fill(&mut name).expect("the system's random source works");
            name
        })
    }
}

impl Session {
    /// Ends tokens, here and everywhere.
    pub(super) async fn revoke(&self, what: Revocation) -> Outcome<()> {
        let published = self.publish(&Notice::Revoked(what.clone(), None)).await;
        let at = *published.as_ref().unwrap_or(&self.shared.calendar.now());
        self.revoked(what, at);
        self.forget_revoked().await;
        if published.is_err() {
            self.notices.borrow_mut().untold = true;
        }
        published.map(drop)
    }

    /// Writes a notice; when it was written, by the server's clock.
    pub(super) async fn publish(&self, notice: &Notice) -> Outcome<Stamp> {
        let key = self.key("notices", "");
        let sealed = self.shared.keys.seal(0, key.as_bytes(), &notice.write());
        let oldest = self.shared.calendar.now().0.saturating_sub(millis(self.ttl().max(LEAST_KEPT)));
        let id: String = self.query(cmd("XADD").arg((&key, "MINID", "~", oldest, "*", "d", sealed))).await?;
        Ok(written_at(&id))
    }

    /// Takes new notices to heart.
    pub(super) async fn heed(&self, entries: Entries) {
        let key = self.key("notices", "");
        for (id, fields) in entries {
            let at = written_at(&id);
            self.notices.borrow_mut().read = id;
            let opened = fields.get(1).and_then(|sealed| self.shared.keys.open(key.as_bytes(), sealed));
            match opened.and_then(|(_, text)| Notice::read(&text)) {
                Some(Notice::Revoked(what, when)) => {
                    let at = when.unwrap_or(at);
                    self.notices.borrow_mut().in_log.add(&what, at);
                    self.revoked(what, at);
                }
                Some(Notice::Changed(id)) => self.shared.memory.remove(&id),
                None => warn!(
                    "a notice in the token store cannot be opened: do all replicas have the same salts and version?"
                ),
            }
        }
        self.forget_revoked().await;
        self.revocations.borrow_mut().forget(self.shared.calendar.now(), self.ttl().max(LEAST_KEPT));
    }

    /// SECURITY: known first, so that no token comes into memory any more that the search below has missed.
    fn revoked(&self, what: Revocation, at: Stamp) {
        if self.revocations.borrow_mut().add(&what, at) {
            self.notices.borrow_mut().unheeded.push((what, at));
        }
    }

    /// Searches the memory for what was revoked, beside this thread's other work. What was not finished is done next time.
    async fn forget_revoked(&self) {
        let unheeded = self.notices.borrow().unheeded.clone();
        if unheeded.is_empty() {
            return;
        }
        let done = unheeded.clone();
        if !self.shared.memory.is_empty() {
            let memory = Arc::clone(&self.shared.memory);
            let search = move || {
                memory.remove_those(|id, record| {
                    unheeded.iter().any(|(what, at)| record.minted <= *at && what.covers(id, &record.user))
                })
            };
            if tokio::task::spawn_blocking(search).await.is_err() {
                return;
            }
        }
        // Others may have searched for some of them meanwhile.
        self.notices.borrow_mut().unheeded.retain(|one| !done.contains(one));
    }

    /// Writes revocations that this replica knows of and the log does not: a failover may have lost them.
    pub(super) async fn heal_log(&self, connection: &mut Connection) -> Outcome<()> {
        let lost: Vec<_> = {
            let (notices, known) = (self.notices.borrow(), self.revocations.borrow());
            known.iter().filter(|(what, at)| notices.in_log.at(what) < *at).collect()
        };
        let key = self.key("notices", "");
        for (what, at) in lost {
            let notice = Notice::Revoked(what, Some(at)).write();
            let sealed = self.shared.keys.seal(0, key.as_bytes(), &notice);
            let _: String = cmd("XADD").arg((&key, "*", "d", sealed)).query_async(connection).await?;
        }
        self.notices.borrow_mut().untold = false;
        Ok(())
    }

    /// Tells others of the failures since the last time.
    pub(super) async fn tell_failures(&self, connection: &mut Connection) -> Outcome<()> {
        let (failures, replica) = {
            let mut notices = self.notices.borrow_mut();
            (std::mem::take(&mut notices.failures), notices.replica())
        };
        if failures.is_empty() {
            return Ok(());
        }
        let key = self.key("failures", "");
        let mut text = replica.to_vec();
        for failure in failures {
            text.push(failure.kind);
            text.extend(failure.bucket.to_be_bytes());
        }
        let sealed = self.shared.keys.seal(0, key.as_bytes(), &text);
        let oldest = self.shared.calendar.now().0.saturating_sub(millis(FAILURES_KEPT));
        let _: String =
            cmd("XADD").arg((&key, "MINID", "~", oldest, "*", "d", sealed)).query_async(connection).await?;
        Ok(())
    }

    /// Counts the failures that others have told of.
    pub(super) fn count(&self, entries: Entries) {
        let key = self.key("failures", "");
        let own = self.notices.borrow_mut().replica();
        for (id, fields) in entries {
            self.notices.borrow_mut().failures_read = id;
            let opened = fields.get(1).and_then(|sealed| self.shared.keys.open(key.as_bytes(), sealed));
            let Some((_, text)) = opened else { continue };
            let Some((replica, failures)) = text.split_first_chunk::<8>() else { continue };
            if *replica == own {
                continue;
            }
            for failure in failures.chunks_exact(9) {
                let bucket = u64::from_be_bytes(failure[1..].try_into().expect("eight bytes"));
                (self.on_failure)(Failure { kind: failure[0], bucket });
            }
        }
    }
}

/// The time in an entry's id.
fn written_at(id: &str) -> Stamp {
    Stamp(id.split('-').next().and_then(|millis| millis.parse().ok()).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let id = TokenId::of(b"x");
        for notice in [
            Notice::Revoked(Revocation::All, None),
            Notice::Revoked(Revocation::Token(id.fingerprint()), Some(Stamp(7))),
            Notice::Changed(id),
        ] {
            assert_eq!(Notice::read(&notice.write()), Some(notice));
        }
        for wrong in [&b""[..], b"r", b"r12345678", b"c123", b"x"] {
            assert_eq!(Notice::read(wrong), None);
        }
        assert_eq!(written_at("1700000000123-4"), Stamp(1_700_000_000_123));
    }

    #[test]
    fn reading_begins_at_the_beginning_and_goes_on_where_it_was() {
        let mut notices = Notices::default();
        assert_eq!(notices.positions(Stamp(100_000)), ("-".into(), "40000".into()));
        notices.read = "5-0".into();
        notices.failures_read = "6-1".into();
        assert_eq!(notices.positions(Stamp(100_000)), ("(5-0".into(), "(6-1".into()));
        notices.begin_anew();
        assert_eq!(notices.positions(Stamp(100_000)), ("-".into(), "(6-1".into()));
    }
}
