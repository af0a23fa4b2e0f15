//! Reads the options of the audit log.

use std::path::PathBuf;

use crate::config::choices::AuditFailure;
pub use crate::config::options::AuditOptions;
use crate::config::options::{AUDIT, OptionType, Shape};
use crate::config::reader::Reader;

/// The address of a syslog server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SyslogServer {
    /// A datagram or stream socket on this machine.
    Unix(PathBuf),
    /// TCP, with TLS if `tls` is set.
    Tcp {
        /// Host name or address; an IPv6 address has no brackets.
        host: String,
        /// Port.
        port: u16,
        /// Whether the scheme is `tls`.
        tls: bool,
    },
}

impl OptionType for SyslogServer {
    type Value = SyslogServer;
    const SHAPE: Shape = Shape::Text;

    fn parse(text: &str) -> Result<SyslogServer, String> {
        let wrong = || format!("must be unix:/path, tcp://host:port or tls://host:port, not {text:?}");
        if let Some(path) = text.strip_prefix("unix:") {
            return if path.starts_with('/') { Ok(SyslogServer::Unix(path.into())) } else { Err(wrong()) };
        }
        let (scheme, address) = text.split_once("://").ok_or_else(wrong)?;
        let tls = match scheme {
            "tcp" => false,
            "tls" => true,
            _ => return Err(wrong()),
        };
        let (host, port) = address.rsplit_once(':').ok_or_else(wrong)?;
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        match port.parse() {
            Ok(port) if port > 0 && !host.is_empty() && !host.contains(['/', '@', ' ']) => {
                Ok(SyslogServer::Tcp { host: host.to_owned(), port, tls })
            }
            _ => Err(wrong()),
        }
    }
}

impl Reader<'_> {
    pub(super) fn audit(&mut self) -> Option<AuditOptions> {
        let options = AuditOptions::read(self)?;
        if options.is_required() && options.file.is_none() && !self.is_set(&AUDIT.syslog) {
            self.problem(AUDIT.on_failure.key, "refuse requires audit.file or audit.syslog");
        }
        if !matches!(options.syslog, Some(SyslogServer::Tcp { tls: true, .. })) {
            self.reject_set(&[AUDIT.syslog_ca_file.key], "has no effect unless audit.syslog is tls://…");
        }
        Some(options)
    }
}

impl AuditOptions {
    /// Whether a login is refused when its line cannot be written.
    pub fn is_required(&self) -> bool {
        self.on_failure == AuditFailure::Refuse
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::testing::load;

    #[test]
    fn a_syslog_server_is_a_path_or_an_address() {
        let parse = |text| SyslogServer::parse(text).ok();
        assert_eq!(parse("unix:/dev/log"), Some(SyslogServer::Unix("/dev/log".into())));
        let tcp = |host: &str, port, tls| Some(SyslogServer::Tcp { host: host.into(), port, tls });
        assert_eq!(parse("tcp://siem.example:601"), tcp("siem.example", 601, false));
        assert_eq!(parse("tls://[::1]:6514"), tcp("::1", 6514, true));
        for wrong in [
            "",
            "/dev/log",
            "unix:dev/log",
            "udp://a:514",
            "tcp://a",
            "tcp://a:0",
            "tcp://:1",
            "tls://u@a:1",
            "tcp://a/b:1",
        ] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn options_without_effect_are_reported() {
        for (variables, expected) in [
            (&[("AUDIT_ON_FAILURE", "refuse")][..], "audit.on_failure: refuse requires audit.file or audit.syslog"),
            (&[("AUDIT_SYSLOG", "tcp://a:1"), ("AUDIT_SYSLOG_CA_FILE", "ca")], "audit.syslog_ca_file: has no effect"),
            (&[("AUDIT_SYSLOG", "a:1")], "audit.syslog: must be unix:/path"),
        ] {
            let error = load("", variables).expect_err(expected);
            assert!(error.contains(expected), "{expected} in {error}");
        }
        let audit = load("audit: {file: /var/log/audit.json, on_failure: refuse}", &[]).expect("valid").audit;
        assert!(audit.is_required() && audit.file.is_some());
        assert_eq!((audit.file_max_size, audit.file_keep), (100 << 20, 10));
    }
}
