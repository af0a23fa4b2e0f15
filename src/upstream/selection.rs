//! The rule by which an endpoint is chosen among candidates. It knows nothing about workers, connections or requests.

use std::hash::{DefaultHasher, Hash, Hasher};

use crate::upstream::endpoint::{Endpoint, EndpointState};
use crate::upstream::origin::EndpointAddress;

/// An endpoint that can be chosen.
pub trait Candidate {
    fn endpoint(&self) -> &Endpoint;

    /// The number of requests in flight, as the chooser counts them.
    fn in_flight(&self) -> u64;

    /// Returns whether a request may be sent there. While probing, one at a time.
    fn is_available(&self) -> bool {
        match self.endpoint().state() {
            EndpointState::Healthy => true,
            EndpointState::Probing => self.in_flight() == 0,
            EndpointState::Ejected => false,
        }
    }
}

/// Chooses among the allowed candidates with room.
///
/// Power of two choices: of two random endpoints, the one with fewer requests in flight. With `affinity`, the available
/// endpoint that belongs to this hash, and if that has no room, `None`. So an ejected endpoint gets a probing request
/// even if all requests have an affinity.
///
/// If no endpoint is available, a probing one that already has a request is used, and at last an ejected one: it may have
/// recovered, and rejecting the request would not help. Full endpoints are not replaced by ejected ones.
pub fn select<T: Candidate>(
    all: &[T],
    affinity: Option<u64>,
    is_allowed: impl Fn(&T) -> bool,
    has_room: impl Fn(&T) -> bool,
) -> Option<&T> {
    if let [only] = all {
        return (is_allowed(only) && has_room(only)).then_some(only);
    }
    let has_state = |candidate: &T, state| candidate.endpoint().state() == state && is_allowed(candidate);
    if let Some(affinity) = affinity {
        let available = all.iter().filter(|candidate| candidate.is_available() && is_allowed(candidate));
        let weight = |candidate: &&T| rendezvous_weight(affinity, &candidate.endpoint().address);
        if let Some(target) = available.max_by_key(weight) {
            return has_room(target).then_some(target);
        }
    }
    let tiers: [&dyn Fn(&T) -> bool; 3] = [
        &|candidate| candidate.is_available() && is_allowed(candidate),
        &|candidate| has_state(candidate, EndpointState::Probing),
        &is_allowed,
    ];
    for tier in tiers {
        if let Some(target) = less_loaded_of_two(all, |candidate| tier(candidate) && has_room(candidate)) {
            return Some(target);
        }
        if all.iter().any(tier) {
            return None;
        }
    }
    None
}

/// Rendezvous hashing: of all endpoints, the one with the highest weight belongs to a hash. When an endpoint appears or
/// disappears, only the hashes that belong to it change their endpoint.
fn rendezvous_weight(affinity: u64, address: &EndpointAddress) -> u64 {
    // Without random keys, so that all workers and replicas agree.
    let mut hasher = DefaultHasher::new();
    match address {
        EndpointAddress::Tcp(address) => (affinity, address).hash(&mut hasher),
        EndpointAddress::Unix(path) => (affinity, path).hash(&mut hasher),
    }
    hasher.finish()
}

fn less_loaded_of_two<T: Candidate>(all: &[T], is_candidate: impl Fn(&T) -> bool) -> Option<&T> {
    let count = all.iter().filter(|candidate| is_candidate(candidate)).count();
    let nth = |n: usize| all.iter().filter(|candidate| is_candidate(candidate)).nth(n);
    match count {
        0 => None,
        1 => nth(0),
        _ => {
            let first = fastrand::usize(..count);
            let second = (first + fastrand::usize(1..count)) % count;
            let (first, second) = (nth(first)?, nth(second)?);
            Some(if second.in_flight() < first.in_flight() { second } else { first })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_hashes_of_a_removed_endpoint_move() {
        let addresses: Vec<_> = (1..=4).map(|host| EndpointAddress::Tcp(([10, 0, 0, host], 8000).into())).collect();
        let chosen = |affinity: u64, among: &[EndpointAddress]| {
            among.iter().max_by_key(|address| rendezvous_weight(affinity, address)).expect("not empty").clone()
        };
        for affinity in 0..400 {
            let (before, after) = (chosen(affinity, &addresses), chosen(affinity, &addresses[1..]));
            assert!(before == after || before == addresses[0], "{affinity}");
        }
        for address in &addresses {
            let share = (0..400).filter(|affinity| chosen(*affinity, &addresses) == *address).count();
            assert!((60..140).contains(&share), "{share} of 400 for {address}");
        }
    }
}
