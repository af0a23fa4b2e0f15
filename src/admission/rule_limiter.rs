//! Counts the requests of callers for one rule of `limits.rules`. Which requests the rule is for is decided elsewhere.
//!
//! Where replicas share a store, each one decides by its own buckets, and adds what the others have admitted a moment
//! later. So N replicas may admit up to N bursts at once; what exceeds the limit then has to drain first, so that there
//! is one rate in the long run.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use dashmap::DashMap;
use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;

use crate::admission::{KeyedCounts, RequestKind};
use crate::base::clock;
use crate::base::identity_hasher::IdentityHasher;
use crate::base::rate::Rate;
use crate::config::LimitRule;
use crate::store::{OtherUses, RateUse};

/// The counts of one rule. Callers are the hashes of [`RequestPermit::count_for`](super::RequestPermit::count_for).
#[derive(Debug)]
pub struct RuleLimiter {
    /// The rule itself.
    pub rule: LimitRule,
    exceeded: Counter,
    /// The rule in reports to other replicas; `None` if there are none.
    id: Option<u64>,
    buckets: DashMap<u64, Bucket, IdentityHasher>,
    /// The callers with requests that were not reported yet, each one once.
    unreported: Mutex<VecDeque<u64>>,
    /// The number of replicas that share the rate and do not hear of each other's requests.
    sharers: AtomicU32,
    requests: KeyedCounts,
}

/// The bucket of a caller.
#[derive(Debug)]
struct Bucket {
    empty_at: Instant,
    /// Requests that were not reported to other replicas yet.
    unreported: u32,
}

/// A request that exceeds a limit of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleExceeded {
    /// The name of the rule.
    pub rule: Arc<str>,
    /// When a retry may succeed.
    pub retry_after: Duration,
}

/// For a concurrency limit there is no time at which a retry succeeds.
const RETRY_SOON: Duration = Duration::from_secs(1);

/// The maximum number of callers in one report to other replicas; the others follow with the next one.
const MAX_REPORTED: usize = 1000;

impl RuleLimiter {
    /// `exceeded` counts the requests above the limit.
    pub fn new(rule: LimitRule, exceeded: Counter) -> RuleLimiter {
        let (id, buckets, unreported, requests) = Default::default();
        RuleLimiter { rule, exceeded, id, buckets, unreported, sharers: AtomicU32::new(1), requests }
    }

    /// The same rule with empty buckets, whose requests are reported to other replicas.
    pub fn with_id(&self, id: u64) -> RuleLimiter {
        // Requests add to it, which should not have to allocate.
        let unreported = Mutex::new(VecDeque::with_capacity(MAX_REPORTED));
        RuleLimiter { id: Some(id), unreported, ..RuleLimiter::new(self.rule.clone(), self.exceeded.clone()) }
    }

    /// Counts a request of this caller. `Some` permit if the rule limits concurrent requests, of which an event stream is
    /// not one.
    pub fn admit(self: &Arc<RuleLimiter>, caller: u64, kind: RequestKind) -> Result<Option<RulePermit>, RuleExceeded> {
        if let Some(rate) = self.rule.rate
            && let Err(retry_after) = self.admit_at_rate(rate, caller, clock::recent())
        {
            return Err(self.exceeded(retry_after));
        }
        let Some(concurrent) = self.rule.concurrent.filter(|_| kind == RequestKind::Query) else { return Ok(None) };
        if !self.requests.try_increment(caller, concurrent) {
            return Err(self.exceeded(RETRY_SOON));
        }
        Ok(Some(RulePermit { limiter: Arc::clone(self), caller }))
    }

    fn admit_at_rate(&self, rate: Rate, caller: u64, now: Instant) -> Result<(), Duration> {
        let rate = match self.sharers.load(Ordering::Relaxed) {
            1 => rate,
            sharers => rate.divided_by(sharers),
        };
        // A request above the rate leaves the bucket as it is: it then passes one interval after the last admitted one.
        let mut bucket = self.buckets.entry(caller).or_insert(Bucket { empty_at: now, unreported: 0 });
        bucket.empty_at = now + rate.admit(bucket.empty_at.saturating_duration_since(now))?;
        if self.id.is_some() {
            if bucket.unreported == 0 {
                self.unreported.lock().push_back(caller);
            }
            bucket.unreported = bucket.unreported.saturating_add(1);
        }
        Ok(())
    }

