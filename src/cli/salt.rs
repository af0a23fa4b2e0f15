//! `timbr-gateway salt` creates a salt; `timbr-gateway salt status` shows the use of salts through the admin listener.

use std::process::ExitCode;

use clap::{ArgMatches, Command};
use fernet::Fernet;

use crate::cli::table::{format_time, printable_text, rows};
use crate::cli::{CliResult, admin_client, print_line};

pub fn command() -> Command {
    let status = Command::new("status")
        .about("Show when each salt of a running gateway was last used, and by how many users")
        .after_help(
            "A salt can be removed when no user uses it.\n\n\
             Example:\n  timbr-gateway salt status",
        );
    Command::new("salt")
        .about("Generate a salt (API_AUTH_SALT), or show the use of salts")
        .subcommand(admin_client::add_arguments(status))
        .after_help(
            "To rotate salts: set old,new at every replica, give clients the new one, and when `salt status` shows no use \
             of the old one, set only new. For a file or Redis without store.key, see docs/tokens.md.\n\n\
             Examples:\n  \
             (umask 077; timbr-gateway salt > salt)\n  \
             timbr-gateway serve --api-auth-salt-file salt --upstream-url http://127.0.0.1:8000",
        )
}

pub fn run(matches: &ArgMatches) -> CliResult {
    match matches.subcommand() {
        Some(("status", matches)) => print_status(matches)?,
        _ => print_line(Fernet::generate_key())?,
    }
    Ok(ExitCode::SUCCESS)
}

fn print_status(matches: &ArgMatches) -> anyhow::Result<()> {
    let response = admin_client::request(matches, "/salts", None)?;
    print_line(format_args!("{:<10}{:<10}{:<22}USERS IN 30 DAYS", "SALT", "", "LAST USED"))?;
    for (number, salt) in rows(&response["salts"]).iter().enumerate() {
        let role = if number == 0 { "primary" } else { "" };
        let last_used = salt["last_used"].as_u64().map_or("never".to_owned(), format_time);
        let name = printable_text(salt, "salt");
        print_line(format_args!("{name:<10}{role:<10}{last_used:<22}{}", salt["users"]))?;
    }
    if response["since_start"] == true {
        print_line("Since the start of this process only: store.kind is memory.")?;
    }
    Ok(())
}
