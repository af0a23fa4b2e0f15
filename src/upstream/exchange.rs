//! One request and the head of its answer, on one connection.

use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use http::{Method, StatusCode};
use http_body::Body;
use tokio::io::AsyncWrite;

use crate::http::h1::batch::Batch;
use crate::http::h1::head::{Framing, HeadError, HeadLimits, HeadScanner};
use crate::http::h1::read_head;
use crate::http::h1::request::end_request;
use crate::http::h1::response::{ResponseHead, parse_response};
use crate::upstream::connection::Connection;
use crate::upstream::request_body::{RequestBody, RequestBodyError};
use crate::upstream::{InvalidAnswer, Message, UpstreamError};

/// How large the head of an answer may be.
const HEAD_LIMITS: HeadLimits = HeadLimits { fields: 128, bytes: 64 * 1024, target: 64 * 1024 };

/// Informational answers that may come before the one that counts.
const MOST_INFORMATIONAL: u32 = 8;

/// A body that is at most so large fits into a backend's buffers, though the backend does not read.
const SURELY_TAKEN: u64 = 32 * 1024;

/// A request on its way up. It does not belong to a connection until a byte of it is written.
pub struct Upload {
    /// The head once more, if the request may be sent again.
    again: Option<Vec<u8>>,
    /// Where in the head the name of the backend stands.
    host: Range<usize>,
    batch: Batch,
    body: RequestBody,
    framing: Framing,
    /// Bytes of the body that are still to come, where their number was told.
    left: u64,
    state: State,
    is_unsent: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Sending,
    /// All of it is in the batch, or written.
    Ending,
    Done,
}

/// Why an upload broke off.
#[derive(Debug)]
pub enum UploadError {
    /// The client's part of it failed.
    Body(RequestBodyError),
    /// The connection failed.
    Connection(io::Error),
}

impl Upload {
    /// For the backend with this name.
    pub fn new(message: Message, authority: &str) -> Upload {
        let Message { method, mut head, host, body } = message;
        let host = replace(&mut head, host..host, authority.as_bytes());
        let (framing, left) = match body.size_hint().exact() {
            Some(0) => (Framing::None, 0),
            Some(length) => (Framing::Length(length), length),
            None => (Framing::Chunked, u64::MAX),
        };
        end_request(&mut head, &method, framing);
        // RFC 9110 section 9.2.2.
        let harmless = framing == Framing::None && matches!(method, Method::GET | Method::HEAD);
        let again = harmless.then(|| head.clone());
        let batch = Batch::beginning_with(head);
        Upload { again, host, batch, body, framing, left, state: State::Sending, is_unsent: true }
    }

    /// For a backend with another name, while nothing of it was written.
    pub fn address_to(&mut self, authority: &str) {
        debug_assert!(self.is_unsent);
        let host = self.host.clone();
        if let Some(again) = &mut self.again {
            replace(again, host.clone(), authority.as_bytes());
        }
        self.host = replace(&mut self.batch.before, host, authority.as_bytes());
    }

    /// Whether no byte of it was written.
    pub fn is_unsent(&self) -> bool {
        self.is_unsent
    }

    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Begins anew, once, if it does no harm that the request is carried out twice.
    pub fn rewind(&mut self) -> bool {
        let Some(head) = self.again.take() else { return false };
        self.batch = Batch::beginning_with(head);
        (self.state, self.is_unsent) = (State::Sending, true);
        true
    }

    /// Whether the backend's kernel takes all of it, whatever the backend itself is doing.
    pub fn is_surely_taken(&self) -> bool {
        match self.framing {
            Framing::None => true,
            Framing::Length(length) => length <= SURELY_TAKEN,
            Framing::Chunked => false,
        }
    }

