//! Sends log lines to a syslog server in the format of RFC 5424: in datagrams or, over streams, with octet counting (RFC
//! 6587, and RFC 5425 over TLS).
//!
//! No crate is used: those with TLS bring a configuration of their own instead of the gateway's, and without it they
//! would replace only the line that formats the header.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rustix::io::Errno;
use rustls::{ClientConnection, StreamOwned};
use tracing::{info, warn};

use crate::config::audit::SyslogServer;
use crate::tls::OutboundTls;

/// Facility authpriv (10), severity notice (5).
const PRIORITY: u8 = 10 * 8 + 5;

/// Pause between two attempts to send a line.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Limit for connecting and for each write.
const IO_TIMEOUT: Duration = Duration::from_secs(5);

/// An output for JSON log lines. While the server is unreachable, it blocks and retries, so that the caller's buffer
/// keeps the lines.
pub struct SyslogWriter {
    server: SyslogServer,
    tls: Option<OutboundTls>,
    /// The fields of the header after the timestamp.
    source: String,
    connection: Option<Connection>,
}

enum Connection {
    Datagram(UnixDatagram),
    Stream(UnixStream),
    Tcp(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl SyslogWriter {
    /// Connects when the first line is written. `tls` is set if the server's scheme is `tls`.
    pub fn new(server: SyslogServer, tls: Option<OutboundTls>, host_name: Option<&str>) -> SyslogWriter {
        let is_valid = |name: &&str| name.len() <= 255 && name.bytes().all(|byte| byte.is_ascii_graphic());
        let host_name = host_name.filter(is_valid).unwrap_or("-");
        let source = format!("{host_name} timbr-gateway {} audit -", std::process::id());
        // SECURITY: the protocol name of HTTP must not be offered to a different kind of server.
        let tls = tls.map(|OutboundTls { config, server_name }| {
            let mut config = Arc::unwrap_or_clone(config);
            config.alpn_protocols.clear();
            OutboundTls { config: Arc::new(config), server_name }
        });
        SyslogWriter { server, tls, source, connection: None }
    }

    /// Connects and closes the connection; sends no line.
    pub fn check(&self) -> io::Result<()> {
        match self.connect()? {
            Connection::Tls(mut stream) => {
                let StreamOwned { conn, sock } = &mut *stream;
                while conn.is_handshaking() {
                    conn.complete_io(sock)?;
                }
                Ok(())
            }
            Connection::Datagram(_) | Connection::Stream(_) | Connection::Tcp(_) => Ok(()),
        }
    }

    fn message(&self, line: &str) -> String {
        // `{"timestamp":"2026-01-02T03:04:05.678901Z",…`: RFC 5424 uses the same format.
        let timestamp = line.split('"').nth(3).unwrap_or("-");
        format!("<{PRIORITY}>1 {timestamp} {} {line}", self.source)
    }

    fn send(&mut self, message: &str) -> io::Result<()> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.connect()?,
        };
        connection.send(message)?;
        self.connection = Some(connection);
        Ok(())
    }

    fn connect(&self) -> io::Result<Connection> {
        match &self.server {
            SyslogServer::Unix(path) => {
                let socket = UnixDatagram::unbound()?;
                socket.set_write_timeout(Some(IO_TIMEOUT))?;
                match socket.connect(path) {
                    Err(error) if Errno::from_io_error(&error) == Some(Errno::PROTOTYPE) => {
                        let stream = UnixStream::connect(path)?;
                        stream.set_write_timeout(Some(IO_TIMEOUT))?;
                        Ok(Connection::Stream(stream))
                    }
                    connected => connected.map(|()| Connection::Datagram(socket)),
                }
            }
            SyslogServer::Tcp { host, port, .. } => {
                let stream = connect_tcp(host, *port)?;
                let Some(OutboundTls { config, server_name }) = &self.tls else { return Ok(Connection::Tcp(stream)) };
                let client =
                    ClientConnection::new(Arc::clone(config), server_name.clone()).map_err(io::Error::other)?;
                Ok(Connection::Tls(Box::new(StreamOwned::new(client, stream))))
            }
        }
    }
}

fn connect_tcp(host: &str, port: u16) -> io::Result<TcpStream> {
    let mut failure = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in (host, port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, IO_TIMEOUT) {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(IO_TIMEOUT))?;
                stream.set_write_timeout(Some(IO_TIMEOUT))?;
                return Ok(stream);
            }
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

