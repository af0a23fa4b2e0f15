//! Where the gateway listens: on sockets that it opens, or on those that the service manager has passed.

use std::net::{SocketAddr, TcpListener};

use crate::app::StartError;
use crate::config::ListenOptions;
use crate::config::options::LISTEN;
use crate::downstream::listener;
use crate::os::socket_activation::PassedSockets;

/// Where the gateway listens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    /// HTTPS.
    pub https: Option<SocketAddr>,
    /// Plain HTTP.
    pub http: Option<SocketAddr>,
    /// Health endpoints.
    pub admin: Option<SocketAddr>,
}

/// Open sockets, shared out among the workers.
pub(super) struct Sockets {
    pub addresses: Addresses,
    /// Of each worker, and whether they speak TLS.
    pub per_worker: Vec<Vec<(TcpListener, bool)>>,
    pub admin: Vec<TcpListener>,
}

impl Sockets {
    pub fn open(
        listen: &ListenOptions,
        mut passed: PassedSockets,
        workers: usize,
    ) -> Result<Sockets, StartError> {
        let mut open = |key: &'static str, address, count| {
            let name = key.strip_prefix("listen.").expect("all are options of this group");
            open_or_inherit(key, address, &passed.take_named(name), count)
        };
        let https = open(LISTEN.https.key, listen.https, workers)?;
        let http = open(LISTEN.http.key, listen.http, workers)?;
        let admin = open(LISTEN.admin.key, listen.admin, 1)?.pop().unwrap_or_default();
        let address = |all: Option<&Vec<TcpListener>>| all?.first()?.local_addr().ok();
        let addresses = Addresses {
            https: address(https.first()),
            http: address(http.first()),
            admin: address(Some(&admin)),
        };
        let mut of_workers: Vec<_> = (0..workers).map(|_| Vec::with_capacity(2)).collect();
        for (all, is_tls) in [(http, false), (https, true)] {
            for (worker, sockets) in of_workers.iter_mut().zip(all) {
                worker.extend(sockets.into_iter().map(|socket| (socket, is_tls)));
            }
        }
        Ok(Sockets { addresses, per_worker: of_workers, admin })
    }
}

/// The sockets of each of `count`: all that were passed, or one of its own at the address.
fn open_or_inherit(
    key: &'static str,
    address: Option<SocketAddr>,
    passed: &[TcpListener],
    count: usize,
) -> Result<Vec<Vec<TcpListener>>, StartError> {
    let Some(address) = address else {
        // SECURITY: who switched a listener off does not get it by a socket unit that is left over.
        return if passed.is_empty() {
            Ok(Vec::new())
        } else {
            Err(StartError::SocketForDisabledListener(key))
        };
    };
    let failed = |source| StartError::Bind { key, address, source };
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
