//! An HTTP/1.1 client that sends exactly the given bytes.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde_json::Value;

use crate::support::TIMEOUT;
use crate::support::bearer::bearer;

/// The header of a body that is JSON.
pub const JSON: (&str, &str) = ("Content-Type", "application/json");

/// An HTTP/1.1 connection.
pub struct Client {
    stream: TcpStream,
    unread: Vec<u8>,
}

/// A response as received.
#[derive(Debug)]
pub struct Response {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// True if the body is complete by its framing.
    pub complete: bool,
}

impl Response {
    /// All values of a header.
    pub fn all(&self, name: &str) -> Vec<&str> {
        let same = |(other, _): &&(String, String)| other.eq_ignore_ascii_case(name);
        self.headers.iter().filter(same).map(|(_, value)| value.as_str()).collect()
    }

    /// The only value of a header; empty if it is missing.
    pub fn header(&self, name: &str) -> &str {
        let all = self.all(name);
        assert!(all.len() <= 1, "{name} occurs {} times", all.len());
        all.first().copied().unwrap_or_default()
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("text")
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The token in the response to a login.
    pub fn token(&self) -> String {
        assert_eq!(self.status, 200, "{self:?}");
        self.json()["data"][0].as_str().expect("a token").to_owned()
    }

    /// Status and `reason` of a rejection. Checks the form of the response.
    pub fn rejection(&self) -> (u16, String) {
        (self.status, self.reason())
    }

    /// The message, if the body is a Thrift exception (`TApplicationException`).
    pub fn thrift_exception(&self) -> Option<&[u8]> {
        let fields = self.body.strip_prefix(b"\x80\x01\x00\x03\0\0\0\0\0\0\0\0\x0b\0\x01")?;
        let (length, rest) = fields.split_first_chunk()?;
        let (message, end) = rest.split_at_checked(usize::try_from(u32::from_be_bytes(*length)).ok()?)?;
        (end == b"\x08\0\x02\0\0\0\x06\0").then_some(message)
    }

    /// The `reason` of a rejection. Checks the form of the response.
    pub fn reason(&self) -> String {
        let (media_type, body) = match self.thrift_exception() {
            Some(message) => ("application/x-thrift", serde_json::from_slice(message).expect("the envelope")),
            None => ("application/json", self.json()),
        };
        assert_eq!(body["status"], "error", "{body}");
        assert!(body["data"].as_str().is_some_and(|sentence| sentence.ends_with('.')), "{body}");
        assert_eq!(body["request_id"], self.header("x-request-id"), "{body}");
        assert_eq!(self.header("content-type"), media_type);
        body["reason"].as_str().expect("a reason").to_owned()
    }
}

/// The response to a request for a token.
pub fn login(http: SocketAddr, user: &str, password: &str) -> Response {
    let authorization = format!("Bearer {}", bearer(user, password));
    Client::connect(http).send("POST /timbr/api/get_token", &[JSON, ("Authorization", &authorization)], b"")
}

/// The value of a counter or gauge in `/metrics`; `None` if it is missing.
pub fn metric(admin: SocketAddr, series: &str) -> Option<f64> {
    let response = Client::connect(admin).send("GET /metrics", &[("Host", "localhost")], b"");
    assert_eq!(response.status, 200);
    let value = response.text().lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '))?;
    Some(value.parse().expect("a number"))
}

impl Client {
    pub fn connect(address: SocketAddr) -> Client {
        let stream = TcpStream::connect(address).expect("connected");
        stream.set_read_timeout(Some(TIMEOUT)).expect("set");
        stream.set_nodelay(true).expect("set");
        Client { stream, unread: Vec::new() }
    }

    /// A connection to a Unix socket, which reads and writes like one over TCP.
    pub fn connect_unix(path: &Path) -> Client {
        let stream = TcpStream::from(OwnedFd::from(UnixStream::connect(path).expect("connected")));
        stream.set_read_timeout(Some(TIMEOUT)).expect("set");
        Client { stream, unread: Vec::new() }
    }

    /// A connection; `None` if connecting fails.
    pub fn try_connect(address: SocketAddr) -> Option<Client> {
        let stream = TcpStream::connect(address).ok()?;
        stream.set_read_timeout(Some(TIMEOUT)).expect("set");
        Some(Client { stream, unread: Vec::new() })
    }

    /// Sends a request with `Host`, unless `headers` has one, and `Content-Length`, and reads the response.
    pub fn send(&mut self, line: &str, headers: &[(&str, &str)], body: &[u8]) -> Response {
        self.write_request(line, headers, body);
        if line.starts_with("HEAD ") { self.read_response_to_head() } else { self.read_response() }
    }

    /// The response to a query with this key.
    pub fn query(&mut self, key: &str) -> Response {
        self.send("GET /timbr/api/x", &[JSON, ("x-api-key", key)], b"")
    }

    /// Sends a request and reads the response head; `None` if the gateway closes the connection.
    pub fn try_send(&mut self, line: &str, headers: &[(&str, &str)]) -> Option<Response> {
        let lines: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let head = format!("{line} HTTP/1.1\r\nHost: gateway.test\r\n{lines}\r\n");
        self.stream.write_all(head.as_bytes()).ok()?;
        self.read_head()
    }

