//! What the gateway stands on: files, names, the backend, the clocks.

use std::time::SystemTime;

use http::header::{CONTENT_TYPE, DATE};
use http::{HeaderMap, Request, StatusCode};
use http_body_util::Full;
use tokio::net::lookup_host;

use crate::app::{self, StartError};
use crate::auth::bearer::{BearerOpener, make_bearer};
use crate::base::clock::Clock;
use crate::base::secret::Secret;
use crate::cli::doctor::RESPONSE_TIMEOUT;
use crate::cli::doctor::report::DoctorReport;
use crate::config::{Config, ForeignKeyPolicy};
use crate::outbound::http_client::{FetchError, HttpClient};
use crate::tls;

/// How far the backend's clock may be from ours: as far as a bearer may come from the future.
const MAX_CLOCK_SKEW_SECONDS: u64 = 60;

/// Days before its end from which on a certificate is told of.
const EXPIRY_WARNING_DAYS: i64 = 14;

/// True if the chain can be tried.
pub async fn check(config: &Config, report: &mut DoctorReport) -> bool {
    let files = check_files(config, report);
    check_salt(config, report);
    check_certificates(config, report);
    let reachable = check_dns(config, report).await && check_upstreams(config, report).await;
    files && reachable
}

fn check_files(config: &Config, report: &mut DoctorReport) -> bool {
    match app::check(config) {
        Ok(()) => report.ok("files", "all that the configuration names can be used"),
        Err(StartError::Files(problems)) => {
            for problem in problems {
                report.failed("files", problem.message, problem.subject);
            }
            return false;
        }
        Err(error) => {
            report.failed("files", error.to_string(), "see the message");
            return false;
        }
    }
    true
}

fn check_salt(config: &Config, report: &mut DoctorReport) {
    let primary = &config.salts[0];
    let opener = BearerOpener::new(&config.salts, config.auth.bearer_max_age, Clock::system());
    let made = make_bearer(primary, "doctor", &Secret::new("any".to_owned()));
    match made.map(|bearer| opener.open(bearer.expose()).is_ok()) {
        Some(true) => {
            let count = config.salts.len();
            report.ok("salt", format!("{count} in use; a bearer that is made with the first one opens"));
        }
        _ => report.failed(
            "salt",
            "a bearer that was made with it does not open",
            "API_AUTH_SALT, auth.bearer_max_age",
        ),
    }
}

fn check_certificates(config: &Config, report: &mut DoctorReport) {
    if config.listen.https.is_none() {
        return report.skipped("certificates", "listen.https is off");
    }
    if config.tls.certificates.is_empty() {
        return report
            .ok("certificates", "self-signed, made at start: clients cannot verify it (tls.cert_file)");
    }
    let Ok(ends) = tls::expiries(&config.tls) else {
        return report.skipped("certificates", "they cannot be read");
    };
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    for (names, end) in ends {
        let days = (end - i64::try_from(now).unwrap_or(i64::MAX)) / (24 * 60 * 60);
        let told = format!("{names}: {days} days left");
        match days {
            days if days < EXPIRY_WARNING_DAYS => {
                report.failed("certificates", told, "renew tls.cert_file and tls.key_file");
            }
            _ => report.ok("certificates", told),
        }
    }
}

async fn check_dns(config: &Config, report: &mut DoctorReport) -> bool {
    let mut all = true;
    for url in &config.upstream.urls {
        match lookup_host((url.host.as_str(), url.port)).await {
            Ok(addresses) => {
                let addresses: Vec<_> = addresses.map(|address| address.ip().to_string()).collect();
                report.ok("dns", format!("{} is {}", url.host, addresses.join(", ")));
            }
            Err(error) => {
                let mend = "the host of upstream.url, or the resolver of this machine";
                report.failed("dns", format!("{} has no address: {error}", url.host), mend);
                all = false;
            }
        }
    }
    all
}

