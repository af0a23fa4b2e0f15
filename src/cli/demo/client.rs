//! A minimal HTTPS client for the demo, which also formats its requests as `curl` commands.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::Full;

use crate::config::ServerUrl;
use crate::outbound::http_client::HttpClient;
use crate::tls::client_tls;

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
    base_url: String,
    http: HttpClient,
    runtime: tokio::runtime::Runtime,
}

impl DemoClient {
    /// `ca_file` has the certificate of the gateway at `address`, which is valid for `localhost`.
    pub fn new(address: SocketAddr, ca_file: &Path) -> anyhow::Result<DemoClient> {
        let (host, port) = (address.ip().to_string(), address.port());
        let url = ServerUrl { tls: true, host, port, socket: None };
        let tls = client_tls("localhost", Some(ca_file), "ca_file")?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let base_url = format!("https://localhost:{port}");
        Ok(DemoClient { base_url, http: HttpClient::with_tls(&url, Some(tls), RESPONSE_TIMEOUT), runtime })
    }

    pub fn base_url(&self) -> &str {
        &self.base_url
    }

    /// Returns status and body of the response.
    pub fn send(&self, exchange: &DemoRequest) -> anyhow::Result<(u16, String)> {
        let mut request = Request::builder().method(exchange.method.clone()).uri(&exchange.path);
        for (name, value, _) in &exchange.headers {
            request = request.header(*name, value);
        }
        let request = request.body(Full::new(Bytes::from(exchange.body.clone().unwrap_or_default())))?;
        let response = self.runtime.block_on(self.http.send(request))?;
        Ok((response.status().as_u16(), String::from_utf8_lossy(response.body()).into_owned()))
    }
}
