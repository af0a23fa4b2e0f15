//! Classifies errors of the PROXY protocol and of the TLS handshake for the metrics. It knows nothing about
//! connections.

use std::io;

use rustls::{AlertDescription, Error};

use crate::observability::metrics::HandshakeFailure;

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
