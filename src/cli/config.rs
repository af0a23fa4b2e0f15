//! `timbr-gateway config check|print`

use std::process::ExitCode;

use clap::{Arg, ArgAction, ArgMatches, Command};

use crate::cli::{Outcome, options, say};
use crate::config::print::effective;
use crate::server;

pub fn command() -> Command {
    let origins = Arg::new("origins")
        .long("origins")
        .action(ArgAction::SetTrue)
        .help("Tell where each value came from");
    Command::new("config")
        .about("Look at the configuration without starting the gateway")
        .subcommand_required(true)
        .subcommand(options::add_to(
            Command::new("check")
                .about("Read everything that `serve` would read, and tell all that is wrong"),
        ))
        .subcommand(
            options::add_to(
                Command::new("print").about("Print the configuration in force, without its secrets"),
            )
            .arg(origins),
        )
        .after_help("Example:\n  timbr-gateway config print --config gateway.yaml --origins")
}

pub fn run(matches: &ArgMatches) -> Outcome {
    match matches.subcommand() {
        Some(("check", matches)) => {
            let (config, _) = options::load(&options::sources(matches))?;
            server::check(&config)?;
            say("The configuration is valid.")?;
        }
        Some(("print", matches)) => {
            let (config, settings) = options::load(&options::sources(matches))?;
            say(effective(&settings, &config.routes, matches.get_flag("origins")).trim_end())?;
        }
        _ => unreachable!("clap takes no other"),
    }
    Ok(ExitCode::SUCCESS)
}
