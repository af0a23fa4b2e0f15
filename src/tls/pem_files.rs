//! Reads certificates and keys from PEM files. It does not check whether they match.

use std::path::Path;

use rustls::RootCertStore;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::base::pem::PemText;
use crate::config::CertificateFiles;
use crate::tls::TlsError;

pub type ChainAndKey = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

const CERTIFICATE: &str = "certificate";
const PRIVATE_KEY: &str = "private key";

/// Reads the certificates of a file as trust anchors.
pub fn load_roots(path: &Path, option: &'static str) -> Result<RootCertStore, TlsError> {
    trust_anchors(&load_chain(path, option)?, path, option)
}

/// The certificates of a file as trust anchors.
pub fn trust_anchors(
    chain: &[CertificateDer<'static>],
    path: &Path,
    option: &'static str,
) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in chain {
        roots.add(certificate.clone()).map_err(|reason| TlsError::Anchor { option, path: path.to_owned(), reason })?;
    }
    Ok(roots)
}

/// Reads a chain and a key. Does not check that they belong together.
pub fn load_pair(files: &CertificateFiles) -> Result<ChainAndKey, TlsError> {
    let [chain, key] = files.options;
    Ok((load_chain(&files.chain, chain)?, load_key(&files.key, key)?))
}

/// Reads the certificates of a file, at least one.
pub fn load_chain(path: &Path, option: &'static str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let failed = |reason| file_error(CERTIFICATE, option, path, reason);
    let text = PemText::read(path).map_err(failed)?;
    let chain = CertificateDer::pem_slice_iter(&text.pem).collect::<Result<Vec<_>, _>>();
    let chain = chain.map_err(|error| failed(error.to_string()))?;
    if chain.is_empty() { Err(failed(nothing_found(CERTIFICATE, &text))) } else { Ok(chain) }
}

fn load_key(path: &Path, option: &'static str) -> Result<PrivateKeyDer<'static>, TlsError> {
    let failed = |reason| file_error(PRIVATE_KEY, option, path, reason);
    let text = PemText::read(path).map_err(failed)?;
    if text.is_encrypted {
        let advice = "it is encrypted, and the gateway has no passphrase; decrypt it: openssl pkey -in FILE -out NEW";
        return Err(failed(advice.to_owned()));
    }
    PrivateKeyDer::from_pem_slice(&text.pem).map_err(|error| {
        failed(match error {
            pem::Error::NoItemsFound => nothing_found(PRIVATE_KEY, &text),
            other => other.to_string(),
        })
    })
}

/// A file without a section of this kind.
fn nothing_found(kind: &str, text: &PemText) -> String {
    let (program, other) = if kind == CERTIFICATE { ("x509", PRIVATE_KEY) } else { ("pkey", CERTIFICATE) };
    match &text.first_label {
        Some(label) => format!(
            "it contains no PEM {kind}, but {label}; does it belong to a different option, such as that of the {other}?"
        ),
        None => format!(
            "it contains no PEM {kind}; if it is DER, convert it: openssl {program} -inform der -in FILE -out NEW; if it \
             is PKCS #12: openssl pkcs12 -nodes -in FILE -out NEW"
        ),
    }
}

fn file_error(kind: &'static str, option: &'static str, path: &Path, reason: String) -> TlsError {
    TlsError::File { kind, option, path: path.to_owned(), reason }
}
