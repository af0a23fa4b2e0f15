//! What the gateway records: log lines, metrics, traces and durations. Nothing here decides about a request.

pub mod auth_timing;
pub mod log;
pub mod metrics;
pub mod phase;
pub mod trace;
