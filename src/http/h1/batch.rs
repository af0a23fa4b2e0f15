//! Bytes that go out together.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::io::AsyncWrite;

use crate::http::h1::head::Framing;
use crate::http::h1::response::{BODY_END, CHUNK_END, LAST_CHUNK_END, write_chunk_size};

/// To copy so few bytes costs less than to have the kernel gather them.
const MOST_COPIED: usize = 4 * 1024;

/// Small parts are gathered up to so many bytes.
const MOST_GATHERED: usize = 16 * 1024;

/// A part of a message that is written as one: what stands before the bytes of the body, these, and what follows.
#[derive(Default)]
pub struct Batch {
    /// A head, or the size of a chunk, or both.
    pub before: Vec<u8>,
    /// Bytes of the body.
    pub data: Bytes,
    /// The end of a chunk, or of the body.
    pub after: &'static [u8],
    written: usize,
}

impl Batch {
    /// A head, and what will be added.
    pub fn beginning_with(head: Vec<u8>) -> Batch {
        Batch { before: head, ..Batch::default() }
    }

    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.before.is_empty() && self.data.is_empty() && self.after.is_empty()
    }

    /// Whether more can be added before it is written.
    pub fn has_room(&self) -> bool {
        self.data.is_empty() && self.before.len() < MOST_GATHERED
    }

    /// How many bytes of it were written.
    pub fn written(&self) -> usize {
        self.written
    }

    /// Adds bytes of a body; one at least. `last` are those that no others follow.
    pub fn load(&mut self, data: Bytes, chunked: bool, last: bool) {
        debug_assert!(self.has_room() && !data.is_empty());
        let after: &[u8] = match (chunked, last) {
            (false, _) => &[],
            (true, false) => CHUNK_END,
            (true, true) => LAST_CHUNK_END,
        };
        if chunked {
            write_chunk_size(&mut self.before, data.len());
        }
        if data.len() <= MOST_COPIED {
            self.before.extend_from_slice(&data);
            self.before.extend_from_slice(after);
        } else {
            (self.data, self.after) = (data, after);
        }
    }

    /// Adds the end of a body after whose last bytes it was not known that they were the last.
    pub fn load_end(&mut self, framing: Framing) {
        if framing == Framing::Chunked {
            self.before.extend_from_slice(std::mem::take(&mut self.after));
            self.before.extend_from_slice(BODY_END);
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
            let [before, data, after] = [&self.before[..], &self.data[..], self.after].map(|part| {
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
        self.before.clear();
        self.data = Bytes::new();
        self.after = &[];
        self.written = 0;
        Poll::Ready(Ok(()))
    }
}
