//! `timbr-gateway tokens list|revoke`: lists and revokes tokens through the admin listener.

use std::io::Read;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::Context;
use clap::{Arg, ArgAction, ArgGroup, ArgMatches, Command, value_parser};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::base::percent;
use crate::base::secret::Secret;
use crate::cli::admin_client::{self, AdminClient};
use crate::cli::{CliResult, print_line};

/// The exit code of a revocation that ended nothing.
const NO_TOKEN_MATCHES: u8 = 4;

const ADMIN_TIMEOUT: Duration = Duration::from_secs(35);

pub fn command() -> Command {
    let list = Command::new("list")
        .about("List valid tokens: fingerprint, issue time, expiry, last use, user and groups")
        .arg(Arg::new("user").long("user").short('u').value_name("NAME").help("Only tokens of this user"))
        .arg(
            Arg::new("limit")
                .long("limit")
                .value_name("N")
                .default_value("1000")
                .value_parser(value_parser!(u32).range(1..=100_000))
                .help("Maximum number of tokens"),
        )
        .arg(
            Arg::new("json")
                .long("json")
                .action(ArgAction::SetTrue)
                .help("Print JSON; times in seconds since the Unix epoch"),
        )
        .after_help("Examples:\n  timbr-gateway tokens list --user alice\n  timbr-gateway tokens list --json");
    let revoke = Command::new("revoke")
        .about("Revoke tokens immediately, at all replicas")
        .arg(Arg::new("user").long("user").short('u').value_name("NAME").help("All tokens of this user"))
        .arg(
            Arg::new("fingerprint")
                .long("fingerprint")
                .value_name("HEX")
                .help("The token with this fingerprint (see logs and `tokens list`)"),
        )
        .arg(
            Arg::new("token-file")
                .long("token-file")
                .value_name("FILE")
                .value_parser(value_parser!(PathBuf))
                .help("The token in this file"),
        )
        .arg(Arg::new("token-stdin").long("token-stdin").action(ArgAction::SetTrue).help("The token on standard input"))
        .arg(Arg::new("all").long("all").action(ArgAction::SetTrue).help("All tokens of all users"))
        .arg(Arg::new("dry-run").long("dry-run").action(ArgAction::SetTrue).help("Count the tokens, but revoke none"))
        .arg(
            Arg::new("deny-for")
                .long("deny-for")
                .value_name("DURATION")
                .conflicts_with_all(["dry-run", "all"])
                .value_parser(|text: &str| humantime::parse_duration(text).map_err(|error| error.to_string()))
                .help(
                    "Also deny the user or the credential for this time (at most 30d), with every kind of credential: \
                     tokens, logins, keys and JWTs. 0s: end that",
                ),
        )
        .group(ArgGroup::new("which").args(["user", "fingerprint", "token-file", "token-stdin", "all"]).required(true))
        .after_help(
            "A token cannot be an argument, because arguments are visible to other users. The exit code is 4 if no token \
             matches.\n\n\
             Examples:\n  timbr-gateway tokens revoke --user alice\n  \
             timbr-gateway tokens revoke --user alice --deny-for 24h\n  \
             timbr-gateway tokens revoke --token-stdin < token",
        );
    Command::new("tokens")
        .about("List or revoke the tokens of a running gateway")
        .subcommand_required(true)
        .subcommand(admin_client::add_arguments(list))
        .subcommand(admin_client::add_arguments(revoke))
        .after_help(
            "The command is sent to the admin listener: to listen.admin_socket if there is one, otherwise to listen.admin with \
             listen.admin_token. It is accepted from the same machine only.\n\n\
             Examples:\n  timbr-gateway tokens list --user alice\n  timbr-gateway tokens revoke --fingerprint 3fdf0040",
        )
}

pub fn run(matches: &ArgMatches) -> CliResult {
    match matches.subcommand() {
        Some(("list", matches)) => print_list(matches).map(|()| ExitCode::SUCCESS),
        Some(("revoke", matches)) => revoke(matches),
        _ => unreachable!("clap accepts no other subcommand"),
    }
}

