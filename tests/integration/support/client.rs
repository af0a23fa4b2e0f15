//! A client that sends exactly the bytes it is told to.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use serde_json::Value;

use crate::support::PATIENCE;

/// An HTTP/1.1 connection.
pub struct Client {
    stream: TcpStream,
    unread: Vec<u8>,
}

/// An answer as it came.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub fields: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Whether the body ended as its framing promised.
    pub complete: bool,
}

impl Answer {
    /// The values of a field.
    pub fn all(&self, name: &str) -> Vec<&str> {
        let same = |(other, _): &&(String, String)| other.eq_ignore_ascii_case(name);
        self.fields.iter().filter(same).map(|(_, value)| value.as_str()).collect()
    }

    /// The one value of a field; empty if it is missing.
    pub fn field(&self, name: &str) -> &str {
        let all = self.all(name);
        assert!(all.len() <= 1, "{name} stands {} times", all.len());
        all.first().copied().unwrap_or_default()
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("text")
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The `reason` of a refusal, after a look at its form.
    pub fn reason(&self) -> String {
        let body = self.json();
        assert_eq!(body["status"], "error", "{body}");
        assert!(body["data"].as_str().is_some_and(|sentence| sentence.ends_with('.')), "{body}");
        assert_eq!(body["request_id"], self.field("x-request-id"), "{body}");
        assert_eq!(self.field("content-type"), "application/json");
        body["reason"].as_str().expect("a reason").to_owned()
    }
}

impl Client {
    pub fn connect(address: SocketAddr) -> Client {
        let stream = TcpStream::connect(address).expect("connected");
        stream.set_read_timeout(Some(PATIENCE)).expect("set");
        stream.set_nodelay(true).expect("set");
        Client { stream, unread: Vec::new() }
    }

    /// A connection, unless nobody listens.
    pub fn try_connect(address: SocketAddr) -> Option<Client> {
        let stream = TcpStream::connect(address).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).expect("set");
        Some(Client { stream, unread: Vec::new() })
    }

    /// Sends a request with `Host` and `Content-Length`, and reads the answer.
    pub fn send(&mut self, line: &str, fields: &[(&str, &str)], body: &[u8]) -> Answer {
        self.write_request(line, fields, body);
        self.read_answer(line.starts_with("HEAD "))
    }

    /// The answer, unless the gateway closes or has closed.
    pub fn try_send(&mut self, line: &str, fields: &[(&str, &str)]) -> Option<Answer> {
        let lines: String = fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let head = format!("{line} HTTP/1.1\r\nHost: gateway.test\r\n{lines}\r\n");
        self.stream.write_all(head.as_bytes()).ok()?;
        self.read_head()
    }

    pub fn write_request(&mut self, line: &str, fields: &[(&str, &str)], body: &[u8]) {
        let mut head = format!("{line} HTTP/1.1\r\nHost: gateway.test\r\n");
        for (name, value) in fields {
            head += &format!("{name}: {value}\r\n");
        }
        if !body.is_empty() {
            head += &format!("Content-Length: {}\r\n", body.len());
        }
        self.write(format!("{head}\r\n").as_bytes());
        self.write(body);
    }

    /// The same socket, to be written to by another thread.
    pub fn try_clone(&self) -> TcpStream {
        self.stream.try_clone().expect("another descriptor")
    }

    /// Sends bytes as they are.
    pub fn write(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("written");
    }

    /// Reads one answer; informational ones are passed over.
    pub fn read_answer(&mut self, of_head: bool) -> Answer {
        loop {
            let mut answer = self.read_head().expect("an answer");
            if (100..200).contains(&answer.status) {
                continue;
            }
            if of_head || matches!(answer.status, 204 | 304) {
                answer.complete = true;
            } else if answer.field("transfer-encoding") == "chunked" {
                self.read_chunks(&mut answer);
            } else if let Ok(length) = answer.field("content-length").parse() {
                self.fill(length);
                answer.complete = self.unread.len() >= length;
                let end = length.min(self.unread.len());
                answer.body = self.unread.drain(..end).collect();
            } else {
                while self.fill_some() {}
                answer.body = std::mem::take(&mut self.unread);
                answer.complete = true;
            }
            return answer;
        }
    }

    /// The head of the next answer; `None` if the connection ends before one.
    pub fn read_head(&mut self) -> Option<Answer> {
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
        let fields = lines
            .map(|line| line.split_once(": ").unwrap_or_else(|| line.split_once(':').expect("a field")))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        Some(Answer { status: status.parse().expect("a number"), fields, body: Vec::new(), complete: false })
    }

    fn read_chunks(&mut self, answer: &mut Answer) {
        loop {
            let Some(line) = self.read_line() else { return };
            let size = usize::from_str_radix(line.trim(), 16).expect("a chunk's size");
            self.fill(size + 2);
            if self.unread.len() < size + 2 {
                answer.body.append(&mut self.unread);
                return;
            }
            answer.body.extend(self.unread.drain(..size));
            self.unread.drain(..2);
            if size == 0 {
                answer.complete = true;
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

    /// So many bytes of what comes next, or fewer at the end.
    pub fn read_bytes(&mut self, count: usize) -> Vec<u8> {
        self.fill(count);
        let end = count.min(self.unread.len());
        self.unread.drain(..end).collect()
    }

    /// Whether the gateway closes without another word.
    pub fn is_closed(&mut self) -> bool {
        self.unread.is_empty() && !self.fill_some()
    }

    /// Whether the other side has ended the connection already; does not wait.
    pub fn has_ended(&self) -> bool {
        self.stream.set_nonblocking(true).expect("set");
        let mut one = [0];
        let ended = !matches!(self.stream.peek(&mut one), Err(error) if error.kind() == std::io::ErrorKind::WouldBlock);
        self.stream.set_nonblocking(false).expect("set");
        ended
    }

    fn fill(&mut self, count: usize) {
        while self.unread.len() < count && self.fill_some() {}
    }

    /// False at the end of the connection, orderly or not.
    fn fill_some(&mut self) -> bool {
        let mut buffer = [0; 64 * 1024];
        match self.stream.read(&mut buffer) {
            Ok(0) => false,
            Ok(count) => {
                self.unread.extend_from_slice(&buffer[..count]);
                true
            }
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => false,
            Err(error) => panic!("nothing to read: {error}"),
        }
    }
}
