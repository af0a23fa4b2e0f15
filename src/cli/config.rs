//! `timbr-gateway config check|print|schema`: reads the configuration without starting a gateway.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Arg, ArgMatches, Command, value_parser};

use crate::app;
use crate::cli::{CliResult, arguments, options, print_error, print_line};
use crate::config::print::{OriginComments, to_json, to_yaml};
use crate::config::schema::schema;
use crate::config::{admin_exposure, warnings};
use crate::outbound::otlp;

pub fn command() -> Command {
    let origins = arguments::flag("origins", "Show the source of each value");
    let help = "yaml: a valid configuration file. json: options with values and sources, for programs";
    let format = arguments::value("format", "FORMAT", help).value_parser(["yaml", "json"]).default_value("yaml");
    Command::new("config")
        .about("Check or print the configuration without starting the gateway")
        .subcommand_required(true)
        .subcommand(options::add_all(
            Command::new("check")
                .arg(
                    Arg::new("file")
                        .value_name("FILE")
                        .value_parser(value_parser!(PathBuf))
                        .conflicts_with("config")
                        .help("Configuration file (YAML), the same as --config"),
                )
                .about("Validate the configuration and all files that `serve` reads, and report every error")
                .after_help(
                    "The exit code is 1 if there is an error. Warnings do not affect it.\n\n\
                     Example:\n  timbr-gateway config check gateway.yaml",
                ),
        ))
        .subcommand(
            options::add_all(
                Command::new("print")
                    .about("Print the effective configuration without secrets")
                    .after_help("Example:\n  timbr-gateway config print -c gateway.yaml --origins"),
            )
            .arg(origins)
            .arg(format),
        )
        .subcommand(
            Command::new("schema").about("Print the JSON Schema (2020-12) of the configuration file").after_help(
                "Example:\n  timbr-gateway config schema > gateway.schema.json\n\n\
                 Editors with yaml-language-server validate a configuration file that begins with:\n  \
                 # yaml-language-server: $schema=gateway.schema.json",
            ),
        )
        .after_help(
            "Examples:\n  timbr-gateway config check -c gateway.yaml\n  \
             timbr-gateway config print -c gateway.yaml --origins\n  \
             timbr-gateway config schema > gateway.schema.json",
        )
}

pub fn run(matches: &ArgMatches) -> CliResult {
    match matches.subcommand() {
        Some(("check", matches)) => {
            let mut sources = options::sources(matches);
            sources.file = matches.get_one::<PathBuf>("file").cloned().or(sources.file);
            let (config, settings) = options::load(&sources)?;
            let of_files = app::check(&config)?;
            otlp::check(|name| std::env::var(name).ok())?;
            let all = warnings(&config, &settings).into_iter().chain(admin_exposure(&config)).chain(of_files);
            for warning in all {
                print_error(&format!("warning: {warning}"));
            }
            print_line("The configuration is valid.")?;
        }
        Some(("print", matches)) => {
            let (config, settings) = options::load(&options::sources(matches))?;
            let comments = match matches.get_flag("origins") {
                true => OriginComments::Printed,
                false => OriginComments::Omitted,
            };
            match arguments::text(matches, "format") {
                "json" => print_line(format_args!("{:#}", to_json(&settings, &config.routes)))?,
                _ => print_line(to_yaml(&settings, &config.routes, comments).trim_end())?,
            }
        }
        Some(("schema", _)) => print_line(format_args!("{:#}", schema()))?,
        _ => unreachable!("clap accepts no other subcommand"),
    }
    Ok(ExitCode::SUCCESS)
}
