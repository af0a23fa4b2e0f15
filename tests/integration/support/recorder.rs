//! A backend that records every byte and parses requests more strictly than any real one. Decides what the gateway let
//! through.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

/// The response to a complete request.
#[derive(Clone)]
pub enum Reply {
    /// Responds with 200 and the target.
    Name,
    /// Like `Name`, after a delay.
    After(Duration),
    /// Waits until the gateway closes the connection.
    Hold,
    /// Sends these bytes and closes.
    Bytes(Arc<Vec<u8>>),
}

/// A request whose head has arrived.
#[derive(Clone, Debug)]
pub struct Seen {
    pub target: String,
    pub head: String,
    pub body: Vec<u8>,
    /// True if the body is complete by its framing.
    pub whole: bool,
}

impl Seen {
    /// The number of headers with this name for a backend that treats `_` as `-`, as WSGI servers do.
    pub fn count(&self, name: &str) -> usize {
        let fold = |name: &str| name.to_ascii_lowercase().replace('_', "-");
        let names = self.head.split("\r\n").skip(1).filter_map(|line| line.split_once(':'));
        names.filter(|(other, _)| fold(other) == name).count()
    }
}

#[derive(Default)]
struct Log {
    bytes: Vec<u8>,
    seen: Vec<Seen>,
    violations: Vec<String>,
    open: usize,
    /// The number of incomplete requests.
    unfinished: usize,
    most_open: usize,
}

/// A listening recorder. Its threads end with the test process.
pub struct Recorder {
    address: SocketAddr,
    log: Arc<Mutex<Log>>,
}

impl Recorder {
    pub fn start(reply: Reply) -> Recorder {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        let address = listener.local_addr().expect("an address");
        let log = Arc::<Mutex<Log>>::default();
        let shared = Arc::clone(&log);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else { return };
                let connection = Connection { stream, unread: Vec::new(), log: Arc::clone(&shared) };
                let reply = reply.clone();
                thread::spawn(move || connection.serve(&reply));
            }
        });
        Recorder { address, log }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().expect("no panic")
    }

    /// Returns whether these bytes arrived anywhere.
    pub fn has_bytes(&self, needle: &str) -> bool {
        self.log().bytes.windows(needle.len()).any(|window| window == needle.as_bytes())
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.log().seen.clone()
    }

    /// The request for a target.
    pub fn find(&self, target: &str) -> Option<Seen> {
        self.log().seen.iter().find(|seen| seen.target == target).cloned()
    }

    /// Protocol violations of the gateway; empty if there are none.
    pub fn violations(&self) -> Vec<String> {
        self.log().violations.clone()
    }

    /// Waits until no request is incomplete: the rest has arrived, or the connection has ended.
    pub fn wait_until_settled(&self) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while self.log().unfinished > 0 {
            assert!(Instant::now() < deadline, "a request neither continues nor ends: {:?}", self.seen());
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// The number of open connections.
    pub fn open(&self) -> usize {
        self.log().open
    }

    /// The maximum number of open connections.
    pub fn most_open(&self) -> usize {
        self.log().most_open
    }
}

struct Connection {
    stream: TcpStream,
    unread: Vec<u8>,
    log: Arc<Mutex<Log>>,
}

/// Why reading a connection stops.
enum End {
    Closed,
    Violation(String),
}

