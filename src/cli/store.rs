//! `timbr-gateway store key` creates a key for `store.key`.

use std::process::ExitCode;

use clap::{ArgMatches, Command};

use crate::cli::{CliResult, print_line};
use crate::config::StoreKey;

pub fn command() -> Command {
    let key = Command::new("key").about("Generate a key for store.key").after_help(
        "To rotate the key: set old,new at every replica, then new,old, and when the tokens of the old key have expired, \
         only new.\n\n\
         Example:\n  (umask 077; timbr-gateway store key > store-key)",
    );
    Command::new("store")
        .about("Generate the key that protects the token store")
        .subcommand_required(true)
        .subcommand(key)
        .after_help(
            "Clients must not have this key: unlike the salt, it belongs to the gateways alone.\n\n\
             Examples:\n  \
             (umask 077; timbr-gateway store key > store-key)\n  \
             timbr-gateway serve --store-key-file store-key --store-kind file --store-path tokens",
        )
}

pub fn run(matches: &ArgMatches) -> CliResult {
    match matches.subcommand() {
        Some(("key", _)) => print_line(StoreKey::random().to_text().expose())?,
        _ => unreachable!("clap accepts no other subcommand"),
    }
    Ok(ExitCode::SUCCESS)
}
