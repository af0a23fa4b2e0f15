//! Limits wrong credentials per client address (leaky buckets). Knows nothing about how credentials are verified.
//!
//! There are three kinds of buckets: an address's wrong keys and bearers, an address's wrong passwords, and an
//! address's wrong passwords for one user. The first two hold `limits.failures_per_address` failures, the last one
//! `limits.failures_per_user`; a full bucket drains in a minute. Checking a bucket and adding a failure are separate
//! steps, because only failures are added; a correct key or bearer touches no bucket.
//!
//! SECURITY: there is no bucket per user alone: any client could fill it and lock the user out. Passwords have separate
//! buckets because only clients with the salt can try them. Otherwise a client without the salt could block the logins
//! of all users behind the same address, such as that of a load balancer.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::hmac::{HMAC_SHA256, Key, sign};
use parking_lot::Mutex;

use crate::admission::network;
use crate::base::clock::{Clock, Tick};
use crate::base::user_name::UserName;
use crate::config::FailureLimits;
use crate::store::CredentialFailure;

/// The time in which a full bucket drains.
const PERIOD: Duration = Duration::from_secs(60);

/// The number of maps, each with its own lock.
const SHARDS: usize = 16;

/// Per shard. With 16 shards and two generations this bounds the memory to about 10 MB.
const MAX_BUCKETS_PER_GENERATION: usize = 10_000;

/// All buckets of the process.
pub struct FailureLimiter {
    address_rate: Option<Rate>,
    user_rate: Option<Rate>,
    shards: Arc<[Mutex<BucketShard>; SHARDS]>,
    bucket_key: Key,
    publish: PublishFailure,
    clock: Clock,
}

/// Reports a failure to other replicas.
pub type PublishFailure = Box<dyn Fn(CredentialFailure) + Send + Sync>;

/// Too many failures; the next attempt can succeed after this time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooManyFailures(pub Duration);

/// One authentication attempt of a client.
#[derive(Clone)]
pub struct Attempt {
    limiter: Arc<FailureLimiter>,
    address_bucket: BucketId,
    user_bucket: Option<BucketId>,
}

/// A keyed hash of what the bucket counts: clients cannot cause collisions, and all replicas use the same identifier.
type BucketId = u64;

/// The kinds of buckets: an address's wrong keys and bearers, its wrong passwords, and its wrong passwords for one
/// user.
const KEY_FAILURES: u8 = 0;
const PASSWORD_FAILURES: u8 = 1;
const USER_FAILURES: u8 = 2;

impl FailureLimiter {
    /// Empty buckets. `key` derives the bucket identifiers; `publish` receives each
    /// failure.
    pub fn new(limits: FailureLimits, key: &[u8; 32], publish: PublishFailure, clock: Clock) -> FailureLimiter {
        FailureLimiter {
            address_rate: Rate::per_minute(limits.per_address),
            user_rate: Rate::per_minute(limits.per_user),
            shards: Arc::new(std::array::from_fn(|_| Mutex::default())),
            bucket_key: Key::new(HMAC_SHA256, key),
            publish,
            clock,
        }
    }

    /// The same buckets with new limits. A different `key` changes all bucket identifiers, which resets all counts.
    pub fn with_limits(&self, limits: FailureLimits, key: &[u8; 32], publish: PublishFailure) -> FailureLimiter {
        let shards = Arc::clone(&self.shards);
        FailureLimiter { shards, ..FailureLimiter::new(limits, key, publish, self.clock.clone()) }
    }

    /// Begins an attempt of the client at this address.
    pub fn begin_attempt(self: &Arc<FailureLimiter>, address: IpAddr) -> Attempt {
        let (version, network) = network(address);
        let address = self.bucket_id(&[&[KEY_FAILURES, version], &network.to_be_bytes()]);
        Attempt { limiter: Arc::clone(self), address_bucket: address, user_bucket: None }
    }

