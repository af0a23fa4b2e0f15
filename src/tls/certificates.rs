//! The certificates of the gateway: which names they cover, and which one is presented to a client. It does not read
//! files.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::pki_types::CertificateDer;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use x509_parser::extensions::GeneralName;
use x509_parser::oid_registry::OID_CT_LIST_SCT;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::public_key::PublicKey;

use crate::base::clock;

/// Length of the shortest RSA key that the crypto provider accepts, in bits.
const MIN_RSA_BITS: usize = 2048;

/// How long before the end of its validity a certificate should have been renewed, in seconds.
const EXPIRY_NOTICE: i64 = 14 * 24 * 60 * 60;

/// The subject alternative names of a certificate. The common name is ignored, as by all clients.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct CertificateNames {
    /// In lower case.
    exact: Vec<String>,
    /// The part after `*.`, in lower case.
    wildcards: Vec<String>,
    addresses: Vec<IpAddr>,
}

impl CertificateNames {
    /// Whether a client that requests `host`, a name in lower case or an address, accepts the certificate for it. A
    /// wildcard matches exactly one label, the first one (RFC 9525 section 6.3).
    pub fn covers(&self, host: &str) -> bool {
        if let Ok(address) = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
            return self.addresses.contains(&address);
        }
        let below = host.split_once('.').filter(|(label, _)| !label.is_empty()).map(|(_, parent)| parent);
        self.exact.iter().any(|name| name == host)
            || below.is_some_and(|parent| self.wildcards.iter().any(|name| name == parent))
    }

    /// Whether both have at least one name or address.
    pub fn shares_a_name(&self, other: &CertificateNames) -> bool {
        self.exact.iter().any(|name| other.exact.contains(name))
            || self.wildcards.iter().any(|name| other.wildcards.contains(name))
            || self.addresses.iter().any(|address| other.addresses.contains(address))
    }

    /// All names and addresses, wildcards with their `*.`.
    pub fn texts(&self) -> impl Iterator<Item = String> {
        let exact = self.exact.iter().cloned();
        let wildcards = self.wildcards.iter().map(|parent| format!("*.{parent}"));
        exact.chain(wildcards).chain(self.addresses.iter().map(ToString::to_string))
    }

    fn from_certificate(certificate: &X509Certificate<'_>) -> CertificateNames {
        let mut names = CertificateNames::default();
        for name in alternative_names(certificate) {
            match name {
                GeneralName::DNSName(name) => match name.strip_prefix("*.") {
                    Some(parent) => names.wildcards.push(parent.to_ascii_lowercase()),
                    None => names.exact.push(name.to_ascii_lowercase()),
                },
                GeneralName::IPAddress(bytes) => names.addresses.extend(parse_address(bytes)),
                _ => {}
            }
        }
        names
    }
}

impl fmt::Display for CertificateNames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all: Vec<_> = self.texts().collect();
        f.write_str(if all.is_empty() { "no host name".to_owned() } else { all.join(", ") }.as_str())
    }
}

/// The subject alternative names of a certificate; empty if it has none or they cannot be parsed.
pub fn alternative_names<'a>(certificate: &'a X509Certificate<'_>) -> &'a [GeneralName<'a>] {
    match certificate.subject_alternative_name() {
        Ok(Some(extension)) => &extension.value.general_names,
        _ => &[],
    }
}

/// Whether the key of a certificate is an RSA key that is too short to be used.
pub fn has_short_rsa_key(certificate: &CertificateDer<'_>) -> bool {
    let Ok((_, certificate)) = X509Certificate::from_der(certificate) else { return false };
    match certificate.public_key().parsed() {
        Ok(PublicKey::RSA(key)) => key.key_size() < MIN_RSA_BITS,
        _ => false,
    }
}

