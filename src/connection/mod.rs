//! One client's connection: TLS, then HTTP/1.1 or HTTP/2, until it ends or has to.

pub mod activity;
mod frames;
mod http1;
mod http2;
mod watched_io;

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tracing::debug;

use crate::admission::Admission;
use crate::config::{Limits, Timeouts};
use crate::gateway::Gateway;
use crate::gateway::context::Client;
use crate::http1::head::HeadLimits;
use crate::metrics::Cause;

use activity::{Activity, Registration};
use http1::Abort;
use watched_io::WatchedIo;

/// What connections of one listener have in common.
pub struct Service {
    /// Answers requests.
    pub gateway: Rc<Gateway>,
    /// How to speak TLS; `None` for plain HTTP.
    pub acceptor: Option<TlsAcceptor>,
    /// What clients are waited for.
    pub timeouts: Timeouts,
    /// What clients may ask for.
    pub limits: Limits,
    /// Who may come in.
    pub admission: Arc<Admission>,
}

impl Service {
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
pub async fn serve(service: Rc<Service>, stream: TcpStream, peer: SocketAddr, place: Registration) {
    let activity = Rc::clone(&place.activity);
    let client = Client { address: peer.ip().to_canonical(), secure: service.acceptor.is_some() };
    let gateway = Rc::clone(&service.gateway);
    let failure = match &service.acceptor {
        None => {
            let io = WatchedIo::new(stream, Rc::clone(&activity));
            let served = http1::serve(io, gateway, client, activity, service.http1_bounds()).await;
            served.err().map(|error| error.to_string())
        }
        Some(acceptor) => match handshake(acceptor, stream, service.timeouts.handshake, &activity).await {
            Err(error) => {
                let timed_out = error.kind() == io::ErrorKind::TimedOut;
                let cause = if timed_out { Cause::HandshakeTimeout } else { Cause::HandshakeFailed };
                service.admission.metrics().connection_ended(cause);
                return debug!(%peer, %error, "TLS handshake failed");
            }
            Ok(stream) => {
                let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                let io = WatchedIo::new(stream, Rc::clone(&activity));
                if http2 {
                    let metrics = Arc::clone(service.admission.metrics());
                    let io = io.metered(service.limits.control_frames, Arc::clone(&metrics));
                    let served = http2::serve(io, gateway, client, &activity, service.http2_bounds()).await;
                    if served.as_ref().is_err_and(http2::is_abuse) {
                        metrics.connection_ended(Cause::Resets);
                    }
                    served.err().map(|error| with_cause(&error))
                } else {
                    let served = http1::serve(io, gateway, client, activity, service.http1_bounds()).await;
                    served.err().map(|error| error.to_string())
                }
            }
        },
    };
    if let Some(error) = failure {
        debug!(%peer, error, "connection ended with an error");
    }
}

fn with_cause(error: &hyper::Error) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
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

impl Abort for TcpStream {
    fn abort(&self) {
        let _ = socket2::SockRef::from(self).set_linger(Some(Duration::ZERO));
    }
}

impl Abort for TlsStream<TcpStream> {
    fn abort(&self) {
        self.get_ref().0.abort();
    }
}
