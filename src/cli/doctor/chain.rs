//! What the published clients do, through a gateway of this configuration.

use std::net::{Ipv4Addr, SocketAddr};
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
use crate::base::clock::Clock;
use crate::base::percent;
use crate::base::secret::Secret;
use crate::cli::doctor::RESPONSE_TIMEOUT;
use crate::cli::doctor::report::DoctorReport;
use crate::config::{Config, ListenOptions, ServerUrl, StoreKind};
use crate::outbound::http_client::HttpClient;

/// So often a result that is still being made is asked for, with a second between.
const MAX_POLLS: usize = 30;

/// As whom to ask.
pub struct DoctorLogin {
    pub user: String,
    pub password: Secret,
}

/// What to ask for.
pub struct ClientChain {
    pub ontology: Option<String>,
    pub query: String,
}

/// A way to ask the gateway.
struct DoctorClient {
    http: HttpClient,
    token: Option<String>,
}

/// An answer, as far as it is looked at.
struct DoctorResponse {
    status: StatusCode,
    body: Value,
}

impl ClientChain {
    /// Starts a gateway and asks it.
    pub async fn run(
        &self,
        mut config: Config,
        caller: Option<DoctorLogin>,
        report: &mut DoctorReport,
    ) -> anyhow::Result<()> {
        match &config.store.kind {
            StoreKind::Memory => report.ok("store", "tokens are kept in the memory of the process"),
            StoreKind::Redis(_) => {
                report.ok("store", "Redis; get_token keeps a token there and fails if it cannot");
            }
            // Only one process can have it open, and that may be the gateway.
            StoreKind::File(path) => {
                report.skipped(
                    "store",
                    format!("{} may be in use; tokens are kept in memory here", path.display()),
                );
                config.store.kind = StoreKind::Memory;
            }
        }
        let Some(caller) = caller else {
            report.skipped("get_token", "nobody to log in as; give --user and a password");
            return Ok(());
        };
        let salt = config.salts[0].clone();
        config.listen = ListenOptions {
            http: Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))),
            https: None,
            admin: None,
            proxy_protocol: false,
        };
        config.workers = 1;
        let bound = app::bind(config, &Clock::system())?;
        let port = bound.addresses().http.context("it listens")?.port();
        let (control, orders) = control::channel();
        let gateway = std::thread::spawn(move || bound.run(orders));
        let url = ServerUrl { tls: false, host: Ipv4Addr::LOCALHOST.to_string(), port };
        let mut client =
            DoctorClient { http: HttpClient::with_tls(&url, None, RESPONSE_TIMEOUT), token: None };
        if client.get_token(&salt, &caller, report).await {
            self.run_queries(&client, report).await;
        } else {
            report.skipped("queries", "there is no token to ask with");
        }
        // At once: nothing is in flight any more.
        control.quit();
        gateway.join().map_err(|_| anyhow::anyhow!("the gateway panicked"))??;
        Ok(())
    }

    async fn run_queries(&self, client: &DoctorClient, report: &mut DoctorReport) {
        let answer =
            client.send(Method::GET, "/timbr/api/get_ontologies/", "application/json", &[], "").await;
        let Some(ontologies) =
            report_response("get_ontologies", &answer, report, |body| body["data"].is_array())
        else {
            return report.skipped("queries", "the backend takes nothing of this user");
        };
        let first = ontologies["data"][0].as_str().map(str::to_owned);
        let Some(ontology) = self.ontology.clone().or(first) else {
            return report.skipped("queries", "this user sees no ontology; give --ontology");
        };
        // As `pytimbr_api.executeQuery` asks.
        let body = json!({"ontology_name": ontology, "query": self.query}).to_string();
        let answer = client.send(Method::POST, "/timbr/api/query/", "application/json", &[], &body).await;
        report_response("query", &answer, report, |body| body["status"] == "success");
        // As `pytimbr_api.run_query` asks.
        let path = format!("/timbr/openapi/ontology/{}/query", percent::encode(&ontology));
        let text = "application/text";
        let answer = client.send(Method::POST, &path, text, &[("nested", "false")], &self.query).await;
        report_response("openapi query", &answer, report, |_| true);
        let fields = [("nested", "false"), ("x-async", "true")];
        let answer = client.send(Method::POST, &path, text, &fields, &self.query).await;
        if let Some(body) =
            report_response("async query", &answer, report, |body| body["response_id"].is_string())
        {
            let id = body["response_id"].as_str().unwrap_or_default();
            client.poll(&format!("/timbr/openapi/get-async-results/{}", percent::encode(id)), report).await;
        }
    }
}

