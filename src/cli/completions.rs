//! `timbr-gateway completions SHELL`: completion scripts, generated from the command line definition.

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Arg, ArgMatches, Command, value_parser};
use clap_complete::{Shell, generate};

use crate::cli::{CliResult, command as root_command};

pub fn command() -> Command {
    let shell = Arg::new("shell")
        .value_name("SHELL")
        .required(true)
        .value_parser(value_parser!(Shell))
        .help("Shell to print the script for");
    Command::new("completions").about("Print a shell completion script").arg(shell).after_help(
        "Examples:\n  \
         timbr-gateway completions bash > /etc/bash_completion.d/timbr-gateway\n  \
         timbr-gateway completions zsh > \"${fpath[1]}/_timbr-gateway\"\n  \
         timbr-gateway completions fish > ~/.config/fish/completions/timbr-gateway.fish",
    )
}

pub fn run(matches: &ArgMatches) -> CliResult {
    let shell = *matches.get_one::<Shell>("shell").expect("clap requires it");
    // Generated into memory first: `generate` panics if the output is closed.
    let mut script = Vec::new();
    generate(shell, &mut root_command(), "timbr-gateway", &mut script);
    let mut script = String::from_utf8(script).context("a completion script is text")?;
    if shell == Shell::Bash {
        // clap_complete 4.6 spells a name with a hyphen in two ways, so that subcommands would not be completed.
        script = script.replace("timbr__subcmd__gateway", "timbr__gateway");
    }
    io::stdout().write_all(script.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}
