//! Checks what the gateway depends on: files, salts, certificates, DNS, backends and clocks.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{CONTENT_TYPE, DATE};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::Full;
use tokio::net::lookup_host;

use crate::app::{self, StartError};
use crate::auth::bearer::{BearerOpener, make_bearer};
use crate::auth::foreign_keys::{UNVERIFIABLE_KEYS_REMEDY, is_error_envelope};
use crate::auth::jwt;
use crate::base::clock::{self, Clock};
use crate::base::secret::Secret;
use crate::cli::doctor::report::DoctorReport;
use crate::config::{Config, DEFAULT_UPSTREAM, ForeignKeyPolicy, UpstreamOptions};
use crate::outbound::http_client::{FetchError, HttpClient};
use crate::tls::{self, CertificateFault, CertificateStatus};

/// Maximum difference between the clocks, the same as the tolerance for the timestamp of a bearer.
const MAX_CLOCK_SKEW_SECONDS: u64 = 60;

/// Timeout of a request that needs no query, so that a backend that never responds is reported soon.
const PROBE_TIMEOUT: Duration = Duration::from_secs(10);

/// Runs all checks. Returns true if requests through a gateway make sense.
pub async fn check(config: &Config, report: &mut DoctorReport) -> bool {
    let files = check_files(config, report);
    check_salt(config, report);
    check_certificates(config, report);
    let reachable = check_dns(config, report).await && check_upstreams(config, report).await;
    check_issuers(config, report).await;
    check_syslog(config, report);
    files && reachable
}

fn check_syslog(config: &Config, report: &mut DoctorReport) {
    match app::check_syslog(&config.audit) {
        None => {}
        Some(Ok(())) => report.ok("audit log", "the syslog server accepts connections"),
        Some(Err(error)) => {
            let fix = "audit.syslog (address, port, tls:// for TLS), audit.syslog_ca_file, or start the server";
            report.failed("audit log", format!("cannot connect to the syslog server: {error}"), fix);
        }
    }
}

/// Fetches the keys of token issuers.
async fn check_issuers(config: &Config, report: &mut DoctorReport) {
    for (issuer, result) in jwt::check_issuer_keys(&config.auth.jwt).await {
        match result {
            Ok(()) => report.ok("issuer keys", format!("{issuer}: the keys can be fetched")),
            Err(why) => {
                let fix = "auth.jwt_issuers: jwks_url, discovery_url, ca_file; the gateway uses no HTTP proxy";
                report.failed("issuer keys", format!("{issuer}: {why}"), fix);
            }
        }
    }
}

