//! The gateway under a service manager: notifications and socket activation.

use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::TIMEOUT;
use crate::support::client::Client;
use crate::support::program::Program;
use crate::support::upstream::Upstream;

/// The receiving side of `NOTIFY_SOCKET`.
struct Manager {
    socket: UnixDatagram,
    folder: tempfile::TempDir,
}

impl Manager {
    fn new() -> Manager {
        let folder = tempfile::tempdir().expect("a folder");
        let socket = UnixDatagram::bind(folder.path().join("notify")).expect("bound");
        socket.set_read_timeout(Some(TIMEOUT)).expect("set");
        Manager { socket, folder }
    }

    /// The shell command that starts the program with this manager, and more variables.
    fn shell(&self, more: &str) -> String {
        format!("export NOTIFY_SOCKET={}/notify {more}; exec \"$0\" serve", self.folder.path().display())
    }

    fn heard(&self) -> String {
        let mut buffer = [0; 4096];
        let length = self.socket.recv(&mut buffer).expect("a message in time");
        String::from_utf8(buffer[..length].to_vec()).expect("text")
    }

    /// The next message that is not a watchdog message.
    fn news(&self) -> String {
        loop {
            let heard = self.heard();
            if heard != "WATCHDOG=1\n" {
                return heard;
            }
        }
    }
}

#[test]
fn the_service_manager_is_notified_of_start_reload_watchdog_and_stop() {
    const LIMIT: Duration = Duration::from_millis(400);
    const MESSAGES: u32 = 12;
    let (manager, upstream) = (Manager::new(), Upstream::start());
    let shell = manager.shell(&format!("WATCHDOG_USEC={}", LIMIT.as_micros()));
    let begun = Instant::now();
    let mut program = Program::start_as(upstream.address(), &[("WORKERS", "2")], &shell);
    let ready = manager.news();
    assert!(ready.starts_with("READY=1\nSTATUS=serving: https 127.0.0.1:"), "{ready}");
    for _ in 0..MESSAGES {
        assert_eq!(manager.heard(), "WATCHDOG=1\n");
    }
    // Four in the manager's interval. The first one is sent with READY, and several may wait here in a busy test: therefore
    // the least time is counted from the start of the program, which takes a fraction of it.
    assert!(begun.elapsed() >= LIMIT / 4 * (MESSAGES - 1), "{:?}", begun.elapsed());
    program.signal("HUP");
    let reloading = manager.news();
    assert!(reloading.starts_with("RELOADING=1\nMONOTONIC_USEC="), "{reloading}");
    assert!(manager.news().starts_with("READY=1\nSTATUS=serving: "));
    program.begin_shutdown();
    assert!(manager.news().starts_with("STOPPING=1\n"));
    assert!(program.wait().success());
}

#[test]
fn passed_sockets_are_served() {
    let upstream = Upstream::start();
    let socket = || TcpListener::bind("127.0.0.1:0").expect("bound");
    let (http, admin) = (socket(), socket());
    let addresses = [&http, &admin].map(|socket| socket.local_addr().expect("an address"));
    let names = "export LISTEN_PID=$$ LISTEN_FDS=2 LISTEN_FDNAMES=http:admin";
    // A client that connects before the gateway starts is served afterwards.
    let mut early = Client::connect(addresses[0]);
    let given = [http, admin].map(|socket| Stdio::from(OwnedFd::from(socket)));
    let program = Program::start_with(
        upstream.address(),
        &[("WORKERS", "2"), ("LISTEN_ADMIN", "127.0.0.1:1")],
        &format!("{names}; exec \"$0\" serve 3<&0 4<&1 </dev/null >/dev/null"),
        given,
    );
    assert_eq!((program.http, program.admin), (addresses[0], Some(addresses[1])));
    let token = program.token();
    let headers = [("Content-Type", "application/json"), ("x-api-key", token.as_str())];
    assert_eq!(early.send("GET /timbr/api/x", &headers, b"").status, 200);
    for _ in 0..20 {
        assert_eq!(Client::connect(addresses[0]).send("GET /timbr/api/x", &headers, b"").status, 200);
    }
    assert_eq!(Client::connect(addresses[1]).send("GET /readyz", &[], b"").status, 200);
}

#[test]
fn an_unexpected_passed_socket_is_an_error() {
    let told = |names: &str, options: &[(&str, &str)]| {
        let socket = TcpListener::bind("127.0.0.1:0").expect("bound");
        let shell =
            format!("export LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES={names}; exec \"$0\" serve 3<&0 </dev/null");
        let output = Command::new("/bin/sh")
            .args(["-c", &shell, env!("CARGO_BIN_EXE_timbr-gateway")])
            .env_clear()
            .env("API_AUTH_SALT", crate::support::bearer::SALT)
            .env("TIMBR_GATEWAY_UPSTREAM_URL", "http://127.0.0.1:1")
            .envs(options.iter().copied())
            .stdin(Stdio::from(OwnedFd::from(socket)))
            .output()
            .expect("it runs");
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stderr).expect("text")
    };
    let error = told("timbr-gateway.socket", &[]);
    assert!(error.contains("\"timbr-gateway.socket\"; known names are https, http and admin"), "{error}");
    let error = told("http", &[]);
    assert!(error.contains("passes a socket for listen.http, which is disabled"), "{error}");
}
