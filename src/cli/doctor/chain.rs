//! Sends the requests of the published clients through a gateway with the configuration under test.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONNECTION, CONTENT_TYPE};
use http::{Method, Request, StatusCode};
use http_body_util::Full;
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::admin::control;
use crate::app;
use crate::auth::bearer::make_bearer;
use crate::auth::verifier;
use crate::base::clock::Clock;
use crate::base::groups::Groups;
use crate::base::percent;
use crate::base::secret::Secret;
use crate::cli::doctor::RESPONSE_TIMEOUT;
use crate::cli::doctor::report::DoctorReport;
use crate::cli::doctor::routes;
use crate::cli::table::printable;
use crate::config::{Config, ListenOptions, ServerUrl, StoreKind};
use crate::outbound::http_client::HttpClient;
use crate::store::{self, Store, TokenId};

/// Maximum number of polls for an asynchronous result, one per second.
const MAX_POLLS: usize = 30;

/// Credentials for `get_token`.
pub struct DoctorLogin {
    pub user: String,
    pub password: Secret,
}

/// The requests after `get_token`.
pub struct ClientChain {
    pub ontology: Option<String>,
    pub query: String,
}

/// A client of the gateway under test.
pub struct DoctorClient {
    http: HttpClient,
    token: Option<String>,
}

/// The part of a response that is checked; the body is null unless it is JSON.
pub struct DoctorResponse {
    pub status: StatusCode,
    pub body: Value,
}

impl ClientChain {
    /// Starts a gateway, sends the requests, and stops it.
    pub async fn run(
        &self,
        mut config: Config,
        login: Option<DoctorLogin>,
        report: &mut DoctorReport,
    ) -> anyhow::Result<()> {
        match &config.store.kind {
            StoreKind::Memory => report.ok("store", "tokens are kept in process memory"),
            StoreKind::Redis(options) => match store::check_redis(options).await {
                Ok(()) => report.ok("store", "Redis responds"),
                Err(failure) => {
                    report.failed("store", format!("Redis cannot be used: {}", failure.message), failure.fix);
                    report.skipped("get_token", "requires the store");
                    return Ok(());
                }
            },
            // Only one process can open the file, and a running gateway may have it open.
            StoreKind::File(path) => {
                report.skipped(
                    "store",
                    format!("{} may be open in a running gateway; this check keeps tokens in memory", path.display()),
                );
                config.store.kind = StoreKind::Memory;
            }
        }
        let Some(login) = login else {
            // With a login, `get_token` shows whether the server verifies passwords.
            match verifier::check_server(&config).await {
                None => {}
                Some(Ok(())) => report.ok("verifier", "the server that verifies passwords responds"),
                Some(Err(why)) => report.failed(
                    "verifier",
                    format!("the server that verifies passwords cannot be used: {why}"),
                    "the settings of auth.verifier (ldap or platform), or start the server",
                ),
            }
            report.skipped("get_token", "requires --user and a password");
            return Ok(());
        };
        let salt = config.salts[0].clone();
        config.listen = ListenOptions {
            http: Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))),
            https: None,
            http_socket: None,
            admin: None,
            proxy_protocol: false,
        };
        // The socket belongs to the running gateway.
        config.admin.socket = None;
        config.workers = 1;
        let profiles = config.routes.clone();
        let bound = app::bind(config, &Clock::system())?;
        let port = bound.addresses().http.context("the HTTP listener is configured")?.port();
        let auth = Arc::clone(bound.auth());
        let (control, commands) = control::channel();
        let gateway = std::thread::spawn(move || bound.run(commands));
        let url = ServerUrl { tls: false, host: Ipv4Addr::LOCALHOST.to_string(), port, socket: None };
        let mut client = DoctorClient { http: HttpClient::with_tls(&url, None, RESPONSE_TIMEOUT), token: None };
        if client.get_token(&salt, &login, report).await {
            client.report_groups(auth.store(), report);
            let backend_fix = match self.run_queries(&client, report).await {
                true => ROUTE_REJECTS_TOKEN,
                false => BACKEND_REJECTS_TOKEN,
            };
            let token = client.token.take().unwrap_or_default();
            routes::check(&profiles, &token, backend_fix, &client, report).await;
        } else {
            report.skipped("queries", "requires a token");
        }
        // The gateway waits until nothing uses the store.
        drop(auth);
        // Immediately: no request is in flight.
        control.quit();
        gateway.join().map_err(|_| anyhow::anyhow!("the gateway panicked"))??;
        Ok(())
    }

    /// Returns whether the backend accepts the token.
    async fn run_queries(&self, client: &DoctorClient, report: &mut DoctorReport) -> bool {
        let response =
            client.send(Method::GET, "/timbr/api/get_ontologies/", "application/json", &[], Bytes::new()).await;
        let Some(ontologies) = report_response("get_ontologies", &response, report, |body| body["data"].is_array())
        else {
            report.skipped("queries", "requires get_ontologies to succeed");
            return false;
        };
        let first = ontologies["data"][0].as_str().map(str::to_owned);
        let Some(ontology) = self.ontology.clone().or(first) else {
            report.skipped("queries", "this user can see no ontology; set --ontology");
            return true;
        };
        // The request of `pytimbr_api.executeQuery`.
        let body = json!({"ontology_name": ontology, "query": self.query}).to_string();
        let response = client.send(Method::POST, "/timbr/api/query/", "application/json", &[], Bytes::from(body)).await;
        report_response("query", &response, report, |body| body["status"] == "success");
        // The request of `pytimbr_api.run_query`.
        let path = format!("/timbr/openapi/ontology/{}/query", percent::encode(&ontology));
        let text = "application/text";
        let query = Bytes::from(self.query.clone());
        let response = client.send(Method::POST, &path, text, &[("nested", "false")], query.clone()).await;
        report_response("openapi query", &response, report, |_| true);
        let headers = [("nested", "false"), ("x-async", "true")];
        let response = client.send(Method::POST, &path, text, &headers, query).await;
        if let Some(body) = report_response("async query", &response, report, |body| body["response_id"].is_string()) {
            let id = body["response_id"].as_str().unwrap_or_default();
            client.poll(&format!("/timbr/openapi/get-async-results/{}", percent::encode(id)), report).await;
        }
        true
    }
}

