//! Logs, metrics, traces and timings. They record what other folders report, and decide nothing about a request.

pub mod auth_timing;
pub mod log;
pub mod metrics;
pub mod phase;
pub mod queries;
pub mod trace;
