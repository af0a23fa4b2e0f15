//! A new connection to the backend: name, TCP, TLS, HTTP/1.1.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, lookup_host};
use tokio_rustls::TlsConnector;

use crate::config::{UpstreamOptions, UpstreamUrl};
use crate::tls::UpstreamTls;
use crate::upstream::body::RequestBody;

/// A connection that can take a request.
pub struct Connection {
    pub sender: http1::SendRequest<RequestBody>,
    pub socket: SharedSocket,
    /// TLS sends records of its own, so unread bytes say nothing there.
    pub encrypted: bool,
}

/// Opens connections to one origin.
pub struct Connector {
    url: UpstreamUrl,
    tls: Option<(TlsConnector, UpstreamTls)>,
}

impl Connector {
    pub fn new(options: &UpstreamOptions, tls: Option<UpstreamTls>) -> Connector {
        let tls = tls.map(|tls| (TlsConnector::from(tls.config.clone()), tls));
        Connector { url: options.url.clone(), tls }
    }

    /// Connects; the caller bounds the time. Must run on a `LocalSet`.
    pub async fn connect(&self) -> io::Result<Connection> {
        let socket = SharedSocket::new(self.dial().await?);
        match &self.tls {
            None => serve(TokioIo::new(socket.clone()), socket, false).await,
            Some((connector, tls)) => {
                let stream = connector.connect(tls.server_name.clone(), socket.clone()).await?;
                serve(TokioIo::new(stream), socket, true).await
            }
        }
    }

    /// Tries the addresses of the name in turn.
    async fn dial(&self) -> io::Result<TcpStream> {
        let mut last = None;
        for address in lookup_host((self.url.host.as_str(), self.url.port)).await? {
            match TcpStream::connect(address).await {
                Ok(stream) => return tune(stream),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the name has no address")))
    }
}

/// No Nagle; keep-alive probes, so that neither a firewall forgets a query that runs for minutes nor we wait for a
/// host that is gone.
fn tune(stream: TcpStream) -> io::Result<TcpStream> {
    stream.set_nodelay(true)?;
    let probes = TcpKeepalive::new()
        .with_time(Duration::from_secs(30))
        .with_interval(Duration::from_secs(10))
        .with_retries(3);
    SockRef::from(&stream).set_tcp_keepalive(&probes)?;
    Ok(stream)
}

async fn serve<I>(io: I, socket: SharedSocket, encrypted: bool) -> io::Result<Connection>
where
    I: hyper::rt::Read + hyper::rt::Write + Unpin + 'static,
{
    let (sender, connection) = http1::Builder::new().handshake(io).await.map_err(io::Error::other)?;
    // Ends by itself: when the sender is dropped and the last answer was read, or with the socket. Errors reach the
    // request they concern.
    tokio::task::spawn_local(connection);
    Ok(Connection { sender, socket, encrypted })
}

/// A socket that the HTTP connection reads and writes, and that the pool can look at.
#[derive(Clone)]
pub struct SharedSocket(Rc<RefCell<TcpStream>>);

impl SharedSocket {
    fn new(stream: TcpStream) -> SharedSocket {
        SharedSocket(Rc::new(RefCell::new(stream)))
    }

    /// Asks the kernel whether the peer has closed or, if it must be silent, has spoken. The runtime learns of it
    /// only when it next polls for events, which may be after a request was written into the closed connection.
    pub fn is_quiet(&self, bytes_may_wait: bool) -> bool {
        let mut byte = [std::mem::MaybeUninit::uninit()];
        match SockRef::from(&*self.0.borrow()).peek(&mut byte) {
            Ok(0) => false,
            Ok(_) => bytes_may_wait,
            Err(error) => error.kind() == io::ErrorKind::WouldBlock,
        }
    }
}

impl AsyncRead for SharedSocket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.borrow_mut()).poll_read(cx, buf)
    }
}

impl AsyncWrite for SharedSocket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.0.borrow_mut()).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.0.borrow_mut()).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.borrow_mut()).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.borrow_mut()).poll_shutdown(cx)
    }
}
