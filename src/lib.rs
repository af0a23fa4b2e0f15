//! timbr-gateway: an authenticating reverse proxy for the API of a Timbr semantic layer.
//!
//! The folders are the layers, from the lowest to the highest. A folder uses only folders above it in this list;
//! `tests/integration/layers.rs` checks that, and `ARCHITECTURE.md` gives the reasons.

// Small types without any knowledge of the gateway.
pub mod base;

// The operating system and the service manager.
pub mod os;

// HTTP messages, without sockets.
pub mod http;

// Log lines, metrics, traces and durations.
pub mod observability;

// Options, sources, validation and schema.
pub mod config;

// Tokens: in memory, in a file, in Redis.
pub mod store;

// Limits on connections and requests, and the fair queue.
pub mod admission;

// Certificates and their renewal.
pub mod tls;

// The backend: endpoints, health checks, load balancing, pools and exchanges.
pub mod upstream;

// The gateway's own requests to other servers.
pub mod outbound;

// Bearers, tokens, verifiers, JWTs, failure limits and authorization.
pub mod auth;

// The path of a request, one file per phase.
pub mod gateway;

// Listeners and client connections.
pub mod downstream;

// The admin listener and the dashboard.
pub mod admin;

// The process: components, workers, supervisor, reload.
pub mod app;

// One file per subcommand.
pub mod cli;
