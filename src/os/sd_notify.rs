//! Notifications to the service manager that started the gateway: ready, reloading, stopping, watchdog. It knows
//! nothing about what is ready. The protocol is systemd's `sd_notify`, which podman, s6 and other supervisors also
//! support.
//!
//! Each notification is a datagram, sent without blocking: an unresponsive manager delays nothing. The environment
//! variables `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID` configure it.

use std::ffi::OsString;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use tracing::{debug, warn};

/// The connection to the service manager; without a manager every notification does nothing.
#[derive(Clone, Debug, Default)]
pub struct ServiceManager {
    address: Option<SocketAddr>,
    watchdog_interval: Option<Duration>,
}

impl ServiceManager {
    /// The manager that the environment variables name, if any.
    pub fn from_env() -> ServiceManager {
        ServiceManager::from_variables(|name| std::env::var_os(name), std::process::id())
    }

    fn from_variables(variable: impl Fn(&str) -> Option<OsString>, process: u32) -> ServiceManager {
        let address = variable("NOTIFY_SOCKET").filter(|name| !name.is_empty());
        let address = address.and_then(|name| match parse_address(&name) {
            Ok(address) => Some(address),
            Err(error) => {
                warn!(%error, "NOTIFY_SOCKET is not a valid socket address; the service manager is not notified");
                None
            }
        });
        let number = |name: &str| variable(name)?.to_str()?.parse::<u64>().ok();
        // Without `WATCHDOG_PID`, the watchdog applies to every process that inherits the variables.
        let is_ours = variable("WATCHDOG_PID").is_none() || number("WATCHDOG_PID") == Some(process.into());
        let watchdog = number("WATCHDOG_USEC").filter(|micros| is_ours && *micros > 0);
        ServiceManager { address, watchdog_interval: watchdog.map(Duration::from_micros) }
    }

    /// A manager at this address; `watchdog` is the interval in which it expects notifications.
    pub fn new(address: SocketAddr, watchdog_interval: Option<Duration>) -> ServiceManager {
        ServiceManager { address: Some(address), watchdog_interval }
    }

    /// The interval in which the manager expects [`ServiceManager::notify_watchdog`]; `None` without a watchdog.
    pub fn watchdog_interval(&self) -> Option<Duration> {
        self.watchdog_interval.filter(|_| self.address.is_some())
    }

    /// The start or a reload is complete. `status` is shown to operators.
    pub fn notify_ready(&self, status: &str) {
        self.notify(&format!("READY=1\nSTATUS={}\n", single_line(status)));
    }

    /// A reload begins; [`ServiceManager::notify_ready`] completes it.
    pub fn notify_reloading(&self) {
        let now = clock_gettime(ClockId::Monotonic);
        let micros = i128::from(now.tv_sec) * 1_000_000 + i128::from(now.tv_nsec) / 1000;
        self.notify(&format!("RELOADING=1\nMONOTONIC_USEC={micros}\nSTATUS=reloading the configuration\n"));
    }

    /// The shutdown begins. `status` is shown to operators.
    pub fn notify_stopping(&self, status: &str) {
        self.notify(&format!("STOPPING=1\nSTATUS={}\n", single_line(status)));
    }

    /// All workers are alive.
    pub fn notify_watchdog(&self) {
        self.notify("WATCHDOG=1\n");
    }

    fn notify(&self, message: &str) {
        let Some(address) = &self.address else { return };
        if let Err(error) = send(address, message.as_bytes()) {
            debug!(%error, "cannot notify the service manager");
        }
    }
}

/// A name that starts with `@` is in the abstract namespace; any other name is a path.
fn parse_address(name: &OsString) -> io::Result<SocketAddr> {
    match name.as_bytes() {
        [b'@', rest @ ..] => SocketAddr::from_abstract_name(rest),
        _ => SocketAddr::from_pathname(name),
    }
}

fn send(address: &SocketAddr, message: &[u8]) -> io::Result<()> {
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.connect_addr(address)?;
    socket.send(message).map(drop)
}

/// The status must be one line.
fn single_line(status: &str) -> String {
    status.replace(['\n', '\r'], " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(name: &str, socket: &UnixDatagram, notify: impl Fn(&ServiceManager)) -> String {
        let manager = ServiceManager::from_variables(|variable| (variable == "NOTIFY_SOCKET").then(|| name.into()), 1);
        notify(&manager);
        let mut buffer = [0; 1024];
        let length = socket.recv(&mut buffer).expect("notified");
        String::from_utf8(buffer[..length].to_vec()).expect("text")
    }

    #[test]
    fn path_and_abstract_addresses_are_notified() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("notify");
        let by_path = UnixDatagram::bind(&path).expect("bound");
        assert_eq!(
            received(path.to_str().expect("text"), &by_path, |manager| manager.notify_ready("two\nlines")),
            "READY=1\nSTATUS=two lines\n"
        );
        let name = format!("timbr-gateway-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).expect("a name");
        let by_name = UnixDatagram::bind_addr(&address).expect("bound");
        assert_eq!(received(&format!("@{name}"), &by_name, ServiceManager::notify_watchdog), "WATCHDOG=1\n");
        let words = received(&format!("@{name}"), &by_name, ServiceManager::notify_reloading);
        let micros = words.lines().find_map(|line| line.strip_prefix("MONOTONIC_USEC="));
        assert!(words.starts_with("RELOADING=1\n") && micros.is_some_and(|text| text.parse::<u64>().is_ok()));
    }

    #[test]
    fn an_unresponsive_manager_does_not_block() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("notify");
        let variable = |name: &str| (name == "NOTIFY_SOCKET").then(|| path.clone().into_os_string());
        let manager = ServiceManager::from_variables(variable, 1);
        manager.notify_watchdog();
        let _unread = UnixDatagram::bind(&path).expect("bound");
        for _ in 0..10_000 {
            manager.notify_watchdog();
        }
    }

    #[test]
    fn a_watchdog_is_ours_if_it_names_this_process_or_none() {
        let of = |all: &[(&str, &str)]| {
            let find = |name: &str| all.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).into());
            ServiceManager::from_variables(find, 7).watchdog_interval()
        };
        let (socket, interval) = (("NOTIFY_SOCKET", "/run/x"), ("WATCHDOG_USEC", "2000000"));
        assert_eq!(of(&[socket, interval]), Some(Duration::from_secs(2)));
        assert_eq!(of(&[socket, interval, ("WATCHDOG_PID", "7")]), Some(Duration::from_secs(2)));
        assert_eq!(of(&[socket, interval, ("WATCHDOG_PID", "8")]), None);
        assert_eq!(of(&[interval]), None, "no watchdog without a socket");
        assert_eq!(of(&[socket, ("WATCHDOG_USEC", "0")]), None);
    }
}
