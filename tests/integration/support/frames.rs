//! HTTP/2 written by hand: frames that no client library would send.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use rustls::{ClientConnection, StreamOwned};

use crate::support::h2_client::tls_stream;

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;

/// A frame as it stands on the wire.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a frame").to_be_bytes();
    let mut bytes = vec![length[1], length[2], length[3], kind, flags];
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// A field as an HPACK literal that enters no table.
pub fn field(name: &str, value: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0];
    for text in [name.as_bytes(), value] {
        bytes.extend(number(text.len(), 7));
        bytes.extend(text);
    }
    bytes
}

/// An HPACK number with a prefix of so many bits (RFC 7541 section 5.1).
fn number(value: usize, prefix: u32) -> Vec<u8> {
    let most = (1 << prefix) - 1;
    if value < most {
        return vec![u8::try_from(value).expect("small")];
    }
    let mut bytes = vec![u8::try_from(most).expect("a prefix")];
    let mut rest = value - most;
    while rest >= 128 {
        bytes.push(u8::try_from(rest % 128).expect("seven bits") | 128);
        rest /= 128;
    }
    bytes.push(u8::try_from(rest).expect("seven bits"));
    bytes
}

/// The fields of a request that is good, but for what is appended.
pub fn good_head(method: &str, path: &str, token: &str) -> Vec<u8> {
    [
        field(":method", method.as_bytes()),
        field(":scheme", b"https"),
        field(":authority", b"localhost"),
        field(":path", path.as_bytes()),
        field("content-type", b"application/json"),
        field("x-api-key", token.as_bytes()),
    ]
    .concat()
}

/// A frame that came.
#[derive(Clone, Debug)]
pub struct Came {
    pub kind: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Came {
    /// The error code of a RST_STREAM or GOAWAY.
    pub fn code(&self) -> u32 {
        let at = if self.kind == GOAWAY { 4 } else { 0 };
        u32::from_be_bytes(self.payload[at..at + 4].try_into().expect("four bytes"))
    }
}

/// A connection over TLS, after both prefaces.
pub struct Frames {
    tls: StreamOwned<ClientConnection, TcpStream>,
    unread: Vec<u8>,
    pub came: Vec<Came>,
    closed: bool,
}

impl Frames {
    pub fn connect(address: SocketAddr, certificate_pem: &str) -> Frames {
        let mut tls = tls_stream(address, certificate_pem, &["h2"]);
        tls.sock.set_nonblocking(true).expect("set");
        tls.sock.set_nodelay(true).expect("set");
        tls.conn.set_buffer_limit(None);
        let mut frames = Frames { tls, unread: Vec::new(), came: Vec::new(), closed: false };
        frames.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        frames.send(&frame(SETTINGS, 0, 0, &[]));
        frames.send(&frame(SETTINGS, 1, 0, &[]));
        frames
    }

    /// Sends, and reads what comes meanwhile. False if the gateway takes no more.
    pub fn send(&mut self, bytes: &[u8]) -> bool {
        let end = Instant::now() + Duration::from_secs(5);
        for part in bytes.chunks(16 * 1024) {
            let _ = self.tls.conn.writer().write_all(part);
            while self.tls.conn.wants_write() && !self.closed {
                match self.tls.conn.write_tls(&mut self.tls.sock) {
                    Ok(_) => {}
                    Err(error) if error.kind() == ErrorKind::WouldBlock && Instant::now() < end => {
                        self.receive();
                        std::thread::sleep(Duration::from_millis(1));
                    }
                    Err(_) => self.closed = true,
                }
            }
            self.receive();
            if self.closed {
                return false;
            }
        }
        true
    }

    /// Sends again and again, until the gateway ends the connection. How many were sent.
    pub fn send_until_ended(&mut self, most: usize, mut next: impl FnMut(usize) -> Vec<u8>) -> usize {
        // Frames that are small go together, as a flood would send them.
        let mut batch = Vec::new();
        for sent in 0..most {
            batch.extend(next(sent));
            if batch.len() >= 8 * 1024 || sent + 1 == most {
                if !self.send(&batch) || self.is_ended() {
                    return sent + 1;
                }
                batch.clear();
            }
        }
        most
    }

