//! How much may go on at once: connections and requests, altogether and of one client.
//!
//! Shared by all workers. Places are given back when dropped, so nothing is counted twice or forgotten.

mod fair_queue;

use std::hash::{BuildHasher, Hash, RandomState};
use std::net::IpAddr;
use std::sync::Arc;

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;

use crate::base::identity_hasher::IdentityHasher;
use crate::config::LimitOptions;
use crate::observability::metrics::{CloseCause, Metrics};

pub use fair_queue::QueueError;
use fair_queue::{FairQueue, Slot};

/// The counts and their limits.
#[derive(Debug)]
pub struct Admission {
    limits: LimitOptions,
    metrics: Arc<Metrics>,
    connections: Arc<KeyedCounts>,
    requests: Arc<KeyedCounts>,
    /// What goes to the backends at once, if that is limited.
    fair_queue: Option<Arc<FairQueue>>,
}

/// A request too many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitExceeded {
    /// Of everybody together.
    Total,
    /// Of this caller.
    Caller,
}

impl Admission {
    /// Nothing goes on.
    pub fn new(limits: LimitOptions, metrics: Arc<Metrics>) -> Admission {
        let fair_queue = limits.queue.map(|limits| FairQueue::new(limits, Arc::clone(&metrics)));
        Admission { limits, metrics, connections: Arc::default(), requests: Arc::default(), fair_queue }
    }

    /// The same counts by other limits. Turns by other limits begin anew: what is at the backends already is not counted
    /// among them.
    pub fn with_limits(&self, limits: LimitOptions) -> Admission {
        let turns = if limits.queue == self.limits.queue {
            self.fair_queue.clone()
        } else {
            limits.queue.map(|limits| FairQueue::new(limits, Arc::clone(&self.metrics)))
        };
        Admission {
            limits,
            metrics: Arc::clone(&self.metrics),
            connections: Arc::clone(&self.connections),
            requests: Arc::clone(&self.requests),
            fair_queue: turns,
        }
    }

    /// What is counted.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// A place for a connection; `is_shared` says that many clients come from this address, as from a proxy's. `None`:
    /// there is none left, and that was counted.
    pub fn admit_connection(
        self: &Arc<Admission>,
        address: IpAddr,
        is_shared: bool,
    ) -> Option<ConnectionPermit> {
        let network = (!is_shared).then(|| self.connections.hash_key(&network(address)));
        if let Some(network) = network
            && !self.connections.try_increment(network, self.limits.connections_per_address)
        {
            self.metrics.record_connection_end(CloseCause::AddressLimit);
            return None;
        }
        let place = ConnectionPermit { admission: Arc::clone(self), network };
        let before = self.metrics.connections.inc();
        if usize::try_from(before).is_ok_and(|before| before >= self.limits.connections) {
            self.metrics.record_connection_end(CloseCause::ConnectionsLimit);
            return None;
        }
        Some(place)
    }

    /// A place for a request.
    pub fn admit_request(self: &Arc<Admission>) -> Result<RequestPermit, LimitExceeded> {
        let place = RequestPermit { admission: Arc::clone(self), caller: None, slot: None };
        let before = self.metrics.requests_in_flight.inc();
        if usize::try_from(before).is_ok_and(|before| before >= self.limits.requests) {
            return Err(LimitExceeded::Total);
        }
        Ok(place)
    }
}

/// A connection's place.
#[derive(Debug)]
pub struct ConnectionPermit {
    admission: Arc<Admission>,
    network: Option<u64>,
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        if let Some(network) = self.network {
            self.admission.connections.decrement(network);
        }
        self.admission.metrics.connections.dec();
    }
}

/// A request's place.
#[derive(Debug)]
pub struct RequestPermit {
    admission: Arc<Admission>,
    caller: Option<u64>,
    slot: Option<Slot>,
}

impl RequestPermit {
    /// Counts the request as the caller's, who is known now.
    pub fn count_for(&mut self, caller: &impl Hash) -> Result<(), LimitExceeded> {
        let counts = &self.admission.requests;
        let caller = counts.hash_key(caller);
        if !counts.try_increment(caller, self.admission.limits.requests_per_identity) {
            return Err(LimitExceeded::Caller);
        }
        self.caller = Some(caller);
        Ok(())
    }

