//! `timbr-gateway serve`: loads the configuration and runs the gateway. The supervision is in `app`.

use std::process::ExitCode;
use std::thread;

use anyhow::Context;
use clap::{ArgMatches, Command};
use tokio::signal::unix::{SignalKind, signal};
use tracing::warn;

use crate::admin::control::{self, ControlHandle};
use crate::app::{self, Inherited, RunOutcome};
use crate::base::clock::Clock;
use crate::cli::{CliResult, options};
use crate::config::warnings;
use crate::observability::log;
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

pub fn run(matches: &ArgMatches) -> CliResult {
    // Before other threads start and before the environment is read, because this removes variables.
    let sockets = PassedSockets::from_env()?;
    let sources = options::sources(matches);
    let (config, settings) = options::load(&sources)?;
    let _log = log::init(config.log)?;
    for warning in warnings(&config, &settings) {
        warn!("{warning}");
    }
    if config.core_dumps {
        core_dumps::enable().context("cannot enable core dumps")?;
        warn!("core_dumps=true: core dumps and debuggers can read every secret of this process");
    } else {
        core_dumps::disable_permanently().context("cannot disable core dumps permanently")?;
    }
    let _traces = otlp::start(|name| std::env::var(name).ok())?;
    let (control, commands) = control::channel();
    spawn_signal_thread(control)?;
    let manager = ServiceManager::from_env();
    let inherited = Inherited { sockets, service_manager: manager, config_source: Some((sources, settings)) };
    let bound = app::bind_inherited(config, inherited, &Clock::system())?;
    Ok(exit_code(bound.run(commands)?))
}

pub fn exit_code(outcome: RunOutcome) -> ExitCode {
    match outcome {
        RunOutcome::Drained { .. } => ExitCode::SUCCESS,
        RunOutcome::Failed => ExitCode::from(3),
        RunOutcome::Aborted => ExitCode::from(130),
    }
}

/// Starts the thread that handles signals: SIGTERM and SIGINT shut down, SIGHUP reloads. Needed as process 1 too, for
/// which the kernel ignores signals without a handler.
pub fn spawn_signal_thread(control: ControlHandle) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut terminate, mut interrupt, mut hangup) = {
        let _entered = runtime.enter();
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?, signal(SignalKind::hangup())?)
    };
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
                control.stop();
            }
        });
    };
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(handle_signals)
        .context("cannot start the signal thread")?;
    Ok(())
}
