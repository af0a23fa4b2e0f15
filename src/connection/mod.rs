//! One client's connection: TLS, then HTTP/1.1 or HTTP/2, until it ends or has to.

pub mod activity;
mod watched_io;

use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::rt::Executor;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tracing::debug;

use crate::gateway::context::Client;
use crate::gateway::{Gateway, ObservedBody, RequestUnfinished};

use activity::{Activity, InFlight, Order, Registration};
use watched_io::WatchedIo;

/// Most bytes of a request's head.
const MAX_HEAD: usize = 64 * 1024;

/// Most streams of an HTTP/2 connection at once.
const MAX_STREAMS: u32 = 128;

/// HTTP/2 windows for requests' bodies: of a stream, and of the connection.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;

/// Most bytes of answers that wait for an HTTP/2 stream's window.
const MAX_SEND_BUFFER: usize = 256 * 1024;

/// What connections of one listener have in common.
pub struct Service {
    /// Answers requests.
    pub gateway: Rc<Gateway>,
    /// How to speak TLS; `None` for plain HTTP.
    pub acceptor: Option<TlsAcceptor>,
    /// The longest that a TLS handshake may take.
    pub handshake_timeout: Duration,
}

/// Serves a connection to its end. Errors of a client are its own; they are worth a line at debug level.
pub async fn serve(service: Rc<Service>, stream: TcpStream, peer: SocketAddr, place: Registration) {
    let activity = Rc::clone(&place.activity);
    let client = Client { address: peer.ip().to_canonical(), secure: service.acceptor.is_some() };
    let gateway = Rc::clone(&service.gateway);
    let result = match &service.acceptor {
        None => serve_http1(gateway, client, WatchedIo::new(stream, Rc::clone(&activity)), &activity).await,
        Some(acceptor) => match handshake(acceptor, stream, service.handshake_timeout, &activity).await {
            Err(error) => return debug!(%peer, %error, "TLS handshake failed"),
            Ok(stream) => {
                let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                let io = WatchedIo::new(stream, Rc::clone(&activity));
                if http2 {
                    serve_http2(gateway, client, io, &activity).await
                } else {
                    serve_http1(gateway, client, io, &activity).await
                }
            }
        },
    };
    if let Err(error) = result {
        let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
        debug!(%peer, %error, cause, "connection ended with an error");
    }
}

/// Bounded by its own time, and by the reaper's orders.
async fn handshake(
    acceptor: &TlsAcceptor,
    stream: TcpStream,
    limit: Duration,
    activity: &Activity,
) -> io::Result<TlsStream<TcpStream>> {
    let mut handshake = pin!(timeout(limit, acceptor.accept(stream)));
    poll_fn(|cx| {
        activity.wake_for_orders(cx.waker());
        match handshake.as_mut().poll(cx) {
            Poll::Ready(done) => Poll::Ready(done.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))),
            Poll::Pending if activity.take_order().is_some() => {
                Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()))
            }
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

async fn serve_http1<I>(
    gateway: Rc<Gateway>,
    client: Client,
    io: I,
    activity: &Rc<Activity>,
) -> hyper::Result<()>
where
    I: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let answer = answering(gateway, client, activity);
    let connection = http1::Builder::new()
        .max_buf_size(MAX_HEAD)
        .max_header_size(MAX_HEAD)
        // Idle connections and slow heads are the reaper's: hyper's timer would cut the former after the latter's time.
        .header_read_timeout(None)
        .serve_connection(TokioIo::new(io), service_fn(answer));
    obey(pin!(connection), activity, http1::Connection::graceful_shutdown).await
}

async fn serve_http2<I>(
    gateway: Rc<Gateway>,
    client: Client,
    io: I,
    activity: &Rc<Activity>,
) -> hyper::Result<()>
where
    I: AsyncRead + AsyncWrite + Unpin + 'static,
{
    activity.multiplexed();
    let answer = answering(gateway, client, activity);
    let connection = http2::Builder::new(OnThisThread)
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(MAX_SEND_BUFFER)
        .max_header_list_size(u32::try_from(MAX_HEAD).expect("64 KiB"))
        .serve_connection(TokioIo::new(io), service_fn(answer));
    obey(pin!(connection), activity, http2::Connection::graceful_shutdown).await
}

/// The function that answers a connection's requests.
fn answering(
    gateway: Rc<Gateway>,
    client: Client,
    activity: &Rc<Activity>,
) -> impl Fn(Request<Incoming>) -> Answering + use<> {
    let activity = Rc::clone(activity);
    move |request| {
        let gateway = Rc::clone(&gateway);
        let in_flight = activity.request();
        let activity = Rc::clone(&activity);
        Box::pin(async move {
            let response = gateway.handle(client, request).await;
            if response.extensions().get::<RequestUnfinished>().is_some() {
                activity.linger();
            }
            Ok(response.map(|body| GuardedBody { body, in_flight }))
        })
    }
}

type Answering = Pin<Box<dyn Future<Output = Result<Response<GuardedBody>, Infallible>>>>;

/// Drives a connection, and does what the reaper says.
async fn obey<C>(
    mut connection: Pin<&mut C>,
    activity: &Activity,
    close: impl Fn(Pin<&mut C>),
) -> hyper::Result<()>
where
    C: Future<Output = hyper::Result<()>>,
{
    poll_fn(|cx| {
        activity.wake_for_orders(cx.waker());
        loop {
            if let Poll::Ready(result) = connection.as_mut().poll(cx) {
                return Poll::Ready(result);
            }
            match activity.take_order() {
                None => return Poll::Pending,
                Some(Order::Close) => close(connection.as_mut()),
                Some(Order::Cut) => return Poll::Ready(Ok(())),
            }
        }
    })
    .await
}

/// Runs an HTTP/2 connection's streams beside it.
#[derive(Clone, Copy)]
struct OnThisThread;

impl<F: Future<Output = ()> + 'static> Executor<F> for OnThisThread {
    fn execute(&self, stream: F) {
        tokio::task::spawn_local(stream);
    }
}

/// An answer's body; its request is in flight until it ends.
struct GuardedBody {
    body: ObservedBody,
    in_flight: InFlight,
}

impl Body for GuardedBody {
    type Data = Bytes;
    type Error = <ObservedBody as Body>::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.in_flight.awaited();
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if polled.is_ready() {
            self.in_flight.offered();
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
