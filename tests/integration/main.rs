//! The gateway as its peers see it: real listeners, a backend that records every byte, and clients that misbehave.

mod support;

mod authorization;
mod command_line;
mod dashboard;
mod delegated;
mod docs;
mod drain;
mod explain;
mod failures;
mod floods;
mod forwarding;
mod framing;
mod get_token;
mod guesses;
mod http2;
mod identity;
mod jwt;
mod layers;
mod limits;
mod logs;
mod policy;
mod process;
mod prometheus;
mod properties;
mod proxies;
mod service_manager;
mod stores;
mod supply_chain;
mod timeouts;
mod tls;
mod tls_program;
mod tls_reload;
mod upstream_failures;
mod upstream_tls;
mod upstreams;
