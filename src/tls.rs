//! TLS configurations, made once at start: for clients of the gateway, and for an https upstream.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use crate::config::{CertificateFiles, UpstreamOptions};

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
        /// Which file.
        path: PathBuf,
        /// Why.
        reason: rustls::Error,
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
            TlsError::File { option, .. } => option,
            TlsError::Pair { files, .. } => files.options[1],
            TlsError::Anchor { .. } | TlsError::NoSystemRoots(_) => CA_FILE,
            TlsError::ServerName(_) => "upstream.server_name",
            TlsError::Setup(_) => "tls",
        }
    }
}

const CA_FILE: &str = "upstream.ca_file";

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

#[allow(clippy::needless_pass_by_value, reason = "the form that map_err wants")]
fn setup(error: impl ToString) -> TlsError {
    TlsError::Setup(error.to_string())
}

/// A certificate made for this process, and its private key.
#[derive(Debug)]
pub struct SelfSigned {
    /// The certificate, which is its own authority.
    pub certificate_pem: String,
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
}

/// Makes a certificate for `localhost`, the loopback addresses and these names.
pub fn self_signed(names: &[String]) -> Result<SelfSigned, TlsError> {
    let mut all = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
    all.extend(names.iter().filter(|name| !name.is_empty()).cloned());
    all.dedup();
    let mut params = rcgen::CertificateParams::new(all).map_err(setup)?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::CommonName, "timbr-gateway, self-signed");
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    let key = rcgen::KeyPair::generate().map_err(setup)?;
    let certificate = params.self_signed(&key).map_err(setup)?;
    Ok(SelfSigned {
        certificate_pem: certificate.pem(),
        certificate: certificate.der().clone(),
        key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
    })
}

/// The server's side with certificates from files.
pub fn server_config(files: &CertificateFiles) -> Result<Arc<ServerConfig>, TlsError> {
    let (chain, key) = load_pair(files)?;
    server_config_of(chain, key).map_err(|reason| TlsError::Pair { files: Box::new(files.clone()), reason })
}

/// The server's side with a certificate of our own making.
pub fn self_signed_server_config(own: SelfSigned) -> Result<Arc<ServerConfig>, TlsError> {
    server_config_of(vec![own.certificate], own.key).map_err(setup)
}

/// TLS 1.2 and 1.3, HTTP/2 before HTTP/1.1, tickets for resumption, no early data (rustls' default).
fn server_config_of(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<Arc<ServerConfig>, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config.ticketer = aws_lc_rs::Ticketer::new()?;
    Ok(Arc::new(config))
}

/// How to speak TLS to the upstream.
#[derive(Clone, Debug)]
pub struct UpstreamTls {
    /// Trust and our own certificate.
    pub config: Arc<ClientConfig>,
    /// The name that the upstream's certificate must carry.
    pub server_name: ServerName<'static>,
}

/// The client's side towards an https upstream.
pub fn upstream_tls(options: &UpstreamOptions) -> Result<UpstreamTls, TlsError> {
    let roots = match &options.ca_file {
        Some(path) => roots_from(path)?,
        None => system_roots()?,
    };
    let verifier =
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider()).build().map_err(setup)?;
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(setup)?
        .with_webpki_verifier(verifier);
    let mut config = match &options.client_certificate {
        None => builder.with_no_client_auth(),
        Some(files) => {
            let (chain, key) = load_pair(files)?;
            builder
                .with_client_auth_cert(chain, key)
                .map_err(|reason| TlsError::Pair { files: Box::new(files.clone()), reason })?
        }
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let name = options.server_name.as_ref().unwrap_or(&options.url.host);
    let server_name = ServerName::try_from(name.clone()).map_err(|_| TlsError::ServerName(name.clone()))?;
    Ok(UpstreamTls { config: Arc::new(config), server_name })
}

fn roots_from(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in load_chain(path, CA_FILE)? {
        roots.add(certificate).map_err(|reason| TlsError::Anchor { path: path.to_owned(), reason })?;
    }
    Ok(roots)
}

fn system_roots() -> Result<RootCertStore, TlsError> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    // Systems ship authorities that webpki cannot parse; those are no reason to trust none.
    let (added, _) = roots.add_parsable_certificates(found.certs);
    if added == 0 {
        let reasons: Vec<_> = found.errors.iter().map(ToString::to_string).collect();
        let reason = if reasons.is_empty() { "none found".to_owned() } else { reasons.join("; ") };
        return Err(TlsError::NoSystemRoots(reason));
    }
    Ok(roots)
}

type Pair = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn load_pair(files: &CertificateFiles) -> Result<Pair, TlsError> {
    let [chain, key] = files.options;
    let key = PrivateKeyDer::from_pem_file(&files.key)
        .map_err(|error| file_error("private key", key, &files.key, &error))?;
    Ok((load_chain(&files.chain, chain)?, key))
}

fn load_chain(path: &Path, option: &'static str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    use rustls::pki_types::pem::Error::NoItemsFound;
    let failed = |error| file_error("certificate", option, path, &error);
    let chain = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(failed)?;
    if chain.is_empty() { Err(failed(NoItemsFound)) } else { Ok(chain) }
}

fn file_error(
    what: &'static str,
    option: &'static str,
    path: &Path,
    error: &rustls::pki_types::pem::Error,
) -> TlsError {
    let reason = match error {
        rustls::pki_types::pem::Error::NoItemsFound => format!("it holds no PEM {what}"),
        other => other.to_string(),
    };
    TlsError::File { what, option, path: path.to_owned(), reason }
}

/// Whether a self-signed certificate for `address` needs it as a name.
pub fn name_of(address: IpAddr) -> Option<String> {
    (!address.is_unspecified()).then(|| address.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_and_key_from_files_make_a_server() {
        let dir = tempfile::tempdir().expect("a directory");
        let (pair, other) = (rcgen_pair(), rcgen_pair());
        let options = ["tls.cert_file", "tls.key_file"];
        let files =
            CertificateFiles { chain: dir.path().join("tls.crt"), key: dir.path().join("tls.key"), options };
        std::fs::write(&files.chain, &pair.0).expect("written");
        std::fs::write(&files.key, &pair.1).expect("written");
        let config = server_config(&files).expect("a pair");
        assert_eq!(config.alpn_protocols[0], b"h2");

        std::fs::write(&files.key, &other.1).expect("written");
        let error = server_config(&files).expect_err("another certificate's key").to_string();
        assert!(error.contains("tls.key") && error.contains("cannot be used together"), "{error}");

        std::fs::write(&files.key, "nothing").expect("written");
        let error = server_config(&files).expect_err("no key").to_string();
        assert!(error.contains("private key") && error.contains("tls.key"), "{error}");

        std::fs::write(&files.chain, "").expect("written");
        std::fs::write(&files.key, &pair.1).expect("written");
        let error = server_config(&files).expect_err("no certificate").to_string();
        assert!(error.contains("no PEM certificate"), "{error}");
    }

    fn rcgen_pair() -> (String, String) {
        let key = rcgen::KeyPair::generate().expect("a key");
        let params = rcgen::CertificateParams::new(vec!["localhost".into()]).expect("valid");
        (params.self_signed(&key).expect("signed").pem(), key.serialize_pem())
    }

    #[test]
    fn a_self_signed_certificate_makes_a_server() {
        let own = self_signed(&["gateway.internal".into()]).expect("made");
        assert!(own.certificate_pem.contains("BEGIN CERTIFICATE"));
        self_signed_server_config(own).expect("usable");
    }
}
