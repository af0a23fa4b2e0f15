//! The backend, as one worker thread sees it: a pool of keep-alive HTTP/1.1 connections that never leave the thread.
//!
//! The pool takes nothing but [`Outgoing`] values. Two types are that: the request that `gateway::rewrite` makes of a
//! screened and authenticated one, and the question of `auth::foreign` whether a key is good. So a request that nobody
//! authenticated cannot be sent by forgetting something.

pub mod body;
mod connect;
mod pool;

use std::error::Error as StdError;
use std::io;
use std::rc::Rc;

use http::header::TRANSFER_ENCODING;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body::Body as _;
use tokio::time::timeout;

use crate::config::UpstreamOptions;
use crate::tls::UpstreamTls;

pub use body::{BodyBounds, RequestBody, RequestBodyError, ResponseBody};
use connect::Connector;
use pool::{Lease, Pool};

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
    Closed(#[source] hyper::Error),
    /// What came back is no HTTP answer.
    #[error("the upstream's answer is not valid HTTP")]
    Invalid(#[source] hyper::Error),
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

/// One worker's way to the backend. Clones share the pool.
#[derive(Clone)]
pub struct Upstream(Rc<Inner>);

struct Inner {
    connector: Connector,
    pool: Rc<Pool>,
    options: UpstreamOptions,
    authority: HeaderValue,
}

impl Upstream {
    /// A pool for the calling thread; connects to nothing yet. `tls` is there exactly for an https origin.
    pub fn new(options: UpstreamOptions, tls: Option<UpstreamTls>) -> Upstream {
        let authority = authority(&options);
        Upstream(Rc::new(Inner {
            connector: Connector::new(&options, tls),
            pool: Rc::new(Pool::new(options.idle_timeout)),
            options,
            authority,
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
        let mut request = outgoing.into_request();
        if request.body().size_hint().exact().is_none() {
            // Said here, as hyper would send a GET without its body otherwise.
            request.headers_mut().insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
        while let Some(mut lease) = self.0.pool.take() {
            let copy = copy_if_repeatable(&request);
            match self.exchange(&mut lease, request).await {
                Ok(response) => return Ok(self.stream(response, lease)),
                // Not a byte was written: the next idle connection may do better.
                Err(Failure { unsent: Some(unsent), .. }) => request = unsent,
                Err(Failure { error: UpstreamError::Closed(error), .. }) => {
                    request = copy.ok_or(UpstreamError::Closed(error))?;
                    break;
                }
                Err(Failure { error, .. }) => return Err(error),
            }
        }
        let mut lease = self.connect().await?;
        match self.exchange(&mut lease, request).await {
            Ok(response) => Ok(self.stream(response, lease)),
            Err(failure) => Err(failure.error),
        }
    }

    async fn connect(&self) -> Result<Lease, UpstreamError> {
        let connecting = self.0.connector.connect();
        match timeout(self.0.options.connect_timeout, connecting).await {
            Ok(Ok(connection)) => Ok(self.0.pool.lease(connection)),
            Ok(Err(error)) => Err(UpstreamError::Connect(error)),
            Err(_) => Err(UpstreamError::ConnectTimeout),
        }
    }

    async fn exchange(
        &self,
        lease: &mut Lease,
        request: Request<RequestBody>,
    ) -> Result<Response<hyper::body::Incoming>, Failure> {
        let answer = lease.sender().try_send_request(request);
        match timeout(self.0.options.response_timeout, answer).await {
            Ok(Ok(response)) if response.status() == StatusCode::SWITCHING_PROTOCOLS => {
                Err(Failure { error: UpstreamError::UnaskedUpgrade, unsent: None })
            }
            Ok(Ok(response)) => Ok(response),
            Ok(Err(mut refused)) => {
                let unsent = refused.take_message();
                Err(Failure { error: classify(refused.into_error()), unsent })
            }
            Err(_) => Err(Failure { error: UpstreamError::ResponseTimeout, unsent: None }),
        }
    }

    fn stream(&self, response: Response<hyper::body::Incoming>, lease: Lease) -> Response<ResponseBody> {
        response.map(|body| ResponseBody::new(body, self.0.options.body_timeout, lease))
    }
}

/// Why an exchange failed, and the request if no byte of it was written.
struct Failure {
    error: UpstreamError,
    unsent: Option<Request<RequestBody>>,
}

fn classify(error: hyper::Error) -> UpstreamError {
    if let Some(cause) = error.source().and_then(|cause| cause.downcast_ref::<RequestBodyError>()) {
        return UpstreamError::RequestBody(cause.clone());
    }
    if error.is_parse() {
        return UpstreamError::Invalid(error);
    }
    UpstreamError::Closed(error)
}

/// A second copy of a request that may be repeated without harm (RFC 9110 section 9.2.2).
fn copy_if_repeatable(request: &Request<RequestBody>) -> Option<Request<RequestBody>> {
    let safe = matches!(*request.method(), Method::GET | Method::HEAD);
    if !safe || !request.body().is_empty() {
        return None;
    }
    let mut copy = Request::new(RequestBody::empty());
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.headers_mut() = request.headers().clone();
    Some(copy)
}

fn authority(options: &UpstreamOptions) -> HeaderValue {
    let url = &options.url;
    let host = if url.host.contains(':') { format!("[{}]", url.host) } else { url.host.clone() };
    let usual = if url.tls { 443 } else { 80 };
    let text = if url.port == usual { host } else { format!("{host}:{}", url.port) };
    HeaderValue::from_str(&text).expect("a host that the configuration accepted is a field value")
}
