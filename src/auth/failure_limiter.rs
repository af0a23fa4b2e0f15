//! Limits wrong credentials per client address (leaky buckets). Knows nothing about how credentials are verified.
//!
//! There are three kinds of buckets for failures: an address's wrong keys and bearers, an address's wrong passwords, and an
//! address's wrong passwords for one user. The first two hold `limits.failures_per_address` failures, the last one
//! `limits.failures_per_user`; a full bucket drains in a minute. A fourth kind counts the new tokens of an address.
//!
//! A check of a credential charges its buckets before it starts, and is refunded if the credential is right. So
//! concurrent checks cannot exceed a limit, whatever their number, and right credentials never fill a bucket.
//!
//! Replicas that share a store report what they count to each other, a moment later. So N replicas may admit N times the
//! limit at once; what exceeds the limit then has to drain first, so that there is one limit in the long run.
//!
//! SECURITY: there is no bucket per user alone: any client could fill it and lock the user out. Passwords have separate
//! buckets because only clients with the salt can try them. Otherwise a client without the salt could block the logins
//! of all users behind the same address, such as that of a load balancer.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::hmac::{HMAC_SHA256, Key, sign};
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::admission::network;
use crate::base::clock::{Clock, Tick};
use crate::base::rate::Rate;
use crate::base::user_name::UserName;
use crate::config::LimitOptions;
use crate::store::CredentialFailure;

/// The number of maps, each with its own lock.
const SHARDS: usize = 16;

/// Per shard. With 16 shards and two generations this bounds the memory to about 10 MB.
const MAX_BUCKETS_PER_GENERATION: usize = 10_000;

/// All buckets of the process.
pub struct FailureLimiter {
    address_rate: Option<Rate>,
    user_rate: Option<Rate>,
    token_rate: Option<Rate>,
    buckets: Arc<Buckets>,
    bucket_key: Key,
    publish: PublishFailure,
    clock: Clock,
}

/// Reports a failure, or a new token, to other replicas.
pub type PublishFailure = Box<dyn Fn(CredentialFailure) + Send + Sync>;

/// Too many failures; the next attempt can succeed after this time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooManyFailures(pub Duration);

/// The state that survives a change of the limits.
#[derive(Default)]
struct Buckets {
    shards: [Mutex<BucketShard>; SHARDS],
    /// Notified when a check ends.
    check_ended: Notify,
}

/// Why a check may not start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChargeError {
    /// The bucket is full of failures.
    Failures(TooManyFailures),
    /// The bucket would be full if all checks in flight failed.
    ChecksInFlight,
}

impl From<ChargeError> for TooManyFailures {
    fn from(error: ChargeError) -> TooManyFailures {
        match error {
            ChargeError::Failures(failures) => failures,
            ChargeError::ChecksInFlight => TooManyFailures(Duration::from_secs(1)),
        }
    }
}

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

/// The new tokens of an address.
const NEW_TOKENS: u8 = 3;

/// The right to start one check. Dropping it gives it back.
pub struct Reservation(Option<Charge>);

/// A check of a credential that has started.
///
/// SECURITY: it ends as a failure unless it is refunded. So an unforeseen outcome cannot be used for guessing: a panic, a
/// timeout, or a status that is neither yes nor no.
pub struct Charge {
    limiter: Arc<FailureLimiter>,
    charged: [Option<ChargedBucket>; 2],
}

/// Whether the charge of a check that has ended stays.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ChargeEnd {
    Counted,
    Refunded,
}

/// A bucket that counts a check in flight.
#[derive(Clone, Copy)]
struct ChargedBucket {
    kind: u8,
    rate: Rate,
    bucket: BucketId,
}

impl FailureLimiter {
    /// Empty buckets. `key` derives the bucket identifiers; `publish` receives each
    /// failure.
    pub fn new(limits: &LimitOptions, key: &[u8; 32], publish: PublishFailure, clock: Clock) -> FailureLimiter {
        FailureLimiter {
            address_rate: Rate::per_minute(limits.failures_per_address),
            user_rate: Rate::per_minute(limits.failures_per_user),
            token_rate: Rate::per_minute(limits.tokens_per_address),
            buckets: Arc::default(),
            bucket_key: Key::new(HMAC_SHA256, key),
            publish,
            clock,
        }
    }

