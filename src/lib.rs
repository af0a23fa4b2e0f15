//! timbr-gateway: an authenticating reverse proxy for the API of a Timbr semantic layer.
//!
//! `ARCHITECTURE.md` says which module lives in which layer; a module uses only modules of lower ones.

pub mod admin;
pub mod admission;
pub mod auth;
pub mod cli;
pub mod client_body;
pub mod clock;
pub mod config;
pub mod connection;
pub mod control;
pub mod demo;
pub mod descriptors;
pub mod fetch;
pub mod fields;
pub mod gateway;
pub mod glob;
pub mod hardening;
pub mod http1;
pub mod in_force;
pub mod kernel_pipe;
pub mod listener;
pub mod media_type;
pub mod metrics;
pub mod octets;
pub mod otlp;
pub mod passed_sockets;
pub mod prehashed;
pub mod secret;
pub mod server;
pub mod service_manager;
pub mod shutdown;
pub mod steps;
pub mod store;
pub mod telemetry;
pub mod tls;
pub mod trace;
pub mod upstream;
pub mod user_name;
pub mod watched_files;
