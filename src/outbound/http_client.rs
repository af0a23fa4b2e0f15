//! An HTTP/1.1 client for occasional requests, for example for the keys of an identity provider or to verify a
//! password. It opens a connection for each request, follows no redirects, and bounds time and size.
//!
//! It is not made for the requests of clients: `upstream` forwards those.

use std::path::Path;
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use http::header::{HOST, USER_AGENT};
use http::{HeaderValue, Request, Response};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::either::Either;

use crate::config::ServerUrl;
use crate::os::unix_socket;
use crate::tls::{OutboundTls, TlsError, client_tls};

/// Maximum size of a response body; a larger one is an error.
const MAX_RESPONSE_BODY_BYTES: usize = 1024 * 1024;

/// A client for one server.
#[derive(Clone, Debug)]
pub struct HttpClient {
    url: ServerUrl,
    tls: Option<OutboundTls>,
    host: HeaderValue,
    request_timeout: Duration,
    /// For connecting, including TLS; part of `request_timeout`.
    connect_timeout: Duration,
}

/// Why there is no response. Contains no part of the request or the response.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// Resolving, connecting or the TLS handshake failed.
    #[error("cannot connect to {0}: {1}")]
    Connect(String, std::io::Error),
    /// The connection failed before the response was complete, or the response is invalid or too large.
    #[error("{0} returned an incomplete or invalid response: {1}")]
    Incomplete(String, String),
    /// The request timeout has passed.
    #[error("{0} did not respond in time")]
    TimedOut(String),
}

impl HttpClient {
    /// A client for the server at `url`. `ca_file` has the CA certificates that replace the system's; `option` is the
    /// name of the option to show in an error about them.
    pub fn new(
        url: &ServerUrl,
        ca_file: Option<&Path>,
        option: &'static str,
        request_timeout: Duration,
    ) -> Result<HttpClient, TlsError> {
        let tls = url.tls.then(|| client_tls(&url.host, ca_file, option)).transpose()?;
        Ok(HttpClient::with_tls(url, tls, request_timeout))
    }

    /// A client with a given TLS configuration; `None` for plain HTTP.
    pub fn with_tls(url: &ServerUrl, tls: Option<OutboundTls>, request_timeout: Duration) -> HttpClient {
        let host = HeaderValue::from_str(&url.authority());
        let host = host.expect("a validated host is a valid header value");
        HttpClient { url: url.clone(), tls, host, request_timeout, connect_timeout: request_timeout }
    }

    /// Limits the time to connect, including TLS, so that the caller has time to try the next server.
    pub fn with_connect_timeout(self, connect_timeout: Duration) -> HttpClient {
        HttpClient { connect_timeout, ..self }
    }

    /// Host and port or the Unix socket, for logs.
    pub fn authority(&self) -> String {
        self.url.name()
    }

    /// Sends a request, whose URI is a path, and reads the whole response.
    pub async fn send(&self, mut request: Request<Full<Bytes>>) -> Result<Response<Bytes>, FetchError> {
        request.headers_mut().insert(HOST, self.host.clone());
        request.headers_mut().entry(USER_AGENT).or_insert(HeaderValue::from_static("timbr-gateway"));
        match timeout(self.request_timeout, self.connect_and_send(request)).await {
            Ok(result) => result,
            Err(_) => Err(FetchError::TimedOut(self.authority())),
        }
    }

    async fn connect_and_send(&self, request: Request<Full<Bytes>>) -> Result<Response<Bytes>, FetchError> {
        let connected = timeout(self.connect_timeout, self.connect()).await;
        let connected = connected.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()));
        let stream = connected.map_err(|error| FetchError::Connect(self.authority(), error))?;
        self.exchange(stream, request).await
    }

    async fn connect(&self) -> std::io::Result<Either<TcpStream, Box<TlsStream<TcpStream>>>> {
        let socket = match &self.url.socket {
            Some(path) => unix_socket::connect_stream(path).await?,
            None => TcpStream::connect((self.url.host.as_str(), self.url.port)).await?,
        };
        let Some(tls) = &self.tls else { return Ok(Either::Left(socket)) };
        let connector = TlsConnector::from(tls.config.clone());
        let stream = connector.connect(tls.server_name.clone(), socket).await?;
        Ok(Either::Right(Box::new(stream)))
    }

    async fn exchange(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        request: Request<Full<Bytes>>,
    ) -> Result<Response<Bytes>, FetchError> {
        let incomplete = |error: &dyn std::error::Error| {
            let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
            FetchError::Incomplete(self.authority(), format!("{error}{cause}"))
        };
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| incomplete(&error))?;
        let mut connection = pin!(connection);
        let mut response = pin!(async {
            let (head, body) = sender.send_request(request).await.map_err(|error| incomplete(&error))?.into_parts();
            let body =
                Limited::new(body, MAX_RESPONSE_BODY_BYTES).collect().await.map_err(|error| incomplete(&*error))?;
            Ok(Response::from_parts(head, body.to_bytes()))
        });
        tokio::select! {
            biased;
            response = &mut response => response,
            result = &mut connection => match result {
                // The response may have been read before the connection ended.
                Ok(()) => response.await,
                Err(error) => Err(incomplete(&error)),
            },
        }
    }
}
