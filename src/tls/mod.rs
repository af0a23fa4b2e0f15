//! TLS with clients, and from the gateway to other servers. It knows nothing about requests.
//!
//! Clients are served from one value, [`TlsSnapshot`], which is built and replaced as a whole: a connection takes the
//! active one when it begins, and keeps it.

mod certificates;
pub mod client_auth;
mod outbound;
mod pem_files;
mod reload;
mod self_signed;
mod server;
mod ticket_keys;

use std::path::PathBuf;
use std::sync::Arc;

use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::CertificateDer;
use rustls::sign::CertifiedKey;

use crate::config::options::UPSTREAM;
use crate::config::{CertificateFiles, Problem};

pub use certificates::{CertificateFault, CertificateNames, CertificateStatus};
pub use outbound::{OutboundTls, backend_tls, client_tls, trust_only_config};
pub use reload::{PreparedTls, TlsReloader, certificate_statuses};
pub use self_signed::{SelfSigned, certificate_name_for, generate_self_signed};
pub use server::{ServerTls, SniMatch, TlsSnapshot};

/// An error in certificates or keys. Names the file, and never contains a key.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The file cannot be read, or contains no PEM item of the expected kind.
    #[error("cannot read a {kind} from {}: {reason}", path.display())]
    File {
        /// The option that names the file.
        option: &'static str,
        /// `certificate` or `private key`.
        kind: &'static str,
        /// The path of the file.
        path: PathBuf,
        /// The message of the parser.
        reason: String,
    },
    /// Key and certificate do not match, or the certificate cannot be used.
    #[error("{} and {} cannot be used together: {reason}", files.chain.display(), files.key.display())]
    Pair {
        /// The files of the pair.
        files: Box<CertificateFiles>,
        /// Why they cannot.
        reason: String,
    },
    /// The certificate of an authority cannot be used.
    #[error("{} contains a certificate that cannot be used as a trust anchor: {reason}", path.display())]
    Anchor {
        /// The option that names the file.
        option: &'static str,
        /// The path of the file.
        path: PathBuf,
        /// The error of rustls.
        reason: rustls::Error,
    },
    /// A certificate among the authorities that does not belong to one.
    #[error(
        "{} contains the certificate of {subject}, which may not issue certificates for clients; replace it by that of its \
         issuer, {issuer}", path.display()
    )]
    NotAnAuthority {
        /// The option that names the file.
        option: &'static str,
        /// The path of the file.
        path: PathBuf,
        /// The name in the certificate.
        subject: String,
        /// The name of its issuer.
        issuer: String,
    },
    /// The certificate is valid for rustls, but its fields cannot be parsed.
    #[error("{} contains a certificate that cannot be parsed: {reason}", path.display())]
    Certificate {
        /// The option that names the file.
        option: &'static str,
        /// The path of the file.
        path: PathBuf,
        /// The message of the parser.
        reason: String,
    },
    /// A renewed certificate has expired already.
    #[error("{} contains a certificate for {names} that has expired; the active one is still valid", path.display())]
    Expired {
        /// The option that names the file.
        option: &'static str,
        /// The path of the file.
        path: PathBuf,
        /// The names in the certificate.
        names: String,
    },
    /// The system has no certificate authorities.
    #[error(
        "the system has no certificate authorities to trust ({0}); install ca-certificates or set \
         upstream.ca_file"
    )]
    NoSystemRoots(String),
    /// The name to verify is not a valid server name.
    #[error("upstream.server_name (or the host of upstream.url) {0:?} is neither a DNS name nor an address")]
    ServerName(String),
    /// rustls or rcgen failed for a reason that does not depend on files.
    #[error("TLS cannot be set up: {0}")]
    Setup(String),
}

impl TlsError {
    /// The option to change.
    pub fn option(&self) -> &'static str {
        match self {
            TlsError::File { option, .. } | TlsError::Certificate { option, .. } | TlsError::Expired { option, .. } => {
                option
            }
            TlsError::Pair { files, .. } => files.options[1],
            TlsError::Anchor { option, .. } | TlsError::NotAnAuthority { option, .. } => option,
            TlsError::NoSystemRoots(_) => UPSTREAM.ca_file.key,
            TlsError::ServerName(_) => UPSTREAM.server_name.key,
            TlsError::Setup(_) => "tls",
        }
    }
}

impl From<TlsError> for Problem {
    fn from(error: TlsError) -> Problem {
        Problem::new(error.option(), error.to_string())
    }
}

/// The error of a certificate and its key that cannot be used together, with what to do about it.
fn pair_error(files: &CertificateFiles, chain: &[CertificateDer<'_>], error: &rustls::Error) -> TlsError {
    // The library does not say why it rejects a key.
    let reason = if chain.first().is_some_and(certificates::has_short_rsa_key) {
        "RSA keys below 2048 bits are not supported; create a larger key".to_owned()
    } else {
        match error {
            rustls::Error::InconsistentKeys(_) if is_key_of_later_certificate(files) => {
                "the private key belongs to a certificate that is not the first one of the chain; put it first"
                    .to_owned()
            }
            rustls::Error::InconsistentKeys(_) => "the private key belongs to a different certificate".to_owned(),
            rustls::Error::General(_) => {
                // It is the same error for a key that was cut off.
                "the private key is damaged, or of a kind that is not supported; use RSA, ECDSA with P-256, P-384 or \
                 P-521, or Ed25519"
                    .to_owned()
            }
            other => other.to_string(),
        }
    };
    TlsError::Pair { files: Box::new(files.clone()), reason }
}

/// Whether the chain is in the wrong sequence.
fn is_key_of_later_certificate(files: &CertificateFiles) -> bool {
    // The first attempt has consumed the key.
    let Ok((chain, key)) = pem_files::load_pair(files) else { return false };
    let later = chain.into_iter().skip(1);
    later.into_iter().any(|one| CertifiedKey::from_der(vec![one], key.clone_key(), &provider()).is_ok())
}

/// The crypto provider, with the 128-bit suites first: they are considered equally secure, and hashing and encryption
/// cost a fifth less.
fn provider() -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites.sort_by_key(|suite| !format!("{:?}", suite.suite()).contains("AES_128"));
    Arc::new(provider)
}

#[allow(clippy::needless_pass_by_value, reason = "the form that map_err wants")]
fn setup_error(error: impl ToString) -> TlsError {
    TlsError::Setup(error.to_string())
}
