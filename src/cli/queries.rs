//! `timbr-gateway queries`: shows and cancels the queries of a running gateway.

use std::process::ExitCode;

use clap::{Arg, ArgMatches, Command};
use serde_json::{Value, json};

use crate::base::percent;
use crate::cli::admin_client::{self, SENT_TO};
use crate::cli::table::{Column, print_table, printable, printable_text, rows, time};
use crate::cli::{CliResult, NOTHING_MATCHED, arguments, print_line};

const REQUEST_ID: Column = ("REQUEST ID", |query| printable_text(query, "request_id"));
const USER: Column = ("USER", |query| printable_text(query, "user"));
const ONTOLOGY: Column = ("ONTOLOGY", |query| printable_text(query, "ontology"));
const CLASS: Column = ("CLASS", |query| printable_text(query, "class"));
const FINGERPRINT: Column = ("FINGERPRINT", |query| printable_text(query, "fingerprint"));
const TEXT: Column = ("TEXT", |query| printable_text(query, "text"));

const RUNNING: [Column; 8] = [
    REQUEST_ID,
    ("STATE", |query| printable_text(query, "state")),
    ("FOR", |query| duration(&query["running_ms"])),
    USER,
    ONTOLOGY,
    CLASS,
    FINGERPRINT,
    TEXT,
];

const SLOW: [Column; 9] = [
    ("ENDED", |query| time(query, "ended")),
    ("DURATION", |query| duration(&query["total_ms"])),
    ("STATUS", |query| query["status"].to_string()),
    USER,
    ONTOLOGY,
    CLASS,
    FINGERPRINT,
    REQUEST_ID,
    TEXT,
];

const TOP: [Column; 8] = [
    ("KEY", |row| printable_text(row, "key")),
    ("COUNT", |row| row["count"].to_string()),
    ("ERRORS", |row| row["errors"].to_string()),
    ("TOTAL", |row| duration(&row["total_ms"])),
    ("MEAN", |row| duration(&row["mean_ms"])),
    ("MAX", |row| duration(&row["max_ms"])),
    ("BYTES", |row| row["sent"].to_string()),
    TEXT,
];

pub fn command() -> Command {
    let limit = || arguments::limit("20", "Maximum number of rows");
    let running = Command::new("running")
        .about("List queued, running and abandoned queries, the oldest first")
        .arg(arguments::json())
        .after_help("Examples:\n  timbr-gateway queries running\n  timbr-gateway queries running --json");
    let slow = Command::new("slow")
        .about("List the slowest queries of the last hour")
        .args([limit(), arguments::json()])
        .after_help("Example:\n  timbr-gateway queries slow --limit 5");
    let top = Command::new("top")
        .about("List who or what took the most time in the last hour")
        .arg(
            Arg::new("by")
                .long("by")
                .value_name("KEY")
                .value_parser(["user", "ontology", "fingerprint"])
                .default_value("user")
                .help("What the queries are grouped by; fingerprint: the statement without its literals"),
        )
        .args([limit(), arguments::json()])
        .after_help(
            "Examples:\n  timbr-gateway queries top --by user\n  timbr-gateway queries top --by fingerprint --limit 5",
        );
    let cancel = Command::new("cancel")
        .about("Cancel a queued or running query")
        .arg(arguments::required("request-id", "ID", "Request id, from `queries running` or the log"))
        .arg(
            arguments::value("why", "TEXT", "Reason, for the audit log and the client")
                .default_value("")
                .hide_default_value(true),
        )
        .after_help(
            "The backend notices it as the departure of a client. The exit code is 4 if no query with this id is queued or \
             running at this gateway; with several replicas, ask each one.\n\n\
             Example:\n  timbr-gateway queries cancel 7496242a0b4f4c0f9b1d5d0c3f1e2a77 --why \"blocks the nightly load\"",
        );
    Command::new("queries")
        .about("List or cancel the queries of a running gateway")
        .subcommand_required(true)
        .subcommands([running, slow, top, cancel].map(admin_client::add_arguments))
        .after_help(format!(
            "Requires journal.enabled. {SENT_TO}\n\n\
             Examples:\n  timbr-gateway queries running\n  timbr-gateway queries top --by user",
        ))
}

pub fn run(matches: &ArgMatches) -> CliResult {
    match matches.subcommand() {
        Some(("running", matches)) => print(matches, "/queries/running", "queries", &RUNNING),
        Some(("slow", matches)) => print(matches, &with_limit("/queries/slow?", matches), "queries", &SLOW),
        Some(("top", matches)) => {
            let by = percent::encode(arguments::text(matches, "by"));
            print(matches, &with_limit(&format!("/queries/top?by={by}&"), matches), "rows", &TOP)
        }
        Some(("cancel", matches)) => cancel(matches),
        _ => unreachable!("clap accepts no other subcommand"),
    }
}

fn with_limit(path: &str, matches: &ArgMatches) -> String {
    format!("{path}limit={}", matches.get_one::<u32>("limit").expect("it has a default"))
}

fn print(matches: &ArgMatches, path: &str, list: &str, columns: &[Column]) -> CliResult {
    let response = admin_client::request(matches, path, None)?;
    if matches.get_flag("json") {
        print_line(&response)?;
        return Ok(ExitCode::SUCCESS);
    }
    print_table(columns, rows(&response[list]))?;
    if let Some(count @ 1..) = response["other"]["count"].as_u64() {
        print_line(format_args!("{count} more, {} in all", duration(&response["other"]["total_ms"])))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Seconds from one second on, milliseconds below.
fn duration(millis: &Value) -> String {
    match millis.as_f64().unwrap_or_default() {
        millis if millis < 1000.0 => format!("{millis:.1} ms"),
        millis => format!("{:.1} s", millis / 1000.0),
    }
}

fn cancel(matches: &ArgMatches) -> CliResult {
    let text = |name: &str| arguments::text(matches, name);
    let command = json!({ "request_id": text("request-id"), "why": text("why") }).to_string();
    let response = admin_client::request(matches, "/queries/cancel", Some(&command))?;
    let count = |name: &str| response[name].as_u64().unwrap_or_default();
    let name = |user: &'_ str| if user.is_empty() { "an unknown user".to_owned() } else { printable(user) };
    let users: Vec<_> = rows(&response["users"]).iter().filter_map(Value::as_str).map(name).collect();
    match (count("cancelled"), count("abandoned")) {
        (0, 0) => print_line("No query with this id is queued or running at this gateway.")?,
        (0, _) => print_line("It was cancelled, or its client has left; the gateway waits for the backend to end it.")?,
        (1, _) => print_line(format_args!("Cancelled 1 query of {}.", users.join(", ")))?,
        (number, _) => print_line(format_args!("Cancelled {number} queries of {}.", users.join(", ")))?,
    }
    Ok(if count("cancelled") == 0 { ExitCode::from(NOTHING_MATCHED) } else { ExitCode::SUCCESS })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_a_unit() {
        assert_eq!((duration(&json!(12.34)), duration(&json!(1999.0))), ("12.3 ms".to_owned(), "2.0 s".to_owned()));
    }
}
