//! Reloads the configuration: a new one is built completely next to the active one, and either replaces it as a whole
//! or is rejected. It blocks on the file system, and knows nothing about the workers.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::{error, info, warn};

use crate::app::components::{NewComponents, log_ended_tokens};
use crate::auth::FileReload;
use crate::base::clock::Clock;
use crate::base::watched_files::{FileStamps, FileWatch};
use crate::config::changes::LoadedSettings;
use crate::config::{self, Config, Problem, Sources};
use crate::gateway::snapshot::Snapshot;
use crate::tls::TlsReloader;

/// Interval for reading a rejected configuration again, even if its files have not changed: it may refer to a file that
/// is created later.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);

/// Characters of a value in the log: lists of rules can be long.
const MAX_VALUE_IN_LOG: usize = 200;

/// Reads the configuration and all files that it depends on again.
pub(super) struct ConfigReloader {
    /// `None`: only files that are watched separately (certificates, users) can be reloaded.
    source: Option<Source>,
    snapshot: Arc<Snapshot>,
    tls: Option<TlsReloader>,
    watch: FileWatch,
    failed_at: Option<Instant>,
    clock: Clock,
}

/// The sources of the configuration, and the settings read from them.
struct Source {
    sources: Sources,
    active: LoadedSettings,
    /// Differs from `active` in the options that take effect after a restart.
    last_read: LoadedSettings,
}

/// A configuration that has become active.
pub(super) struct AppliedConfig {
    pub snapshot: Arc<Snapshot>,
    /// The options that changed: `limits.uri: 8KiB -> 300B`.
    pub changed: Vec<String>,
    /// Keys of those that take effect after a restart.
    pub needs_restart: Vec<&'static str>,
}

/// The result of a reload: `Ok(None)` if nothing has changed, or all errors of a configuration that was rejected.
pub(super) type ReloadOutcome = Result<Option<AppliedConfig>, Vec<Problem>>;

/// Why the configuration is read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Trigger {
    FileChange,
    Operator,
}

impl ConfigReloader {
    pub fn new(
        source: Option<(Sources, LoadedSettings)>,
        snapshot: Arc<Snapshot>,
        tls: Option<TlsReloader>,
        clock: Clock,
    ) -> ConfigReloader {
        let source = source.map(|(sources, active)| Source { sources, last_read: active.clone(), active });
        ConfigReloader { source, snapshot, tls, watch: FileWatch::default(), failed_at: None, clock }
    }

    /// Reloads everything because an operator requested it, even if no file has changed.
    pub fn reload_now(&mut self) -> ReloadOutcome {
        if let Some(tls) = &mut self.tls {
            tls.reload();
        }
        log_ended_tokens(&self.snapshot.auth.reload_files(FileReload::Always));
        self.watch.reset();
        let outcome = self.load(Trigger::Operator);
        self.failed_at = None;
        if let Err(problems) = &outcome {
            // The operator receives the problems with the response; the next check must not report them again.
            self.record_failure(problems);
        }
        outcome
    }

    /// Reloads what has changed since the last check.
    pub fn reload_if_changed(&mut self) -> ReloadOutcome {
        // These are reloaded separately, so that one unusable file does not block the others.
        if let Some(tls) = &mut self.tls {
            tls.reload_if_changed();
        }
        log_ended_tokens(&self.snapshot.auth.reload_files(FileReload::IfChanged));
        let Some(stamps) = self.changed_files() else { return Ok(None) };
        let outcome = self.load(Trigger::FileChange);
        if let Err(problems) = &outcome {
            // Known problems are neither logged nor counted again.
            return if self.record_failure(problems) { outcome } else { Ok(None) };
        }
        self.failed_at = None;
        self.watch.record_success(stamps);
        outcome
    }

    /// The active configuration.
    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// The reloader of certificates; `None` if HTTPS is disabled.
    pub fn tls(&self) -> Option<&TlsReloader> {
        self.tls.as_ref()
    }