    /// The same buckets with new limits. A different `key` changes all bucket identifiers, which resets all counts.
    pub fn with_limits(&self, limits: &LimitOptions, key: &[u8; 32], publish: PublishFailure) -> FailureLimiter {
        let buckets = Arc::clone(&self.buckets);
        FailureLimiter { buckets, ..FailureLimiter::new(limits, key, publish, self.clock.clone()) }
    }

    /// Begins an attempt of the client at this address.
    pub fn begin_attempt(self: &Arc<FailureLimiter>, address: IpAddr) -> Attempt {
        let (version, network) = network(address);
        let address = self.bucket_id(&[&[KEY_FAILURES, version], &network.to_be_bytes()]);
        Attempt { limiter: Arc::clone(self), address_bucket: address, user_bucket: None }
    }

    /// Counts a failure, or a new token, that a different replica reported.
    pub fn count_remote_failure(&self, failure: CredentialFailure) {
        let rate = match failure.kind {
            KEY_FAILURES | PASSWORD_FAILURES => self.address_rate,
            USER_FAILURES => self.user_rate,
            NEW_TOKENS => self.token_rate,
            // From a newer version, which counts it in its own buckets.
            _ => None,
        };
        if let Some(rate) = rate {
            self.shard(failure.bucket).lock().add_failure(failure.bucket, rate, self.clock.now());
        }
    }

    fn bucket_id(&self, parts: &[&[u8]]) -> BucketId {
        let tag = sign(&self.bucket_key, &parts.concat());
        u64::from_be_bytes(*tag.as_ref().first_chunk().expect("SHA-256 has 32 bytes"))
    }

    /// Removes empty buckets. Called periodically.
    pub fn sweep(&self) {
        let now = self.clock.now();
        for shard in &self.buckets.shards {
            let mut shard = shard.lock();
            shard.current.retain(|_, empty| *empty > now);
            shard.previous.retain(|_, empty| *empty > now);
        }
    }

    fn charge(&self, ChargedBucket { rate, bucket, .. }: ChargedBucket) -> Result<(), ChargeError> {
        let now = self.clock.now();
        let mut shard = self.shard(bucket).lock();
        let level = shard.level(bucket, now);
        rate.admit(level).map_err(|wait| ChargeError::Failures(TooManyFailures(wait)))?;
        let in_flight = shard.in_flight.get(&bucket).copied().unwrap_or_default();
        rate.admit_after(level, in_flight).map_err(|_| ChargeError::ChecksInFlight)?;
        shard.in_flight.insert(bucket, in_flight + 1);
        Ok(())
    }

    fn end_check(&self, ChargedBucket { kind, rate, bucket }: ChargedBucket, end: ChargeEnd) {
        let now = self.clock.now();
        let mut shard = self.shard(bucket).lock();
        if let Entry::Occupied(mut in_flight) = shard.in_flight.entry(bucket) {
            *in_flight.get_mut() -= 1;
            if *in_flight.get() == 0 {
                in_flight.remove();
            }
        }
        if end == ChargeEnd::Counted {
            shard.add_failure(bucket, rate, now);
            drop(shard);
            (self.publish)(CredentialFailure { kind, bucket });
        }
    }

    fn shard(&self, bucket: BucketId) -> &Mutex<BucketShard> {
        &self.buckets.shards[bucket as usize % SHARDS]
    }
}

impl Attempt {
    /// The same attempt, for checking the password of this user.
    ///
    /// SECURITY: the case of the name does not matter, as it does not matter to some verifiers. Otherwise each spelling
    /// would have its own bucket.
    pub fn for_user(self, user: &UserName) -> Attempt {
        let address_bytes = self.address_bucket.to_be_bytes();
        let address = self.limiter.bucket_id(&[&[PASSWORD_FAILURES], &address_bytes]);
        let name = user.as_str().to_ascii_lowercase();
        let user = self.limiter.bucket_id(&[&[USER_FAILURES], &address_bytes, name.as_bytes()]);
        Attempt { address_bucket: address, user_bucket: Some(user), limiter: self.limiter }
    }

