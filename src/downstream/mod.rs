//! One client connection: the PROXY protocol header, the TLS handshake, then HTTP/1.1 or HTTP/2 until the connection
//! ends. It passes requests to the gateway, and knows nothing about authentication, routes or backends.

mod activity;
mod closing;
mod departure;
mod frame_meter;
mod handshake_failure;
mod head_block;
mod http1;
mod http2;
mod huffman;
mod in_flight_request;
pub mod listener;
mod proxy_protocol;
pub mod reaper;
mod response_slot;
mod socket;
mod watched_io;

use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use rustls::{HandshakeKind, ProtocolVersion};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tracing::{debug, info};

use crate::admission::Admission;
use crate::base::current::Current;
use crate::config::{Config, LimitOptions};
use crate::gateway::Gateway;
use crate::gateway::context::Peer;
use crate::gateway::forwarded::is_trusted;
use crate::gateway::rejection::Rejection;
use crate::http::h1::head::HeadLimits;
use crate::observability::metrics::{CloseCause, HandshakeFailure, Protocol, TlsVersion};
use crate::observability::trace::{Interval, Tracer};
use crate::tls::{ServerTls, TlsSnapshot};

use activity::Activity;
use frame_meter::FrameMeter;
use reaper::Registration;
use socket::{ClientSocket, ClientTlsStream, ClientTransport};
use watched_io::WatchedIo;

/// Maximum bytes of a rejected request's body that are read and discarded. HTTP/1 can then keep the connection open, and
/// an HTTP/2 client that is still sending does not treat the reset of its stream as a failure.
const MAX_DISCARDED_BODY: u64 = 256 * 1024;

/// State that the connections of one listener share.
pub struct Service {
    /// The active configuration. Each request uses, until it ends, the one that is active when it arrives.
    pub serving: Current<Rc<ServingConfig>>,
    /// Configuration of TLS with clients; `None` for plain HTTP.
    pub tls: Option<ServerTls>,
}

/// The part of a worker's state that a reload replaces.
pub struct ServingConfig {
    /// Serves the requests.
    pub gateway: Rc<Gateway>,
    /// The configuration that the gateway is built from.
    pub config: Arc<Config>,
    /// Limits on concurrent connections and requests.
    pub admission: Arc<Admission>,
}

impl ServingConfig {
    /// Returns whether a peer is one of the trusted proxies.
    pub fn is_trusted_proxy(&self, peer: IpAddr) -> bool {
        is_trusted(peer.to_canonical(), &self.config.trusted_proxies)
    }

    fn http1_limits(&self) -> http1::Http1Limits {
        let LimitOptions { headers, header_size, requests_per_connection, half_close, .. } = self.config.limits;
        http1::Http1Limits {
            head: HeadLimits { max_headers: headers, max_bytes: header_size },
            max_requests: requests_per_connection,
            half_close,
        }
    }

    fn http2_limits(&self) -> http2::Http2Limits {
        let LimitOptions { streams, headers, header_size, resets, control_frames, requests_per_connection, .. } =
            self.config.limits;
        http2::Http2Limits {
            max_streams: streams,
            // Larger than the limit, which `head_limits` checks: the library's rejection has no body. It counts 32 bytes
            // more for each header.
            max_head_size: u32::try_from(2 * header_size + 32 * headers).unwrap_or(u32::MAX),
            max_resets: resets,
            max_refused: control_frames as usize,
            max_requests: requests_per_connection,
        }
    }
}

/// Why there is no TLS on a connection.
enum TlsRejection {
    /// The handshake failed.
    Failed(io::Error),
    /// The client sends an HTTP request instead of a handshake.
    PlainHttp(TcpStream),
}

/// Serves a connection, and returns the error that ended it.
type BoxFuture<'a> = Pin<Box<dyn Future<Output = Option<String>> + 'a>>;

impl From<io::Error> for TlsRejection {
    fn from(error: io::Error) -> TlsRejection {
        TlsRejection::Failed(error)
    }
}