fn print_list(matches: &ArgMatches) -> anyhow::Result<()> {
    let limit = matches.get_one::<u32>("limit").expect("it has a default");
    let mut path = format!("/tokens?limit={limit}");
    if let Some(user) = matches.get_one::<String>("user") {
        path += &format!("&user={}", percent::encode(user));
    }
    let response = AdminClient::from_arguments(matches, ADMIN_TIMEOUT)?.request_json(&path, None)?;
    if matches.get_flag("json") {
        print_line(&response["tokens"])?;
        return Ok(());
    }
    print_line(format_args!("{:<13}{:<22}{:<22}{:<22}USER", "FINGERPRINT", "MINTED", "EXPIRES", "LAST USED"))?;
    for token in response["tokens"].as_array().into_iter().flatten() {
        let at = |name: &str| token[name].as_u64().map_or(String::new(), format_time);
        let text = |name: &str| token[name].as_str().unwrap_or_default().to_owned();
        print_line(format_args!(
            "{:<13}{:<22}{:<22}{:<22}{}",
            text("fingerprint"),
            at("minted"),
            at("expires"),
            at("last_used"),
            text("user") + &groups_text(&token["groups"])
        ))?;
    }
    if response["more"] == true {
        print_line(format_args!("There are more than {limit} tokens; use --limit or --user."))?;
    }
    Ok(())
}

/// The groups of a token, behind the name of its user.
fn groups_text(groups: &Value) -> String {
    let names: Vec<_> = groups.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    if groups.is_null() { String::new() } else { format!(" (groups: {})", names.join("; ")) }
}

fn revoke(matches: &ArgMatches) -> CliResult {
    let text = |name: &str| matches.get_one::<String>(name).cloned();
    let mut command = if let Some(user) = text("user") {
        json!({ "user": user })
    } else if let Some(fingerprint) = text("fingerprint") {
        json!({ "fingerprint": fingerprint })
    } else if matches.get_flag("all") {
        json!({ "all": true })
    } else {
        json!({ "token": read_token(matches)?.expose() })
    };
    let is_dry_run = matches.get_flag("dry-run");
    if is_dry_run {
        command["dry_run"] = true.into();
    }
    if let Some(duration) = matches.get_one::<Duration>("deny-for") {
        command["deny_seconds"] = duration.as_secs().into();
    }
    let command = Zeroizing::new(command.to_string());
    let client = AdminClient::from_arguments(matches, ADMIN_TIMEOUT)?;
    let response = client.request_json("/tokens/revoke", Some(&command))?;
    let count = response["revoked"].as_u64().unwrap_or_default();
    let verb = if is_dry_run { "Would revoke" } else { "Revoked" };
    print_line(format_args!("{verb} {count} token{}.", if count == 1 { "" } else { "s" }))?;
    match response["denied_until"].as_u64() {
        Some(0) => print_line("Not denied any more.")?,
        Some(until) => print_line(format_args!("Denied until {}.", format_time(until)))?,
        None if count == 0 => return Ok(ExitCode::from(NO_TOKEN_MATCHES)),
        None => {}
    }
    Ok(ExitCode::SUCCESS)
}

fn read_token(matches: &ArgMatches) -> anyhow::Result<Secret> {
    if let Some(file) = matches.get_one::<PathBuf>("token-file") {
        return Secret::read_file(file).with_context(|| format!("cannot read the token from {}", file.display()));
    }
    let mut text = Zeroizing::new(String::new());
    std::io::stdin().read_to_string(&mut text).context("cannot read the token from standard input")?;
    Ok(Secret::new(text.trim_end_matches(['\r', '\n']).to_owned()))
}

/// RFC 3339 in UTC.
pub fn format_time(unix_seconds: u64) -> String {
    let time = UNIX_EPOCH.checked_add(Duration::from_secs(unix_seconds)).unwrap_or(UNIX_EPOCH);
    humantime::format_rfc3339_seconds(time).to_string()
}
