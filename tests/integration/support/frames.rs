//! Raw HTTP/2 frames, including frames that no client library would send.

use std::collections::HashMap;
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

/// An encoded frame.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a frame").to_be_bytes();
    let mut bytes = vec![length[1], length[2], length[3], kind, flags];
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// A header as an HPACK literal without indexing.
pub fn header(name: &str, value: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0];
    for text in [name.as_bytes(), value] {
        bytes.extend(number(text.len(), 7));
        bytes.extend(text);
    }
    bytes
}

/// An HPACK integer with a prefix of `prefix` bits (RFC 7541 section 5.1).
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

/// The headers of a valid request; the test may append more.
pub fn good_head(method: &str, path: &str, token: &str) -> Vec<u8> {
    [
        header(":method", method.as_bytes()),
        header(":scheme", b"https"),
        header(":authority", b"localhost"),
        header(":path", path.as_bytes()),
        header("content-type", b"application/json"),
        header("x-api-key", token.as_bytes()),
    ]
    .concat()
}

/// A received frame.
#[derive(Clone, Debug)]
pub struct ReceivedFrame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl ReceivedFrame {
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
    pub received: Vec<ReceivedFrame>,
    /// Bytes that the gateway has added to the window of each stream.
    added_windows: HashMap<u32, usize>,
    closed: bool,
}

impl Frames {
    pub fn connect(address: SocketAddr, certificate_pem: &str) -> Frames {
        let mut tls = tls_stream(address, certificate_pem, &["h2"]);
        tls.sock.set_nonblocking(true).expect("set");
        tls.sock.set_nodelay(true).expect("set");
        tls.conn.set_buffer_limit(None);
        let mut frames =
            Frames { tls, unread: Vec::new(), received: Vec::new(), added_windows: HashMap::new(), closed: false };
        frames.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        frames.send(&frame(SETTINGS, 0, 0, &[]));
        frames.send(&frame(SETTINGS, 1, 0, &[]));
        frames
    }

    /// Sends bytes while reading incoming frames. False if the gateway accepts no more.
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

    /// Sends repeatedly until the gateway ends the connection. Returns the number sent.
    pub fn send_until_ended(&mut self, most: usize, mut next: impl FnMut(usize) -> Vec<u8>) -> usize {
        // Small frames are sent in batches, as a flood would.
        let mut batch = Vec::new();
        for sent in 0..most {
            batch.extend(next(sent));
            if batch.len() >= 8 * 1024 || sent + 1 == most {
                if !self.send(&batch) || self.has_ended() {
                    return sent + 1;
                }
                batch.clear();
            }
        }
        most
    }

    /// Reads until the condition is true, for at most two seconds.
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

    /// Returns whether the gateway closed the connection or sent GOAWAY with an error.
    pub fn has_ended(&self) -> bool {
        self.closed || self.received.iter().any(|received| received.kind == GOAWAY && received.code() != 0)
    }

    /// Returns whether the stream was reset or the connection ended.
    pub fn is_reset(&self, stream: u32) -> bool {
        self.has_ended()
            || self.received.iter().any(|received| received.kind == RST_STREAM && received.stream == stream)
    }

    /// Bytes that the gateway has added to the window of the stream.
    pub fn added_window(&self, stream: u32) -> usize {
        self.added_windows.get(&stream).copied().unwrap_or_default()
    }

    /// Returns whether the end of the stream's response has arrived.
    pub fn is_complete(&self, stream: u32) -> bool {
        self.frames(stream).any(|frame| matches!(frame.kind, DATA | HEADERS) && frame.flags & END_STREAM != 0)
    }

    /// The body of the stream's response, as far as it has arrived.
    pub fn body(&self, stream: u32) -> Vec<u8> {
        self.frames(stream).filter(|frame| frame.kind == DATA).flat_map(|frame| frame.payload.clone()).collect()
    }

    fn frames(&self, stream: u32) -> impl Iterator<Item = &ReceivedFrame> {
        self.received.iter().filter(move |frame| frame.stream == stream)
    }

    /// Returns whether a part of the stream's response body has arrived.
    pub fn has_body(&self, stream: u32) -> bool {
        self.received.iter().any(|received| received.stream == stream && received.kind == DATA)
    }

    /// The status of a stream's response, if it was not encoded by a dynamic table entry.
    pub fn status(&self, stream: u32) -> Option<u16> {
        let head = self.received.iter().find(|received| received.kind == HEADERS && received.stream == stream)?;
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
            let length =
                usize::from(self.unread[0]) << 16 | usize::from(self.unread[1]) << 8 | usize::from(self.unread[2]);
            if self.unread.len() < 9 + length {
                return;
            }
            let bytes: Vec<u8> = self.unread.drain(..9 + length).collect();
            let stream = u32::from_be_bytes(bytes[5..9].try_into().expect("four bytes"));
            let payload = &bytes[9..];
            match bytes[3] {
                WINDOW_UPDATE => {
                    let added = u32::from_be_bytes(payload.try_into().expect("four bytes"));
                    *self.added_windows.entry(stream).or_default() += added as usize;
                }
                // Responses to pings and settings are not kept, to save memory.
                PING | SETTINGS => {}
                kind => {
                    self.received.push(ReceivedFrame { kind, flags: bytes[4], stream, payload: payload.to_vec() });
                }
            }
        }
    }
}

/// `:status` at the beginning of a head: a static table entry, or a literal, Huffman-encoded or not.
fn status(block: &[u8]) -> Option<u16> {
    match *block.first()? {
        index @ 0x88..=0x8e => Some([200, 204, 206, 304, 400, 404, 500][usize::from(index) - 0x88]),
        0x48 | 0x08 if block.get(1)? & 0x80 != 0 => {
            let length = usize::from(block[1] & 0x7f);
            let mut bits = block.get(2..2 + length)?.iter().flat_map(|byte| (0..8).rev().map(move |n| byte >> n & 1));
            let mut take = |count: u32| (0..count).try_fold(0_u16, |code, _| Some(code << 1 | u16::from(bits.next()?)));
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
