//! What a client's socket can do besides reading and writing.

use std::time::Duration;

use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use crate::downstream::corked_io::CorkedIo;

/// TLS with a client.
pub type ClientTlsStream = TlsStream<CorkedIo<TcpStream>>;

/// A client's socket, with TLS or without.
pub trait ClientSocket {
    /// The peer shall see a reset when this is dropped, not an orderly end.
    fn reset_on_drop(&self);

    /// What is written from here on may go out with what ends the connection.
    fn cork(&mut self);

    /// The socket, if bytes go into it as they are.
    fn plain_tcp(&self) -> Option<&TcpStream>;
}

impl ClientSocket for TcpStream {
    fn reset_on_drop(&self) {
        let _ = socket2::SockRef::from(self).set_linger(Some(Duration::ZERO));
    }

    fn cork(&mut self) {}

    fn plain_tcp(&self) -> Option<&TcpStream> {
        Some(self)
    }
}

impl ClientSocket for Box<ClientTlsStream> {
    fn reset_on_drop(&self) {
        self.get_ref().0.inner().reset_on_drop();
    }

    fn cork(&mut self) {
        self.get_mut().0.cork();
    }

    fn plain_tcp(&self) -> Option<&TcpStream> {
        None
    }
}
