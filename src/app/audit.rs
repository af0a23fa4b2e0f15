//! The outputs of the audit log.

use std::io::{self, Write};

use crate::app::StartError;
use crate::app::components::{host_name, unwritable};
use crate::config::Problem;
use crate::config::audit::{AuditOptions, SyslogServer};
use crate::config::options::AUDIT;
use crate::observability::log::{AuditGuard, RotatingFile, start_audit};
use crate::outbound::syslog::SyslogWriter;
use crate::tls::{self, OutboundTls, TlsError};

/// Opens the outputs. They are closed when the guard is dropped.
pub fn start(options: &AuditOptions) -> Result<AuditGuard, StartError> {
    let mut outputs: Vec<Box<dyn Write + Send>> = Vec::new();
    if let Some(path) = &options.file {
        let file = RotatingFile::open(path, options.file_max_size, options.file_keep, options.is_required());
        let problem = |error| unwritable(AUDIT.file.key, path, error);
        outputs.push(Box::new(file.map_err(|error| StartError::Files(vec![problem(error)]))?));
    }
    if let Some(server) = &options.syslog {
        let tls = syslog_tls(options).map_err(|error| StartError::Files(vec![error.into()]))?;
        outputs.push(Box::new(SyslogWriter::new(server.clone(), tls, host_name().as_deref())));
    }
    start_audit(outputs, options.is_required()).map_err(StartError::Threads)
}

/// Checks the files that [`start`] reads, without opening an output.
pub(super) fn check(options: &AuditOptions) -> Option<Problem> {
    syslog_tls(options).err().map(Problem::from)
}

/// Connects to the syslog server without sending a line; `None` if there is none.
pub fn check_syslog(options: &AuditOptions) -> Option<io::Result<()>> {
    let server = options.syslog.clone()?;
    let writer = syslog_tls(options).map(|tls| SyslogWriter::new(server, tls, None)).map_err(io::Error::other);
    Some(writer.and_then(|writer| writer.check()))
}

fn syslog_tls(options: &AuditOptions) -> Result<Option<OutboundTls>, TlsError> {
    match &options.syslog {
        Some(SyslogServer::Tcp { host, tls: true, .. }) => {
            tls::client_tls(host, options.syslog_ca_file.as_deref(), AUDIT.syslog_ca_file.key).map(Some)
        }
        _ => Ok(None),
    }
}
