//! A connection that records everything it receives.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::support::client::Response;

/// A raw connection with all received bytes.
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

    /// False if the gateway accepts no more.
    pub fn send(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).is_ok()
    }

    /// Closes the sending side.
    pub fn finish(&mut self) {
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// Reads until the gateway closes, or for this time.
    pub fn read_for(&mut self, time: Duration) -> &mut Wire {
        self.read_until(time, |_| false)
    }

    /// Reads until this number of final responses has arrived.
    pub fn read_responses(&mut self, count: usize, time: Duration) -> &mut Wire {
        self.read_until(time, |bytes| final_responses(bytes).len() >= count)
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

    /// Returns whether the gateway has closed the connection, gracefully or with a reset.
    pub fn closed(&self) -> bool {
        self.closed
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The received responses, without informational ones.
    pub fn responses(&self) -> Vec<Response> {
        final_responses(&self.bytes)
    }
}

fn final_responses(bytes: &[u8]) -> Vec<Response> {
    let mut rest = bytes;
    std::iter::from_fn(|| next(&mut rest)).filter(|response| response.status >= 200).collect()
}

/// The next response, if its head is complete. The request was not a HEAD.
fn next(rest: &mut &[u8]) -> Option<Response> {
    let end = rest.windows(4).position(|four| four == b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(&rest[..end]).into_owned();
    *rest = &rest[end + 4..];
    let mut lines = head.split("\r\n");
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let headers = lines.filter_map(|line| line.split_once(':'));
    let headers = headers.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect();
    let mut response = Response { status, headers, body: Vec::new(), complete: false };
    if status < 200 || matches!(status, 204 | 304) {
        response.complete = true;
    } else if response.header("transfer-encoding") == "chunked" {
        while let Some((size, after)) = chunk_size(rest) {
            *rest = after;
            let end = size.min(rest.len());
            response.body.extend_from_slice(&rest[..end]);
            *rest = rest.get(size + 2..).unwrap_or_default();
            if size == 0 {
                response.complete = true;
                break;
            }
        }
    } else {
        let length = response.header("content-length").parse().unwrap_or(rest.len());
        let end = length.min(rest.len());
        response.body = rest[..end].to_vec();
        response.complete = rest.len() >= length;
        *rest = &rest[end..];
    }
    Some(response)
}

fn chunk_size(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let end = bytes.windows(2).position(|two| two == b"\r\n")?;
    let size = usize::from_str_radix(std::str::from_utf8(&bytes[..end]).ok()?, 16).ok()?;
    Some((size, &bytes[end + 2..]))
}
