//! Who sends requests: counts by user and by client address since they were last taken, in bounded memory. Each worker
//! has its own; it knows nothing about why a request was rejected.
//!
//! A table has sets of eight slots, and a name belongs to one set. When a set is full, the name with the fewest requests
//! loses its slot. So counts are lower bounds, and a caller with many requests stays.

use std::net::{IpAddr, Ipv6Addr};

use crate::base::user_name::UserName;
use crate::observability::metrics::RequestOutcome;

const SETS: usize = 32;
const WAYS: usize = 8;

/// What is counted for one name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CallerTally {
    /// All requests.
    pub requests: u64,
    /// Requests that the gateway rejected, or whose client left.
    pub rejected: u64,
    /// Requests that failed at the gateway or the backend.
    pub failed: u64,
    /// The reason of the last rejection; empty without one.
    pub reason: &'static str,
}

impl CallerTally {
    /// Counts one request. `reason` is empty if the backend's response was passed on.
    pub fn record(&mut self, status: u16, reason: &'static str) {
        self.count(RequestOutcome::new(status >= 500, reason), 1);
        if !reason.is_empty() {
            self.reason = reason;
        }
    }

    /// Adds requests with this outcome.
    pub fn count(&mut self, outcome: RequestOutcome, requests: u64) {
        self.requests += requests;
        match outcome {
            RequestOutcome::Answered => {}
            RequestOutcome::Rejected => self.rejected += requests,
            RequestOutcome::Failed => self.failed += requests,
        }
    }

    /// Adds later counts.
    pub fn add(&mut self, later: &CallerTally) {
        self.requests += later.requests;
        self.rejected += later.rejected;
        self.failed += later.failed;
        if !later.reason.is_empty() {
            self.reason = later.reason;
        }
    }
}

/// The counts of one worker.
#[derive(Debug, Default)]
pub struct CallerCounts {
    users: CallerTable<UserName>,
    addresses: CallerTable<IpAddr>,
}

/// The counts of all workers since they were last taken. A name may occur several times.
#[derive(Debug, Default)]
pub struct TakenCallers {
    /// By user.
    pub users: Vec<(UserName, CallerTally)>,
    /// By address; those of IPv6 are networks of 64 bits.
    pub addresses: Vec<(IpAddr, CallerTally)>,
}

impl CallerCounts {
    /// Counts a request whose response has ended.
    pub fn record(&mut self, user: Option<&UserName>, address: IpAddr, status: u16, reason: &'static str) {
        if let Some(user) = user {
            self.users.tally(hash_name(user.as_str().as_bytes()), || user.clone()).record(status, reason);
        }
        let network = client_network(address);
        self.addresses.tally(hash_address(network), || network).record(status, reason);
    }

    /// Moves all counts to `taken`.
    pub fn take_to(&mut self, taken: &mut TakenCallers) {
        self.users.take_to(&mut taken.users);
        self.addresses.take_to(&mut taken.addresses);
    }
}

#[derive(Debug)]
struct CallerTable<N> {
    /// Apart from the names, so that a search reads one cache line. Zero: the slot is empty.
    hashes: Box<[[u64; WAYS]; SETS]>,
    slots: Vec<Option<(N, CallerTally)>>,
}

impl<N> Default for CallerTable<N> {
    fn default() -> CallerTable<N> {
        CallerTable {
            hashes: Box::new([[0; WAYS]; SETS]),
            slots: std::iter::repeat_with(|| None).take(SETS * WAYS).collect(),
        }
    }
}

impl<N> CallerTable<N> {
    fn tally(&mut self, hash: u64, name: impl FnOnce() -> N) -> &mut CallerTally {
        let hash = hash | 1;
        // The high bits, as those of a product are mixed best.
        let set = (hash >> 59) as usize % SETS;
        let way = match self.hashes[set].iter().position(|known| *known == hash) {
            Some(way) => way,
            None => self.replace(set, hash),
        };
        let slot = &mut self.slots[set * WAYS + way];
        &mut slot.get_or_insert_with(|| (name(), CallerTally::default())).1
    }

