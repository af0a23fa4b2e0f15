//! `timbr-gateway tokens list|revoke|denied|allow`: lists and revokes tokens, and lists and ends denials, through the admin
//! listener.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{ArgGroup, ArgMatches, Command, value_parser};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::base::percent;
use crate::cli::admin_client::{self, SENT_TO};
use crate::cli::arguments::{self, flag, text, value};
use crate::cli::table::{Column, format_time, print_list, print_table, printable, printable_text, rows, time};
use crate::cli::{CliResult, NOTHING_MATCHED, password, print_error, print_line};

const TOKENS: [Column; 5] = [
    ("FINGERPRINT", |token| printable_text(token, "fingerprint")),
    ("MINTED", |token| time(token, "minted")),
    ("EXPIRES", |token| time(token, "expires")),
    ("LAST USED", |token| time(token, "last_used")),
    ("USER", |token| printable_text(token, "user") + &groups_text(&token["groups"])),
];

const DENIED: [Column; 3] = [
    ("KIND", |denial| printable_text(denial, "kind")),
    ("UNTIL", |denial| time(denial, "until")),
    ("NAME", |denial| printable_text(denial, "name")),
];

pub fn command() -> Command {
    let list = Command::new("list")
        .about("List valid tokens: fingerprint, issue time, expiry, last use, user and groups")
        .arg(arguments::user("Only tokens of this user"))
        .arg(arguments::limit("1000", "Maximum number of tokens").value_parser(value_parser!(u32).range(1..=100_000)))
        .arg(arguments::json())
        .after_help("Examples:\n  timbr-gateway tokens list --user alice\n  timbr-gateway tokens list --json");
    let revoke = Command::new("revoke")
        .about("Revoke tokens immediately, at all replicas that share the store")
        .arg(arguments::user("All tokens of this user"))
        .arg(value("fingerprint", "HEX", "The token with this fingerprint (see logs and `tokens list`)"))
        .arg(value("token-file", "FILE", "The token in this file").value_parser(value_parser!(PathBuf)))
        .arg(flag("token-stdin", "The token on standard input"))
        .arg(flag("all", "All tokens of all users"))
        .arg(flag("dry-run", "Count the tokens, but revoke none"))
        .arg(
            arguments::duration(
                "deny-for",
                "Also deny the user or the credential for this time (at most 30d), with every kind of credential: \
                 tokens, logins, keys and JWTs. `tokens allow` ends that, `tokens denied` lists it",
            )
            .conflicts_with_all(["dry-run", "all"]),
        )
        .group(ArgGroup::new("which").args(["user", "fingerprint", "token-file", "token-stdin", "all"]).required(true))
        .after_help(
            "A token cannot be an argument, because arguments are visible to other users. The exit code is 4 if no token \
             matches, without --deny-for.\n\n\
             Examples:\n  timbr-gateway tokens revoke --user alice\n  \
             timbr-gateway tokens revoke --user alice --deny-for 24h\n  \
             timbr-gateway tokens revoke --token-stdin < token",
        );
    let denied = Command::new("denied")
        .about("List the users and credentials that are denied, and until when")
        .arg(arguments::json())
        .after_help("Example:\n  timbr-gateway tokens denied");
    let allow = Command::new("allow")
        .about("End a denial, at all replicas that share the store")
        .arg(arguments::user("This user"))
        .arg(value("fingerprint", "HEX", "The credential with this fingerprint"))
        .group(ArgGroup::new("which").args(["user", "fingerprint"]).required(true))
        .after_help(
            "The exit code is 4 if there was no denial.\n\nExample:\n  timbr-gateway tokens allow --user alice",
        );
    Command::new("tokens")
        .about("List and revoke the tokens of a running gateway, and deny users and credentials")
        .subcommand_required(true)
        .subcommand(admin_client::add_arguments(list))
        .subcommand(admin_client::add_arguments(revoke))
        .subcommand(admin_client::add_arguments(denied))
        .subcommand(admin_client::add_arguments(allow))
        .after_help(format!(
            "{SENT_TO}\n\n\
             Examples:\n  timbr-gateway tokens list --user alice\n  timbr-gateway tokens revoke --fingerprint 3fdf0040",
        ))
}

