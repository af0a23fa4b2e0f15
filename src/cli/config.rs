//! `timbr-gateway config check|print|schema`

use std::process::ExitCode;

use clap::{Arg, ArgAction, ArgMatches, Command};

use crate::cli::{Outcome, options, say};
use crate::config::print::effective;
use crate::config::schema::schema;
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
        .subcommand(
            Command::new("schema").about("Print the JSON Schema (2020-12) of the configuration file").after_help(
                "Example:\n  timbr-gateway config schema > gateway.schema.json\n\n\
                 An editor that speaks to yaml-language-server checks the file against it if that begins with:\n  \
                 # yaml-language-server: $schema=gateway.schema.json",
            ),
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
        Some(("schema", _)) => say(format_args!("{:#}", schema()))?,
        _ => unreachable!("clap takes no other"),
    }
    Ok(ExitCode::SUCCESS)
}
