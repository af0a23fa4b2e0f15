//! Builds the components that depend on files, at start and for a reload. Everything is loaded and checked before any of it is used.

use std::sync::Arc;

use tracing::warn;

use crate::app::StartError;
use crate::auth::Auth;
use crate::base::clock::Clock;
use crate::config::{Config, LimitOptions, Problem};
use crate::os::fd_limit;
use crate::tls::{self, SelfSigned, ServerTls, TlsError, TlsReloader};
use crate::upstream::Backends;

pub(super) struct Components {
    pub auth: Arc<Auth>,
    pub tls: Option<(TlsReloader, ServerTls)>,
    pub certificate_pem: Option<String>,
    pub backends: Arc<Backends>,
}

/// Loads the files of the configuration and reports all errors, without binding any listener.
pub fn check(config: &Config) -> Result<(), StartError> {
    load(config, &Clock::system()).map(drop)
}

pub(super) fn load(config: &Config, clock: &Clock) -> Result<Components, StartError> {
    let mut problems = Vec::new();
    let told = |error: &TlsError| Problem::new(error.option(), error.to_string());
    let auth = Auth::new(config, clock).map_err(|found| problems.extend(found)).ok();
    let upstream_tls = tls::backend_tls(&config.upstream);
    let upstream_tls = upstream_tls.map_err(|error| problems.push(told(&error))).ok();
    let server_tls = server_tls(config).map_err(|error| problems.push(told(&error))).ok();
    match (auth, upstream_tls, server_tls) {
        (Some(auth), Some(upstream_tls), Some((tls, certificate_pem))) => {
            let backends = Backends::new(config.upstream.clone(), upstream_tls, config.workers);
            Ok(Components { auth: Arc::new(auth), tls, certificate_pem, backends })
        }
        _ => Err(StartError::Files(problems)),
    }
}

/// The TLS configuration for clients, if HTTPS is enabled, and the PEM of a self-signed certificate.
type ServerTlsParts = (Option<(TlsReloader, ServerTls)>, Option<String>);

fn server_tls(config: &Config) -> Result<ServerTlsParts, TlsError> {
    if config.listen.https.is_none() {
        return Ok((None, None));
    }
    let own = self_signed_certificate(config)?;
    let pem = own.as_ref().map(|own| own.certificate_pem.clone());
    Ok((Some(TlsReloader::start(config.tls.clone(), own)?), pem))
}

/// Creates a self-signed certificate if HTTPS is enabled and no certificate is configured.
pub(super) fn self_signed_certificate(config: &Config) -> Result<Option<SelfSigned>, TlsError> {
    let address = config.listen.https.filter(|_| config.tls.certificates.is_empty());
    let Some(address) = address else { return Ok(None) };
    let names: Vec<_> = tls::certificate_name_for(address.ip()).into_iter().chain(host_name()).collect();
    tls::generate_self_signed(&names).map(Some)
}

/// The configured limits, reduced to what the limit of open files allows.
pub(super) fn effective_limits(config: &Config) -> LimitOptions {
    let most = fd_limit::raise_to_max();
    if most >= config.limits.connections {
        return config.limits;
    }
    warn!(connections = most, "limits.connections exceeds the limit of open files (ulimit -n) and is reduced");
    LimitOptions { connections: most, ..config.limits }
}

/// The host name of this machine or pod.
fn host_name() -> Option<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    let name = name.trim();
    (!name.is_empty()).then(|| name.to_owned())
}