    /// Counts a new token of the client, unless it already has too many. Not for an attempt of [`Attempt::for_user`].
    ///
    /// SECURITY: without this limit, a client with the salt could fill the store with tokens of invented users.
    pub fn record_new_token(&self) -> Result<(), TooManyFailures> {
        let Some(rate) = self.limiter.token_rate else { return Ok(()) };
        let bucket = self.limiter.bucket_id(&[&[NEW_TOKENS], &self.address_bucket.to_be_bytes()]);
        let charged = ChargedBucket { kind: NEW_TOKENS, rate, bucket };
        self.limiter.charge(charged)?;
        self.limiter.end_check(charged, ChargeEnd::Counted);
        Ok(())
    }

    /// Charges one check. Fails, and charges nothing, if a bucket could become too full.
    pub fn reserve(&self) -> Result<Reservation, ChargeError> {
        let mut reserved = Charge { limiter: Arc::clone(&self.limiter), charged: [None; 2] };
        for (slot, bucket) in self.buckets().into_iter().enumerate() {
            let Some(bucket) = bucket else { continue };
            if let Err(error) = self.limiter.charge(bucket) {
                reserved.release(ChargeEnd::Refunded);
                // The end of a check in flight wakes all that wait. If this woke them too, they would wake each other
                // without end.
                if error != ChargeError::ChecksInFlight {
                    self.limiter.buckets.check_ended.notify_waiters();
                }
                return Err(error);
            }
            reserved.charged[slot] = Some(bucket);
        }
        Ok(Reservation(Some(reserved)))
    }

    /// As `reserve`, but waits while only checks in flight prevent it: they may be right. The caller limits the time.
    pub async fn reserve_after_others(&self) -> Result<Reservation, TooManyFailures> {
        loop {
            let mut check_ended = pin!(self.limiter.buckets.check_ended.notified());
            // Registered before the attempt, so that no check can end unnoticed in between.
            check_ended.as_mut().enable();
            match self.reserve() {
                Ok(reservation) => return Ok(reservation),
                Err(ChargeError::Failures(failures)) => return Err(failures),
                Err(ChargeError::ChecksInFlight) => check_ended.await,
            }
        }
    }

    /// Counts a failure, unless the limit is already reached; then the client must learn only that.
    pub fn record_failure(&self) -> Result<(), TooManyFailures> {
        let failed = self.reserve()?.start();
        drop(failed);
        Ok(())
    }

    fn buckets(&self) -> [Option<ChargedBucket>; 2] {
        let FailureLimiter { address_rate, user_rate, .. } = *self.limiter;
        let kind = if self.user_bucket.is_some() { PASSWORD_FAILURES } else { KEY_FAILURES };
        let address = address_rate.map(|rate| ChargedBucket { kind, rate, bucket: self.address_bucket });
        let user = user_rate.zip(self.user_bucket);
        [address, user.map(|(rate, bucket)| ChargedBucket { kind: USER_FAILURES, rate, bucket })]
    }
}

impl Reservation {
    /// Starts the check.
    pub fn start(mut self) -> Charge {
        self.0.take().expect("only this function and drop take it")
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.0.take().into_iter().for_each(Charge::refund);
    }
}

impl Charge {
    /// Ends a check that found the credential right.
    pub fn refund(mut self) {
        self.end(ChargeEnd::Refunded);
    }

    fn end(&mut self, end: ChargeEnd) {
        if self.release(end) {
            self.limiter.buckets.check_ended.notify_waiters();
        }
    }

    /// Returns whether anything was charged.
    fn release(&mut self, end: ChargeEnd) -> bool {
        let charged = self.charged.iter_mut().filter_map(Option::take);
        charged.map(|bucket| self.limiter.end_check(bucket, end)).count() > 0
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.end(ChargeEnd::Counted);
    }
}

/// Buckets in two generations: when the current generation is full it becomes the previous one, and the previous one is
/// dropped. So eviction takes constant time, and addresses that keep failing are not evicted.
#[derive(Default)]
struct BucketShard {
    current: HashMap<BucketId, Tick>,
    previous: HashMap<BucketId, Tick>,
    /// The number of checks in flight, which are not in the buckets. No entry is zero.
    in_flight: HashMap<BucketId, u32>,
}

impl BucketShard {
    /// The time until the bucket is empty.
    fn level(&self, bucket: BucketId, now: Tick) -> Duration {
        self.empty_at(bucket).map_or(Duration::ZERO, |empty| empty.since(now))
    }

    fn add_failure(&mut self, bucket: BucketId, rate: Rate, now: Tick) {
        // Failures that several replicas report at once do not overfill the bucket.
        let filled = rate.fill(self.level(bucket, now));
        self.set(bucket, now.after(filled));
    }

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