impl DoctorClient {
    /// The request of the script in the documentation of Timbr. Returns true if there is a token.
    async fn get_token(&mut self, salt: &Secret, login: &DoctorLogin, report: &mut DoctorReport) -> bool {
        let Some(bearer) = make_bearer(salt, &login.user, &login.password) else {
            report.failed("get_token", "cannot create a bearer", "API_AUTH_SALT");
            return false;
        };
        let authorization = format!("Bearer {}", bearer.expose());
        let headers = [(AUTHORIZATION.as_str(), authorization.as_str())];
        let response =
            self.send(Method::POST, "/timbr/api/get_token", "application/json", &headers, Bytes::new()).await;
        let body = report_response("get_token", &response, report, |body| body["data"][0].is_string());
        self.token = body.and_then(|body| body["data"][0].as_str().map(str::to_owned));
        self.token.is_some()
    }

    /// Names the groups that rules see.
    fn report_groups(&self, store: &Store, report: &mut DoctorReport) {
        let id = self.token.as_deref().map(|token| TokenId::from_token(token.as_bytes()));
        let record = id.and_then(|id| store.find(&id));
        if let Some(groups) = record.as_ref().and_then(|record| record.groups()) {
            report.ok("groups", groups_text(groups));
        }
    }

    async fn poll(&self, path: &str, report: &mut DoctorReport) {
        for _ in 0..MAX_POLLS {
            let response = self.send(Method::GET, path, "application/text", &[], Bytes::new()).await;
            let running = response.as_ref().is_ok_and(|response| response.body["status"] == "running");
            if !running {
                report_response("async result", &response, report, |body| body["status"] == "completed");
                return;
            }
            sleep(Duration::from_secs(1)).await;
        }
        report.failed("async result", "still running after 30 seconds", "the backend, or a shorter --query");
    }

    /// Sends a request through the gateway, with the token if there is one.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        content_type: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> Result<DoctorResponse, String> {
        let mut request = Request::builder().method(method).uri(path).header(CONTENT_TYPE, content_type);
        request = request.header(CONNECTION, "close");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(token) = &self.token {
            request = request.header("x-api-key", token);
        }
        let request = request.body(Full::new(body));
        let request = request.map_err(|_| "the request is invalid".to_owned())?;
        let response = self.http.send(request).await.map_err(|error| error.to_string())?;
        let body = serde_json::from_slice(response.body()).unwrap_or_default();
        Ok(DoctorResponse { status: response.status(), body })
    }
}

