//! `timbr-gateway doctor`: checks the configuration, its environment and the requests of the published clients, and
//! names the setting that fixes a failure. It changes nothing, and does not contact a running gateway.

mod chain;
mod environment;
mod report;
mod routes;

use std::process::ExitCode;
use std::time::Duration;

use clap::{ArgMatches, Command};
use tracing::level_filters::LevelFilter;

use crate::base::secret::Secret;
use crate::cli::arguments::{flag, text, value};
use crate::cli::{CliResult, options, password, print_line};
use crate::config::{self, VerifierOptions};
use crate::observability::log::{self, LogFormat, LogOptions};
use crate::outbound::otlp;

use chain::{ClientChain, DoctorLogin};
use report::{DoctorReport, OutputFormat};

/// Timeout of each request to a backend or to the gateway under test.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(30);

pub fn command() -> Command {
    let command = Command::new("doctor")
        .about("Check the whole path of a request with this configuration, and suggest fixes")
        .arg(value(
            "user",
            "NAME",
            "User to log in as; without it, checks that need a token are skipped unless auth.verifier is salt-holder",
        ))
        .args(password::arguments())
        .arg(value("ontology", "NAME", "Ontology to query [default: the first one of get_ontologies]"))
        .arg(value("query", "SQL", "Query to run").default_value("SELECT 1"))
        .arg(flag("json", "Print JSON"))
        .after_help(
            "doctor starts its own gateway with the same configuration on a free loopback port, and sends the \
             requests of the published clients: get_token, a JSON query, an openapi query, an asynchronous query \
             and its polls, and one request for each other route. A running gateway is not affected. The exit code is \
             1 if a check fails.\n\n\
             Example:\n  timbr-gateway doctor --config gateway.yaml --user alice --password-file password",
        );
    options::add_all(command)
}

pub fn run(matches: &ArgMatches) -> CliResult {
    let format = if matches.get_flag("json") { OutputFormat::Json } else { OutputFormat::Text };
    let mut report = DoctorReport::new(format);
    let sources = options::sources(matches);
    match config::load(&sources) {
        Err(problems) => {
            for problem in problems {
                report.failed("configuration", &problem.message, &problem.subject);
            }
        }
        Ok((config, settings)) => {
            report.ok("configuration", "all options are valid");
            for warning in config::warnings(&config, &settings) {
                report.warning("configuration", warning.message, warning.subject);
            }
            if let Err(error) = otlp::check(|name| std::env::var(name).ok()) {
                report.failed("traces", error.to_string(), "OTEL_…");
            }
            let log = LogOptions { level: LevelFilter::WARN, format: LogFormat::Text, access: false };
            let _log = log::init(log)?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let login = login_arguments(matches, &config.auth.verifier)?;
            let environment_ok = runtime.block_on(environment::check(&config, &mut report));
            let chain = ClientChain {
                ontology: matches.get_one::<String>("ontology").cloned(),
                query: text(matches, "query").to_owned(),
            };
            if environment_ok {
                runtime.block_on(chain.run(config, login, &mut report))?;
            } else {
                report.skipped("chain", "requires the checks above to pass");
            }
        }
    }
    print_line(report.summary())?;
    Ok(if report.is_healthy() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The user to log in as; `None` without `--user`, except that the verifier `salt-holder` accepts any name.
fn login_arguments(matches: &ArgMatches, verifier: &VerifierOptions) -> anyhow::Result<Option<DoctorLogin>> {
    match (matches.get_one::<String>("user"), verifier) {
        (Some(user), _) => Ok(Some(DoctorLogin { user: user.clone(), password: password::read(matches)? })),
        (None, VerifierOptions::SaltHolder) => {
            Ok(Some(DoctorLogin { user: "timbr-gateway-doctor".to_owned(), password: Secret::new("any".to_owned()) }))
        }
        (None, _) => Ok(None),
    }
}
