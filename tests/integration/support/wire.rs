//! What a connection carried, from the first byte to the last.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::support::client::Answer;

/// A connection on which everything that comes is kept.
pub struct Wire {
    stream: TcpStream,
    bytes: Vec<u8>,
    closed: bool,
}

impl Wire {
    pub fn connect(address: SocketAddr) -> Wire {
        let stream = TcpStream::connect(address).expect("connected");
        stream.set_nodelay(true).expect("set");
        stream.set_write_timeout(Some(Duration::from_secs(5))).expect("set");
        Wire { stream, bytes: Vec::new(), closed: false }
    }

    /// False if the gateway takes no more.
    pub fn send(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).is_ok()
    }

    /// Sends nothing any more.
    pub fn finish(&mut self) {
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// Reads until the gateway closes, or for so long.
    pub fn read_for(&mut self, time: Duration) -> &mut Wire {
        self.read_until(time, |_| false)
    }

    /// Reads until so many final answers have come.
    pub fn read_answers(&mut self, count: usize, time: Duration) -> &mut Wire {
        self.read_until(time, |bytes| final_answers(bytes).len() >= count)
    }

    fn read_until(&mut self, time: Duration, enough: impl Fn(&[u8]) -> bool) -> &mut Wire {
        let end = Instant::now() + time;
        let mut buffer = vec![0; 64 * 1024];
        while !self.closed && !enough(&self.bytes) {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            self.stream.set_read_timeout(Some(left)).expect("set");
            match self.stream.read(&mut buffer) {
                Ok(0) => self.closed = true,
                Ok(count) => self.bytes.extend_from_slice(&buffer[..count]),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => break,
                Err(_) => self.closed = true,
            }
        }
        self
    }

    /// Whether the gateway has closed, in order or by a reset.
    pub fn closed(&self) -> bool {
        self.closed
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The answers that came, informational ones left out.
    pub fn answers(&self) -> Vec<Answer> {
        final_answers(&self.bytes)
    }
}

fn final_answers(bytes: &[u8]) -> Vec<Answer> {
    let mut rest = bytes;
    std::iter::from_fn(|| next(&mut rest)).filter(|answer| answer.status >= 200).collect()
}

/// The next answer to a request that was no HEAD, if its head is complete.
fn next(rest: &mut &[u8]) -> Option<Answer> {
    let end = rest.windows(4).position(|four| four == b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(&rest[..end]).into_owned();
    *rest = &rest[end + 4..];
    let mut lines = head.split("\r\n");
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let fields = lines.filter_map(|line| line.split_once(':'));
    let fields = fields.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect();
    let mut answer = Answer { status, fields, body: Vec::new(), complete: false };
    if status < 200 || matches!(status, 204 | 304) {
        answer.complete = true;
    } else if answer.field("transfer-encoding") == "chunked" {
        while let Some((size, after)) = chunk_size(rest) {
            *rest = after;
            let end = size.min(rest.len());
            answer.body.extend_from_slice(&rest[..end]);
            *rest = rest.get(size + 2..).unwrap_or_default();
            if size == 0 {
                answer.complete = true;
                break;
            }
        }
    } else {
        let length = answer.field("content-length").parse().unwrap_or(rest.len());
        let end = length.min(rest.len());
        answer.body = rest[..end].to_vec();
        answer.complete = rest.len() >= length;
        *rest = &rest[end..];
    }
    Some(answer)
}

fn chunk_size(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let end = bytes.windows(2).position(|two| two == b"\r\n")?;
    let size = usize::from_str_radix(std::str::from_utf8(&bytes[..end]).ok()?, 16).ok()?;
    Some((size, &bytes[end + 2..]))
}
