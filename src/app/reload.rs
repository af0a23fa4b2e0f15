//! Another reading of the configuration: built whole beside the one in force, and put in its place whole, or refused.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::{error, info, warn};

use crate::app::components::{self, effective_limits};
use crate::app::worker::Snapshot;
use crate::auth::InvalidatedTokens;
use crate::base::clock::Clock;
use crate::base::watched_files::FileWatch;
use crate::config::changes::{Changes, LoadedSettings};
use crate::config::options::{LOG, UPSTREAM};
use crate::config::{self, Config, Problem, Sources};
use crate::observability::log::{self, label};
use crate::tls::{self, PreparedTls, TlsError, TlsReloader};
use crate::upstream::{Backends, TlsChange};

/// What cannot be used is tried again so often; it may be waiting for a file that comes later.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);

/// Looks after everything that was read, and reads it again. It blocks on the file system.
pub(super) struct ConfigReloader {
    /// `None`: nothing but files that are looked after one by one can be read again.
    source: Option<(Sources, LoadedSettings)>,
    /// What was read last and is in force but for what needs a restart.
    last_read: Option<LoadedSettings>,
    current: Arc<Snapshot>,
    tls_reloader: Option<TlsReloader>,
    watch: FileWatch,
    failed_at: Option<Instant>,
    clock: Clock,
}

/// A configuration that came into force.
pub(super) struct AppliedConfig {
    pub snapshot: Arc<Snapshot>,
    /// The options that changed.
    pub changed: Vec<&'static str>,
    /// Those among them that take effect with a restart.
    pub needs_restart: Vec<&'static str>,
}

/// What one look came to.
pub(super) enum ReloadOutcome {
    /// Nothing is new.
    Unchanged,
    /// Another configuration is ready, and the workers are to be told of it.
    Applied(AppliedConfig),
    /// Everything that is wrong with it. What was in force still is.
    Rejected(Vec<Problem>),
}

/// What a new configuration is made of, before anything of it is in force.
struct NewComponents {
    auth: crate::auth::Auth,
    backends: Arc<Backends>,
    prepared: Option<PreparedTls>,
}

impl ConfigReloader {
    pub fn new(
        source: Option<(Sources, LoadedSettings)>,
        current: Arc<Snapshot>,
        tls_reloader: Option<TlsReloader>,
        clock: Clock,
    ) -> ConfigReloader {
        let last_read = None;
        ConfigReloader {
            source,
            last_read,
            current,
            tls_reloader,
            watch: FileWatch::default(),
            failed_at: None,
            clock,
        }
    }

    /// Says in the log what certificates there are.
    pub fn log_certificates(&mut self) {
        if let Some(reloader) = &mut self.tls_reloader {
            reloader.log_certificates();
        }
    }

    /// Looks at everything, or, if somebody has `asked` for it, reads everything.
    pub fn look(&mut self, asked: bool) -> ReloadOutcome {
        // These are read by themselves: one of them that cannot be used holds up none of the others.
        match &mut self.tls_reloader {
            Some(reloader) if asked => reloader.reload(),
            Some(reloader) => reloader.reload_if_changed(),
            None => {}
        }
        self.current.auth.reload_files(asked);
        if asked {
            self.watch.reset();
            let outcome = self.reload(true);
            self.failed_at = None;
            if let ReloadOutcome::Rejected(problems) = &outcome {
                // Who has asked is told, and the next look tells nobody again.
                self.record_failure(problems);
            }
            return outcome;
        }
        if self.failed_at.is_some_and(|at| at.elapsed() < RETRY_INTERVAL) {
            return ReloadOutcome::Unchanged;
        }
        let Some((_, reading)) = &self.source else { return ReloadOutcome::Unchanged };
        let files = reading.files();
        let Some(stamps) = self.watch.changed(files.iter().map(PathBuf::as_path)) else {
            return ReloadOutcome::Unchanged;
        };
        let outcome = self.reload(false);
        match &outcome {
            ReloadOutcome::Rejected(problems) => {
                // What is known already is neither told nor counted again.
                if !self.record_failure(problems) {
                    return ReloadOutcome::Unchanged;
                }
            }
            ReloadOutcome::Unchanged | ReloadOutcome::Applied(_) => {
                self.failed_at = None;
                if self.watch.record_success(stamps) {
                    info!("the configuration is in order again");
                }
            }
        }
        outcome
    }

    /// Whether certificates cannot be used as they are in their files.
    pub fn has_unusable_certificates(&self) -> bool {
        self.tls_reloader.as_ref().is_some_and(TlsReloader::is_failing)
    }

    /// Names of the certificates in use, and when they end.
    pub fn certificate_expiries(&self) -> Option<Vec<(String, i64)>> {
        self.tls_reloader.as_ref().map(TlsReloader::expiries)
    }

