//! One client's connection: TLS, then HTTP/1.1 or HTTP/2, until it ends or has to.

mod activity;
mod coalesced_io;
mod corked_io;
mod frame_meter;
mod handshake_failure;
mod http1;
mod http2;
pub mod listener;
mod proxy_protocol;
pub mod reaper;
mod socket;
mod watched_io;
mod write_buffer;

use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use rustls::{HandshakeKind, ProtocolVersion};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tracing::debug;

use crate::admission::Admission;
use crate::base::current::InForce;
use crate::config::{Limits, Timeouts};
use crate::gateway::Gateway;
use crate::gateway::context::Client;
use crate::gateway::forwarded::is_trusted;
use crate::http::h1::head::HeadLimits;
use crate::observability::metrics::{Cause, HandshakeFailure, Protocol, TlsVersion};
use crate::observability::trace::Span;
use crate::tls::{Current, ServerTls};

use activity::Activity;
use corked_io::CorkedIo;
use reaper::Registration;
use socket::{ClientTls, Socket};
use watched_io::WatchedIo;

/// So much of a refused request's body is read and forgotten after the answer: so that HTTP/1's connection can go on, and that
/// a client which still sends over HTTP/2 does not take the reset of its stream for a failure.
const MOST_DISCARDED: u64 = 256 * 1024;

/// For so long.
const LONGEST_DISCARD: Duration = Duration::from_secs(2);

/// What connections of one listener have in common.
pub struct Service {
    /// On what terms they are served. Each request is answered on those that are in force when it comes, and to its end.
    pub terms: InForce<Rc<Terms>>,
    /// How to speak TLS; `None` for plain HTTP.
    pub tls: Option<ServerTls>,
}

/// What a reload may replace.
pub struct Terms {
    /// Answers requests.
    pub gateway: Rc<Gateway>,
    /// Proxies that are believed when they say who the client is.
    pub trusted_proxies: Vec<IpNet>,
    /// Whether connections begin with a PROXY protocol header.
    pub proxy_protocol: bool,
    /// What clients are waited for.
    pub timeouts: Timeouts,
    /// What clients may ask for.
    pub limits: Limits,
    /// Who may come in.
    pub admission: Arc<Admission>,
}

impl Terms {
    fn http1_bounds(&self) -> http1::Bounds {
        let Limits { headers, header_size, uri, requests_per_connection, .. } = self.limits;
        http1::Bounds {
            head: HeadLimits { fields: headers, bytes: header_size, target: uri },
            requests: requests_per_connection,
            age: self.timeouts.connection_age,
        }
    }

    fn http2_bounds(&self) -> http2::Bounds {
        let Limits { streams, header_size, resets, requests_per_connection, .. } = self.limits;
        http2::Bounds {
            streams,
            head: u32::try_from(header_size).unwrap_or(u32::MAX),
            resets,
            requests: requests_per_connection,
        }
    }
}

/// Serves a connection to its end. Errors of a client are its own; they are worth a line at debug level.
pub async fn serve(service: Rc<Service>, mut stream: TcpStream, peer: SocketAddr, place: Registration) {
    // What takes part in few connections, or for a moment, lives in the heap: most connections are idle HTTP/1.1.
    let activity = &place.activity;
    let mut client = Client::at(peer.ip().to_canonical(), service.tls.is_some());
    if service.terms.now().proxy_protocol {
        match Box::pin(service.behind_proxy(&mut stream, client.address, activity)).await {
            Ok(address) => client = Client::at(address, client.secure),
            Err(error) => {
                let timed_out = error.kind() == io::ErrorKind::TimedOut;
                let kind =
                    if timed_out { HandshakeFailure::Timeout } else { HandshakeFailure::ProxyProtocol };
                return service.lost(peer, &error, kind);
            }
        }
    }
    let failure = match &service.tls {
        None => service.speak_http1(stream, Rc::new(client), activity).await,
        Some(tls) => match Box::pin(service.shake_hands(&tls.current(), stream, client, activity)).await {
            Err(error) => return service.lost(peer, &error, handshake_failure::kind(&error)),
            Ok((stream, client)) if stream.get_ref().1.alpn_protocol() == Some(b"h2") => {
                Box::pin(service.speak_http2(stream, client, activity)).await
            }
            Ok((stream, client)) => service.speak_http1(stream, client, activity).await,
        },
    };
    if let Some(error) = failure {
        debug!(%peer, error, "connection ended with an error");
    }
}

impl Terms {
    /// Whether a peer is one of the proxies that are believed.
    pub fn trusts(&self, peer: IpAddr) -> bool {
        is_trusted(peer.to_canonical(), &self.trusted_proxies)
    }
}

