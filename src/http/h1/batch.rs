//! Bytes that are written together: small parts are copied into one buffer, large ones use a vectored write. It knows
//! nothing about when to write.

use std::io::{self, Write as _};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::io::AsyncWrite;

/// Below this size, copying costs less than a vectored write.
const MAX_COPIED: usize = 4 * 1024;

/// Small parts are collected up to this size.
const MAX_PREFIX: usize = 16 * 1024;

/// A part of a message that is written with one system call: a prefix, bytes of the body, and a suffix.
#[derive(Default)]
pub struct WriteBatch {
    /// A head, the size of a chunk, or both.
    pub prefix: Vec<u8>,
    /// Bytes of the body, not copied.
    pub data: Bytes,
    /// The end of a chunk or of the body.
    pub suffix: &'static [u8],
    written: usize,
}

impl WriteBatch {
    /// Starts with a head.
    pub fn with_head(head: Vec<u8>) -> WriteBatch {
        WriteBatch { prefix: head, ..WriteBatch::default() }
    }

    /// Whether nothing is left to write.
    pub fn is_empty(&self) -> bool {
        self.prefix.is_empty() && self.data.is_empty() && self.suffix.is_empty()
    }

    /// Whether more can be added before it has to be written.
    pub fn has_room(&self) -> bool {
        self.data.is_empty() && self.prefix.len() < MAX_PREFIX
    }

    /// The number of bytes written so far.
    pub fn written(&self) -> usize {
        self.written
    }

    /// Adds bytes of a body that is not chunked, at least one.
    pub fn push_data(&mut self, data: Bytes) {
        self.push(data, &[]);
    }

    /// Adds bytes of a body as a chunk, at least one.
    pub fn push_chunk(&mut self, data: Bytes) {
        self.push_sized(data, b"\r\n");
    }

    /// Adds the last bytes of a body as a chunk, at least one, and the end of the body.
    pub fn push_final_chunk(&mut self, data: Bytes) {
        self.push_sized(data, b"\r\n0\r\n\r\n");
    }

    /// Adds the end of a chunked body whose last bytes were added before it was known that they were the last.
    pub fn push_last_chunk(&mut self) {
        self.prefix.extend_from_slice(std::mem::take(&mut self.suffix));
        self.prefix.extend_from_slice(b"0\r\n\r\n");
    }

    fn push_sized(&mut self, data: Bytes, suffix: &'static [u8]) {
        let _ = write!(self.prefix, "{:x}\r\n", data.len());
        self.push(data, suffix);
    }

    fn push(&mut self, data: Bytes, suffix: &'static [u8]) {
        debug_assert!(self.data.is_empty() && !data.is_empty());
        if data.len() <= MAX_COPIED {
            self.prefix.extend_from_slice(&data);
            self.prefix.extend_from_slice(suffix);
        } else {
            (self.data, self.suffix) = (data, suffix);
        }
    }

    /// Writes what is left; the batch is empty when this is ready. The caller has to flush TLS.
    pub fn poll_write(&mut self, io: &mut (impl AsyncWrite + Unpin), cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut skip = self.written;
            let [prefix, data, suffix] = [&self.prefix[..], &self.data[..], self.suffix].map(|part| {
                let skipped = skip.min(part.len());
                skip -= skipped;
                &part[skipped..]
            });
            let mut io = Pin::new(&mut *io);
            let written = match (prefix.is_empty(), data.is_empty(), suffix.is_empty()) {
                (true, true, true) => break,
                (false, true, true) => ready!(io.poll_write(cx, prefix))?,
                (true, false, true) => ready!(io.poll_write(cx, data))?,
                (true, true, false) => ready!(io.poll_write(cx, suffix))?,
                _ => {
                    let parts = [prefix, data, suffix].map(io::IoSlice::new);
                    ready!(io.as_mut().poll_write_vectored(cx, &parts))?
                }
            };
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += written;
        }
        self.prefix.clear();
        self.data = Bytes::new();
        self.suffix = &[];
        self.written = 0;
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_size_of_a_chunk_is_hexadecimal() {
        let mut batch = WriteBatch::default();
        batch.push_final_chunk(vec![b'x'; 255].into());
        assert!(batch.prefix.starts_with(b"ff\r\nxx") && batch.prefix.ends_with(b"x\r\n0\r\n\r\n"));
    }
}