    /// Waits until the request may be sent to the backend, in the queue of its caller.
    pub async fn wait_for_slot(&mut self) -> Result<(), QueueError> {
        let Some(turns) = &self.admission.fair_queue else { return Ok(()) };
        self.slot = turns.try_slot();
        if self.slot.is_none() {
            // Boxed, as it is rare and every request would need as much memory.
            self.slot = Some(Box::pin(turns.wait_for_slot(self.caller.unwrap_or_default())).await?);
        }
        Ok(())
    }
}

impl Drop for RequestPermit {
    fn drop(&mut self) {
        if let Some(caller) = self.caller {
            self.admission.requests.decrement(caller);
        }
        self.admission.metrics.requests_in_flight.dec();
    }
}

/// The addresses that one client has at its disposal: of IPv6 a whole /64.
pub fn network(address: IpAddr) -> (u8, u64) {
    match address.to_canonical() {
        IpAddr::V4(address) => (4, u64::from(address.to_bits())),
        IpAddr::V6(address) => (6, (address.to_bits() >> 64) as u64),
    }
}

/// How many there are of each. Keys are hashes under a secret of the process, so that nobody can choose whose count
/// his own falls together with.
#[derive(Debug, Default)]
struct KeyedCounts {
    hasher: RandomState,
    counts: DashMap<u64, usize, IdentityHasher>,
}

impl KeyedCounts {
    fn hash_key(&self, of: &impl Hash) -> u64 {
        self.hasher.hash_one(of)
    }

    fn try_increment(&self, key: u64, most: usize) -> bool {
        match self.counts.entry(key) {
            Entry::Occupied(entry) if *entry.get() >= most => false,
            Entry::Occupied(mut entry) => {
                *entry.get_mut() += 1;
                true
            }
            Entry::Vacant(entry) => {
                entry.insert(1);
                true
            }
        }
    }

    fn decrement(&self, key: u64) {
        if let Entry::Occupied(mut entry) = self.counts.entry(key) {
            *entry.get_mut() -= 1;
            if *entry.get() == 0 {
                entry.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admission() -> Arc<Admission> {
        let limits = LimitOptions {
            connections: 3,
            connections_per_address: 2,
            requests: 3,
            requests_per_identity: 2,
            ..LimitOptions::unlimited()
        };
        Arc::new(Admission::new(limits, Arc::default()))
    }

    #[test]
    fn an_address_and_all_together_have_so_many_connections() {
        let admission = admission();
        let connect = |address: &str| admission.admit_connection(address.parse().expect("an address"), false);
        let (first, _second) = (connect("10.0.0.1"), connect("::ffff:10.0.0.1"));
        assert!(first.is_some() && connect("10.0.0.1").is_none());
        let other = connect("2001:db8::1");
        assert!(other.is_some() && connect("10.0.0.3").is_none(), "three are all");
        drop(first);
        assert!(connect("10.0.0.1").is_some());
        drop(other);
        assert_eq!(admission.metrics().connections.get(), 1);
        let _both = (connect("2001:db8::1"), connect("2001:db8::ffff"));
        assert!(connect("2001:db8::2").is_none(), "one /64 is one client");
    }

    #[test]
    fn a_caller_and_all_together_have_so_many_requests() {
        let admission = admission();
        let request = |caller: &str| {
            let mut place = admission.admit_request()?;
            place.count_for(&caller).map(|()| place)
        };
        let mine = (request("a").expect("a place"), request("a").expect("a place"));
        assert_eq!(request("a").expect_err("too many"), LimitExceeded::Caller);
        let _others = request("b").expect("a place");
        assert_eq!(request("c").expect_err("too many"), LimitExceeded::Total);
        drop(mine);
        assert!(request("a").is_ok());
        assert_eq!(admission.metrics().requests_in_flight.get(), 1);
        assert_eq!(admission.requests.counts.len(), 1, "who has none is forgotten");
    }

    #[test]
    fn other_limits_count_on_from_where_the_old_ones_were() {
        let old = admission();
        let connect = |admission: &Arc<Admission>| {
            admission.admit_connection("10.0.0.1".parse().expect("an address"), false)
        };
        let (one, two) = (connect(&old), connect(&old));
        assert!(one.is_some() && two.is_some() && connect(&old).is_none());
        let limits = LimitOptions { connections: 9, connections_per_address: 3, ..LimitOptions::unlimited() };
        let new = Arc::new(old.with_limits(limits));
        let third = connect(&new);
        assert!(third.is_some() && connect(&new).is_none());
        drop((one, two, third));
        assert_eq!((new.metrics().connections.get(), new.connections.counts.len()), (0, 0));
    }
}
