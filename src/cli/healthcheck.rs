//! `timbr-gateway healthcheck`: for images without a shell.

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
        .help("Ask /readyz, whether it wants requests, instead of /livez");
    let command = Command::new("healthcheck")
        .about("Ask a running gateway whether it lives; exit code 0 if so")
        .arg(ready)
        .after_help(
            "Exit code 0: it does. 1: it does not, or nobody answers.\n\n\
             Example, in a Dockerfile:\n  HEALTHCHECK CMD [\"/usr/local/bin/timbr-gateway\", \"healthcheck\"]",
        );
    admin_client::add_arguments(command)
}

pub fn run(matches: &ArgMatches) -> CliResult {
    let gateway = AdminClient::from_arguments(matches, ADMIN_TIMEOUT)?;
    let path = if matches.get_flag("ready") { "/readyz" } else { "/livez" };
    let said = gateway.request(path, None)?;
    if said.status != "200" {
        bail!("http://{gateway}{path} answered {}: {}", said.status, said.body);
    }
    print_line(said.body)?;
    Ok(ExitCode::SUCCESS)
}
