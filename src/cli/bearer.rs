//! `timbr-gateway bearer`: encrypts user name and password into the bearer that `get_token` expects, or shows what is in
//! one.

use std::process::ExitCode;

use anyhow::Context;
use clap::{ArgMatches, Command};
use zeroize::Zeroizing;

use crate::auth::bearer::{BearerOpener, creation_time, make_bearer};
use crate::base::clock::Clock;
use crate::base::secret::Secret;
use crate::base::user_name::UserName;
use crate::cli::table::format_time;
use crate::cli::{CliResult, arguments, options, password, print_line};
use crate::config::options::GLOBAL;
use crate::config::salts;

pub fn command() -> Command {
    let command = Command::new("bearer")
        .about("Create the bearer with which a user requests a token")
        .arg(arguments::user("User name").required_unless_present("decode"))
        .arg(
            arguments::flag(
                "decode",
                "Read a bearer from standard input, and print its user, its time and its salt, not its password",
            )
            .conflicts_with_all(["user", "password-file", "password-stdin"]),
        )
        .args(password::arguments())
        .after_help(
            "The password is read from the terminal by default. It cannot be an argument, because arguments are \
             visible to other users.\n\n\
             Examples:\n  \
             timbr-gateway bearer --decode < bearer\n  \
             curl -X POST https://gateway/timbr/api/get_token -H 'Content-Type: application/json' \\\n    \
             -H \"Authorization: Bearer $(timbr-gateway bearer --user alice)\"",
        );
    options::add_one(command, GLOBAL.api_auth_salt.key)
}

pub fn run(matches: &ArgMatches) -> CliResult {
    let salts_text =
        options::read_one(matches, GLOBAL.api_auth_salt.key)?.context("set API_AUTH_SALT or --api-auth-salt-file")?;
    let salts: Vec<_> = salts::split(salts_text.expose()).collect();
    if matches.get_flag("decode") {
        return decode(&salts);
    }
    let user = arguments::text(matches, "user");
    UserName::parse(user.as_bytes()).with_context(|| format!("--user {user:?}"))?;
    let password = password::read(matches)?;
    let bearer = make_bearer(&salts[0], user, &password)
        .context("API_AUTH_SALT is not a Fernet key; `timbr-gateway salt` creates one")?;
    print_line(bearer.expose())?;
    Ok(ExitCode::SUCCESS)
}

/// SECURITY: the bearer is a credential, so it comes from standard input; its password is not printed.
fn decode(salts: &[Secret]) -> CliResult {
    let bearer = Zeroizing::new(std::io::read_to_string(std::io::stdin()).context("cannot read standard input")?);
    let bearer = bearer.trim().trim_start_matches("Bearer ");
    for salt in salts {
        fernet::Fernet::new(salt.expose())
            .context("API_AUTH_SALT is not a Fernet key; `timbr-gateway salt` creates one")?;
    }
    let opener = BearerOpener::new(salts, None, Clock::system());
    let (salt, credentials) = opener.open_with_salt(bearer).context("the bearer cannot be opened")?;
    let created = creation_time(bearer).context("the bearer has no time")?;
    print_line(format_args!("user     {}", credentials.user))?;
    print_line(format_args!("created  {}", format_time(created)))?;
    print_line(format_args!("salt     {} of {}", usize::from(salt) + 1, salts.len()))?;
    Ok(ExitCode::SUCCESS)
}