fn groups_text(groups: &Groups) -> String {
    if groups.iter().len() == 0 { "none".to_owned() } else { printable(&groups.to_string()) }
}

/// Reports the result of a request. Returns the body if the response is a success and `is_valid` accepts the body.
fn report_response(
    step: &'static str,
    response: &Result<DoctorResponse, String>,
    report: &mut DoctorReport,
    is_valid: impl Fn(&Value) -> bool,
) -> Option<Value> {
    let DoctorResponse { status, body } = match response {
        Ok(response) => response,
        Err(why) => {
            report.failed(step, why, "see the message");
            return None;
        }
    };
    if status.is_success() && is_valid(body) {
        report.ok(step, status.to_string());
        return Some(body.clone());
    }
    let reason = body["reason"].as_str();
    let message = body["data"].as_str().unwrap_or("the body has no Timbr message");
    let sender = if reason.is_some() { "the gateway" } else { "the backend" };
    let reason_text = reason.map_or(String::new(), |reason| format!(" {reason}"));
    let detail = format!("{sender} returned {}{reason_text}: {message}", status.as_u16());
    report.failed(step, detail, suggest_fix(reason, *status));
    None
}

/// The fix for a backend that rejects the credential.
const BACKEND_REJECTS_TOKEN: &str = "upstream.credential: the backend does not know the tokens that the gateway makes, or \
     rejects the key behind them. For an unmodified API service, set auth.verifier and upstream.credential to delegate; \
     with forward, the backend must trust x-forwarded-user; with impersonate, the service key must be allowed to \
     impersonate";

/// The fix for a backend that rejects on one route what the API service accepts.
const ROUTE_REJECTS_TOKEN: &str = "routes: the service behind this route rejects a token that the API service accepts. \
     Set `upstream` of the route to the service that serves the path (an entry of upstreams), or `enabled: false`";

/// The setting that fixes a rejection by the gateway (`reason`) or an error of the backend (no reason).
pub fn suggest_fix(reason: Option<&str>, status: StatusCode) -> &'static str {
    match (reason, status) {
        (Some(reason), _) if rejects_token(reason) => BACKEND_REJECTS_TOKEN,
        (Some("credentials_wrong"), _) => {
            "--user and the password, or auth.verifier and its settings (with delegate, api_auth_salt must be the salt of \
             the API service)"
        }
        (Some("verifier_unavailable" | "verifier_busy"), _) => {
            "the server of auth.verifier (platform.url, ldap.url, upstream.url); see the log above"
        }
        (Some("user_key_refused" | "user_key_unavailable"), _) => {
            "upstream.credential: the backend returns no key for SHOW TOKEN; see the log above"
        }
        (Some("token_store_unavailable"), _) => "store.urls, store.password, store.ca_file; see the log above",
        (Some("not_authorized"), _) => "authorization.rules",
        (Some("client_certificate_required"), _) => "routes: this route requires a TLS client certificate",
        (Some("content_type_unsupported" | "method_not_allowed" | "not_found"), _) => "routes",
        (Some("api_key_missing" | "jwt_missing" | "basic_missing"), _) => "routes: the credentials of the route",
        (Some("upstream_unreachable" | "upstream_connect_timeout"), _) => "upstream.url, upstream.connect_timeout",
        (Some("upstream_timeout"), _) => "upstream.response_timeout",
        (Some(_), _) => "see docs/errors.md for this reason",
        (None, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => BACKEND_REJECTS_TOKEN,
        (None, _) => "the backend, or --ontology and --query",
    }
}

/// Whether the reason is about the token. The gateway of `doctor` has just made it, so the backend has rejected it.
pub fn rejects_token(reason: &str) -> bool {
    matches!(reason, "token_expired" | "token_revoked" | "api_key_unknown")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_control_character_of_a_group_reaches_the_terminal() {
        let groups = |names: &[&str]| Groups::new(names.iter().map(|name| Box::from(*name)).collect()).expect("few");
        assert_eq!(groups_text(&groups(&["b", "\u{1b}]0;x\u{7}"])), "\\u{1b}]0;x\\u{7}; b");
        assert_eq!(groups_text(&groups(&[])), "none");
    }
}
