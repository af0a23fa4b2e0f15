//! TLS with clients: the active snapshot, and how it is built from files. It does not decide when to reload.

use std::sync::Arc;
use std::time::SystemTime;

use rustls::crypto::aws_lc_rs::Ticketer;
use rustls::pki_types::CertificateDer;
use rustls::server::{ProducesTickets, ServerSessionMemoryCache, StoresServerSessions};
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};
use rustls::{ServerConfig, ServerConnection};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use crate::config::options::TLS;
use crate::config::{CertificateFiles, TlsMinVersion, TlsOptions};
use crate::tls::certificates::{Certificate, CertificateNames, CertificateStatus, Certificates};
use crate::tls::client_auth::{self, ClientCertificateError};
use crate::tls::pem_files::{load_chain, load_pair, trust_anchors};
use crate::tls::ticket_keys::TicketKeys;
use crate::tls::{SelfSigned, TlsError, pair_error, provider, setup_error};

/// Maximum number of cached sessions, for TLS 1.2 clients without ticket support.
const MAX_SESSIONS: usize = 1024;

const CLIENT_CA: &str = TLS.client_ca_file.key;

/// Access to the active [`TlsSnapshot`]. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ServerTls(pub(super) watch::Receiver<Arc<TlsSnapshot>>);

impl ServerTls {
    /// The active snapshot. A connection takes it once.
    pub fn current(&self) -> Arc<TlsSnapshot> {
        Arc::clone(&self.0.borrow())
    }
}

/// The active certificates and client authorities, and the rustls configuration built from them.
#[derive(Debug)]
pub struct TlsSnapshot {
    config: Arc<ServerConfig>,
    certificates: Arc<Certificates>,
    ticket_keys: Option<Arc<TicketKeys>>,
    pub(super) authorities: Vec<CertificateDer<'static>>,
    pub(super) resumption: Resumption,
}

/// The name that a client requested, and the certificate that is presented to it.
#[derive(Debug)]
pub struct SniMatch {
    /// The requested name (SNI), in lower case.
    pub requested: Box<str>,
    /// The names that the presented certificate covers.
    pub names: Arc<CertificateNames>,
}

impl TlsSnapshot {
    /// An acceptor for connections.
    pub fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(Arc::clone(&self.config))
    }

    /// The requested name and the presented certificate; `None` without SNI, as when a client connects to an IP
    /// address.
    pub fn sni_match(&self, connection: &ServerConnection) -> Option<SniMatch> {
        let name = connection.server_name()?.to_ascii_lowercase();
        let names = Arc::clone(&self.certificates.choose(Some(&name)).names);
        Some(SniMatch { requested: name.into(), names })
    }

    /// The identity that the client certificate proves; `None` without a client certificate.
    pub fn client_identity(connection: &ServerConnection) -> Result<Option<String>, ClientCertificateError> {
        let chain = connection.peer_certificates();
        chain.map(|chain| client_auth::identity(chain, SystemTime::now())).transpose()
    }

    /// The names, the start and the end of the validity of each certificate, in seconds of Unix time.
    pub fn validities(&self) -> Vec<(String, [i64; 2])> {
        let validity = |one: &Certificate| (one.names.to_string(), [one.not_before, one.not_after]);
        self.certificates().iter().map(validity).collect()
    }

    /// The names and faults of each certificate, the default first.
    pub fn statuses(&self, now: SystemTime) -> Vec<CertificateStatus> {
        self.certificates().iter().map(|certificate| certificate.status(now)).collect()
    }

    /// Whether `other` has the same certificates and ticket keys. A certificate determines its key, so keys of
    /// certificates are not compared.
    pub(super) fn has_same_certificates(&self, other: &TlsSnapshot) -> bool {
        let chains = |one: &TlsSnapshot| one.certificates().iter().map(|one| one.chain().to_vec()).collect::<Vec<_>>();
        chains(self) == chains(other) && self.ticket_keys == other.ticket_keys
    }

    /// The certificates of the gateway, the default first.
    pub(super) fn certificates(&self) -> &[Certificate] {
        self.certificates.all()
    }
}

