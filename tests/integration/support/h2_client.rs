//! An HTTP/2 client over TLS that sends the given headers.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use http::Request;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::support::TIMEOUT;

/// A connection with its runtime.
pub struct H2Client {
    runtime: tokio::runtime::Runtime,
    sender: SendRequest<Bytes>,
}

/// A response.
#[derive(Debug)]
pub struct H2Response {
    pub status: u16,
    pub headers: http::HeaderMap,
    pub body: Vec<u8>,
}

impl H2Response {
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// A TLS client configuration that trusts one certificate and offers these protocols.
pub fn tls_config(certificate_pem: &str, protocols: &[&str]) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(certificate_pem.as_bytes()).expect("PEM")).expect("trusted");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
    Arc::new(config)
}

/// A TLS connection for raw bytes.
pub fn tls_stream(
    address: SocketAddr,
    certificate_pem: &str,
    protocols: &[&str],
) -> StreamOwned<ClientConnection, std::net::TcpStream> {
    let name = ServerName::try_from("localhost").expect("a name");
    let connection = ClientConnection::new(tls_config(certificate_pem, protocols), name).expect("a connection");
    let socket = std::net::TcpStream::connect(address).expect("connected");
    socket.set_read_timeout(Some(TIMEOUT)).expect("set");
    let mut stream = StreamOwned::new(connection, socket);
    stream.conn.complete_io(&mut stream.sock).expect("a handshake");
    stream
}

impl H2Client {
    pub fn connect(address: SocketAddr, certificate_pem: &str) -> H2Client {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let config = tls_config(certificate_pem, &["h2", "http/1.1"]);
        let sender = runtime.block_on(async {
            let stream = TcpStream::connect(address).await.expect("connected");
            let name = ServerName::try_from("localhost").expect("a name");
            let stream = TlsConnector::from(config).connect(name, stream).await.expect("a handshake");
            assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
            let (sender, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
            tokio::spawn(connection);
            sender
        });
        H2Client { runtime, sender }
    }

    /// Sends a request and reads the response. The error says how the stream or connection ended.
    pub fn try_send(&self, line: &str, headers: &[(&str, &str)], body: &[u8]) -> Result<H2Response, h2::Error> {
        let request = request(line, headers);
        let body = Bytes::copy_from_slice(body);
        self.runtime.block_on(async {
            let exchange = exchange(self.sender.clone(), request, body);
            tokio::time::timeout(TIMEOUT, exchange).await.expect("a response in time")
        })
    }

    /// Reads the head of a response but not its body, and waits for the end of the stream or connection.
    pub fn send_without_reading_body(&self, line: &str, headers: &[(&str, &str)]) -> Result<(), h2::Error> {
        let request = request(line, headers);
        self.runtime.block_on(async {
            let mut sender = self.sender.clone().ready().await?;
            let (response, _) = sender.send_request(request, true)?;
            let mut body = response.await?.into_body();
            let taking = async {
                while body.data().await.transpose()?.is_some() {}
                Ok(())
            };
            tokio::time::timeout(TIMEOUT, taking).await.expect("the end in time")
        })
    }

    /// Sends a body byte by byte with pauses, and reads the response meanwhile.
    pub fn send_slowly(&self, line: &str, headers: &[(&str, &str)], pause: Duration) -> Result<H2Response, h2::Error> {
        let request = request(line, headers);
        self.runtime.block_on(async {
            let mut sender = self.sender.clone().ready().await?;
            let (response, mut stream) = sender.send_request(request, false)?;
            let dripping = tokio::spawn(async move {
                while stream.send_data(Bytes::from_static(b"x"), false).is_ok() {
                    tokio::time::sleep(pause).await;
                }
            });
            let response = tokio::time::timeout(TIMEOUT, read(response)).await.expect("a response in time");
            dripping.abort();
            response
        })
    }

    /// Sends requests with a body of `size` bytes each, as far as the gateway takes them within `time`. Their streams stay
    /// open until they are dropped.
    pub fn begin_uploads(
        &self,
        line: &str,
        headers: &[(&str, &str)],
        count: usize,
        size: usize,
        time: Duration,
    ) -> Vec<(h2::client::ResponseFuture, h2::SendStream<Bytes>)> {
        let body = Bytes::from(vec![b'x'; size]);
        self.runtime.block_on(async {
            let mut uploads = Vec::new();
            for _ in 0..count {
                let mut sender = self.sender.clone().ready().await.expect("room for a stream");
                let (response, mut stream) = sender.send_request(request(line, headers), false).expect("sent");
                // Fails for a stream that was reset.
                let _ = stream.send_data(body.clone(), false);
                uploads.push((response, stream));
            }
            tokio::time::sleep(time).await;
            uploads
        })
    }

    /// Sends a request, resets its stream when `is_there`, and waits until `is_over`.
    pub fn send_and_reset(
        &self,
        line: &str,
        headers: &[(&str, &str)],
        is_there: impl Fn() -> bool,
        is_over: impl Fn() -> bool,
    ) {
        const PAUSE: Duration = Duration::from_millis(5);
        let begun = std::time::Instant::now();
        self.runtime.block_on(async {
            let mut sender = self.sender.clone().ready().await.expect("room for a stream");
            let (response, mut stream) = sender.send_request(request(line, headers), false).expect("sent");
            stream.send_data(Bytes::from_static(b"{}"), true).expect("sent");
            while !is_there() {
                assert!(begun.elapsed() < TIMEOUT, "the request does not arrive");
                tokio::time::sleep(PAUSE).await;
            }
            drop((response, stream));
            while !is_over() {
                assert!(begun.elapsed() < TIMEOUT, "the request does not end");
                tokio::time::sleep(PAUSE).await;
            }
        });
    }

    /// Sends requests concurrently and reads their responses.
    pub fn send_concurrently(&self, requests: &[(&str, &[(&str, &str)])]) -> Vec<Result<H2Response, h2::Error>> {
        self.runtime.block_on(async {
            let mut responses = Vec::new();
            for (line, headers) in requests {
                let mut sender = self.sender.clone().ready().await.expect("room for a stream");
                responses.push(sender.send_request(request(line, headers), true).map(|(response, _)| response));
            }
            let mut read_responses = Vec::new();
            for response in responses {
                read_responses.push(match response {
                    Ok(response) => read(response).await,
                    Err(error) => Err(error),
                });
            }
            read_responses
        })
    }

    pub fn send(&self, line: &str, headers: &[(&str, &str)], body: &[u8]) -> H2Response {
        self.try_send(line, headers, body).expect("a response")
    }
}

fn request(line: &str, headers: &[(&str, &str)]) -> Request<()> {
    let (method, path) = line.split_once(' ').expect("method and path");
    let mut request = Request::builder().method(method).uri(format!("https://localhost{path}"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(()).expect("a request")
}

async fn exchange(sender: SendRequest<Bytes>, request: Request<()>, body: Bytes) -> Result<H2Response, h2::Error> {
    let mut sender = sender.ready().await?;
    let (response, mut stream) = sender.send_request(request, body.is_empty())?;
    if !body.is_empty() {
        stream.send_data(body, true)?;
    }
    read(response).await
}

async fn read(response: h2::client::ResponseFuture) -> Result<H2Response, h2::Error> {
    let (head, mut incoming) = response.await?.into_parts();
    let mut body = Vec::new();
    while let Some(chunk) = incoming.data().await {
        let chunk = chunk?;
        let _ = incoming.flow_control().release_capacity(chunk.len());
        body.extend_from_slice(&chunk);
    }
    Ok(H2Response { status: head.status.as_u16(), headers: head.headers, body })
}
