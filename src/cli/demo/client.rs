//! A minimal HTTPS client for the demo, which also formats its requests as `curl` commands.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

const RESPONSE_TIMEOUT: Duration = Duration::from_secs(10);

/// A request to make.
#[derive(Clone)]
pub struct DemoRequest {
    method: Method,
    path: String,
    /// Name, value, and the placeholder of the value in the `curl` command.
    headers: Vec<(&'static str, String, String)>,
    body: Option<String>,
}

impl DemoRequest {
    pub fn get(path: &str) -> DemoRequest {
        DemoRequest { method: Method::GET, path: path.to_owned(), headers: Vec::new(), body: None }
    }

    pub fn post(path: &str, body: &str) -> DemoRequest {
        DemoRequest { method: Method::POST, body: Some(body.to_owned()), ..DemoRequest::get(path) }
    }

    pub fn header(self, name: &'static str, value: &str) -> DemoRequest {
        self.header_with_placeholder(name, value, value)
    }

    pub fn header_with_placeholder(mut self, name: &'static str, value: &str, shown: &str) -> DemoRequest {
        self.headers.push((name, value.to_owned(), shown.to_owned()));
        self
    }

    pub fn as_curl(&self, base: &str) -> String {
        let mut command = format!("curl {base}{}", self.path);
        for (name, _, shown) in &self.headers {
            let quote = if shown.contains('$') { '"' } else { '\'' };
            let _ = write!(command, " -H {quote}{name}: {shown}{quote}");
        }
        match self.body.as_deref() {
            None => {}
            Some("") => command.push_str(" -X POST"),
            Some(body) => drop(write!(command, " -d '{body}'")),
        }
        command
    }
}

/// Connects to one gateway and trusts only its certificate.
pub struct DemoClient {
    address: SocketAddr,
    tls: Arc<ClientConfig>,
    runtime: tokio::runtime::Runtime,
}

impl DemoClient {
    pub fn new(address: SocketAddr, certificate_pem: &str) -> anyhow::Result<DemoClient> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(certificate_pem.as_bytes())?)?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(DemoClient { address, tls: Arc::new(tls), runtime })
    }

    pub fn base_url(&self) -> String {
        format!("https://localhost:{}", self.address.port())
    }

    /// Returns status and body of the response.
    pub fn send(&self, exchange: &DemoRequest) -> anyhow::Result<(u16, String)> {
        self.runtime.block_on(async {
            let exchange = tokio::time::timeout(RESPONSE_TIMEOUT, self.connect_and_send(exchange));
            exchange.await.context("the gateway does not respond")?
        })
    }

    async fn connect_and_send(&self, exchange: &DemoRequest) -> anyhow::Result<(u16, String)> {
        let stream = TcpStream::connect(self.address).await?;
        let name = ServerName::try_from("localhost")?;
        let stream = TlsConnector::from(Arc::clone(&self.tls)).connect(name, stream).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let mut request = Request::builder()
            .method(exchange.method.clone())
            .uri(&exchange.path)
            .header("host", format!("localhost:{}", self.address.port()));
        for (name, value, _) in &exchange.headers {
            request = request.header(*name, value);
        }
        let body = Full::new(Bytes::from(exchange.body.clone().unwrap_or_default()));
        let response = async {
            let response = sender.send_request(request.body(body)?).await?;
            let status = response.status().as_u16();
            let body = response.into_body().collect().await?.to_bytes();
            Ok((status, String::from_utf8_lossy(&body).into_owned()))
        };
        tokio::select! {
            response = response => response,
            result = connection => {
                result?;
                anyhow::bail!("the gateway closed the connection")
            }
        }
    }
}
