//! `timbr-gateway top`: the users, addresses, routes and rejection reasons with the most requests of the last minutes.

use std::process::ExitCode;

use clap::{ArgMatches, Command};
use serde_json::Value;

use crate::cli::table::rows;
use crate::cli::{CliResult, admin_client, arguments, print_line};

pub fn command() -> Command {
    let command = Command::new("top")
        .about("Show who sends the most requests, and whose requests are rejected or fail")
        .arg(arguments::flag("json", "Print JSON"))
        .after_help(
            "The busiest users, client addresses, routes and rejection reasons of the last five minutes, of this gateway \
             only. With many callers the counts of users and addresses are lower bounds. IPv6 addresses are counted by \
             their /64 network.\n\n\
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
        print_callers(&top[key], title)?;
    }
    let reasons = rows(&top["reasons"]);
    if !reasons.is_empty() {
        print_line(format_args!("\n{:<28}{:>10}", "REASON", "REQUESTS"))?;
    }
    for row in reasons {
        print_line(format_args!("{:<28}{:>10}", row["name"].as_str().unwrap_or_default(), row["requests"]))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn print_callers(callers: &Value, title: &str) -> anyhow::Result<()> {
    let rows = rows(callers);
    if rows.is_empty() {
        return Ok(());
    }
    let (requests, rejected, failed) = ("REQUESTS", "REJECTED", "FAILED");
    print_line(format_args!("\n{title:<28}{requests:>10}{rejected:>10}{failed:>10}  LAST REASON"))?;
    for row in rows {
        let text = |name: &str| row[name].as_str().unwrap_or_default();
        let number = |name: &str| row[name].as_u64().unwrap_or_default();
        let line = format!(
            "{:<28}{:>10}{:>10}{:>10}  {}",
            text("name"),
            number("requests"),
            number("rejected"),
            number("failed"),
            text("reason")
        );
        print_line(line.trim_end())?;
    }
    Ok(())
}
