//! The backend, as one worker thread sees it: a pool of keep-alive HTTP/1.1 connections that never leave the thread.
//!
//! The pool takes nothing but [`Outgoing`] values. Two types are that: the request that `gateway::rewrite` makes of a
//! screened and authenticated one, and the question of `auth::foreign` whether a key is good. So a request that nobody
//! authenticated cannot be sent by forgetting something.

pub mod body;
mod connect;
mod connection;
mod exchange;
mod pool;

use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use http::{HeaderValue, Method, Request, Response};
use tokio::time::{Instant, sleep};

use crate::config::UpstreamOptions;
use crate::http1::response::ResponseHead;
use crate::metrics::Metrics;
use crate::tls::UpstreamTls;

pub use body::{BodyBounds, Kept, RequestBody, RequestBodyError, ResponseBody};
use connect::Connector;
use connection::Connection;
use exchange::{Exchange, Upload};
use pool::Pool;

/// What may be sent to the backend.
pub trait Outgoing {
    /// The request as it goes on the wire: target in origin form, `host` set, no hop-by-hop fields.
    fn into_request(self) -> Request<RequestBody>;
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// No connection, so nothing was sent.
    #[error("cannot connect to the upstream")]
    Connect(#[source] io::Error),
    /// No connection in time, so nothing was sent.
    #[error("connecting to the upstream took too long")]
    ConnectTimeout,
    /// The request was sent, in part at least, and the connection ended before an answer.
    #[error("the upstream closed the connection without an answer")]
    Closed(#[source] io::Error),
    /// What came back is no HTTP answer.
    #[error("the upstream's answer is not valid HTTP")]
    Invalid(#[source] InvalidAnswer),
    /// It wants to change the protocol, which nobody asked for.
    #[error("the upstream answered 101 Switching Protocols, which nobody asked for")]
    UnaskedUpgrade,
    /// No head of an answer in time.
    #[error("the upstream did not answer in time")]
    ResponseTimeout,
    /// The client's body failed while it was passed on.
    #[error("the request's body did not arrive")]
    RequestBody(RequestBodyError),
}

/// What is wrong with an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidAnswer(pub &'static str);

/// One worker's way to the backend. Clones share the pool.
#[derive(Clone)]
pub struct Upstream(Rc<Inner>);

struct Inner {
    connector: Connector,
    pool: Rc<Pool>,
    options: UpstreamOptions,
    authority: HeaderValue,
    metrics: Arc<Metrics>,
}

impl Upstream {
    /// A pool for the calling thread; connects to nothing yet. `tls` is there exactly for an https origin.
    pub fn new(options: UpstreamOptions, tls: Option<UpstreamTls>, metrics: Arc<Metrics>) -> Upstream {
        let authority = authority(&options);
        Upstream(Rc::new(Inner {
            connector: Connector::new(&options, tls),
            pool: Rc::new(Pool::new(options.idle_timeout)),
            options,
            authority,
            metrics,
        }))
    }

    /// The backend's name for the `host` field.
    pub fn authority(&self) -> HeaderValue {
        self.0.authority.clone()
    }

    /// Closes connections that idled too long.
    pub fn sweep(&self) {
        self.0.pool.sweep();
    }

    /// Sends a request and waits for the head of its answer; the body streams.
    ///
    /// It is sent a second time, on a fresh connection, only where the first time did provably no harm: the reused
    /// connection was closed before any of it was written, or it is a GET or HEAD without a body and no byte of an
    /// answer had come.
    pub async fn send(&self, outgoing: impl Outgoing) -> Result<Response<ResponseBody>, UpstreamError> {
        let request = outgoing.into_request();
        let method = request.method().clone();
        let mut upload = Upload::new(request);
        while let Some(mut connection) = self.0.pool.take() {
            match self.exchange(&mut connection, &mut upload, &method).await {
                Ok(head) => return Ok(self.stream(head, connection, upload)),
                // Not a byte was written: the next idle connection may do better.
                Err(UpstreamError::Closed(_)) if upload.is_unsent() => {
                    self.0.metrics.upstream_retries.inc();
                }
                Err(UpstreamError::Closed(_)) if upload.rewind() => {
                    self.0.metrics.upstream_retries.inc();
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        let mut connection = self.connect().await?;
        let head = self.exchange(&mut connection, &mut upload, &method).await?;
        Ok(self.stream(head, connection, upload))
    }

    async fn connect(&self) -> Result<Connection, UpstreamError> {
        self.0.connector.connect().await.map_err(|error| match error.kind() {
            io::ErrorKind::TimedOut => UpstreamError::ConnectTimeout,
            _ => UpstreamError::Connect(error),
        })
    }

    /// The time for the answer runs from the last byte of the request that the backend took.
    async fn exchange(
        &self,
        connection: &mut Connection,
        upload: &mut Upload,
        method: &Method,
    ) -> Result<ResponseHead, UpstreamError> {
        let limit = self.0.options.response_timeout;
        connection.be_impatient(upload.is_surely_taken());
        let mut exchange = Exchange::new(connection, upload, method.clone());
        let mut timer = pin!(sleep(limit));
        let mut is_first = true;
        poll_fn(|cx| {
            let mut progress = false;
            if let Poll::Ready(result) = exchange.poll(cx, &mut progress) {
                return Poll::Ready(result);
            }
            if progress && !is_first {
                timer.as_mut().reset(Instant::now() + limit);
            }
            is_first = false;
            timer.as_mut().poll(cx).map(|()| Err(UpstreamError::ResponseTimeout))
        })
        .await
    }

    fn stream(&self, answer: ResponseHead, connection: Connection, upload: Upload) -> Response<ResponseBody> {
        let ResponseHead { head, extent, keep_alive } = answer;
        let pool = keep_alive.then(|| Rc::clone(&self.0.pool));
        let upload = (!upload.is_done()).then(|| Box::new(upload));
        head.map(|()| ResponseBody::new(connection, extent, upload, pool, self.0.options.body_timeout))
    }
}

fn authority(options: &UpstreamOptions) -> HeaderValue {
    HeaderValue::from_str(&options.url.authority())
        .expect("a host that the configuration accepted is a field value")
}
