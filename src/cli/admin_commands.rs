//! `timbr-gateway reload`, `drain` and `log-level`: admin commands for a running gateway, sent to its admin listener.

use std::process::ExitCode;

use clap::{Arg, ArgMatches, Command};
use serde_json::{Value, json};

use crate::cli::admin_client::{self, AdminClient, SENT_TO};
use crate::cli::table::rows;
use crate::cli::{CliResult, print_line};

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
        admin_client::add_arguments(command)
            .after_help(format!("{first}{SENT_TO}\n\nExample:\n  timbr-gateway {example}"))
    })
}

pub fn reload(matches: &ArgMatches) -> CliResult {
    let response = admin_client::request(matches, "/reload", Some("{}"))?;
    let needs_restart: Vec<_> = rows(&response["needs_restart"]).iter().filter_map(Value::as_str).collect();
    print_line("Configuration reloaded.")?;
    if !needs_restart.is_empty() {
        print_line(format_args!("These changes require a restart: {}", needs_restart.join(", ")))?;
    }
    Ok(ExitCode::SUCCESS)
}

pub fn drain(matches: &ArgMatches) -> CliResult {
    admin_client::request(matches, "/drain", Some("{}"))?;
    print_line("Draining: the gateway exits when all requests are completed.")?;
    Ok(ExitCode::SUCCESS)
}

pub fn log_level(matches: &ArgMatches) -> CliResult {
    let client = AdminClient::from_arguments(matches)?;
    let response = match matches.get_one::<String>("level") {
        None => client.request_json("/log-level", None)?,
        Some(level) => client.put_json("/log-level", &json!({ "level": level }).to_string())?,
    };
    print_line(response["level"].as_str().unwrap_or_default())?;
    Ok(ExitCode::SUCCESS)
}
