//! The options of the configuration as flags.

use std::path::PathBuf;

use anyhow::bail;
use clap::{Arg, ArgMatches, Command, value_parser};

use crate::base::secret::Secret;
use crate::config::options::{self, OptionSpec, flag_of};
use crate::config::sources::{self, format_problems};
use crate::config::{self, Config, Settings, Sources};

/// Adds `--config` and a flag for each option.
pub fn add_all(command: Command) -> Command {
    let command = command.next_line_help(true).arg(config_argument());
    options::all().fold(command, |command, option| command.arg(option_argument(option)))
}

/// `--config`, and the flag for one option.
pub fn add_one(command: Command, key: &str) -> Command {
    let option = options::find(key).expect("the callers name options that there are");
    command.next_line_help(true).arg(config_argument()).arg(option_argument(option))
}

/// The value of one option, whatever else is wrong with the configuration.
pub fn read_one(matches: &ArgMatches, key: &str) -> anyhow::Result<Option<Secret>> {
    let mut problems = Vec::new();
    let mut settings = sources::merge(&sources(matches), &mut problems);
    problems.retain(|problem| problem.subject == key || problem.subject == "config");
    if !problems.is_empty() {
        bail!("the configuration cannot be used:{}", format_problems(&problems));
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
    let default = option.default.map(|text| format!(" [default: {text}]")).unwrap_or_default();
    let range = option.range.map(|(min, max)| format!(" [range: {min} to {max}]")).unwrap_or_default();
    let variable = option.variable();
    match (option.flag(), option.file_twin()) {
        (Some(flag), _) => Arg::new(option.key)
            .long(flag)
            .value_name(option.value_name())
            .help(format!("{} [env: {variable}]{default}{range}", option.help)),
        (None, twin) => {
            let twin = twin.expect("what has no flag is a secret, and that has a twin");
            Arg::new(twin.clone())
                .long(flag_of(&twin))
                .value_name("FILE")
                .help(format!("File with: {} [env: {variable}_FILE, or {variable} itself]", option.help))
        }
    }
}

/// What the flags, the environment and the file say.
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

/// The configuration, or one text with everything that is wrong with it.
pub fn load(sources: &Sources) -> anyhow::Result<(Config, Settings)> {
    match config::load(sources) {
        Ok(loaded) => Ok(loaded),
        Err(problems) => bail!("the configuration cannot be used:{}", format_problems(&problems)),
    }
}