/// The state for session resumption: ticket key and session cache.
#[derive(Clone, Debug)]
pub struct Resumption {
    ticketer: Arc<dyn ProducesTickets>,
    sessions: Arc<dyn StoresServerSessions>,
}

impl Resumption {
    /// Creates a new ticket key and an empty cache: earlier sessions cannot be resumed.
    pub fn new() -> Result<Resumption, TlsError> {
        let sessions = ServerSessionMemoryCache::new(MAX_SESSIONS);
        Ok(Resumption { ticketer: Ticketer::new().map_err(setup_error)?, sessions })
    }

    #[cfg(test)]
    pub fn ticketer(&self) -> Arc<dyn ProducesTickets> {
        Arc::clone(&self.ticketer)
    }
}

/// The content of all files, parsed and checked.
pub struct TlsMaterial {
    pub certificates: Vec<Certificate>,
    /// The authorities that issue client certificates.
    pub authorities: Vec<CertificateDer<'static>>,
    /// The ticket keys that replicas share; `None`: each process has its own.
    pub ticket_keys: Option<Arc<TicketKeys>>,
}

impl TlsMaterial {
    /// Reads the files. Without configured certificates, uses `self_signed`.
    pub fn load(options: &TlsOptions, self_signed: Option<&SelfSigned>) -> Result<TlsMaterial, TlsError> {
        let mut certificates = options.certificates.iter().map(load_certificate).collect::<Result<Vec<_>, _>>()?;
        if let (true, Some(self_signed)) = (certificates.is_empty(), self_signed) {
            let pair =
                CertifiedKey::from_der(vec![self_signed.certificate.clone()], self_signed.key.clone_key(), &provider());
            certificates.push(Certificate::new(pair.map_err(setup_error)?).map_err(setup_error)?);
        }
        let authorities = load_authorities(options)?;
        let ticket_keys = load_ticket_keys(options, &ticket_context(options, &authorities))?;
        Ok(TlsMaterial { certificates, authorities, ticket_keys })
    }

    /// Reads the files again. Those that cannot be used keep what `current`, built from the same options, has: one of
    /// them must not prevent the renewal of the others. Also returns why they cannot.
    pub fn reload(options: &TlsOptions, current: &TlsSnapshot, now: SystemTime) -> (TlsMaterial, Vec<TlsError>) {
        let mut errors = Vec::new();
        let mut certificates = current.certificates().to_vec();
        for (certificate, files) in certificates.iter_mut().zip(&options.certificates) {
            let new = load_certificate(files)
                .and_then(|new| keep_valid_certificate(&new, certificate, files, now).map(|()| new));
            new.map_or_else(|error| errors.push(error), |new| *certificate = new);
        }
        let authorities = load_authorities(options).unwrap_or_else(|error| {
            errors.push(error);
            current.authorities.clone()
        });
        // SECURITY: also keys that are kept encrypt for the new authorities only.
        let context = ticket_context(options, &authorities);
        let ticket_keys = load_ticket_keys(options, &context).unwrap_or_else(|error| {
            errors.push(error);
            current.ticket_keys.as_ref().map(|keys| Arc::new(keys.with_context(&context)))
        });
        (TlsMaterial { certificates, authorities, ticket_keys }, errors)
    }

    /// An error if a name that a valid certificate serves would be served by one that has expired. One that serves no
    /// such name must not prevent a reload of other options.
    pub fn keep_valid_certificates(
        &self,
        options: &TlsOptions,
        current: &TlsSnapshot,
        now: SystemTime,
    ) -> Result<(), TlsError> {
        let certificates = Certificates::new(self.certificates.clone());
        let mut pairs = certificates.all().iter().zip(&options.certificates);
        pairs.try_for_each(|(new, files)| {
            let replaces_valid = |name: String| {
                let active = current.certificates.choose(Some(&name));
                let is_served = std::ptr::eq(certificates.choose(Some(&name)), new);
                is_served && active.names.covers(&name) && !active.has_expired(now)
            };
            let is_harmful = new.has_expired(now) && new.names.texts().any(replaces_valid);
            if is_harmful { Err(expired(new, files)) } else { Ok(()) }
        })
    }

