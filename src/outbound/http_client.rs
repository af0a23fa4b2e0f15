//! Questions to other servers that are asked now and then: for keys of an identity provider, for whether a password is
//! right. One connection each, HTTP/1.1, no redirects followed, everything bounded.
//!
//! Requests of clients never go this way: those take `upstream`, which is made for many of them.

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

use crate::config::ServerUrl;
use crate::tls::{OutboundTls, TlsError, client_tls};

/// More of an answer is not read.
const MAX_RESPONSE_BODY_BYTES: usize = 1024 * 1024;

/// A server that is asked now and then.
#[derive(Clone, Debug)]
pub struct HttpClient {
    url: ServerUrl,
    tls: Option<OutboundTls>,
    host: HeaderValue,
    request_timeout: Duration,
    /// For the connection, of the whole.
    connect_timeout: Duration,
}

/// A connection on which nothing was asked yet.
enum HttpClientStream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// Why there is no answer. Shows neither the request nor the answer.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// No connection.
    #[error("cannot connect to {0}: {1}")]
    Connect(String, std::io::Error),
    /// It failed on the way.
    #[error("{0} gave no whole answer: {1}")]
    Incomplete(String, String),
    /// It took too long.
    #[error("{0} did not answer in time")]
    TimedOut(String),
}

impl HttpClient {
    /// A server by its address; `ca_file` is what to trust instead of the system's authorities, named by `option`.
    pub fn new(
        url: &ServerUrl,
        ca_file: Option<&Path>,
        option: &'static str,
        patience: Duration,
    ) -> Result<HttpClient, TlsError> {
        let tls = url.tls.then(|| client_tls(&url.host, ca_file, option)).transpose()?;
        Ok(HttpClient::with_tls(url, tls, patience))
    }

    /// A server of which it is known how to speak TLS with it.
    pub fn with_tls(url: &ServerUrl, tls: Option<OutboundTls>, request_timeout: Duration) -> HttpClient {
        let host = HeaderValue::from_str(&url.authority());
        let host = host.expect("a host that the configuration accepted is a field value");
        HttpClient { url: url.clone(), tls, host, request_timeout, connect_timeout: request_timeout }
    }

    /// A server that has so long for the connection, TLS included: who waits no longer can ask another one in time.
    pub fn with_connect_timeout(self, connect_patience: Duration) -> HttpClient {
        HttpClient { connect_timeout: connect_patience, ..self }
    }

    /// How logs call it.
    pub fn authority(&self) -> String {
        self.url.authority()
    }

    /// Sends a request, whose target is a path, and reads the whole answer.
    pub async fn send(&self, mut request: Request<Full<Bytes>>) -> Result<Response<Bytes>, FetchError> {
        request.headers_mut().insert(HOST, self.host.clone());
        request.headers_mut().entry(USER_AGENT).or_insert(HeaderValue::from_static("timbr-gateway"));
        match timeout(self.request_timeout, self.connect_and_send(request)).await {
            Ok(answer) => answer,
            Err(_) => Err(FetchError::TimedOut(self.authority())),
        }
    }

    async fn connect_and_send(&self, request: Request<Full<Bytes>>) -> Result<Response<Bytes>, FetchError> {
        let connected = timeout(self.connect_timeout, self.connect()).await;
        let connected = connected.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()));
        match connected.map_err(|error| FetchError::Connect(self.authority(), error))? {
            HttpClientStream::Plain(socket) => self.exchange(socket, request).await,
            HttpClientStream::Tls(stream) => self.exchange(*stream, request).await,
        }
    }

    async fn connect(&self) -> std::io::Result<HttpClientStream> {
        let socket = TcpStream::connect((self.url.host.as_str(), self.url.port)).await?;
        let Some(tls) = &self.tls else { return Ok(HttpClientStream::Plain(socket)) };
        let connector = TlsConnector::from(tls.config.clone());
        let stream = connector.connect(tls.server_name.clone(), socket).await?;
        Ok(HttpClientStream::Tls(Box::new(stream)))
    }

    async fn exchange(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        request: Request<Full<Bytes>>,
    ) -> Result<Response<Bytes>, FetchError> {
        let broken =
            |error: &dyn std::error::Error| FetchError::Incomplete(self.authority(), error.to_string());
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| broken(&error))?;
        let mut connection = pin!(connection);
        let mut asking = pin!(async {
            let (head, body) =
                sender.send_request(request).await.map_err(|error| broken(&error))?.into_parts();
            let body = Limited::new(body, MAX_RESPONSE_BODY_BYTES)
                .collect()
                .await
                .map_err(|error| broken(&*error))?;
            Ok(Response::from_parts(head, body.to_bytes()))
        });
        tokio::select! {
            biased;
            answer = &mut asking => answer,
            ended = &mut connection => match ended {
                // What has been read is still to be taken.
                Ok(()) => asking.await,
                Err(error) => Err(broken(&error)),
            },
        }
    }
}