    /// Counts a failure that a different replica reported.
    pub fn count_remote_failure(&self, failure: CredentialFailure) {
        match failure.kind {
            KEY_FAILURES | PASSWORD_FAILURES => self.fill_bucket(self.address_rate, failure.bucket),
            USER_FAILURES => self.fill_bucket(self.user_rate, failure.bucket),
            // From a newer version, which counts it in its own buckets.
            _ => {}
        }
    }

    fn bucket_id(&self, parts: &[&[u8]]) -> BucketId {
        let tag = sign(&self.bucket_key, &parts.concat());
        u64::from_be_bytes(*tag.as_ref().first_chunk().expect("SHA-256 has 32 bytes"))
    }

    fn count_failure(&self, kind: u8, rate: Option<Rate>, bucket: BucketId) {
        if rate.is_some() {
            self.fill_bucket(rate, bucket);
            (self.publish)(CredentialFailure { kind, bucket });
        }
    }

    /// Removes empty buckets. Called periodically.
    pub fn sweep(&self) {
        let now = self.clock.now();
        for shard in &*self.shards {
            let mut shard = shard.lock();
            shard.current.retain(|_, empty| *empty > now);
            shard.previous.retain(|_, empty| *empty > now);
        }
    }

    fn check_bucket(&self, rate: Option<Rate>, bucket: BucketId) -> Result<(), TooManyFailures> {
        let Some(rate) = rate else { return Ok(()) };
        let now = self.clock.now();
        let empty = self.shard(bucket).lock().empty_at(bucket);
        rate.check(empty, now)
    }

    fn fill_bucket(&self, rate: Option<Rate>, bucket: BucketId) {
        let Some(rate) = rate else { return };
        let now = self.clock.now();
        let mut shard = self.shard(bucket).lock();
        let empty = rate.fill(shard.empty_at(bucket), now);
        shard.set(bucket, empty);
    }

    fn shard(&self, bucket: BucketId) -> &Mutex<BucketShard> {
        &self.shards[bucket as usize % SHARDS]
    }
}

impl Attempt {
    /// The same attempt, for checking the password of this user.
    pub fn for_user(self, user: &UserName) -> Attempt {
        let address_bytes = self.address_bucket.to_be_bytes();
        let address = self.limiter.bucket_id(&[&[PASSWORD_FAILURES], &address_bytes]);
        let user = self.limiter.bucket_id(&[&[USER_FAILURES], &address_bytes, user.as_str().as_bytes()]);
        Attempt { address_bucket: address, user_bucket: Some(user), limiter: self.limiter }
    }

    /// Checks whether one more failure is allowed. Does not count as an attempt.
    pub fn check_limits(&self) -> Result<(), TooManyFailures> {
        let limiter = &self.limiter;
        let user_limit = self.user_bucket.map_or(Ok(()), |user| limiter.check_bucket(limiter.user_rate, user));
        limiter.check_bucket(limiter.address_rate, self.address_bucket).and(user_limit)
    }

    /// Counts a failure.
    pub fn record_failure(&self) {
        let limiter = &self.limiter;
        let kind = if self.user_bucket.is_some() { PASSWORD_FAILURES } else { KEY_FAILURES };
        limiter.count_failure(kind, limiter.address_rate, self.address_bucket);
        if let Some(user) = self.user_bucket {
            limiter.count_failure(USER_FAILURES, limiter.user_rate, user);
        }
    }

    /// Counts a failure, unless the limit is already reached; then the client must learn only that.
    pub fn try_record_failure(&self) -> Result<(), TooManyFailures> {
        self.check_limits()?;
        self.record_failure();
        Ok(())
    }
}

/// The generic cell rate algorithm: a bucket is stored as the time at which it will be empty.
#[derive(Clone, Copy, Debug)]
struct Rate {
    /// The time in which one failure drains.
    failure_interval: Duration,
}

impl Rate {
    /// A limit of `failures` per minute; `None` if it is 0.
    fn per_minute(failures: u32) -> Option<Rate> {
        (failures > 0).then(|| Rate { failure_interval: (PERIOD / failures).max(Duration::from_millis(1)) })
    }

