//! Builds the components that depend on files, at start and for a reload. Everything is loaded and checked before any
//! of it is used.

use std::io;
use std::path::Path;
use std::sync::Arc;

use tracing::{info, warn};

use crate::app::{StartError, audit};
use crate::auth::{Auth, EndedLogins};
use crate::base::clock::Clock;
use crate::base::remedy::with_remedy;
use crate::config::changes::Changes;
use crate::config::options::{AUDIT, AUTH, LOG, STORE, UPSTREAM};
use crate::config::{Config, DEFAULT_UPSTREAM, LimitOptions, Problem, StoreKind};
use crate::gateway::snapshot::Snapshot;
use crate::observability::log::{self, label};
use crate::os::{disk, fd_limit};
use crate::tls::{self, CertificateStatus, PreparedTls, SelfSigned, ServerTls, TlsError, TlsReloader};
use crate::upstream::{Backends, TlsChange};

/// Less free space than this causes a warning.
const MIN_FREE_SPACE: u64 = 64 << 20;

/// The components at start.
pub(super) struct Components {
    pub auth: Arc<Auth>,
    pub tls: Option<(TlsReloader, ServerTls)>,
    /// The self-signed certificate, if one was created.
    pub certificate_pem: Option<String>,
    pub upstreams: Arc<[Arc<Backends>]>,
}

/// Loads the files of the configuration and reports all errors, without binding any listener. Returns warnings about
/// their contents.
pub fn check(config: &Config) -> Result<Vec<Problem>, StartError> {
    let components = load(config, &Clock::system())?;
    let mut warnings: Vec<_> =
        growing_files(config).filter_map(|(key, path, consequence)| low_space(key, path, consequence)).collect();
    if components.auth.has_no_users() {
        warnings.push(Problem::new(AUTH.users_file.key, "has no users: no user can log in"));
    }
    for CertificateStatus { names, fault, .. } in components.tls.iter().flat_map(|(reloader, _)| reloader.statuses()) {
        let warning = |fault| Problem::new("tls", format!("the certificate for {names} {fault}"));
        warnings.extend(fault.map(warning));
    }
    Ok(warnings)
}

/// The files that grow, and what happens when their file system is full.
fn growing_files(config: &Config) -> impl Iterator<Item = (&'static str, &Path, &'static str)> {
    let store = match &config.store.kind {
        StoreKind::File(path) => Some((STORE.path.key, path.as_path(), "logins fail with 503")),
        _ => None,
    };
    let audit = config.audit.file.as_ref();
    let audit = audit.map(|path| (AUDIT.file.key, path.as_path(), "lines of the audit log are lost"));
    store.into_iter().chain(audit)
}

/// A file that grows and cannot be written.
pub(super) fn unwritable(key: &'static str, path: &Path, error: io::Error) -> Problem {
    let message = match error.kind() {
        io::ErrorKind::NotFound => {
            format!("is in the folder {}, which does not exist; create it", disk::folder_of(path).display())
        }
        _ => format!("cannot write {}: {}", path.display(), with_remedy(error)),
    };
    Problem::new(key, message)
}

/// A warning if a file that grows is on a file system that is nearly full.
fn low_space(key: &'static str, path: &Path, consequence: &str) -> Option<Problem> {
    let free = disk::free_space(path).ok().filter(|free| *free < MIN_FREE_SPACE)?;
    let message = format!(
        "is on a file system with {} MiB left: free some space, or move the file; on a full one {consequence}",
        free >> 20
    );
    Some(Problem::new(key, message))
}

pub(super) fn load(config: &Config, clock: &Clock) -> Result<Components, StartError> {
    let mut problems = Vec::new();
    let auth = Auth::new(config, clock).map_err(|errors| problems.extend(errors)).ok();
    let upstreams = load_upstreams(config).map_err(|error| problems.push(error.into())).ok();
    let server_tls = server_tls(config).map_err(|error| problems.push(error.into())).ok();
    problems.extend(audit::check(&config.audit));
    for (key, path, _) in growing_files(config) {
        problems.extend(disk::check_writable(path).err().map(|error| unwritable(key, path, error)));
    }
    match (auth, upstreams, server_tls) {
        (Some(auth), Some(upstreams), Some((tls, certificate_pem))) if problems.is_empty() => {
            Ok(Components { auth: Arc::new(auth), tls, certificate_pem, upstreams })
        }
        _ => Err(StartError::Files(without_duplicates(problems))),
    }
}

/// Two components may read one file, such as the verifier `delegate` and the upstream.
fn without_duplicates(problems: Vec<Problem>) -> Vec<Problem> {
    let mut unique = Vec::with_capacity(problems.len());
    for problem in problems {
        if !unique.contains(&problem) {
            unique.push(problem);
        }
    }
    unique
}

