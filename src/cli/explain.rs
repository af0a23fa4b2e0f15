//! `timbr-gateway explain [REQUEST_ID]`: shows recent rejections from the admin listener.

use std::process::ExitCode;
use std::time::Duration;

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use serde_json::Value;

use crate::base::percent;
use crate::cli::admin_client::{self, AdminClient};
use crate::cli::tokens::format_time;
use crate::cli::{CliResult, print_line};

const ADMIN_TIMEOUT: Duration = Duration::from_secs(10);

pub fn command() -> Command {
    admin_client::add_arguments(
        Command::new("explain")
            .about("Explain why a running gateway rejected a request, or list recent rejections")
            .arg(
                Arg::new("request-id")
                    .value_name("REQUEST_ID")
                    .help("Request id, from the response body, the x-request-id header or the log"),
            )
            .arg(
                Arg::new("limit")
                    .long("limit")
                    .value_name("N")
                    .default_value("20")
                    .value_parser(value_parser!(u32).range(1..))
                    .help("Maximum number of rejections in the list"),
            )
            .arg(Arg::new("reason").long("reason").value_name("WORD").help("List only rejections with this reason"))
            .arg(Arg::new("user").long("user").short('u').value_name("NAME").help("List only rejections of this user"))
            .arg(
                Arg::new("json")
                    .long("json")
                    .action(ArgAction::SetTrue)
                    .help("Print JSON; times in seconds since the Unix epoch"),
            ),
    )
    .after_help(
        "The gateway keeps about a thousand recent rejections, without header values.\n\n\
         Examples:\n  timbr-gateway explain 7496242a0b4f4c0f9b1d5d0c3f1e2a77\n  \
         timbr-gateway explain --reason token_expired --limit 5",
    )
}

pub fn run(matches: &ArgMatches) -> CliResult {
    let client = AdminClient::from_arguments(matches, ADMIN_TIMEOUT)?;
    let id = matches.get_one::<String>("request-id");
    let response = client.request_json(
        &id.map_or_else(|| recent_rejections_path(matches), |id| format!("/explain/{}", percent::encode(id))),
        None,
    )?;
    let refusals = response["refusals"].as_array().map_or(&[][..], Vec::as_slice);
    if matches.get_flag("json") {
        print_line(&response["refusals"])?;
    } else if id.is_some() {
        for refusal in refusals {
            print_line(format_explanation(refusal))?;
        }
    } else {
        print_list(refusals)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn recent_rejections_path(matches: &ArgMatches) -> String {
    let limit = matches.get_one::<u32>("limit").expect("it has a default");
    let mut path = format!("/refusals?limit={limit}");
    for name in ["reason", "user"] {
        if let Some(value) = matches.get_one::<String>(name) {
            path += &format!("&{name}={}", percent::encode(value));
        }
    }
    path
}

fn print_list(refusals: &[Value]) -> std::io::Result<()> {
    print_line(format_args!("{:<22}{:<8}{:<28}{:<34}PATH", "TIME", "STATUS", "REASON", "REQUEST ID"))?;
    for refusal in refusals {
        print_line(format_args!(
            "{:<22}{:<8}{:<28}{:<34}{}",
            rejection_time(refusal),
            refusal["status"].to_string(),
            printable_text(refusal, "reason"),
            printable_text(refusal, "request_id"),
            printable_text(refusal, "path"),
        ))?;
    }
    Ok(())
}

/// A rejection as lines of text.
fn format_explanation(refusal: &Value) -> String {
    let mut lines = vec![
        format!(
            "{} rejected with {} {}",
            printable_text(refusal, "request_id"),
            refusal["status"],
            printable_text(refusal, "reason")
        ),
        format!("  {}", printable_text(refusal, "advice")),
    ];
    let mut line = |name: &str, value: String| {
        if !value.is_empty() {
            lines.push(format!("  {name:<12}{value}"));
        }
    };
    line("when", format!("{}, after {} ms", rejection_time(refusal), refusal["after_ms"]));
    line("client", printable_text(refusal, "client"));
    line("request", format!("{} {}", printable_text(refusal, "method"), printable_text(refusal, "path")));
    for name in ["route", "user", "key", "field", "detail"] {
        line(name, printable_text(refusal, name));
    }
    line("decided by", join_strings(&refusal["rules"], Value::as_str));
    line("trace id", printable_text(refusal, "trace_id"));
    let outcome = |step: &Value| Some(format!("{} {}", step["step"].as_str()?, step["outcome"].as_str()?));
    let steps = refusal["trace"].as_array().into_iter().flatten().filter_map(outcome);
    line("steps", steps.collect::<Vec<_>>().join(", "));
    lines.join("\n")
}

fn join_strings<'a>(values: &'a Value, text: impl Fn(&'a Value) -> Option<&'a str>) -> String {
    values.as_array().into_iter().flatten().filter_map(text).collect::<Vec<_>>().join(", ")
}

/// SECURITY: the client chooses the path, and over HTTP/2 it may contain terminal control sequences.
pub fn printable_text(refusal: &Value, name: &str) -> String {
    let text = refusal[name].as_str().unwrap_or_default();
    text.chars().map(|c| if c.is_control() { c.escape_unicode().to_string() } else { c.to_string() }).collect()
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a time after 1970, in whole seconds")]
fn rejection_time(refusal: &Value) -> String {
    format_time(refusal["time"].as_f64().unwrap_or_default() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_control_character_reaches_the_terminal() {
        let refusal = serde_json::json!({ "path": "/a\u{9b}31m\u{1b}[2Jé" });
        assert_eq!(printable_text(&refusal, "path"), "/a\\u{9b}31m\\u{1b}[2Jé");
    }

    #[test]
    fn an_explanation_has_a_line_per_fact() {
        let refusal = serde_json::json!({
            "request_id": "r-1", "status": 401, "reason": "api_key_missing", "advice": "No key.", "time": 0.5,
            "after_ms": 0.2, "client": "192.0.2.1", "method": "GET", "path": "/timbr/api/query/", "route": "api",
            "user": null, "key": null, "field": "x-api-key", "rules": ["routes.credentials"], "detail": null,
            "trace_id": "ab", "trace": [{"step": "route", "outcome": "passed"}, {"step": "screen", "outcome": "refused"}],
        });
        assert_eq!(
            format_explanation(&refusal),
            "r-1 rejected with 401 api_key_missing\n  No key.\n  when        1970-01-01T00:00:00Z, after 0.2 ms\n  \
             client      192.0.2.1\n  request     GET /timbr/api/query/\n  route       api\n  field       x-api-key\n  \
             decided by  routes.credentials\n  trace id    ab\n  steps       route passed, screen refused"
        );
    }
}
