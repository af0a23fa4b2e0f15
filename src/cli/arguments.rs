//! Arguments that several subcommands have.

use clap::{Arg, ArgAction, ArgMatches, value_parser};

/// `--name VALUE`.
pub fn value(name: &'static str, value_name: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).value_name(value_name).help(help)
}

/// `--name`.
pub fn flag(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).action(ArgAction::SetTrue).help(help)
}

/// `VALUE`, which must be given.
pub fn required(name: &'static str, value_name: &'static str, help: &'static str) -> Arg {
    Arg::new(name).value_name(value_name).required(true).help(help)
}

/// `--json`.
pub fn json() -> Arg {
    flag("json", "Print JSON; times in seconds since the Unix epoch")
}

/// `--user NAME`, also `-u`.
pub fn user(help: &'static str) -> Arg {
    value("user", "NAME", help).short('u')
}

/// `--limit N`, at least 1.
pub fn limit(default: &'static str, help: &'static str) -> Arg {
    value("limit", "N", help).default_value(default).value_parser(value_parser!(u32).range(1..))
}

/// `--name DURATION`, parsed. Whole seconds, as admin commands count in seconds: a fraction must not become 0, which can mean
/// the opposite.
pub fn duration(name: &'static str, help: &'static str) -> Arg {
    let parse = |text: &str| match humantime::parse_duration(text) {
        Ok(duration) if duration.subsec_nanos() != 0 => Err("it must be whole seconds, such as 90s or 2h".to_owned()),
        result => result.map_err(|error| error.to_string()),
    };
    value(name, "DURATION", help).value_parser(parse)
}

/// The text of an argument that is required or has a default.
pub fn text<'a>(matches: &'a ArgMatches, name: &str) -> &'a str {
    matches.get_one::<String>(name).map(String::as_str).expect("it is required or has a default")
}
