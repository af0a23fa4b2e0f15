//! `timbr-gateway reload`, `drain` and `log-level`: admin commands for a running gateway, sent to its admin listener.

use std::process::ExitCode;
use std::time::Duration;

use clap::{Arg, ArgMatches, Command};
use serde_json::json;

use crate::cli::admin_client::{self, AdminClient};
use crate::cli::{CliResult, print_line};

/// Long enough for a reload, which responds after all files have been read.
const ADMIN_TIMEOUT: Duration = Duration::from_secs(35);

/// The definitions of the three commands.
pub fn commands() -> [Command; 3] {
    let reload = Command::new("reload").about("Reload the configuration of a running gateway");
    let drain = Command::new("drain").about("Shut down a running gateway gracefully, like SIGTERM");
    let log_level = Command::new("log-level").about("Show or change the log level of a running gateway").arg(
        Arg::new("level")
            .value_name("LEVEL")
            .value_parser(["error", "warn", "info", "debug", "trace"])
            .help("New level, until the next change or restart; without it the current level is shown"),
    );
    let invalid = "An invalid configuration changes nothing: every error is printed, and the exit code is 1.\n\n";
    [
        (reload, invalid, "reload"),
        (drain, "", "drain --listen-admin 127.0.0.1:9180"),
        (log_level, "", "log-level debug"),
    ]
    .map(|(command, first, example)| {
        admin_client::add_arguments(command).after_help(format!(
            "{first}The command is sent to the admin listener: to listen.admin_socket if there is one, otherwise to listen.admin with \
             listen.admin_token. It is accepted from the same machine only.\n\nExample:\n  timbr-gateway {example}"
        ))
    })
}

pub fn reload(matches: &ArgMatches) -> CliResult {
    let response = AdminClient::from_arguments(matches, ADMIN_TIMEOUT)?.request_json("/reload", Some("{}"))?;
    let needs_restart: Vec<_> =
        response["needs_restart"].as_array().into_iter().flatten().filter_map(|key| key.as_str()).collect();
    print_line("Configuration reloaded.")?;
    if !needs_restart.is_empty() {
        print_line(format_args!("These changes require a restart: {}", needs_restart.join(", ")))?;
    }
    Ok(ExitCode::SUCCESS)
}

pub fn drain(matches: &ArgMatches) -> CliResult {
    AdminClient::from_arguments(matches, ADMIN_TIMEOUT)?.request_json("/drain", Some("{}"))?;
    print_line("Draining: the gateway exits when all requests are completed.")?;
    Ok(ExitCode::SUCCESS)
}

pub fn log_level(matches: &ArgMatches) -> CliResult {
    let client = AdminClient::from_arguments(matches, ADMIN_TIMEOUT)?;
    let response = match matches.get_one::<String>("level") {
        None => client.request_json("/log-level", None)?,
        Some(level) => client.put_json("/log-level", &json!({ "level": level }).to_string())?,
    };
    print_line(response["level"].as_str().unwrap_or_default())?;
    Ok(ExitCode::SUCCESS)
}
