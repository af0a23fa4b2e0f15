//! The slots that the requests of one endpoint hold, for a limit on each endpoint. It knows nothing about the health or the
//! address of an endpoint.

use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The number of slots that are in use for one endpoint, over all workers.
#[derive(Debug, Default)]
pub struct EndpointLoad(AtomicUsize);

impl EndpointLoad {
    /// The number of slots in use.
    pub fn in_use(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    /// Counts a slot unless `limit` are in use.
    pub fn try_acquire(self: &Arc<EndpointLoad>, limit: usize) -> Option<EndpointPermit> {
        let incremented = |in_use| (in_use < limit).then_some(in_use + 1);
        let result = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, incremented);
        result.is_ok().then(|| EndpointPermit(Arc::clone(self)))
    }
}

/// The right to have a request at one endpoint. Dropping it releases the count.
#[derive(Debug)]
pub struct EndpointPermit(Arc<EndpointLoad>);

impl EndpointPermit {
    /// The endpoint.
    pub fn load(&self) -> &Arc<EndpointLoad> {
        &self.0
    }
}

impl Drop for EndpointPermit {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The endpoint for a request, if the number of requests of each is limited.
#[derive(Debug)]
pub enum EndpointChoice {
    /// The request may be sent to this endpoint.
    Endpoint(EndpointPermit),
    /// All endpoints that could be chosen are full.
    AllFull,
    /// No endpoint is known.
    NoEndpoint,
}

/// The endpoints of an upstream, from any thread.
pub trait EndpointChooser: Debug + Send + Sync {
    /// Chooses an endpoint with fewer than `limit` requests. Requests with the same `affinity` belong to one endpoint, and
    /// to no other one because that is full.
    fn choose(&self, affinity: Option<u64>, limit: usize) -> EndpointChoice;
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Endpoints without a name or an address. Affinity is the index of one.
    #[derive(Debug, Default)]
    pub struct FakeEndpoints(pub Vec<Arc<EndpointLoad>>);

    impl EndpointChooser for FakeEndpoints {
        fn choose(&self, affinity: Option<u64>, limit: usize) -> EndpointChoice {
            let is_chosen = |index: usize| affinity.is_none_or(|affinity| affinity == index as u64);
            let mut chosen = self.0.iter().enumerate().filter(|(index, _)| is_chosen(*index));
            if self.0.is_empty() {
                return EndpointChoice::NoEndpoint;
            }
            let permit = chosen.find_map(|(_, load)| load.try_acquire(limit));
            permit.map_or(EndpointChoice::AllFull, EndpointChoice::Endpoint)
        }
    }

    pub fn endpoints(count: usize) -> Arc<dyn EndpointChooser> {
        Arc::new(FakeEndpoints((0..count).map(|_| Arc::default()).collect()))
    }
}
