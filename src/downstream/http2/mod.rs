//! An HTTP/2 connection, parsed by `h2`. It sets the limits of the protocol, starts a task for each stream, and writes
//! what the streams have to send.

mod coalesced_io;
mod delivery;
mod request_body;
mod sent_frames;
mod stream;

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use h2::RecvStream;
use h2::server::{Builder, Connection, Handshake, SendResponse};
use http::Request;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::base::current::Current;
use crate::downstream::ServingConfig;
use crate::downstream::activity::Activity;
use crate::downstream::closing::CloseMode;
use crate::downstream::frame_meter::FrameState;
use crate::downstream::head_block::HeadFault;
use crate::downstream::socket::ClientSocket;
use crate::downstream::watched_io::WatchedIo;
use crate::gateway::context::Peer;
use crate::gateway::rejection::Rejection;

use coalesced_io::{CoalescedIo, Flushed};

pub use coalesced_io::MAX_BUFFERED;
use delivery::{Delivery, SendQueue, SentData};
use sent_frames::LibraryRejection;

/// Flow control window of a stream: what a request costs while its body is not read. The window of the connection is as
/// large as those of all its streams, so that bodies that are not read block no other stream.
const STREAM_WINDOW: u32 = 64 * 1024;

/// Maximum bytes that a stream may pass to the library before they can be written: four frames.
const MAX_SEND_BUFFER: usize = 64 * 1024;

/// What small DATA frames that have just arrived may lack to 256 bytes each. By default it would depend on the window of the
/// connection, and so on the maximum number of streams.
const MAX_FRAME_OVERHEAD: usize = 4 * 1024 * 1024;

/// The reason in the log for requests in flight when the connection ends by an error of the client or a limit.
const CONNECTION_ERROR: &str = "connection_error";

/// Limits of one connection.
#[derive(Clone, Copy, Debug)]
pub struct Http2Limits {
    /// Maximum number of concurrent streams.
    pub max_streams: u32,
    /// Maximum size of a request's headers, as defined by HTTP/2 (SETTINGS_MAX_HEADER_LIST_SIZE).
    pub max_head_size: u32,
    /// Maximum number of streams that the client resets before they are accepted, or that are reset because of its
    /// errors.
    pub max_resets: usize,
    /// Maximum number of streams that are refused because others are open. A client may open any number of streams
    /// before it has received the SETTINGS.
    pub max_refused: usize,
    /// Maximum number of requests.
    pub max_requests: u64,
}

struct Http2Connection<I> {
    io: CoalescedIo<WatchedIo<I>>,
    state: ConnectionState<I>,
    queue: Rc<SendQueue>,
    frames: Rc<FrameState>,
    serving: Current<Rc<ServingConfig>>,
    peer: Rc<Peer>,
    activity: Rc<Activity>,
    limits: Http2Limits,
    /// The flush waits until other streams had a chance to add their frames.
    is_flush_deferred: bool,
    /// Too many errors of the client have ended the connection.
    is_abusive: bool,
}

enum ConnectionState<I> {
    Handshake(Box<Handshake<CoalescedIo<WatchedIo<I>>, SentData>>),
    Open(Box<Connection<CoalescedIo<WatchedIo<I>>, SentData>>),
}

/// Serves a connection until it ends. `frames` is shared with `io`.
pub async fn serve<I>(
    io: WatchedIo<I>,
    serving: Current<Rc<ServingConfig>>,
    peer: Rc<Peer>,
    activity: &Rc<Activity>,
    limits: Http2Limits,
    frames: Rc<FrameState>,
) -> Result<(), Http2Error>
where
    I: AsyncRead + AsyncWrite + ClientSocket + Unpin + 'static,
{
    activity.set_multiplexed();
    // Closing the socket while the client still sends would reset the end of a response, or the GOAWAY.
    activity.closing.require_linger();
    let io = CoalescedIo::new(io);
    let handshake = Builder::new()
        .max_concurrent_streams(limits.max_streams)
        .max_pending_accept_reset_streams(limits.max_resets)
        // The library also counts refused streams; `check_resets` limits the others.
        .max_local_error_reset_streams(Some(limits.max_resets.saturating_add(limits.max_refused)))
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(connection_window(limits.max_streams))
        .max_send_buffer_size(MAX_SEND_BUFFER)
        .max_header_list_size(limits.max_head_size)
        .data_frame_budget(MAX_FRAME_OVERHEAD)
        .handshake(io.clone());
    let mut connection = Http2Connection {
        io,
        state: ConnectionState::Handshake(Box::new(handshake)),
        queue: Rc::new(SendQueue::new(Rc::clone(&frames))),
        serving,
        peer,
        activity: Rc::clone(activity),
        frames,
        limits,
        is_flush_deferred: false,
        is_abusive: false,
    };
    let result = poll_fn(|cx| connection.poll(cx)).await;
    let queue = Rc::clone(&connection.queue);
    let is_abusive = connection.is_abusive;
    drop(connection);
    queue.close();
    if is_abusive { Err(Http2Error::TooManyResets) } else { result }
}

fn connection_window(max_streams: u32) -> u32 {
    const MAX_WINDOW: u32 = (1 << 31) - 1;
    STREAM_WINDOW.saturating_mul(max_streams).min(MAX_WINDOW)
}