// No connection holds on to terms while it waits for a request: those that were replaced would live as long as it does.
impl Service {
    /// Whom the load balancer says it has taken the connection from.
    ///
    /// SECURITY: a header from elsewhere would let anybody be anybody, so such connections end.
    async fn behind_proxy(
        &self,
        stream: &mut TcpStream,
        peer: IpAddr,
        activity: &Activity,
    ) -> io::Result<IpAddr> {
        let terms = self.terms.now();
        if !terms.trusts(peer) {
            let what = "the peer is none of trusted_proxies, and listen.proxy_protocol is required";
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, what));
        }
        let header = proxy_protocol::read(stream);
        Ok(bounded(header, terms.timeouts.handshake, activity).await?.unwrap_or(peer))
    }

    /// TLS, and what it tells about the client.
    async fn shake_hands(
        &self,
        current: &Current,
        stream: TcpStream,
        client: Client,
        activity: &Activity,
    ) -> io::Result<(Box<ClientTls>, Rc<Client>)> {
        let begun = Instant::now();
        let handshake = current.acceptor().accept(CorkedIo::new(stream));
        let limit = self.terms.now().timeouts.handshake;
        let stream = Box::new(bounded(handshake, limit, activity).await?);
        let connection = stream.get_ref().1;
        let resumed = connection.handshake_kind() == Some(HandshakeKind::Resumed);
        let version = match connection.protocol_version() {
            Some(ProtocolVersion::TLSv1_2) => TlsVersion::Tls12,
            _ => TlsVersion::Tls13,
        };
        let ended = Instant::now();
        self.terms.now().gateway.worker().handshake(version, resumed, ended.duration_since(begun));
        client.handshake.set(Some(Span { begun, ended }));
        let served = current.served(connection);
        let certificate = Current::identity(connection).map_err(io::Error::other)?;
        let is_http2 = connection.alpn_protocol() == Some(b"h2");
        let protocol = if is_http2 { Protocol::Http2 } else { Protocol::Http1 }.word();
        Ok((stream, Rc::new(Client { served, certificate, protocol, ..client })))
    }

    async fn speak_http1<I>(&self, io: I, client: Rc<Client>, activity: &Rc<Activity>) -> Option<String>
    where
        I: AsyncRead + AsyncWrite + Socket + Unpin + 'static,
    {
        let _open = self.terms.now().gateway.worker().connection(Protocol::Http1);
        let io = WatchedIo::new(io, Rc::clone(activity));
        let served = http1::serve(io, self.terms.clone(), client, Rc::clone(activity)).await;
        served.err().map(|error| error.to_string())
    }

    async fn speak_http2<I>(&self, io: I, client: Rc<Client>, activity: &Rc<Activity>) -> Option<String>
    where
        I: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        let _open = self.terms.now().gateway.worker().connection(Protocol::Http2);
        let (frames, bounds, metrics) = {
            let terms = self.terms.now();
            (terms.limits.control_frames, terms.http2_bounds(), Arc::clone(terms.admission.metrics()))
        };
        let io = WatchedIo::new(io, Rc::clone(activity)).metered(frames, metrics);
        let served = http2::serve(io, self.terms.clone(), client, activity, bounds).await;
        if served.as_ref().is_err_and(http2::is_abuse) {
            self.terms.now().admission.metrics().connection_ended(Cause::Resets);
        }
        served.err().map(|error| with_cause(&error))
    }

    /// A connection that came to no request.
    fn lost(&self, peer: SocketAddr, error: &io::Error, kind: HandshakeFailure) {
        self.terms.now().gateway.worker().handshake_failed(kind);
        let timed_out = error.kind() == io::ErrorKind::TimedOut;
        let cause = if timed_out { Cause::HandshakeTimeout } else { Cause::HandshakeFailed };
        self.terms.now().admission.metrics().connection_ended(cause);
        debug!(%peer, %error, "the handshake failed");
    }
}

fn with_cause(error: &hyper::Error) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

/// Bounded by its own time, and by the reaper's orders.
async fn bounded<T>(
    future: impl Future<Output = io::Result<T>>,
    limit: Duration,
    activity: &Activity,
) -> io::Result<T> {
    let mut future = pin!(timeout(limit, future));
    poll_fn(|cx| {
        activity.wake_for_orders(cx.waker());
        match future.as_mut().poll(cx) {
            Poll::Ready(done) => Poll::Ready(done.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))),
            Poll::Pending if activity.take_order().is_some() => {
                Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()))
            }
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}