    /// What is in force.
    pub fn current(&self) -> &Arc<Snapshot> {
        &self.current
    }

    /// Whether these are news.
    fn record_failure(&mut self, problems: &[Problem]) -> bool {
        self.failed_at = Some(Instant::now());
        let message: String = problems.iter().map(|problem| format!("{problem}\n")).collect();
        self.watch.record_failure(&message)
    }

    fn reload(&mut self, asked: bool) -> ReloadOutcome {
        let Some((sources, before)) = &self.source else { return ReloadOutcome::Unchanged };
        let (mut config, settings) = match config::load(sources) {
            Ok(loaded) => loaded,
            Err(problems) => return ReloadOutcome::Rejected(problems),
        };
        let reading = LoadedSettings::new(settings);
        // What was held differs from what is in force until the restart, and is no news.
        let last = self.last_read.as_ref().unwrap_or(before);
        if reading.changes(last).is_empty() && !asked {
            return ReloadOutcome::Unchanged;
        }
        let changes = reading.changes(before);
        let needs_restart = changes.defer_fixed_options(&mut config, &self.current.config);
        let built = match self.build(&config, &changes) {
            Ok(built) => built,
            Err(problems) => return ReloadOutcome::Rejected(problems),
        };
        self.last_read = Some(reading.clone());
        let reading = reading.retain_previous(&needs_restart, before);
        if let Some((_, before)) = &mut self.source {
            *before = reading;
        }
        let revision = self.activate(config, &changes, built);
        ReloadOutcome::Applied(AppliedConfig {
            snapshot: revision,
            changed: changes.keys().collect(),
            needs_restart,
        })
    }

    fn build(&self, config: &Config, changes: &Changes) -> Result<NewComponents, Vec<Problem>> {
        let mut problems = Vec::new();
        let told = |error: TlsError| Problem::new(error.option(), error.to_string());
        let auth = self.current.auth.rebuild(config, changes, &self.clock);
        let auth = auth.map_err(|found| problems.extend(found)).ok();
        let backends = self.backends(config, changes).map_err(|error| problems.push(told(error))).ok();
        let prepared = self.prepare(config).map_err(|error| problems.push(told(error))).ok();
        match (auth, backends, prepared) {
            (Some(auth), Some(backends), Some(prepared)) => Ok(NewComponents { auth, backends, prepared }),
            _ => Err(problems),
        }
    }

    /// The same ones, unless something about them has changed.
    fn backends(&self, config: &Config, changes: &Changes) -> Result<Arc<Backends>, TlsError> {
        if !changes.has_any_of(&["upstream"]) {
            return Ok(Arc::clone(&self.current.backends));
        }
        let tls = tls::backend_tls(&config.upstream)?;
        let has_other_tls = changes.has_any_of(&[
            UPSTREAM.ca_file.key,
            UPSTREAM.client_cert_file.key,
            UPSTREAM.client_key_file.key,
            UPSTREAM.server_name.key,
        ]);
        let tls_change = if has_other_tls { TlsChange::Changed } else { TlsChange::Unchanged };
        Ok(self.current.backends.with_options(config.upstream.clone(), tls, config.workers, tls_change))
    }

    /// How to speak TLS with clients, where that is done at all.
    fn prepare(&self, config: &Config) -> Result<Option<PreparedTls>, TlsError> {
        let Some(reloader) = &self.tls_reloader else { return Ok(None) };
        let own = if reloader.is_self_signed() { None } else { components::self_signed_certificate(config)? };
        reloader.prepare(config.tls.clone(), own).map(Some)
    }

    fn activate(&mut self, config: Config, changes: &Changes, built: NewComponents) -> Arc<Snapshot> {
        let NewComponents { mut auth, backends, prepared } = built;
        if let (Some(reloader), Some(prepared)) = (&mut self.tls_reloader, prepared) {
            reloader.apply(prepared);
        }
        let ended = auth.take_over(&config, (&self.current.auth, &self.current.config));
        log_revoked_tokens(&ended);
        if changes.has_any_of(&[LOG.level.key]) {
            log::set_level(config.log.level);
        }
        let admission = self.current.admission.with_limits(effective_limits(&config));
        self.current = Arc::new(Snapshot {
            config: Arc::new(config),
            auth: Arc::new(auth),
            admission: Arc::new(admission),
            backends,
        });
        Arc::clone(&self.current)
    }
}

/// Tells the logs of tokens that ended with the configuration that was in force.
fn log_revoked_tokens(ended: &InvalidatedTokens) {
    let told = match ended {
        InvalidatedTokens::None => return,
        InvalidatedTokens::Users(users) => format!("of {} users", users.len()),
        InvalidatedTokens::All => "all".to_owned(),
    };
    log::write_audit(|record| {
        record.text(label!("what"), "revocation");
        record.text(label!("decision"), "done");
        record.text(label!("tokens"), &told);
        record.text(label!("by"), "reload");
    });
    match ended {
        InvalidatedTokens::All => warn!(
            "logins are verified by somebody else from now on, or another backend would be shown their keys: all tokens \
             that were given before have ended"
        ),
        _ => info!(what = told, "tokens were revoked"),
    }
}

