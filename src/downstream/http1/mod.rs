//! An HTTP/1 connection: one request after the other; the next one is read after the response to the previous one.
//!
//! It uses the gateway's own parser, `crate::http::h1`, instead of a general library: a malformed head gets the same
//! kind of response, with a request id and an access log line, as any other rejection.

mod response;
mod wire;

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::{Method, Version};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;

use crate::base::current::Current;
use crate::config::HalfClose;
use crate::downstream::activity::Activity;
use crate::downstream::closing::CloseMode;
use crate::downstream::socket::ClientSocket;
use crate::downstream::watched_io::WatchedIo;
use crate::downstream::{MAX_DISCARDED_BODY, ServingConfig};
use crate::gateway::DownstreamResponse;
use crate::gateway::context::Peer;
use crate::gateway::rejection::Rejection;
use crate::http::client_body::ClientBody;
use crate::http::h1::head::{HeadError, HeadLimits, HeadScanner};
use crate::http::h1::request::{RequestHead, parse_request};
use crate::http::headers::Head;
use crate::observability::metrics::Protocol;

use response::RequestSummary;
use wire::Wire;

/// Maximum delay of a rejection while the body of its request arrives. Many clients send it right after the head, in a
/// separate packet.
const REJECTED_BODY_TIMEOUT: Duration = Duration::from_millis(250);

/// Limits of one connection.
#[derive(Clone, Copy, Debug)]
pub struct Http1Limits {
    /// Limits of each request head.
    pub head: HeadLimits,
    /// Maximum number of requests.
    pub max_requests: u64,
    /// What happens to the request of a client that closes its side of the connection.
    pub half_close: HalfClose,
}

/// Why a connection ends without an orderly close.
enum ConnectionEnd {
    /// The reaper aborted it.
    Aborted,
    /// The client disconnected, or its socket failed.
    Disconnected(io::Error),
    /// A response is incomplete, and the client must be able to detect that.
    ResponseIncomplete,
}

impl From<io::Error> for ConnectionEnd {
    fn from(error: io::Error) -> ConnectionEnd {
        ConnectionEnd::Disconnected(error)
    }
}

/// The next step of a connection.
enum NextRequest {
    /// Serve this request head, or reject it with this error.
    Head(Result<Vec<u8>, HeadError>),
    /// Wait with little memory.
    Quiescent,
    /// Close the connection.
    Close,
}

/// The end of the wait of a connection without a request.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wait {
    ForRequest,
    UntilQuiescent,
}

struct Http1Connection<I> {
    wire: Rc<RefCell<Wire<I>>>,
    serving: Current<Rc<ServingConfig>>,
    peer: Rc<Peer>,
    activity: Rc<Activity>,
    limits: Http1Limits,
    /// Close after the request in flight.
    is_closing: Cell<bool>,
}

/// Serves a connection until it ends. Returns the error that ended it. Not an `async fn`, whose future would hold the
/// arguments twice.
pub fn serve<I>(
    io: WatchedIo<I>,
    serving: Current<Rc<ServingConfig>>,
    peer: Rc<Peer>,
    activity: Rc<Activity>,
) -> impl Future<Output = Option<String>>
where
    I: AsyncRead + AsyncWrite + ClientSocket + Unpin + 'static,
{
    let open = serving.get().gateway.worker_metrics().open_connection(Protocol::Http1);
    let mut connection = Http1Connection::new(io, serving, peer, activity);
    async move {
        let result = connection.run().await;
        connection.wire.borrow_mut().abandon_body();
        drop(open);
        error_of(result)
    }
}

/// Rejects the first request of a connection, whatever it is, and closes the connection.
pub async fn reject<I>(
    io: WatchedIo<I>,
    serving: Current<Rc<ServingConfig>>,
    peer: Rc<Peer>,
    activity: Rc<Activity>,
    rejection: Rejection,
) -> Option<String>
where
    I: AsyncRead + AsyncWrite + ClientSocket + Unpin + 'static,
{
    let mut connection = Http1Connection::new(io, serving, peer, activity);
    let result = async {
        if let NextRequest::Head(_) = connection.next_request(Wait::ForRequest).await? {
            connection.reject(rejection).await?;
        }
        connection.shut_down().await
    };
    error_of(result.await)
}

fn error_of(end: Result<(), ConnectionEnd>) -> Option<String> {
    match end {
        Ok(()) | Err(ConnectionEnd::Aborted | ConnectionEnd::ResponseIncomplete) => None,
        Err(ConnectionEnd::Disconnected(error)) => Some(error.to_string()),
    }
}

