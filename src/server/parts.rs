//! All that comes from files, loaded and checked before anything of it is used.

use std::sync::Arc;

use crate::auth::Auth;
use crate::clock::Clock;
use crate::config::{Config, Problem};
use crate::server::StartError;
use crate::tls::{self, Reloader, ServerTls, TlsError};
use crate::upstream::Backends;

pub(super) struct Parts {
    pub auth: Arc<Auth>,
    pub tls: Option<(Reloader, ServerTls)>,
    pub certificate_pem: Option<String>,
    pub backends: Arc<Backends>,
}

/// Loads what the configuration names, and tells all that is wrong with it; listens on nothing.
pub fn check(config: &Config) -> Result<(), StartError> {
    load(config, &Clock::system()).map(drop)
}

pub(super) fn load(config: &Config, clock: &Clock) -> Result<Parts, StartError> {
    let mut problems = Vec::new();
    let told = |error: &TlsError| Problem::new(error.option(), error.to_string());
    let auth = Auth::new(config, clock).map_err(|found| problems.extend(found)).ok();
    let upstream_tls = tls::upstream_tls(&config.upstream);
    let upstream_tls = upstream_tls.map_err(|error| problems.push(told(&error))).ok();
    let server_tls = server_tls(config).map_err(|error| problems.push(told(&error))).ok();
    match (auth, upstream_tls, server_tls) {
        (Some(auth), Some(upstream_tls), Some((tls, certificate_pem))) => {
            let backends = Backends::new(config.upstream.clone(), upstream_tls, config.workers);
            Ok(Parts { auth: Arc::new(auth), tls, certificate_pem, backends })
        }
        _ => Err(StartError::Files(problems)),
    }
}

/// How to speak TLS with clients, if at all; and the certificate, if it was made here.
type OwnTls = (Option<(Reloader, ServerTls)>, Option<String>);

fn server_tls(config: &Config) -> Result<OwnTls, TlsError> {
    let Some(address) = config.listen.https else { return Ok((None, None)) };
    let own = if config.tls.certificates.is_empty() {
        let names: Vec<_> = tls::name_of(address.ip()).into_iter().chain(host_name()).collect();
        Some(tls::self_signed(&names)?)
    } else {
        None
    };
    let pem = own.as_ref().map(|own| own.certificate_pem.clone());
    Ok((Some(Reloader::start(config.tls.clone(), own)?), pem))
}

/// The name that Kubernetes and most shells give a machine.
fn host_name() -> Option<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    let name = name.trim();
    (!name.is_empty()).then(|| name.to_owned())
}
