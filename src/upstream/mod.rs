//! The backend, as one worker thread sees it: a pool of keep-alive HTTP/1.1 connections that never leave the thread.
//!
//! The pool takes nothing but [`Outgoing`] values. Two types are that: the request that `gateway::rewrite` makes of a
//! screened and authenticated one, and the question of `auth::foreign` whether a key is good. So a request that nobody
//! authenticated cannot be sent by forgetting something.

pub mod body;
mod connect;
mod connection;
mod deadline;
mod exchange;
mod pool;

use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use http::{Method, StatusCode};
use tokio::time::Instant;

use crate::config::UpstreamOptions;
use crate::fields::Fields;
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
    /// The request as it goes on the wire.
    fn into_message(self) -> Message;
}

/// A request as it goes on the wire, but for what says how its body is framed.
pub struct Message {
    /// Its method, once more.
    pub method: Method,
    /// The request line, its target in origin form, and the fields: `host` among them, none that concern a hop, none that
    /// frame the body.
    pub head: Vec<u8>,
    /// Its body.
    pub body: RequestBody,
}

/// The backend's answer; the body streams.
pub struct Response {
    /// Its status.
    pub status: StatusCode,
    /// Its fields, as they came.
    pub fields: Fields,
    /// Its body.
    pub body: ResponseBody,
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
    authority: String,
    metrics: Arc<Metrics>,
}

impl Upstream {
    /// A pool for the calling thread; connects to nothing yet. `tls` is there exactly for an https origin.
    pub fn new(options: UpstreamOptions, tls: Option<UpstreamTls>, metrics: Arc<Metrics>) -> Upstream {
        let authority = options.url.authority();
        Upstream(Rc::new(Inner {
            connector: Connector::new(&options, tls),
            pool: Rc::new(Pool::new(options.idle_timeout)),
            options,
            authority,
            metrics,
        }))
    }

    /// The backend's name for the `host` field.
    pub fn authority(&self) -> &str {
        &self.0.authority
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
    pub async fn send(&self, outgoing: impl Outgoing) -> Result<Response, UpstreamError> {
        let message = outgoing.into_message();
        let method = message.method.clone();
        let mut upload = Upload::new(message);
        let now = Instant::now();
        while let Some(mut connection) = self.0.pool.take(now.into_std()) {
            match self.exchange(&mut connection, &mut upload, &method, now).await {
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
        // In the heap, as most requests find a connection and all would have to be as large.
        let mut connection = Box::pin(self.connect()).await?;
        let head = self.exchange(&mut connection, &mut upload, &method, Instant::now()).await?;
        Ok(self.stream(head, connection, upload))
    }

    async fn connect(&self) -> Result<Box<Connection>, UpstreamError> {
        self.0.connector.connect().await.map(Box::new).map_err(|error| match error.kind() {
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
        now: Instant,
    ) -> Result<ResponseHead, UpstreamError> {
        let limit = self.0.options.response_timeout;
        connection.be_impatient(upload.is_surely_taken());
        connection.answer_due.set(now + limit);
        let mut exchange = Exchange::new(connection, upload, method);
        let mut is_first = true;
        poll_fn(|cx| {
            let mut progress = false;
            if let Poll::Ready(result) = exchange.poll(cx, &mut progress) {
                return Poll::Ready(result);
            }
            if progress && !is_first {
                exchange.connection.answer_due.set(Instant::now() + limit);
            }
            is_first = false;
            exchange.connection.answer_due.poll(cx).map(|()| Err(UpstreamError::ResponseTimeout))
        })
        .await
    }

    fn stream(&self, answer: ResponseHead, connection: Box<Connection>, upload: Upload) -> Response {
        let ResponseHead { status, fields, extent, keep_alive } = answer;
        let pool = keep_alive.then(|| Rc::clone(&self.0.pool));
        let upload = (!upload.is_done()).then(|| Box::new(upload));
        let body = ResponseBody::new(connection, extent, upload, pool, self.0.options.body_timeout);
        Response { status, fields, body }
    }
}
