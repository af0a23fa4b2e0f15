//! `timbr-gateway top`: the users, addresses, routes and rejection reasons with the most requests of the last minutes.

use std::io;
use std::process::ExitCode;

use clap::{ArgMatches, Command};
use serde_json::Value;

use crate::cli::table::{Column, print_table, printable_text, rows};
use crate::cli::{CliResult, admin_client, arguments, print_line};

pub fn command() -> Command {
    let command = Command::new("top")
        .about("Show who sends the most requests, and whose requests are rejected or fail")
        .arg(arguments::flag("json", "Print JSON"))
        .after_help(
            "The busiest users, client addresses, routes and rejection reasons of the last five minutes, of this gateway \
             only, once their responses have ended: `queries running` lists what still runs. With many callers the \
             counts of users and addresses are lower bounds. IPv6 addresses are counted by their /64 network.\n\n\
             Example:\n  timbr-gateway top",
        );
    admin_client::add_arguments(command)
}

pub fn run(matches: &ArgMatches) -> CliResult {
    let top = admin_client::request(matches, "/top", None)?;
    if matches.get_flag("json") {
        print_line(&top)?;
        return Ok(ExitCode::SUCCESS);
    }
    let seconds = top["seconds"].as_f64().unwrap_or_default();
    print_line(format_args!("Requests of the last {seconds} seconds"))?;
    for (key, title) in [("users", "USER"), ("addresses", "ADDRESS"), ("routes", "ROUTE")] {
        let columns: [Column; 5] = [
            (title, |row| printable_text(row, "name")),
            ("REQUESTS", |row| row["requests"].to_string()),
            ("REJECTED", |row| row["rejected"].to_string()),
            ("FAILED", |row| row["failed"].to_string()),
            ("LAST REASON", |row| printable_text(row, "reason")),
        ];
        print_section(&columns, rows(&top[key]))?;
    }
    let columns: [Column; 2] =
        [("REASON", |row| printable_text(row, "name")), ("REQUESTS", |row| row["requests"].to_string())];
    print_section(&columns, rows(&top["reasons"]))?;
    Ok(ExitCode::SUCCESS)
}

fn print_section(columns: &[Column], rows: &[Value]) -> io::Result<()> {
    if rows.is_empty() {
        return Ok(());
    }
    print_line("")?;
    print_table(columns, rows)
}
