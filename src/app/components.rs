//! Builds the components that depend on files, at start and for a reload. Everything is loaded and checked before any
//! of it is used.

use std::sync::Arc;

use tracing::{info, warn};

use crate::app::StartError;
use crate::auth::{Auth, ReloadInvalidation};
use crate::base::clock::Clock;
use crate::config::changes::Changes;
use crate::config::options::{LOG, UPSTREAM};
use crate::config::{Config, LimitOptions, Problem};
use crate::gateway::snapshot::Snapshot;
use crate::observability::log::{self, label};
use crate::os::fd_limit;
use crate::tls::{self, PreparedTls, SelfSigned, ServerTls, TlsError, TlsReloader};
use crate::upstream::{Backends, TlsChange};

/// The components at start.
pub(super) struct Components {
    pub auth: Arc<Auth>,
    pub tls: Option<(TlsReloader, ServerTls)>,
    /// The self-signed certificate, if one was created.
    pub certificate_pem: Option<String>,
    pub backends: Arc<Backends>,
}

/// Loads the files of the configuration and reports all errors, without binding any listener.
pub fn check(config: &Config) -> Result<(), StartError> {
    load(config, &Clock::system()).map(drop)
}

pub(super) fn load(config: &Config, clock: &Clock) -> Result<Components, StartError> {
    let mut problems = Vec::new();
    let auth = Auth::new(config, clock).map_err(|errors| problems.extend(errors)).ok();
    let upstream_tls = tls::backend_tls(&config.upstream);
    let upstream_tls = upstream_tls.map_err(|error| problems.push(problem(&error))).ok();
    let server_tls = server_tls(config).map_err(|error| problems.push(problem(&error))).ok();
    match (auth, upstream_tls, server_tls) {
        (Some(auth), Some(upstream_tls), Some((tls, certificate_pem))) => {
            let backends = Backends::new(config.upstream.clone(), upstream_tls, config.workers);
            Ok(Components { auth: Arc::new(auth), tls, certificate_pem, backends })
        }
        _ => Err(StartError::Files(problems)),
    }
}

/// The components of a changed configuration, before any of them is active.
pub(super) struct NewComponents {
    auth: Auth,
    backends: Arc<Backends>,
    tls: Option<PreparedTls>,
}

impl NewComponents {
    /// Builds the components of a changed configuration. Those that the changes do not affect are shared with
    /// `current`.
    pub fn build(
        config: &Config,
        changes: &Changes,
        current: &Snapshot,
        tls: Option<&TlsReloader>,
        clock: &Clock,
    ) -> Result<NewComponents, Vec<Problem>> {
        let mut problems = Vec::new();
        let auth = current.auth.rebuild(config, changes, clock);
        let auth = auth.map_err(|errors| problems.extend(errors)).ok();
        let backends = rebuild_backends(config, changes, &current.backends);
        let backends = backends.map_err(|error| problems.push(problem(&error))).ok();
        let tls = prepare_tls(config, tls).map_err(|error| problems.push(problem(&error))).ok();
        match (auth, backends, tls) {
            (Some(auth), Some(backends), Some(tls)) => Ok(NewComponents { auth, backends, tls }),
            _ => Err(problems),
        }
    }

    /// Activates the components, and revokes the tokens that the configuration invalidates.
    pub fn activate(
        mut self,
        config: Config,
        changes: &Changes,
        current: &Snapshot,
        tls: Option<&mut TlsReloader>,
    ) -> Arc<Snapshot> {
        if let (Some(reloader), Some(prepared)) = (tls, self.tls) {
            reloader.apply(prepared);
        }
        log_revoked_tokens(&self.auth.take_over(&config, (&current.auth, &current.config)));
        if changes.has_any_of(&[LOG.level.key]) {
            log::set_level(config.log.level);
        }
        let admission = current.admission.with_limits(effective_limits(&config), &config.limit_rules);
        Arc::new(Snapshot {
            config: Arc::new(config),
            auth: Arc::new(self.auth),
            admission: Arc::new(admission),
            backends: self.backends,
        })
    }
}

fn problem(error: &TlsError) -> Problem {
    Problem::new(error.option(), error.to_string())
}

/// The backends of a changed configuration: the same ones, unless an option of theirs has changed.
fn rebuild_backends(config: &Config, changes: &Changes, current: &Arc<Backends>) -> Result<Arc<Backends>, TlsError> {
    if !changes.has_any_of(&["upstream"]) {
        return Ok(Arc::clone(current));
    }
    let tls = tls::backend_tls(&config.upstream)?;
    let has_other_tls = changes.has_any_of(&[
        UPSTREAM.ca_file.key,
        UPSTREAM.client_cert_file.key,
        UPSTREAM.client_key_file.key,
        UPSTREAM.server_name.key,
    ]);
    let tls_change = if has_other_tls { TlsChange::Changed } else { TlsChange::Unchanged };
    Ok(current.with_options(config.upstream.clone(), tls, config.workers, tls_change))
}

/// Loads TLS with clients; `None` if HTTPS is disabled.
fn prepare_tls(config: &Config, reloader: Option<&TlsReloader>) -> Result<Option<PreparedTls>, TlsError> {
    let Some(reloader) = reloader else { return Ok(None) };
    let self_signed = if reloader.is_self_signed() { None } else { self_signed_certificate(config)? };
    reloader.prepare(config.tls.clone(), self_signed).map(Some)
}

/// Logs the tokens that a new configuration has revoked.
fn log_revoked_tokens(tokens: &ReloadInvalidation) {
    let scope = match tokens {
        ReloadInvalidation::None => return,
        ReloadInvalidation::Users(users) => format!("of {} users", users.len()),
        ReloadInvalidation::All => "all".to_owned(),
    };
    log::write_audit(|record| {
        record.text(label!("what"), "revocation");
        record.text(label!("decision"), "done");
        record.text(label!("tokens"), &scope);
        record.text(label!("by"), "reload");
    });
    match tokens {
        ReloadInvalidation::All => warn!(
            "the authority that verifies logins has changed, or the backend that receives the tokens' upstream keys: all \
             existing tokens were revoked"
        ),
        _ => info!(what = scope, "tokens were revoked"),
    }
}

/// The TLS configuration for clients, if HTTPS is enabled, and the PEM of a self-signed certificate.
type ServerTlsParts = (Option<(TlsReloader, ServerTls)>, Option<String>);

fn server_tls(config: &Config) -> Result<ServerTlsParts, TlsError> {
    if config.listen.https.is_none() {
        return Ok((None, None));
    }
    let self_signed = self_signed_certificate(config)?;
    let pem = self_signed.as_ref().map(|certificate| certificate.certificate_pem.clone());
    Ok((Some(TlsReloader::start(config.tls.clone(), self_signed)?), pem))
}

/// Creates a self-signed certificate if HTTPS is enabled and no certificate is configured.
fn self_signed_certificate(config: &Config) -> Result<Option<SelfSigned>, TlsError> {
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
