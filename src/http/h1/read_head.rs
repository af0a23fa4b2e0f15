//! Reads a head from a socket.
//!
//! Bytes are read into a buffer that the thread shares, and only received bytes are kept: an idle connection owns no
//! buffer, and a head that arrives in one read is copied once.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use tokio::io::{AsyncRead, ReadBuf};

use crate::http::h1::head::{HeadError, HeadLimits, HeadScanner};

/// Maximum size of one read.
const SCRATCH_SIZE: usize = 16 * 1024;

thread_local! {
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; SCRATCH_SIZE].into_boxed_slice());
}

/// A head, or the reason why it is rejected. `None`: the peer closed the connection before the end of the head.
pub type HeadRead = Option<Result<Vec<u8>, HeadError>>;

/// Reads a complete head, first from `unread`. Bytes after the head are left in `unread`.
pub fn poll_read_head(
    io: &mut (impl AsyncRead + Unpin),
    cx: &mut Context<'_>,
    unread: &mut BytesMut,
    scanner: &mut HeadScanner,
    limits: &HeadLimits,
) -> Poll<io::Result<HeadRead>> {
    loop {
        if !unread.is_empty() {
            match scanner.find_end(unread, limits) {
                Ok(Some(end)) => {
                    let head = copy_with_room(&unread.split_to(end));
                    if unread.is_empty() {
                        // Frees the memory.
                        *unread = BytesMut::new();
                    }
                    return Poll::Ready(Ok(Some(Ok(head))));
                }
                Err(error) => return Poll::Ready(Ok(Some(Err(error)))),
                Ok(None) => {}
            }
        }
        let head = SCRATCH.with_borrow_mut(|scratch| {
            let received = ready!(poll_read_scratch(io, cx, scratch))?;
            if received.is_empty() {
                return Poll::Ready(Ok(Some(None)));
            }
            if unread.is_empty() {
                match scanner.find_end(received, limits) {
                    Ok(Some(end)) => {
                        unread.extend_from_slice(&received[end..]);
                        return Poll::Ready(Ok(Some(Some(Ok(copy_with_room(&received[..end]))))));
                    }
                    Err(error) => return Poll::Ready(Ok(Some(Some(Err(error))))),
                    Ok(None) => {}
                }
            }
            unread.extend_from_slice(received);
            Poll::Ready(Ok::<_, io::Error>(None))
        });
        if let Some(done) = ready!(head)? {
            return Poll::Ready(Ok(done));
        }
    }
}

/// A copy with capacity for headers that are added.
fn copy_with_room(head: &[u8]) -> Vec<u8> {
    let mut copy = Vec::with_capacity(head.len() + 64);
    copy.extend_from_slice(head);
    copy
}

/// Reads available bytes to the end of `unread`. Returns their number; 0 at the end of the stream.
pub fn poll_read_more(
    io: &mut (impl AsyncRead + Unpin),
    cx: &mut Context<'_>,
    unread: &mut BytesMut,
) -> Poll<io::Result<usize>> {
    SCRATCH.with_borrow_mut(|scratch| {
        let received = ready!(poll_read_scratch(io, cx, scratch))?;
        unread.extend_from_slice(received);
        Poll::Ready(Ok(received.len()))
    })
}

fn poll_read_scratch<'a>(
    io: &mut (impl AsyncRead + Unpin),
    cx: &mut Context<'_>,
    scratch: &'a mut [u8],
) -> Poll<io::Result<&'a [u8]>> {
    let mut read = ReadBuf::new(scratch);
    ready!(Pin::new(io).poll_read(cx, &mut read))?;
    let received = read.filled().len();
    Poll::Ready(Ok(&scratch[..received]))
}
