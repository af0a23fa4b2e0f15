//! Counts the requests of callers for one rule of `limits.rules`. Which requests the rule is for is decided elsewhere.

use std::sync::Arc;
use std::time::{Duration, Instant};

use dashmap::DashMap;
use prometheus_client::metrics::counter::Counter;

use crate::admission::KeyedCounts;
use crate::base::clock;
use crate::base::identity_hasher::IdentityHasher;
use crate::base::rate::Rate;
use crate::config::LimitRule;

/// The counts of one rule. Callers are the hashes of [`RequestPermit::count_for`](super::RequestPermit::count_for).
#[derive(Debug)]
pub struct RuleLimiter {
    /// The rule itself.
    pub rule: LimitRule,
    exceeded: Counter,
    /// By caller: the moment at which the bucket is empty.
    buckets: DashMap<u64, Instant, IdentityHasher>,
    requests: KeyedCounts,
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

impl RuleLimiter {
    /// `exceeded` counts the requests above the limit.
    pub fn new(rule: LimitRule, exceeded: Counter) -> RuleLimiter {
        RuleLimiter { rule, exceeded, buckets: DashMap::default(), requests: KeyedCounts::default() }
    }

    /// Counts a request of this caller. `Some` permit if the rule limits concurrent requests.
    pub fn admit(self: &Arc<RuleLimiter>, caller: u64) -> Result<Option<RulePermit>, RuleExceeded> {
        if let Some(rate) = self.rule.rate
            && let Err(retry_after) = self.admit_at_rate(rate, caller, clock::recent())
        {
            return Err(self.exceeded(retry_after));
        }
        let Some(concurrent) = self.rule.concurrent else { return Ok(None) };
        if !self.requests.try_increment(caller, concurrent) {
            return Err(self.exceeded(RETRY_SOON));
        }
        Ok(Some(RulePermit { limiter: Arc::clone(self), caller }))
    }

    fn admit_at_rate(&self, rate: Rate, caller: u64, now: Instant) -> Result<(), Duration> {
        // A request above the rate leaves the bucket as it is: it then passes one interval after the last admitted one.
        let mut empty_at = self.buckets.entry(caller).or_insert(now);
        *empty_at = now + rate.admit(empty_at.saturating_duration_since(now))?;
        Ok(())
    }

    #[cold]
    fn exceeded(&self, retry_after: Duration) -> RuleExceeded {
        self.exceeded.inc();
        RuleExceeded { rule: Arc::clone(&self.rule.name), retry_after }
    }

    /// Removes empty buckets. Called periodically.
    pub fn sweep(&self) {
        let now = clock::now();
        self.buckets.retain(|_, empty_at| *empty_at > now);
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

    #[test]
    fn callers_have_rates_of_their_own() {
        clock::now();
        let limiter = limiter(Rate::new(0.1, 2), None);
        for caller in [1, 2] {
            assert!(limiter.admit(caller).is_ok() && limiter.admit(caller).is_ok());
            let refused = limiter.admit(caller).expect_err("too many");
            assert_eq!(&*refused.rule, "rule");
            assert!(refused.retry_after > Duration::from_secs(9), "{refused:?}");
        }
        assert_eq!(limiter.exceeded.get(), 2);
        limiter.sweep();
        assert_eq!(limiter.buckets.len(), 2, "they are not empty");
    }

    #[test]
    fn concurrent_requests_are_counted_until_their_permits_are_dropped() {
        let limiter = limiter(None, Some(2));
        let permits = [limiter.admit(1), limiter.admit(1)];
        assert!(limiter.admit(1).is_err() && limiter.admit(2).is_ok());
        drop(permits);
        assert!(limiter.admit(1).is_ok());
    }
}
