//! Client certificates: which ones are accepted, and which identity they prove. It knows nothing about routes.

use std::sync::Arc;
use std::time::SystemTime;

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::base::clock;
use crate::base::hex;
use crate::config::ClientAuth;
use crate::tls::certificates::alternative_names;
use crate::tls::{TlsError, provider, setup_error};

/// Maximum length of an identity; a longer name is replaced by the fingerprint of the certificate.
const MAX_IDENTITY_LENGTH: usize = 256;

/// A verifier that accepts certificates issued by `roots`, and clients without a certificate unless one is required. A
/// certificate of a different authority always fails the handshake.
pub fn client_verifier(roots: RootCertStore, auth: &ClientAuth) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider());
    let builder = if auth.required { builder } else { builder.allow_unauthenticated() };
    builder.build().map_err(setup_error)
}

/// The names of the subject and the issuer of a certificate that a different one has issued, and not as an authority.
///
/// SECURITY: webpki does not check whether a trust anchor may issue certificates. Such an anchor never matches its own
/// certificate, but the holder of its key could issue certificates for all clients.
pub fn leaf_names(der: &CertificateDer<'_>) -> Option<(String, String)> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let is_leaf = !certificate.is_ca() && certificate.subject() != certificate.issuer();
    is_leaf.then(|| (certificate.subject().to_string(), certificate.issuer().to_string()))
}

/// A certificate that was verified at the handshake is not valid now.
#[derive(Debug, thiserror::Error)]
pub enum ClientCertificateError {
    /// It has expired since.
    #[error("the client's certificate has expired")]
    Expired,
    /// It cannot be parsed.
    #[error("the client's certificate cannot be parsed: {0}")]
    Unreadable(String),
}

/// The identity that a verified chain proves: the common name of the subject; without one, the first alternative name
/// that is a DNS name, a URI or an email address; without one, `sha256:` and the fingerprint of the certificate.
///
/// SECURITY: a resumed session has the chain that was verified when the session began, possibly hours ago. It is not
/// verified again, so its expiry is checked here.
pub fn identity(chain: &[CertificateDer<'_>], now: SystemTime) -> Result<String, ClientCertificateError> {
    let der = chain.first().ok_or_else(|| ClientCertificateError::Unreadable("an empty chain".to_owned()))?;
    let (_, leaf) =
        X509Certificate::from_der(der).map_err(|error| ClientCertificateError::Unreadable(error.to_string()))?;
    let now = clock::since_epoch(now).as_secs();
    if i64::try_from(now).unwrap_or(i64::MAX) > leaf.validity().not_after.timestamp() {
        return Err(ClientCertificateError::Expired);
    }
    let common = leaf.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
    let name = common.filter(|name| !name.is_empty()).or_else(|| {
        alternative_names(&leaf).iter().find_map(|name| match name {
            GeneralName::DNSName(name) | GeneralName::URI(name) | GeneralName::RFC822Name(name) => Some(*name),
            _ => None,
        })
    });
    // SECURITY: the name is logged and must stay one word on one line.
    let plain = |name: &&str| name.len() <= MAX_IDENTITY_LENGTH && !name.chars().any(char::is_control);
    Ok(name.filter(plain).map_or_else(|| format!("sha256:{}", fingerprint(der)), str::to_owned))
}

/// The SHA-256 of a certificate in hex, as `openssl x509 -fingerprint -sha256` prints it without colons.
pub fn fingerprint(der: &[u8]) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, der);
    hex::encode(digest.as_ref())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{
        BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, SanType, date_time_ymd,
    };
    use std::time::Duration;

    fn client(common: Option<&str>, names: Vec<SanType>) -> CertificateDer<'static> {
        let mut params = CertificateParams::new(Vec::new()).expect("valid");
        params.distinguished_name = DistinguishedName::new();
        if let Some(name) = common {
            params.distinguished_name.push(DnType::CommonName, name);
        }
        params.subject_alt_names = names;
        params.not_after = date_time_ymd(2050, 1, 1);
        params.self_signed(&KeyPair::generate().expect("a key")).expect("signed").der().clone()
    }

    fn named(common: Option<&str>, names: Vec<SanType>) -> String {
        identity(&[client(common, names)], SystemTime::now()).expect("readable")
    }

    #[test]
    fn the_common_name_precedes_alternative_names() {
        let uri = || SanType::URI("spiffe://cluster/ns/a".try_into().expect("ASCII"));
        let email = || SanType::Rfc822Name("a@example.com".try_into().expect("ASCII"));
        let address = || SanType::IpAddress([192, 0, 2, 1].into());
        assert_eq!(named(Some("etl job"), vec![uri()]), "etl job");
        assert_eq!(named(None, vec![address(), uri(), email()]), "spiffe://cluster/ns/a");
        assert_eq!(named(None, vec![email()]), "a@example.com");
        assert_eq!(named(Some(""), vec![email()]), "a@example.com");
    }

    #[test]
    fn unusable_names_are_replaced_by_the_fingerprint() {
        for common in ["a\nb", "a\u{1b}[2J", &"x".repeat(257)] {
            let name = named(Some(common), Vec::new());
            assert!(name.starts_with("sha256:") && name.len() == 7 + 64, "{name}");
        }
        assert!(named(None, Vec::new()).starts_with("sha256:"));
    }

    #[test]
    fn only_issued_certificates_without_the_right_to_issue_are_leaves() {
        let key = KeyPair::generate().expect("a key");
        let params = |name: &str, is_ca: IsCa| {
            let mut params = CertificateParams::new(Vec::new()).expect("valid");
            params.distinguished_name = DistinguishedName::new();
            params.distinguished_name.push(DnType::CommonName, name);
            params.is_ca = is_ca;
            params
        };
        let authority = || IsCa::Ca(BasicConstraints::Unconstrained);
        let root = Issuer::new(params("root", authority()), &key);
        let issued = |is_ca| params("one", is_ca).signed_by(&key, &root).expect("signed").der().clone();
        let names = |subject: &str, issuer: &str| Some((subject.to_owned(), issuer.to_owned()));
        assert_eq!(leaf_names(&issued(IsCa::NoCa)), names("CN=one", "CN=root"));
        assert_eq!(leaf_names(&issued(IsCa::ExplicitNoCa)), names("CN=one", "CN=root"));
        assert_eq!(leaf_names(&issued(authority())), None);
        // A client's own certificate works as its authority.
        assert_eq!(leaf_names(&client(Some("a"), Vec::new())), None);
    }

    #[test]
    fn an_expired_certificate_is_rejected() {
        let chain = [client(Some("a"), Vec::new())];
        let later = SystemTime::UNIX_EPOCH + Duration::from_secs(2_600_000_000);
        assert!(matches!(identity(&chain, later), Err(ClientCertificateError::Expired)));
        assert!(matches!(identity(&[], later), Err(ClientCertificateError::Unreadable(_))));
    }
}
