//! An HTTP/2 connection, served by hyper. It sets the limits of the protocol, and connects streams with the gateway.

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::rt::Executor;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;

use crate::base::current::Current;
use crate::downstream::activity::{Activity, CloseMode, InFlightRequest};
use crate::downstream::coalesced_io::CoalescedIo;
use crate::downstream::watched_io::WatchedIo;
use crate::downstream::{DISCARD_TIMEOUT, MAX_DISCARDED_BODY, ServingConfig};
use crate::gateway::context::Peer;
use crate::gateway::{DownstreamResponse, ObservedBody};
use crate::http::client_body::ClientBody;
use crate::http::headers::Head;

/// Flow control windows for request bodies.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;

/// Maximum bytes per stream that wait for the client's flow control window.
const MAX_SEND_BUFFER: usize = 256 * 1024;

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
    /// Maximum number of requests.
    pub max_requests: u64,
}

/// Serves a connection until it ends.
pub async fn serve<I>(
    io: WatchedIo<I>,
    serving: Current<Rc<ServingConfig>>,
    peer: Rc<Peer>,
    activity: &Rc<Activity>,
    limits: Http2Limits,
) -> hyper::Result<()>
where
    I: AsyncRead + AsyncWrite + Unpin + 'static,
{
    activity.set_multiplexed();
    let service = request_service(serving, peer, activity, limits.max_requests);
    let connection = http2::Builder::new(LocalExecutor)
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits.max_streams)
        .max_pending_accept_reset_streams(limits.max_resets)
        .max_local_error_reset_streams(limits.max_resets)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(MAX_SEND_BUFFER)
        .max_header_list_size(limits.max_head_size)
        .serve_connection(TokioIo::new(CoalescedIo::new(io, Rc::clone(activity))), service_fn(service));
    let mut connection = pin!(connection);
    poll_fn(|cx| {
        activity.register_waker(cx.waker());
        loop {
            if let Poll::Ready(result) = connection.as_mut().poll(cx) {
                return Poll::Ready(result);
            }
            match activity.take_close_request() {
                None => return Poll::Pending,
                Some(CloseMode::Graceful) => {
                    // Closing the socket while the client still sends WINDOW_UPDATE would reset the end of a response.
                    activity.require_linger();
                    connection.as_mut().graceful_shutdown();
                }
                Some(CloseMode::Abort) => return Poll::Ready(Ok(())),
            }
        }
    })
    .await
}

/// Returns whether the connection was closed because of too many stream resets, in either direction.
pub fn is_abuse(error: &hyper::Error) -> bool {
    let cause = std::error::Error::source(error).and_then(|cause| cause.downcast_ref::<h2::Error>());
    cause.is_some_and(|cause| cause.is_library() && cause.reason() == Some(h2::Reason::ENHANCE_YOUR_CALM))
}

/// The function that hyper calls for each request of the connection.
fn request_service(
    serving: Current<Rc<ServingConfig>>,
    peer: Rc<Peer>,
    activity: &Rc<Activity>,
    max_requests: u64,
) -> impl Fn(Request<Incoming>) -> ResponseFuture + use<> {
    let activity = Rc::clone(activity);
    move |request| {
        let (gateway, peer) = (Rc::clone(&serving.get().gateway), Rc::clone(&peer));
        let in_flight = activity.begin_request();
        if activity.request_count() >= max_requests {
            activity.close_gracefully();
        }
        Box::pin(async move {
            let (head, body) = request.into_parts();
            let is_head = head.method == Method::HEAD;
            let (body, unread) = ClientBody::http2(body);
            let DownstreamResponse { status, headers, mut body } = gateway.handle(peer, Head::from(head), body).await;
            if let Some(unread) = unread.take() {
                tokio::task::spawn_local(discard_body(unread));
            }
            if is_head {
                body.discard();
            }
            let mut response = Response::new(InFlightBody { body, in_flight });
            *response.status_mut() = status;
            *response.headers_mut() = headers.into_map();
            Ok(response)
        })
    }
}

/// Reads and discards the rest of a request's body. Otherwise the stream would be reset at the end of the response, and
/// clients that are still sending would lose the response (curl before version 8).
async fn discard_body(mut body: Incoming) {
    let mut read = 0;
    let discard = async {
        while let Some(Ok(frame)) = body.frame().await {
            read += frame.data_ref().map_or(0, |data| data.len() as u64);
            if read > MAX_DISCARDED_BODY {
                break;
            }
        }
    };
    let _ = timeout(DISCARD_TIMEOUT, discard).await; // After that, the stream is reset.
}

type ResponseFuture = Pin<Box<dyn Future<Output = Result<Response<InFlightBody>, Infallible>>>>;

/// Runs the streams of an HTTP/2 connection on the connection's thread.
#[derive(Clone, Copy)]
struct LocalExecutor;

impl<F: Future<Output = ()> + 'static> Executor<F> for LocalExecutor {
    fn execute(&self, stream: F) {
        tokio::task::spawn_local(stream);
    }
}

/// A response body that keeps its request in flight until it ends.
struct InFlightBody {
    body: ObservedBody,
    in_flight: InFlightRequest,
}

impl Body for InFlightBody {
    type Data = Bytes;
    type Error = <ObservedBody as Body>::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.in_flight.record_waiting_for_backend();
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if polled.is_ready() {
            self.in_flight.record_waiting_for_client();
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
