//! `timbr-gateway healthcheck`: a liveness or readiness probe for images without a shell.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use clap::{Arg, ArgAction, ArgMatches, Command};

use crate::cli::admin_client::{self, AdminClient};
use crate::cli::{CliResult, print_line};

const ADMIN_TIMEOUT: Duration = Duration::from_secs(3);

pub fn command() -> Command {
    let ready = Arg::new("ready")
        .long("ready")
        .action(ArgAction::SetTrue)
        .help("Check readiness (/readyz) instead of liveness (/livez)");
    let command = Command::new("healthcheck").about("Check the health of a running gateway").arg(ready).after_help(
        "Exit code 0: healthy. 1: unhealthy, or no response.\n\n\
             Example, in a Dockerfile:\n  HEALTHCHECK CMD [\"/usr/local/bin/timbr-gateway\", \"healthcheck\"]",
    );
    admin_client::add_arguments(command)
}

pub fn run(matches: &ArgMatches) -> CliResult {
    let gateway = AdminClient::from_arguments(matches, ADMIN_TIMEOUT)?;
    let path = if matches.get_flag("ready") { "/readyz" } else { "/livez" };
    let response = gateway.get(path)?;
    if response.status != "200" {
        bail!("{gateway}{path} returned {}: {}", response.status, response.body);
    }
    print_line(response.body)?;
    Ok(ExitCode::SUCCESS)
}
