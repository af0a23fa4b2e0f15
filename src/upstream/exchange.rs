//! Sends one request on one connection and reads the head of its response. It knows nothing about pools, endpoints or
//! timeouts.

use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use http::{Method, StatusCode};
use tokio::io::AsyncWrite;

use crate::http::h1::batch::WriteBatch;
use crate::http::h1::head::{Framing, HeadError, HeadLimits, HeadScanner};
use crate::http::h1::read_head;
use crate::http::h1::request::write_request_end;
use crate::http::h1::response::{ResponseHead, parse_response};
use crate::upstream::connection::UpstreamConnection;
use crate::upstream::request_body::{RequestBody, RequestBodyError};
use crate::upstream::retry::is_repeatable;
use crate::upstream::{InvalidResponse, OutgoingMessage, UpstreamError};

/// Limits on the head of a response.
const HEAD_LIMITS: HeadLimits = HeadLimits { max_headers: 128, max_bytes: 64 * 1024 };

/// Informational (1xx) responses before the final one: bytes at once, and bytes per second after that. Each response
/// counts as at least [`MIN_INFORMATIONAL_COST`] bytes.
const INFORMATIONAL_BURST: u64 = 32 * 1024;
const INFORMATIONAL_RATE: u64 = 8 * 1024;
const MIN_INFORMATIONAL_COST: u64 = 512;

/// A request up to this size fits into the receive buffer of every backend, even if it does not read.
const MAX_BUFFERED_REQUEST: u64 = 4 * 1024;

/// A request that is being sent. It is not tied to a connection until a byte of it is written.
pub struct Upload {
    /// A copy of the head, if the request may be retried.
    retry_head: Option<Vec<u8>>,
    /// Where the backend's name is in the head; `None` if the head has a different one.
    host_range: Option<Range<usize>>,
    batch: WriteBatch,
    body: RequestBody,
    framing: Framing,
    /// Bytes of the body that are still to come, if its length is known.
    body_left: u64,
    state: UploadState,
    unsent: bool,
    /// The size of head and body, if it is known.
    size: Option<u64>,
    /// Everything that the client has sent is written.
    awaits_client: bool,
}

/// A client that paused for at least this long in total may have caused the backend to time out.
const MAX_CLIENT_WAIT: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, PartialEq, Eq)]
enum UploadState {
    Sending,
    /// The end of the request is in the batch or already written.
    Ending,
    Done,
}

/// Why an upload failed.
#[derive(Debug)]
pub enum UploadError {
    /// The client's body failed.
    Body(RequestBodyError),
    /// Writing to the backend failed.
    Connection(io::Error),
}

impl Upload {
    /// Prepares a request for the backend with this name.
    pub fn new(message: OutgoingMessage, authority: &str) -> Upload {
        let OutgoingMessage { method, mut head, host_offset, body } = message;
        let host_range = host_offset.map(|at| replace_range(&mut head, at..at, authority.as_bytes()));
        let (framing, body_left) = match body.exact_size() {
            Some(0) => (Framing::None, 0),
            Some(length) => (Framing::Length(length), length),
            None => (Framing::Chunked, u64::MAX),
        };
        write_request_end(&mut head, &method, framing);
        let size = body.exact_size().map(|length| length.saturating_add(head.len() as u64));
        let retry_head = is_repeatable(&method, framing).then(|| head.clone());
        let batch = WriteBatch::with_head(head);
        Upload {
            retry_head,
            host_range,
            batch,
            body,
            framing,
            body_left,
            state: UploadState::Sending,
            unsent: true,
            size,
            awaits_client: false,
        }
    }

    /// Changes the `host` header, before anything is written.
    pub fn set_host(&mut self, authority: &str) {
        debug_assert!(self.unsent);
        let Some(host) = self.host_range.clone() else { return };
        if let Some(head) = &mut self.retry_head {
            replace_range(head, host.clone(), authority.as_bytes());
        }
        self.host_range = Some(replace_range(&mut self.batch.prefix, host, authority.as_bytes()));
    }

    /// Returns whether no byte of the request was written.
    pub fn is_unsent(&self) -> bool {
        self.unsent
    }

    pub fn is_done(&self) -> bool {
        self.state == UploadState::Done
    }

    /// Returns whether the request may be sent from the beginning again: it is repeatable, and was not rewound before.
    pub fn can_rewind(&self) -> bool {
        self.retry_head.is_some()
    }

    /// Starts again from the beginning. Does nothing unless [`Upload::can_rewind`].
    pub fn rewind(&mut self) {
        let Some(head) = self.retry_head.take() else { return };
        self.batch = WriteBatch::with_head(head);
        (self.state, self.unsent) = (UploadState::Sending, true);
    }

    /// Returns whether the next bytes of the body have to arrive from the client.
    pub fn awaits_client(&self) -> bool {
        self.awaits_client
    }

    /// Returns whether a backend that closes the connection may have done so because the client is slow.
    pub fn is_client_slow(&self) -> bool {
        self.awaits_client && self.body.waited() >= MAX_CLIENT_WAIT
    }

