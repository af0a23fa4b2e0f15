//! A TLS client with a configurable handshake.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, HandshakeKind, RootCertStore, StreamOwned};

use crate::support::TIMEOUT;

/// A client configuration. Later connections resume sessions.
pub struct TlsClient(Arc<ClientConfig>);

/// A connection.
pub struct TlsConnection(StreamOwned<ClientConnection, TcpStream>);

impl TlsClient {
    /// Trusts one authority. Sends a client certificate, if there is one.
    pub fn new(authority_pem: &str, certificate: Option<&(PathBuf, PathBuf)>) -> TlsClient {
        let mut roots = RootCertStore::empty();
        let authority = CertificateDer::from_pem_slice(authority_pem.as_bytes()).expect("PEM");
        roots.add(authority).expect("trusted");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots);
        let config = match certificate {
            None => builder.with_no_client_auth(),
            Some((chain, key)) => {
                let chain = CertificateDer::pem_file_iter(chain).expect("a file");
                let chain = chain.collect::<Result<_, _>>().expect("PEM");
                let key = PrivateKeyDer::from_pem_file(key).expect("a key");
                builder.with_client_auth_cert(chain, key).expect("a pair")
            }
        };
        TlsClient(Arc::new(config))
    }

    /// Connects with this server name or address. The error is the gateway's or the client's own.
    pub fn connect(&self, address: SocketAddr, name: &str) -> std::io::Result<TlsConnection> {
        let name = ServerName::try_from(name.to_owned()).expect("a name");
        let connection = ClientConnection::new(Arc::clone(&self.0), name).expect("a connection");
        let socket = TcpStream::connect(address)?;
        socket.set_read_timeout(Some(TIMEOUT))?;
        let mut stream = StreamOwned::new(connection, socket);
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock)?;
        }
        Ok(TlsConnection(stream))
    }
}

impl TlsConnection {
    /// Sends a GET with these headers, and reads status and body. `None` if the connection ended.
    pub fn get(&mut self, path: &str, headers: &str) -> Option<(u16, String)> {
        let head = format!("GET {path} HTTP/1.1\r\n{headers}\r\n");
        self.0.write_all(head.as_bytes()).ok()?;
        let mut response = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            let text = String::from_utf8_lossy(&response).into_owned();
            if let Some((head, body)) = text.split_once("\r\n\r\n") {
                let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
                let length: usize = length.and_then(|text| text.parse().ok()).unwrap_or(0);
                if body.len() >= length {
                    return Some((head.get(9..12)?.parse().ok()?, body.to_owned()));
                }
            }
            match self.0.read(&mut buffer) {
                Ok(count @ 1..) => response.extend_from_slice(&buffer[..count]),
                _ => return None,
            }
        }
    }

    /// The server certificate.
    pub fn certificate(&self) -> Vec<u8> {
        self.0.conn.peer_certificates().expect("a chain")[0].to_vec()
    }

    pub fn is_resumed(&self) -> bool {
        self.0.conn.handshake_kind() == Some(HandshakeKind::Resumed)
    }
}

/// The first certificate of a PEM file.
pub fn leaf(file: &std::path::Path) -> Vec<u8> {
    CertificateDer::from_pem_file(file).expect("PEM").to_vec()
}
