//! `timbr-gateway doctor`: the whole chain, step by step, and which setting mends what is broken.

mod chain;
mod environment;
mod report;

use std::process::ExitCode;
use std::time::Duration;

use clap::{Arg, ArgAction, ArgMatches, Command};
use tracing::level_filters::LevelFilter;

use crate::base::secret::Secret;
use crate::cli::{CliResult, options, password, print_line};
use crate::config::{self, VerifierOptions};
use crate::observability::log::{self, LogFormat, LogOptions};
use crate::outbound::otlp;

use chain::{ClientChain, DoctorLogin};
use report::{DoctorReport, OutputFormat};

/// Another server that takes longer for the head of an answer is broken, as far as this goes.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(30);

pub fn command() -> Command {
    let value = |name: &'static str, value: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name(value).help(help)
    };
    let command = Command::new("doctor")
        .about("Try the whole chain with this configuration, and say what mends it where it is broken")
        .arg(value("user", "NAME", "The user to log in as; without one, only salt-holder can be tried"))
        .args(password::arguments())
        .arg(value("ontology", "NAME", "What to query [default: the first that get_ontologies names]"))
        .arg(value("query", "SQL", "The query").default_value("SELECT 1"))
        .arg(Arg::new("json").long("json").action(ArgAction::SetTrue).help("Tell it as JSON"))
        .after_help(
            "It starts a gateway of its own with the same configuration, on a free port of the loopback address, and \
             sends what the published clients send: get_token, a JSON query, an openapi query, an asynchronous one and \
             its polls. A gateway that runs is not touched. Exit code 1 if a step fails.\n\n\
             Example:\n  timbr-gateway doctor --config gateway.yaml --user alice --password-file password",
        );
    options::add_all(command)
}

pub fn run(matches: &ArgMatches) -> CliResult {
    let manner = if matches.get_flag("json") { OutputFormat::Json } else { OutputFormat::Text };
    let mut report = DoctorReport::new(manner);
    let sources = options::sources(matches);
    match config::load(&sources) {
        Err(problems) => {
            for problem in problems {
                report.failed("configuration", &problem.message, &problem.subject);
            }
        }
        Ok((config, settings)) => {
            report.ok("configuration", "every option is valid");
            for warning in config::warnings(&config, &settings) {
                report.warning("configuration", warning.message, warning.subject);
            }
            if let Err(error) = otlp::check(|name| std::env::var(name).ok()) {
                report.failed("traces", error.to_string(), "OTEL_…");
            }
            let log = LogOptions { level: LevelFilter::WARN, format: LogFormat::Text, access: false };
            let _log = log::init(log)?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let caller = login_arguments(matches, &config.auth.verifier)?;
            let sound = runtime.block_on(environment::check(&config, &mut report));
            let asked = ClientChain {
                ontology: matches.get_one::<String>("ontology").cloned(),
                query: matches.get_one::<String>("query").cloned().expect("it has a default"),
            };
            if sound {
                runtime.block_on(asked.run(config, caller, &mut report))?;
            } else {
                report.skipped("chain", "the steps before have to succeed first");
            }
        }
    }
    print_line(report.summary())?;
    Ok(if report.is_healthy() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// As whom to log in. `salt-holder` takes any name.
fn login_arguments(matches: &ArgMatches, verifier: &VerifierOptions) -> anyhow::Result<Option<DoctorLogin>> {
    match (matches.get_one::<String>("user"), verifier) {
        (Some(user), _) => Ok(Some(DoctorLogin { user: user.clone(), password: password::read(matches)? })),
        (None, VerifierOptions::SaltHolder) => Ok(Some(DoctorLogin {
            user: "timbr-gateway-doctor".to_owned(),
            password: Secret::new("any".to_owned()),
        })),
        (None, _) => Ok(None),
    }
}
