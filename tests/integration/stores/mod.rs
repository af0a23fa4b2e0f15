//! Token stores: the common contract, and the specifics of each kind.

mod alike;
mod commands;
mod figures;
mod file;
mod outages;
mod proofs;
mod redis;
mod revocation;
mod rolling_restart;
mod stalled;
mod topologies;
mod untrusted;
