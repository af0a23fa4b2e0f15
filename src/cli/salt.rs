//! `timbr-gateway salt`

use std::process::ExitCode;

use clap::Command;
use fernet::Fernet;

use crate::cli::{Outcome, say};

pub fn command() -> Command {
    Command::new("salt").about("Make a new API_AUTH_SALT and print it").after_help(
        "Example:\n  \
         timbr-gateway salt > salt && timbr-gateway serve --api-auth-salt-file salt …\n\n\
         To rotate, put the new salt before the old one, with a comma between them.",
    )
}

pub fn run() -> Outcome {
    say(Fernet::generate_key())?;
    Ok(ExitCode::SUCCESS)
}
