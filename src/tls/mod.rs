//! TLS: with clients of the gateway, and with an https upstream.
//!
//! What clients meet is one value, [`Current`], built as a whole and swapped as a whole: every connection takes the one
//! that is in force when it begins, and keeps it.

mod certificates;
pub mod client_auth;
mod outbound;
mod pem_files;
mod reload;
mod self_signed;
mod server;

use std::path::PathBuf;
use std::sync::Arc;

use rustls::crypto::{CryptoProvider, aws_lc_rs};

use crate::config::CertificateFiles;
use crate::config::options::UPSTREAM;

pub use certificates::CertificateNames;
pub use outbound::{OutboundTls, backend_tls, client_tls, trust_only_config};
pub use reload::{PreparedTls, TlsReloader, expiries};
pub use self_signed::{SelfSigned, certificate_name_for, generate_self_signed};
pub use server::{ServerTls, SniMatch, TlsSnapshot};

/// What can be wrong with certificates and keys. Names the file, never shows a key.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The file cannot be read or holds no PEM of this sort.
    #[error("cannot read a {what} from {}: {reason}", path.display())]
    File {
        /// The option that names the file.
        option: &'static str,
        /// Certificate or key.
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// What the reader said.
        reason: String,
    },
    /// Key and certificate are not a pair, or a certificate cannot be used.
    #[error("{} and {} cannot be used together: {reason}", files.chain.display(), files.key.display())]
    Pair {
        /// Which files.
        files: Box<CertificateFiles>,
        /// Why.
        reason: rustls::Error,
    },
    /// An authority's certificate cannot be used.
    #[error("{} holds a certificate that cannot be a trust anchor: {reason}", path.display())]
    Anchor {
        /// The option that names the file.
        option: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why.
        reason: rustls::Error,
    },
    /// A certificate that others can read is one that the gateway cannot.
    #[error("{} holds a certificate that cannot be read: {reason}", path.display())]
    Certificate {
        /// The option that names the file.
        option: &'static str,
        /// Which file.
        path: PathBuf,
        /// What the reader said.
        reason: String,
    },
    /// The machine has no certificate authorities.
    #[error(
        "the system has no certificate authorities to trust ({0}); install ca-certificates or set \
         upstream.ca_file"
    )]
    NoSystemRoots(String),
    /// The name to verify is no name.
    #[error("upstream.server_name (or the host of upstream.url) {0:?} is neither a DNS name nor an address")]
    ServerName(String),
    /// rustls or rcgen refused something that does not depend on files.
    #[error("TLS cannot be set up: {0}")]
    Setup(String),
}

impl TlsError {
    /// The option that must be changed.
    pub fn option(&self) -> &'static str {
        match self {
            TlsError::File { option, .. } | TlsError::Certificate { option, .. } => option,
            TlsError::Pair { files, .. } => files.options[1],
            TlsError::Anchor { option, .. } => option,
            TlsError::NoSystemRoots(_) => UPSTREAM.ca_file.key,
            TlsError::ServerName(_) => UPSTREAM.server_name.key,
            TlsError::Setup(_) => "tls",
        }
    }
}

/// The provider's suites, those with 128 bits first: they are as safe for all that is known, and what hashes and encrypts
/// costs a fifth less.
fn provider() -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites.sort_by_key(|suite| !format!("{:?}", suite.suite()).contains("AES_128"));
    Arc::new(provider)
}

#[allow(clippy::needless_pass_by_value, reason = "the form that map_err wants")]
fn setup_error(error: impl ToString) -> TlsError {
    TlsError::Setup(error.to_string())
}
