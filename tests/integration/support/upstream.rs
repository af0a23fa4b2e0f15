//! A backend that records requests byte for byte and behaves as the test specifies.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use socket2::SockRef;

use crate::support::wait_until;

/// A local address that does not respond to connection attempts, like one behind a firewall.
pub struct UnresponsiveAddress {
    listener: socket2::Socket,
    /// Connections that fill the backlog.
    waiting: Vec<TcpStream>,
}

impl UnresponsiveAddress {
    pub fn start() -> UnresponsiveAddress {
        let listener = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("made");
        listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("bound");
        // The backlog takes one connection, which is never accepted; the kernel drops further ones.
        listener.listen(0).expect("listening");
        let mut silent = UnresponsiveAddress { listener, waiting: Vec::new() };
        let (address, limit) = (silent.address(), Duration::from_millis(100));
        while let Ok(stream) = TcpStream::connect_timeout(&address, limit) {
            silent.waiting.push(stream);
        }
        silent
    }

    pub fn address(&self) -> SocketAddr {
        self.listener.local_addr().expect("an address").as_socket().expect("an IP address")
    }
}

/// A request as received.
#[derive(Clone, Debug)]
pub struct Recorded {
    pub line: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// The index of its connection, from 0.
    pub connection: usize,
}

impl Recorded {
    /// All values of a header, with `_` and `-` treated as equal, as in WSGI servers.
    pub fn folded_headers(&self, name: &str) -> Vec<&str> {
        let fold = |name: &str| name.to_ascii_lowercase().replace('_', "-");
        let same = |(other, _): &&(String, String)| fold(other) == fold(name);
        self.headers.iter().filter(same).map(|(_, value)| value.as_str()).collect()
    }

    /// True for the check of a random key; the keys of the tests have a different form.
    pub fn is_random_key_check(&self) -> bool {
        let key = self.header("x-api-key");
        self.line.contains("get_ontologies") && key.len() == 43 && key.starts_with("tk_")
    }

    /// The only value of a header; empty if it is missing.
    pub fn header(&self, name: &str) -> &str {
        let all = self.folded_headers(name);
        assert!(all.len() <= 1, "{name} occurs {} times: {self:?}", all.len());
        all.first().copied().unwrap_or_default()
    }
}

/// The action on the connection after a request.
pub enum AfterRequest {
    KeepOpen,
    Close,
    /// Close with a TCP reset.
    Reset,
}

/// Handles a request on its connection.
type Behaviour = dyn Fn(&Recorded, &mut TcpStream) -> AfterRequest + Send + Sync;

/// A listening backend. Its threads end with the test process.
pub struct Upstream {
    address: SocketAddr,
    log: Arc<Mutex<Vec<Recorded>>>,
    closed: Arc<AtomicUsize>,
}

impl Upstream {
    /// Responds to every request with 200 and a small JSON body.
    pub fn start() -> Upstream {
        Upstream::with_behaviour(|_, stream| respond(stream, 200, "{\"status\":\"success\"}"))
    }

    pub fn with_behaviour(
        behaviour: impl Fn(&Recorded, &mut TcpStream) -> AfterRequest + Send + Sync + 'static,
    ) -> Upstream {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        Upstream::listen_on(listener, behaviour)
    }

    /// Sends no responses before it is opened.
    pub fn gate() -> (Upstream, Arc<AtomicBool>) {
        let open = Arc::new(AtomicBool::new(false));
        let ours = Arc::clone(&open);
        let upstream = Upstream::with_behaviour(move |_, stream| {
            wait_until("the gate is opened", || ours.load(Ordering::SeqCst));
            respond(stream, 200, "{}")
        });
        (upstream, open)
    }