pub fn run(matches: &ArgMatches) -> CliResult {
    match matches.subcommand() {
        Some(("list", matches)) => print_tokens(matches).map(|()| ExitCode::SUCCESS),
        Some(("revoke", matches)) => revoke(matches),
        Some(("denied", matches)) => print_denied(matches).map(|()| ExitCode::SUCCESS),
        Some(("allow", matches)) => allow(matches),
        _ => unreachable!("clap accepts no other subcommand"),
    }
}

fn print_tokens(matches: &ArgMatches) -> anyhow::Result<()> {
    let limit = matches.get_one::<u32>("limit").expect("it has a default");
    let mut path = format!("/tokens?limit={limit}");
    if let Some(user) = matches.get_one::<String>("user") {
        path += &format!("&user={}", percent::encode(user));
    }
    let response = admin_client::request(matches, &path, None)?;
    let more =
        (response["more"] == true).then(|| format!("There are more than {limit} tokens; use --limit or --user."));
    if matches.get_flag("json") {
        print_line(&response["tokens"])?;
        // Not within the JSON, which a program reads.
        more.iter().for_each(|more| print_error(more));
    } else {
        print_table(&TOKENS, rows(&response["tokens"]))?;
        more.iter().try_for_each(print_line)?;
    }
    Ok(())
}

fn print_denied(matches: &ArgMatches) -> anyhow::Result<()> {
    let response = admin_client::request(matches, "/tokens/denied", None)?;
    Ok(print_list(matches, &response["denied"], &DENIED, "No user or credential is denied.")?)
}

fn allow(matches: &ArgMatches) -> CliResult {
    let kind = if matches.contains_id("user") { "user" } else { "fingerprint" };
    let name = text(matches, kind);
    let response = admin_client::request(matches, "/tokens/allow", Some(&json!({ kind: name }).to_string()))?;
    if response["was_denied"] == true {
        print_line(format_args!("The {kind} {name} is not denied any more."))?;
        return Ok(ExitCode::SUCCESS);
    }
    print_line(format_args!("The {kind} {name} was not denied."))?;
    Ok(ExitCode::from(NOTHING_MATCHED))
}

/// The groups of a token, behind the name of its user.
fn groups_text(groups: &Value) -> String {
    let names: Vec<_> = rows(groups).iter().filter_map(Value::as_str).map(printable).collect();
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
        json!({ "token": password::read_source(matches, "token")?.expose() })
    };
    let is_dry_run = matches.get_flag("dry-run");
    if is_dry_run {
        command["dry_run"] = true.into();
    }
    if let Some(duration) = matches.get_one::<Duration>("deny-for") {
        command["deny_seconds"] = duration.as_secs().into();
    }
    let command = Zeroizing::new(command.to_string());
    let response = admin_client::request(matches, "/tokens/revoke", Some(&command))?;
    let count = response["revoked"].as_u64().unwrap_or_default();
    let verb = if is_dry_run { "Would revoke" } else { "Revoked" };
    print_line(format_args!("{verb} {count} token{}.", if count == 1 { "" } else { "s" }))?;
    match response["denied_until"].as_u64() {
        Some(0) => print_line("Not denied any more.")?,
        Some(until) => print_line(format_args!("Denied until {}.", format_time(until)))?,
        None if count == 0 => return Ok(ExitCode::from(NOTHING_MATCHED)),
        None => {}
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_control_character_of_a_group_reaches_the_terminal() {
        assert_eq!(groups_text(&json!(["a", "\u{1b}]0;x\u{7}"])), " (groups: a; \\u{1b}]0;x\\u{7})");
        assert_eq!((groups_text(&json!([])), groups_text(&Value::Null)), (" (groups: )".to_owned(), String::new()));
    }
}
