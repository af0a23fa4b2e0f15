//! What replicas with a common Redis report to each other about the requests that rules of `limits.rules` have admitted. The
//! main thread and the thread of the store exchange it here; no request waits for that.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Requests of a caller that a replica has admitted under a rule. Rule and caller are keyed hashes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateUse {
    /// The rule.
    pub rule: u64,
    /// The caller.
    pub caller: u64,
    /// The number of requests.
    pub requests: u32,
}

/// What a replica learns about the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OtherUses {
    /// The requests that they have admitted.
    pub uses: Vec<RateUse>,
    /// The number of replicas that share a rate from now on: 1 while each one knows the requests of all.
    pub sharers: u32,
}

/// A replica without a report for this time has stopped.
pub(super) const REPLICA_TIMEOUT: Duration = Duration::from_secs(15);

/// More are not kept while the thread of the store is slow. What is lost counts at one replica only.
const MAX_USES: usize = 10_000;

#[derive(Debug, Default)]
pub(super) struct RateUses {
    own: Mutex<Vec<RateUse>>,
    others: Mutex<Vec<RateUse>>,
    /// The number of replicas that were there when the store last accepted reports.
    replicas: AtomicU32,
    /// Since when the store has accepted all reports; `None` if not the last one.
    written_since: Mutex<Option<Instant>>,
}

impl RateUses {
    /// Takes over what this replica has admitted, and returns what is known of the others.
    ///
    /// SECURITY: a store that answers but refuses reports is like one that is down: each replica has its share, and
    /// not the whole limit.
    pub fn exchange(&self, own: Vec<RateUse>) -> OtherUses {
        let sharers = if self.is_written() {
            extend(&self.own, own);
            1
        } else {
            // They would be too old when the store accepts reports again.
            self.own.lock().clear();
            self.replicas.load(Ordering::Relaxed).max(1)
        };
        OtherUses { uses: std::mem::take(&mut *self.others.lock()), sharers }
    }

    pub fn take_own(&self) -> Vec<RateUse> {
        std::mem::take(&mut *self.own.lock())
    }

    pub fn add_others(&self, uses: Vec<RateUse>) {
        extend(&self.others, uses);
    }

    /// Whether the store has accepted the last report.
    pub fn is_written(&self) -> bool {
        self.written_since.lock().is_some()
    }

    /// The store has accepted a report, or it has not, or is unavailable.
    pub fn set_written(&self, is_written: bool, now: Instant) {
        let mut since = self.written_since.lock();
        *since = is_written.then(|| since.unwrap_or(now));
    }

    /// Sets the number of replicas. It does not fall before all that are there had the time to report.
    pub fn set_replicas(&self, count: usize, now: Instant) {
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        let has_all = self.written_since.lock().is_some_and(|since| now.duration_since(since) >= REPLICA_TIMEOUT);
        let least = if has_all { 0 } else { self.replicas.load(Ordering::Relaxed) };
        self.replicas.store(count.max(least), Ordering::Relaxed);
    }
}

fn extend(all: &Mutex<Vec<RateUse>>, more: Vec<RateUse>) {
    let mut all = all.lock();
    let free = MAX_USES.saturating_sub(all.len());
    all.extend(more.into_iter().take(free));
}

/// The first byte of an entry with the rule of the following ones. Older versions ignore it, as all kinds that they do
/// not know.
const RULE: u8 = 0x7f;

/// The first byte of an entry with a caller, plus the power of two that is the number of requests.
const REQUESTS: u8 = 0x80;

/// Appends entries of nine bytes, the size of a reported failure.
pub(super) fn encode(uses: &[RateUse], bytes: &mut Vec<u8>) {
    let mut current = None;
    for RateUse { rule, caller, requests } in uses {
        if current.replace(rule) != Some(rule) {
            bytes.push(RULE);
            bytes.extend(rule.to_be_bytes());
        }
        for exponent in (0..32).filter(|exponent| requests >> exponent & 1 == 1) {
            bytes.push(REQUESTS + exponent);
            bytes.extend(caller.to_be_bytes());
        }
    }
}

