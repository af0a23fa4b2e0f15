//! The command line: one file a subcommand.

mod bearer;
mod config;
mod demo;
mod doctor;
mod explain;
mod healthcheck;
mod options;
mod password;
mod running;
mod salt;
mod serve;
mod tokens;
mod users;

use std::fmt::Display;
use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::Context;
use clap::Command;

use crate::hardening;

/// What a command says at its end: an exit code, or a reason that is printed.
type Outcome = anyhow::Result<ExitCode>;

/// Runs what the arguments say.
pub fn run() -> ExitCode {
    let outcome =
        hardening::close().context("cannot switch core dumps off").and_then(|()| command_of_the_arguments());
    outcome.unwrap_or_else(|error| {
        if error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe) {
            return ExitCode::SUCCESS; // Who reads has seen enough: `timbr-gateway config print | head`.
        }
        complain(&format!("error: {error:#}"));
        ExitCode::FAILURE
    })
}

fn command_of_the_arguments() -> Outcome {
    match command().get_matches().subcommand() {
        Some(("serve", matches)) => serve::run(matches),
        Some(("demo", matches)) => demo::run(matches),
        Some(("bearer", matches)) => bearer::run(matches),
        Some(("salt", matches)) => salt::run(matches),
        Some(("tokens", matches)) => tokens::run(matches),
        Some(("explain", matches)) => explain::run(matches),
        Some(("users", matches)) => users::run(matches),
        Some(("config", matches)) => config::run(matches),
        Some(("doctor", matches)) => doctor::run(matches),
        Some(("healthcheck", matches)) => healthcheck::run(matches),
        _ => unreachable!("clap takes no other"),
    }
}

/// All commands, for `main` and for what is generated from them.
pub fn command() -> Command {
    Command::new("timbr-gateway")
        .version(env!("CARGO_PKG_VERSION"))
        .about("An authenticating reverse proxy for the API of a Timbr semantic layer")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(serve::command())
        .subcommand(demo::command())
        .subcommand(bearer::command())
        .subcommand(salt::command())
        .subcommand(tokens::command())
        .subcommand(explain::command())
        .subcommand(users::command())
        .subcommand(config::command())
        .subcommand(doctor::command())
        .subcommand(healthcheck::command())
        .after_help(
            "Exit codes: 0 done; 1 failed, with a sentence on standard error; 2 wrong arguments; 3 a worker \
             broke down; 130 ended by a second signal.",
        )
}

/// Prints a line to standard output.
fn say(line: impl Display) -> io::Result<()> {
    writeln!(io::stdout(), "{line}")
}

#[allow(clippy::print_stderr, reason = "what a person at the terminal must read, before there is a log")]
fn complain(text: &str) {
    eprintln!("{text}");
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_command_is_well_formed() {
        super::command().debug_assert();
    }
}
