//! Another reading of the configuration: built whole beside the one in force, and put in its place whole, or refused.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::{error, info, warn};

use crate::app::components::{self, limits};
use crate::app::worker::Revision;
use crate::auth::Ended;
use crate::base::clock::Clock;
use crate::base::watched_files::Watch;
use crate::config::changes::{Changes, Reading};
use crate::config::{self, Config, Problem, Sources};
use crate::observability::log::{self, label};
use crate::tls::{self, Prepared, Reloader, TlsError};
use crate::upstream::Backends;

/// What cannot be used is tried again so often; it may be waiting for a file that comes later.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);

/// Looks after everything that was read, and reads it again. It blocks on the file system.
pub(super) struct Keeper {
    /// `None`: nothing but files that are looked after one by one can be read again.
    source: Option<(Sources, Reading)>,
    /// What was read last and is in force but for what needs a restart.
    last_read: Option<Reading>,
    in_force: Arc<Revision>,
    reloader: Option<Reloader>,
    watch: Watch,
    failed_at: Option<Instant>,
    clock: Clock,
}

/// A configuration that came into force.
pub(super) struct Taken {
    pub revision: Arc<Revision>,
    /// The options that changed.
    pub changed: Vec<&'static str>,
    /// Those among them that take effect with a restart.
    pub needs_restart: Vec<&'static str>,
}

/// What one look came to.
pub(super) enum Outcome {
    /// Nothing is new.
    Same,
    /// Another configuration is ready, and the workers are to be told of it.
    Taken(Taken),
    /// Everything that is wrong with it. What was in force still is.
    Refused(Vec<Problem>),
}

/// What a new configuration is made of, before anything of it is in force.
struct Built {
    auth: crate::auth::Auth,
    backends: Arc<Backends>,
    prepared: Option<Prepared>,
}

impl Keeper {
    pub fn new(
        source: Option<(Sources, Reading)>,
        in_force: Arc<Revision>,
        reloader: Option<Reloader>,
        clock: Clock,
    ) -> Keeper {
        let last_read = None;
        Keeper { source, last_read, in_force, reloader, watch: Watch::default(), failed_at: None, clock }
    }

    /// Says in the log what certificates there are.
    pub fn announce(&mut self) {
        if let Some(reloader) = &mut self.reloader {
            reloader.announce();
        }
    }

    /// Looks at everything, or, if somebody has `asked` for it, reads everything.
    pub fn look(&mut self, asked: bool) -> Outcome {
        // These are read by themselves: one of them that cannot be used holds up none of the others.
        match &mut self.reloader {
            Some(reloader) if asked => reloader.reload(),
            Some(reloader) => reloader.look(),
            None => {}
        }
        self.in_force.auth.look(asked);
        if asked {
            self.watch.forget();
            let outcome = self.reload(true);
            self.failed_at = None;
            if let Outcome::Refused(problems) = &outcome {
                // Who has asked is told, and the next look tells nobody again.
                self.has_failed(problems);
            }
            return outcome;
        }
        if self.failed_at.is_some_and(|at| at.elapsed() < RETRY_INTERVAL) {
            return Outcome::Same;
        }
        let Some((_, reading)) = &self.source else { return Outcome::Same };
        let files = reading.files();
        let Some(stamps) = self.watch.changed(files.iter().map(PathBuf::as_path)) else {
            return Outcome::Same;
        };
        let outcome = self.reload(false);
        match &outcome {
            Outcome::Refused(problems) => {
                // What is known already is neither told nor counted again.
                if !self.has_failed(problems) {
                    return Outcome::Same;
                }
            }
            Outcome::Same | Outcome::Taken(_) => {
                self.failed_at = None;
                if self.watch.read_well(stamps) {
                    info!("the configuration is in order again");
                }
            }
        }
        outcome
    }

    /// Whether certificates cannot be used as they are in their files.
    pub fn has_bad_certificates(&self) -> bool {
        self.reloader.as_ref().is_some_and(Reloader::is_failing)
    }

    /// Names of the certificates in use, and when they end.
    pub fn certificates_end(&self) -> Option<Vec<(String, i64)>> {
        self.reloader.as_ref().map(Reloader::ends)
    }

    /// What is in force.
    pub fn in_force(&self) -> &Arc<Revision> {
        &self.in_force
    }

    /// Whether these are news.
    fn has_failed(&mut self, problems: &[Problem]) -> bool {
        self.failed_at = Some(Instant::now());
        let message: String = problems.iter().map(|problem| format!("{problem}\n")).collect();
        self.watch.failed(&message)
    }

    fn reload(&mut self, asked: bool) -> Outcome {
        let Some((sources, before)) = &self.source else { return Outcome::Same };
        let (mut config, settings) = match config::load(sources) {
            Ok(loaded) => loaded,
            Err(problems) => return Outcome::Refused(problems),
        };
        let reading = Reading::of(settings);
        // What was held differs from what is in force until the restart, and is no news.
        let last = self.last_read.as_ref().unwrap_or(before);
        if reading.changes(last).is_empty() && !asked {
            return Outcome::Same;
        }
        let changes = reading.changes(before);
        let needs_restart = changes.hold(&mut config, &self.in_force.config);
        let built = match self.build(&config, &changes) {
            Ok(built) => built,
            Err(problems) => return Outcome::Refused(problems),
        };
        self.last_read = Some(reading.clone());
        let reading = reading.holding(&needs_restart, before);
        if let Some((_, before)) = &mut self.source {
            *before = reading;
        }
        let revision = self.put_in_force(config, &changes, built);
        Outcome::Taken(Taken { revision, changed: changes.keys().collect(), needs_restart })
    }