/// Serves a connection until it ends. Errors that a client causes are logged at debug level only.
///
/// Most connections are idle HTTP/1.1, and each future is as large as its largest branch. So the task holds only what all
/// connections need, and a box what this one does.
#[expect(clippy::manual_async_fn, reason = "the future of an `async fn` would hold the arguments twice")]
pub fn serve(
    service: Rc<Service>,
    mut stream: TcpStream,
    address: SocketAddr,
    mut registration: Registration,
) -> impl Future<Output = ()> {
    async move {
        let client = match service.serving.get().config.listen.proxy_protocol {
            false => Some(address.ip().to_canonical()),
            true => Box::pin(service.proxied_client(&mut stream, address, &mut registration)).await,
        };
        let Some(client) = client else { return };
        let activity = &registration.activity;
        let connection: BoxFuture<'_> = match &service.tls {
            None => {
                let socket = ClientTransport::new(stream, Rc::clone(activity));
                service.serve_http1(socket, Rc::new(Peer::new(client, false)), activity)
            }
            Some(tls) => match Box::pin(service.accept_tls(&tls.current(), stream, client, activity)).await {
                Err(TlsRejection::Failed(error)) => {
                    return service.record_failed_handshake(address, &error, handshake_failure::classify(&error));
                }
                Err(TlsRejection::PlainHttp(stream)) => Box::pin(service.reject_plain_http(stream, address, activity)),
                Ok((stream, peer)) if stream.get_ref().1.alpn_protocol() == Some(b"h2") => {
                    Box::pin(service.serve_http2(stream, peer, activity))
                }
                Ok((stream, peer)) => service.serve_http1(stream, peer, activity),
            },
        };
        if let Some(error) = connection.await {
            debug!(peer = %address, error, "connection ended with an error");
        }
    }
}

// No connection keeps a `ServingConfig` while it waits for a request: a replaced one would live as long as the
// connection.
impl Service {
    /// The address of the client behind a load balancer; `None` if its connection is rejected.
    async fn proxied_client(
        &self,
        stream: &mut TcpStream,
        address: SocketAddr,
        registration: &mut Registration,
    ) -> Option<IpAddr> {
        let peer = address.ip().to_canonical();
        match self.read_proxy_header(stream, peer, &registration.activity).await {
            Ok(None) => Some(peer),
            // The proxy's own address, which many clients share, was not counted.
            Ok(Some(client)) => {
                let is_admitted = self.serving.get().is_trusted_proxy(client) || registration.count_for(client);
                is_admitted.then_some(client)
            }
            Err(error) => {
                let is_timeout = error.kind() == io::ErrorKind::TimedOut;
                let kind = if is_timeout { HandshakeFailure::Timeout } else { HandshakeFailure::ProxyProtocol };
                self.record_failed_handshake(address, &error, kind);
                None
            }
        }
    }

