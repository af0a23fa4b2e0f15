//! `timbr-gateway serve`: loads the configuration and runs the gateway. The supervision is in `app`.

use std::process::{self, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::Context;
use clap::{ArgMatches, Command};
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::warn;

use crate::admin::control::{self, ControlHandle};
use crate::app::{self, Inherited, RunOutcome};
use crate::base::clock::Clock;
use crate::cli::{CliResult, options};
use crate::config::warnings;
use crate::observability::log::{self, label};
use crate::os::core_dumps;
use crate::os::sd_notify::ServiceManager;
use crate::os::socket_activation::PassedSockets;
use crate::outbound::otlp;

pub fn command() -> Command {
    options::add_all(Command::new("serve").about("Run the gateway")).after_help(
        "Examples:\n  \
         API_AUTH_SALT=… TIMBR_GATEWAY_UPSTREAM_URL=http://127.0.0.1:8000 timbr-gateway serve\n  \
         timbr-gateway serve --config gateway.yaml --listen-http 127.0.0.1:8080\n\n\
         SIGTERM or SIGINT: graceful shutdown. A second one: immediate exit. SIGHUP: reload the configuration and its \
         files.\n\n\
         Exit codes: 0 graceful shutdown; 1 cannot start; 2 invalid arguments; 3 a thread or task of the \
         gateway failed; 130 aborted by a second signal.",
    )
}

pub fn run(matches: &ArgMatches, signals: SignalHandlers) -> CliResult {
    // Before other threads start and before the environment is read, because this removes variables.
    let sockets = PassedSockets::from_env()?;
    let (control, commands) = control::channel();
    let has_started = signals.handle_in_thread(control)?;
    let sources = options::sources(matches);
    let (config, settings) = options::load(&sources)?;
    let _log = log::init(config.log)?;
    let _audit = app::audit::start(&config.audit)?;
    for warning in warnings(&config, &settings) {
        warn!("{warning}");
    }
    if config.core_dumps {
        core_dumps::enable().context("cannot enable core dumps")?;
    } else {
        core_dumps::disable_permanently().context("cannot disable core dumps permanently")?;
    }
    let _traces = otlp::start(|name| std::env::var(name).ok())?;
    let manager = ServiceManager::from_env();
    let inherited = Inherited { sockets, service_manager: manager, config_source: Some((sources, settings)) };
    // Before the listeners: it is the first line, whatever a client sends at once.
    audit_process("start", env!("CARGO_PKG_VERSION"));
    let bound = app::bind_inherited(config, inherited, &Clock::system())
        .inspect_err(|_| audit_process("stop", "not started"))?;
    has_started.store(true, Ordering::Release);
    let outcome = bound.run(commands)?;
    let how = match outcome {
        RunOutcome::Drained { .. } => "drained",
        RunOutcome::Aborted => "aborted",
        RunOutcome::Failed => "failed",
    };
    audit_process("stop", how);
    Ok(exit_code(outcome))
}

/// The numbers of lines begin again at 1 with each process: a start without a stop before it is a crash.
fn audit_process(what: &str, decision: &str) {
    log::write_audit(|record| {
        record.text(label!("what"), what);
        record.text(label!("decision"), decision);
    });
}

pub fn exit_code(outcome: RunOutcome) -> ExitCode {
    match outcome {
        RunOutcome::Drained { .. } => ExitCode::SUCCESS,
        RunOutcome::Failed => ExitCode::from(3),
        RunOutcome::Aborted => ExitCode::from(130),
    }
}

/// Handlers of SIGTERM and SIGINT, which shut down, and SIGHUP, which reloads. Needed as process 1 too, for which the
/// kernel ignores signals without a handler.
pub struct SignalHandlers {
    runtime: Runtime,
    stop: [Signal; 2],
    hangup: Signal,
}

impl SignalHandlers {
    /// Installs the handlers. From now on signals are kept until [`SignalHandlers::handle_in_thread`].
    pub fn install() -> anyhow::Result<SignalHandlers> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, hangup) = {
            let _entered = runtime.enter();
            ([signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?], signal(SignalKind::hangup())?)
        };
        Ok(SignalHandlers { runtime, stop, hangup })
    }

    /// Starts the thread that passes signals on to the gateway. Until the returned flag is set, the gateway is starting:
    /// then a stop ends the process at once, as there is nothing to drain and reading a file may take long.
    pub fn handle_in_thread(self, control: ControlHandle) -> anyhow::Result<Arc<AtomicBool>> {
        let SignalHandlers { runtime, stop: [mut terminate, mut interrupt], mut hangup } = self;
        let has_started = Arc::new(AtomicBool::new(false));
        let started = Arc::clone(&has_started);
        let handle_signals = move || {
            runtime.block_on(async {
                loop {
                    tokio::select! {
                        _ = terminate.recv() => {}
                        _ = interrupt.recv() => {}
                        _ = hangup.recv() => {
                            drop(control.reload("SIGHUP"));
                            continue;
                        }
                    }
                    if !started.load(Ordering::Acquire) {
                        process::exit(0);
                    }
                    control.stop();
                }
            });
        };
        thread::Builder::new()
            .name("signals".to_owned())
            .spawn(handle_signals)
            .context("cannot start the signal thread")?;
        Ok(has_started)
    }
}
