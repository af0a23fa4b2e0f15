//! An HTTP/2 client over TLS that sends the fields it is told to.

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

use crate::support::PATIENCE;

/// A connection and the runtime that drives it.
pub struct H2Client {
    runtime: tokio::runtime::Runtime,
    sender: SendRequest<Bytes>,
}

/// An answer's status and body.
#[derive(Debug)]
pub struct H2Answer {
    pub status: u16,
    pub body: Vec<u8>,
}

impl H2Answer {
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// A TLS client's side that trusts one certificate and offers these protocols.
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

/// A TLS connection on which a test speaks for itself.
pub fn tls_stream(
    address: SocketAddr,
    certificate_pem: &str,
    protocols: &[&str],
) -> StreamOwned<ClientConnection, std::net::TcpStream> {
    let name = ServerName::try_from("localhost").expect("a name");
    let connection =
        ClientConnection::new(tls_config(certificate_pem, protocols), name).expect("a connection");
    let socket = std::net::TcpStream::connect(address).expect("connected");
    socket.set_read_timeout(Some(PATIENCE)).expect("set");
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

    /// Sends a request and reads its answer; the error if the stream or connection was ended instead.
    pub fn try_send(&self, line: &str, fields: &[(&str, &str)], body: &[u8]) -> Result<H2Answer, h2::Error> {
        let request = request(line, fields);
        let body = Bytes::copy_from_slice(body);
        self.runtime.block_on(async {
            let exchange = exchange(self.sender.clone(), request, body);
            tokio::time::timeout(PATIENCE, exchange).await.expect("an answer in time")
        })
    }

    /// Reads the head of an answer, leaves its body untaken, and waits for the end of the stream or connection.
    pub fn send_and_take_nothing(&self, line: &str, fields: &[(&str, &str)]) -> Result<(), h2::Error> {
        let request = request(line, fields);
        self.runtime.block_on(async {
            let mut sender = self.sender.clone().ready().await?;
            let (response, _) = sender.send_request(request, true)?;
            let mut body = response.await?.into_body();
            let taking = async {
                while body.data().await.transpose()?.is_some() {}
                Ok(())
            };
            tokio::time::timeout(PATIENCE, taking).await.expect("an end in time")
        })
    }

    /// Sends a body byte by byte with pauses between, and reads what answer there is before it has ended.
    pub fn send_slowly(
        &self,
        line: &str,
        fields: &[(&str, &str)],
        pause: Duration,
    ) -> Result<H2Answer, h2::Error> {
        let request = request(line, fields);
        self.runtime.block_on(async {
            let mut sender = self.sender.clone().ready().await?;
            let (response, mut stream) = sender.send_request(request, false)?;
            let dripping = tokio::spawn(async move {
                while stream.send_data(Bytes::from_static(b"x"), false).is_ok() {
                    tokio::time::sleep(pause).await;
                }
            });
            let answer = tokio::time::timeout(PATIENCE, read(response)).await.expect("an answer in time");
            dripping.abort();
            answer
        })
    }

    /// Sends a request, resets its stream when it `is_there`, and waits until it `is_over`.
    pub fn send_and_leave(
        &self,
        line: &str,
        fields: &[(&str, &str)],
        is_there: impl Fn() -> bool,
        is_over: impl Fn() -> bool,
    ) {
        const PAUSE: Duration = Duration::from_millis(5);
        let begun = std::time::Instant::now();
        self.runtime.block_on(async {
            let mut sender = self.sender.clone().ready().await.expect("room for a stream");
            let (response, mut stream) = sender.send_request(request(line, fields), false).expect("sent");
            stream.send_data(Bytes::from_static(b"{}"), true).expect("sent");
            while !is_there() {
                assert!(begun.elapsed() < PATIENCE, "it does not arrive");
                tokio::time::sleep(PAUSE).await;
            }
            drop((response, stream));
            while !is_over() {
                assert!(begun.elapsed() < PATIENCE, "it is not over");
                tokio::time::sleep(PAUSE).await;
            }
        });
    }

    /// Sends requests at once and reads their answers.
    pub fn send_together(&self, requests: &[(&str, &[(&str, &str)])]) -> Vec<Result<H2Answer, h2::Error>> {
        self.runtime.block_on(async {
            let mut answers = Vec::new();
            for (line, fields) in requests {
                let mut sender = self.sender.clone().ready().await.expect("room for a stream");
                answers.push(sender.send_request(request(line, fields), true).map(|(response, _)| response));
            }
            let mut read_answers = Vec::new();
            for answer in answers {
                read_answers.push(match answer {
                    Ok(response) => read(response).await,
                    Err(error) => Err(error),
                });
            }
            read_answers
        })
    }

    pub fn send(&self, line: &str, fields: &[(&str, &str)], body: &[u8]) -> H2Answer {
        self.try_send(line, fields, body).expect("an answer")
    }
}

fn request(line: &str, fields: &[(&str, &str)]) -> Request<()> {
    let (method, path) = line.split_once(' ').expect("method and path");
    let mut request = Request::builder().method(method).uri(format!("https://localhost{path}"));
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    request.body(()).expect("a request")
}

async fn exchange(
    sender: SendRequest<Bytes>,
    request: Request<()>,
    body: Bytes,
) -> Result<H2Answer, h2::Error> {
    let mut sender = sender.ready().await?;
    let (response, mut stream) = sender.send_request(request, body.is_empty())?;
    if !body.is_empty() {
        stream.send_data(body, true)?;
    }
    read(response).await
}

async fn read(response: h2::client::ResponseFuture) -> Result<H2Answer, h2::Error> {
    let (head, mut incoming) = response.await?.into_parts();
    let mut body = Vec::new();
    while let Some(chunk) = incoming.data().await {
        let chunk = chunk?;
        let _ = incoming.flow_control().release_capacity(chunk.len());
        body.extend_from_slice(&chunk);
    }
    Ok(H2Answer { status: head.status.as_u16(), body })
}
