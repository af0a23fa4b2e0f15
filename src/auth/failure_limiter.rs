//! How often an address may be wrong about credentials.
//!
//! Three kinds of buckets: an address's wrong keys and bearers, an address's wrong passwords, and its wrong passwords for
//! one user. `limits.failures_per_address` failures fit in the former two, `limits.failures_per_user` in the last, and so
//! many run out again in a minute. Looking whether there is room and putting something in are two steps, as only a failure
//! is put in, and a key or bearer that is right never meets a bucket.
//!
//! SECURITY: there is no bucket for a user alone: anybody could fill it and so keep that user out. Passwords have buckets of
//! their own because only who holds the salt can try one: else any stranger could keep all users of an address that many
//! share, such as a balancer's, from logging in.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::hmac::{HMAC_SHA256, Key, sign};
use aws_lc_rs::rand;
use parking_lot::Mutex;

use crate::admission::network;
use crate::base::clock::{Clock, Tick};
use crate::base::user_name::UserName;
use crate::config::FailureLimits;
use crate::store::Failure;

/// So long a full bucket takes to run empty.
const PERIOD: Duration = Duration::from_secs(60);

/// Maps of buckets that are locked one by one.
const SHARDS: usize = 16;

/// Most buckets of a shard's generation. With two generations this bounds the memory to some 10 MB, whatever strangers do.
const MOST_OF_A_GENERATION: usize = 10_000;

/// All buckets of a process.
pub struct Guesses {
    address: Option<Rate>,
    user: Option<Rate>,
    shards: Arc<[Mutex<Shard>; SHARDS]>,
    names: Key,
    tell: Tell,
    clock: Clock,
}

/// Tells other replicas of a failure.
pub type Tell = Box<dyn Fn(Failure) + Send + Sync>;

/// Too many failures; another try has a chance after so long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooMany(pub Duration);

/// One client's try, for as long as it lasts.
#[derive(Clone)]
pub struct Attempt {
    guesses: Arc<Guesses>,
    address: Bucket,
    user: Option<Bucket>,
}

/// A bucket's name: a keyed hash of what it is for, so that nobody can choose one that is another's too, and the same at
/// every replica.
type Bucket = u64;

/// What a bucket counts: wrong keys and bearers of an address, its wrong passwords, or those for one user.
const KEYS: u8 = 0;
const PASSWORDS: u8 = 1;
const USER: u8 = 2;

impl Guesses {
    /// Nobody has failed yet, and nobody is told.
    pub fn new(limits: FailureLimits, clock: Clock) -> Guesses {
        let mut key = [0; 32];
        rand::fill(&mut key).expect("the system's random source works");
        Guesses::shared(limits, &key, Box::new(drop), clock)
    }

    /// The same where replicas tell each other. `key` makes the buckets' names; `tell` hears of each failure.
    pub fn shared(limits: FailureLimits, key: &[u8; 32], tell: Tell, clock: Clock) -> Guesses {
        Guesses {
            address: Rate::of(limits.per_address),
            user: Rate::of(limits.per_user),
            shards: Arc::new(std::array::from_fn(|_| Mutex::default())),
            names: Key::new(HMAC_SHA256, key),
            tell,
            clock,
        }
    }

    /// The same buckets by other limits. Another `key` gives them other names, so that nobody's failures are found any
    /// more.
    pub fn anew(&self, limits: FailureLimits, key: &[u8; 32], tell: Tell) -> Guesses {
        let shards = Arc::clone(&self.shards);
        Guesses { shards, ..Guesses::shared(limits, key, tell, self.clock.clone()) }
    }

    /// A try of the client at this address.
    pub fn attempt(self: &Arc<Guesses>, address: IpAddr) -> Attempt {
        let (version, network) = network(address);
        let address = self.bucket(&[&[KEYS, version], &network.to_be_bytes()]);
        Attempt { guesses: Arc::clone(self), address, user: None }
    }

    /// Counts a failure that another replica saw.
    pub fn heard(&self, failure: Failure) {
        match failure.kind {
            KEYS | PASSWORDS => self.fill(self.address, failure.bucket),
            USER => self.fill(self.user, failure.bucket),
            // A newer version's; it counts them itself.
            _ => {}
        }
    }

    fn bucket(&self, parts: &[&[u8]]) -> Bucket {
        let tag = sign(&self.names, &parts.concat());
        u64::from_be_bytes(*tag.as_ref().first_chunk().expect("SHA-256 has 32 bytes"))
    }

    fn failed(&self, kind: u8, rate: Option<Rate>, bucket: Bucket) {
        if rate.is_some() {
            self.fill(rate, bucket);
            (self.tell)(Failure { kind, bucket });
        }
    }

