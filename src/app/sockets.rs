//! The listening sockets: opened by the gateway, or passed by the service manager (socket activation).

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use crate::app::StartError;
use crate::base::remedy::with_remedy;
use crate::config::options::LISTEN;
use crate::config::{AdminOptions, ListenOptions};
use crate::downstream::listener::{self, BoundListener};
use crate::os::socket_activation::PassedSockets;
use crate::os::unix_socket::SocketFile;

/// The bound addresses; `None` for a disabled listener.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    /// `listen.https`.
    pub https: Option<SocketAddr>,
    /// `listen.http`.
    pub http: Option<SocketAddr>,
    /// `listen.admin`.
    pub admin: Option<SocketAddr>,
}

/// Open sockets, assigned to the workers.
pub(super) struct Sockets {
    pub addresses: Addresses,
    /// The sockets of each worker, with a flag for those that use TLS.
    pub per_worker: Vec<Vec<(BoundListener, bool)>>,
    pub admin: Vec<TcpListener>,
    /// `listen.admin_socket`
    pub admin_socket: Option<UnixListener>,
    /// The files of Unix sockets.
    pub files: Vec<SocketFile>,
}

impl Sockets {
    pub fn open(
        listen: &ListenOptions,
        admin_options: &AdminOptions,
        mut passed: PassedSockets,
        workers: usize,
    ) -> Result<Sockets, StartError> {
        let mut open = |key: &'static str, address, count| {
            let name = key.strip_prefix("listen.").expect("all keys belong to the group `listen`");
            open_or_inherit(key, address, &passed.take_named(name), count)
        };
        let https = open(LISTEN.https.key, listen.https, workers)?;
        let http = open(LISTEN.http.key, listen.http, workers)?;
        let admin = open(LISTEN.admin.key, listen.admin, 1)?.pop().unwrap_or_default();
        let first_address = |all: Option<&Vec<TcpListener>>| all?.first()?.local_addr().ok();
        let addresses = Addresses {
            https: first_address(https.first()),
            http: first_address(http.first()),
            admin: first_address(Some(&admin)),
        };
        let mut of_workers: Vec<_> = (0..workers).map(|_| Vec::with_capacity(2)).collect();
        for (all, is_tls) in [(http, false), (https, true)] {
            for (worker, sockets) in of_workers.iter_mut().zip(all) {
                worker.extend(sockets.into_iter().map(|socket| (BoundListener::Tcp(socket), is_tls)));
            }
        }
        let (admin_file, admin_socket) = bind_socket(LISTEN.admin_socket.key, admin_options.socket.as_ref())?.unzip();
        let (http_file, http_socket) = bind_socket(LISTEN.http_socket.key, listen.http_socket.as_ref())?.unzip();
        if let Some(socket) = http_socket {
            for worker in &mut of_workers {
                let copy = socket.try_clone().map_err(StartError::Threads)?;
                worker.push((BoundListener::Unix(copy), false));
            }
        }
        let files = admin_file.into_iter().chain(http_file).collect();
        Ok(Sockets { addresses, per_worker: of_workers, admin, admin_socket, files })
    }
}

/// Binds a Unix socket with its file mode.
fn bind_socket(
    key: &'static str,
    socket: Option<&(PathBuf, u32)>,
) -> Result<Option<(SocketFile, UnixListener)>, StartError> {
    let bind = |(path, mode): &(PathBuf, u32)| {
        let failed = |error| StartError::Bind { key, address: path.display().to_string(), source: with_remedy(error) };
        SocketFile::bind(path, *mode).map_err(failed)
    };
    socket.map(bind).transpose()
}

/// The sockets of each of `count` workers: copies of all passed sockets, or one new socket bound to the address.
fn open_or_inherit(
    key: &'static str,
    address: Option<SocketAddr>,
    passed: &[TcpListener],
    count: usize,
) -> Result<Vec<Vec<TcpListener>>, StartError> {
    let Some(address) = address else {
        // SECURITY: a leftover socket unit must not enable a listener that the operator has disabled.
        return if passed.is_empty() { Ok(Vec::new()) } else { Err(StartError::SocketForDisabledListener(key)) };
    };
    let failed = |error| bind_error(key, address, error);
    if passed.is_empty() {
        let opened = listener::bind(address, count).map_err(failed)?;
        return Ok(opened.into_iter().map(|socket| vec![socket]).collect());
    }
    for socket in passed {
        listener::adopt(socket).map_err(failed)?;
    }
    let copies = || passed.iter().map(TcpListener::try_clone).collect();
    (0..count).map(|_| copies()).collect::<Result<_, _>>().map_err(failed)
}

fn bind_error(key: &'static str, address: SocketAddr, error: io::Error) -> StartError {
    let (kind, port) = (error.kind(), address.port());
    let source = match kind {
        io::ErrorKind::PermissionDenied if port < 1024 => io::Error::new(
            kind,
            "ports below 1024 need the capability CAP_NET_BIND_SERVICE; grant it (AmbientCapabilities= in the systemd \
             unit, or the securityContext of the container) or use a higher port",
        ),
        // The remedy is about files. A security module of the kernel refuses other ports.
        io::ErrorKind::PermissionDenied => error,
        io::ErrorKind::AddrInUse => {
            let command = format!("ss -ltnp 'sport = :{port}'");
            let remedy = format!("stop it, or set {key} to a different address");
            io::Error::new(kind, format!("Address already in use; `{command}` shows the process: {remedy}"))
        }
        _ => with_remedy(error),
    };
    StartError::Bind { key, address: address.to_string(), source }
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;

    #[test]
    fn the_remedy_belongs_to_a_port() {
        let text = |port: u16, errno: Errno| {
            format!("{:#}", anyhow::Error::from(bind_error("listen.http", ([127, 0, 0, 1], port).into(), errno.into())))
        };
        assert!(text(80, Errno::ACCESS).contains("CAP_NET_BIND_SERVICE"));
        for errno in [Errno::ACCESS, Errno::PERM] {
            let text = text(8080, errno);
            assert!(text.contains("listen.http") && text.ends_with(')') && !text.contains("folder"), "{text}");
        }
        assert!(text(8080, Errno::ADDRNOTAVAIL).contains("`ip address`"));
        assert!(text(8080, Errno::AFNOSUPPORT).contains("use an IPv4 address"));
    }
}