    /// Moves requests that were not reported yet to `uses`.
    pub fn take_uses(&self, uses: &mut Vec<RateUse>) {
        let Some(rule) = self.id else { return };
        for _ in 0..MAX_REPORTED {
            // Unlocked before the bucket is locked: a request locks them in the other order.
            let Some(caller) = self.unreported.lock().pop_front() else { return };
            if let Some(mut bucket) = self.buckets.get_mut(&caller) {
                uses.push(RateUse { rule, caller, requests: std::mem::take(&mut bucket.unreported) });
            }
        }
    }

    /// Counts requests that other replicas have admitted.
    ///
    /// SECURITY: this can only fill buckets, each up to a bound, and reduce the rate: whatever the store says, no caller
    /// has more than the whole limit at this replica.
    pub fn add_uses(&self, OtherUses { uses, sharers }: &OtherUses) {
        self.sharers.store(*sharers, Ordering::Relaxed);
        let (Some(rate), Some(id)) = (self.rule.rate, self.id) else { return };
        let now = clock::now();
        for RateUse { caller, requests, .. } in uses.iter().filter(|one| one.rule == id) {
            let mut bucket = self.buckets.entry(*caller).or_insert(Bucket { empty_at: now, unreported: 0 });
            bucket.empty_at = now + rate.fill_by(bucket.empty_at.saturating_duration_since(now), *requests);
        }
    }

    #[cold]
    fn exceeded(&self, retry_after: Duration) -> RuleExceeded {
        self.exceeded.inc();
        RuleExceeded { rule: Arc::clone(&self.rule.name), retry_after }
    }

    /// Removes empty buckets. Called periodically.
    pub fn sweep(&self) {
        let now = clock::now();
        self.buckets.retain(|_, bucket| bucket.empty_at > now || bucket.unreported > 0);
    }
}

/// Counts as one of the caller's concurrent requests until it is dropped.
#[derive(Debug)]
pub struct RulePermit {
    limiter: Arc<RuleLimiter>,
    caller: u64,
}

