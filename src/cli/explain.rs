//! `timbr-gateway explain [REQUEST_ID]`: shows recent rejections from the admin listener.

use std::process::ExitCode;

use clap::{Arg, ArgMatches, Command};
use serde_json::Value;

use crate::base::percent;
use crate::cli::table::{Column, format_time, print_table, printable_text, rows};
use crate::cli::{CliResult, admin_client, arguments, print_line};

const REJECTIONS: [Column; 5] = [
    ("TIME", rejection_time),
    ("STATUS", |rejection| rejection["status"].to_string()),
    ("REASON", |rejection| printable_text(rejection, "reason")),
    ("REQUEST ID", |rejection| printable_text(rejection, "request_id")),
    ("PATH", |rejection| printable_text(rejection, "path")),
];

pub fn command() -> Command {
    admin_client::add_arguments(
        Command::new("explain")
            .about("Explain why a running gateway rejected a request, or list recent rejections")
            .arg(
                Arg::new("request-id")
                    .value_name("REQUEST_ID")
                    .help("Request id, from the response body, the x-request-id header or the log"),
            )
            .arg(arguments::limit("20", "Maximum number of rejections in the list"))
            .arg(arguments::value("reason", "WORD", "List only rejections with this reason"))
            .arg(arguments::user("List only rejections of this user"))
            .arg(arguments::json()),
    )
    .after_help(
        "The gateway keeps about a thousand recent rejections, without header values.\n\n\
         Examples:\n  timbr-gateway explain 7496242a0b4f4c0f9b1d5d0c3f1e2a77\n  \
         timbr-gateway explain --reason token_expired --limit 5",
    )
}

pub fn run(matches: &ArgMatches) -> CliResult {
    let id = matches.get_one::<String>("request-id");
    let path = id.map_or_else(|| recent_rejections_path(matches), |id| format!("/explain/{}", percent::encode(id)));
    let response = admin_client::request(matches, &path, None)?;
    let rejections = rows(&response["refusals"]);
    if matches.get_flag("json") {
        print_line(&response["refusals"])?;
    } else if id.is_some() {
        for rejection in rejections {
            print_line(format_explanation(rejection))?;
        }
    } else {
        print_table(&REJECTIONS, rejections)?;
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

/// A rejection as lines of text.
fn format_explanation(rejection: &Value) -> String {
    let mut lines = vec![
        format!(
            "{} rejected with {} {}",
            printable_text(rejection, "request_id"),
            rejection["status"],
            printable_text(rejection, "reason")
        ),
        format!("  {}", printable_text(rejection, "advice")),
    ];
    let mut line = |name: &str, value: String| {
        if !value.is_empty() {
            lines.push(format!("  {name:<12}{value}"));
        }
    };
    line("when", format!("{}, after {} ms", rejection_time(rejection), rejection["after_ms"]));
    line("client", printable_text(rejection, "client"));
    line("request", format!("{} {}", printable_text(rejection, "method"), printable_text(rejection, "path")));
    for (name, key) in [("route", "route"), ("user", "user"), ("key", "key"), ("header", "field"), ("detail", "detail")]
    {
        line(name, printable_text(rejection, key));
    }
    let rules: Vec<_> = rows(&rejection["rules"]).iter().filter_map(Value::as_str).collect();
    line("options", rules.join(", "));
    line("trace id", printable_text(rejection, "trace_id"));
    let outcome = |phase: &Value| Some(format!("{} {}", phase["step"].as_str()?, phase["outcome"].as_str()?));
    let phases = rows(&rejection["trace"]).iter().filter_map(outcome);
    line("phases", phases.collect::<Vec<_>>().join(", "));
    lines.join("\n")
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a time after 1970, in whole seconds")]
fn rejection_time(rejection: &Value) -> String {
    format_time(rejection["time"].as_f64().unwrap_or_default() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_explanation_has_a_line_per_fact() {
        let rejection = serde_json::json!({
            "request_id": "r-1", "status": 401, "reason": "api_key_missing", "advice": "No key.", "time": 0.5,
            "after_ms": 0.2, "client": "192.0.2.1", "method": "GET", "path": "/timbr/api/query/", "route": "api",
            "user": null, "key": null, "field": "x-api-key", "rules": ["routes.credentials"], "detail": null,
            "trace_id": "ab", "trace": [{"step": "route", "outcome": "passed"}, {"step": "screen", "outcome": "refused"}],
        });
        assert_eq!(
            format_explanation(&rejection),
            "r-1 rejected with 401 api_key_missing\n  No key.\n  when        1970-01-01T00:00:00Z, after 0.2 ms\n  \
             client      192.0.2.1\n  request     GET /timbr/api/query/\n  route       api\n  header      x-api-key\n  \
             options     routes.credentials\n  trace id    ab\n  phases      route passed, screen refused"
        );
    }
}
