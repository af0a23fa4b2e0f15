//! TLS with clients: what is in force, and how it is built.

use std::sync::Arc;
use std::time::SystemTime;

use rustls::crypto::aws_lc_rs::Ticketer;
use rustls::pki_types::CertificateDer;
use rustls::server::{ProducesTickets, ServerSessionMemoryCache, StoresServerSessions};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, ServerConfig, ServerConnection};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use crate::config::TlsOptions;
use crate::config::options::TLS;
use crate::tls::certificates::{Certificate, CertificateNames, Certificates};
use crate::tls::client_auth::{self, ClientCertificateError};
use crate::tls::pem_files::{load_chain, load_pair};
use crate::tls::{SelfSigned, TlsError, provider, setup_error};

/// Sessions that are kept for TLS 1.2 clients that take no tickets.
const MAX_SESSIONS: usize = 1024;

const CLIENT_CA: &str = TLS.client_ca_file.key;

/// How to speak TLS with clients, now and after each reload. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ServerTls(pub(super) watch::Receiver<Arc<TlsSnapshot>>);

impl ServerTls {
    /// What is in force; a connection asks once.
    pub fn current(&self) -> Arc<TlsSnapshot> {
        Arc::clone(&self.0.borrow())
    }
}

/// Certificates, authorities and all that depends on them.
#[derive(Debug)]
pub struct TlsSnapshot {
    config: Arc<ServerConfig>,
    certificates: Arc<Certificates>,
}

/// What a client asked for by name, and what it was shown.
#[derive(Debug)]
pub struct SniMatch {
    /// The name (SNI), in lower case.
    pub requested: Box<str>,
    /// Whom the certificate is for.
    pub names: Arc<CertificateNames>,
}

impl TlsSnapshot {
    /// Accepts one connection or more.
    pub fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(Arc::clone(&self.config))
    }

    /// What the client asked for; `None` if it named nobody, as clients that connect to an address do.
    pub fn sni_match(&self, connection: &ServerConnection) -> Option<SniMatch> {
        let name = connection.server_name()?.to_ascii_lowercase();
        let names = Arc::clone(&self.certificates.choose(Some(&name)).names);
        Some(SniMatch { requested: name.into(), names })
    }

    /// Whom the client's certificate says that it is; `None` if it showed none.
    pub fn client_identity(connection: &ServerConnection) -> Result<Option<String>, ClientCertificateError> {
        let chain = connection.peer_certificates();
        chain.map(|chain| client_auth::identity(chain, SystemTime::now())).transpose()
    }

    /// The names of each certificate, the default first, and its last second since 1970.
    pub fn expiries(&self) -> Vec<(String, i64)> {
        let told = |certificate: &Certificate| (certificate.names.to_string(), certificate.not_after);
        self.certificates().iter().map(told).collect()
    }

    /// The gateway's certificates.
    pub(super) fn certificates(&self) -> &[Certificate] {
        self.certificates.all()
    }
}

/// What lets clients resume sessions.
#[derive(Clone)]
pub struct Resumption {
    ticketer: Arc<dyn ProducesTickets>,
    sessions: Arc<dyn StoresServerSessions>,
}

impl Resumption {
    /// Under a new key: nothing that was begun before can be resumed.
    pub fn new() -> Result<Resumption, TlsError> {
        let sessions = ServerSessionMemoryCache::new(MAX_SESSIONS);
        Ok(Resumption { ticketer: Ticketer::new().map_err(setup_error)?, sessions })
    }

    #[cfg(test)]
    pub fn ticketer(&self) -> Arc<dyn ProducesTickets> {
        Arc::clone(&self.ticketer)
    }
}

/// All that files say, read and checked.
pub struct TlsMaterial {
    pub certificates: Vec<Certificate>,
    /// The authorities of clients.
    pub authorities: Vec<CertificateDer<'static>>,
}

impl TlsMaterial {
    /// Reads the files. Without certificates there, `own` stands in for them.
    pub fn load(options: &TlsOptions, own: Option<&SelfSigned>) -> Result<TlsMaterial, TlsError> {
        let mut certificates = Vec::with_capacity(options.certificates.len().max(1));
        for files in &options.certificates {
            let (chain, key) = load_pair(files)?;
            let pair = CertifiedKey::from_der(chain, key, &provider())
                .map_err(|reason| TlsError::Pair { files: Box::new(files.clone()), reason })?;
            let [option, _] = files.options;
            certificates.push(Certificate::new(pair).map_err(|reason| TlsError::Certificate {
                option,
                path: files.chain.clone(),
                reason,
            })?);
        }
        if let (true, Some(own)) = (certificates.is_empty(), own) {
            let pair =
                CertifiedKey::from_der(vec![own.certificate.clone()], own.key.clone_key(), &provider());
            certificates.push(Certificate::new(pair.map_err(setup_error)?).map_err(setup_error)?);
        }
        let authorities = match &options.client_auth {
            None => Vec::new(),
            Some(auth) => load_chain(&auth.ca_file, CLIENT_CA)?,
        };
        Ok(TlsMaterial { certificates, authorities })
    }