    /// Forgets buckets that have run empty. Called now and then.
    pub fn sweep(&self) {
        let now = self.clock.now();
        for shard in &*self.shards {
            let mut shard = shard.lock();
            shard.young.retain(|_, empty| *empty > now);
            shard.old.retain(|_, empty| *empty > now);
        }
    }

    fn look(&self, rate: Option<Rate>, bucket: Bucket) -> Result<(), TooMany> {
        let Some(rate) = rate else { return Ok(()) };
        let now = self.clock.now();
        let empty = self.shard(bucket).lock().empty(bucket);
        rate.look(empty, now)
    }

    fn fill(&self, rate: Option<Rate>, bucket: Bucket) {
        let Some(rate) = rate else { return };
        let now = self.clock.now();
        let mut shard = self.shard(bucket).lock();
        let empty = rate.fill(shard.empty(bucket), now);
        shard.set(bucket, empty);
    }

    fn shard(&self, bucket: Bucket) -> &Mutex<Shard> {
        &self.shards[bucket as usize % SHARDS]
    }
}

impl Attempt {
    /// The same try, now that it names a user, whose password is to be checked.
    pub fn of(self, user: &UserName) -> Attempt {
        let at = self.address.to_be_bytes();
        let address = self.guesses.bucket(&[&[PASSWORDS], &at]);
        let user = self.guesses.bucket(&[&[USER], &at, user.as_str().as_bytes()]);
        Attempt { address, user: Some(user), guesses: self.guesses }
    }

    /// Whether the client may be wrong once more. This costs it nothing.
    pub fn look(&self) -> Result<(), TooMany> {
        let guesses = &self.guesses;
        let of_user = self.user.map_or(Ok(()), |user| guesses.look(guesses.user, user));
        guesses.look(guesses.address, self.address).and(of_user)
    }

    /// Notes that the client was wrong.
    pub fn failed(&self) {
        let guesses = &self.guesses;
        let kind = if self.user.is_some() { PASSWORDS } else { KEYS };
        guesses.failed(kind, guesses.address, self.address);
        if let Some(user) = self.user {
            guesses.failed(USER, guesses.user, user);
        }
    }

    /// Notes that the client was wrong, unless that was once too often: then it learns nothing else.
    pub fn fail(&self) -> Result<(), TooMany> {
        self.look()?;
        self.failed();
        Ok(())
    }
}

/// The generic cell rate algorithm: a bucket is the moment at which it will be empty.
#[derive(Clone, Copy, Debug)]
struct Rate {
    /// So long one failure takes to run out.
    each: Duration,
}

impl Rate {
    /// `None` for no limit.
    fn of(a_minute: u32) -> Option<Rate> {
        (a_minute > 0).then(|| Rate { each: (PERIOD / a_minute).max(Duration::from_millis(1)) })
    }

    fn look(self, empty: Option<Tick>, now: Tick) -> Result<(), TooMany> {
        let full_with_one_more = empty.map_or(Duration::ZERO, |empty| empty.since(now)) + self.each;
        match full_with_one_more.checked_sub(PERIOD) {
            None | Some(Duration::ZERO) => Ok(()),
            Some(wait) => Err(TooMany(wait)),
        }
    }

    fn fill(self, empty: Option<Tick>, now: Tick) -> Tick {
        let filled = empty.map_or(now, |empty| empty.max(now)).after(self.each);
        // Failures that were under way together may overfill it, but not for long.
        filled.min(now.after(PERIOD))
    }
}

/// Buckets of two generations: when the young one is large enough it becomes the old one, and the old one is
/// forgotten. So making room costs nothing, and who fails again and again is not forgotten.
#[derive(Default)]
struct Shard {
    young: HashMap<Bucket, Tick>,
    old: HashMap<Bucket, Tick>,
}

impl Shard {
    fn empty(&self, bucket: Bucket) -> Option<Tick> {
        self.young.get(&bucket).or_else(|| self.old.get(&bucket)).copied()
    }

