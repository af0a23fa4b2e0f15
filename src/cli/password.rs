//! Reads a password from a file, standard input or the terminal. Never from an argument, because other users can see
//! those.

use std::io::{IsTerminal, Read};
use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::{Arg, ArgMatches, value_parser};
use zeroize::Zeroizing;

use crate::base::secret::Secret;
use crate::cli::arguments::{flag, value};

/// `--password-file` and `--password-stdin`.
pub fn arguments() -> [Arg; 2] {
    [
        value("password-file", "FILE", "Read the password from a file").value_parser(value_parser!(PathBuf)),
        flag("password-stdin", "Read the password from standard input").conflicts_with("password-file"),
    ]
}

/// Reads the password from the selected source, by default from the terminal. An empty password is an error.
pub fn read(matches: &ArgMatches) -> anyhow::Result<Secret> {
    let has_source = matches.contains_id("password-file") || matches.get_flag("password-stdin");
    let password = if has_source || !std::io::stdin().is_terminal() {
        read_source(matches, "password")?
    } else {
        let typed = rpassword::prompt_password("Password: ").context("cannot read the password from the terminal")?;
        Secret::new(typed)
    };
    if password.expose().is_empty() {
        bail!("the password is empty");
    }
    Ok(password)
}

/// Reads a secret from the file of `--<name>-file` or, without it, from standard input.
pub fn read_source(matches: &ArgMatches, name: &str) -> anyhow::Result<Secret> {
    if let Some(file) = matches.get_one::<PathBuf>(&format!("{name}-file")) {
        return Secret::read_file(file).with_context(|| format!("cannot read the {name} from {}", file.display()));
    }
    let mut text = Zeroizing::new(String::new());
    std::io::stdin()
        .read_to_string(&mut text)
        .with_context(|| format!("cannot read the {name} from standard input"))?;
    Ok(Secret::new(text.trim_end_matches(['\r', '\n']).to_owned()))
}
