//! Socket activation: listening sockets that the service manager opened before it started this process. It does not
//! know what is served on them. systemd passes `LISTEN_FDS` sockets from descriptor 3 on; `LISTEN_FDNAMES` names them,
//! and `LISTEN_PID` is the process that they are for.

use std::io;
use std::net::TcpListener;

use listenfd::ListenFd;
use socket2::SockRef;

/// Passed sockets with their names.
#[derive(Debug, Default)]
pub struct PassedSockets(Vec<(String, TcpListener)>);

/// A passed socket cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PassedSocketError {
    /// It is not a listening TCP socket.
    #[error("the service manager passed a socket named {name:?} that is not a listening TCP socket")]
    NotListening {
        /// The name that the service manager gave it.
        name: String,
        /// The error of the check.
        source: io::Error,
    },
    /// Its name is not one of [`SOCKET_NAMES`].
    #[error(
        "the service manager passed a socket with the unknown name {0:?}; known names are https, http and admin \
         (FileDescriptorName= of the socket unit)"
    )]
    UnknownName(String),
}

/// The names of sockets, one for each listener.
const SOCKET_NAMES: [&str; 3] = ["https", "http", "admin"];

impl PassedSockets {
    /// Takes the sockets that the environment variables announce. Call this once, before there are threads: it removes
    /// the variables, so that no child process uses the sockets.
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
                let socket = socket.expect("each index is used once");
                check_is_listening(&socket).map(|()| socket)
            });
            match taken {
                Ok(socket) => sockets.push((name, socket)),
                Err(source) => return Err(PassedSocketError::NotListening { name, source }),
            }
        }
        Ok(PassedSockets(sockets))
    }

    /// Removes and returns the sockets with this name.
    pub fn take_named(&mut self, name: &str) -> Vec<TcpListener> {
        self.0.extract_if(.., |(other, _)| other == name).map(|(_, socket)| socket).collect()
    }
}

fn check_is_listening(socket: &TcpListener) -> io::Result<()> {
    if SockRef::from(socket).is_listener()? {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not listening"))
}
