//! `timbr-gateway stop`, `resume` and `stopped`: stops an ontology, a user or a route through the admin listener.

use std::process::ExitCode;
use std::time::Duration;

use clap::{Arg, ArgAction, ArgMatches, Command};
use serde_json::json;

use crate::cli::admin_client::{self, AdminClient};
use crate::cli::tokens::format_time;
use crate::cli::{CliResult, print_line};

const ADMIN_TIMEOUT: Duration = Duration::from_secs(35);

const SENT_TO: &str = "The command is sent to the admin listener: to listen.admin_socket if there is one, otherwise to \
                       listen.admin with listen.admin_token. It is accepted from the same machine only.";

/// The definitions of the three commands.
pub fn commands() -> [Command; 3] {
    let kind = || {
        Arg::new("kind").value_name("KIND").required(true).value_parser(["ontology", "user", "route"]).help(
            "ontology: requests that name it. user: requests of the user or on behalf of the user, with every kind of \
             credential, and logins. route: a route of the configuration, or get_token",
        )
    };
    let name = || Arg::new("name").value_name("NAME").required(true).help("The exact name");
    let stop = Command::new("stop")
        .about("Stop an ontology, a user or a route: its requests get 503, at all replicas")
        .args([kind(), name()])
        .arg(Arg::new("why").long("why").value_name("TEXT").required(true).help("The message that clients receive"))
        .arg(
            Arg::new("for")
                .long("for")
                .value_name("DURATION")
                .value_parser(|text: &str| humantime::parse_duration(text).map_err(|error| error.to_string()))
                .help("End after this time, at most 30d. Without it: until it is resumed, at most 30d"),
        )
        .after_help(format!(
            "Requests that already wait or run are not affected. A persistent store (store.kind) keeps it over a \
             restart.\n\n{SENT_TO}\n\n\
             Examples:\n  timbr-gateway stop ontology sales --why \"Maintenance until 14:00.\" --for 2h\n  \
             timbr-gateway stop user alice --why \"Your queries overload the database. Call 4711.\"\n  \
             timbr-gateway stop route get_token --why \"No logins during the migration.\" --for 10m"
        ));
    let resume = Command::new("resume")
        .about("Resume an ontology, a user or a route that was stopped")
        .args([kind(), name()])
        .after_help(format!("{SENT_TO}\n\nExample:\n  timbr-gateway resume ontology sales"));
    let stopped = Command::new("stopped")
        .about("List what is stopped")
        .arg(
            Arg::new("json")
                .long("json")
                .action(ArgAction::SetTrue)
                .help("Print JSON; times in seconds since the Unix epoch"),
        )
        .after_help(format!("{SENT_TO}\n\nExample:\n  timbr-gateway stopped"));
    [stop, resume, stopped].map(admin_client::add_arguments)
}

pub fn stop(matches: &ArgMatches) -> CliResult {
    let mut command = target(matches);
    command["why"] = text(matches, "why").into();
    if let Some(duration) = matches.get_one::<Duration>("for") {
        command["seconds"] = duration.as_secs().into();
    }
    let client = AdminClient::from_arguments(matches, ADMIN_TIMEOUT)?;
    let response = client.request_json("/stop", Some(&command.to_string()))?;
    let (kind, name) = (text(matches, "kind"), text(matches, "name"));
    match response["until"].as_u64() {
        Some(until) => print_line(format_args!("Stopped {kind} {name} until {}.", format_time(until)))?,
        None => print_line(format_args!("Stopped {kind} {name} until it is resumed, at most 30 days."))?,
    }
    if response["memory_only"] == true {
        print_line("The store is in memory: this ends with the process, and other replicas do not know of it.")?;
    }
    Ok(ExitCode::SUCCESS)
}

pub fn resume(matches: &ArgMatches) -> CliResult {
    let client = AdminClient::from_arguments(matches, ADMIN_TIMEOUT)?;
    let response = client.request_json("/resume", Some(&target(matches).to_string()))?;
    let (kind, name) = (text(matches, "kind"), text(matches, "name"));
    if response["was_stopped"] == true {
        print_line(format_args!("Resumed {kind} {name}."))?;
    } else {
        print_line(format_args!("The {kind} {name} was not stopped."))?;
    }
    Ok(ExitCode::SUCCESS)
}

pub fn stopped(matches: &ArgMatches) -> CliResult {
    let response = AdminClient::from_arguments(matches, ADMIN_TIMEOUT)?.request_json("/stops", None)?;
    if matches.get_flag("json") {
        print_line(&response["stops"])?;
        return Ok(ExitCode::SUCCESS);
    }
    let stops = response["stops"].as_array().map(Vec::as_slice).unwrap_or_default();
    if stops.is_empty() {
        print_line("Nothing is stopped.")?;
        return Ok(ExitCode::SUCCESS);
    }
    print_line(format_args!("{:<10}{:<24}{:<22}{:<22}WHY", "KIND", "NAME", "SINCE", "UNTIL"))?;
    for stop in stops {
        let text = |name: &str| stop[name].as_str().unwrap_or_default().to_owned();
        let at = |name: &str| stop[name].as_u64().map_or_else(|| "resumed".to_owned(), format_time);
        let (kind, name, since, until) = (text("kind"), text("name"), at("since"), at("until"));
        print_line(format_args!("{kind:<10}{name:<24}{since:<22}{until:<22}{}", text("why")))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn target(matches: &ArgMatches) -> serde_json::Value {
    json!({ "kind": text(matches, "kind"), "name": text(matches, "name") })
}

fn text<'a>(matches: &'a ArgMatches, name: &str) -> &'a str {
    matches.get_one::<String>(name).map(String::as_str).expect("it is required")
}
