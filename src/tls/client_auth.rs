//! Clients' certificates: who may show one, and whom it says that the client is.

use std::sync::Arc;
use std::time::SystemTime;

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::base::hex;
use crate::tls::certificates::alternative_names;
use crate::tls::{TlsError, provider, setup_error};

/// Longest identity; a longer name is replaced by the certificate's fingerprint.
const MAX_IDENTITY_LENGTH: usize = 256;

/// Who is let in: with a certificate of these authorities, and if it is not `required` without any. A certificate of
/// another authority fails the handshake either way.
pub fn client_verifier(
    roots: RootCertStore,
    required: bool,
) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider());
    let builder = if required { builder } else { builder.allow_unauthenticated() };
    builder.build().map_err(setup_error)
}

/// Why a certificate that was once verified counts no longer.
#[derive(Debug, thiserror::Error)]
pub enum ClientCertificateError {
    /// It has ended since.
    #[error("the client's certificate has expired")]
    Expired,
    /// It cannot be read.
    #[error("the client's certificate cannot be read: {0}")]
    Unreadable(String),
}

/// Whom a verified chain says that the client is: the subject's common name; without one the first alternative name
/// that is a DNS name, a URI or an email address; without one `sha256:` and the certificate's fingerprint.
///
/// SECURITY: a resumed session brings the chain that was verified when it began, hours ago, and nobody verifies it
/// again. That it has not expired since is looked at here.
pub fn identity(chain: &[CertificateDer<'_>], now: SystemTime) -> Result<String, ClientCertificateError> {
    let der = chain.first().ok_or_else(|| ClientCertificateError::Unreadable("an empty chain".to_owned()))?;
    let (_, leaf) = X509Certificate::from_der(der)
        .map_err(|error| ClientCertificateError::Unreadable(error.to_string()))?;
    let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    if i64::try_from(now).unwrap_or(i64::MAX) > leaf.validity().not_after.timestamp() {
        return Err(ClientCertificateError::Expired);
    }
    let common = leaf.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
    let name = common.filter(|name| !name.is_empty()).or_else(|| {
        alternative_names(&leaf).iter().find_map(|name| match name {
            GeneralName::DNSName(name) | GeneralName::URI(name) | GeneralName::RFC822Name(name) => {
                Some(*name)
            }
            _ => None,
        })
    });
    // SECURITY: the name goes to the log, where it must stay one word of one line.
    let plain = |name: &&str| name.len() <= MAX_IDENTITY_LENGTH && !name.chars().any(char::is_control);
    Ok(name.filter(plain).map_or_else(|| format!("sha256:{}", fingerprint(der)), str::to_owned))
}

/// The SHA-256 of a certificate in hex, as `openssl x509 -fingerprint -sha256` has it without colons.
pub fn fingerprint(der: &[u8]) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, der);
    hex::encode(digest.as_ref())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, SanType, date_time_ymd};
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
    fn an_expired_certificate_is_rejected() {
        let chain = [client(Some("a"), Vec::new())];
        let later = SystemTime::UNIX_EPOCH + Duration::from_secs(2_600_000_000);
        assert!(matches!(identity(&chain, later), Err(ClientCertificateError::Expired)));
        assert!(matches!(identity(&[], later), Err(ClientCertificateError::Unreadable(_))));
    }
}