    /// Returns whether the socket buffers can hold the whole request, so that the kernel accepts it even if the backend
    /// does not read.
    pub fn can_be_buffered(&self) -> bool {
        self.size.is_some_and(|size| size <= MAX_BUFFERED_REQUEST)
    }

    /// Sends what is available. Sets `progress` if at least one byte was written.
    pub fn poll(
        &mut self,
        io: &mut (impl AsyncWrite + Unpin),
        cx: &mut Context<'_>,
        progress: &mut bool,
    ) -> Poll<Result<(), UploadError>> {
        self.awaits_client = false;
        loop {
            match self.state {
                UploadState::Done => return Poll::Ready(Ok(())),
                UploadState::Ending => {
                    ready!(self.poll_write(io, cx, progress))?;
                    ready!(Pin::new(&mut *io).poll_flush(cx)).map_err(UploadError::Connection)?;
                    self.state = UploadState::Done;
                }
                UploadState::Sending => {
                    if !self.batch.has_room() {
                        ready!(self.poll_write(io, cx, progress))?;
                    } else if self.poll_body(cx)?.is_pending() {
                        // Send the batch while the body is pending.
                        ready!(self.poll_write(io, cx, progress))?;
                        ready!(Pin::new(&mut *io).poll_flush(cx)).map_err(UploadError::Connection)?;
                        self.awaits_client = true;
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
            self.unsent = false;
        }
        polled.map_err(UploadError::Connection)
    }

    /// Loads the next bytes of the body into the batch.
    fn poll_body(&mut self, cx: &mut Context<'_>) -> Result<Poll<()>, UploadError> {
        let data = loop {
            match self.body.poll_data(cx) {
                Poll::Pending => return Ok(Poll::Pending),
                Poll::Ready(None) => break None,
                Poll::Ready(Some(Err(error))) => return Err(UploadError::Body(error)),
                Poll::Ready(Some(Ok(data))) if data.is_empty() => {}
                Poll::Ready(Some(Ok(data))) => break Some(data),
            }
        };
        let broken = |why: &str| Err(UploadError::Body(RequestBodyError::Broken(why.to_owned())));
        match data {
            None if self.framing != Framing::Chunked && self.body_left > 0 => {
                return broken("it is shorter than its content-length");
            }
            None => {
                if self.framing == Framing::Chunked {
                    self.batch.push_last_chunk();
                }
                self.state = UploadState::Ending;
            }
            Some(data) => {
                match self.body_left.checked_sub(data.len() as u64) {
                    Some(left) => self.body_left = left,
                    None => return broken("it is longer than its content-length"),
                }
                let is_last = self.body.is_end_stream() && (self.body_left == 0 || self.framing == Framing::Chunked);
                match (self.framing, is_last) {
                    (Framing::Chunked, false) => self.batch.push_chunk(data),
                    (Framing::Chunked, true) => self.batch.push_final_chunk(data),
                    _ => self.batch.push_data(data),
                }
                if is_last {
                    self.state = UploadState::Ending;
                }
            }
        }
        Ok(Poll::Ready(()))
    }
}

/// Replaces a range of bytes, and returns the new range.
fn replace_range(bytes: &mut Vec<u8>, range: Range<usize>, replacement: &[u8]) -> Range<usize> {
    let (old_len, new_end) = (bytes.len(), range.start + replacement.len());
    let rest = old_len - range.end;
    bytes.resize(old_len.max(new_end + rest), 0);
    bytes.copy_within(range.end..old_len, new_end);
    bytes.truncate(new_end + rest);
    bytes[range.start..new_end].copy_from_slice(replacement);
    range.start..new_end
}

/// Sends a request and waits for the head of the final response.
pub struct UpstreamExchange<'a> {
    pub connection: &'a mut UpstreamConnection,
    pub upload: &'a mut Upload,
    method: &'a Method,
    reader: ResponseHeadReader,
    /// Why the rest of the upload cannot be sent. The backend may still have sent a response before it closed.
    upload_error: Option<io::Error>,
}

impl<'a> UpstreamExchange<'a> {
    pub fn new(
        connection: &'a mut UpstreamConnection,
        upload: &'a mut Upload,
        method: &'a Method,
    ) -> UpstreamExchange<'a> {
        UpstreamExchange { connection, upload, method, reader: ResponseHeadReader::default(), upload_error: None }
    }

    /// Sets `progress` if the upload made progress.
    pub fn poll(&mut self, cx: &mut Context<'_>, progress: &mut bool) -> Poll<Result<ResponseHead, UpstreamError>> {
        if self.upload_error.is_none() {
            match self.upload.poll(&mut self.connection.stream, cx, progress) {
                Poll::Ready(Err(UploadError::Body(error))) => {
                    return Poll::Ready(Err(UpstreamError::RequestBody(error)));
                }
                Poll::Ready(Err(UploadError::Connection(error))) => {
                    if self.upload.is_unsent() {
                        return Poll::Ready(Err(UpstreamError::Closed(error)));
                    }
                    self.upload_error = Some(error);
                }
                Poll::Ready(Ok(())) | Poll::Pending => {}
            }
        }
        self.reader.poll(self.connection, self.method, cx).map_err(|error| {
            // After an informational response, the connection was not closed because it was idle.
            if self.reader.informational.since.is_some() {
                self.upload.retry_head = None;
            }
            match (error, self.upload_error.take()) {
                (UpstreamError::Closed(eof), Some(cause)) if eof.kind() == io::ErrorKind::UnexpectedEof => {
                    UpstreamError::Closed(cause)
                }
                (error, _) => error,
            }
        })
    }
}

/// Reads the head of the final response.
#[derive(Default)]
pub struct ResponseHeadReader {
    scanner: HeadScanner,
    informational: InformationalBudget,
}

impl ResponseHeadReader {
    /// Ready with the head of the final response to a request with this method.
    pub fn poll(
        &mut self,
        connection: &mut UpstreamConnection,
        method: &Method,
        cx: &mut Context<'_>,
    ) -> Poll<Result<ResponseHead, UpstreamError>> {
        loop {
            let UpstreamConnection { stream, unread, .. } = &mut *connection;
            let head = match ready!(read_head::poll_read_head(stream, cx, unread, &mut self.scanner, &HEAD_LIMITS)) {
                Ok(Some(head)) => head.map_err(invalid_response)?,
                ended if unread.is_empty() => {
                    let error = ended.err().unwrap_or_else(|| io::ErrorKind::UnexpectedEof.into());
                    return Poll::Ready(Err(UpstreamError::Closed(error)));
                }
                _ => {
                    return Poll::Ready(Err(invalid_response(HeadError::Malformed("the head is incomplete"))));
                }
            };
            let size = head.len() as u64;
            let response = parse_response(head, method).map_err(invalid_response)?;
            match response.status {
                StatusCode::SWITCHING_PROTOCOLS => return Poll::Ready(Err(UpstreamError::UnexpectedUpgrade)),
                status if status.is_informational() => {
                    if !self.informational.take(size) {
                        return Poll::Ready(Err(invalid_response(HeadError::Malformed(
                            "it follows too many informational responses",
                        ))));
                    }
                    self.scanner = HeadScanner::default();
                }
                _ => return Poll::Ready(Ok(response)),
            }
        }
    }
}

/// Limits the rate of informational responses, which a long query may send for as long as it takes.
#[derive(Default)]
struct InformationalBudget {
    spent: u64,
    /// When the first one arrived.
    since: Option<Instant>,
}

impl InformationalBudget {
    /// Returns whether a response of this size is within the limit.
    fn take(&mut self, size: u64) -> bool {
        let elapsed = self.since.get_or_insert_with(Instant::now).elapsed();
        self.spent += size.max(MIN_INFORMATIONAL_COST);
        self.spent <= INFORMATIONAL_BURST + INFORMATIONAL_RATE * elapsed.as_secs()
    }
}

fn invalid_response(error: HeadError) -> UpstreamError {
    UpstreamError::Invalid(InvalidResponse(match error {
        HeadError::Malformed(reason) => reason,
        _ => "the head is too large",
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_header_can_be_changed_before_sending() {
        let mut head = b"GET / HTTP/1.1\r\nhost: ".to_vec();
        let host_offset = Some(head.len());
        head.extend_from_slice(b"\r\naccept: */*");
        let message = OutgoingMessage { method: Method::GET, head, host_offset, body: RequestBody::empty() };
        let mut upload = Upload::new(message, "first:8000");
        for name in ["first:8000", "b", "another.example:8000", ""] {
            upload.set_host(name);
            let expected = format!("GET / HTTP/1.1\r\nhost: {name}\r\naccept: */*\r\n\r\n");
            assert_eq!(upload.batch.prefix, expected.as_bytes());
            assert_eq!(upload.retry_head.as_deref(), Some(expected.as_bytes()), "also for a retry");
        }
    }

    /// A backend that accepts this many bytes and no more.
    struct LimitedWriter(usize);

    impl AsyncWrite for LimitedWriter {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            let written = buf.len().min(self.0);
            self.0 -= written;
            if written == 0 { Poll::Pending } else { Poll::Ready(Ok(written)) }
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[test]
    fn a_stalled_upload_makes_no_progress() {
        let head = b"GET / HTTP/1.1\r\nhost: ".to_vec();
        let host_offset = Some(head.len());
        let mut upload =
            Upload::new(OutgoingMessage { method: Method::GET, head, host_offset, body: RequestBody::empty() }, "b");
        let cx = &mut Context::from_waker(std::task::Waker::noop());
        let mut poll = |io: &mut LimitedWriter| {
            let mut progress = false;
            let done = upload.poll(io, cx, &mut progress).is_ready();
            (progress, done, upload.is_unsent())
        };
        assert_eq!(poll(&mut LimitedWriter(0)), (false, false, true));
        assert_eq!(poll(&mut LimitedWriter(5)), (true, false, false));
        assert_eq!(poll(&mut LimitedWriter(0)), (false, false, false), "nor does a second poll");
        assert_eq!(poll(&mut LimitedWriter(1000)), (true, true, false));
    }
}