    /// The time in which a full bucket drains.
    const PERIOD: Duration = Duration::from_secs(60);

    fn limits(failures_per_address: u32, failures_per_user: u32, tokens_per_address: u32) -> LimitOptions {
        LimitOptions { failures_per_address, failures_per_user, tokens_per_address, ..LimitOptions::unlimited() }
    }

    fn limiter(per_address: u32, per_user: u32) -> (Arc<FailureLimiter>, Clock) {
        let clock = Clock::manual(0);
        let limits = limits(per_address, per_user, 3);
        (Arc::new(FailureLimiter::new(&limits, &[7; 32], Box::new(drop), clock.clone())), clock)
    }

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn user(name: &str) -> UserName {
        UserName::parse(name.as_bytes()).expect("a name")
    }

    /// The number of failures until the limit is reached.
    fn failures_until_limit(attempt: &Attempt) -> usize {
        (0..1000).take_while(|_| attempt.record_failure().is_ok()).count()
    }

    #[test]
    fn failures_are_limited_and_drain_within_a_minute() {
        let (limiter, clock) = limiter(10, 0);
        let attempt = limiter.begin_attempt(address("192.0.2.1"));
        assert_eq!(failures_until_limit(&attempt), 10);
        assert_eq!(attempt.record_failure(), Err(TooManyFailures(Duration::from_secs(6))));
        assert_eq!(
            attempt.record_failure(),
            Err(TooManyFailures(Duration::from_secs(6))),
            "a rejected attempt is not counted"
        );
        clock.advance(Duration::from_millis(5999));
        assert!(attempt.record_failure().is_err());
        clock.advance(Duration::from_millis(1));
        assert_eq!(failures_until_limit(&attempt), 1);
        clock.advance(PERIOD);
        assert_eq!(failures_until_limit(&attempt), 10);
    }

    #[test]
    fn new_limits_keep_the_counts() {
        let (limiter, _) = limiter(10, 0);
        assert_eq!(failures_until_limit(&limiter.begin_attempt(address("192.0.2.1"))), 10);
        let changed = Arc::new(limiter.with_limits(&limits(20, 0, 0), &[7; 32], Box::new(drop)));
        assert_eq!(failures_until_limit(&changed.begin_attempt(address("192.0.2.1"))), 0, "the bucket has not drained");
        assert_eq!(failures_until_limit(&changed.begin_attempt(address("192.0.2.2"))), 20);
    }

