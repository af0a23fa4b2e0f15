//! A client's socket, below TLS if the connection has it, and operations on it besides reading and writing. It knows
//! nothing about HTTP.

use std::io::{self, IoSlice, Write};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::ServerConnection;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use crate::downstream::activity::Activity;

/// A TLS connection with a client.
pub type ClientTlsStream = TlsStream<ClientTransport>;

/// Maximum size of the final bytes that are sent in one write with the TLS `close_notify` alert.
const MAX_FINAL_WRITE: usize = 20 * 1024;

/// A client's socket, with TLS or without.
pub trait ClientSocket {
    /// Makes the peer see a reset instead of an orderly close when the socket is dropped.
    fn reset_on_drop(&self);

    /// Encrypts the final bytes of the connection and the TLS `close_notify` alert into one buffer, so that the next
    /// flush sends both: otherwise the alert would need a separate system call and packet. Returns whether it did; if
    /// not, the bytes have to be written as usual.
    fn buffer_final_write(&mut self, parts: [&[u8]; 3]) -> bool;

    /// The TCP socket.
    fn tcp(&self) -> &TcpStream;

    /// The TCP socket, if data is sent unencrypted.
    fn plain_tcp(&self) -> Option<&TcpStream>;
}

impl ClientSocket for ClientTransport {
    fn reset_on_drop(&self) {
        let _ = SockRef::from(&self.socket).set_linger(Some(Duration::ZERO));
    }

    fn buffer_final_write(&mut self, _: [&[u8]; 3]) -> bool {
        false
    }

    fn tcp(&self) -> &TcpStream {
        &self.socket
    }

    fn plain_tcp(&self) -> Option<&TcpStream> {
        Some(&self.socket)
    }
}

impl ClientSocket for Box<ClientTlsStream> {
    fn reset_on_drop(&self) {
        self.get_ref().0.reset_on_drop();
    }

    fn buffer_final_write(&mut self, parts: [&[u8]; 3]) -> bool {
        buffer_final_write(self.get_mut().1, parts)
    }

    fn tcp(&self) -> &TcpStream {
        self.get_ref().0.tcp()
    }

    fn plain_tcp(&self) -> Option<&TcpStream> {
        None
    }
}

fn buffer_final_write(tls: &mut ServerConnection, parts: [&[u8]; 3]) -> bool {
    let size: usize = parts.iter().map(|part| part.len()).sum();
    // The send buffer of rustls accepts 64 KiB. If it were not empty, it might accept the bytes in part.
    if tls.wants_write() || size > MAX_FINAL_WRITE {
        return false;
    }
    let written = tls.writer().write_vectored(&parts.map(IoSlice::new));
    debug_assert!(!matches!(written, Ok(count) if count != size), "the caller would send the accepted part again");
    let is_buffered = written.is_ok_and(|count| count == size);
    if is_buffered {
        tls.send_close_notify();
    }
    is_buffered
}

/// The TCP socket of a connection, with TLS above it or without.
pub struct ClientTransport {
    socket: TcpStream,
    activity: Rc<Activity>,
}

impl ClientTransport {
    pub fn new(socket: TcpStream, activity: Rc<Activity>) -> ClientTransport {
        ClientTransport { socket, activity }
    }

    /// Tries a blocked write again, if the reaper demands it. The event loop reports that a socket accepts data only
    /// when a third of its buffer is free, of up to 4 MiB, and for that a slow client needs longer than
    /// `timeouts.write`. The kernel accepts some as soon as the client has read about 100 KiB.
    fn retry_blocked(
        &self,
        cx: &Context<'_>,
        polled: Poll<io::Result<usize>>,
        write: impl FnOnce(SockRef<'_>) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        if polled.is_ready() || !self.activity.must_retry_write() {
            return polled;
        }
        match write(SockRef::from(&self.socket)) {
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                self.activity.end_write_retry();
                polled
            }
            written => {
                // TLS may still report that it is full: it encrypts more when it is polled again.
                self.activity.set_write_blocked(false);
                cx.waker().wake_by_ref();
                Poll::Ready(written)
            }
        }
    }
}

impl AsyncRead for ClientTransport {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_read(cx, buf)
    }
}

impl AsyncWrite for ClientTransport {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.socket).poll_write(cx, buf);
        self.retry_blocked(cx, polled, |socket| socket.send(buf))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        // rustls always writes lists of buffers, most of them with one element, for which `send` costs the kernel less
        // than `writev` (0.2 µs, measured over loopback).
        if let [buf] = bufs {
            return self.poll_write(cx, buf);
        }
        let polled = Pin::new(&mut self.socket).poll_write_vectored(cx, bufs);
        self.retry_blocked(cx, polled, |socket| socket.send_vectored(bufs))
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::sync::Arc;

    use rustls::crypto::aws_lc_rs::default_provider;
    use rustls::pki_types::PrivateKeyDer;
    use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig};

    use super::*;

    /// Two ends of a TLS connection after the handshake.
    fn connected() -> (ClientConnection, ServerConnection) {
        let key = rcgen::KeyPair::generate().expect("a key");
        let params = rcgen::CertificateParams::new(vec!["localhost".into()]).expect("valid");
        let certificate = params.self_signed(&key).expect("signed").der().clone();
        let mut roots = RootCertStore::empty();
        roots.add(certificate.clone()).expect("a root");
        let provider = Arc::new(default_provider());
        let client = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        let server = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .expect("a pair");
        let name = "localhost".try_into().expect("a name");
        let mut client = ClientConnection::new(Arc::new(client), name).expect("a client");
        let mut server = ServerConnection::new(Arc::new(server)).expect("a server");
        while client.wants_write() || server.wants_write() {
            let mut bytes = Vec::new();
            client.write_tls(&mut bytes).expect("written");
            server.read_tls(&mut &bytes[..]).expect("read");
            server.process_new_packets().expect("valid");
            receive(&mut client, &mut server);
        }
        (client, server)
    }

    /// Passes the result of one write to the client.
    fn receive(client: &mut ClientConnection, server: &mut ServerConnection) {
        let mut bytes = Vec::new();
        server.write_tls(&mut bytes).expect("written");
        client.read_tls(&mut &bytes[..]).expect("read");
        client.process_new_packets().expect("valid");
    }

    #[test]
    fn the_last_response_and_the_close_alert_are_one_write() {
        let (mut client, mut server) = connected();
        assert!(buffer_final_write(&mut server, [b"head", b"body", b""]));
        receive(&mut client, &mut server);
        assert!(!server.wants_write());
        let mut response = String::new();
        client.reader().read_to_string(&mut response).expect("an orderly end");
        assert_eq!(response, "headbody");
    }

    #[test]
    fn large_or_delayed_responses_are_not_buffered() {
        let (mut client, mut server) = connected();
        assert!(!buffer_final_write(&mut server, [&[b'x'; MAX_FINAL_WRITE + 1], b"", b""]));
        server.writer().write_all(b"first").expect("buffered");
        assert!(!buffer_final_write(&mut server, [b"last", b"", b""]), "earlier data is not sent yet");
        receive(&mut client, &mut server);
        let mut received = [0; 10];
        assert_eq!(client.reader().read(&mut received).expect("read"), 5, "the connection is still open");
    }
}