    /// Logs the loaded certificates.
    pub fn log_certificates(&mut self) {
        if let Some(tls) = &mut self.tls {
            tls.log_certificates();
        }
    }

    fn changed_files(&mut self) -> Option<FileStamps> {
        if self.failed_at.is_some_and(|at| at.elapsed() < RETRY_INTERVAL) {
            return None;
        }
        let files = self.source.as_ref()?.active.files();
        self.watch.changed_before(files.iter().map(PathBuf::as_path))
    }

    fn load(&mut self, trigger: Trigger) -> ReloadOutcome {
        let Some(source) = &mut self.source else { return Ok(None) };
        let (mut config, settings) = config::load(&source.sources)?;
        let settings = LoadedSettings::new(settings);
        // A configuration that is valid again is a successful reload, even if it is the active one: otherwise the last
        // reload would count as failed until the next change.
        let is_recovery = self.watch.is_failing();
        if trigger == Trigger::FileChange && !is_recovery && settings.changes(&source.last_read).is_empty() {
            return Ok(None);
        }
        let changes = settings.changes(&source.active);
        let needs_restart = changes.defer_fixed_options(&mut config, &self.snapshot.config);
        let new = NewComponents::build(&config, &changes, &self.snapshot, self.tls.as_ref(), &self.clock)?;
        source.last_read = settings.clone();
        source.active = settings.retain_previous(&needs_restart, &source.active);
        let changed = changes.keys().map(|key| describe_change(key, &self.snapshot.config, &config)).collect();
        self.snapshot = new.activate(config, &changes, &self.snapshot, self.tls.as_mut());
        let snapshot = Arc::clone(&self.snapshot);
        Ok(Some(AppliedConfig { snapshot, changed, needs_restart }))
    }

    /// Returns whether the problems are new.
    fn record_failure(&mut self, problems: &[Problem]) -> bool {
        self.failed_at = Some(Instant::now());
        let message: String = problems.iter().map(|problem| format!("{problem}\n")).collect();
        self.watch.record_failure(&message)
    }
}

/// The key of a changed option with the old and the new value. SECURITY: secrets have no values here.
fn describe_change(key: &str, before: &Config, now: &Config) -> String {
    let value = |config: &Config| {
        let option = config.effective_options.iter().find(|option| option.key == key)?;
        option.value.as_ref().map(|text| text.chars().take(MAX_VALUE_IN_LOG).collect::<String>())
    };
    match (value(before), value(now)) {
        (None, None) => key.to_owned(),
        (before, now) if before == now => key.to_owned(),
        (before, now) => {
            let shown = |value: Option<String>| value.unwrap_or_else(|| "(unset)".to_owned());
            format!("{key}: {} -> {}", shown(before), shown(now))
        }
    }
}

