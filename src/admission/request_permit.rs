//! What one request counts toward, from its admission to its end.

use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::admission::endpoint_load::EndpointChooser;
use crate::admission::fair_queue::{FairQueue, QueueError, Slot, SlotRequest};
use crate::admission::rule_limiter::{RuleExceeded, RuleLimiter, RulePermit};
use crate::admission::{Admission, Counts, LimitExceeded};
use crate::observability::queries::RunningQueryGuard;

/// What a request is for the limits of its caller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RequestKind {
    /// A request that the backend works on until it has responded.
    #[default]
    Query,
    /// A stream of events that stays open while its client runs, and keeps no thread of the backend busy.
    EventStream,
}

/// The right to process one request. Dropping it releases the counts and the slot.
#[derive(Debug)]
pub struct RequestPermit {
    admission: Arc<Admission>,
    kind: RequestKind,
    /// The hash of the identity; `None` before [`RequestPermit::count_for`].
    caller: Option<u64>,
    /// True while it counts as a request without a proven identity.
    is_unauthenticated: bool,
    /// True if it does not count toward `limits.requests` any longer.
    is_abandoned: bool,
    slot: Option<Slot>,
    /// Of the rules that limit concurrent requests.
    rules: Vec<RulePermit>,
    /// Lists the query as running; `None` without a query journal.
    _query: Option<RunningQueryGuard>,
}

impl RequestPermit {
    /// A permit for a request that is added to `requests_in_flight`.
    pub(super) fn new(admission: Arc<Admission>) -> RequestPermit {
        RequestPermit {
            admission,
            kind: RequestKind::Query,
            caller: None,
            is_unauthenticated: false,
            is_abandoned: false,
            slot: None,
            rules: Vec::new(),
            _query: None,
        }
    }

    /// Counts the request toward the share of requests that wait for the proof of their identity, until
    /// [`RequestPermit::end_authentication`] or its drop.
    ///
    /// SECURITY: without this share, clients without any credential could use all of `limits.requests`, as a check of a
    /// key or a password can take seconds. A request whose credential is known in memory does not wait and is not
    /// counted.
    pub fn begin_authentication(&mut self) -> Result<(), LimitExceeded> {
        let before = self.admission.counts.unauthenticated.fetch_add(1, Ordering::Relaxed);
        self.is_unauthenticated = true;
        let is_full = before >= (self.admission.limits.requests / 2).max(1);
        if is_full { Err(LimitExceeded::Unauthenticated) } else { Ok(()) }
    }

