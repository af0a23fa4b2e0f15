//! Reads the options below HTTP: certificates, client certificates and the PROXY protocol.

use std::path::PathBuf;

use crate::config::choices::{ClientAuthMode, ProxyProtocol};
use crate::config::list_entry::ListEntry;
use crate::config::options::{GLOBAL, LISTEN, TLS};
use crate::config::reader::Reader;
use crate::config::{RouteProfile, TlsMinVersion};

/// TLS of the HTTPS listener.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsOptions {
    /// The first one is the default. Empty: a self-signed one is generated at start.
    pub certificates: Vec<CertificateFiles>,
    /// Client certificates; `None`: they are not requested.
    pub client_auth: Option<ClientAuth>,
    /// Lowest version of TLS that clients may use.
    pub min_version: TlsMinVersion,
    /// Keys of session tickets; `None`: each process has its own.
    pub ticket_keys_file: Option<PathBuf>,
}

/// Client certificates in the TLS handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientAuth {
    /// Certificate authorities (PEM).
    pub ca_file: PathBuf,
    /// Whether a handshake without a certificate fails.
    pub required: bool,
}

/// Paths of a certificate chain and its private key, both PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFiles {
    /// Certificate chain, leaf first.
    pub chain: PathBuf,
    /// Private key.
    pub key: PathBuf,
    /// Keys of the options that name the chain and the private key, for errors.
    pub options: [&'static str; 2],
}

impl Reader<'_> {
    pub(super) fn tls(&mut self) -> Option<TlsOptions> {
        let first = self.certificate(&TLS.cert_file, &TLS.key_file);
        let certificates = first.into_iter().chain(self.rules(&TLS.certificates, certificate)).collect();
        let (client_auth, min_version) = (self.client_auth(), self.get(&TLS.min_version));
        let ticket_keys_file = self.get(&TLS.ticket_keys_file);
        Some(TlsOptions { certificates, client_auth: client_auth?, min_version: min_version?, ticket_keys_file })
    }

    fn client_auth(&mut self) -> Option<Option<ClientAuth>> {
        let mode = self.get(&TLS.client_auth)?;
        let key = TLS.client_ca_file.key;
        match (mode, self.get(&TLS.client_ca_file)) {
            (ClientAuthMode::Off, None) => Some(None),
            (ClientAuthMode::Off, Some(_)) => {
                self.problem(key, "has no effect with tls.client_auth=off; did you mean optional or required?");
                None
            }
            (_, Some(ca_file)) => Some(Some(ClientAuth { ca_file, required: mode == ClientAuthMode::Required })),
            (_, None) => self.missing(key, "is required with tls.client_auth=optional or required"),
        }
    }

    /// SECURITY: a route that requires client certificates while none can be presented is a mistake in access control.
    pub(super) fn require_client_auth_for_routes(&mut self, routes: &[RouteProfile]) {
        let names: Vec<_> =
            routes.iter().filter(|route| route.client_certificate).map(|route| route.name.as_str()).collect();
        if self.get(&TLS.client_auth) == Some(ClientAuthMode::Off) && !names.is_empty() {
            let message = format!(
                "must be optional or required, because these routes have client_certificate: required: {}",
                names.join(", ")
            );
            self.problem(TLS.client_auth.key, message);
        }
    }

    pub(super) fn proxy_protocol(&mut self) -> Option<bool> {
        let required = self.get(&LISTEN.proxy_protocol)? == ProxyProtocol::Required;
        if required && !self.is_set(&GLOBAL.trusted_proxies) {
            let message = "requires trusted_proxies: PROXY protocol headers are accepted from them only";
            self.problem(LISTEN.proxy_protocol.key, message);
        }
        Some(required)
    }
}

fn certificate(mut entry: ListEntry<'_>) -> Option<CertificateFiles> {
    let (chain, key) = (entry.required("cert_file"), entry.required("key_file"));
    let complete = entry.finish();
    let files = CertificateFiles { chain: chain?.into(), key: key?.into(), options: [TLS.certificates.key; 2] };
    complete.then_some(files)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::config::testing::load;

    #[test]
    fn certificates_are_a_list_in_the_file_and_in_a_variable() {
        let file = "tls:\n  cert_file: a.crt\n  key_file: a.key\n  certificates:\n    \
                    - {cert_file: b.crt, key_file: b.key}\n    - cert_file: c.crt\n      key_file: c.key\n";
        let names = |config: Config| {
            let chains = config.tls.certificates.into_iter();
            chains.map(|files| files.chain.display().to_string()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(names(load(file, &[]).expect("valid")), "a.crt b.crt c.crt");
        let variable = [("TLS_CERTIFICATES", "[{cert_file: x.crt, key_file: x.key}]")];
        assert_eq!(names(load("", &variable).expect("valid")), "x.crt");
        for wrong in ["x.crt", "[x.crt]", "[{cert_file: x}]", "[{cert_file: x, key_file: y, other: z}]", "{}"] {
            let error = load("", &[("TLS_CERTIFICATES", wrong)]).expect_err(wrong);
            assert!(error.contains("tls.certificates"), "{error}");
        }
    }

    #[test]
    fn networks_have_no_host_bits() {
        let config = load("trusted_proxies: [10.0.0.0/8, '::1', 192.0.2.7]\n", &[]).expect("valid");
        let shown: Vec<_> = config.trusted_proxies.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["10.0.0.0/8", "::1/128", "192.0.2.7/32"]);
        let config = load("", &[("TRUSTED_PROXIES", "10.0.0.0/8, fd00::/8")]).expect("valid");
        assert_eq!(config.trusted_proxies.len(), 2);
        assert!(load("", &[]).expect("valid").trusted_proxies.is_empty());
        let error = load("", &[("TRUSTED_PROXIES", "10.1.2.3/8")]).expect_err("host bits");
        assert!(error.contains("did you mean 10.0.0.0/8 or 10.1.2.3?"), "{error}");
        for wrong in ["10.1.2.3/8", "all", "10.0.0.0/33", "localhost"] {
            let error = load("", &[("TRUSTED_PROXIES", wrong)]).expect_err(wrong);
            assert!(error.contains("trusted_proxies: must be networks"), "{error}");
        }
    }

    #[test]
    fn settings_that_admit_no_client_or_every_client_are_rejected() {
        for (file, expected) in [
            ("listen: {proxy_protocol: required}", "requires trusted_proxies"),
            ("tls: {client_auth: required}", "tls.client_ca_file: is required"),
            ("tls: {client_ca_file: ca.pem}", "did you mean optional or required"),
            ("tls: {client_auth: 'true', client_ca_file: ca.pem}", "tls.client_auth: must be one of"),
            ("routes: [{name: api, client_certificate: required}]", "because these routes have"),
            (
                "listen: {https: 'off', http: '127.0.0.1:1'}\ntls: {client_ca_file: c, client_auth: required}",
                "has no effect with listen.https=off",
            ),
        ] {
            let error = load(file, &[]).expect_err(file);
            assert!(error.contains(expected), "{file}: {error}");
        }
        let config = load("tls: {client_auth: optional, client_ca_file: ca.pem}", &[]).expect("valid");
        assert_eq!(config.tls.client_auth, Some(ClientAuth { ca_file: "ca.pem".into(), required: false }));
    }
}
