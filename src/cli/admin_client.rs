//! A client for the admin listener of a running gateway. It knows no commands, only paths and JSON.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{ArgMatches, Command};
use zeroize::Zeroizing;

use crate::base::remedy::with_remedy;
use crate::cli::options;
use crate::config::options::LISTEN;
use crate::os::unix_socket;

/// Where the samples, the systemd unit and the Helm chart put the socket: commands without a configuration find it.
const DEFAULT_SOCKET: &str = "/run/timbr-gateway/admin/socket";

/// More than the longest response of the admin listener.
const MAX_RESPONSE_BYTES: u64 = 64 * 1024 * 1024;

/// Long enough for a reload, which responds after all files have been read, and for a store that lists all tokens.
const TIMEOUT: Duration = Duration::from_secs(35);

/// For the help of commands.
pub const SENT_TO: &str = "The command is sent to the admin listener: to listen.admin_socket if there is one, otherwise \
                           to listen.admin with listen.admin_token. It is accepted from the same machine only.";

/// A connection to an admin listener that does not exist yet.
pub struct AdminClient<'a> {
    /// Tried first.
    socket: Option<PathBuf>,
    address: Option<SocketAddr>,
    timeout: Duration,
    matches: &'a ArgMatches,
}

/// Whether a request needs the token.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sender {
    Anyone,
    Operator,
}

/// Status code and trimmed body.
pub struct AdminResponse {
    pub status: String,
    pub body: String,
}

/// Adds `--config` and the flags that select the gateway.
pub fn add_arguments(command: Command) -> Command {
    options::add_some(command, &[LISTEN.admin.key, LISTEN.admin_socket.key, LISTEN.admin_token.key])
}

/// Sends one request as [`AdminClient::request_json`] does.
pub fn request(matches: &ArgMatches, path: &str, json: Option<&str>) -> anyhow::Result<serde_json::Value> {
    AdminClient::from_arguments(matches)?.request_json(path, json)
}

impl AdminClient<'_> {
    /// The admin listener named by the flags, the environment or the configuration file. An address given as a flag is
    /// used as it is; otherwise the socket comes first, because it needs no token.
    pub fn from_arguments(matches: &ArgMatches) -> anyhow::Result<AdminClient<'_>> {
        let key = LISTEN.admin.key;
        let text = options::read_one(matches, key)?.expect("the option has a default");
        let text = text.expose();
        let address = match text {
            "off" => None,
            _ => Some(text.parse().with_context(|| format!("{key} must be address:port, not {text:?}"))?),
        };
        let has_flag = |key: &str| matches.contains_id(key);
        let socket = match options::read_one(matches, LISTEN.admin_socket.key)? {
            _ if has_flag(key) && !has_flag(LISTEN.admin_socket.key) => None,
            Some(path) => Some(PathBuf::from(path.expose())),
            None => Some(PathBuf::from(DEFAULT_SOCKET)).filter(|path| path.exists()),
        };
        if address.is_none() && socket.is_none() {
            bail!("{key} is off: there is no admin listener to connect to");
        }
        Ok(AdminClient { socket, address: address.map(connectable_address), timeout: TIMEOUT, matches })
    }

    /// The same with a different time to connect, and for each read and write.
    pub fn with_timeout(self, timeout: Duration) -> Self {
        AdminClient { timeout, ..self }
    }

    /// Sends a GET without the token. Any status is a success here.
    pub fn get(&self, path: &str) -> anyhow::Result<AdminResponse> {
        self.send("GET", path, None, Sender::Anyone)
    }

    /// Sends a GET, or a POST if there is a JSON body, with the token if there is one. Returns the parsed JSON body, and
    /// an error for any status but 200.
    pub fn request_json(&self, path: &str, json: Option<&str>) -> anyhow::Result<serde_json::Value> {
        self.send_as_operator(if json.is_some() { "POST" } else { "GET" }, path, json)
    }

    /// Sends a PUT with a JSON body, and returns as [`AdminClient::request_json`] does.
    pub fn put_json(&self, path: &str, json: &str) -> anyhow::Result<serde_json::Value> {
        self.send_as_operator("PUT", path, Some(json))
    }

    fn send_as_operator(&self, method: &str, path: &str, json: Option<&str>) -> anyhow::Result<serde_json::Value> {
        let response = self.send(method, path, json, Sender::Operator)?;
        let body: serde_json::Result<serde_json::Value> = serde_json::from_str(&response.body);
        if response.status != "200" {
            let message = body.as_ref().ok().and_then(|body| body["data"].as_str()).unwrap_or(&response.body);
            bail!("the gateway at {self} returned {}: {message}", response.status);
        }
        body.with_context(|| format!("the response of {self}{path} is not JSON, or was cut off"))
    }

    fn send(&self, method: &str, path: &str, json: Option<&str>, sender: Sender) -> anyhow::Result<AdminResponse> {
        let response = self.exchange(method, path, json, sender).with_context(|| format!("{self}{path}"))?;
        let (head, body) = response.split_once("\r\n\r\n").unwrap_or((&response, ""));
        let status = head.split(' ').nth(1).unwrap_or_default().to_owned();
        Ok(AdminResponse { status, body: body.trim().to_owned() })
    }

    fn exchange(&self, method: &str, path: &str, json: Option<&str>, sender: Sender) -> anyhow::Result<String> {
        let (mut stream, accepts_token) = self.connect().map_err(with_advice)?;
        let mut request =
            Zeroizing::new(format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"));
        // SECURITY: the token is sent to this machine only, and not in the clear over a network.
        if sender == Sender::Operator
            && accepts_token
            && let Some(token) = options::read_one(self.matches, LISTEN.admin_token.key)?
        {
            *request += &format!("Authorization: Bearer {}\r\n", token.expose());
        }
        match json {
            None => *request += "\r\n",
            Some(json) => {
                let length = json.len();
                *request += &format!("Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{json}");
            }
        }
        stream.write_all(request.as_bytes())?;
        let mut response = String::new();
        stream.take(MAX_RESPONSE_BYTES).read_to_string(&mut response)?;
        Ok(response)
    }

    /// The socket, or the address if the socket cannot be opened. Also returns whether to send a token.
    fn connect(&self) -> io::Result<(TcpStream, bool)> {
        let socket = self.socket.as_deref().map(unix_socket::connect);
        let (stream, accepts_token) = match (socket, self.address) {
            // A Unix socket has the type of a TCP stream: reads, writes and timeouts are the same system calls.
            (Some(Ok(stream)), _) => (TcpStream::from(OwnedFd::from(stream)), false),
            (Some(Err(error)), None) => return Err(error),
            (_, address) => {
                let address = address.expect("there is a socket or an address");
                (TcpStream::connect_timeout(&address, self.timeout)?, address.ip().is_loopback())
            }
        };
        stream.set_read_timeout(Some(self.timeout))?;
        stream.set_write_timeout(Some(self.timeout))?;
        Ok((stream, accepts_token))
    }
}

impl fmt::Display for AdminClient<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.socket, self.address) {
            (Some(path), None) => write!(f, "unix:{}", path.display()),
            (Some(path), Some(address)) => write!(f, "unix:{} or http://{address}", path.display()),
            (None, address) => write!(f, "http://{}", address.expect("there is a socket or an address")),
        }
    }
}

/// The error of a connection that cannot be opened, with what to do about it.
fn with_advice(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => {
            let advice = "is the gateway running, with this listen.admin or listen.admin_socket?";
            io::Error::new(error.kind(), format!("{error}; {advice}"))
        }
        _ => with_remedy(error),
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
