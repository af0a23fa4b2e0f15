//! `timbr-gateway reload`, `drain` and `log-level`: what a running gateway is ordered to do.

use std::process::ExitCode;
use std::time::Duration;

use clap::{Arg, ArgMatches, Command};
use serde_json::json;

use crate::cli::admin_client::{self, AdminClient};
use crate::cli::{CliResult, print_line};

/// A reload takes as long as it takes to read everything.
const ADMIN_TIMEOUT: Duration = Duration::from_secs(35);

/// The three commands.
pub fn commands() -> [Command; 3] {
    let reload = Command::new("reload").about("Have a running gateway read its configuration again");
    let drain = Command::new("drain").about("Have a running gateway end in good order, as SIGTERM does");
    let log_level = Command::new("log-level")
        .about("Show from which level on a running gateway logs, or set it until it is set or started again")
        .arg(
            Arg::new("level")
                .value_name("LEVEL")
                .value_parser(["error", "warn", "info", "debug", "trace"])
                .help("The new level"),
        );
    let refused =
        "What cannot be used changes nothing: all that is wrong is printed, and the exit code is 1.\n\n";
    [
        (reload, refused, "reload"),
        (drain, "", "drain --listen-admin 127.0.0.1:9180"),
        (log_level, "", "log-level debug"),
    ]
    .map(|(command, first, example)| {
        admin_client::add_arguments(command).after_help(format!(
            "{first}The gateway is asked on its admin listener (listen.admin), which does this from its own machine \
             only.\n\nExample:\n  timbr-gateway {example}"
        ))
    })
}

pub fn reload(matches: &ArgMatches) -> CliResult {
    let told = AdminClient::from_arguments(matches, ADMIN_TIMEOUT)?.request_json("/reload", Some("{}"))?;
    let held: Vec<_> =
        told["needs_restart"].as_array().into_iter().flatten().filter_map(|key| key.as_str()).collect();
    print_line("The configuration was read again and is in force.")?;
    if !held.is_empty() {
        print_line(format_args!("A restart is needed for: {}", held.join(", ")))?;
    }
    Ok(ExitCode::SUCCESS)
}

pub fn drain(matches: &ArgMatches) -> CliResult {
    AdminClient::from_arguments(matches, ADMIN_TIMEOUT)?.request_json("/drain", Some("{}"))?;
    print_line("It ends when its requests are answered.")?;
    Ok(ExitCode::SUCCESS)
}

pub fn log_level(matches: &ArgMatches) -> CliResult {
    let running = AdminClient::from_arguments(matches, ADMIN_TIMEOUT)?;
    let told = match matches.get_one::<String>("level") {
        None => running.request_json("/log-level", None)?,
        Some(level) => running.put_json("/log-level", &json!({ "level": level }).to_string())?,
    };
    print_line(told["level"].as_str().unwrap_or_default())?;
    Ok(ExitCode::SUCCESS)
}
