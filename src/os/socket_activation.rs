//! Listening sockets that the service manager opened before it started this process, as systemd's socket activation has
//! it: `LISTEN_FDS` of them, from descriptor 3 on, `LISTEN_FDNAMES` says what each is for, `LISTEN_PID` whom they are for.

use std::io;
use std::net::TcpListener;

use listenfd::ListenFd;
use socket2::SockRef;

/// Sockets with their names.
#[derive(Debug, Default)]
pub struct PassedSockets(Vec<(String, TcpListener)>);

/// Why passed sockets cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PassedSocketError {
    /// One of another kind.
    #[error("the service manager passes a socket named {name:?} that is no TCP socket that listens")]
    NotListening {
        /// Its name.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// One that nobody asked for.
    #[error(
        "the service manager passes a socket named {0:?}; the names are https, http and admin \
         (FileDescriptorName= of the socket unit)"
    )]
    UnknownName(String),
}

/// What a socket can be for.
const SOCKET_NAMES: [&str; 3] = ["https", "http", "admin"];

impl PassedSockets {
    /// Those that the environment tells of. To be called before there are threads, and once: the environment tells of
    /// them no more afterwards, so that no child takes them for its own.
    pub fn from_env() -> Result<PassedSockets, PassedSocketError> {
        let variable = |name: &str| std::env::var(name).ok();
        let is_ours = variable("LISTEN_PID").is_some_and(|text| text.parse() == Ok(std::process::id()));
        if !is_ours {
            return Ok(PassedSockets::default());
        }
        let names = variable("LISTEN_FDNAMES").unwrap_or_default();
        let mut passed = ListenFd::from_env();
        let mut sockets = Vec::with_capacity(passed.len());
        for index in 0..passed.len() {
            let name = names.split(':').nth(index).unwrap_or_default().to_owned();
            if !SOCKET_NAMES.contains(&name.as_str()) {
                return Err(PassedSocketError::UnknownName(name));
            }
            let taken = passed.take_tcp_listener(index).and_then(|socket| {
                let socket = socket.expect("each is taken once");
                check_is_listening(&socket).map(|()| socket)
            });
            match taken {
                Ok(socket) => sockets.push((name, socket)),
                Err(source) => return Err(PassedSocketError::NotListening { name, source }),
            }
        }
        Ok(PassedSockets(sockets))
    }

    /// Those with this name, each once.
    pub fn take_named(&mut self, name: &str) -> Vec<TcpListener> {
        self.0.extract_if(.., |(other, _)| other == name).map(|(_, socket)| socket).collect()
    }
}

fn check_is_listening(socket: &TcpListener) -> io::Result<()> {
    if SockRef::from(socket).is_listener()? {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::InvalidInput, "it does not listen"))
}