    /// Sends what there is. `progress` is set if that was something.
    pub fn poll(
        &mut self,
        io: &mut (impl AsyncWrite + Unpin),
        cx: &mut Context<'_>,
        progress: &mut bool,
    ) -> Poll<Result<(), UploadError>> {
        loop {
            match self.state {
                State::Done => return Poll::Ready(Ok(())),
                State::Ending => {
                    ready!(self.poll_write(io, cx, progress))?;
                    ready!(Pin::new(&mut *io).poll_flush(cx)).map_err(UploadError::Connection)?;
                    self.state = State::Done;
                }
                State::Sending => {
                    if !self.batch.has_room() {
                        ready!(self.poll_write(io, cx, progress))?;
                    } else if self.poll_body(cx)?.is_pending() {
                        // What there is goes out meanwhile.
                        ready!(self.poll_write(io, cx, progress))?;
                        ready!(Pin::new(&mut *io).poll_flush(cx)).map_err(UploadError::Connection)?;
                        return Poll::Pending;
                    }
                }
            }
        }
    }

    fn poll_write(
        &mut self,
        io: &mut (impl AsyncWrite + Unpin),
        cx: &mut Context<'_>,
        progress: &mut bool,
    ) -> Poll<Result<(), UploadError>> {
        if self.batch.is_empty() {
            return Poll::Ready(Ok(()));
        }
        let before = self.batch.written();
        let polled = self.batch.poll_write(io, cx);
        if matches!(polled, Poll::Ready(Ok(()))) || self.batch.written() > before {
            *progress = true;
            self.is_unsent = false;
        }
        polled.map_err(UploadError::Connection)
    }

    /// Takes the next bytes of the body into the batch.
    fn poll_body(&mut self, cx: &mut Context<'_>) -> Result<Poll<()>, UploadError> {
        let body = &mut self.body;
        let data = loop {
            match Pin::new(&mut *body).poll_frame(cx) {
                Poll::Pending => return Ok(Poll::Pending),
                Poll::Ready(None) => break None,
                Poll::Ready(Some(Err(error))) => return Err(UploadError::Body(error)),
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) if !data.is_empty() => break Some(data),
                    _ => {}
                },
            }
        };
        let broken = |what: &str| Err(UploadError::Body(RequestBodyError::Broken(what.to_owned())));
        match data {
            None if self.framing != Framing::Chunked && self.left > 0 => {
                return broken("it ended before its length");
            }
            None => {
                self.batch.load_end(self.framing);
                self.state = State::Ending;
            }
            Some(data) => {
                match self.left.checked_sub(data.len() as u64) {
                    Some(left) => self.left = left,
                    None => return broken("it goes on behind its length"),
                }
                let last = self.body.is_end_stream() && (self.left == 0 || self.framing == Framing::Chunked);
                self.batch.load(data, self.framing == Framing::Chunked, last);
                if last {
                    self.state = State::Ending;
                }
            }
        }
        Ok(Poll::Ready(()))
    }
}

/// Puts other bytes in the place of some. Says where they stand.
fn replace(all: &mut Vec<u8>, at: Range<usize>, with: &[u8]) -> Range<usize> {
    let (before, new_end) = (all.len(), at.start + with.len());
    let after = before - at.end;
    all.resize(before.max(new_end + after), 0);
    all.copy_within(at.end..before, new_end);
    all.truncate(new_end + after);
    all[at.start..new_end].copy_from_slice(with);
    at.start..new_end
}

/// Sends a request and waits for the head of the answer that counts.
pub struct Exchange<'a> {
    pub connection: &'a mut Connection,
    pub upload: &'a mut Upload,
    method: &'a Method,
    scanner: HeadScanner,
    informational: u32,
    /// Why the rest of the upload cannot be sent. The backend may have answered before it closed.
    failed: Option<io::Error>,
}

