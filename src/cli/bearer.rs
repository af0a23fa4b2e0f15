//! `timbr-gateway bearer`

use std::io::{IsTerminal, Read};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use zeroize::Zeroizing;

use crate::auth::bearer::make;
use crate::cli::{Outcome, options, say};
use crate::config::options::API_AUTH_SALT;
use crate::config::salts;
use crate::secret::Secret;
use crate::user_name::UserName;

pub fn command() -> Command {
    let command = Command::new("bearer")
        .about("Make the bearer with which a user asks for a token")
        .arg(Arg::new("user").long("user").short('u').value_name("NAME").required(true).help("The user's name"))
        .arg(
            Arg::new("password-file")
                .long("password-file")
                .value_name("FILE")
                .value_parser(value_parser!(PathBuf))
                .help("Read the password from a file"),
        )
        .arg(
            Arg::new("password-stdin")
                .long("password-stdin")
                .action(ArgAction::SetTrue)
                .conflicts_with("password-file")
                .help("Read the password from standard input"),
        )
        .after_help(
            "The password is asked for at the terminal; it is never an argument, as those are visible to all.\n\n\
             Example:\n  \
             curl -X POST https://gateway/timbr/api/get_token -H 'Content-Type: application/json' \\\n    \
             -H \"Authorization: Bearer $(timbr-gateway bearer --user alice)\"",
        );
    options::add_one_to(command, API_AUTH_SALT)
}

pub fn run(matches: &ArgMatches) -> Outcome {
    let user = matches.get_one::<String>("user").expect("clap requires it");
    UserName::parse(user.as_bytes()).with_context(|| format!("--user {user:?}"))?;
    let all =
        options::one(matches, API_AUTH_SALT)?.context("set API_AUTH_SALT, or give --api-auth-salt-file")?;
    let salt = salts::split(all.expose()).next().expect("a text has a first part");
    let password = password(matches)?;
    if password.expose().is_empty() {
        bail!("the password is empty");
    }
    let bearer = make(&salt, user, &password)
        .context("API_AUTH_SALT is no Fernet key; `timbr-gateway salt` makes one")?;
    say(bearer.expose())?;
    Ok(ExitCode::SUCCESS)
}

fn password(matches: &ArgMatches) -> anyhow::Result<Secret> {
    if let Some(file) = matches.get_one::<PathBuf>("password-file") {
        return Secret::read(file)
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