/// Why a connection failed.
#[derive(Debug, thiserror::Error)]
pub enum Http2Error {
    /// The client violated the protocol or a limit, or its socket failed.
    #[error(transparent)]
    Protocol(#[from] h2::Error),
    /// The socket failed while the gateway wrote to it.
    #[error(transparent)]
    Socket(#[from] io::Error),
    /// More streams than [`Http2Limits::max_resets`] were reset because of the client's errors.
    #[error("too many streams were reset because of the client's errors")]
    TooManyResets,
}

impl Http2Error {
    /// Returns whether the connection was closed because of too many stream resets, in either direction.
    pub fn is_abuse(&self) -> bool {
        match self {
            Http2Error::Protocol(error) => error.is_library() && error.reason() == Some(h2::Reason::ENHANCE_YOUR_CALM),
            Http2Error::Socket(_) => false,
            Http2Error::TooManyResets => true,
        }
    }
}

impl<I> Http2Connection<I>
where
    I: AsyncRead + AsyncWrite + ClientSocket + Unpin + 'static,
{
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Http2Error>> {
        self.activity.closing.register_waker(cx.waker());
        loop {
            let polled = self.poll_accept(cx);
            self.record_sent_frames();
            if let Poll::Ready(result) = polled {
                return Poll::Ready(result);
            }
            if self.end_if_abusive() {
                continue;
            }
            if self.frames.is_lost() {
                self.activity.closing.close_gracefully();
            }
            let close_request = self.activity.closing.take_request();
            if close_request.is_some() && self.activity.closing.must_reset() {
                self.io.socket().inner().reset_on_drop();
            }
            match (close_request, &mut self.state) {
                (None, _) => {}
                (Some(CloseMode::Graceful), ConnectionState::Open(connection)) => {
                    connection.graceful_shutdown();
                    continue;
                }
                (Some(_), _) => {
                    self.peer.abort_reason.set(self.activity.closing.abort_reason());
                    return Poll::Ready(Ok(()));
                }
            }
            match ready!(self.poll_flush(cx)) {
                Ok(Flushed::MoreWaiting) => {}
                Ok(Flushed::Completely) => return Poll::Pending,
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
    }

    /// Starts the streams that have arrived. Ready when the connection has ended.
    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Http2Error>> {
        loop {
            match &mut self.state {
                ConnectionState::Handshake(handshake) => {
                    let connection = ready!(Pin::new(handshake).poll(cx))?;
                    self.state = ConnectionState::Open(Box::new(connection));
                }
                ConnectionState::Open(connection) => match ready!(connection.poll_accept(cx)) {
                    Some(Ok((request, respond))) => self.start_stream(request, respond),
                    Some(Err(error)) => return Poll::Ready(Err(error.into())),
                    None => return Poll::Ready(Ok(())),
                },
            }
        }
    }

    fn start_stream(&self, request: Request<RecvStream>, respond: SendResponse<SentData>) {
        let in_flight = self.activity.begin_request();
        if self.activity.request_count() >= self.limits.max_requests {
            self.activity.closing.close_gracefully();
        }
        let gateway = Rc::clone(&self.serving.get().gateway);
        let delivery = Rc::new(Delivery::new(Rc::clone(&self.queue), in_flight));
        let stream_id = respond.stream_id().as_u32();
        let fault = self.frames.take_fault(stream_id);
        self.io.sent_frames().record_request(stream_id);
        // The others are answered.
        if matches!(fault, Some(HeadFault::Malformed | HeadFault::Unreadable)) {
            self.io.sent_frames().record_own_reset(stream_id);
        }
        let stream = stream::serve(gateway, Rc::clone(&self.peer), request, fault, respond, delivery);
        // Boxed, as the runtime copies a future several times, and this one has some KiB.
        tokio::task::spawn_local(Box::pin(stream));
    }

    /// Records what the library has decided on its own: rejected requests have a line in the access log too, and
    /// requests in flight a reason if the connection has failed.
    fn record_sent_frames(&self) {
        let (rejected, has_error) = {
            let sent = &mut self.io.sent_frames();
            (sent.take_rejected(), sent.has_error())
        };
        if has_error {
            self.peer.abort_reason.set(Some(CONNECTION_ERROR));
        }
        for (_, rejection) in rejected {
            let rejection = match rejection {
                LibraryRejection::Malformed => Rejection::RequestMalformed("its head violates the rules of HTTP/2"),
                LibraryRejection::TooLarge => Rejection::RequestHeadTooLarge,
                LibraryRejection::Refused => Rejection::StreamRefused,
            };
            drop(self.serving.get().gateway.reject(Rc::clone(&self.peer), &rejection));
        }
    }

    /// Closes a connection with too many errors of the client. Returns whether it did: once, as the library may be unable
    /// to send the GOAWAY, because the client does not read or the connection is closing already.
    ///
    /// SECURITY: the backend may work on requests whose streams are reset.
    fn end_if_abusive(&mut self) -> bool {
        let ConnectionState::Open(connection) = &mut self.state else { return false };
        if self.is_abusive || self.io.sent_frames().client_errors() <= self.limits.max_resets {
            return false;
        }
        self.is_abusive = true;
        connection.abrupt_shutdown(h2::Reason::ENHANCE_YOUR_CALM);
        true
    }

    /// Sends what is buffered. Yields once while other requests are in flight, whose responses may be ready too.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Flushed>> {
        let in_flight = self.activity.in_flight() as usize;
        let others_may_follow = in_flight > self.queue.written().max(1);
        if !self.io.is_empty() && !self.is_flush_deferred && others_may_follow {
            self.is_flush_deferred = true;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let flushed = ready!(self.io.poll_send(cx))?;
        self.is_flush_deferred = false;
        if flushed == Flushed::Completely {
            // An idle connection keeps no buffer; connections that have just written are rarely idle.
            if in_flight <= self.queue.written() {
                self.io.release_buffer();
            }
            self.queue.record_flush();
        }
        Poll::Ready(Ok(flushed))
    }
}
