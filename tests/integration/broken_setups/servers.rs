//! The servers that the set-ups name, on free ports, which are masked in messages.

use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};

use crate::support::gateway::Gateway;
use crate::support::redis::Redis;
use crate::support::wait_until;

pub struct Servers {
    backend: Child,
    /// A Timbr backend that trusts the gateway.
    pub backend_port: u16,
    /// A TLS server, whose certificate is self-signed.
    pub tls: Gateway,
    /// A Redis that requires a password.
    pub redis: Redis,
    /// Accepts connections and never responds.
    silent: TcpListener,
    /// Bound, so that no other process gets the port, but not listening.
    closed: socket2::Socket,
}

impl Servers {
    pub fn start() -> Servers {
        let mut backend = Command::new(env!("CARGO_BIN_EXE_timbr-gateway"))
            .args(["demo", "--backend-only", "127.0.0.1:0"])
            .env_clear()
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("started");
        let mut lines = BufReader::new(backend.stdout.take().expect("piped")).lines();
        let first = lines.next().expect("a line").expect("text");
        let port = first.trim_end_matches('.').rsplit(':').next().and_then(|port| port.parse().ok());
        let backend_port = port.expect("a port");
        // It prints the requests.
        std::thread::spawn(move || lines.for_each(drop));
        let closed = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("made");
        closed.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("bound");
        let reader = ["--user", "reader", "on", ">correct", "~*", "&*", "+@read", "+@connection"];
        let redis = Redis::launch(&[&["--requirepass", "correct"][..], &reader].concat());
        wait_until("Redis listens", || TcpStream::connect(redis.address()).is_ok());
        Servers {
            backend,
            backend_port,
            tls: Gateway::start(([127, 0, 0, 1], backend_port).into(), &[]),
            redis,
            silent: TcpListener::bind("127.0.0.1:0").expect("bound"),
            closed,
        }
    }

    pub fn silent_port(&self) -> u16 {
        self.silent.local_addr().expect("an address").port()
    }

    pub fn closed_port(&self) -> u16 {
        self.closed.local_addr().expect("an address").as_socket().expect("an IP address").port()
    }

    /// Replaces what differs between runs.
    pub fn mask(&self, text: &str) -> String {
        let ports = [
            (self.backend_port, "8000"),
            (self.tls.https().port(), "8443"),
            (self.redis.port, "6379"),
            (self.silent_port(), "8001"),
            (self.closed_port(), "8002"),
        ];
        // The resolver's message depends on the machine.
        let text = text
            .replace("Name or service not known", "unknown name")
            .replace("Temporary failure in name resolution", "unknown name");
        let user = format!("give user {} access", rustix::process::geteuid().as_raw());
        let text = text.replace(&user, "give user 65532 access");
        ports.iter().fold(text, |text, (port, name)| text.replace(&format!(":{port}"), &format!(":{name}")))
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        let _ = self.backend.kill();
        let _ = self.backend.wait();
    }
}