impl Drop for RulePermit {
    fn drop(&mut self) {
        self.limiter.requests.decrement(self.caller);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limiter(rate: Option<Rate>, concurrent: Option<usize>) -> Arc<RuleLimiter> {
        let (users, groups, addresses, routes, ontologies) = (None, Vec::new(), None, None, None);
        let name = Arc::from("rule");
        let rule =
            LimitRule { name, users, groups, addresses, routes, ontologies, rate, concurrent, is_enforced: true };
        Arc::new(RuleLimiter::new(rule, Counter::default()))
    }

    impl RuleLimiter {
        fn admit_query(self: &Arc<RuleLimiter>, caller: u64) -> Result<Option<RulePermit>, RuleExceeded> {
            self.admit(caller, RequestKind::Query)
        }
    }

    #[test]
    fn callers_have_rates_of_their_own() {
        clock::now();
        let limiter = limiter(Rate::new(0.1, 2), None);
        for caller in [1, 2] {
            assert!(limiter.admit_query(caller).is_ok() && limiter.admit_query(caller).is_ok());
            let refused = limiter.admit_query(caller).expect_err("too many");
            assert_eq!(&*refused.rule, "rule");
            assert!(refused.retry_after > Duration::from_secs(9), "{refused:?}");
        }
        assert_eq!(limiter.exceeded.get(), 2);
        limiter.sweep();
        assert_eq!(limiter.buckets.len(), 2, "they are not empty");
    }

    #[test]
    fn replicas_share_a_rate() {
        clock::now();
        let replicas = [(); 3].map(|()| Arc::new(limiter(Rate::new(0.1, 6), None).with_id(7)));
        let admitted = |replica: &Arc<RuleLimiter>| (0..20).take_while(|_| replica.admit_query(1).is_ok()).count();
        let report = || {
            let mut all = replicas.each_ref().map(|replica| {
                let mut uses = Vec::new();
                replica.take_uses(&mut uses);
                uses
            });
            all.rotate_left(1);
            for (replica, uses) in replicas.iter().zip(all) {
                replica.add_uses(&OtherUses { uses, sharers: 1 });
            }
        };
        assert!(
            replicas[0].admit_query(1).is_ok()
                && replicas[1].admit_query(1).is_ok()
                && replicas[1].admit_query(1).is_ok()
        );
        assert!(replicas[2].admit_query(2).is_ok());
        report();
        assert_eq!(replicas.each_ref().map(admitted), [6 - 1 - 2, 6 - 2, 6 - 1]);
        report();
        let refused = replicas[0].admit_query(1).expect_err("full");
        assert!(refused.retry_after > Duration::from_secs(40), "what was admitted too much drains first: {refused:?}");
        let other = RateUse { rule: 8, caller: 9, requests: 100 };
        replicas[0].add_uses(&OtherUses { uses: vec![other], sharers: 1 });
        assert!(replicas[0].admit_query(9).is_ok(), "a different rule");
    }

    #[test]
    fn a_replica_alone_uses_its_share() {
        clock::now();
        let admitted = |sharers: u32| {
            let limiter = Arc::new(limiter(Rate::new(0.1, 6), None).with_id(7));
            limiter.add_uses(&OtherUses { uses: Vec::new(), sharers });
            (0..20).take_while(|_| limiter.admit_query(1).is_ok()).count()
        };
        assert_eq!([1, 2, 3, 6, 7, u32::MAX].map(admitted), [6, 3, 2, 1, 1, 1]);
    }

    #[test]
    fn reports_are_bounded() {
        clock::now();
        let limiter = Arc::new(limiter(Rate::new(0.1, 6), None).with_id(7));
        let callers = 0..MAX_REPORTED as u64 + 1;
        assert!(
            callers.clone().all(|caller| limiter.admit_query(caller).is_ok() && limiter.admit_query(caller).is_ok())
        );
        let take = || {
            let mut uses = Vec::new();
            limiter.take_uses(&mut uses);
            assert!(uses.iter().all(|one| (one.rule, one.requests) == (7, 2)));
            uses.into_iter().map(|one| one.caller)
        };
        let first = take();
        assert_eq!(first.len(), MAX_REPORTED);
        assert!(limiter.admit_query(0).is_ok() && limiter.admit_query(0).is_ok(), "it is reported again");
        assert!(first.chain(take()).eq(callers.chain([0])));
        assert_eq!(take().len(), 0);
    }

    #[test]
    fn no_report_lifts_a_limit() {
        clock::now();
        for _ in 0..200 {
            let limiter = Arc::new(limiter(Rate::new(0.1, 6), None).with_id(7));
            let mut admitted = 0;
            for _ in 0..50 {
                let random = || fastrand::u32(..) >> fastrand::u32(..32);
                let uses =
                    (0..fastrand::usize(..3)).map(|_| RateUse { rule: 7, caller: 1, requests: random() }).collect();
                limiter.add_uses(&OtherUses { uses, sharers: random() });
                match limiter.admit_query(1) {
                    Ok(_) => admitted += 1,
                    // Ten full buckets, and the time for one request with the largest number of replicas.
                    Err(refused) => assert!(refused.retry_after <= Duration::from_secs(600 + 24 * 3600), "{refused:?}"),
                }
            }
            assert!(admitted <= 6, "{admitted}");
        }
    }

    #[test]
    fn concurrent_requests_are_counted_until_their_permits_are_dropped() {
        let limiter = limiter(None, Some(2));
        let permits = [limiter.admit_query(1), limiter.admit_query(1)];
        assert!(limiter.admit_query(1).is_err() && limiter.admit_query(2).is_ok());
        assert!(limiter.admit(1, RequestKind::EventStream).is_ok_and(|permit| permit.is_none()));
        drop(permits);
        assert!(limiter.admit_query(1).is_ok());
    }
}
