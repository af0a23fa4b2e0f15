//! TLS with an https upstream, made once at start.

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};

use crate::config::UpstreamOptions;
use crate::tls::files::{load_pair, roots_from};
use crate::tls::{TlsError, provider, setup};

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
        Some(path) => roots_from(path, "upstream.ca_file")?,
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