/// Asks each backend.
async fn check_upstreams(config: &Config, report: &mut DoctorReport) -> bool {
    let Ok(tls) = tls::backend_tls(&config.upstream) else {
        report.skipped("upstream", "its TLS cannot be set up; see files");
        return false;
    };
    let mut all = true;
    for (url, tls) in config.upstream.urls.iter().zip(tls) {
        let origin = HttpClient::with_tls(url, tls, RESPONSE_TIMEOUT);
        all &= check_upstream(config, &origin, report).await;
        if let Some(path) = &config.upstream.health.path {
            check_health_path(&origin, path, report).await;
        }
    }
    all
}

/// Asks what the gateway asks again and again.
async fn check_health_path(origin: &HttpClient, path: &str, report: &mut DoctorReport) {
    let question = Request::get(path).body(Full::default()).expect("the configuration checked the path");
    let mend = "upstream.health_path: a path that answers 200 to 399 without credentials, quickly; without it, no \
                address is checked";
    match origin.send(question).await {
        Ok(answer) if answer.status().is_success() || answer.status().is_redirection() => {
            report.ok("health", format!("{} answers {} on {path}", origin.authority(), answer.status()));
        }
        Ok(answer) => {
            report.failed(
                "health",
                format!("{} answers {} on {path}", origin.authority(), answer.status()),
                mend,
            );
        }
        Err(error) => report.failed("health", error.to_string(), mend),
    }
}

/// Connects as always, and asks what a stranger could ask.
async fn check_upstream(config: &Config, origin: &HttpClient, report: &mut DoctorReport) -> bool {
    let tls = config.upstream.tls();
    let question = Request::get("/timbr/api/get_ontologies/")
        .header(CONTENT_TYPE, "application/json")
        .header("x-api-key", "tk_of_nobody")
        .body(Full::default())
        .expect("a path and two fields are a request");
    let answer = match origin.send(question).await {
        Ok(answer) => answer,
        Err(error) => {
            let mend = match (&error, tls) {
                (FetchError::Connect(_, cause), true) if cause.kind() == std::io::ErrorKind::InvalidData => {
                    "upstream.ca_file (whom to trust), upstream.server_name (the name in the certificate)"
                }
                (FetchError::Connect(..), _) => "upstream.url (address and port), or start the backend",
                (FetchError::Incomplete(..), false) => "upstream.url: is it https that is spoken there?",
                _ => "the backend",
            };
            report.failed("upstream", error.to_string(), mend);
            return false;
        }
    };
    report.ok("upstream", format!("{} answers{}", origin.authority(), if tls { " over TLS" } else { "" }));
    check_clock(answer.headers(), report);
    match (answer.status(), config.tokens.foreign) {
        (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, _) => {
            report.ok("foreign keys", "the backend refuses a made-up key");
        }
        (status, ForeignKeyPolicy::Verify) => report.failed(
            "foreign keys",
            format!("the backend answers {status} to a made-up key, so that its yes proves nothing"),
            "tokens.foreign (reject or forward), or the backend, which has to check keys on get_ontologies",
        ),
        (status, _) => report
            .ok("foreign keys", format!("not asked about; the backend answers {status} to a made-up one")),
    }
    true
}

fn check_clock(fields: &HeaderMap, report: &mut DoctorReport) {
    let date = fields
        .get(DATE)
        .and_then(|value| value.to_str().ok())
        .and_then(|text| httpdate::parse_http_date(text).ok());
    let Some(theirs) = date else { return report.skipped("clock", "the backend does not tell the time") };
    let now = SystemTime::now();
    let skew =
        now.duration_since(theirs).or_else(|_| theirs.duration_since(now)).unwrap_or_default().as_secs();
    let told = format!("{skew} s between this machine's clock and the backend's");
    match skew {
        skew if skew > MAX_CLOCK_SKEW_SECONDS => {
            report.failed("clock", told, "the clock (NTP) of this machine, or of the backend");
        }
        _ => report.ok("clock", told),
    }
}
