//! A client for the admin listener of a running gateway. It knows no commands, only paths and JSON.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{ArgMatches, Command};

use crate::cli::options;
use crate::config::options::LISTEN;

const LISTEN_ADMIN: &str = LISTEN.admin.key;

/// More than the longest response of the admin listener.
const MAX_RESPONSE_BYTES: u64 = 64 * 1024 * 1024;

/// The address of an admin listener, and the timeout of requests to it.
pub struct AdminClient {
    address: SocketAddr,
    timeout: Duration,
}

/// Status code and trimmed body.
pub struct AdminResponse {
    pub status: String,
    pub body: String,
}

/// Adds `--config` and `--listen-admin`, which select the gateway.
pub fn add_arguments(command: Command) -> Command {
    options::add_one(command, LISTEN_ADMIN)
}

impl AdminClient {
    /// The admin listener named by the flags, the environment or the configuration file.
    pub fn from_arguments(matches: &ArgMatches, patience: Duration) -> anyhow::Result<AdminClient> {
        let text = options::read_one(matches, LISTEN_ADMIN)?.expect("the option has a default");
        let text = text.expose();
        if text == "off" {
            bail!("{LISTEN_ADMIN} is off: there is no admin listener to connect to");
        }
        let address: SocketAddr =
            text.parse().with_context(|| format!("{LISTEN_ADMIN} must be address:port, not {text:?}"))?;
        Ok(AdminClient { address: connectable_address(address), timeout: patience })
    }

    /// Sends a GET, or a POST if there is a JSON body. Any status is a success here.
    pub fn request(&self, path: &str, json: Option<&str>) -> anyhow::Result<AdminResponse> {
        self.send(if json.is_some() { "POST" } else { "GET" }, path, json)
    }

    fn send(&self, method: &str, path: &str, json: Option<&str>) -> anyhow::Result<AdminResponse> {
        let response = self.exchange(method, path, json).with_context(|| format!("http://{}{path}", self.address))?;
        let (head, body) = response.split_once("\r\n\r\n").unwrap_or((&response, ""));
        let status = head.split(' ').nth(1).unwrap_or_default().to_owned();
        Ok(AdminResponse { status, body: body.trim().to_owned() })
    }

    /// Like [`AdminClient::request`], but returns the parsed JSON body, and an error for any status but 200.
    pub fn request_json(&self, path: &str, json: Option<&str>) -> anyhow::Result<serde_json::Value> {
        self.parse_success(&self.request(path, json)?)
    }

    /// Sends a PUT with a JSON body, and returns as [`AdminClient::request_json`] does.
    pub fn put_json(&self, path: &str, json: &str) -> anyhow::Result<serde_json::Value> {
        self.parse_success(&self.send("PUT", path, Some(json))?)
    }

    fn parse_success(&self, response: &AdminResponse) -> anyhow::Result<serde_json::Value> {
        let body: serde_json::Value = serde_json::from_str(&response.body).unwrap_or_default();
        if response.status != "200" {
            bail!(
                "the gateway at {} returned {}: {}",
                self.address,
                response.status,
                body["data"].as_str().unwrap_or(&response.body)
            );
        }
        Ok(body)
    }

    fn exchange(&self, method: &str, path: &str, json: Option<&str>) -> std::io::Result<String> {
        let address = self.address;
        let mut stream = TcpStream::connect_timeout(&address, self.timeout)?;
        stream.set_read_timeout(Some(self.timeout))?;
        stream.set_write_timeout(Some(self.timeout))?;
        let common = format!("HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n");
        match json {
            None => write!(stream, "{method} {path} {common}\r\n")?,
            Some(json) => write!(
                stream,
                "{method} {path} {common}Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{json}",
                json.len()
            )?,
        }
        let mut response = String::new();
        stream.take(MAX_RESPONSE_BYTES).read_to_string(&mut response)?;
        Ok(response)
    }
}

impl std::fmt::Display for AdminClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.address.fmt(f)
    }
}

/// Replaces an unspecified address (`0.0.0.0`, `::`) by the loopback address.
fn connectable_address(mut address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    address
}