    fn check(self, empty: Option<Tick>, now: Tick) -> Result<(), TooManyFailures> {
        let level = empty.map_or(Duration::ZERO, |empty| empty.since(now)) + self.failure_interval;
        match level.checked_sub(PERIOD) {
            None | Some(Duration::ZERO) => Ok(()),
            Some(wait) => Err(TooManyFailures(wait)),
        }
    }

    fn fill(self, empty: Option<Tick>, now: Tick) -> Tick {
        let filled = empty.map_or(now, |empty| empty.max(now)).after(self.failure_interval);
        // Concurrent attempts may overfill the bucket; this bounds it.
        filled.min(now.after(PERIOD))
    }
}

/// Buckets in two generations: when the current generation is full it becomes the previous one, and the previous one is
/// dropped. So eviction takes constant time, and addresses that keep failing are not evicted.
#[derive(Default)]
struct BucketShard {
    current: HashMap<BucketId, Tick>,
    previous: HashMap<BucketId, Tick>,
}

impl BucketShard {
    fn empty_at(&self, bucket: BucketId) -> Option<Tick> {
        self.current.get(&bucket).or_else(|| self.previous.get(&bucket)).copied()
    }

    fn set(&mut self, bucket: BucketId, empty: Tick) {
        if self.current.len() >= MAX_BUCKETS_PER_GENERATION && !self.current.contains_key(&bucket) {
            self.previous = std::mem::take(&mut self.current);
        }
        self.current.insert(bucket, empty);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limiter(per_address: u32, per_user: u32) -> (Arc<FailureLimiter>, Clock) {
        let clock = Clock::manual(0);
        (
            Arc::new(FailureLimiter::new(
                FailureLimits { per_address, per_user },
                &[7; 32],
                Box::new(drop),
                clock.clone(),
            )),
            clock,
        )
    }

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn user(name: &str) -> UserName {
        UserName::parse(name.as_bytes()).expect("a name")
    }

    /// The number of failures until the limit is reached.
    fn failures_until_limit(attempt: &Attempt) -> usize {
        (0..1000).take_while(|_| attempt.try_record_failure().is_ok()).count()
    }

    #[test]
    fn failures_are_limited_and_drain_within_a_minute() {
        let (limiter, clock) = limiter(10, 0);
        let attempt = limiter.begin_attempt(address("192.0.2.1"));
        assert_eq!(failures_until_limit(&attempt), 10);
        assert_eq!(attempt.check_limits(), Err(TooManyFailures(Duration::from_secs(6))));
        assert_eq!(
            attempt.check_limits(),
            Err(TooManyFailures(Duration::from_secs(6))),
            "a check and a rejection are not counted"
        );
        clock.advance(Duration::from_millis(5999));
        assert!(attempt.check_limits().is_err());
        clock.advance(Duration::from_millis(1));
        assert_eq!(failures_until_limit(&attempt), 1);
        clock.advance(PERIOD);
        assert_eq!(failures_until_limit(&attempt), 10);
    }

    #[test]
    fn new_limits_keep_the_counts() {
        let (limiter, _) = limiter(10, 0);
        assert_eq!(failures_until_limit(&limiter.begin_attempt(address("192.0.2.1"))), 10);
        let limits = FailureLimits { per_address: 20, per_user: 0 };
        let changed = Arc::new(limiter.with_limits(limits, &[7; 32], Box::new(drop)));
        assert_eq!(failures_until_limit(&changed.begin_attempt(address("192.0.2.1"))), 0, "the bucket has not drained");
        assert_eq!(failures_until_limit(&changed.begin_attempt(address("192.0.2.2"))), 20);
    }

    #[test]
    fn users_and_addresses_have_separate_buckets() {
        let (limiter, _) = limiter(10, 3);
        let at = |text| limiter.begin_attempt(address(text));
        assert_eq!(failures_until_limit(&at("192.0.2.1").for_user(&user("alice"))), 3);
        assert_eq!(failures_until_limit(&at("192.0.2.1").for_user(&user("bob"))), 3);
        assert_eq!(
            failures_until_limit(&at("192.0.2.2").for_user(&user("alice"))),
            3,
            "there is no bucket per user alone"
        );
        assert_eq!(failures_until_limit(&at("192.0.2.1").for_user(&user("carol"))), 3);
        assert_eq!(failures_until_limit(&at("192.0.2.1").for_user(&user("dave"))), 1, "the address has its own bucket");
        assert_eq!(failures_until_limit(&at("192.0.2.1")), 10, "keys and bearers have a separate bucket");
        assert_eq!(failures_until_limit(&at("192.0.2.3")), 10);
    }

    #[test]
    fn an_ipv6_network_is_one_client() {
        let (limiter, _) = limiter(10, 0);
        assert_eq!(failures_until_limit(&limiter.begin_attempt(address("2001:db8::1"))), 10);
        assert_eq!(failures_until_limit(&limiter.begin_attempt(address("2001:db8:0:0:ffff:ffff:ffff:ffff"))), 0);
        assert_eq!(failures_until_limit(&limiter.begin_attempt(address("2001:db8:0:1::1"))), 10);
    }

    #[test]
    fn failures_reported_by_a_replica_count() {
        let (other, _) = limiter(10, 3);
        let publish = {
            let other = Arc::clone(&other);
            Box::new(move |failure| other.count_remote_failure(failure))
        };
        let limits = FailureLimits { per_address: 10, per_user: 3 };
        let limiter = Arc::new(FailureLimiter::new(limits, &[7; 32], publish, Clock::manual(0)));
        let at = |limiter: &Arc<FailureLimiter>| limiter.begin_attempt(address("192.0.2.1"));
        assert_eq!(failures_until_limit(&at(&limiter).for_user(&user("alice"))), 3);
        assert_eq!(failures_until_limit(&at(&limiter)), 10);
        assert_eq!(failures_until_limit(&at(&other).for_user(&user("alice"))), 0);
        assert_eq!(failures_until_limit(&at(&other)), 0);
        assert_eq!(failures_until_limit(&at(&other).for_user(&user("bob"))), 3);
        assert_eq!(failures_until_limit(&other.begin_attempt(address("192.0.2.2"))), 10);
    }

    #[test]
    fn a_limit_of_zero_disables_counting() {
        let (limiter, _) = limiter(0, 0);
        let attempt = limiter.begin_attempt(address("192.0.2.1")).for_user(&user("alice"));
        assert_eq!(failures_until_limit(&attempt), 1000);
        assert!(limiter.shards.iter().all(|shard| shard.lock().current.is_empty()));
    }

    #[test]
    fn concurrent_failures_do_not_overfill_a_bucket() {
        let (limiter, clock) = limiter(10, 0);
        let attempt = limiter.begin_attempt(address("192.0.2.1"));
        (0..100).for_each(|_| attempt.record_failure());
        clock.advance(PERIOD / 10);
        assert!(attempt.check_limits().is_ok());
    }

    #[test]
    fn memory_is_bounded_and_repeated_failures_are_bucket_count() {
        let (limiter, clock) = limiter(10, 0);
        let busy = limiter.begin_attempt(address("192.0.2.1"));
        assert_eq!(failures_until_limit(&busy), 10);
        let bucket_count = || -> usize {
            let len = |shard: &Mutex<BucketShard>| {
                let shard = shard.lock();
                shard.current.len() + shard.previous.len()
            };
            limiter.shards.iter().map(len).sum()
        };
        for number in 0..500_000_u32 {
            limiter.begin_attempt(IpAddr::from(number.to_be_bytes())).record_failure();
            if number % 50_000 == 0 {
                busy.record_failure();
            }
        }
        assert!(bucket_count() <= 2 * SHARDS * MAX_BUCKETS_PER_GENERATION, "{}", bucket_count());
        assert!(busy.check_limits().is_err());
        clock.advance(PERIOD);
        limiter.sweep();
        assert_eq!(bucket_count(), 0);
    }
}
