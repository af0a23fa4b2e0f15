//! Several backends: load balancing, health and retries.

mod abandoned;
mod balance;
mod buffering;
mod checks;
mod named;
mod names;
mod outages;
mod queue;
mod restart;
mod slow;

use std::net::SocketAddr;

use serde_json::Value;

use crate::support::client::{JSON, Response};
use crate::support::closed_port;
use crate::support::gateway::Gateway;

/// A gateway for these local backends.
fn gateway(backends: &[SocketAddr], options: &[(&str, &str)]) -> Gateway {
    let urls: Vec<_> = backends.iter().map(|address| format!("http://{address}")).collect();
    let urls = urls.join(",");
    Gateway::start_with_url("", &[&[("UPSTREAM_URLS", urls.as_str())], options].concat())
}

fn post(gateway: &Gateway, token: &str, id: &str) -> Response {
    let headers = [JSON, ("x-api-key", token), ("x-request-id", id)];
    gateway.client().send("POST /timbr/api/x", &headers, b"{}")
}

/// The state of an endpoint in `GET /upstreams`.
fn endpoint(gateway: &Gateway, address: SocketAddr) -> Value {
    let status = gateway.get("/upstreams");
    let endpoints = status["endpoints"].as_array().expect("a list");
    let ours = endpoints.iter().find(|endpoint| endpoint["address"] == address.to_string());
    ours.unwrap_or_else(|| panic!("{address} is not in {status}")).clone()
}
