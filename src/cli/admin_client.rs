//! A running gateway on this machine, by its admin listener.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{ArgMatches, Command};

use crate::cli::options;
use crate::config::options::LISTEN;

const LISTEN_ADMIN: &str = LISTEN.admin.key;

/// Longer answers than the gateway ever gives.
const MAX_RESPONSE_BYTES: u64 = 64 * 1024 * 1024;

/// Where a gateway's operators are answered.
pub struct AdminClient {
    address: SocketAddr,
    timeout: Duration,
}

/// What it said.
pub struct AdminResponse {
    pub status: String,
    pub body: String,
}

/// Adds the flags that say which gateway is meant.
pub fn add_arguments(command: Command) -> Command {
    options::add_one(command, LISTEN_ADMIN)
}

impl AdminClient {
    /// The one that the flags, the environment and the file name.
    pub fn from_arguments(matches: &ArgMatches, patience: Duration) -> anyhow::Result<AdminClient> {
        let text = options::read_one(matches, LISTEN_ADMIN)?.expect("the option has a default");
        let text = text.expose();
        if text == "off" {
            bail!("{LISTEN_ADMIN} is off, so there is nobody to ask");
        }
        let address: SocketAddr =
            text.parse().with_context(|| format!("{LISTEN_ADMIN} must be address:port, not {text:?}"))?;
        Ok(AdminClient { address: connectable_address(address), timeout: patience })
    }

    /// Its answer to a GET, or to a POST of JSON.
    pub fn request(&self, path: &str, json: Option<&str>) -> anyhow::Result<AdminResponse> {
        self.send(if json.is_some() { "POST" } else { "GET" }, path, json)
    }

    fn send(&self, method: &str, path: &str, json: Option<&str>) -> anyhow::Result<AdminResponse> {
        let answer =
            self.exchange(method, path, json).with_context(|| format!("http://{}{path}", self.address))?;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        let status = head.split(' ').nth(1).unwrap_or_default().to_owned();
        Ok(AdminResponse { status, body: body.trim().to_owned() })
    }

    /// The JSON of a success; what it said against it is the error.
    pub fn request_json(&self, path: &str, json: Option<&str>) -> anyhow::Result<serde_json::Value> {
        self.parse_success(&self.request(path, json)?)
    }

    /// The same for a PUT.
    pub fn put_json(&self, path: &str, json: &str) -> anyhow::Result<serde_json::Value> {
        self.parse_success(&self.send("PUT", path, Some(json))?)
    }

    fn parse_success(&self, said: &AdminResponse) -> anyhow::Result<serde_json::Value> {
        let body: serde_json::Value = serde_json::from_str(&said.body).unwrap_or_default();
        if said.status != "200" {
            bail!(
                "the gateway at {} answered {}: {}",
                self.address,
                said.status,
                body["data"].as_str().unwrap_or(&said.body)
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
        let mut answer = String::new();
        stream.take(MAX_RESPONSE_BYTES).read_to_string(&mut answer)?;
        Ok(answer)
    }
}

impl std::fmt::Display for AdminClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.address.fmt(f)
    }
}

/// Who listens on all addresses is asked on the loopback one.
fn connectable_address(mut address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    address
}