impl DoctorClient {
    /// As the documentation's script asks.
    async fn get_token(&mut self, salt: &Secret, caller: &DoctorLogin, report: &mut DoctorReport) -> bool {
        let Some(bearer) = make_bearer(salt, &caller.user, &caller.password) else {
            report.failed("get_token", "no bearer could be made", "API_AUTH_SALT");
            return false;
        };
        let authorization = format!("Bearer {}", bearer.expose());
        let fields = [(AUTHORIZATION.as_str(), authorization.as_str())];
        let answer = self.send(Method::POST, "/timbr/api/get_token", "application/json", &fields, "").await;
        let body = report_response("get_token", &answer, report, |body| body["data"][0].is_string());
        self.token = body.and_then(|body| body["data"][0].as_str().map(str::to_owned));
        self.token.is_some()
    }

    async fn poll(&self, path: &str, report: &mut DoctorReport) {
        for _ in 0..MAX_POLLS {
            let answer = self.send(Method::GET, path, "application/text", &[], "").await;
            let running = answer.as_ref().is_ok_and(|answer| answer.body["status"] == "running");
            if !running {
                report_response("async result", &answer, report, |body| body["status"] == "completed");
                return;
            }
            sleep(Duration::from_secs(1)).await;
        }
        report.failed(
            "async result",
            "it is still running after half a minute",
            "the backend, or a shorter --query",
        );
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        content_type: &str,
        fields: &[(&str, &str)],
        body: &str,
    ) -> Result<DoctorResponse, String> {
        let mut request = Request::builder().method(method).uri(path).header(CONTENT_TYPE, content_type);
        request = request.header(CONNECTION, "close");
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        if let Some(token) = &self.token {
            request = request.header("x-api-key", token);
        }
        let request = request.body(Full::new(Bytes::copy_from_slice(body.as_bytes())));
        let request = request.map_err(|_| "what was to be asked is no request".to_owned())?;
        let answer = self.http.send(request).await.map_err(|error| error.to_string())?;
        let body = serde_json::from_slice(answer.body()).unwrap_or_default();
        Ok(DoctorResponse { status: answer.status(), body })
    }
}

/// The body of an answer that is as it should be; what is wrong with another is told.
fn report_response(
    step: &'static str,
    answer: &Result<DoctorResponse, String>,
    report: &mut DoctorReport,
    is_right: impl Fn(&Value) -> bool,
) -> Option<Value> {
    let DoctorResponse { status, body } = match answer {
        Ok(answer) => answer,
        Err(why) => {
            report.failed(step, why, "see the message");
            return None;
        }
    };
    if status.is_success() && is_right(body) {
        report.ok(step, status.to_string());
        return Some(body.clone());
    }
    let reason = body["reason"].as_str();
    let sentence = body["data"].as_str().unwrap_or("an answer of another form than Timbr's");
    let who = if reason.is_some() { "the gateway" } else { "the backend" };
    let reason_told = reason.map_or(String::new(), |reason| format!(" {reason}"));
    let detail = format!("{who} answers {}{reason_told}: {sentence}", status.as_u16());
    report.failed(step, detail, suggest_fix(reason, *status));
    None
}

/// Which setting is behind a refusal of the gateway, or of the backend.
fn suggest_fix(reason: Option<&str>, status: StatusCode) -> &'static str {
    match (reason, status) {
        (Some("credentials_wrong"), _) => {
            "the user and password given here, or auth.verifier and its settings"
        }
        (Some("verifier_unavailable" | "verifier_busy"), _) => {
            "the server that auth.verifier asks (platform.url, ldap.url, upstream.url); the log above says why"
        }
        (Some("token_store_unavailable"), _) => {
            "store.urls, store.password, store.ca_file; the log above says why"
        }
        (Some("token_expired"), _) => {
            "upstream.credential: the backend refuses the key that the token stands for"
        }
        (Some("not_authorized"), _) => "authorization.rules",
        (Some("client_certificate_required"), _) => "routes: this one takes clients with a certificate alone",
        (Some("content_type_unsupported" | "method_not_allowed" | "not_found"), _) => "routes",
        (Some("api_key_missing" | "jwt_missing" | "basic_missing"), _) => "routes: their credentials",
        (Some("upstream_unreachable" | "upstream_connect_timeout"), _) => {
            "upstream.url, upstream.connect_timeout"
        }
        (Some("upstream_timeout"), _) => "upstream.response_timeout",
        (Some(_), _) => "see docs/errors.md for this reason",
        (None, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => {
            "upstream.credential: the backend does not take what it is shown (forward needs a backend that trusts this \
             hop; impersonate a service key that was granted impersonation)"
        }
        (None, _) => "the backend, or --ontology and --query",
    }
}