    pub fn write_request(&mut self, line: &str, headers: &[(&str, &str)], body: &[u8]) {
        let mut head = format!("{line} HTTP/1.1\r\n");
        if !headers.iter().any(|(name, _)| *name == "Host") {
            head += "Host: gateway.test\r\n";
        }
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        if !body.is_empty() {
            head += &format!("Content-Length: {}\r\n", body.len());
        }
        self.write(format!("{head}\r\n").as_bytes());
        self.write(body);
    }

    /// The same socket, for writing from a different thread.
    pub fn try_clone(&self) -> TcpStream {
        self.stream.try_clone().expect("a second descriptor")
    }

    /// Sends raw bytes.
    pub fn write(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("written");
    }

    /// Reads one final response; skips informational ones.
    pub fn read_response(&mut self) -> Response {
        let mut response = self.read_final_head();
        if matches!(response.status, 204 | 304) {
            response.complete = true;
        } else if response.header("transfer-encoding") == "chunked" {
            self.read_chunks(&mut response);
        } else if let Ok(length) = response.header("content-length").parse() {
            self.fill(length);
            response.complete = self.unread.len() >= length;
            let end = length.min(self.unread.len());
            response.body = self.unread.drain(..end).collect();
        } else {
            while self.fill_some() {}
            response.body = std::mem::take(&mut self.unread);
            response.complete = true;
        }
        response
    }

    /// Reads the response to a HEAD, which has no body.
    pub fn read_response_to_head(&mut self) -> Response {
        Response { complete: true, ..self.read_final_head() }
    }

    fn read_final_head(&mut self) -> Response {
        loop {
            let response = self.read_head().expect("a response");
            if response.status >= 200 {
                return response;
            }
        }
    }

    /// The head of the next response; `None` if the connection ends before it.
    pub fn read_head(&mut self) -> Option<Response> {
        let end = loop {
            if let Some(at) = self.unread.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
            if !self.fill_some() {
                return None;
            }
        };
        let head: Vec<u8> = self.unread.drain(..end).collect();
        let head = String::from_utf8(head).expect("text");
        let mut lines = head.trim_end().split("\r\n");
        let status = lines.next().and_then(|line| line.split(' ').nth(1)).expect("a status line");
        let headers = lines
            .map(|line| line.split_once(": ").unwrap_or_else(|| line.split_once(':').expect("a field")))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        Some(Response { status: status.parse().expect("a number"), headers, body: Vec::new(), complete: false })
    }

    fn read_chunks(&mut self, response: &mut Response) {
        loop {
            let Some(line) = self.read_line() else { return };
            let size = usize::from_str_radix(line.trim(), 16).expect("a chunk's size");
            self.fill(size + 2);
            if self.unread.len() < size + 2 {
                response.body.append(&mut self.unread);
                return;
            }
            response.body.extend(self.unread.drain(..size));
            self.unread.drain(..2);
            if size == 0 {
                response.complete = true;
                return;
            }
        }
    }

    /// The next chunk; `None` after the last one.
    pub fn read_chunk(&mut self) -> Option<Vec<u8>> {
        let size = usize::from_str_radix(self.read_line()?.trim(), 16).expect("a chunk's size");
        let mut chunk = self.read_bytes(size + 2);
        chunk.truncate(size);
        (size > 0).then_some(chunk)
    }

    fn read_line(&mut self) -> Option<String> {
        loop {
            if let Some(at) = self.unread.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.unread.drain(..=at).collect();
                return Some(String::from_utf8(line).expect("text"));
            }
            if !self.fill_some() {
                return None;
            }
        }
    }

    /// Reads `count` bytes, or fewer at the end of the connection.
    pub fn read_bytes(&mut self, count: usize) -> Vec<u8> {
        self.fill(count);
        let end = count.min(self.unread.len());
        self.unread.drain(..end).collect()
    }

    /// Returns whether the gateway closes without sending more.
    pub fn is_closed(&mut self) -> bool {
        self.unread.is_empty() && !self.fill_some()
    }

    /// Returns whether the peer has closed the connection. Does not wait.
    pub fn is_closed_by_peer(&self) -> bool {
        self.stream.set_nonblocking(true).expect("set");
        let mut one = [0];
        let ended = !matches!(self.stream.peek(&mut one), Err(error) if error.kind() == std::io::ErrorKind::WouldBlock);
        self.stream.set_nonblocking(false).expect("set");
        ended
    }

    fn fill(&mut self, count: usize) {
        while self.unread.len() < count && self.fill_some() {}
    }

    /// False at the end of the connection, graceful or not.
    fn fill_some(&mut self) -> bool {
        let mut buffer = [0; 64 * 1024];
        match self.stream.read(&mut buffer) {
            Ok(0) => false,
            Ok(count) => {
                self.unread.extend_from_slice(&buffer[..count]);
                true
            }
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => false,
            Err(error) => panic!("cannot read: {error}"),
        }
    }
}
