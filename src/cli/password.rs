//! Reads a password from a file, standard input or the terminal. Never from an argument, because other users can see
//! those.

use std::io::{IsTerminal, Read};
use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::{Arg, ArgAction, ArgMatches, value_parser};
use zeroize::Zeroizing;

use crate::base::secret::Secret;

/// `--password-file` and `--password-stdin`.
pub fn arguments() -> [Arg; 2] {
    let file = Arg::new("password-file").long("password-file").value_name("FILE");
    let stdin = Arg::new("password-stdin").long("password-stdin").action(ArgAction::SetTrue);
    [
        file.value_parser(value_parser!(PathBuf)).help("Read the password from a file"),
        stdin.conflicts_with("password-file").help("Read the password from standard input"),
    ]
}

/// Reads the password from the selected source, by default from the terminal. An empty password is an error.
pub fn read(matches: &ArgMatches) -> anyhow::Result<Secret> {
    let password = read_unchecked(matches)?;
    if password.expose().is_empty() {
        bail!("the password is empty");
    }
    Ok(password)
}

fn read_unchecked(matches: &ArgMatches) -> anyhow::Result<Secret> {
    if let Some(file) = matches.get_one::<PathBuf>("password-file") {
        return Secret::read_file(file).with_context(|| format!("cannot read the password from {}", file.display()));
    }
    if matches.get_flag("password-stdin") || !std::io::stdin().is_terminal() {
        let mut text = Zeroizing::new(String::new());
        std::io::stdin().read_to_string(&mut text).context("cannot read the password from standard input")?;
        return Ok(Secret::new(text.trim_end_matches(['\r', '\n']).to_owned()));
    }
    let typed = rpassword::prompt_password("Password: ").context("cannot read the password from the terminal")?;
    Ok(Secret::new(typed))
}
