//! `timbr-gateway bearer`: encrypts user name and password into the bearer that `get_token` expects.

use std::process::ExitCode;

use anyhow::Context;
use clap::{Arg, ArgMatches, Command};

use crate::auth::bearer::make_bearer;
use crate::base::user_name::UserName;
use crate::cli::{CliResult, options, password, print_line};
use crate::config::options::GLOBAL;
use crate::config::salts;

pub fn command() -> Command {
    let command = Command::new("bearer")
        .about("Create the bearer with which a user requests a token")
        .arg(Arg::new("user").long("user").short('u').value_name("NAME").required(true).help("User name"))
        .args(password::arguments())
        .after_help(
            "The password is read from the terminal by default. It cannot be an argument, because arguments are \
             visible to other users.\n\n\
             Example:\n  \
             curl -X POST https://gateway/timbr/api/get_token -H 'Content-Type: application/json' \\\n    \
             -H \"Authorization: Bearer $(timbr-gateway bearer --user alice)\"",
        );
    options::add_one(command, GLOBAL.api_auth_salt.key)
}

pub fn run(matches: &ArgMatches) -> CliResult {
    let user = matches.get_one::<String>("user").expect("clap requires it");
    UserName::parse(user.as_bytes()).with_context(|| format!("--user {user:?}"))?;
    let salts_text =
        options::read_one(matches, GLOBAL.api_auth_salt.key)?.context("set API_AUTH_SALT or --api-auth-salt-file")?;
    let salt = salts::split(salts_text.expose()).next().expect("split returns at least one part");
    let password = password::read(matches)?;
    let bearer = make_bearer(&salt, user, &password)
        .context("API_AUTH_SALT is not a Fernet key; `timbr-gateway salt` creates one")?;
    print_line(bearer.expose())?;
    Ok(ExitCode::SUCCESS)
}
