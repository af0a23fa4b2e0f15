//! What `timbr-gateway demo` puts behind the gateway: a small backend with a few ontologies, concepts and rows.
//! It speaks enough of Timbr's API to try clients on; it is no Timbr.

mod backend;
mod data;
mod sql;

pub use backend::{Backend, PLATFORM_KEY};