    /// Builds the configuration: TLS 1.3 and, unless it is disabled, 1.2, with the suites of the provider, all of them
    /// AEAD with ephemeral keys; HTTP/2 preferred over HTTP/1.1.
    pub fn build(self, options: &TlsOptions, resumption: Resumption) -> Result<TlsSnapshot, TlsError> {
        let certificates = Arc::new(Certificates::new(self.certificates));
        let versions: &[_] = match options.min_version {
            TlsMinVersion::Tls12 => &[&TLS13, &TLS12],
            TlsMinVersion::Tls13 => &[&TLS13],
        };
        let builder =
            ServerConfig::builder_with_provider(provider()).with_protocol_versions(versions).map_err(setup_error)?;
        // SECURITY: one verifier for all names, so that no requested name admits a client without a certificate.
        let builder = match &options.client_auth {
            None => builder.with_no_client_auth(),
            Some(auth) => {
                let roots = trust_anchors(&self.authorities, &auth.ca_file, CLIENT_CA)?;
                builder.with_client_cert_verifier(client_auth::client_verifier(roots, auth)?)
            }
        };
        let mut config = builder.with_cert_resolver(Arc::clone(&certificates) as _);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        // Most clients send the default list of a TLS library, which puts the longest keys first. A client that insists
        // on 256-bit suites offers no others.
        config.ignore_client_order = true;
        // SECURITY: early data can be replayed by anyone who recorded it.
        config.max_early_data_size = 0;
        // A client gets another ticket with each connection. The second one costs 2 % of a handshake, and more of a
        // resumption.
        config.send_tls13_tickets = 1;
        config.ticketer = match &self.ticket_keys {
            Some(keys) => Arc::clone(keys) as _,
            None => Arc::clone(&resumption.ticketer),
        };
        config.session_storage = Arc::clone(&resumption.sessions);
        let TlsMaterial { authorities, ticket_keys, .. } = self;
        Ok(TlsSnapshot { config: Arc::new(config), certificates, ticket_keys, authorities, resumption })
    }
}

fn load_certificate(files: &CertificateFiles) -> Result<Certificate, TlsError> {
    let (chain, key) = load_pair(files)?;
    let pair =
        CertifiedKey::from_der(chain.clone(), key, &provider()).map_err(|error| pair_error(files, &chain, &error))?;
    let (option, path) = (files.options[0], files.chain.clone());
    Certificate::new(pair).map_err(|reason| TlsError::Certificate { option, path, reason })
}

/// An error if a certificate has expired, and would replace one for the same name that is still valid.
///
/// SECURITY: clients reject an expired certificate, so a failed renewal must not end all connections.
fn keep_valid_certificate(
    new: &Certificate,
    active: &Certificate,
    files: &CertificateFiles,
    now: SystemTime,
) -> Result<(), TlsError> {
    let is_harmful = new.has_expired(now) && !active.has_expired(now) && new.names.shares_a_name(&active.names);
    if is_harmful { Err(expired(new, files)) } else { Ok(()) }
}

fn expired(new: &Certificate, files: &CertificateFiles) -> TlsError {
    TlsError::Expired { option: files.options[0], path: files.chain.clone(), names: new.names.to_string() }
}

fn load_authorities(options: &TlsOptions) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let Some(auth) = &options.client_auth else { return Ok(Vec::new()) };
    let authorities = load_chain(&auth.ca_file, CLIENT_CA)?;
    trust_anchors(&authorities, &auth.ca_file, CLIENT_CA)?;
    if let Some((subject, issuer)) = authorities.iter().find_map(client_auth::leaf_names) {
        return Err(TlsError::NotAnAuthority { option: CLIENT_CA, path: auth.ca_file.clone(), subject, issuer });
    }
    Ok(authorities)
}

