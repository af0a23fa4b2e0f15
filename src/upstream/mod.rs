//! The client side of the gateway: load balancing, connection pools and the exchange of requests and responses with the
//! backends over HTTP/1.1.
//!
//! [`Backends`] is the state that the whole process shares: the endpoints and their health. Each worker thread has an
//! [`UpstreamClient`] with its own connection pools, which never leave the thread; it reports the results of its
//! requests to [`Backends`].
//!
//! SECURITY: the client sends only [`OutgoingRequest`] values. Two types implement the trait: the screened and
//! authenticated request from `gateway::rewrite`, and those of the gateway itself in `auth::system_query`. So a request
//! that skipped authentication cannot be sent by mistake. This module knows nothing about routes, identities or
//! rejections.

mod abandoned;
mod backends;
mod client;
mod connect;
mod connection;
mod deadline;
mod endpoint;
mod exchange;
mod health_check;
mod load_balancer;
mod name_resolution;
mod origin;
mod pending_request;
mod pool;
mod progress_timeout;
mod request_body;
mod response_body;
mod retry;
mod selection;
mod silence;
mod status;

use std::io;
use std::time::Duration;

use http::{Method, StatusCode};

use crate::admission::QueueError;
use crate::http::headers::Headers;

pub use backends::{Backends, TlsChange};
pub use client::UpstreamClient;
pub use request_body::{BodyLimits, RequestBody, RequestBodyError};
pub use response_body::{ResponseBody, ResponseBodyError};
pub use silence::LONG_SILENCE;
pub use status::{EndpointStatus, NameStatus, UpstreamStatus};

/// A request that may be sent to a backend.
pub trait OutgoingRequest {
    /// Converts it into the bytes to send and the body.
    fn into_message(self) -> Box<OutgoingMessage>;

    /// Deviations from the options of the upstream.
    fn options(&self) -> SendOptions {
        SendOptions::default()
    }
}

/// How a request is sent differently from what the options of its upstream say.
#[derive(Clone, Copy, Debug, Default)]
pub struct SendOptions {
    /// In place of the timeout for the response head.
    pub response_timeout: Option<Duration>,
    /// In place of the timeout between two reads of the response body.
    pub body_timeout: Option<Duration>,
    /// A hash of what the request belongs to, such as a session. Requests with the same hash go to the same endpoint while
    /// it is available, in every worker and replica.
    pub affinity: Option<u64>,
}

/// A request head, without the headers that frame the body, and the body.
pub struct OutgoingMessage {
    /// The method; also part of `head`.
    pub method: Method,
    /// The request line, with the target in origin form, and the headers: `host`, no hop-by-hop
    /// headers, no headers that frame the body.
    pub head: Vec<u8>,
    /// Offset in `head` at which the backend's name is inserted once an endpoint is chosen; `None` if `host` has a value
    /// already.
    pub host_offset: Option<usize>,
    /// The body, which is streamed.
    pub body: RequestBody,
}

/// The head of a backend's response, and its body, which is streamed.
pub struct UpstreamResponse {
    /// The status code, never 1xx.
    pub status: StatusCode,
    /// The headers as received.
    pub headers: Headers,
    /// The rest of the response. Boxed, as it is passed on many times.
    pub body: Box<ResponseBody>,
}

/// Why a request failed without a response.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// The connection attempt failed; nothing was sent.
    #[error("cannot connect to the upstream")]
    Connect(#[source] io::Error),
    /// The connection attempt timed out; nothing was sent.
    #[error("timeout while connecting to the upstream")]
    ConnectTimeout,
    /// Connecting failed, nothing was sent, and the request received no slot for a different endpoint.
    #[error("no slot for a different endpoint")]
    Queue(QueueError),
    /// At least part of the request was sent, and the connection was closed before a response.
    #[error("the upstream closed the connection without a response")]
    Closed(#[source] io::Error),
    /// The response is not valid HTTP.
    #[error("the upstream's response is not valid HTTP")]
    Invalid(#[source] InvalidResponse),
    /// The backend wants to switch protocols, which the request did not offer.
    #[error("unexpected 101 Switching Protocols from the upstream")]
    UnexpectedUpgrade,
    /// The response head did not arrive in time.
    #[error("timeout while waiting for the upstream's response")]
    ResponseTimeout,
    /// The client's body failed while it was being forwarded.
    #[error("the request body did not arrive completely")]
    RequestBody(RequestBodyError),
}

/// Why a response is invalid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidResponse(pub &'static str);
