//! A password from a file, from standard input, or from who sits at the terminal; never from an argument.

use std::io::{IsTerminal, Read};
use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::{Arg, ArgAction, ArgMatches, value_parser};
use zeroize::Zeroizing;

use crate::base::secret::Secret;

/// The arguments that say where it comes from.
pub fn arguments() -> [Arg; 2] {
    let file = Arg::new("password-file").long("password-file").value_name("FILE");
    let stdin = Arg::new("password-stdin").long("password-stdin").action(ArgAction::SetTrue);
    [
        file.value_parser(value_parser!(PathBuf)).help("Read the password from a file"),
        stdin.conflicts_with("password-file").help("Read the password from standard input"),
    ]
}

/// The password; never an empty one.
pub fn read(matches: &ArgMatches) -> anyhow::Result<Secret> {
    let password = read_unchecked(matches)?;
    if password.expose().is_empty() {
        bail!("the password is empty");
    }
    Ok(password)
}

fn read_unchecked(matches: &ArgMatches) -> anyhow::Result<Secret> {
    if let Some(file) = matches.get_one::<PathBuf>("password-file") {
        return Secret::read_file(file)
            .with_context(|| format!("cannot read the password from {}", file.display()));
    }
    if matches.get_flag("password-stdin") || !std::io::stdin().is_terminal() {
        let mut text = Zeroizing::new(String::new());
        std::io::stdin().read_to_string(&mut text).context("cannot read the password from standard input")?;
        return Ok(Secret::new(text.trim_end_matches(['\r', '\n']).to_owned()));
    }
    let typed = rpassword::prompt_password("Password: ").context("cannot ask for the password")?;
    Ok(Secret::new(typed))
}
