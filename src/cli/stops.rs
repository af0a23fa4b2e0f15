//! `timbr-gateway stop`, `resume` and `stopped`: stops an ontology, a user or a route through the admin listener.

use std::process::ExitCode;
use std::time::Duration;

use clap::{ArgMatches, Command};
use serde_json::json;

use crate::cli::admin_client::{self, SENT_TO};
use crate::cli::arguments::{self, text};
use crate::cli::table::{Column, format_time, print_list, printable_text, time};
use crate::cli::{CliResult, NOTHING_MATCHED, print_line};

const STOPS: [Column; 5] = [
    ("KIND", |stop| printable_text(stop, "kind")),
    ("NAME", |stop| printable_text(stop, "name")),
    ("SINCE", |stop| time(stop, "since")),
    ("UNTIL", |stop| stop["until"].as_u64().map_or_else(|| "resumed".to_owned(), format_time)),
    ("WHY", |stop| printable_text(stop, "why")),
];

/// The definitions of the three commands.
pub fn commands() -> [Command; 3] {
    let kind = || {
        let help = "ontology: requests that name it. user: requests of the user or on behalf of the user, with every \
                    kind of credential, and logins. route: a route of the configuration, or get_token";
        arguments::required("kind", "KIND", help).value_parser(["ontology", "user", "route"])
    };
    let name = || arguments::required("name", "NAME", "The exact name");
    let stop = Command::new("stop")
        .about("Stop an ontology, a user or a route: its requests get 503, at all replicas that share the store")
        .args([kind(), name()])
        .arg(arguments::value("why", "TEXT", "The message that clients receive").required(true))
        .arg(arguments::duration(
            "for",
            "End after this time, at most 30d. Without it: until it is resumed, at most 30d",
        ))
        .after_help(format!(
            "Queued requests get 503 when they leave the queue; running ones are not affected. With a persistent store \
             (store.kind), the stop survives a restart.\n\n{SENT_TO}\n\n\
             Examples:\n  timbr-gateway stop ontology sales --why \"Maintenance until 14:00.\" --for 2h\n  \
             timbr-gateway stop user alice --why \"Your queries overload the database. Call 4711.\"\n  \
             timbr-gateway stop route get_token --why \"No logins during the migration.\" --for 10m"
        ));
    let resume = Command::new("resume")
        .about("Resume an ontology, a user or a route that was stopped")
        .args([kind(), name()])
        .after_help(format!(
            "The exit code is 4 if it was not stopped.\n\n{SENT_TO}\n\nExample:\n  timbr-gateway resume ontology sales"
        ));
    let stopped = Command::new("stopped")
        .about("List what is stopped")
        .arg(arguments::json())
        .after_help(format!("{SENT_TO}\n\nExample:\n  timbr-gateway stopped"));
    [stop, resume, stopped].map(admin_client::add_arguments)
}

pub fn stop(matches: &ArgMatches) -> CliResult {
    let mut command = target(matches);
    command["why"] = text(matches, "why").into();
    if let Some(duration) = matches.get_one::<Duration>("for") {
        command["seconds"] = duration.as_secs().into();
    }
    let response = admin_client::request(matches, "/stop", Some(&command.to_string()))?;
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
    let response = admin_client::request(matches, "/resume", Some(&target(matches).to_string()))?;
    let (kind, name) = (text(matches, "kind"), text(matches, "name"));
    if response["was_stopped"] == true {
        print_line(format_args!("Resumed {kind} {name}."))?;
        Ok(ExitCode::SUCCESS)
    } else {
        print_line(format_args!("The {kind} {name} was not stopped."))?;
        Ok(ExitCode::from(NOTHING_MATCHED))
    }
}

pub fn stopped(matches: &ArgMatches) -> CliResult {
    let response = admin_client::request(matches, "/stops", None)?;
    print_list(matches, &response["stops"], &STOPS, "Nothing is stopped.")?;
    Ok(ExitCode::SUCCESS)
}

fn target(matches: &ArgMatches) -> serde_json::Value {
    json!({ "kind": text(matches, "kind"), "name": text(matches, "name") })
}