    /// Reads the client's address from the load balancer's PROXY protocol header, if it has one.
    ///
    /// SECURITY: a header from an untrusted peer would let it claim any address, so such connections are closed.
    async fn read_proxy_header(
        &self,
        stream: &mut TcpStream,
        peer: IpAddr,
        activity: &Activity,
    ) -> io::Result<Option<IpAddr>> {
        let serving = self.serving.get();
        if !serving.is_trusted_proxy(peer) {
            let message = "listen.proxy_protocol is set, but the peer is not in trusted_proxies";
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, message));
        }
        let header = proxy_protocol::read_header(stream);
        with_timeout(header, serving.config.timeouts.handshake, activity).await
    }

    /// Performs the TLS handshake, and adds what it shows about the client.
    async fn accept_tls(
        &self,
        tls: &TlsSnapshot,
        stream: TcpStream,
        client: IpAddr,
        activity: &Rc<Activity>,
    ) -> Result<(Box<ClientTlsStream>, Rc<Peer>), TlsRejection> {
        let begun = Instant::now();
        let limit = self.serving.get().config.timeouts.handshake;
        let mut first = [0];
        let received = with_timeout(stream.peek(&mut first), limit, activity).await?;
        // Methods consist of capital letters, and no TLS record begins with one.
        if received > 0 && first[0].is_ascii_uppercase() {
            return Err(TlsRejection::PlainHttp(stream));
        }
        let handshake = tls.acceptor().accept(ClientTransport::new(stream, Rc::clone(activity)));
        let mut stream = Box::new(with_timeout(handshake, limit.saturating_sub(begun.elapsed()), activity).await?);
        let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        if is_http2 {
            // A write is passed on as a whole.
            stream.get_mut().1.set_buffer_limit(Some(http2::MAX_BUFFERED));
        }
        let connection = stream.get_ref().1;
        let is_resumed = connection.handshake_kind() == Some(HandshakeKind::Resumed);
        let version = match connection.protocol_version() {
            Some(ProtocolVersion::TLSv1_2) => TlsVersion::Tls12,
            _ => TlsVersion::Tls13,
        };
        let ended = Instant::now();
        self.serving.get().gateway.worker_metrics().record_handshake(version, is_resumed, ended.duration_since(begun));
        let peer = Peer::new(client, true);
        if Tracer::installed().is_some() {
            peer.tls_handshake.replace(Some(Box::new(Interval { start: begun, end: ended })));
        }
        let sni = tls.sni_match(connection);
        let certificate_subject =
            TlsSnapshot::client_identity(connection).map_err(io::Error::other)?.map(String::into_boxed_str);
        let protocol = if is_http2 { Protocol::Http2 } else { Protocol::Http1 };
        Ok((stream, Rc::new(Peer { sni, certificate_subject, protocol, ..peer })))
    }

    fn serve_http1<I>(&self, io: I, peer: Rc<Peer>, activity: &Rc<Activity>) -> BoxFuture<'_>
    where
        I: AsyncRead + AsyncWrite + ClientSocket + Unpin + 'static,
    {
        activity.record_handshake();
        let io = WatchedIo::new(io, Rc::clone(activity));
        Box::pin(http1::serve(io, self.serving.clone(), peer, Rc::clone(activity)))
    }

    async fn serve_http2<I>(&self, io: I, peer: Rc<Peer>, activity: &Rc<Activity>) -> Option<String>
    where
        I: AsyncRead + AsyncWrite + ClientSocket + Unpin + 'static,
    {
        activity.record_handshake();
        let _open = self.serving.get().gateway.worker_metrics().open_connection(Protocol::Http2);
        let (control_frames, limits, metrics) = {
            let serving = self.serving.get();
            (serving.config.limits.control_frames, serving.http2_limits(), Arc::clone(serving.admission.metrics()))
        };
        let frames = Rc::default();
        let meter = FrameMeter::new(control_frames, limits.max_head_size as usize);
        let io = WatchedIo::new(io, Rc::clone(activity)).with_frame_limit(meter, metrics, Rc::clone(&frames));
        let result = http2::serve(io, self.serving.clone(), peer, activity, limits, frames).await;
        if result.as_ref().is_err_and(http2::Http2Error::is_abuse) {
            self.serving.get().admission.metrics().record_connection_end(CloseCause::Resets);
        }
        result.err().map(|error| error.to_string())
    }

    /// Responds in HTTP to a client that uses `http://` in place of `https://`: a failed handshake would not say why.
    ///
    /// SECURITY: the request is not processed, although it may have a valid key: it would be accepted without encryption.
    async fn reject_plain_http(&self, io: TcpStream, address: SocketAddr, activity: &Rc<Activity>) -> Option<String> {
        let io = WatchedIo::new(ClientTransport::new(io, Rc::clone(activity)), Rc::clone(activity));
        let peer = Rc::new(Peer::new(address.ip().to_canonical(), false));
        activity.record_handshake();
        let kind = HandshakeFailure::PlainHttp;
        self.serving.get().gateway.worker_metrics().record_handshake_failure(kind);
        http1::reject(io, self.serving.clone(), peer, Rc::clone(activity), Rejection::TlsRequired).await
    }

    /// Records a connection that failed before its first request.
    fn record_failed_handshake(&self, peer: SocketAddr, error: &io::Error, kind: HandshakeFailure) {
        self.serving.get().gateway.worker_metrics().record_handshake_failure(kind);
        let is_timeout = error.kind() == io::ErrorKind::TimedOut;
        let cause = if is_timeout { CloseCause::HandshakeTimeout } else { CloseCause::HandshakeFailed };
        self.serving.get().admission.metrics().record_connection_end(cause);
        match handshake_failure::REPORTS.admit(kind, Instant::now()) {
            Some(unreported) => info!(
                %peer, %error, kind = kind.as_str(), unreported,
                "a client's handshake failed; further ones within a minute are only counted"
            ),
            None => debug!(%peer, %error, "handshake failed"),
        }
    }
}

/// Runs a future until its timeout, or until the reaper aborts the connection.
async fn with_timeout<T>(
    future: impl Future<Output = io::Result<T>>,
    limit: Duration,
    activity: &Activity,
) -> io::Result<T> {
    let mut future = pin!(timeout(limit, future));
    poll_fn(|cx| {
        activity.closing.register_waker(cx.waker());
        match future.as_mut().poll(cx) {
            Poll::Ready(done) => Poll::Ready(done.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))),
            Poll::Pending if activity.closing.take_request().is_some() => {
                Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()))
            }
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}
