//! An HTTP/2 connection, spoken by hyper.

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

/// HTTP/2 windows for requests' bodies: of a stream, and of the connection.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;

/// Most bytes of answers that wait for a stream's window.
const MAX_SEND_BUFFER: usize = 256 * 1024;

/// What a connection may ask for.
#[derive(Clone, Copy, Debug)]
pub struct Http2Limits {
    /// Most streams at once.
    pub max_streams: u32,
    /// Most bytes of a head's fields, as HTTP/2 counts them.
    pub max_head_size: u32,
    /// Streams that the client may reset before they were begun with, or have us reset by its mistakes.
    pub max_resets: usize,
    /// Most requests.
    pub max_requests: u64,
}

/// Serves a connection to its end.
pub async fn serve<I>(
    io: WatchedIo<I>,
    terms: Current<Rc<ServingConfig>>,
    client: Rc<Peer>,
    activity: &Rc<Activity>,
    bounds: Http2Limits,
) -> hyper::Result<()>
where
    I: AsyncRead + AsyncWrite + Unpin + 'static,
{
    activity.set_multiplexed();
    let answer = request_service(terms, client, activity, bounds.max_requests);
    let connection = http2::Builder::new(LocalExecutor)
        .timer(TokioTimer::new())
        .max_concurrent_streams(bounds.max_streams)
        .max_pending_accept_reset_streams(bounds.max_resets)
        .max_local_error_reset_streams(bounds.max_resets)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(MAX_SEND_BUFFER)
        .max_header_list_size(bounds.max_head_size)
        .serve_connection(TokioIo::new(CoalescedIo::new(io, Rc::clone(activity))), service_fn(answer));
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
                    // A client that makes room for the end of an answer would have it reset by doing so.
                    activity.require_linger();
                    connection.as_mut().graceful_shutdown();
                }
                Some(CloseMode::Abort) => return Poll::Ready(Ok(())),
            }
        }
    })
    .await
}

/// Whether the client was sent away for what it did: too many resets, in either direction.
pub fn is_abuse(error: &hyper::Error) -> bool {
    let cause = std::error::Error::source(error).and_then(|cause| cause.downcast_ref::<h2::Error>());
    cause.is_some_and(|cause| cause.is_library() && cause.reason() == Some(h2::Reason::ENHANCE_YOUR_CALM))
}

/// The function that answers a connection's requests.
fn request_service(
    terms: Current<Rc<ServingConfig>>,
    client: Rc<Peer>,
    activity: &Rc<Activity>,
    most_requests: u64,
) -> impl Fn(Request<Incoming>) -> ResponseFuture + use<> {
    let activity = Rc::clone(activity);
    move |request| {
        let (gateway, client) = (Rc::clone(&terms.get().gateway), Rc::clone(&client));
        let in_flight = activity.begin_request();
        if activity.request_count() >= most_requests {
            activity.close_gracefully();
        }
        Box::pin(async move {
            let (head, body) = request.into_parts();
            let is_head = head.method == Method::HEAD;
            let (body, unread) = ClientBody::http2(body);
            let DownstreamResponse { status, headers, mut body } =
                gateway.handle(client, Head::from(head), body).await;
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

/// Reads and forgets what nobody has read of a request's body. Without that its stream would be reset at the end of the
/// answer, and there are clients that lose the answer then, as they are still sending (curl before version 8).
async fn discard_body(mut body: Incoming) {
    let mut read = 0;
    let discarding = async {
        while let Some(Ok(frame)) = body.frame().await {
            read += frame.data_ref().map_or(0, |data| data.len() as u64);
            if read > MAX_DISCARDED_BODY {
                break;
            }
        }
    };
    let _ = timeout(DISCARD_TIMEOUT, discarding).await; // A reset is what is left.
}

type ResponseFuture = Pin<Box<dyn Future<Output = Result<Response<InFlightBody>, Infallible>>>>;

/// Runs an HTTP/2 connection's streams beside it.
#[derive(Clone, Copy)]
struct LocalExecutor;

impl<F: Future<Output = ()> + 'static> Executor<F> for LocalExecutor {
    fn execute(&self, stream: F) {
        tokio::task::spawn_local(stream);
    }
}

/// An answer's body; its request is in flight until it ends.
struct InFlightBody {
    body: ObservedBody,
    in_flight: InFlightRequest,
}

impl Body for InFlightBody {
    type Data = Bytes;
    type Error = <ObservedBody as Body>::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
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
