//! The body of a request on an HTTP/2 stream. Received data is moved out of the HTTP/2 library at once, and the client
//! may send more only as it is read. It knows nothing about what the body is for.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use h2::RecvStream;

use crate::downstream::MAX_DISCARDED_BODY;
use crate::http::client_body::{ClientBodySource, IncompleteBody};

/// Pieces below this size are copied, because each one would keep a whole buffer of the connection in memory.
const MIN_SHARED_PIECE: usize = 4 * 1024;

/// Size of a body that clients send right behind its head: what one frame can hold.
const MAX_SHORT_BODY: u64 = 16 * 1024;

/// A request body, shared by its consumer and the task of its stream.
pub struct Http2RequestBody(RefCell<State>);

struct State {
    stream: RecvStream,
    /// Received data that was not read yet.
    pieces: VecDeque<Bytes>,
    /// Small pieces, which follow `pieces`.
    small: BytesMut,
    /// The bytes left, by the client's `content-length`; the library compares it with the data.
    remaining: Option<u64>,
    /// The error that ended the data of `stream`; `Ok` at the end of the body.
    ended: Option<Result<(), IncompleteBody>>,
    /// The client waits for a 100 response before it sends the body.
    expects_continue: bool,
    is_requested: bool,
    /// Bytes that were read for no consumer.
    discarded: u64,
}

impl Http2RequestBody {
    /// The body of a stream, with the length that the client announced.
    pub fn new(stream: RecvStream, length: Option<u64>, expects_continue: bool) -> Http2RequestBody {
        Http2RequestBody(RefCell::new(State {
            stream,
            pieces: VecDeque::new(),
            small: BytesMut::new(),
            remaining: length,
            ended: None,
            expects_continue,
            is_requested: false,
            discarded: 0,
        }))
    }

    /// Returns once whether the client waits for a 100 response and the body was requested.
    pub fn take_continue_request(&self) -> bool {
        let mut state = self.0.borrow_mut();
        state.is_requested && std::mem::take(&mut state.expects_continue)
    }

    /// Returns whether the client sends the body right behind its head.
    pub fn is_short(&self) -> bool {
        let state = self.0.borrow();
        !state.expects_continue && state.remaining.is_some_and(|remaining| remaining <= MAX_SHORT_BODY)
    }

    /// Receives what has arrived. The window of the connection is large enough for it, so that a body that is not read
    /// yet blocks no other stream.
    pub fn receive(&self, cx: &mut Context<'_>) {
        self.0.borrow_mut().receive(cx);
    }

    /// Reads and discards what has arrived, and lets the client send at most about [`MAX_DISCARDED_BODY`] bytes more.
    /// What the client has sent beyond that is discarded as well, so that a body that nothing consumes needs no memory.
    /// Returns whether the end of the body was reached.
    pub fn poll_discard(&self, cx: &mut Context<'_>) -> Poll<bool> {
        let mut state = self.0.borrow_mut();
        state.receive(cx);
        while let Some(piece) = state.next_piece() {
            state.discarded += piece.len() as u64;
            if state.discarded <= MAX_DISCARDED_BODY {
                state.release(piece.len());
                state.receive(cx);
            }
        }
        match state.ended {
            Some(_) => Poll::Ready(true),
            None if state.discarded > MAX_DISCARDED_BODY => Poll::Ready(false),
            None => Poll::Pending,
        }
    }
}

impl State {
    fn receive(&mut self, cx: &mut Context<'_>) {
        while self.ended.is_none() {
            match self.stream.poll_data(cx) {
                Poll::Pending => return,
                Poll::Ready(Some(Ok(data))) => self.push(data),
                Poll::Ready(Some(Err(error))) => self.ended = Some(Err(IncompleteBody(error.to_string()))),
                Poll::Ready(None) => self.ended = Some(self.end(cx)),
            }
        }
    }

    /// SECURITY: a stream that ends without END_STREAM is not complete.
    fn end(&mut self, cx: &mut Context<'_>) -> Result<(), IncompleteBody> {
        // Trailers follow the data, and are dropped.
        let is_complete =
            self.stream.is_end_stream() || matches!(self.stream.poll_trailers(cx), Poll::Ready(Ok(Some(_))));
        is_complete.then_some(()).ok_or_else(|| IncompleteBody("the stream was reset".to_owned()))
    }

    fn push(&mut self, data: Bytes) {
        self.expects_continue = false;
        if data.len() < MIN_SHARED_PIECE {
            return self.small.extend_from_slice(&data);
        }
        if !self.small.is_empty() {
            let small = self.small.split().freeze();
            self.pieces.push_back(small);
        }
        self.pieces.push_back(data);
    }

    /// Takes data that was received.
    fn next_piece(&mut self) -> Option<Bytes> {
        let piece = match self.pieces.pop_front() {
            Some(piece) => piece,
            None if self.small.is_empty() => return None,
            None => std::mem::take(&mut self.small).freeze(),
        };
        self.remaining = self.remaining.map(|remaining| remaining.saturating_sub(piece.len() as u64));
        Some(piece)
    }

    /// Lets the client send `count` bytes more.
    fn release(&mut self, count: usize) {
        // Fails only for a stream that is closed.
        let _ = self.stream.flow_control().release_capacity(count);
    }

    fn is_empty(&self) -> bool {
        self.pieces.is_empty() && self.small.is_empty()
    }
}

impl ClientBodySource for Http2RequestBody {
    fn poll_data(&self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, IncompleteBody>>> {
        let mut state = self.0.borrow_mut();
        state.is_requested = true;
        state.receive(cx);
        if let Some(piece) = state.next_piece() {
            state.release(piece.len());
            return Poll::Ready(Some(Ok(piece)));
        }
        match &state.ended {
            Some(Ok(())) => Poll::Ready(None),
            Some(Err(error)) => Poll::Ready(Some(Err(error.clone()))),
            None => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        let state = self.0.borrow();
        state.is_empty() && (matches!(state.ended, Some(Ok(()))) || state.stream.is_end_stream())
    }

    fn remaining(&self) -> Option<u64> {
        self.0.borrow().remaining
    }
}
