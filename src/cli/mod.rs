//! The command line: one file a subcommand.

mod admin_client;
mod admin_commands;
mod bearer;
mod completions;
mod config;
mod demo;
mod doctor;
mod explain;
mod healthcheck;
mod man;
mod options;
mod password;
mod salt;
mod serve;
mod tokens;
mod users;

use std::fmt::Display;
use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::Context;
use clap::Command;

use crate::os::core_dumps;

/// What a command says at its end: an exit code, or a reason that is printed.
type CliResult = anyhow::Result<ExitCode>;

/// Runs what the arguments say.
pub fn run() -> ExitCode {
    let outcome = core_dumps::disable().context("cannot switch core dumps off").and_then(|()| dispatch());
    outcome.unwrap_or_else(|error| {
        if error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe) {
            return ExitCode::SUCCESS; // Who reads has seen enough: `timbr-gateway config print | head`.
        }
        print_error(&format!("error: {error:#}"));
        ExitCode::FAILURE
    })
}

fn dispatch() -> CliResult {
    match command().get_matches().subcommand() {
        Some(("serve", matches)) => serve::run(matches),
        Some(("demo", matches)) => demo::run(matches),
        Some(("bearer", matches)) => bearer::run(matches),
        Some(("salt", matches)) => salt::run(matches),
        Some(("reload", matches)) => admin_commands::reload(matches),
        Some(("drain", matches)) => admin_commands::drain(matches),
        Some(("log-level", matches)) => admin_commands::log_level(matches),
        Some(("tokens", matches)) => tokens::run(matches),
        Some(("explain", matches)) => explain::run(matches),
        Some(("users", matches)) => users::run(matches),
        Some(("config", matches)) => config::run(matches),
        Some(("doctor", matches)) => doctor::run(matches),
        Some(("healthcheck", matches)) => healthcheck::run(matches),
        Some(("completions", matches)) => completions::run(matches),
        Some(("man", matches)) => man::run(matches),
        _ => unreachable!("clap takes no other"),
    }
}

/// All commands, for `main` and for what is generated from them.
pub fn command() -> Command {
    Command::new("timbr-gateway")
        .version(env!("CARGO_PKG_VERSION"))
        .long_version(long_version())
        .about("An authenticating reverse proxy for the API of a Timbr semantic layer")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(serve::command())
        .subcommand(demo::command())
        .subcommand(bearer::command())
        .subcommand(salt::command())
        .subcommands(admin_commands::commands())
        .subcommand(tokens::command())
        .subcommand(explain::command())
        .subcommand(users::command())
        .subcommand(config::command())
        .subcommand(doctor::command())
        .subcommand(healthcheck::command())
        .subcommand(completions::command())
        .subcommand(man::command())
        .after_help(
            "Examples:\n  \
             timbr-gateway demo --once\n  \
             timbr-gateway config check -c gateway.yaml\n  \
             timbr-gateway serve -c gateway.yaml\n  \
             timbr-gateway doctor -c gateway.yaml --user alice\n  \
             timbr-gateway explain 7496242a0b4f4c0f9b1d5d0c3f1e2a77\n\n\
             Exit codes:\n  \
             0    done\n  \
             1    failed, or something is wrong: a sentence says what\n  \
             2    wrong arguments\n  \
             3    serve: a worker broke down\n  \
             130  serve: ended by a second signal\n\n\
             Colours are for terminals only, and never there if NO_COLOR is set.",
        )
}

/// Version, commit and target. The commit is the one that the build was told: who builds from an archive has no other.
fn long_version() -> String {
    let commit =
        option_env!("BUILD_COMMIT").filter(|commit| !commit.is_empty()).unwrap_or("not told to the build");
    let libc = if cfg!(target_env = "musl") { "musl" } else { "gnu" };
    let (arch, os) = (std::env::consts::ARCH, std::env::consts::OS);
    format!("{}\ncommit: {commit}\ntarget: {arch}-{os}-{libc}", env!("CARGO_PKG_VERSION"))
}

/// Prints a line to standard output.
fn print_line(line: impl Display) -> io::Result<()> {
    writeln!(io::stdout(), "{line}")
}

#[allow(clippy::print_stderr, reason = "what a person at the terminal must read, before there is a log")]
fn print_error(text: &str) {
    eprintln!("{text}");
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_command_is_well_formed() {
        super::command().debug_assert();
    }

    #[test]
    fn every_command_shows_how_it_is_used() {
        fn look(command: &clap::Command, name: &str) {
            let told = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(told.contains("Example"), "{name} --help ends without an example");
            for below in command.get_subcommands() {
                look(below, &format!("{name} {}", below.get_name()));
            }
        }
        look(&super::command(), "timbr-gateway");
    }
}