    #[test]
    fn users_and_addresses_have_separate_buckets() {
        let (limiter, _) = limiter(10, 3);
        let at = |text| limiter.begin_attempt(address(text));
        assert_eq!(failures_until_limit(&at("192.0.2.1").for_user(&user("alice"))), 3);
        assert_eq!(failures_until_limit(&at("192.0.2.1").for_user(&user("ALICE"))), 0, "a spelling of the same name");
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
    fn new_tokens_have_a_bucket_of_their_own() {
        let (limiter, clock) = limiter(10, 3);
        let new_tokens = |text| {
            let attempt = limiter.begin_attempt(address(text));
            (0..1000).take_while(|_| attempt.record_new_token().is_ok()).count()
        };
        assert_eq!((new_tokens("192.0.2.1"), new_tokens("192.0.2.1"), new_tokens("192.0.2.2")), (3, 0, 3));
        assert_eq!(failures_until_limit(&limiter.begin_attempt(address("192.0.2.1"))), 10);
        clock.advance(PERIOD / 3);
        assert_eq!(new_tokens("192.0.2.1"), 1);
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
        let limiter = Arc::new(FailureLimiter::new(&limits(10, 3, 2), &[7; 32], publish, Clock::manual(0)));
        let at = |limiter: &Arc<FailureLimiter>| limiter.begin_attempt(address("192.0.2.1"));
        assert_eq!(failures_until_limit(&at(&limiter).for_user(&user("alice"))), 3);
        assert_eq!(failures_until_limit(&at(&limiter)), 10);
        assert_eq!(failures_until_limit(&at(&other).for_user(&user("alice"))), 0);
        assert_eq!(failures_until_limit(&at(&other)), 0);
        assert_eq!(failures_until_limit(&at(&other).for_user(&user("bob"))), 3);
        assert_eq!(failures_until_limit(&other.begin_attempt(address("192.0.2.2"))), 10);
        let new_tokens = |attempt: &Attempt| (0..9).take_while(|_| attempt.record_new_token().is_ok()).count();
        assert_eq!((new_tokens(&at(&limiter)), new_tokens(&at(&other))), (2, 1), "the other one allows 3");
    }

    #[test]
    fn a_limit_of_zero_disables_counting() {
        let (limiter, _) = limiter(0, 0);
        let attempt = limiter.begin_attempt(address("192.0.2.1")).for_user(&user("alice"));
        assert_eq!(failures_until_limit(&attempt), 1000);
        assert!(limiter.buckets.shards.iter().all(|shard| shard.lock().current.is_empty()));
    }

    #[test]
    fn checks_in_flight_count_until_they_are_refunded() {
        let (limiter, _) = limiter(10, 3);
        let alice = limiter.begin_attempt(address("192.0.2.1")).for_user(&user("alice"));
        let start = || alice.reserve().map(Reservation::start);
        let [first, second, third] = [(); 3].map(|()| start().expect("within the limit"));
        assert_eq!(start().map(drop), Err(ChargeError::ChecksInFlight));
        first.refund();
        let fourth = start().expect("a refund makes room");
        drop(second);
        assert_eq!(start().map(drop), Err(ChargeError::ChecksInFlight), "two may still be right");
        third.refund();
        fourth.refund();
        drop(alice.reserve().expect("one has failed"));
        assert_eq!(failures_until_limit(&alice), 2, "a check that did not start is not a failure");
        assert!(matches!(start().map(drop), Err(ChargeError::Failures(_))));
        let bob = limiter.begin_attempt(address("192.0.2.1")).for_user(&user("bob"));
        assert_eq!(failures_until_limit(&bob), 3, "a rejected charge leaves nothing in the other bucket");
        assert!(limiter.buckets.shards.iter().all(|shard| shard.lock().in_flight.is_empty()));
    }

    #[tokio::test]
    async fn an_attempt_waits_for_checks_in_flight() {
        let (limiter, _) = limiter(1, 0);
        let attempt = limiter.begin_attempt(address("192.0.2.1"));
        for (is_right, expected) in [(true, true), (false, false)] {
            let charge = attempt.reserve().expect("an empty bucket").start();
            let (waiting, ()) = tokio::join!(attempt.reserve_after_others(), async {
                tokio::task::yield_now().await;
                if is_right { charge.refund() } else { drop(charge) }
            });
            assert_eq!(waiting.is_ok(), expected);
        }
    }

    #[test]
    fn failures_that_several_replicas_admitted_at_once_drain_before_the_next() {
        let (limiter, clock) = limiter(10, 0);
        let attempt = limiter.begin_attempt(address("192.0.2.1"));
        let failure = CredentialFailure { kind: KEY_FAILURES, bucket: attempt.address_bucket };
        let report = |count| (0..count).for_each(|_| limiter.count_remote_failure(failure));
        assert_eq!(failures_until_limit(&attempt), 10);
        report(20);
        assert_eq!(attempt.record_failure(), Err(TooManyFailures(2 * PERIOD + PERIOD / 10)), "three replicas");
        clock.advance(2 * PERIOD);
        assert!(attempt.record_failure().is_err());
        clock.advance(PERIOD / 10);
        assert_eq!(failures_until_limit(&attempt), 1);
        report(1000);
        assert_eq!(attempt.record_failure(), Err(TooManyFailures(9 * PERIOD + PERIOD / 10)), "at most ten");
        clock.advance(10 * PERIOD);
        assert_eq!(failures_until_limit(&attempt), 10);
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
            limiter.buckets.shards.iter().map(len).sum()
        };
        for number in 0..500_000_u32 {
            let _ = limiter.begin_attempt(IpAddr::from(number.to_be_bytes())).record_failure();
            if number % 50_000 == 0 {
                let failure = CredentialFailure { kind: KEY_FAILURES, bucket: busy.address_bucket };
                limiter.count_remote_failure(failure);
            }
        }
        assert!(bucket_count() <= 2 * SHARDS * MAX_BUCKETS_PER_GENERATION, "{}", bucket_count());
        assert!(busy.record_failure().is_err());
        // It is overfull by the ten failures that were reported.
        clock.advance(2 * PERIOD);
        limiter.sweep();
        assert_eq!(bucket_count(), 0);
    }
}
