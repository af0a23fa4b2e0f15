//! Reads certificates and keys from PEM files. It does not check whether they match.

use std::path::Path;

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::config::CertificateFiles;
use crate::tls::TlsError;

pub type ChainAndKey = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// Reads the certificates of a file as trust anchors.
pub fn load_roots(path: &Path, option: &'static str) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in load_chain(path, option)? {
        roots.add(certificate).map_err(|reason| TlsError::Anchor { option, path: path.to_owned(), reason })?;
    }
    Ok(roots)
}

/// Reads a chain and a key. Does not check that they belong together.
pub fn load_pair(files: &CertificateFiles) -> Result<ChainAndKey, TlsError> {
    let [chain, key] = files.options;
    let key =
        PrivateKeyDer::from_pem_file(&files.key).map_err(|error| file_error("private key", key, &files.key, &error))?;
    Ok((load_chain(&files.chain, chain)?, key))
}

/// Reads the certificates of a file, at least one.
pub fn load_chain(path: &Path, option: &'static str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    use rustls::pki_types::pem::Error::NoItemsFound;
    let failed = |error| file_error("certificate", option, path, &error);
    let chain = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>).map_err(failed)?;
    if chain.is_empty() { Err(failed(NoItemsFound)) } else { Ok(chain) }
}

fn file_error(
    kind: &'static str,
    option: &'static str,
    path: &Path,
    error: &rustls::pki_types::pem::Error,
) -> TlsError {
    let reason = match error {
        rustls::pki_types::pem::Error::NoItemsFound => format!("it contains no PEM {kind}"),
        other => other.to_string(),
    };
    TlsError::File { kind, option, path: path.to_owned(), reason }
}
