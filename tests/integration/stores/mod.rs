//! Token stores: what holds of each, and what holds of the one or the other.

mod alike;
mod commands;
mod figures;
mod file;
mod outages;
mod redis;
mod revocation;
mod rolling_restart;
mod topologies;