/// Everything that a session depends on besides its ticket key.
fn ticket_context(options: &TlsOptions, authorities: &[CertificateDer<'_>]) -> Vec<u8> {
    let is_required = options.client_auth.as_ref().is_some_and(|auth| auth.required);
    let mut context = vec![u8::from(is_required)];
    authorities.iter().for_each(|authority| context.extend_from_slice(authority));
    context
}

fn load_ticket_keys(options: &TlsOptions, context: &[u8]) -> Result<Option<Arc<TicketKeys>>, TlsError> {
    let Some(path) = &options.ticket_keys_file else { return Ok(None) };
    Ok(Some(Arc::new(TicketKeys::load(path, context)?)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::{TlsReloader, generate_self_signed};

    fn start(files: &CertificateFiles) -> Result<Arc<TlsSnapshot>, TlsError> {
        let options = TlsOptions { certificates: vec![files.clone()], client_auth: None, ..TlsOptions::default() };
        TlsReloader::start(options, None).map(|(_, tls)| tls.current())
    }

    #[test]
    fn a_certificate_and_key_from_files_make_a_server() {
        let dir = tempfile::tempdir().expect("a directory");
        let (pair, other) = (rcgen_pair(), rcgen_pair());
        let options = ["tls.cert_file", "tls.key_file"];
        let files = CertificateFiles { chain: dir.path().join("tls.crt"), key: dir.path().join("tls.key"), options };
        std::fs::write(&files.chain, &pair.0).expect("written");
        std::fs::write(&files.key, &pair.1).expect("written");
        let current = start(&files).expect("a pair");
        assert_eq!(current.config.alpn_protocols[0], b"h2");

        std::fs::write(&files.key, &other.1).expect("written");
        let error = start(&files).expect_err("the key of a different certificate").to_string();
        assert!(error.contains("tls.key") && error.contains("belongs to a different certificate"), "{error}");

        std::fs::write(&files.key, "nothing").expect("written");
        let error = start(&files).expect_err("no key").to_string();
        assert!(error.contains("private key") && error.contains("tls.key"), "{error}");

        std::fs::write(&files.chain, "").expect("written");
        std::fs::write(&files.key, &pair.1).expect("written");
        let error = start(&files).expect_err("no certificate").to_string();
        assert!(error.contains("no PEM certificate"), "{error}");
    }

    #[test]
    fn unusable_keys_are_reported_with_the_remedy() {
        let files = |name: &str| {
            let at = |end: &str| std::path::Path::new("tests/data").join(format!("{name}.{end}"));
            CertificateFiles { chain: at("crt"), key: at("key"), options: ["tls.cert_file", "tls.key_file"] }
        };
        let error = start(&files("short-rsa")).expect_err("too short").to_string();
        assert!(error.contains("short-rsa.key") && error.contains("below 2048 bits"), "{error}");
        let dir = tempfile::tempdir().expect("a directory");
        let key = dir.path().join("encrypted.key");
        let text = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
        std::fs::write(&key, text).expect("written");
        let error = start(&CertificateFiles { key, ..files("short-rsa") }).expect_err("encrypted").to_string();
        assert!(error.contains("encrypted.key") && error.contains("openssl pkey"), "{error}");
    }

    fn rcgen_pair() -> (String, String) {
        let key = rcgen::KeyPair::generate().expect("a key");
        let params = rcgen::CertificateParams::new(vec!["localhost".into()]).expect("valid");
        (params.self_signed(&key).expect("signed").pem(), key.serialize_pem())
    }

    #[test]
    fn a_self_signed_certificate_makes_a_server() {
        let self_signed = generate_self_signed(&["gateway.internal".into()]).expect("made");
        assert!(self_signed.certificate_pem.contains("BEGIN CERTIFICATE"));
        let (_, tls) = TlsReloader::start(TlsOptions::default(), Some(self_signed)).expect("usable");
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