fn check_files(config: &Config, report: &mut DoctorReport) -> bool {
    match app::check(config) {
        Ok(warnings) => {
            report.ok("files", "all configured files are usable");
            // `check_certificates` reports certificates.
            for warning in warnings.into_iter().filter(|warning| warning.subject != "tls") {
                report.warning("files", warning.message, warning.subject);
            }
        }
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
    let bearer = make_bearer(primary, "doctor", &Secret::new("any".to_owned()));
    match bearer.map(|bearer| opener.open(bearer.expose()).is_ok()) {
        Some(true) => {
            let count = config.salts.len();
            report.ok("salt", format!("{count} configured; a bearer encrypted with the primary salt decrypts"));
        }
        _ => report.failed(
            "salt",
            "a bearer encrypted with the primary salt does not decrypt",
            "API_AUTH_SALT, auth.bearer_max_age",
        ),
    }
}

fn check_certificates(config: &Config, report: &mut DoctorReport) {
    if config.listen.https.is_none() {
        return report.ok("certificates", "none are needed, because listen.https is off");
    }
    if config.tls.certificates.is_empty() {
        return report.ok("certificates", "self-signed, created at start: clients cannot verify it (tls.cert_file)");
    }
    let Ok(all) = tls::certificate_statuses(&config.tls) else {
        return report.skipped("certificates", "the certificates cannot be read");
    };
    for CertificateStatus { names, not_after, fault } in all {
        let fix = "tls.cert_file, tls.key_file";
        match fault {
            Some(fault @ CertificateFault::Expired) => {
                report.failed("certificates", format!("the certificate for {names} {fault}"), fix);
            }
            Some(fault) => report.warning("certificates", format!("the certificate for {names} {fault}"), fix),
            None => {
                let left =
                    not_after - i64::try_from(clock::since_epoch(SystemTime::now()).as_secs()).unwrap_or(i64::MAX);
                report.ok("certificates", format!("{names}: {} days left", left / (24 * 60 * 60)));
            }
        }
    }
}

async fn check_dns(config: &Config, report: &mut DoctorReport) -> bool {
    let mut all = true;
    let urls = config.all_upstreams().flat_map(|upstream| &upstream.urls);
    for url in urls.filter(|url| url.socket.is_none()) {
        match lookup_host((url.host.as_str(), url.port)).await {
            Ok(addresses) => {
                let addresses: Vec<_> = addresses.map(|address| address.ip().to_string()).collect();
                report.ok("dns", format!("{} resolves to {}", url.host, addresses.join(", ")));
            }
            Err(error) => {
                let fix = "the host in upstream.url, or the DNS configuration of this machine";
                report.failed("dns", format!("cannot resolve {}: {error}", url.host), fix);
                all = false;
            }
        }
    }
    all
}

/// Connects to each backend of each upstream.
async fn check_upstreams(config: &Config, report: &mut DoctorReport) -> bool {
    let mut all = true;
    for upstream in config.all_upstreams() {
        let Ok(tls) = tls::backend_tls(upstream) else {
            report.skipped("upstream", "TLS cannot be configured; see files");
            return false;
        };
        for (url, tls) in upstream.urls.iter().zip(tls) {
            let client = HttpClient::with_tls(url, tls, PROBE_TIMEOUT);
            all &= check_upstream(config, upstream, &client, report).await;
            if let Some(path) = &upstream.health.health_path {
                check_health_path(&client, path, report).await;
            }
        }
    }
    all
}

/// Sends the request of the active health check.
async fn check_health_path(client: &HttpClient, path: &str, report: &mut DoctorReport) {
    let request = Request::get(path).body(Full::default()).expect("the configuration checked the path");
    let fix = "upstream.health_path: it must return 200 to 399 without credentials, quickly; unset, there are no \
               active health checks";
    match client.send(request).await {
        Ok(response) if response.status().is_success() || response.status().is_redirection() => {
            report.ok("health", format!("{} returns {} for {path}", client.authority(), response.status()));
        }
        Ok(response) => {
            report.failed("health", format!("{} returns {} for {path}", client.authority(), response.status()), fix);
        }
        Err(error) => report.failed("health", error.to_string(), fix),
    }
}

/// Connects as the gateway does, and sends a request with an unknown key.
async fn check_upstream(
    config: &Config,
    upstream: &UpstreamOptions,
    client: &HttpClient,
    report: &mut DoctorReport,
) -> bool {
    let tls = upstream.tls();
    let request = Request::get("/timbr/api/get_ontologies/")
        .header(CONTENT_TYPE, "application/json")
        .header("x-api-key", "tk_unknown")
        .body(Full::default())
        .expect("a path and two headers are a valid request");
    let response = match client.send(request).await {
        Ok(response) => response,
        Err(error) => {
            let fix = match (&error, tls) {
                (FetchError::Connect(_, cause), true) if cause.kind() == std::io::ErrorKind::InvalidData => {
                    tls_fix(cause)
                }
                (FetchError::Incomplete(_, cause), true) if cause.contains("CertificateRequired") => CLIENT_CERTIFICATE,
                (FetchError::Connect(..), _) => "upstream.url (address and port), or start the backend",
                (FetchError::Incomplete(..), false) => "upstream.url (does the backend expect https?)",
                (FetchError::TimedOut(_), _) => {
                    "the backend, which accepts connections but does not respond: is it overloaded, or does \
                     upstream.url name a different service?"
                }
                _ => "the backend",
            };
            report.failed("upstream", error.to_string(), fix);
            return false;
        }
    };
    // Servers respond so to plain HTTP at a TLS port.
    if !tls && response.status() == StatusCode::BAD_REQUEST {
        let detail = format!("{} returned 400 to a request without TLS", client.authority());
        report.failed("upstream", detail, "upstream.url (does the backend expect https?)");
        return false;
    }
    let over_tls = if tls { " over TLS" } else { "" };
    let is_default = upstream.name == DEFAULT_UPSTREAM;
    let of_upstream = if is_default { String::new() } else { format!(" ({})", upstream.name) };
    report.ok("upstream", format!("{}{of_upstream} responds{over_tls}", client.authority()));
    if is_default {
        check_clock(response.headers(), report);
    }
    // The default upstream verifies the keys of all routes; a route of `forward` relies on its own upstream.
    if is_default || config.tokens.foreign == ForeignKeyPolicy::Forward {
        let backend = format!("the backend{of_upstream}");
        check_foreign_keys(&response, config.tokens.foreign, &backend, report);
    }
    true
}

/// `response` is that of `backend` to an unknown key.
fn check_foreign_keys(response: &Response<Bytes>, policy: ForeignKeyPolicy, backend: &str, report: &mut DoctorReport) {
    let (name, status) = ("foreign keys", response.status());
    match (status, policy) {
        (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, _) => {
            report.ok(name, format!("{backend} rejects an unknown key"));
        }
        (_, ForeignKeyPolicy::Reject) => report.ok(name, "the gateway rejects them"),
        (status, ForeignKeyPolicy::Verify) => {
            let detail = format!("{backend} returns {status} for an unknown key, so a success proves nothing");
            let fix = match status {
                StatusCode::NOT_FOUND => "upstream.url: is it the API service? It has no /timbr/api/get_ontologies/",
                status if status.is_redirection() => "upstream.url: name the URL to which this one redirects",
                status if status.is_server_error() => "the backend, or the proxy in front of it",
                _ => UNVERIFIABLE_KEYS_REMEDY,
            };
            report.failed(name, detail, fix);
        }
        // SECURITY: the gateway forwards every key, so any client without a valid one gets a response.
        (StatusCode::OK, ForeignKeyPolicy::Forward) if !is_error_envelope(response.body()) => {
            let detail = format!("the gateway forwards an unknown key, and {backend} accepts it on get_ontologies");
            report.failed(name, detail, UNVERIFIABLE_KEYS_REMEDY);
        }
        (status, ForeignKeyPolicy::Forward) => {
            report.ok(name, format!("not verified; {backend} returns {status} for an unknown key"));
        }
    }
}

const CLIENT_CERTIFICATE: &str = "upstream.client_cert_file, upstream.client_key_file: the backend requires a client \
     certificate";

/// The fix for a failed TLS handshake.
fn tls_fix(error: &std::io::Error) -> &'static str {
    use rustls::{AlertDescription as Alert, CertificateError as Fault, Error};
    match error.get_ref().and_then(|source| source.downcast_ref::<Error>()) {
        Some(Error::InvalidMessage(_)) => {
            "upstream.url: the backend does not speak TLS there; use http:// or the port that does"
        }
        Some(Error::InvalidCertificate(Fault::Expired | Fault::ExpiredContext { .. })) => {
            "renew the certificate of the backend, or set the clock of this machine"
        }
        Some(Error::InvalidCertificate(Fault::NotValidForName | Fault::NotValidForNameContext { .. })) => {
            "upstream.server_name (name in the certificate), or the host in upstream.url"
        }
        Some(Error::InvalidCertificate(Fault::UnknownIssuer)) => {
            "upstream.ca_file (trusted CA certificates), or let the backend send its intermediate certificates"
        }
        Some(Error::InvalidCertificate(_)) => {
            "the certificate of the backend: it must be one for servers, and not that of a CA (CA:FALSE)"
        }
        Some(Error::AlertReceived(Alert::ProtocolVersion | Alert::InsufficientSecurity)) => {
            "the backend, which must support TLS 1.2 or 1.3"
        }
        Some(Error::AlertReceived(Alert::CertificateRequired)) => CLIENT_CERTIFICATE,
        _ => "upstream.ca_file, upstream.server_name, upstream.client_cert_file, or the TLS settings of the backend",
    }
}

fn check_clock(headers: &HeaderMap, report: &mut DoctorReport) {
    let date =
        headers.get(DATE).and_then(|value| value.to_str().ok()).and_then(|text| httpdate::parse_http_date(text).ok());
    let Some(theirs) = date else { return report.skipped("clock", "the backend sends no Date header") };
    let now = SystemTime::now();
    let skew = now.duration_since(theirs).or_else(|_| theirs.duration_since(now)).unwrap_or_default().as_secs();
    let detail = format!("{skew} s difference between this machine's clock and the backend's");
    match skew {
        skew if skew > MAX_CLOCK_SKEW_SECONDS => {
            report.failed("clock", detail, "the clock (NTP) of this machine or of the backend");
        }
        _ => report.ok("clock", detail),
    }
}