fn parse_address(bytes: &[u8]) -> Option<IpAddr> {
    let four = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    four.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

/// A certificate with its private key.
#[derive(Clone, Debug)]
pub struct Certificate {
    key: Arc<CertifiedKey>,
    /// The names that it covers.
    pub names: Arc<CertificateNames>,
    /// The start and the end of its validity, in seconds of Unix time.
    pub not_before: i64,
    pub not_after: i64,
    is_for_servers: bool,
    /// The name of the issuer, if its certificate is missing in the chain.
    missing_issuer: Option<String>,
}

/// Why clients reject a certificate, or soon will. It reads as the rest of a sentence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CertificateFault {
    /// After the end of its validity.
    #[error("has expired; replace its files")]
    Expired,
    /// Before the start of its validity, which is this time.
    #[error("is not valid before {0}; check the clock of this machine")]
    NotYetValid(String),
    /// The common name, if there is one, does not count.
    #[error("has no subject alternative name, and clients ignore the common name; add the host names (subjectAltName)")]
    NoNames,
    /// Its extended key usage excludes TLS servers.
    #[error("is not one for servers, and clients reject it; request one with the extended key usage serverAuth")]
    NotForServers,
    /// Its issuer, which clients know only through the chain.
    #[error(
        "comes without the certificate of its issuer ({0}), and many clients reject it; append the intermediate \
         certificates of the authority to its file"
    )]
    MissingIssuer(String),
    /// The time that is left.
    #[error("expires in {0}; renew it")]
    ExpiresSoon(String),
}

/// A certificate in messages.
#[derive(Clone, Debug)]
pub struct CertificateStatus {
    /// Its subject alternative names, separated by commas.
    pub names: String,
    /// In seconds of Unix time.
    pub not_after: i64,
    /// What is wrong with it; `None` if nothing is.
    pub fault: Option<CertificateFault>,
}

impl Certificate {
    /// Parses the leaf certificate. The error is the message of the parser.
    pub fn new(key: CertifiedKey) -> Result<Certificate, String> {
        let leaf = key.cert.first().ok_or("an empty chain")?;
        let (_, leaf) = X509Certificate::from_der(leaf).map_err(|error| error.to_string())?;
        let names = Arc::new(CertificateNames::from_certificate(&leaf));
        let [not_before, not_after] = [leaf.validity().not_before, leaf.validity().not_after].map(|at| at.timestamp());
        let usage = leaf.extended_key_usage().ok().flatten();
        let is_for_servers = usage.is_none_or(|usage| usage.value.any || usage.value.server_auth);
        let missing_issuer = missing_issuer(&leaf, &key.cert[1..]);
        Ok(Certificate { key: Arc::new(key), names, not_before, not_after, is_for_servers, missing_issuer })
    }

    /// Whether its validity has ended.
    pub fn has_expired(&self, now: SystemTime) -> bool {
        self.not_after < unix_seconds(now)
    }

    /// Its names and faults at a time.
    pub fn status(&self, now: SystemTime) -> CertificateStatus {
        let CertificateNames { exact, wildcards, addresses } = &*self.names;
        let (now, not_after) = (unix_seconds(now), self.not_after);
        // Short-lived certificates are renewed after two thirds of their lifetime, others some weeks before the end.
        let notice = EXPIRY_NOTICE.min(not_after.saturating_sub(self.not_before) / 4);
        let fault = match not_after.saturating_sub(now) {
            left if left < 0 => Some(CertificateFault::Expired),
            _ if now < self.not_before => {
                let start = SystemTime::UNIX_EPOCH + Duration::from_secs(self.not_before.unsigned_abs());
                Some(CertificateFault::NotYetValid(humantime::format_rfc3339_seconds(start).to_string()))
            }
            _ if !self.is_for_servers => Some(CertificateFault::NotForServers),
            _ if exact.is_empty() && wildcards.is_empty() && addresses.is_empty() => Some(CertificateFault::NoNames),
            left if left < notice => Some(CertificateFault::ExpiresSoon(rounded(left))),
            _ => self.missing_issuer.clone().map(CertificateFault::MissingIssuer),
        };
        CertificateStatus { names: self.names.to_string(), not_after, fault }
    }

    /// The chain, leaf first.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.key.cert
    }
}