impl<I> Http1Connection<I>
where
    I: AsyncRead + AsyncWrite + ClientSocket + Unpin + 'static,
{
    fn new(
        io: WatchedIo<I>,
        serving: Current<Rc<ServingConfig>>,
        peer: Rc<Peer>,
        activity: Rc<Activity>,
    ) -> Http1Connection<I> {
        Http1Connection {
            wire: Rc::new(RefCell::new(Wire::new(io))),
            limits: serving.get().http1_limits(),
            serving,
            peer,
            activity,
            is_closing: Cell::new(false),
        }
    }

    async fn run(&mut self) -> Result<(), ConnectionEnd> {
        while let NextRequest::Head(head) = self.next_request(Wait::ForRequest).await? {
            // Boxed, so that an idle connection is small.
            if !Box::pin(self.serve_requests(head)).await? {
                break;
            }
        }
        self.wire.borrow_mut().abandon_body();
        self.shut_down().await
    }

    async fn shut_down(&mut self) -> Result<(), ConnectionEnd> {
        Ok(self.until_shutdown(|cx, _| self.wire.borrow_mut().poll_shutdown(cx)).await??)
    }

    /// Serves requests while they follow each other closely. Returns whether the connection stays open.
    async fn serve_requests(&mut self, first: Result<Vec<u8>, HeadError>) -> Result<bool, ConnectionEnd> {
        let mut head = first;
        loop {
            let stays_open = match head.and_then(|head| parse_request(head, &self.limits.head)) {
                Ok(head) => self.serve_request(head).await?,
                Err(error) => Box::pin(self.reject(rejection_for(error))).await?,
            };
            if !stays_open {
                return Ok(false);
            }
            // Of many clients that connect at once, most send one request. Keeping the memory of each for a while would
            // require it for all of them together.
            if self.activity.request_count() == 1 {
                return Ok(true);
            }
            head = match self.next_request(Wait::UntilQuiescent).await? {
                NextRequest::Head(head) => head,
                NextRequest::Quiescent => return Ok(true),
                NextRequest::Close => return Ok(false),
            };
        }
    }

    /// Waits for the next request, or, with [`Wait::UntilQuiescent`], until the connection is quiescent.
    async fn next_request(&mut self, wait: Wait) -> Result<NextRequest, ConnectionEnd> {
        self.limits = self.serving.get().http1_limits();
        let mut scanner = HeadScanner::default();
        let head = self.until_shutdown(|cx, is_closing| {
            let mut wire = self.wire.borrow_mut();
            match wire.poll_head(cx, &mut scanner, &self.limits.head) {
                // A part of the head has arrived; `timeouts.header` limits the rest.
                Poll::Pending if wire.has_unread() => {
                    self.activity.record_head_started();
                    Poll::Pending
                }
                // A request that has already arrived is still served.
                Poll::Pending if is_closing => Poll::Ready(Ok(NextRequest::Close)),
                Poll::Pending if wait == Wait::UntilQuiescent && self.activity.is_quiescent() => {
                    Poll::Ready(Ok(NextRequest::Quiescent))
                }
                polled => polled.map_ok(|head| head.map_or(NextRequest::Close, NextRequest::Head)),
            }
        });
        match head.await {
            Ok(next) => Ok(next?),
            Err(ConnectionEnd::Aborted) if self.wire.borrow().has_unread() => {
                Box::pin(self.reject_stalled_head()).await;
                Err(ConnectionEnd::Aborted)
            }
            Err(end) => Err(end),
        }
    }

    /// Sends a rejection to a client whose head is incomplete after the timeout, if that is possible without waiting.
    async fn reject_stalled_head(&mut self) {
        let wire = Rc::clone(&self.wire);
        let mut rejection = pin!(self.reject(Rejection::RequestHeadStalled));
        poll_fn(|cx| {
            if rejection.as_mut().poll(cx).is_ready() {
                let _ = wire.borrow_mut().poll_shutdown(cx);
            }
            Poll::Ready(())
        })
        .await;
    }

    /// Rejects an invalid request head. The connection is closed, because the start of the next request is unknown.
    async fn reject(&mut self, rejection: Rejection) -> Result<bool, ConnectionEnd> {
        let in_flight = self.activity.begin_request();
        let gateway = Rc::clone(&self.serving.get().gateway);
        let response = gateway.reject(Rc::clone(&self.peer), &rejection);
        let request = RequestSummary { method: Method::GET, version: Version::HTTP_11, keep_alive: false };
        self.activity.closing.require_linger();
        self.send_response(&request, response).await?;
        drop(in_flight);
        Ok(false)
    }

    /// Serves a request. Returns whether the connection stays open.
    async fn serve_request(&mut self, head: RequestHead) -> Result<bool, ConnectionEnd> {
        let in_flight = self.activity.begin_request();
        let RequestHead { head, version, framing, keep_alive, expects_continue } = head;
        // SECURITY: data after a CONNECT is intended for the tunnel, and must not be parsed as requests.
        let keep_alive = keep_alive && head.method != Method::CONNECT;
        let mut request = RequestSummary { method: head.method.clone(), version, keep_alive };
        self.wire.borrow_mut().expect_body(framing, version, expects_continue);
        let response = self.call_gateway(head).await?;
        // Boxed, as it is rare.
        request.keep_alive &= self.wire.borrow().is_body_complete() || Box::pin(self.discard_body()).await?;
        // A client that requested the close may still send data, such as its TLS alert, and must receive the response.
        if !request.keep_alive {
            self.activity.closing.require_linger();
        }
        let stays_open = self.send_response(&request, response).await?;
        drop(in_flight);
        Ok(stays_open && !self.is_closing.get())
    }

    /// Passes the request to the gateway. If the client disconnects, the request is cancelled.
    async fn call_gateway(&mut self, head: Head) -> Result<DownstreamResponse, ConnectionEnd> {
        let body = if self.wire.borrow().is_body_complete() {
            ClientBody::Empty
        } else {
            ClientBody::Streaming(Rc::clone(&self.wire) as Rc<_>)
        };
        let (gateway, peer) = (Rc::clone(&self.serving.get().gateway), Rc::clone(&self.peer));
        let mut handling = pin!(gateway.handle(peer, head, body));
        let half_close = self.limits.half_close;
        let response = self.until_shutdown(|cx, _| match handling.as_mut().poll(cx) {
            Poll::Ready(response) => Poll::Ready(Some(response)),
            Poll::Pending => self.wire.borrow_mut().poll_disconnect(cx, half_close).map(|()| None),
        });
        response.await?.ok_or_else(|| ConnectionEnd::Disconnected(io::ErrorKind::ConnectionAborted.into()))
    }

    /// Returns whether the rest of the request's body is small enough to be read and discarded.
    fn can_discard_body(&self) -> bool {
        let wire = self.wire.borrow();
        // A body that was read in part is too large, too slow, incomplete, or still being forwarded.
        let is_small = wire.remaining_body().is_none_or(|remaining| remaining <= MAX_DISCARDED_BODY);
        is_small && wire.is_body_untouched()
    }

    /// Reads and discards the body of a rejected request, if it is small and arrives at once. Returns whether its end
    /// was reached. Otherwise the response announces the close of the connection: a client that learned of it only by
    /// the close could lose its next request.
    ///
    /// SECURITY: the rest of a body must never be parsed as the next request.
    async fn discard_body(&mut self) -> Result<bool, ConnectionEnd> {
        if !self.can_discard_body() {
            return Ok(false);
        }
        let mut read = 0;
        let discard = self.until_shutdown(|cx, _| {
            loop {
                match ready!(self.wire.borrow_mut().poll_body(cx)) {
                    None => return Poll::Ready(true),
                    Some(Ok(bytes)) => read += bytes.len() as u64,
                    Some(Err(_)) => return Poll::Ready(false),
                }
                if read > MAX_DISCARDED_BODY {
                    return Poll::Ready(false);
                }
            }
        });
        timeout(REJECTED_BODY_TIMEOUT, discard).await.unwrap_or(Ok(false))
    }

    /// Polls until the reaper aborts the connection. `poll` receives whether the connection is to close.
    async fn until_shutdown<T>(
        &self,
        mut poll: impl FnMut(&mut Context<'_>, bool) -> Poll<T>,
    ) -> Result<T, ConnectionEnd> {
        poll_fn(|cx| {
            self.activity.closing.register_waker(cx.waker());
            let close_request = self.activity.closing.take_request();
            if close_request.is_some() && self.activity.closing.must_reset() {
                self.wire.borrow().io().reset_on_drop();
            }
            match close_request {
                Some(CloseMode::Abort) => {
                    self.peer.abort_reason.set(self.activity.closing.abort_reason());
                    return Poll::Ready(Err(ConnectionEnd::Aborted));
                }
                Some(CloseMode::Graceful) => self.is_closing.set(true),
                None => {}
            }
            poll(cx, self.is_closing.get()).map(Ok)
        })
        .await
    }
}

fn rejection_for(error: HeadError) -> Rejection {
    match error {
        HeadError::Malformed(reason) => Rejection::RequestMalformed(reason),
        HeadError::TooLarge | HeadError::TooManyHeaders => Rejection::RequestHeadTooLarge,
        HeadError::TargetTooLong => Rejection::TargetTooLong,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::downstream::socket::{ClientTlsStream, ClientTransport};

    fn future_size<A, B, C, D, F: Future>(_: impl Fn(A, B, C, D) -> F) -> usize {
        size_of::<F>()
    }

    /// An idle connection costs what it holds, and there are many. Each bound is a size class of jemalloc, less the two
    /// counts of an `Rc` or the 104 bytes that tokio adds to a task.
    #[test]
    fn an_idle_connection_holds_little() {
        let sizes = [
            ("the task", future_size(crate::downstream::serve), 256 - 104),
            ("the connection", future_size(serve::<ClientTransport>), 320),
            ("the connection over TLS", future_size(serve::<Box<ClientTlsStream>>), 320),
            ("the socket and its buffers", size_of::<RefCell<Wire<ClientTransport>>>(), 192 - 16),
            ("the activity", size_of::<Activity>(), 224 - 16),
            ("the peer", size_of::<Peer>(), 128 - 16),
        ];
        for (name, size, limit) in sizes {
            assert!(size <= limit, "{name} takes {size} bytes, more than {limit}");
        }
    }
}