    #[cold]
    fn replace(&mut self, set: usize, hash: u64) -> usize {
        let requests = |way: &usize| self.slots[set * WAYS + way].as_ref().map_or(0, |(_, tally)| tally.requests);
        let way = (0..WAYS).min_by_key(requests).expect("a set has slots");
        self.hashes[set][way] = hash;
        self.slots[set * WAYS + way] = None;
        way
    }

    fn take_to(&mut self, taken: &mut Vec<(N, CallerTally)>) {
        taken.extend(self.slots.iter_mut().filter_map(Option::take));
        self.hashes.fill([0; WAYS]);
    }
}

/// The unit in which addresses are counted, as in the limits: an IPv4 address or an IPv6 network of 64 bits.
fn client_network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
    }
}

/// An odd number with random bits.
const MIX: u64 = 0x9e37_79b9_7f4a_7c15;

fn hash_address(network: IpAddr) -> u64 {
    match network {
        IpAddr::V4(address) => u64::from(address.to_bits()).wrapping_mul(MIX),
        IpAddr::V6(address) => ((address.to_bits() >> 64) as u64 ^ MIX).wrapping_mul(MIX),
    }
}

/// Names with the same hash share their counts, under the name of the first one. A client that makes such names
/// is shown with the sum of their requests.
fn hash_name(name: &[u8]) -> u64 {
    let (chunks, rest) = name.as_chunks::<8>();
    let mix = |hash: u64, word: u64| (hash.rotate_left(23) ^ word).wrapping_mul(MIX);
    let hash = chunks.iter().fold(name.len() as u64, |hash, chunk| mix(hash, u64::from_le_bytes(*chunk)));
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    mix(hash, u64::from_le_bytes(last))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(name: &str) -> UserName {
        UserName::parse(name.as_bytes()).expect("valid")
    }

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn users_and_networks_are_counted_until_they_are_taken() {
        let mut counts = CallerCounts::default();
        let alice = user("alice");
        counts.record(Some(&alice), address("192.0.2.1"), 200, "");
        counts.record(Some(&alice), address("192.0.2.1"), 429, "rate_limited");
        counts.record(Some(&alice), address("2001:db8::1"), 503, "queue_full");
        counts.record(None, address("2001:db8::2"), 401, "api_key_unknown");
        let mut taken = TakenCallers::default();
        counts.take_to(&mut taken);
        let tally = CallerTally { requests: 3, rejected: 1, failed: 1, reason: "queue_full" };
        assert_eq!(taken.users, [(alice, tally)]);
        taken.addresses.sort_by_key(|(address, _)| *address);
        let of_v4 = CallerTally { requests: 2, rejected: 1, failed: 0, reason: "rate_limited" };
        let of_v6 = CallerTally { requests: 2, rejected: 1, failed: 1, reason: "api_key_unknown" };
        assert_eq!(taken.addresses, [(address("192.0.2.1"), of_v4), (address("2001:db8::"), of_v6)]);
        let mut again = TakenCallers::default();
        counts.take_to(&mut again);
        assert!(again.users.is_empty() && again.addresses.is_empty());
    }

    #[test]
    fn memory_is_bounded_and_the_busiest_stay() {
        let mut counts = CallerCounts::default();
        let busy = [user("busy-with-a-long-name"), user("busy")];
        for number in 0..20_000_u32 {
            let other = user(&format!("user-{number}"));
            counts.record(Some(&other), IpAddr::from(number.to_be_bytes()), 200, "");
            if number % 50 == 0 {
                busy.iter().for_each(|busy| counts.record(Some(busy), address("192.0.2.1"), 200, ""));
                busy.iter().for_each(|busy| counts.record(Some(busy), address("192.0.2.1"), 200, ""));
            }
        }
        let mut taken = TakenCallers::default();
        counts.take_to(&mut taken);
        assert!(taken.users.len() <= SETS * WAYS && taken.addresses.len() <= SETS * WAYS);
        let requests = |name: &UserName| taken.users.iter().find(|(user, _)| user == name).map(|(_, all)| all.requests);
        for name in &busy {
            assert!(requests(name).is_some_and(|count| count > 700), "{:?}", requests(name));
        }
        let busiest = taken.addresses.iter().max_by_key(|(_, tally)| tally.requests).expect("some");
        assert_eq!(busiest.0, address("192.0.2.1"));
    }
}
