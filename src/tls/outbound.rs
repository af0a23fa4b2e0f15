//! TLS from the gateway to backends and other servers. It is built once, at start or reload.

use std::path::Path;
use std::sync::Arc;

use rustls::client::WantsClientCert;
use rustls::client::WebPkiServerVerifier;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ConfigBuilder, RootCertStore};

use crate::config::UpstreamOptions;
use crate::config::options::UPSTREAM;
use crate::tls::pem_files::{load_pair, load_roots};
use crate::tls::{TlsError, pair_error, provider, setup_error};

/// The TLS configuration for one server.
#[derive(Clone, Debug)]
pub struct OutboundTls {
    /// Trusted authorities and the optional client certificate.
    pub config: Arc<ClientConfig>,
    /// The name that the certificate of the server must contain.
    pub server_name: ServerName<'static>,
}

/// The configuration for each backend, in the sequence of the configuration; `None` for backends without TLS.
pub fn backend_tls(options: &UpstreamOptions) -> Result<Vec<Option<OutboundTls>>, TlsError> {
    if !options.tls() {
        return Ok(vec![None; options.urls.len()]);
    }
    let builder = config_builder(options.ca_file.as_deref(), UPSTREAM.ca_file.key)?;
    let config = match &options.client_certificate {
        None => builder.with_no_client_auth(),
        Some(files) => {
            let (chain, key) = load_pair(files)?;
            builder.with_client_auth_cert(chain.clone(), key).map_err(|error| pair_error(files, &chain, &error))?
        }
    };
    let config = with_http1_alpn(config);
    let name_of = |host| options.server_name.as_ref().unwrap_or(host);
    let each = options.urls.iter().map(|url| with_server_name(Arc::clone(&config), name_of(&url.host)).map(Some));
    each.collect()
}

/// The configuration for a server other than a backend. `ca_file` replaces the authorities of the system, and `option`
/// is the name of its option for errors.
pub fn client_tls(host: &str, ca_file: Option<&Path>, option: &'static str) -> Result<OutboundTls, TlsError> {
    with_server_name(with_http1_alpn(config_builder(ca_file, option)?.with_no_client_auth()), host)
}

/// A configuration without a client certificate, for libraries that manage names and sockets themselves.
pub fn trust_only_config(ca_file: Option<&Path>, option: &'static str) -> Result<ClientConfig, TlsError> {
    Ok(config_builder(ca_file, option)?.with_no_client_auth())
}

fn config_builder(
    ca_file: Option<&Path>,
    option: &'static str,
) -> Result<ConfigBuilder<ClientConfig, WantsClientCert>, TlsError> {
    let roots = match ca_file {
        Some(path) => load_roots(path, option)?,
        None => load_system_roots()?,
    };
    let verifier =
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider()).build().map_err(setup_error)?;
    Ok(ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(setup_error)?
        .with_webpki_verifier(verifier))
}

fn with_http1_alpn(mut config: ClientConfig) -> Arc<ClientConfig> {
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Arc::new(config)
}

fn with_server_name(config: Arc<ClientConfig>, name: &str) -> Result<OutboundTls, TlsError> {
    let server_name = ServerName::try_from(name.to_owned()).map_err(|_| TlsError::ServerName(name.to_owned()))?;
    Ok(OutboundTls { config, server_name })
}

fn load_system_roots() -> Result<RootCertStore, TlsError> {
    let loaded = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    // Systems contain authorities that webpki cannot parse; the others are still used.
    let (added, _) = roots.add_parsable_certificates(loaded.certs);
    if added == 0 {
        let reasons: Vec<_> = loaded.errors.iter().map(ToString::to_string).collect();
        let reason = if reasons.is_empty() { "none found".to_owned() } else { reasons.join("; ") };
        return Err(TlsError::NoSystemRoots(reason));
    }
    Ok(roots)
}