impl Connection {
    fn send(&mut self, message: &str) -> io::Result<()> {
        if self.is_closed()? {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        let framed = || format!("{} {message}", message.len());
        match self {
            Connection::Datagram(socket) => socket.send(message.as_bytes()).map(drop),
            Connection::Stream(stream) => stream.write_all(framed().as_bytes()),
            Connection::Tcp(stream) => stream.write_all(framed().as_bytes()),
            Connection::Tls(stream) => stream.write_all(framed().as_bytes()).and_then(|()| stream.flush()),
        }
    }

    /// Whether the server has closed the connection. A line that is written after that would be lost without an error.
    fn is_closed(&mut self) -> io::Result<bool> {
        let (mut socket, tls) = match self {
            Connection::Tcp(stream) => (stream.try_clone()?, None),
            Connection::Tls(stream) => (stream.sock.try_clone()?, Some(&mut stream.conn)),
            Connection::Datagram(_) | Connection::Stream(_) => return Ok(false),
        };
        // The handshake has not begun: it waits for the first line.
        if tls.as_ref().is_some_and(|tls| tls.is_handshaking()) {
            return Ok(false);
        }
        socket.set_nonblocking(true)?;
        let read = match tls {
            None => socket.read(&mut [0; 256]),
            // TLS 1.3 sends session tickets after the handshake.
            Some(tls) => tls.read_tls(&mut socket).and_then(|count| {
                let state = tls.process_new_packets().map_err(io::Error::other)?;
                Ok(if state.peer_has_closed() { 0 } else { count })
            }),
        };
        socket.set_nonblocking(false)?;
        match read {
            Ok(count) => Ok(count == 0),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error),
        }
    }
}

impl Write for SyslogWriter {
    /// Sends the first of the lines.
    fn write(&mut self, lines: &[u8]) -> io::Result<usize> {
        let length = memchr::memchr(b'\n', lines).unwrap_or(lines.len());
        let message = self.message(&String::from_utf8_lossy(&lines[..length]));
        let mut failures = 0u32;
        loop {
            match self.send(&message) {
                Ok(()) => break,
                Err(error) if Errno::from_io_error(&error) == Some(Errno::MSGSIZE) => {
                    warn!("a line of the audit log is too long for the syslog server and is lost");
                    break;
                }
                Err(error) => {
                    failures += 1;
                    // The first error may be a connection that has ended meanwhile.
                    if failures == 2 {
                        warn!(%error, "the syslog server of audit.syslog is unreachable; retrying");
                    }
                    if failures > 1 {
                        thread::sleep(RETRY_INTERVAL);
                    }
                }
            }
        }
        if failures > 1 {
            info!("the syslog server of audit.syslog is reachable again");
        }
        Ok((length + 1).min(lines.len()))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    const LINE: &str = r#"{"timestamp":"2026-01-02T03:04:05.678901Z","level":"INFO","target":"audit","user":"é"}"#;

    fn writer(server: SyslogServer) -> SyslogWriter {
        SyslogWriter::new(server, None, Some("gateway-1"))
    }

    fn expected() -> String {
        let pid = std::process::id();
        format!("<85>1 2026-01-02T03:04:05.678901Z gateway-1 timbr-gateway {pid} audit - {LINE}")
    }

    #[test]
    fn a_datagram_is_a_message() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("log");
        let server = UnixDatagram::bind(&path).expect("bound");
        writer(SyslogServer::Unix(path)).write_all(format!("{LINE}\n{LINE}\n").as_bytes()).expect("sent");
        let mut buffer = [0; 1024];
        for _ in 0..2 {
            let length = server.recv(&mut buffer).expect("received");
            assert_eq!(std::str::from_utf8(&buffer[..length]), Ok(expected().as_str()));
        }
    }

    #[test]
    fn messages_on_a_stream_have_their_length_and_survive_a_closed_connection() {
        let server = TcpListener::bind("127.0.0.1:0").expect("bound");
        let port = server.local_addr().expect("an address").port();
        let mut writer = writer(SyslogServer::Tcp { host: "127.0.0.1".into(), port, tls: false });
        let framed = format!("{} {}", expected().len(), expected());
        for _ in 0..3 {
            writer.write_all(format!("{LINE}\n").as_bytes()).expect("sent");
            let (mut connection, _) = server.accept().expect("a new connection, as the last one was closed");
            let mut received = vec![0; framed.len()];
            connection.read_exact(&mut received).expect("received");
            assert_eq!(String::from_utf8(received).as_deref(), Ok(framed.as_str()));
        }
    }

    #[test]
    fn an_unusable_host_name_is_omitted() {
        let writer = SyslogWriter::new(SyslogServer::Unix("/dev/log".into()), None, Some("a b"));
        assert!(writer.message(LINE).contains("Z - timbr-gateway "), "{}", writer.message(LINE));
    }
}
