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
    if has_source || !std::io::stdin().is_terminal() {
        return read_source(matches, "password");
    }
    let typed = rpassword::prompt_password("Password: ").context("cannot read the password from the terminal")?;
    require_text(Secret::new(typed), "password")
}

/// Reads a secret from the file of `--<name>-file` or, without it, from standard input. An empty one is an error.
pub fn read_source(matches: &ArgMatches, name: &str) -> anyhow::Result<Secret> {
    if let Some(file) = matches.get_one::<PathBuf>(&format!("{name}-file")) {
        let secret = Secret::read_file(file);
        return require_text(secret.with_context(|| format!("cannot read the {name} from {}", file.display()))?, name);
    }
    let mut text = Zeroizing::new(String::new());
    std::io::stdin()
        .read_to_string(&mut text)
        .with_context(|| format!("cannot read the {name} from standard input"))?;
    require_text(Secret::new(text.trim_end_matches(['\r', '\n']).to_owned()), name)
}

fn require_text(secret: Secret, name: &str) -> anyhow::Result<Secret> {
    if secret.expose().is_empty() {
        bail!("the {name} is empty");
    }
    Ok(secret)
}
