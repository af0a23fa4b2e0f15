//! Reading a head off a socket.
//!
//! Bytes are read into space that the thread has for that, and only what came is kept: a connection that waits owns no
//! buffer, and a head that comes in one piece is copied once.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use tokio::io::{AsyncRead, ReadBuf};

use crate::http::h1::head::{HeadError, HeadLimits, HeadScanner};

/// Most bytes that one read takes.
const SCRATCH_SIZE: usize = 16 * 1024;

thread_local! {
    static READING: RefCell<Box<[u8]>> = RefCell::new(vec![0; SCRATCH_SIZE].into_boxed_slice());
}

/// A head, or why it is refused. `None`: the peer closed before its end.
pub type HeadRead = Option<Result<Vec<u8>, HeadError>>;

/// Looks for a whole head, first in `unread`, where what came behind it is left.
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
                        // Lets go of the memory.
                        *unread = BytesMut::new();
                    }
                    return Poll::Ready(Ok(Some(Ok(head))));
                }
                Err(error) => return Poll::Ready(Ok(Some(Err(error)))),
                Ok(None) => {}
            }
        }
        let found = READING.with_borrow_mut(|scratch| {
            let came = ready!(poll_read_scratch(io, cx, scratch))?;
            if came.is_empty() {
                return Poll::Ready(Ok(Some(None)));
            }
            if unread.is_empty() {
                match scanner.find_end(came, limits) {
                    Ok(Some(end)) => {
                        unread.extend_from_slice(&came[end..]);
                        return Poll::Ready(Ok(Some(Some(Ok(copy_with_room(&came[..end]))))));
                    }
                    Err(error) => return Poll::Ready(Ok(Some(Some(Err(error))))),
                    Ok(None) => {}
                }
            }
            unread.extend_from_slice(came);
            Poll::Ready(Ok::<_, io::Error>(None))
        });
        if let Some(done) = ready!(found)? {
            return Poll::Ready(Ok(done));
        }
    }
}

/// A head, and some room for what may be added to it.
fn copy_with_room(head: &[u8]) -> Vec<u8> {
    let mut kept = Vec::with_capacity(head.len() + 64);
    kept.extend_from_slice(head);
    kept
}

/// Reads what comes next, a head or not, behind what is in `unread`. 0 is the end.
pub fn poll_read_more(
    io: &mut (impl AsyncRead + Unpin),
    cx: &mut Context<'_>,
    unread: &mut BytesMut,
) -> Poll<io::Result<usize>> {
    READING.with_borrow_mut(|scratch| {
        let came = ready!(poll_read_scratch(io, cx, scratch))?;
        unread.extend_from_slice(came);
        Poll::Ready(Ok(came.len()))
    })
}

fn poll_read_scratch<'a>(
    io: &mut (impl AsyncRead + Unpin),
    cx: &mut Context<'_>,
    scratch: &'a mut [u8],
) -> Poll<io::Result<&'a [u8]>> {
    let mut read = ReadBuf::new(scratch);
    ready!(Pin::new(io).poll_read(cx, &mut read))?;
    let came = read.filled().len();
    Poll::Ready(Ok(&scratch[..came]))
}