impl<'a> Exchange<'a> {
    pub fn new(connection: &'a mut Connection, upload: &'a mut Upload, method: &'a Method) -> Exchange<'a> {
        Exchange {
            connection,
            upload,
            method,
            scanner: HeadScanner::default(),
            informational: 0,
            failed: None,
        }
    }

    /// `progress` is set when the upload got on.
    pub fn poll(
        &mut self,
        cx: &mut Context<'_>,
        progress: &mut bool,
    ) -> Poll<Result<ResponseHead, UpstreamError>> {
        if self.failed.is_none() {
            match self.upload.poll(&mut self.connection.stream, cx, progress) {
                Poll::Ready(Err(UploadError::Body(error))) => {
                    return Poll::Ready(Err(UpstreamError::RequestBody(error)));
                }
                Poll::Ready(Err(UploadError::Connection(error))) => {
                    if self.upload.is_unsent() {
                        return Poll::Ready(Err(UpstreamError::Closed(error)));
                    }
                    self.failed = Some(error);
                }
                Poll::Ready(Ok(())) | Poll::Pending => {}
            }
        }
        loop {
            let Connection { stream, unread, .. } = &mut *self.connection;
            let head = match ready!(read_head::poll_head(stream, cx, unread, &mut self.scanner, &HEAD_LIMITS))
            {
                Ok(Some(head)) => head.map_err(invalid)?,
                ended if unread.is_empty() => {
                    let error = ended.err().or_else(|| self.failed.take());
                    let error = error.unwrap_or_else(|| io::ErrorKind::UnexpectedEof.into());
                    return Poll::Ready(Err(UpstreamError::Closed(error)));
                }
                _ => return Poll::Ready(Err(invalid(HeadError::Malformed("the head breaks off")))),
            };
            let answer = parse_response(head, self.method).map_err(invalid)?;
            match answer.status {
                StatusCode::SWITCHING_PROTOCOLS => return Poll::Ready(Err(UpstreamError::UnaskedUpgrade)),
                status if status.is_informational() => {
                    self.informational += 1;
                    if self.informational > MOST_INFORMATIONAL {
                        return Poll::Ready(Err(invalid(HeadError::TooLarge)));
                    }
                    self.scanner = HeadScanner::default();
                }
                _ => return Poll::Ready(Ok(answer)),
            }
        }
    }
}

fn invalid(error: HeadError) -> UpstreamError {
    UpstreamError::Invalid(InvalidAnswer(match error {
        HeadError::Malformed(what) => what,
        _ => "its head is too large",
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_addressed_to_one_backend_after_the_other() {
        let mut head = b"GET / HTTP/1.1\r\nhost: ".to_vec();
        let host = head.len();
        head.extend_from_slice(b"\r\naccept: */*");
        let message = Message { method: Method::GET, head, host, body: RequestBody::empty() };
        let mut upload = Upload::new(message, "first:8000");
        for name in ["first:8000", "b", "another.example:8000", ""] {
            upload.address_to(name);
            let expected = format!("GET / HTTP/1.1\r\nhost: {name}\r\naccept: */*\r\n\r\n");
            assert_eq!(upload.batch.before, expected.as_bytes());
            assert_eq!(upload.again.as_deref(), Some(expected.as_bytes()), "the second time too");
        }
    }

    /// A backend that takes so many bytes, and no more.
    struct Full(usize);

    impl AsyncWrite for Full {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            let taken = buf.len().min(self.0);
            self.0 -= taken;
            if taken == 0 { Poll::Pending } else { Poll::Ready(Ok(taken)) }
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[test]
    fn what_is_stuck_half_way_makes_no_progress() {
        let head = b"GET / HTTP/1.1\r\nhost: ".to_vec();
        let host = head.len();
        let mut upload =
            Upload::new(Message { method: Method::GET, head, host, body: RequestBody::empty() }, "b");
        let cx = &mut Context::from_waker(std::task::Waker::noop());
        let mut poll = |io: &mut Full| {
            let mut progress = false;
            let done = upload.poll(io, cx, &mut progress).is_ready();
            (progress, done, upload.is_unsent())
        };
        assert_eq!(poll(&mut Full(0)), (false, false, true));
        assert_eq!(poll(&mut Full(5)), (true, false, false));
        assert_eq!(poll(&mut Full(0)), (false, false, false), "nor does asking again");
        assert_eq!(poll(&mut Full(1000)), (true, true, false));
    }
}
