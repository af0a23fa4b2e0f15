//! `timbr-gateway serve`

use std::process::ExitCode;
use std::thread;

use anyhow::Context;
use clap::{ArgMatches, Command};
use tokio::signal::unix::{SignalKind, signal};
use tracing::warn;

use crate::cli::{Outcome, options};
use crate::clock::Clock;
use crate::hardening;
use crate::server::{self, Ended, Stop};
use crate::telemetry;

pub fn command() -> Command {
    options::add_to(Command::new("serve").about("Run the gateway")).after_help(
        "Examples:\n  \
         API_AUTH_SALT=… TIMBR_GATEWAY_UPSTREAM_URL=http://127.0.0.1:8000 timbr-gateway serve\n  \
         timbr-gateway serve --config gateway.yaml --listen-http 127.0.0.1:8080\n\n\
         SIGTERM or SIGINT: drain and end. A second one: end at once.",
    )
}

pub fn run(matches: &ArgMatches) -> Outcome {
    let (config, _) = options::load(&options::sources(matches))?;
    let _log = telemetry::init(config.log)?;
    if config.core_dumps {
        hardening::allow().context("cannot switch core dumps on")?;
        warn!("core_dumps=true: dumps and debuggers see every secret of this process");
    } else {
        hardening::seal().context("cannot switch core dumps off for good")?;
    }
    let (stop, stopped) = server::stop();
    on_signals(stop)?;
    let bound = server::bind(config, &Clock::system())?;
    Ok(exit_code(bound.run(stopped)?))
}

pub fn exit_code(ended: Ended) -> ExitCode {
    match ended {
        Ended::Drained { .. } => ExitCode::SUCCESS,
        Ended::Broken => ExitCode::from(3),
        Ended::Aborted => ExitCode::from(130),
    }
}

/// Asks for the end with each SIGTERM and SIGINT, from now on: also as process 1, where no default would. SIGHUP has
/// certificates read again.
pub fn on_signals(stop: Stop) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut terminate, mut interrupt, mut hangup) = {
        let _entered = runtime.enter();
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?, signal(SignalKind::hangup())?)
    };
    let listening = move || {
        runtime.block_on(async {
            loop {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                    _ = hangup.recv() => {
                        stop.reload();
                        continue;
                    }
                }
                stop.ask();
            }
        });
    };
    thread::Builder::new().name("signals".to_owned()).spawn(listening).context("cannot start a thread")?;
    Ok(())
}