/// Reads entries, one after the other.
#[derive(Default)]
pub(super) struct UseDecoder {
    rule: Option<u64>,
    pub uses: Vec<RateUse>,
}

impl UseDecoder {
    /// Returns false if this is no entry about uses.
    pub fn read(&mut self, kind: u8, value: u64) -> bool {
        match (kind, self.rule) {
            (RULE, _) => self.rule = Some(value),
            (REQUESTS.., Some(rule)) => {
                self.uses.push(RateUse { rule, caller: value, requests: 1 << (kind - REQUESTS).min(31) });
            }
            (REQUESTS.., None) => {}
            _ => return false,
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uses_survive_encoding_between_failures() {
        let uses = [(1, 2, 5), (1, 3, 1), (9, 2, u32::MAX)];
        let mut bytes = Vec::new();
        encode(&uses.map(|(rule, caller, requests)| RateUse { rule, caller, requests }), &mut bytes);
        bytes.extend([3, 0, 0, 0, 0, 0, 0, 0, 7]);
        let (mut decoder, mut rest) = (UseDecoder::default(), Vec::new());
        for entry in bytes.chunks_exact(9) {
            let value = u64::from_be_bytes(entry[1..].try_into().expect("eight bytes"));
            if !decoder.read(entry[0], value) {
                rest.push((entry[0], value));
            }
        }
        assert_eq!(rest, [(3, 7)]);
        for (rule, caller, requests) in uses {
            let of = decoder.uses.iter().filter(|one| (one.rule, one.caller) == (rule, caller));
            assert_eq!(of.map(|one| one.requests).sum::<u32>(), requests);
        }
        assert!(UseDecoder::default().read(REQUESTS, 1), "a caller without a rule is ignored");
    }

    #[test]
    fn a_replica_has_its_share_while_the_store_accepts_no_reports() {
        let one = RateUse { rule: 1, caller: 2, requests: 3 };
        let (uses, now) = (RateUses::default(), Instant::now());
        assert_eq!(uses.exchange(vec![one]), OtherUses { uses: vec![], sharers: 1 }, "no replica is known");
        uses.set_replicas(3, now);
        uses.add_others(vec![one]);
        uses.set_written(true, now);
        assert_eq!(uses.exchange(vec![one]), OtherUses { uses: vec![one], sharers: 1 });
        uses.set_written(false, now);
        assert_eq!(uses.exchange(vec![one]), OtherUses { uses: vec![], sharers: 3 });
        assert!(uses.take_own().is_empty());
        uses.add_others(vec![one; MAX_USES + 1]);
        uses.set_written(true, now);
        assert_eq!(uses.exchange(vec![]).uses.len(), MAX_USES);
    }

    #[test]
    fn the_number_of_replicas_falls_only_while_all_can_report() {
        let (uses, start) = (RateUses::default(), Instant::now());
        let (moment, hour) = (Duration::from_millis(1), Duration::from_secs(3600));
        let replicas = |count, now| {
            uses.set_replicas(count, now);
            uses.replicas.load(Ordering::Relaxed)
        };
        assert_eq!([3, 1, 4].map(|count| replicas(count, start + hour)), [3, 3, 4], "no report was accepted yet");
        for begin in [start + hour, start + 2 * hour] {
            uses.set_written(true, begin);
            uses.set_written(true, begin + REPLICA_TIMEOUT - moment);
            assert_eq!(replicas(2, begin + REPLICA_TIMEOUT - moment), 4, "others may be about to report");
            assert_eq!(replicas(2, begin + REPLICA_TIMEOUT), 2, "they have stopped");
            uses.set_written(false, begin + REPLICA_TIMEOUT);
            assert_eq!(replicas(1, begin + hour), 2, "a report was refused");
            assert_eq!(replicas(4, begin + hour), 4);
        }
    }
}