    /// The identity is proven.
    pub fn end_authentication(&mut self) {
        if std::mem::take(&mut self.is_unauthenticated) {
            self.admission.counts.unauthenticated.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Counts the request toward the limit of its caller, once the identity is proven.
    pub fn count_for(&mut self, caller: &impl Hash, kind: RequestKind) -> Result<(), LimitExceeded> {
        let Admission { counts, limits, .. } = &*self.admission;
        let Counts { requests, streams, .. } = &**counts;
        let caller = requests.hash_key(caller);
        let (counts, max, exceeded) = match kind {
            RequestKind::Query => (requests, limits.requests_per_identity, LimitExceeded::Caller),
            RequestKind::EventStream => (streams, limits.streams_per_identity, LimitExceeded::CallerStreams),
        };
        if !counts.try_increment(caller, max) {
            return Err(exceeded);
        }
        self.kind = kind;
        self.caller = Some(caller);
        Ok(())
    }

    /// The bytes of its response that this request may hold while the client does not read them: an equal share for each
    /// request in flight.
    pub fn response_memory(&self) -> u64 {
        let in_flight = u64::try_from(self.admission.metrics.requests_in_flight.get()).unwrap_or(1);
        self.admission.counts.memory.for_responses() / in_flight.max(1)
    }

    /// The rules of `limits.rules`.
    pub fn rules(&self) -> &Arc<[Arc<RuleLimiter>]> {
        &self.admission.rules
    }

    /// Counts the request of its caller for a rule.
    pub fn count_for_rule(&mut self, limiter: &Arc<RuleLimiter>) -> Result<(), RuleExceeded> {
        self.rules.extend(limiter.admit(self.caller.unwrap_or_default(), self.kind)?);
        Ok(())
    }

    /// Waits until the request may be sent to the upstream with this index and these endpoints, behind the other requests
    /// of the same caller. The permit holds the slot until it is dropped. A stream of events needs none. Does nothing if
    /// it has one. Returns whether it had to wait.
    pub async fn wait_for_slot(
        &mut self,
        upstream: usize,
        endpoints: &Arc<dyn EndpointChooser>,
        affinity: Option<u64>,
    ) -> Result<bool, QueueError> {
        if self.slot.is_some() {
            return Ok(false);
        }
        let Some(fair_queue) = self.queue(upstream) else { return Ok(false) };
        let request = SlotRequest { caller: self.caller.unwrap_or_default(), affinity, endpoints };
        let slot = fair_queue.try_slot(request);
        let must_wait = slot.is_none();
        self.slot = match slot {
            // Boxed because it is rare, and otherwise every request would need the memory of this future.
            None => Some(Box::pin(fair_queue.wait_for_slot(request)).await?),
            slot => slot,
        };
        Ok(must_wait)
    }

    /// Returns whether the request may have to wait for a slot of this upstream.
    pub fn needs_slot(&self, upstream: usize) -> bool {
        self.queue(upstream).is_some()
    }

    fn queue(&self, upstream: usize) -> Option<&Arc<FairQueue>> {
        let queue = self.admission.queues.get(upstream).filter(|_| self.kind == RequestKind::Query)?;
        queue.fair_queue.as_ref()
    }

    /// Passes the slot on, and waits for one of these endpoints. Does nothing if there is no slot.
    pub async fn wait_for_other(
        &mut self,
        endpoints: &Arc<dyn EndpointChooser>,
        affinity: Option<u64>,
    ) -> Result<(), QueueError> {
        let Some(queue) = self.slot.take().and_then(|slot| slot.queue().cloned()) else { return Ok(()) };
        let request = SlotRequest { caller: self.caller.unwrap_or_default(), affinity, endpoints };
        self.slot = Some(queue.wait_for_slot(request).await?);
        Ok(())
    }

    /// Lists the query as running until the permit is dropped.
    pub fn list_query(&mut self, query: RunningQueryGuard) {
        self._query = Some(query);
    }

    /// The slot, if the request has one.
    pub fn slot(&mut self) -> Option<&mut Slot> {
        self.slot.as_mut()
    }

    /// The client has left, and the backend still works on the request. It keeps its slot and counts for its caller, so that
    /// a client that leaves again and again gets no further request to the backend. But it needs only a connection, and
    /// does not count toward `limits.requests`, which would block all callers; as many again may be in this state.
    pub fn abandon(&mut self) {
        let before = self.admission.counts.abandoned.fetch_add(1, Ordering::Relaxed);
        if before < self.admission.max_abandoned {
            self.admission.metrics.requests_in_flight.dec();
            self.is_abandoned = true;
        } else {
            self.admission.counts.abandoned.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Passes the slot on to the next waiting request: the backend has responded completely.
    pub fn release_slot(&mut self) {
        self.slot = None;
    }
}

impl Drop for RequestPermit {
    fn drop(&mut self) {
        self.end_authentication();
        if let Some(caller) = self.caller {
            match self.kind {
                RequestKind::Query => self.admission.counts.requests.decrement(caller),
                RequestKind::EventStream => self.admission.counts.streams.decrement(caller),
            }
        }
        if self.is_abandoned {
            self.admission.counts.abandoned.fetch_sub(1, Ordering::Relaxed);
        } else {
            self.admission.metrics.requests_in_flight.dec();
        }
    }
}
