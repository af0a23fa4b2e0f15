//! Classifies errors of the PROXY protocol and of the TLS handshake for the metrics and the log. It knows nothing about
//! connections.

use std::io;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustls::{AlertDescription, Error};

use crate::observability::metrics::HandshakeFailure;

/// Minimum time between two lines at level info.
const REPORT_INTERVAL: Duration = Duration::from_secs(60);

/// Chooses the failures that are logged at level info: clients must not be able to fill the log.
pub struct FailureReports(Mutex<(Option<Instant>, u64)>);

/// The reports of all workers.
pub static REPORTS: FailureReports = FailureReports::new();

impl FailureReports {
    const fn new() -> FailureReports {
        FailureReports(Mutex::new((None, 0)))
    }

    /// Returns the number of failures since the last report if this failure is to be reported.
    pub fn admit(&self, kind: HandshakeFailure, now: Instant) -> Option<u64> {
        // The others are port scans and health checks of load balancers, not clients with wrong settings.
        let is_misconfigured = matches!(
            kind,
            HandshakeFailure::Alert
                | HandshakeFailure::Certificate
                | HandshakeFailure::Incompatible
                | HandshakeFailure::ProxyProtocol
        );
        if !is_misconfigured {
            return None;
        }
        let (last, unreported) = &mut *self.0.lock();
        if last.is_some_and(|last| now.duration_since(last) < REPORT_INTERVAL) {
            *unreported += 1;
            return None;
        }
        *last = Some(now);
        Some(std::mem::take(unreported))
    }
}

/// The metrics label for an error of the TLS handshake, or of the PROXY protocol header before it.
pub fn classify(error: &io::Error) -> HandshakeFailure {
    if let Some(error) = error.get_ref().and_then(|source| source.downcast_ref::<Error>()) {
        return classify_tls(error);
    }
    match error.kind() {
        io::ErrorKind::TimedOut => HandshakeFailure::Timeout,
        io::ErrorKind::UnexpectedEof
        | io::ErrorKind::ConnectionReset
        | io::ErrorKind::ConnectionAborted
        | io::ErrorKind::BrokenPipe => HandshakeFailure::Closed,
        _ => HandshakeFailure::Other,
    }
}

fn classify_tls(error: &Error) -> HandshakeFailure {
    match error {
        Error::AlertReceived(AlertDescription::CloseNotify | AlertDescription::UserCanceled) => {
            HandshakeFailure::Closed
        }
        Error::AlertReceived(_) => HandshakeFailure::Alert,
        Error::PeerIncompatible(_) | Error::NoApplicationProtocol => HandshakeFailure::Incompatible,
        Error::NoCertificatesPresented | Error::InvalidCertificate(_) | Error::InvalidCertRevocationList(_) => {
            HandshakeFailure::Certificate
        }
        Error::InvalidMessage(_)
        | Error::InappropriateMessage { .. }
        | Error::InappropriateHandshakeMessage { .. }
        | Error::PeerMisbehaved(_)
        | Error::PeerSentOversizedRecord
        | Error::DecryptError => HandshakeFailure::Malformed,
        _ => HandshakeFailure::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_are_rate_limited_and_counted() {
        let reports = FailureReports::new();
        let start = Instant::now();
        let admit = |kind, seconds| reports.admit(kind, start + Duration::from_secs(seconds));
        assert_eq!(admit(HandshakeFailure::Closed, 0), None);
        assert_eq!(admit(HandshakeFailure::Alert, 0), Some(0));
        assert_eq!((admit(HandshakeFailure::Alert, 1), admit(HandshakeFailure::Incompatible, 59)), (None, None));
        assert_eq!((admit(HandshakeFailure::Certificate, 60), admit(HandshakeFailure::Alert, 120)), (Some(2), Some(0)));
    }

    #[test]
    fn errors_are_classified() {
        let tls = |error: Error| io::Error::new(io::ErrorKind::InvalidData, error);
        for (error, expected) in [
            (io::ErrorKind::TimedOut.into(), HandshakeFailure::Timeout),
            (io::ErrorKind::UnexpectedEof.into(), HandshakeFailure::Closed),
            (tls(Error::AlertReceived(AlertDescription::UnknownCA)), HandshakeFailure::Alert),
            (tls(Error::NoCertificatesPresented), HandshakeFailure::Certificate),
            (tls(Error::NoApplicationProtocol), HandshakeFailure::Incompatible),
            (tls(Error::DecryptError), HandshakeFailure::Malformed),
            (io::Error::other("unknown"), HandshakeFailure::Other),
        ] {
            assert_eq!(classify(&error), expected, "{error}");
        }
    }
}
