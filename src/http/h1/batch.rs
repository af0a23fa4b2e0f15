//! Bytes that go out together.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::io::AsyncWrite;

use crate::http::h1::head::Framing;
use crate::http::h1::response::{CHUNK_END, FINAL_CHUNK_END, LAST_CHUNK, write_chunk_size};

/// To copy so few bytes costs less than to have the kernel gather them.
const MAX_COPIED: usize = 4 * 1024;

/// Small parts are gathered up to so many bytes.
const MAX_PREFIX: usize = 16 * 1024;

/// A part of a message that is written as one: what stands before the bytes of the body, these, and what follows.
#[derive(Default)]
pub struct WriteBatch {
    /// A head, or the size of a chunk, or both.
    pub prefix: Vec<u8>,
    /// Bytes of the body.
    pub data: Bytes,
    /// The end of a chunk, or of the body.
    pub suffix: &'static [u8],
    written: usize,
}

impl WriteBatch {
    /// A head, and what will be added.
    pub fn with_head(head: Vec<u8>) -> WriteBatch {
        WriteBatch { prefix: head, ..WriteBatch::default() }
    }

    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.prefix.is_empty() && self.data.is_empty() && self.suffix.is_empty()
    }

    /// Whether more can be added before it is written.
    pub fn has_room(&self) -> bool {
        self.data.is_empty() && self.prefix.len() < MAX_PREFIX
    }

    /// How many bytes of it were written.
    pub fn written(&self) -> usize {
        self.written
    }

    /// Adds bytes of a body; one at least. `last` are those that no others follow.
    pub fn push_data(&mut self, data: Bytes, chunked: bool, last: bool) {
        debug_assert!(self.has_room() && !data.is_empty());
        let after: &[u8] = match (chunked, last) {
            (false, _) => &[],
            (true, false) => CHUNK_END,
            (true, true) => FINAL_CHUNK_END,
        };
        if chunked {
            write_chunk_size(&mut self.prefix, data.len());
        }
        if data.len() <= MAX_COPIED {
            self.prefix.extend_from_slice(&data);
            self.prefix.extend_from_slice(after);
        } else {
            (self.data, self.suffix) = (data, after);
        }
    }

    /// Adds the end of a body after whose last bytes it was not known that they were the last.
    pub fn push_end(&mut self, framing: Framing) {
        if framing == Framing::Chunked {
            self.prefix.extend_from_slice(std::mem::take(&mut self.suffix));
            self.prefix.extend_from_slice(LAST_CHUNK);
        }
    }

    /// Writes what is left; when that is done, the batch is empty. What TLS holds back needs a flush.
    pub fn poll_write(
        &mut self,
        io: &mut (impl AsyncWrite + Unpin),
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut skip = self.written;
            let [before, data, after] = [&self.prefix[..], &self.data[..], self.suffix].map(|part| {
                let skipped = skip.min(part.len());
                skip -= skipped;
                &part[skipped..]
            });
            let mut io = Pin::new(&mut *io);
            let written = match (before.is_empty(), data.is_empty(), after.is_empty()) {
                (true, true, true) => break,
                (false, true, true) => ready!(io.poll_write(cx, before))?,
                (true, false, true) => ready!(io.poll_write(cx, data))?,
                (true, true, false) => ready!(io.poll_write(cx, after))?,
                _ => {
                    let parts = [before, data, after].map(io::IoSlice::new);
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
