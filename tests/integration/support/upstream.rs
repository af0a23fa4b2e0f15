//! A backend that records what arrives, byte for byte, and does as it is told.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use socket2::SockRef;

/// An address of this machine that answers nothing at all to who wants to connect, as one behind a firewall.
pub struct Silent {
    listener: socket2::Socket,
    /// Kept for as long as it is to be silent.
    waiting: Vec<TcpStream>,
}

impl Silent {
    pub fn start() -> Silent {
        let listener =
            socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("made");
        listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("bound");
        // One has room that nobody ever takes out; what comes after it is dropped.
        listener.listen(0).expect("listening");
        let mut silent = Silent { listener, waiting: Vec::new() };
        let (address, limit) = (silent.address(), Duration::from_millis(100));
        while let Ok(stream) = TcpStream::connect_timeout(&address, limit) {
            silent.waiting.push(stream);
        }
        silent
    }

    pub fn address(&self) -> SocketAddr {
        self.listener.local_addr().expect("an address").as_socket().expect("of IP")
    }
}

/// A request as it arrived.
#[derive(Clone, Debug)]
pub struct Recorded {
    pub line: String,
    pub fields: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Which connection it came on, counted from 0.
    pub connection: usize,
}

impl Recorded {
    /// The values of a field whose name a WSGI server would take for this one.
    pub fn folded(&self, name: &str) -> Vec<&str> {
        let fold = |name: &str| name.to_ascii_lowercase().replace('_', "-");
        let same = |(other, _): &&(String, String)| fold(other) == fold(name);
        self.fields.iter().filter(same).map(|(_, value)| value.as_str()).collect()
    }

    /// The one value of a field; empty if it is missing.
    pub fn field(&self, name: &str) -> &str {
        let all = self.folded(name);
        assert!(all.len() <= 1, "{name} stands {} times: {self:?}", all.len());
        all.first().copied().unwrap_or_default()
    }
}

/// What becomes of the connection after a request.
pub enum Then {
    KeepOpen,
    Close,
    /// Close so that the peer sees a reset.
    Reset,
}

/// Answers a request on its connection.
type Behaviour = dyn Fn(&Recorded, &mut TcpStream) -> Then + Send + Sync;

/// A listening backend; its threads end with the test's process.
pub struct Upstream {
    address: SocketAddr,
    log: Arc<Mutex<Vec<Recorded>>>,
    closed: Arc<AtomicUsize>,
}

impl Upstream {
    /// Answers every request with 200 and a little JSON.
    pub fn start() -> Upstream {
        Upstream::behaving(|_, stream| answer(stream, 200, "{\"status\":\"success\"}"))
    }

    pub fn behaving(
        behaviour: impl Fn(&Recorded, &mut TcpStream) -> Then + Send + Sync + 'static,
    ) -> Upstream {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        Upstream::on(listener, behaviour)
    }

    /// Acts as soon as the head of a request is there, on every connection, and reads nothing more.
    pub fn behaving_at_head(behaviour: impl Fn(&mut TcpStream) + Send + 'static) -> SocketAddr {
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

    /// Listens on a port that the test chose.
    pub fn on(
        listener: TcpListener,
        behaviour: impl Fn(&Recorded, &mut TcpStream) -> Then + Send + Sync + 'static,
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

    /// All requests that have arrived whole.
    pub fn log(&self) -> Vec<Recorded> {
        self.log.lock().expect("no panic").clone()
    }

    /// How many connections it has closed.
    pub fn closed(&self) -> usize {
        self.closed.load(Ordering::SeqCst)
    }

    /// The one request that has arrived.
    pub fn only(&self) -> Recorded {
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
            Then::KeepOpen => {}
            Then::Close => return,
            Then::Reset => {
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
    let fields: Vec<(String, String)> = lines
        .map(|line| line.split_once(':').expect("a field"))
        .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
        .collect();
    let field = |name: &str| fields.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str());
    let body = if field("transfer-encoding") == Some("chunked") {
        read_chunks(stream)?
    } else {
        let length = field("content-length").map_or(0, |length| length.parse().expect("a length"));
        let mut body = vec![0; length];
        stream.read_exact(&mut body).ok()?;
        body
    };
    Some(Recorded { line, fields, body, connection })
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

/// A whole answer with a JSON body.
pub fn answer(stream: &mut TcpStream, status: u16, body: &str) -> Then {
    let head = format!(
        "HTTP/1.1 {status} Whatever\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    write(stream, format!("{head}{body}").as_bytes())
}

/// Bytes as they are. A gateway that has gone away is no failure of the test.
pub fn write(stream: &mut TcpStream, bytes: &[u8]) -> Then {
    match stream.write_all(bytes) {
        Ok(()) => Then::KeepOpen,
        Err(_) => Then::Close,
    }
}