    fn set(&mut self, bucket: Bucket, empty: Tick) {
        if self.young.len() >= MOST_OF_A_GENERATION && !self.young.contains_key(&bucket) {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(bucket, empty);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guesses(per_address: u32, per_user: u32) -> (Arc<Guesses>, Clock) {
        let clock = Clock::manual(0);
        (
            Arc::new(Guesses::shared(
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

    /// How often one may fail until it is too often.
    fn room(attempt: &Attempt) -> usize {
        (0..1000).take_while(|_| attempt.fail().is_ok()).count()
    }

    #[test]
    fn so_many_failures_fit_in_and_run_out_within_a_minute() {
        let (guesses, clock) = guesses(10, 0);
        let attempt = guesses.attempt(address("192.0.2.1"));
        assert_eq!(room(&attempt), 10);
        assert_eq!(attempt.look(), Err(TooMany(Duration::from_secs(6))));
        assert_eq!(attempt.look(), Err(TooMany(Duration::from_secs(6))), "a look and a refusal cost nothing");
        clock.advance(Duration::from_millis(5999));
        assert!(attempt.look().is_err());
        clock.advance(Duration::from_millis(1));
        assert_eq!(room(&attempt), 1);
        clock.advance(PERIOD);
        assert_eq!(room(&attempt), 10);
    }

    #[test]
    fn failures_outlive_other_limits() {
        let (guesses, _) = guesses(10, 0);
        assert_eq!(room(&guesses.attempt(address("192.0.2.1"))), 10);
        let limits = FailureLimits { per_address: 20, per_user: 0 };
        let anew = Arc::new(guesses.anew(limits, &[7; 32], Box::new(drop)));
        assert_eq!(room(&anew.attempt(address("192.0.2.1"))), 0, "the minute is not over");
        assert_eq!(room(&anew.attempt(address("192.0.2.2"))), 20);
    }

    #[test]
    fn others_are_not_concerned() {
        let (guesses, _) = guesses(10, 3);
        let at = |text| guesses.attempt(address(text));
        assert_eq!(room(&at("192.0.2.1").of(&user("alice"))), 3);
        assert_eq!(room(&at("192.0.2.1").of(&user("bob"))), 3);
        assert_eq!(room(&at("192.0.2.2").of(&user("alice"))), 3, "the name alone locks nobody out");
        assert_eq!(room(&at("192.0.2.1").of(&user("carol"))), 3);
        assert_eq!(room(&at("192.0.2.1").of(&user("dave"))), 1, "the address has a bucket too");
        assert_eq!(room(&at("192.0.2.1")), 10, "and another one for what strangers can try");
        assert_eq!(room(&at("192.0.2.3")), 10);
    }

    #[test]
    fn a_network_of_ipv6_is_one_client() {
        let (guesses, _) = guesses(10, 0);
        assert_eq!(room(&guesses.attempt(address("2001:db8::1"))), 10);
        assert_eq!(room(&guesses.attempt(address("2001:db8:0:0:ffff:ffff:ffff:ffff"))), 0);
        assert_eq!(room(&guesses.attempt(address("2001:db8:0:1::1"))), 10);
    }

    #[test]
    fn what_one_replica_tells_another_counts() {
        let (other, _) = guesses(10, 3);
        let tell = {
            let other = Arc::clone(&other);
            Box::new(move |failure| other.heard(failure))
        };
        let limits = FailureLimits { per_address: 10, per_user: 3 };
        let here = Arc::new(Guesses::shared(limits, &[7; 32], tell, Clock::manual(0)));
        let at = |guesses: &Arc<Guesses>| guesses.attempt(address("192.0.2.1"));
        assert_eq!(room(&at(&here).of(&user("alice"))), 3);
        assert_eq!(room(&at(&here)), 10);
        assert_eq!(room(&at(&other).of(&user("alice"))), 0);
        assert_eq!(room(&at(&other)), 0);
        assert_eq!(room(&at(&other).of(&user("bob"))), 3);
        assert_eq!(room(&other.attempt(address("192.0.2.2"))), 10);
    }

    #[test]
    fn nothing_is_counted_where_that_is_configured() {
        let (guesses, _) = guesses(0, 0);
        let attempt = guesses.attempt(address("192.0.2.1")).of(&user("alice"));
        assert_eq!(room(&attempt), 1000);
        assert!(guesses.shards.iter().all(|shard| shard.lock().young.is_empty()));
    }

    #[test]
    fn failures_that_were_under_way_together_do_not_fill_it_for_long() {
        let (guesses, clock) = guesses(10, 0);
        let attempt = guesses.attempt(address("192.0.2.1"));
        (0..100).for_each(|_| attempt.failed());
        clock.advance(PERIOD / 10);
        assert!(attempt.look().is_ok());
    }

    #[test]
    fn memory_is_bounded_and_who_goes_on_is_not_forgotten() {
        let (guesses, clock) = guesses(10, 0);
        let busy = guesses.attempt(address("192.0.2.1"));
        assert_eq!(room(&busy), 10);
        let kept = || -> usize {
            let of = |shard: &Mutex<Shard>| {
                let shard = shard.lock();
                shard.young.len() + shard.old.len()
            };
            guesses.shards.iter().map(of).sum()
        };
        for number in 0..500_000_u32 {
            guesses.attempt(IpAddr::from(number.to_be_bytes())).failed();
            if number % 50_000 == 0 {
                busy.failed();
            }
        }
        assert!(kept() <= 2 * SHARDS * MOST_OF_A_GENERATION, "{}", kept());
        assert!(busy.look().is_err());
        clock.advance(PERIOD);
        guesses.sweep();
        assert_eq!(kept(), 0);
    }
}