    /// Whether `current` shows the same certificates; a key belongs to its certificate.
    pub fn has_same_certificates(&self, current: &TlsSnapshot) -> bool {
        let chains = |all: &[Certificate]| all.iter().map(|one| one.chain().to_vec()).collect::<Vec<_>>();
        chains(&self.certificates) == chains(current.certificates())
    }

    /// TLS 1.2 and 1.3 with the provider's suites, all of them AEAD with ephemeral keys; HTTP/2 before HTTP/1.1.
    pub fn build(self, options: &TlsOptions, resumption: &Resumption) -> Result<TlsSnapshot, TlsError> {
        let certificates = Arc::new(Certificates::new(self.certificates));
        let builder = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(setup_error)?;
        // SECURITY: one verifier for all names, so that no name that a client may ask for lets it in without a
        // certificate.
        let builder = match &options.client_auth {
            None => builder.with_no_client_auth(),
            Some(auth) => {
                let mut roots = RootCertStore::empty();
                for authority in self.authorities {
                    let (option, path) = (CLIENT_CA, auth.ca_file.clone());
                    roots.add(authority).map_err(|reason| TlsError::Anchor { option, path, reason })?;
                }
                builder.with_client_cert_verifier(client_auth::client_verifier(roots, auth.required)?)
            }
        };
        let mut config = builder.with_cert_resolver(Arc::clone(&certificates) as _);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        // Most clients' order is that of a library which puts what is longest first. A client that wants no other suite
        // than one of 256 bits offers no other.
        config.ignore_client_order = true;
        // SECURITY: early data can be replayed by anybody who saw it.
        config.max_early_data_size = 0;
        config.ticketer = Arc::clone(&resumption.ticketer);
        config.session_storage = Arc::clone(&resumption.sessions);
        Ok(TlsSnapshot { config: Arc::new(config), certificates })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::CertificateFiles;
    use crate::tls::{TlsReloader, generate_self_signed};

    fn start(files: &CertificateFiles) -> Result<Arc<TlsSnapshot>, TlsError> {
        let options = TlsOptions { certificates: vec![files.clone()], client_auth: None };
        TlsReloader::start(options, None).map(|(_, tls)| tls.current())
    }

    #[test]
    fn a_certificate_and_key_from_files_make_a_server() {
        let dir = tempfile::tempdir().expect("a directory");
        let (pair, other) = (rcgen_pair(), rcgen_pair());
        let options = ["tls.cert_file", "tls.key_file"];
        let files =
            CertificateFiles { chain: dir.path().join("tls.crt"), key: dir.path().join("tls.key"), options };
        std::fs::write(&files.chain, &pair.0).expect("written");
        std::fs::write(&files.key, &pair.1).expect("written");
        let current = start(&files).expect("a pair");
        assert_eq!(current.config.alpn_protocols[0], b"h2");

        std::fs::write(&files.key, &other.1).expect("written");
        let error = start(&files).expect_err("another certificate's key").to_string();
        assert!(error.contains("tls.key") && error.contains("cannot be used together"), "{error}");

        std::fs::write(&files.key, "nothing").expect("written");
        let error = start(&files).expect_err("no key").to_string();
        assert!(error.contains("private key") && error.contains("tls.key"), "{error}");

        std::fs::write(&files.chain, "").expect("written");
        std::fs::write(&files.key, &pair.1).expect("written");
        let error = start(&files).expect_err("no certificate").to_string();
        assert!(error.contains("no PEM certificate"), "{error}");
    }

    fn rcgen_pair() -> (String, String) {
        let key = rcgen::KeyPair::generate().expect("a key");
        let params = rcgen::CertificateParams::new(vec!["localhost".into()]).expect("valid");
        (params.self_signed(&key).expect("signed").pem(), key.serialize_pem())
    }

    #[test]
    fn a_self_signed_certificate_makes_a_server() {
        let own = generate_self_signed(&["gateway.internal".into()]).expect("made");
        assert!(own.certificate_pem.contains("BEGIN CERTIFICATE"));
        let (_, tls) = TlsReloader::start(TlsOptions::default(), Some(own)).expect("usable");
        assert!(tls.current().certificates()[0].names.covers("gateway.internal"));
    }

    #[test]
    fn every_suite_is_aead_with_ephemeral_keys() {
        for suite in provider().cipher_suites.iter().map(|suite| format!("{:?}", suite.suite())) {
            let aead = suite.contains("_GCM_") || suite.contains("_CHACHA20_POLY1305_");
            assert!(aead && (suite.starts_with("TLS13_") || suite.starts_with("TLS_ECDHE_")), "{suite}");
        }
    }
}