/// The components of a changed configuration, before any of them is active.
pub(super) struct NewComponents {
    auth: Auth,
    upstreams: Arc<[Arc<Backends>]>,
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
        let upstreams = rebuild_upstreams(config, changes, current);
        let upstreams = upstreams.map_err(|error| problems.push(error.into())).ok();
        let tls = prepare_tls(config, tls).map_err(|error| problems.push(error.into())).ok();
        match (auth, upstreams, tls) {
            (Some(auth), Some(upstreams), Some(tls)) => Ok(NewComponents { auth, upstreams, tls }),
            _ => Err(without_duplicates(problems)),
        }
    }

    /// Activates the components. Tokens that the configuration does not accept any more end.
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
        log_ended_tokens(&self.auth.take_over(&config, &current.auth));
        if changes.has_any_of(&[LOG.level.key]) {
            log::set_level(config.log.level);
        }
        let limits = effective_limits(&config);
        let admission = current.admission.with_limits(limits, &config.limit_rules, config.queues());
        Arc::new(Snapshot {
            config: Arc::new(config),
            auth: Arc::new(self.auth),
            admission: Arc::new(admission),
            upstreams: self.upstreams,
        })
    }
}

fn load_upstreams(config: &Config) -> Result<Arc<[Arc<Backends>]>, TlsError> {
    let upstreams = config.all_upstreams().map(|options| {
        let tls = tls::backend_tls(options)?;
        Ok(Backends::new(options.clone(), tls, config.workers))
    });
    upstreams.collect()
}

/// The upstreams of a changed configuration: the same ones, unless an option of theirs or one of their files has
/// changed.
fn rebuild_upstreams(config: &Config, changes: &Changes, current: &Snapshot) -> Result<Arc<[Arc<Backends>]>, TlsError> {
    // Also the key of the named upstreams.
    if !changes.has_any_of(&["upstream"]) {
        return Ok(Arc::clone(&current.upstreams));
    }
    let upstreams = config.all_upstreams().map(|options| {
        let is_default = options.name == DEFAULT_UPSTREAM;
        let mut old = current.config.all_upstreams().zip(current.upstreams.iter());
        let Some((old_options, old)) = old.find(|(old, _)| old.name == options.name) else {
            return Ok(Backends::new(options.clone(), tls::backend_tls(options)?, config.workers));
        };
        if is_default && !changes.has_any_of(&["upstream."]) {
            return Ok(Arc::clone(old));
        }
        let has_other_tls = match is_default {
            true => changes.has_any_of(&[
                UPSTREAM.ca_file.key,
                UPSTREAM.client_cert_file.key,
                UPSTREAM.client_key_file.key,
                UPSTREAM.server_name.key,
            ]),
            // The files of all named upstreams have one hash.
            false => options.tls() && options == old_options || !options.has_same_tls(old_options),
        };
        let tls_change = if has_other_tls { TlsChange::Changed } else { TlsChange::Unchanged };
        Ok(old.with_options(options.clone(), tls::backend_tls(options)?, tls_change))
    });
    upstreams.collect()
}

/// Loads TLS with clients; `None` if HTTPS is disabled.
fn prepare_tls(config: &Config, reloader: Option<&TlsReloader>) -> Result<Option<PreparedTls>, TlsError> {
    let Some(reloader) = reloader else { return Ok(None) };
    let self_signed = if reloader.is_self_signed() { None } else { self_signed_certificate(config)? };
    reloader.prepare(config.tls.clone(), self_signed).map(Some)
}

/// The number of users for which the audit log has a line each when their tokens end together. A new verifier may end
/// the tokens of all users, which would fill the buffer of the log.
const MAX_AUDITED_USERS: usize = 1000;

/// Logs the tokens that ended by a reload.
pub(super) fn log_ended_tokens(ended: &EndedLogins) {
    if ended.tokens == 0 {
        return;
    }
    let scope = format!("{} of {} users", ended.tokens, ended.users.len());
    let audit = |tokens: &str| {
        log::write_audit(|record| {
            record.text(label!("what"), "revocation");
            record.text(label!("decision"), "done");
            record.text(label!("tokens"), tokens);
            record.text(label!("by"), "reload");
        });
    };
    for user in ended.users.iter().take(MAX_AUDITED_USERS) {
        audit(&format!("user {user}"));
    }
    if ended.users.len() > MAX_AUDITED_USERS {
        audit(&scope);
    }
    info!(tokens = scope, "the reload ended tokens: what had proven their logins has changed");
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
    let LimitOptions { connections, requests, .. } = config.limits;
    if most < connections {
        warn!(connections = most, "limits.connections exceeds the limit of open files (ulimit -n) and is reduced");
    }
    // Requests whose clients have left, and those of HTTP/2, may have more connections to the backend than clients.
    LimitOptions { connections: connections.min(most), requests: requests.min(most), ..config.limits }
}

/// The host name of this machine or pod.
pub(super) fn host_name() -> Option<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    let name = name.trim();
    (!name.is_empty()).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_file_system_causes_a_warning() {
        let warning = |path: &str| low_space(STORE.path.key, Path::new(path), "logins fail with 503");
        // It has no space at all.
        let message = warning("/proc/tokens").expect("full").to_string();
        assert!(message.starts_with("store.path: is on a file system with 0 MiB left: free some space"), "{message}");
        assert_eq!(warning("/nonexistent/tokens"), None);
    }
}
