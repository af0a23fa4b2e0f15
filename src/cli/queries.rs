//! `timbr-gateway queries`: shows and cancels the queries of a running gateway.

use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Arg, ArgMatches, Command, value_parser};
use serde_json::{Value, json};

use crate::base::percent;
use crate::cli::admin_client::{self, AdminClient};
use crate::cli::explain::printable_text;
use crate::cli::tokens::format_time;
use crate::cli::{CliResult, print_line};

const ADMIN_TIMEOUT: Duration = Duration::from_secs(10);

/// The exit code of `cancel` if nothing was cancelled.
const NO_QUERY_MATCHES: u8 = 4;

/// A column of a table: its title, its width, and the value in a row. The last column has no width.
type Column = (&'static str, usize, fn(&Value) -> String);

const RUNNING: [Column; 8] = [
    ("REQUEST ID", 34, |query| printable_text(query, "request_id")),
    ("STATE", 11, |query| printable_text(query, "state")),
    ("FOR", 11, |query| duration(&query["running_ms"])),
    ("USER", 20, |query| printable_text(query, "user")),
    ("ONTOLOGY", 20, |query| printable_text(query, "ontology")),
    ("CLASS", 9, |query| printable_text(query, "class")),
    ("FINGERPRINT", 18, |query| printable_text(query, "fingerprint")),
    ("TEXT", 0, |query| printable_text(query, "text")),
];

const SLOW: [Column; 9] = [
    ("ENDED", 22, |query| query["ended"].as_u64().map_or(String::new(), format_time)),
    ("DURATION", 11, |query| duration(&query["total_ms"])),
    ("STATUS", 8, |query| query["status"].to_string()),
    ("USER", 20, |query| printable_text(query, "user")),
    ("ONTOLOGY", 20, |query| printable_text(query, "ontology")),
    ("CLASS", 9, |query| printable_text(query, "class")),
    ("FINGERPRINT", 18, |query| printable_text(query, "fingerprint")),
    ("REQUEST ID", 34, |query| printable_text(query, "request_id")),
    ("TEXT", 0, |query| printable_text(query, "text")),
];

const TOP: [Column; 8] = [
    ("KEY", 24, |row| printable_text(row, "key")),
    ("COUNT", 9, |row| row["count"].to_string()),
    ("ERRORS", 9, |row| row["errors"].to_string()),
    ("TOTAL", 11, |row| duration(&row["total_ms"])),
    ("MEAN", 11, |row| duration(&row["mean_ms"])),
    ("MAX", 11, |row| duration(&row["max_ms"])),
    ("BYTES", 13, |row| row["sent"].to_string()),
    ("TEXT", 0, |row| printable_text(row, "text")),
];

pub fn command() -> Command {
    let output = || {
        Arg::new("output")
            .long("output")
            .short('o')
            .value_parser(["table", "json"])
            .default_value("table")
            .help("Format; json: times in seconds since the Unix epoch")
    };
    let limit = || {
        Arg::new("limit")
            .long("limit")
            .value_name("N")
            .default_value("20")
            .value_parser(value_parser!(u32).range(1..))
            .help("Maximum number of rows")
    };
    let running = Command::new("running")
        .about("List queued, running and abandoned queries, the oldest first")
        .arg(output())
        .after_help("Examples:\n  timbr-gateway queries running\n  timbr-gateway queries running --output json");
    let slow = Command::new("slow")
        .about("List the slowest queries of the last hour")
        .args([limit(), output()])
        .after_help("Example:\n  timbr-gateway queries slow --limit 5");
    let top = Command::new("top")
        .about("List who or what took the most time in the last hour")
        .arg(
            Arg::new("by")
                .long("by")
                .value_parser(["user", "ontology", "fingerprint"])
                .default_value("user")
                .help("What the queries are grouped by; fingerprint: the statement without its literals"),
        )
        .args([limit(), output()])
        .after_help(
            "Examples:\n  timbr-gateway queries top --by user\n  timbr-gateway queries top --by fingerprint --limit 5",
        );
    let cancel = Command::new("cancel")
        .about("Cancel a queued or running query")
        .arg(
            Arg::new("request-id")
                .value_name("ID")
                .required(true)
                .help("Request id, from `queries running` or the log"),
        )
        .arg(
            Arg::new("why")
                .long("why")
                .value_name("TEXT")
                .default_value("")
                .hide_default_value(true)
                .help("Reason, for the audit log and the client"),
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
        .after_help(
            "Requires journal.enabled. The command is sent to the admin listener: to listen.admin_socket if there is one, \
             otherwise to listen.admin with listen.admin_token. It is accepted from the same machine only.\n\n\
             Examples:\n  timbr-gateway queries running\n  timbr-gateway queries top --by user",
        )
}

pub fn run(matches: &ArgMatches) -> CliResult {
    match matches.subcommand() {
        Some(("running", matches)) => print(matches, "/queries/running", "queries", &RUNNING),
        Some(("slow", matches)) => print(matches, &with_limit("/queries/slow?", matches), "queries", &SLOW),
        Some(("top", matches)) => {
            let by = matches.get_one::<String>("by").expect("it has a default");
            print(matches, &with_limit(&format!("/queries/top?by={}&", percent::encode(by)), matches), "rows", &TOP)
        }
        Some(("cancel", matches)) => cancel(matches),
        _ => unreachable!("clap accepts no other subcommand"),
    }
}

fn with_limit(path: &str, matches: &ArgMatches) -> String {
    format!("{path}limit={}", matches.get_one::<u32>("limit").expect("it has a default"))
}

fn print(matches: &ArgMatches, path: &str, list: &str, columns: &[Column]) -> CliResult {
    let response = AdminClient::from_arguments(matches, ADMIN_TIMEOUT)?.request_json(path, None)?;
    if matches.get_one::<String>("output").is_some_and(|format| format == "json") {
        print_line(&response)?;
        return Ok(ExitCode::SUCCESS);
    }
    print_line(table_line(columns.iter().map(|(title, width, _)| ((*title).to_owned(), *width))))?;
    for row in response[list].as_array().into_iter().flatten() {
        print_line(table_line(columns.iter().map(|(_, width, value)| (value(row), *width))))?;
    }
    if let Some(count @ 1..) = response["other"]["count"].as_u64() {
        print_line(format_args!("{count} more, {} in all", duration(&response["other"]["total_ms"])))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// A cell that is wider than its column keeps one space behind it.
fn table_line(cells: impl Iterator<Item = (String, usize)>) -> String {
    let mut line = String::new();
    for (text, width) in cells {
        let _ = write!(line, "{text:<0$} ", width.saturating_sub(1));
    }
    line.trim_end().to_owned()
}

/// Seconds from one second on, milliseconds below.
fn duration(millis: &Value) -> String {
    match millis.as_f64().unwrap_or_default() {
        millis if millis < 1000.0 => format!("{millis:.1} ms"),
        millis => format!("{:.1} s", millis / 1000.0),
    }
}

fn cancel(matches: &ArgMatches) -> CliResult {
    let text = |name: &str| matches.get_one::<String>(name).expect("required, or it has a default");
    let command = json!({ "request_id": text("request-id"), "why": text("why") }).to_string();
    let response =
        AdminClient::from_arguments(matches, ADMIN_TIMEOUT)?.request_json("/queries/cancel", Some(&command))?;
    let count = |name: &str| response[name].as_u64().unwrap_or_default();
    let users: Vec<_> = response["users"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    match (count("cancelled"), count("abandoned")) {
        (0, 0) => print_line("No query with this id is queued or running at this gateway.")?,
        (0, _) => print_line("Its client has left already; the gateway waits for the backend to end it.")?,
        (1, _) => print_line(format_args!("Cancelled 1 query of {}.", users.join(", ")))?,
        (number, _) => print_line(format_args!("Cancelled {number} queries of {}.", users.join(", ")))?,
    }
    Ok(if count("cancelled") == 0 { ExitCode::from(NO_QUERY_MATCHES) } else { ExitCode::SUCCESS })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_aligned_and_never_joined() {
        let line =
            |cells: [(&str, usize); 3]| table_line(cells.map(|(text, width)| (text.to_owned(), width)).into_iter());
        assert_eq!(line([("a", 4), ("b", 3), ("c", 0)]), "a   b  c");
        assert_eq!(line([("abcdef", 4), ("", 3), ("", 0)]), "abcdef");
        assert_eq!(line([("abcdef", 4), ("b", 3), ("c", 0)]), "abcdef b  c");
        assert_eq!((duration(&json!(12.34)), duration(&json!(1999.0))), ("12.3 ms".to_owned(), "2.0 s".to_owned()));
    }

    #[test]
    fn no_control_character_of_a_statement_reaches_the_terminal() {
        let query = json!({ "text": "SELECT '\u{1b}[2J'" });
        assert_eq!((RUNNING[7].2)(&query), "SELECT '\\u{1b}[2J'");
    }
}