    /// Reads until it is so, for two seconds at most.
    pub fn wait_for(&mut self, so: impl Fn(&Frames) -> bool) -> bool {
        let end = Instant::now() + Duration::from_secs(2);
        while !so(self) {
            if Instant::now() > end || self.closed {
                return so(self);
            }
            self.receive();
            std::thread::sleep(Duration::from_millis(1));
        }
        true
    }

    /// Whether the gateway closed, or said by an error that it will.
    pub fn is_ended(&self) -> bool {
        self.closed || self.came.iter().any(|came| came.kind == GOAWAY && came.code() != 0)
    }

    /// Whether a stream was reset, or all of them.
    pub fn is_reset(&self, stream: u32) -> bool {
        self.is_ended() || self.came.iter().any(|came| came.kind == RST_STREAM && came.stream == stream)
    }

    /// Whether the body of a stream's answer is here, or a part of it.
    pub fn has_answered(&self, stream: u32) -> bool {
        self.came.iter().any(|came| came.stream == stream && came.kind == DATA)
    }

    /// The status of a stream's answer, if that is one that the gateway has not used before on this connection.
    pub fn status(&self, stream: u32) -> Option<u16> {
        let head = self.came.iter().find(|came| came.kind == HEADERS && came.stream == stream)?;
        status(&head.payload)
    }

    fn receive(&mut self) {
        loop {
            match self.tls.conn.read_tls(&mut self.tls.sock) {
                Ok(0) => self.closed = true,
                Ok(_) if self.tls.conn.process_new_packets().is_ok() => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                _ => self.closed = true,
            }
            let mut buffer = [0; 16 * 1024];
            while let Ok(count) = self.tls.conn.reader().read(&mut buffer) {
                if count == 0 {
                    self.closed = true;
                    break;
                }
                self.unread.extend_from_slice(&buffer[..count]);
            }
            if self.closed {
                break;
            }
        }
        self.sort();
    }

    fn sort(&mut self) {
        while self.unread.len() >= 9 {
            let length = usize::from(self.unread[0]) << 16
                | usize::from(self.unread[1]) << 8
                | usize::from(self.unread[2]);
            if self.unread.len() < 9 + length {
                return;
            }
            let bytes: Vec<u8> = self.unread.drain(..9 + length).collect();
            let stream = u32::from_be_bytes(bytes[5..9].try_into().expect("four bytes"));
            // Answers to pings and settings would only fill the test's own memory.
            if !matches!(bytes[3], PING | SETTINGS | WINDOW_UPDATE) {
                let payload = bytes[9..].to_vec();
                self.came.push(Came { kind: bytes[3], stream, payload });
            }
        }
    }
}

/// `:status` at the beginning of a head: an entry of the static table, or a literal in Huffman's code.
fn status(block: &[u8]) -> Option<u16> {
    match *block.first()? {
        index @ 0x88..=0x8e => Some([200, 204, 206, 304, 400, 404, 500][usize::from(index) - 0x88]),
        0x48 | 0x08 if block.get(1)? & 0x80 != 0 => {
            let length = usize::from(block[1] & 0x7f);
            let mut bits =
                block.get(2..2 + length)?.iter().flat_map(|byte| (0..8).rev().map(move |n| byte >> n & 1));
            let mut take =
                |count: u32| (0..count).try_fold(0_u16, |code, _| Some(code << 1 | u16::from(bits.next()?)));
            (0..3).try_fold(0, |status, _| {
                let five = take(5)?;
                let digit = if five < 3 { five } else { (five << 1 | take(1)?) - 0x19 + 3 };
                Some(status * 10 + digit)
            })
        }
        0x48 | 0x08 => std::str::from_utf8(block.get(2..5)?).ok()?.parse().ok(),
        _ => None,
    }
}