/// The issuer of a certificate, if clients need its certificate, and the chain does not have it. A root of a private
/// authority may have issued the certificate itself, but a public authority always has an intermediate one: only their
/// certificates contain timestamps of Certificate Transparency (RFC 6962). And certificates that follow are meant to
/// be the chain.
fn missing_issuer(leaf: &X509Certificate<'_>, rest: &[CertificateDer<'_>]) -> Option<String> {
    let is_public = leaf.extensions().iter().any(|extension| extension.oid == OID_CT_LIST_SCT);
    let is_issuer = |der: &CertificateDer<'_>| {
        X509Certificate::from_der(der).is_ok_and(|(_, one)| one.subject().as_raw() == leaf.issuer().as_raw())
    };
    let is_self_signed = leaf.issuer().as_raw() == leaf.subject().as_raw();
    let is_missing = (is_public || !rest.is_empty()) && !is_self_signed && !rest.iter().any(is_issuer);
    is_missing.then(|| leaf.issuer().to_string())
}

fn unix_seconds(time: SystemTime) -> i64 {
    let seconds = clock::since_epoch(time).as_secs();
    i64::try_from(seconds).unwrap_or(i64::MAX)
}

/// A time in days, or in hours if it is short.
fn rounded(seconds: i64) -> String {
    match seconds / 3600 {
        hours if hours < 48 => format!("{hours} hours"),
        hours => format!("{} days", hours / 24),
    }
}

/// All certificates of the gateway, indexed by name. Never empty.
pub struct Certificates {
    all: Vec<Certificate>,
    /// The first certificate for each name.
    exact: HashMap<String, usize>,
    wildcards: HashMap<String, usize>,
}

impl Certificates {
    /// The first certificate is the default.
    pub fn new(all: Vec<Certificate>) -> Certificates {
        assert!(!all.is_empty(), "a TLS server needs a certificate");
        let (mut exact, mut wildcards) = (HashMap::new(), HashMap::new());
        for (index, certificate) in all.iter().enumerate() {
            for name in &certificate.names.exact {
                exact.entry(name.clone()).or_insert(index);
            }
            for name in &certificate.names.wildcards {
                wildcards.entry(name.clone()).or_insert(index);
            }
        }
        Certificates { all, exact, wildcards }
    }

    /// All certificates, the default first.
    pub fn all(&self) -> &[Certificate] {
        &self.all
    }

    /// The certificate for a client that requests `name`, in lower case: an exact match, or else a wildcard, or else
    /// the default.
    pub fn choose(&self, name: Option<&str>) -> &Certificate {
        let index = name.and_then(|name| {
            let wildcard = || self.wildcards.get(name.split_once('.')?.1);
            self.exact.get(name).or_else(wildcard)
        });
        &self.all[index.copied().unwrap_or(0)]
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name().map(str::to_ascii_lowercase);
        Some(Arc::clone(&self.choose(name.as_deref()).key))
    }
}

impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.all.iter().map(|certificate| certificate.names.to_string())).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::provider;
    use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

    fn certificate(names: &[&str]) -> Certificate {
        let key = rcgen::KeyPair::generate().expect("a key");
        let names: Vec<_> = names.iter().map(ToString::to_string).collect();
        let params = rcgen::CertificateParams::new(names).expect("valid");
        let chain = vec![params.self_signed(&key).expect("signed").der().clone()];
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        Certificate::new(CertifiedKey::from_der(chain, key, &provider()).expect("a pair")).expect("readable")
    }

    #[test]
    fn a_certificate_covers_its_names() {
        let names = certificate(&["Api.Example.com", "*.apps.example.com", "192.0.2.1", "2001:db8::1"]).names;
        for host in ["api.example.com", "x.apps.example.com", "192.0.2.1", "[2001:db8::1]"] {
            assert!(names.covers(host), "{host}");
        }
        for host in ["example.com", "apps.example.com", "a.b.apps.example.com", ".apps.example.com", "192.0.2.2", ""] {
            assert!(!names.covers(host), "{host}");
        }
        assert_eq!(names.to_string(), "api.example.com, *.apps.example.com, 192.0.2.1, 2001:db8::1");
    }

    #[test]
    fn notice_of_expiry_depends_on_the_lifetime() {
        const HOUR: i64 = 60 * 60;
        let mut one = certificate(&["gateway.test"]);
        one.not_before = 1_700_000_000;
        let mut fault = |lifetime: i64, age: i64| {
            one.not_after = one.not_before + lifetime;
            one.status(SystemTime::UNIX_EPOCH + Duration::from_secs((one.not_before + age).unsigned_abs())).fault
        };
        let soon = |left: &str| Some(CertificateFault::ExpiresSoon(left.to_owned()));
        // Six days, ninety days, ten years.
        for (days, last_silent, left) in [(6, 108, "35 hours"), (90, 76 * 24, "13 days"), (3650, 3636 * 24, "13 days")]
        {
            let (lifetime, silent) = (days * 24 * HOUR, last_silent * HOUR);
            assert_eq!((fault(lifetime, 0), fault(lifetime, silent)), (None, None), "{days}");
            assert_eq!(fault(lifetime, silent + 1), soon(left), "{days}");
            assert_eq!(fault(lifetime, lifetime), soon("0 hours"), "{days}");
            assert_eq!(fault(lifetime, lifetime + 1), Some(CertificateFault::Expired), "{days}");
        }
        let early = fault(24 * HOUR, -1).map(|fault| fault.to_string()).unwrap_or_default();
        assert!(early.starts_with("is not valid before 2023-11-14T22:13:20Z"), "{early}");
        let nameless = certificate(&[]).status(SystemTime::now());
        assert_eq!((nameless.names.as_str(), nameless.fault), ("no host name", Some(CertificateFault::NoNames)));
    }

    #[test]
    fn other_certificates_must_include_that_of_the_issuer() {
        let key = || rcgen::KeyPair::generate().expect("a key");
        let mut params = rcgen::CertificateParams::new(vec!["gateway.test".to_owned()]).expect("valid");
        params.distinguished_name.push(rcgen::DnType::CommonName, "authority");
        let authority = rcgen::CertifiedIssuer::self_signed(params, key()).expect("signed");
        let leaf_key = key();
        let params = rcgen::CertificateParams::new(vec!["gateway.test".to_owned()]).expect("valid");
        let leaf = params.signed_by(&leaf_key, &authority).expect("signed").der().clone();
        let other = certificate(&["other.test"]).chain()[0].clone();
        let fault = |chain: &[&CertificateDer<'static>]| {
            let chain = chain.iter().map(|one| (*one).clone()).collect();
            let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(leaf_key.serialize_der()));
            let pair = CertifiedKey::from_der(chain, key, &provider()).expect("a pair");
            Certificate::new(pair).expect("readable").status(SystemTime::now()).fault
        };
        assert_eq!(fault(&[&leaf]), None, "a root may have issued it");
        assert_eq!(fault(&[&leaf, &other, authority.der()]), None);
        let missing = fault(&[&leaf, &other]).map(|fault| fault.to_string()).unwrap_or_default();
        assert!(missing.starts_with("comes without the certificate of its issuer (CN=authority)"), "{missing}");
    }

    #[test]
    fn exact_names_precede_wildcards_and_the_default() {
        let all = [&["default.test"][..], &["*.example.com"], &["api.example.com"], &["*.example.com"]];
        let all = Certificates::new(all.iter().map(|names| certificate(names)).collect());
        let index = |name| {
            let chosen = all.choose(name);
            all.all().iter().position(|other| std::ptr::eq(other, chosen))
        };
        for (name, expected) in [
            (Some("default.test"), 0),
            (Some("api.example.com"), 2),
            (Some("www.example.com"), 1),
            (Some("a.www.example.com"), 0),
            (Some("example.com"), 0),
            (Some("elsewhere.test"), 0),
            (None, 0),
        ] {
            assert_eq!(index(name), Some(expected), "{name:?}");
        }
    }
}
