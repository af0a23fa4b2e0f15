//! Certificates for tests.

use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

/// A certificate authority and a folder for the certificates that it issues.
pub struct Pki {
    folder: tempfile::TempDir,
    authority: CertifiedIssuer<'static, KeyPair>,
}

impl Pki {
    pub fn new() -> Pki {
        let mut params = CertificateParams::new(Vec::new()).expect("valid");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, "the test's authority");
        let key = KeyPair::generate().expect("a key");
        let authority = CertifiedIssuer::self_signed(params, key).expect("signed");
        let pki = Pki { folder: tempfile::tempdir().expect("a folder"), authority };
        std::fs::write(pki.ca_file(), pki.authority.pem()).expect("written");
        pki
    }

    pub fn ca_file(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// The folder with all files.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn ca_pem(&self) -> String {
        self.authority.pem()
    }

    /// Issues a certificate for this name, as files for certificate and key.
    pub fn issue(&self, name: &str) -> (PathBuf, PathBuf) {
        self.issue_as(name, &[name])
    }

    /// Issues a certificate for these names, as files with this name.
    pub fn issue_as(&self, file: &str, names: &[&str]) -> (PathBuf, PathBuf) {
        let key = KeyPair::generate().expect("a key");
        let names: Vec<_> = names.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(names.clone()).expect("valid");
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, names[0].clone());
        params.serial_number = Some(fastrand::u64(1..).into());
        let certificate = params.signed_by(&key, &self.authority).expect("signed");
        let file = |ending| self.folder.path().join(format!("{file}.{ending}"));
        std::fs::write(file("crt"), certificate.pem()).expect("written");
        std::fs::write(file("key"), key.serialize_pem()).expect("written");
        (file("crt"), file("key"))
    }
}
