//! The configuration options as command line flags, generated from the table of options in `config`.

use std::ffi::OsStr;
use std::path::PathBuf;

use anyhow::bail;
use clap::builder::{PossibleValue, StringValueParser, TypedValueParser};
use clap::{Arg, ArgMatches, Command, value_parser};

use crate::base::secret::Secret;
use crate::config::options::{self, OptionSpec, Shape, flag_of};
use crate::config::sources::{self, format_problems};
use crate::config::{self, Config, Settings, Sources};

/// Adds `--config` and a flag for each option.
pub fn add_all(command: Command) -> Command {
    let command = command.next_line_help(true).arg(config_argument());
    options::all().fold(command, |command, option| command.arg(option_argument(option)))
}

/// Adds `--config` and the flag of one option.
pub fn add_one(command: Command, key: &str) -> Command {
    add_some(command, &[key])
}

/// Adds `--config` and the flags of these options.
pub fn add_some(command: Command, keys: &[&str]) -> Command {
    let command = command.next_line_help(true).arg(config_argument());
    keys.iter().fold(command, |command, key| {
        command.arg(option_argument(options::find(key).expect("callers name existing options")))
    })
}

/// The value of one option; `None` if it is unset. Errors of other options are ignored.
pub fn read_one(matches: &ArgMatches, key: &str) -> anyhow::Result<Option<Secret>> {
    let mut problems = Vec::new();
    let mut settings = sources::merge(&sources(matches), &mut problems);
    problems.retain(|problem| problem.subject == key || problem.subject == "config");
    if !problems.is_empty() {
        bail!("invalid configuration:{}", format_problems(&problems));
    }
    Ok(settings.values.remove(key).map(|setting| setting.text))
}

fn config_argument() -> Arg {
    Arg::new("config")
        .long("config")
        .short('c')
        .value_name("FILE")
        .value_parser(value_parser!(PathBuf))
        .help("Configuration file (YAML) [env: TIMBR_GATEWAY_CONFIG]")
}

fn option_argument(option: &'static OptionSpec) -> Arg {
    let argument = bare_argument(option).help_heading(option.key.split_once('.').map_or("global", |(group, _)| group));
    match option.shape {
        // Completions offer the words. The configuration rejects others, with the option's name.
        Shape::Choice(words) => argument.value_parser(SuggestedWords(words)).hide_possible_values(true),
        _ => argument,
    }
}

fn bare_argument(option: &'static OptionSpec) -> Arg {
    let default = option.default.map(|text| format!(" [default: {text}]")).unwrap_or_default();
    let range = option.range.map(|(min, max)| format!(" [range: {min} to {max}]")).unwrap_or_default();
    let variable = option.variable();
    match (option.flag(), option.file_twin()) {
        (Some(flag), _) => Arg::new(option.key)
            .long(flag)
            .value_name(option.value_name())
            .help(format!("{} [env: {variable}]{default}{range}", option.help)),
        (None, twin) => {
            let twin = twin.expect("an option without a flag is a secret, which can be read from a file");
            Arg::new(twin.clone()).long(flag_of(&twin)).value_name("FILE").help(format!(
                "File with the secret. {} [env: {variable}_FILE, or {variable} for the value itself]",
                option.help
            ))
        }
    }
}

/// Any text; completions suggest these words.
#[derive(Clone)]
struct SuggestedWords(&'static [&'static str]);

impl TypedValueParser for SuggestedWords {
    type Value = String;

    fn parse_ref(&self, command: &Command, argument: Option<&Arg>, value: &OsStr) -> Result<String, clap::Error> {
        StringValueParser::new().parse_ref(command, argument, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new(self.0.iter().map(|word| PossibleValue::new(*word))))
    }
}

/// The flags, the environment and the path of the configuration file, not yet parsed.
pub fn sources(matches: &ArgMatches) -> Sources {
    let mut sources = Sources {
        environment: std::env::vars_os().collect(),
        file: matches.get_one::<PathBuf>("config").cloned(),
        ..Sources::default()
    };
    for option in options::all() {
        let key = option.file_twin().unwrap_or_else(|| option.key.to_owned());
        if let Ok(Some(text)) = matches.try_get_one::<String>(&key) {
            sources.flags.insert(key, text.clone());
        }
    }
    sources
}

/// Loads and validates the configuration. The error lists every problem.
pub fn load(sources: &Sources) -> anyhow::Result<(Config, Settings)> {
    match config::load(sources) {
        Ok(loaded) => Ok(loaded),
        Err(problems) => bail!("invalid configuration:{}", format_problems(&problems)),
    }
}
