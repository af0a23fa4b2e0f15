//! `timbr-gateway healthcheck`: a liveness or readiness probe for images without a shell; `timbr-gateway wait` repeats it
//! until it succeeds.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::{ArgMatches, Command};

use crate::cli::admin_client::{self, AdminClient};
use crate::cli::{CliResult, arguments, print_line};

const ADMIN_TIMEOUT: Duration = Duration::from_secs(3);

pub fn command() -> Command {
    let ready = arguments::flag("ready", "Check readiness (/readyz) instead of liveness (/livez)");
    let command = Command::new("healthcheck").about("Check the health of a running gateway").arg(ready).after_help(
        "Exit code 0: healthy. 1: unhealthy, or no response.\n\n\
             Example, in a Dockerfile:\n  HEALTHCHECK CMD [\"/usr/local/bin/timbr-gateway\", \"healthcheck\"]",
    );
    admin_client::add_arguments(command)
}

pub fn wait_command() -> Command {
    let state = arguments::value("for", "STATE", "ready: it accepts requests (/readyz). live: it runs (/livez)");
    let state = state.value_parser(["ready", "live"]).default_value("ready");
    let timeout =
        arguments::value("timeout", "DURATION", "Maximum time to wait, such as 30s or 5m").default_value("60s");
    let command =
        Command::new("wait").about("Wait until a running gateway is ready").arg(state).arg(timeout).after_help(
            "Exit code 0: ready. 1: not ready after the timeout; the message says why.\n\n\
         Example:\n  timbr-gateway serve -c gateway.yaml &\n  timbr-gateway wait --for ready --timeout 30s",
        );
    admin_client::add_arguments(command)
}

pub fn wait(matches: &ArgMatches) -> CliResult {
    let gateway = AdminClient::from_arguments(matches)?.with_timeout(ADMIN_TIMEOUT);
    let path = if arguments::text(matches, "for") == "live" { "/livez" } else { "/readyz" };
    let timeout = arguments::text(matches, "timeout");
    let timeout = humantime::parse_duration(timeout).with_context(|| format!("--timeout {timeout:?}"))?;
    let started = Instant::now();
    loop {
        let problem = match gateway.get(path) {
            Ok(response) if response.status == "200" => {
                print_line(response.body)?;
                return Ok(ExitCode::SUCCESS);
            }
            Ok(response) => format!("{path} returned {}: {}", response.status, response.body),
            Err(error) => format!("{error:#}"),
        };
        if started.elapsed() >= timeout {
            bail!("{gateway} is not ready after {}: {problem}", humantime::format_duration(timeout));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

pub fn run(matches: &ArgMatches) -> CliResult {
    let gateway = AdminClient::from_arguments(matches)?.with_timeout(ADMIN_TIMEOUT);
    let path = if matches.get_flag("ready") { "/readyz" } else { "/livez" };
    let response = gateway.get(path)?;
    if response.status != "200" {
        bail!("{gateway}{path} returned {}: {}", response.status, response.body);
    }
    print_line(response.body)?;
    Ok(ExitCode::SUCCESS)
}