    fn build(&self, config: &Config, changes: &Changes) -> Result<Built, Vec<Problem>> {
        let mut problems = Vec::new();
        let told = |error: TlsError| Problem::new(error.option(), error.to_string());
        let auth = self.in_force.auth.anew(config, changes, &self.clock);
        let auth = auth.map_err(|found| problems.extend(found)).ok();
        let backends = self.backends(config, changes).map_err(|error| problems.push(told(error))).ok();
        let prepared = self.prepare(config).map_err(|error| problems.push(told(error))).ok();
        match (auth, backends, prepared) {
            (Some(auth), Some(backends), Some(prepared)) => Ok(Built { auth, backends, prepared }),
            _ => Err(problems),
        }
    }

    /// The same ones, unless something about them has changed.
    fn backends(&self, config: &Config, changes: &Changes) -> Result<Arc<Backends>, TlsError> {
        if !changes.touch(&["upstream"]) {
            return Ok(Arc::clone(&self.in_force.backends));
        }
        let tls = tls::upstream_tls(&config.upstream)?;
        let same_tls = !changes.touch(&[
            "upstream.ca_file",
            "upstream.client_cert_file",
            "upstream.client_key_file",
            "upstream.server_name",
        ]);
        Ok(self.in_force.backends.anew(config.upstream.clone(), tls, config.workers, same_tls))
    }

    /// How to speak TLS with clients, where that is done at all.
    fn prepare(&self, config: &Config) -> Result<Option<Prepared>, TlsError> {
        let Some(reloader) = &self.reloader else { return Ok(None) };
        let own = if reloader.has_own() { None } else { components::own_certificate(config)? };
        reloader.prepare(config.tls.clone(), own).map(Some)
    }

    fn put_in_force(&mut self, config: Config, changes: &Changes, built: Built) -> Arc<Revision> {
        let Built { mut auth, backends, prepared } = built;
        if let (Some(reloader), Some(prepared)) = (&mut self.reloader, prepared) {
            reloader.adopt(prepared);
        }
        let ended = auth.take_over(&config, (&self.in_force.auth, &self.in_force.config));
        tell_ended(&ended);
        if changes.touch(&["log.level"]) {
            log::set_level(config.log.level);
        }
        let admission = self.in_force.admission.anew(limits(&config));
        self.in_force = Arc::new(Revision {
            config: Arc::new(config),
            auth: Arc::new(auth),
            admission: Arc::new(admission),
            backends,
        });
        Arc::clone(&self.in_force)
    }
}

/// Tells the logs of tokens that ended with the configuration that was in force.
fn tell_ended(ended: &Ended) {
    let told = match ended {
        Ended::Nobody => return,
        Ended::Users(users) => format!("of {} users", users.len()),
        Ended::All => "all".to_owned(),
    };
    log::audit(|record| {
        record.text(label!("what"), "revocation");
        record.text(label!("decision"), "done");
        record.text(label!("tokens"), &told);
        record.text(label!("by"), "reload");
    });
    match ended {
        Ended::All => warn!(
            "logins are verified by somebody else from now on, or another backend would be shown their keys: all tokens \
             that were given before have ended"
        ),
        _ => info!(what = told, "tokens were revoked"),
    }
}

/// Tells the log of a configuration that came into force, or did not.
pub(super) fn tell(by: &str, outcome: &Outcome) {
    match outcome {
        Outcome::Same => {}
        Outcome::Taken(Taken { changed, needs_restart, .. }) => {
            info!(by, changed = changed.join(" "), "the configuration was read again and is in force");
            if !needs_restart.is_empty() {
                warn!(
                    options = needs_restart.join(" "),
                    "these options have other values now, which take effect with a restart"
                );
            }
        }
        Outcome::Refused(problems) => {
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
    fn keeper(file: &Path) -> Keeper {
        write(file, "");
        let sources = Sources { file: Some(file.to_owned()), ..Sources::default() };
        let (config, settings) = config::load(&sources).expect("valid");
        let clock = Clock::system();
        let auth = crate::auth::Auth::new(&config, &clock).expect("no file is named");
        let backends = Backends::new(config.upstream.clone(), vec![None], 1);
        let admission = Admission::new(config.limits, Arc::<Metrics>::default());
        let revision = Revision {
            config: Arc::new(config),
            auth: Arc::new(auth),
            admission: Arc::new(admission),
            backends,
        };
        Keeper::new(Some((sources, Reading::of(settings))), Arc::new(revision), None, clock)
    }

    fn restarts(outcome: Outcome) -> Option<Vec<&'static str>> {
        match outcome {
            Outcome::Same => None,
            Outcome::Taken(Taken { needs_restart, .. }) => Some(needs_restart),
            Outcome::Refused(problems) => panic!("{problems:?}"),
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
            assert!(matches!(keeper.look(true), Outcome::Refused(_)), "each who asks is told");
            assert!(matches!(keeper.look(false), Outcome::Same));
            // As it is when it is tried again.
            keeper.failed_at = None;
            assert!(matches!(keeper.look(false), Outcome::Same));
        }
        write(&file, "workers: 7\n");
        assert!(matches!(keeper.look(true), Outcome::Taken(_)));
        assert!(keeper.failed_at.is_none() && !keeper.watch.is_failing());
    }
}