/// Logs the outcome of a reload.
pub(super) fn log_outcome(by: &str, outcome: &ReloadOutcome) {
    match outcome {
        Ok(None) => {}
        Ok(Some(AppliedConfig { changed, needs_restart, .. })) => {
            info!(by, changed = changed.join(", "), "the configuration was reloaded and is active");
            if !needs_restart.is_empty() {
                warn!(options = needs_restart.join(" "), "changed options that take effect after a restart");
            }
        }
        Err(problems) => {
            for Problem { subject, message } in problems {
                error!(option = subject, "{message}");
            }
            error!(by, problems = problems.len(), "the new configuration was rejected; the previous one stays active");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::admission::Admission;
    use crate::observability::metrics::Metrics;
    use crate::upstream::Backends;

    const SALT: &str = "cw_0x689RpI-jtRR7oE8h_eQsKImvJapLeSbXpwF4e4=";

    fn write(file: &Path, more: &str) {
        let text = format!("api_auth_salt: \"{SALT}\"\nupstream: {{url: \"http://127.0.0.1:1\"}}\n{more}");
        std::fs::write(file, text).expect("written");
    }

    /// A reloader of one configuration file. The test ends before the file's change time is old enough to be trusted,
    /// so each check reads the file.
    fn reloader(file: &Path) -> ConfigReloader {
        write(file, "");
        let sources = Sources { file: Some(file.to_owned()), ..Sources::default() };
        let (config, settings) = config::load(&sources).expect("valid");
        let clock = Clock::system();
        let auth = crate::auth::Auth::new(&config, &clock).expect("no file is configured");
        let backends = Backends::new(config.upstream.clone(), vec![None], 1);
        let admission = Admission::new(config.limits, &[], config.queues(), Arc::<Metrics>::default());
        let upstreams = Arc::from([backends]);
        let snapshot =
            Snapshot { config: Arc::new(config), auth: Arc::new(auth), admission: Arc::new(admission), upstreams };
        let source = Some((sources, LoadedSettings::new(settings)));
        ConfigReloader::new(source, Arc::new(snapshot), None, clock)
    }

    /// The options that need a restart, if the configuration was applied.
    fn restarts(outcome: ReloadOutcome) -> Option<Vec<&'static str>> {
        outcome.expect("a valid configuration").map(|applied| applied.needs_restart)
    }

    /// The first check finds a new version, which may still be written, and changes nothing.
    fn check_twice(reloader: &mut ConfigReloader) -> ReloadOutcome {
        let before = Arc::clone(&reloader.snapshot);
        assert!(matches!(reloader.reload_if_changed(), Ok(None)) && Arc::ptr_eq(&before, &reloader.snapshot));
        reloader.reload_if_changed()
    }

    #[test]
    fn options_that_need_a_restart_are_reported_once() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("gateway.yaml");
        let mut reloader = reloader(&file);
        assert_eq!(restarts(check_twice(&mut reloader)), None);
        write(&file, "workers: 7\n");
        assert_eq!(restarts(check_twice(&mut reloader)), Some(vec!["workers"]));
        assert_eq!(restarts(check_twice(&mut reloader)), None);
        write(&file, "workers: 8\n");
        assert_eq!(restarts(check_twice(&mut reloader)), Some(vec!["workers"]), "a different value");
        assert_eq!(restarts(reloader.reload_now()), Some(vec!["workers"]), "each operator receives it");
        assert_eq!(restarts(check_twice(&mut reloader)), None);
        write(&file, "workers: 8\nlimits: {uri: 300B}\n");
        assert_eq!(restarts(check_twice(&mut reloader)), Some(vec!["workers"]));
        assert_eq!(restarts(check_twice(&mut reloader)), None);
        write(&file, "limits: {uri: 300B}\n");
        assert_eq!(restarts(check_twice(&mut reloader)), Some(vec![]), "no restart is needed any more");
        assert_eq!(restarts(check_twice(&mut reloader)), None);
    }

    #[test]
    fn a_mistake_that_is_undone_is_a_successful_reload() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("gateway.yaml");
        let mut reloader = reloader(&file);
        write(&file, "nonsense: 1\n");
        assert!(check_twice(&mut reloader).is_err());
        write(&file, "");
        reloader.failed_at = None;
        assert_eq!(restarts(check_twice(&mut reloader)), Some(vec![]));
        assert_eq!(restarts(check_twice(&mut reloader)), None);
    }

    #[test]
    fn problems_are_reported_to_each_operator_and_not_again_by_checks() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("gateway.yaml");
        let mut reloader = reloader(&file);
        write(&file, "nonsense: 1\n");
        for _ in 0..2 {
            assert!(reloader.reload_now().is_err(), "each operator receives the problems");
            assert!(matches!(reloader.reload_if_changed(), Ok(None)));
            // As after the retry interval.
            reloader.failed_at = None;
            assert!(matches!(reloader.reload_if_changed(), Ok(None)));
        }
        write(&file, "workers: 7\n");
        assert!(matches!(reloader.reload_now(), Ok(Some(_))));
        assert!(reloader.failed_at.is_none() && !reloader.watch.is_failing());
    }
}