/// Tells the log of a configuration that came into force, or did not.
pub(super) fn log_outcome(by: &str, outcome: &ReloadOutcome) {
    match outcome {
        ReloadOutcome::Unchanged => {}
        ReloadOutcome::Applied(AppliedConfig { changed, needs_restart, .. }) => {
            info!(by, changed = changed.join(" "), "the configuration was read again and is in force");
            if !needs_restart.is_empty() {
                warn!(
                    options = needs_restart.join(" "),
                    "these options have other values now, which take effect with a restart"
                );
            }
        }
        ReloadOutcome::Rejected(problems) => {
            for Problem { subject, message } in problems {
                error!(option = subject, "{message}");
            }
            error!(
                by,
                problems = problems.len(),
                "the configuration was read again and cannot be used; the one before stays in force"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::admission::Admission;
    use crate::observability::metrics::Metrics;

    const SALT: &str = "cw_0x689RpI-jtRR7oE8h_eQsKImvJapLeSbXpwF4e4=";

    fn write(file: &Path, more: &str) {
        let text = format!("api_auth_salt: \"{SALT}\"\nupstream: {{url: \"http://127.0.0.1:1\"}}\n{more}");
        std::fs::write(file, text).expect("written");
    }

    /// Looks after a configuration file; the test is over before that counts as one that is not being written.
    fn keeper(file: &Path) -> ConfigReloader {
        write(file, "");
        let sources = Sources { file: Some(file.to_owned()), ..Sources::default() };
        let (config, settings) = config::load(&sources).expect("valid");
        let clock = Clock::system();
        let auth = crate::auth::Auth::new(&config, &clock).expect("no file is named");
        let backends = Backends::new(config.upstream.clone(), vec![None], 1);
        let admission = Admission::new(config.limits, Arc::<Metrics>::default());
        let revision = Snapshot {
            config: Arc::new(config),
            auth: Arc::new(auth),
            admission: Arc::new(admission),
            backends,
        };
        ConfigReloader::new(Some((sources, LoadedSettings::new(settings))), Arc::new(revision), None, clock)
    }

    fn restarts(outcome: ReloadOutcome) -> Option<Vec<&'static str>> {
        match outcome {
            ReloadOutcome::Unchanged => None,
            ReloadOutcome::Applied(AppliedConfig { needs_restart, .. }) => Some(needs_restart),
            ReloadOutcome::Rejected(problems) => panic!("{problems:?}"),
        }
    }

    #[test]
    fn what_waits_for_a_restart_is_news_once() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("gateway.yaml");
        let mut keeper = keeper(&file);
        assert_eq!(restarts(keeper.look(false)), None);
        write(&file, "workers: 7\n");
        assert_eq!(restarts(keeper.look(false)), Some(vec!["workers"]));
        assert_eq!(restarts(keeper.look(false)), None);
        write(&file, "workers: 8\n");
        assert_eq!(restarts(keeper.look(false)), Some(vec!["workers"]), "another value");
        assert_eq!(restarts(keeper.look(true)), Some(vec!["workers"]), "who asks is told each time");
        assert_eq!(restarts(keeper.look(false)), None);
        write(&file, "workers: 8\nlimits: {uri: 300B}\n");
        assert_eq!(restarts(keeper.look(false)), Some(vec!["workers"]));
        assert_eq!(restarts(keeper.look(false)), None);
        write(&file, "limits: {uri: 300B}\n");
        assert_eq!(restarts(keeper.look(false)), Some(vec![]), "no restart is needed any more");
        assert_eq!(restarts(keeper.look(false)), None);
    }

    #[test]
    fn who_asked_is_told_what_is_wrong_and_the_next_looks_tell_nobody_again() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("gateway.yaml");
        let mut keeper = keeper(&file);
        write(&file, "nonsense: 1\n");
        for _ in 0..2 {
            assert!(matches!(keeper.look(true), ReloadOutcome::Rejected(_)), "each who asks is told");
            assert!(matches!(keeper.look(false), ReloadOutcome::Unchanged));
            // As it is when it is tried again.
            keeper.failed_at = None;
            assert!(matches!(keeper.look(false), ReloadOutcome::Unchanged));
        }
        write(&file, "workers: 7\n");
        assert!(matches!(keeper.look(true), ReloadOutcome::Applied(_)));
        assert!(keeper.failed_at.is_none() && !keeper.watch.is_failing());
    }
}
