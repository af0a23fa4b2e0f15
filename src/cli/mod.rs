//! The command line, one file per subcommand. It parses arguments and prints results; the work is done by other
//! folders.

mod admin_client;
mod admin_commands;
mod arguments;
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
mod queries;
mod salt;
mod serve;
mod stops;
mod store;
mod table;
mod tokens;
mod top;
mod users;

use std::fmt::Display;
use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::Context;
use clap::{ArgMatches, Command};

use crate::os::core_dumps;

use serve::SignalHandlers;

/// The exit code of an admin command that changed nothing, as with a misspelled name.
const NOTHING_MATCHED: u8 = 4;

/// The exit code of a command, or an error to print.
type CliResult = anyhow::Result<ExitCode>;

/// The definition of a subcommand, and the function that runs it.
type Subcommand = (Command, fn(&ArgMatches) -> CliResult);

/// Runs the subcommand that the arguments select.
pub fn run() -> ExitCode {
    let outcome = core_dumps::disable().context("cannot disable core dumps").and_then(|()| dispatch());
    outcome.unwrap_or_else(|error| {
        if error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe) {
            return ExitCode::SUCCESS; // The reader closed the pipe: `timbr-gateway config print | head`.
        }
        print_error(&format!("error: {error:#}"));
        ExitCode::FAILURE
    })
}

fn dispatch() -> CliResult {
    // Before the arguments are parsed, which takes milliseconds: until then a signal ends the process.
    let is_serve = std::env::args_os().nth(1).is_some_and(|name| name == "serve");
    let signals = if is_serve { Some(SignalHandlers::install()?) } else { None };
    let matches = command().get_matches();
    let (name, matches) = matches.subcommand().expect("clap requires a subcommand");
    if name == "serve" {
        return serve::run(matches, signals.map_or_else(SignalHandlers::install, Ok)?);
    }
    let found = subcommands().into_iter().find(|(command, _)| command.get_name() == name);
    found.expect("clap accepts no other subcommand").1(matches)
}

/// The subcommands except `serve`, in the sequence of the help.
fn subcommands() -> Vec<Subcommand> {
    let [reload, drain, log_level] = admin_commands::commands();
    let [stop, resume, stopped] = stops::commands();
    vec![
        (demo::command(), demo::run),
        (bearer::command(), bearer::run),
        (salt::command(), salt::run),
        (store::command(), store::run),
        (reload, admin_commands::reload),
        (drain, admin_commands::drain),
        (log_level, admin_commands::log_level),
        (stop, stops::stop),
        (resume, stops::resume),
        (stopped, stops::stopped),
        (top::command(), top::run),
        (tokens::command(), tokens::run),
        (queries::command(), queries::run),
        (explain::command(), explain::run),
        (users::command(), users::run),
        (config::command(), config::run),
        (doctor::command(), doctor::run),
        (healthcheck::command(), healthcheck::run),
        (healthcheck::wait_command(), healthcheck::wait),
        (completions::command(), completions::run),
        (man::command(), man::run),
    ]
}

/// The whole command line; completions and manual pages are generated from it.
pub fn command() -> Command {
    Command::new("timbr-gateway")
        .version(env!("CARGO_PKG_VERSION"))
        .long_version(long_version())
        .about("Authenticating reverse proxy for the API of a Timbr semantic layer")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(serve::command())
        .subcommands(subcommands().into_iter().map(|(command, _)| command))
        .after_help(
            "Examples:\n  \
             timbr-gateway demo --once\n  \
             timbr-gateway config check -c gateway.yaml\n  \
             timbr-gateway serve -c gateway.yaml\n  \
             timbr-gateway doctor -c gateway.yaml --user alice\n  \
             timbr-gateway explain 7496242a0b4f4c0f9b1d5d0c3f1e2a77\n\n\
             Exit codes:\n  \
             0    success\n  \
             1    failure, with a message on standard error\n  \
             2    invalid arguments\n  \
             3    serve: a thread or task of the gateway failed\n  \
             4    tokens revoke: no token matches; tokens allow: not denied; queries cancel: no query\n       \
                  matches; resume: not stopped\n  \
             130  serve: aborted by a second signal\n\n\
             Output is colored on terminals, unless NO_COLOR is set.",
        )
}

/// Version, commit and target. The commit is passed to the build, because a source archive does not contain it.
fn long_version() -> String {
    let commit = option_env!("BUILD_COMMIT").filter(|commit| !commit.is_empty()).unwrap_or("unknown");
    let libc = if cfg!(target_env = "musl") { "musl" } else { "gnu" };
    let (arch, os) = (std::env::consts::ARCH, std::env::consts::OS);
    format!("{}\ncommit: {commit}\ntarget: {arch}-{os}-{libc}", env!("CARGO_PKG_VERSION"))
}

/// Prints a line to standard output.
fn print_line(line: impl Display) -> io::Result<()> {
    writeln!(io::stdout(), "{line}")
}

#[allow(clippy::print_stderr, reason = "for the user at the terminal, before the log is initialized")]
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
    fn the_help_of_every_command_has_an_example() {
        fn check(command: &clap::Command, name: &str) {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("Example"), "{name} --help has no example");
            // A longer command is wrapped at a space, and runs as two if it is copied.
            let commands = help.lines().filter(|line| line.starts_with("  "));
            assert!(commands.clone().all(|line| line.chars().count() <= 100), "{name} --help: {help}");
            for subcommand in command.get_subcommands() {
                check(subcommand, &format!("{name} {}", subcommand.get_name()));
            }
        }
        check(&super::command(), "timbr-gateway");
    }
}
