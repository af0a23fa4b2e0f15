//! Generates self-signed certificates, for a start without configured ones.

use std::net::IpAddr;

use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::tls::{TlsError, setup_error};

/// A certificate generated for this process, and its private key.
#[derive(Debug)]
pub struct SelfSigned {
    /// The certificate in PEM, which is its own authority.
    pub certificate_pem: String,
    pub(super) certificate: CertificateDer<'static>,
    pub(super) key: PrivateKeyDer<'static>,
}

/// Generates a certificate for `localhost`, the loopback addresses and these names.
pub fn generate_self_signed(names: &[String]) -> Result<SelfSigned, TlsError> {
    let mut all = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
    for name in names {
        if !name.is_empty() && !all.contains(name) {
            all.push(name.clone());
        }
    }
    let mut params = rcgen::CertificateParams::new(all).map_err(setup_error)?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::CommonName, "timbr-gateway, self-signed");
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    let key = rcgen::KeyPair::generate().map_err(setup_error)?;
    let certificate = params.self_signed(&key).map_err(setup_error)?;
    Ok(SelfSigned {
        certificate_pem: certificate.pem(),
        certificate: certificate.der().clone(),
        key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
    })
}

/// The name for a self-signed certificate of a listener at `address`; `None` for an unspecified address.
pub fn certificate_name_for(address: IpAddr) -> Option<String> {
    (!address.is_unspecified()).then(|| address.to_string())
}

#[cfg(test)]
mod tests {
    use x509_parser::prelude::{FromDer, X509Certificate};

    use super::*;
    use crate::tls::certificates::alternative_names;

    #[test]
    fn a_name_is_in_the_certificate_once() {
        let names = ["", "gateway.test", "127.0.0.1", "gateway.test"].map(str::to_owned);
        let pair = generate_self_signed(&names).expect("generated");
        let (_, certificate) = X509Certificate::from_der(&pair.certificate).expect("valid");
        assert_eq!(alternative_names(&certificate).len(), 4, "and localhost, ::1");
    }
}