impl Connection {
    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().expect("no panic")
    }

    fn serve(mut self, reply: &Reply) {
        self.stream.set_nodelay(true).expect("set");
        {
            let mut log = self.log();
            log.open += 1;
            log.most_open = log.most_open.max(log.open);
        }
        loop {
            match self.request() {
                Ok(target) if self.reply(reply, &target) => {}
                Ok(_) | Err(End::Closed) => break,
                Err(End::Violation(what)) => {
                    self.log().violations.push(what);
                    break;
                }
            }
        }
        self.log().open -= 1;
    }

    /// False if the connection ends.
    fn reply(&mut self, reply: &Reply, target: &str) -> bool {
        match reply {
            Reply::Name => {}
            Reply::After(pause) => thread::sleep(*pause),
            Reply::Hold => {
                while self.fill() {}
                return false;
            }
            Reply::Bytes(bytes) => {
                let _ = self.stream.write_all(bytes);
                return false;
            }
        }
        let body = serde_json::json!({"target": target}).to_string();
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
        self.stream.write_all(format!("{head}{body}").as_bytes()).is_ok()
    }

    fn request(&mut self) -> Result<String, End> {
        let first = self.take(1)?;
        self.log().unfinished += 1;
        let request = self.request_beginning(first);
        self.log().unfinished -= 1;
        request
    }

    fn request_beginning(&mut self, mut head: Vec<u8>) -> Result<String, End> {
        while !head.ends_with(b"\r\n\r\n") {
            head.extend(self.take(1)?);
        }
        let head = String::from_utf8(head).map_err(|_| End::Violation("a head that is not text".into()))?;
        let (target, framing) = judge(&head).map_err(|what| End::Violation(format!("{what}: {head:?}")))?;
        let number = {
            let mut log = self.log();
            let seen = Seen { target: target.clone(), head, body: Vec::new(), whole: false };
            log.seen.push(seen);
            log.seen.len() - 1
        };
        match framing {
            Framing::Length(length) => {
                let body = self.take(length)?;
                self.log().seen[number].body = body;
            }
            Framing::Chunked => loop {
                let size = self.chunk_size()?;
                let data = self.take(size)?;
                self.log().seen[number].body.extend(data);
                if self.take(2)? != b"\r\n" {
                    return Err(End::Violation("a chunk without its line end".into()));
                }
                if size == 0 {
                    break;
                }
            },
        }
        self.log().seen[number].whole = true;
        Ok(target)
    }

    fn chunk_size(&mut self) -> Result<usize, End> {
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            line.extend(self.take(1)?);
        }
        let digits = String::from_utf8_lossy(&line[..line.len() - 2]).into_owned();
        let plain = !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
        let size = usize::from_str_radix(&digits, 16).ok().filter(|_| plain);
        size.ok_or_else(|| End::Violation(format!("a chunk of the size {digits:?}")))
    }

    fn take(&mut self, count: usize) -> Result<Vec<u8>, End> {
        while self.unread.len() < count {
            if !self.fill() {
                return Err(End::Closed);
            }
        }
        Ok(self.unread.drain(..count).collect())
    }

    fn fill(&mut self) -> bool {
        let mut buffer = [0; 16 * 1024];
        match self.stream.read(&mut buffer) {
            Ok(count) if count > 0 => {
                self.log().bytes.extend_from_slice(&buffer[..count]);
                self.unread.extend_from_slice(&buffer[..count]);
                true
            }
            _ => false,
        }
    }
}

enum Framing {
    Length(usize),
    Chunked,
}

/// The target and the framing of an unambiguous head.
fn judge(head: &str) -> Result<(String, Framing), &'static str> {
    let mut lines = head.trim_end_matches("\r\n").split("\r\n");
    let line: Vec<&str> = lines.next().unwrap_or_default().split(' ').collect();
    let [_, target, "HTTP/1.1"] = line[..] else { return Err("no valid request line") };
    let mut framing = None;
    for line in lines {
        let (name, value) = line.split_once(':').ok_or("a line without a colon")?;
        let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        if name.is_empty() || !name.bytes().all(token) {
            return Err("a name that is not a token");
        }
        if value.bytes().any(|byte| byte < b' ' && byte != b'\t') {
            return Err("a control character in a value");
        }
        let value = value.trim_matches([' ', '\t']);
        let new = match &*name.to_ascii_lowercase().replace('_', "-") {
            "transfer-encoding" if value == "chunked" => Framing::Chunked,
            "transfer-encoding" => return Err("a transfer coding"),
            "content-length" if !value.is_empty() && value.bytes().all(|digit| digit.is_ascii_digit()) => {
                Framing::Length(value.parse().map_err(|_| "a length that is too large")?)
            }
            "content-length" => return Err("a length that is not a number"),
            _ => continue,
        };
        if framing.replace(new).is_some() {
            return Err("two framings");
        }
    }
    Ok((target.to_owned(), framing.unwrap_or(Framing::Length(0))))
}