    /// Acts when the head of a request has arrived, on every connection, and reads nothing more.
    pub fn with_behaviour_at_head(behaviour: impl Fn(&mut TcpStream) + Send + 'static) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        let address = listener.local_addr().expect("an address");
        thread::spawn(move || {
            let mut open = Vec::new();
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    let Some(byte) = read_byte(&mut stream) else { break };
                    head.push(byte);
                }
                behaviour(&mut stream);
                open.push(stream);
            }
        });
        address
    }

    /// Listens on a port of the test.
    pub fn listen_on(
        listener: TcpListener,
        behaviour: impl Fn(&Recorded, &mut TcpStream) -> AfterRequest + Send + Sync + 'static,
    ) -> Upstream {
        let address = listener.local_addr().expect("an address");
        let log = Arc::<Mutex<Vec<Recorded>>>::default();
        let behaviour: Arc<Behaviour> = Arc::new(behaviour);
        let (records, closed) = (Arc::clone(&log), Arc::<AtomicUsize>::default());
        let count = Arc::clone(&closed);
        thread::spawn(move || {
            for (number, stream) in listener.incoming().enumerate() {
                let Ok(stream) = stream else { return };
                let (records, behaviour) = (Arc::clone(&records), Arc::clone(&behaviour));
                let count = Arc::clone(&count);
                thread::spawn(move || {
                    serve(stream, number, &records, &*behaviour);
                    count.fetch_add(1, Ordering::SeqCst);
                });
            }
        });
        Upstream { address, log, closed }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// All complete requests.
    pub fn log(&self) -> Vec<Recorded> {
        self.log.lock().expect("no panic").clone()
    }

    /// The number of connections that it closed.
    pub fn closed(&self) -> usize {
        self.closed.load(Ordering::SeqCst)
    }

    /// The only request.
    pub fn only_request(&self) -> Recorded {
        let log = self.log();
        assert_eq!(log.len(), 1, "{log:#?}");
        log.into_iter().next().expect("one")
    }
}

fn serve(mut stream: TcpStream, connection: usize, log: &Mutex<Vec<Recorded>>, behaviour: &Behaviour) {
    stream.set_nodelay(true).expect("set");
    while let Some(request) = read_request(&mut stream, connection) {
        log.lock().expect("no panic").push(request.clone());
        match behaviour(&request, &mut stream) {
            AfterRequest::KeepOpen => {}
            AfterRequest::Close => return,
            AfterRequest::Reset => {
                SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("set");
                return;
            }
        }
    }
}

fn read_request(stream: &mut TcpStream, connection: usize) -> Option<Recorded> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(read_byte(stream)?);
    }
    let head = String::from_utf8(head).expect("a head is text");
    let mut lines = head.trim_end().split("\r\n");
    let line = lines.next()?.to_owned();
    let headers: Vec<(String, String)> = lines
        .map(|line| line.split_once(':').expect("a field"))
        .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
        .collect();
    let header = |name: &str| headers.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str());
    let body = if header("transfer-encoding") == Some("chunked") {
        read_chunks(stream)?
    } else {
        let length = header("content-length").map_or(0, |length| length.parse().expect("a length"));
        let mut body = vec![0; length];
        stream.read_exact(&mut body).ok()?;
        body
    };
    Some(Recorded { line, headers, body, connection })
}

fn read_chunks(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            line.push(read_byte(stream)?);
        }
        let size = std::str::from_utf8(&line).expect("text").trim();
        let size = usize::from_str_radix(size, 16).expect("a chunk's size");
        let mut chunk = vec![0; size + 2];
        stream.read_exact(&mut chunk).ok()?;
        if size == 0 {
            return Some(body);
        }
        body.extend_from_slice(&chunk[..size]);
    }
}

fn read_byte(stream: &mut TcpStream) -> Option<u8> {
    let mut byte = [0];
    match stream.read(&mut byte) {
        Ok(1) => Some(byte[0]),
        _ => None,
    }
}

/// Sends a complete response with a JSON body.
pub fn respond(stream: &mut TcpStream, status: u16, body: &str) -> AfterRequest {
    let head = format!(
        "HTTP/1.1 {status} Whatever\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    write(stream, format!("{head}{body}").as_bytes())
}

/// Sends raw bytes. A disconnected gateway does not fail the test.
pub fn write(stream: &mut TcpStream, bytes: &[u8]) -> AfterRequest {
    match stream.write_all(bytes) {
        Ok(()) => AfterRequest::KeepOpen,
        Err(_) => AfterRequest::Close,
    }
}
