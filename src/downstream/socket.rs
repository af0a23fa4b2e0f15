//! Operations on a client's socket besides reading and writing, and the transport below TLS. It knows nothing about
//! HTTP.

use std::io::{self, IoSlice, Write};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use rustls::ServerConnection;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

/// A TLS connection with a client.
pub type ClientTlsStream = TlsStream<TlsTransport<TcpStream>>;

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

impl ClientSocket for TcpStream {
    fn reset_on_drop(&self) {
        let _ = socket2::SockRef::from(self).set_linger(Some(Duration::ZERO));
    }

    fn buffer_final_write(&mut self, _: [&[u8]; 3]) -> bool {
        false
    }

    fn tcp(&self) -> &TcpStream {
        self
    }

    fn plain_tcp(&self) -> Option<&TcpStream> {
        Some(self)
    }
}

impl ClientSocket for Box<ClientTlsStream> {
    fn reset_on_drop(&self) {
        self.tcp().reset_on_drop();
    }

    fn buffer_final_write(&mut self, parts: [&[u8]; 3]) -> bool {
        buffer_final_write(self.get_mut().1, parts)
    }

    fn tcp(&self) -> &TcpStream {
        &self.get_ref().0.io
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

/// The first read of a record by rustls. It reads the rest in pieces of the same size, or at once where its buffer is
/// large already.
const TLS_READ_SIZE: usize = 4 * 1024;

/// Maximum bytes that are read ahead of TLS, a size that the allocator serves from its caches.
const MAX_READ_AHEAD: usize = 32 * 1024;

/// The socket below TLS. rustls reads a record in pieces of 4 KiB: while a client sends more than one piece at once, they
/// come from one larger read. It also always writes lists of buffers, most of them with one element, for which `send`
/// costs the kernel less than `writev` (0.2 µs, measured over loopback).
pub struct TlsTransport<I> {
    io: I,
    /// Data that was read and not passed to TLS yet. It takes no memory while nothing waits.
    read_ahead: BytesMut,
    /// The last read filled its buffer, so more has probably arrived.
    expects_more: bool,
}

impl<I> TlsTransport<I> {
    pub fn new(io: I) -> TlsTransport<I> {
        TlsTransport { io, read_ahead: BytesMut::new(), expects_more: false }
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for TlsTransport<I> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.read_ahead.is_empty() && (!this.expects_more || buf.remaining() > TLS_READ_SIZE) {
            let polled = Pin::new(&mut this.io).poll_read(cx, buf);
            this.expects_more = buf.remaining() == 0;
            return polled;
        }
        if this.read_ahead.is_empty() {
            let mut read = BytesMut::with_capacity(MAX_READ_AHEAD);
            let count = ready!(pin!(this.io.read_buf(&mut read)).poll(cx))?;
            this.expects_more = count == MAX_READ_AHEAD;
            this.read_ahead = read;
        }
        let count = buf.remaining().min(this.read_ahead.len());
        buf.put_slice(&this.read_ahead[..count]);
        this.read_ahead.advance(count);
        if this.read_ahead.is_empty() {
            this.read_ahead = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for TlsTransport<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match bufs {
            [buf] => Pin::new(&mut self.io).poll_write(cx, buf),
            bufs => Pin::new(&mut self.io).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::sync::Arc;

    use rustls::crypto::aws_lc_rs::default_provider;
    use rustls::pki_types::PrivateKeyDer;
    use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig};
    use tokio::io::AsyncWriteExt;

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
    fn data_is_read_ahead_only_while_more_than_a_piece_arrives() {
        let sent: Vec<u8> = (0..100_000_u32).map(|number| number as u8).collect();
        let (mut client, socket) = tokio::io::duplex(sent.len());
        let mut transport = TlsTransport::new(socket);
        let cx = &mut Context::from_waker(std::task::Waker::noop());
        let mut received = Vec::new();
        let mut largest = 0;
        for part in [&sent[..10], &sent[10..10 + TLS_READ_SIZE], &sent[10 + TLS_READ_SIZE..]] {
            assert!(matches!(pin!(client.write_all(part)).poll(cx), Poll::Ready(Ok(()))));
            let mut piece = [0; TLS_READ_SIZE];
            loop {
                let mut buffer = ReadBuf::new(&mut piece);
                if Pin::new(&mut transport).poll_read(cx, &mut buffer).map(|read| read.expect("open")).is_pending() {
                    break;
                }
                received.extend_from_slice(buffer.filled());
                largest = largest.max(transport.read_ahead.len());
            }
            assert!(transport.read_ahead.is_empty() && transport.read_ahead.capacity() == 0, "memory is kept");
        }
        assert!(received == sent);
        assert_eq!(largest, MAX_READ_AHEAD - TLS_READ_SIZE);
        drop(client);
        let mut end = [0; 1];
        let ended = Pin::new(&mut transport).poll_read(cx, &mut ReadBuf::new(&mut end));
        assert!(matches!(ended, Poll::Ready(Ok(()))), "the end is passed on");
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
