//! The routes of the admin listener: path, access, methods and function of each, and their dispatch. It knows nothing
//! about what the functions do.

use std::cell::RefCell;
use std::fmt::Display;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, ALLOW};
use http::request::Parts;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::admin::access::AdminPeer;
use crate::admin::health::{Probe, ProbeResult};
use crate::admin::response::{AdminBody, json_response, response, static_response, text_response};
use crate::admin::{
    AdminContext, access, commands, dashboard, queries, rejections, stops, tokens, update_upstream_metrics,
};
use crate::base::percent::decode_query_value;
use crate::config::AdminCommands;
use crate::observability::log::{self, Label, LogRecord, label};
use crate::observability::metrics::ExpositionFormat;
use crate::os::unix_socket::user_name;
use crate::store::Unavailable;
use crate::upstream::UpstreamStatus;

/// Maximum size of a request body; every valid one is smaller.
const MAX_BODY_SIZE: usize = 16 * 1024;

const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// A call of the JSON API.
pub struct Call<'a> {
    pub admin: &'a AdminContext,
    /// The rest of the path after the route's prefix, with percent escapes.
    pub rest: &'a str,
    query: &'a str,
    /// Empty for GET.
    pub body: Bytes,
    notes: &'a AuditNotes,
}

/// What a command adds to its line in the audit log, such as a previous value.
type AuditNotes = RefCell<Vec<(Label, String)>>;

impl<'a> Call<'a> {
    fn new(
        admin: &'a AdminContext,
        route: &AdminRoute,
        parts: &'a Parts,
        body: Bytes,
        notes: &'a AuditNotes,
    ) -> Call<'a> {
        let rest = route.strip_route(parts.uri.path()).expect("it was chosen by its path");
        Call { admin, rest, query: parts.uri.query().unwrap_or_default(), body, notes }
    }

    /// Adds a value to the line of the command in the audit log.
    pub fn note(&self, label: Label, value: &dyn Display) {
        self.notes.borrow_mut().push((label, value.to_string()));
    }

    /// The decoded parameters of the query.
    pub fn parameters(&self) -> impl Iterator<Item = (&'a str, String)> {
        let pairs = self.query.split('&').filter(|pair| !pair.is_empty());
        pairs.map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (name, decode_query_value(value))
        })
    }
}

/// Why a call failed.
#[derive(Debug)]
pub struct AdminError {
    pub status: StatusCode,
    pub message: String,
    /// Details for programs: the JSON member `problems`.
    pub problems: Option<Value>,
}

impl AdminError {
    pub fn new(status: StatusCode, message: impl Into<String>) -> AdminError {
        AdminError { status, message: message.into(), problems: None }
    }

    pub fn bad_request(message: impl Into<String>) -> AdminError {
        AdminError::new(StatusCode::BAD_REQUEST, message)
    }

    pub fn unavailable(message: impl Into<String>) -> AdminError {
        AdminError::new(StatusCode::SERVICE_UNAVAILABLE, message)
    }
}

pub type CallResult = Result<Value, AdminError>;

type CallFuture<'a> = Pin<Box<dyn Future<Output = CallResult> + 'a>>;

/// The clients that may use a route.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Access {
    Everyone,
    /// Everyone but pages of other sites in a local browser.
    Monitoring,
    /// Clients on this machine: see [`access`].
    Local,
    /// Those of them that may use admin commands.
    Operators,
}

/// The function of a route, its methods and its format.
enum Action {
    /// GET and HEAD; errors are plain text.
    Page(fn(&Parts, &AdminContext) -> Response<AdminBody>),
    /// GET; JSON.
    Read(for<'a> fn(Call<'a>) -> CallFuture<'a>),
    /// A command that changes state; JSON. It is written to the audit log under this name.
    Command(Method, &'static str, for<'a> fn(Call<'a>) -> CallFuture<'a>),
}

/// One path with the methods of one action. A path that ends with `/` is a prefix.
struct AdminRoute {
    path: &'static str,
    access: Access,
    action: Action,
}

const JAVASCRIPT: &str = "text/javascript; charset=utf-8";

static ROUTES: [AdminRoute; 34] = [
    probe("/livez", |parts, admin| probe_response(Probe::Live, parts, admin)),
    // The name that many load balancers expect.
    probe("/healthz", |parts, admin| probe_response(Probe::Live, parts, admin)),
    probe("/readyz", |parts, admin| probe_response(Probe::Ready, parts, admin)),
    probe("/startupz", |parts, admin| probe_response(Probe::Startup, parts, admin)),
    AdminRoute { path: "/metrics", access: Access::Monitoring, action: Action::Page(metrics) },
    page("/", |_, _| static_response("text/html; charset=utf-8", include_str!("dashboard/page.html"))),
    page("/dashboard", |_, _| static_response("text/html; charset=utf-8", include_str!("dashboard/page.html"))),
    page("/dashboard.css", |_, _| static_response("text/css; charset=utf-8", include_str!("dashboard/page.css"))),
    page("/dashboard.js", |_, _| static_response(JAVASCRIPT, include_str!("dashboard/page.js"))),
    page("/dashboard-queries.js", |_, _| static_response(JAVASCRIPT, include_str!("dashboard/queries.js"))),
    page("/dashboard.svg", |_, _| static_response("image/svg+xml", include_str!("dashboard/icon.svg"))),
    page("/overview", |_, admin| dashboard::overview(admin)),
    page("/events", |_, admin| dashboard::open_event_stream(admin)),
    read("/tokens", Access::Operators, |call| Box::pin(tokens::list(call))),
    read("/salts", Access::Operators, |call| Box::pin(tokens::list_salts(call))),
    read("/upstreams", Access::Local, |call| {
        ready(Ok(json!(UpstreamStatus::of_all(&call.admin.snapshot.get().upstreams))))
    }),
    read("/refusals", Access::Local, |call| ready(rejections::list(&call))),
    read("/top", Access::Local, |call| ready(Ok(dashboard::top(call.admin)))),
    read("/explain/", Access::Local, |call| ready(rejections::explain(&call))),
    read("/queries/running", Access::Operators, |call| ready(queries::running(&call))),
    read("/queries/slow", Access::Operators, |call| ready(queries::slow(&call))),
    read("/queries/top", Access::Operators, |call| ready(queries::top(&call))),
    read("/log-level", Access::Operators, |_| ready(commands::log_level())),
    command(Method::PUT, "/log-level", "log-level", |call| ready(commands::set_log_level(&call))),
    command(Method::POST, "/tokens/revoke", "revoke", |call| Box::pin(tokens::revoke(call))),
    read("/tokens/denied", Access::Operators, |call| ready(Ok(tokens::list_denied(call.admin)))),
    command(Method::POST, "/tokens/allow", "allow", |call| Box::pin(tokens::allow(call))),
    read("/stops", Access::Operators, |call| ready(Ok(stops::list(call.admin)))),
    command(Method::POST, "/stop", "stop-requests", |call| Box::pin(stops::stop(call))),
    command(Method::POST, "/resume", "resume-requests", |call| Box::pin(stops::resume(call))),
    command(Method::POST, "/queries/cancel", "cancel", |call| ready(queries::cancel(&call))),
    command(Method::POST, "/reload", "reload", |call| Box::pin(commands::reload(&call.admin.control))),
    command(Method::POST, "/drain", "drain", |call| ready(Ok(commands::drain(&call.admin.control)))),
    command(Method::POST, "/quit", "quit", |call| ready(Ok(commands::quit(&call.admin.control)))),
];

const fn probe(path: &'static str, respond: fn(&Parts, &AdminContext) -> Response<AdminBody>) -> AdminRoute {
    AdminRoute { path, access: Access::Everyone, action: Action::Page(respond) }
}

const fn page(path: &'static str, respond: fn(&Parts, &AdminContext) -> Response<AdminBody>) -> AdminRoute {
    AdminRoute { path, access: Access::Local, action: Action::Page(respond) }
}

const fn read(path: &'static str, access: Access, call: for<'a> fn(Call<'a>) -> CallFuture<'a>) -> AdminRoute {
    AdminRoute { path, access, action: Action::Read(call) }
}

const fn command(
    method: Method,
    path: &'static str,
    name: &'static str,
    call: for<'a> fn(Call<'a>) -> CallFuture<'a>,
) -> AdminRoute {
    AdminRoute { path, access: Access::Operators, action: Action::Command(method, name, call) }
}

fn ready(result: CallResult) -> CallFuture<'static> {
    Box::pin(std::future::ready(result))
}

impl AdminRoute {
    /// The rest of a path that this route matches.
    fn strip_route<'a>(&self, path: &'a str) -> Option<&'a str> {
        let rest = path.strip_prefix(self.path)?;
        let is_prefix = self.path.len() > 1 && self.path.ends_with('/');
        (rest.is_empty() || is_prefix).then_some(rest)
    }

    fn methods(&self) -> &[Method] {
        match &self.action {
            Action::Page(_) => &[Method::GET, Method::HEAD],
            Action::Read(_) => &[Method::GET],
            Action::Command(method, ..) => std::slice::from_ref(method),
        }
    }

    fn error_response(&self, error: &AdminError) -> Response<AdminBody> {
        match self.action {
            Action::Page(_) => text_response(error.status, &error.message),
            Action::Read(_) | Action::Command(..) => json_error(error),
        }
    }
}

/// Serves one request of the admin listener.
pub async fn respond(request: Request<Incoming>, peer: AdminPeer, admin: &AdminContext) -> Response<AdminBody> {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path();
    let routes = || ROUTES.iter().filter(|route| route.strip_route(path).is_some());
    let Some(first) = routes().next() else { return unknown_path(&parts.method) };
    // SECURITY: before anything else is decided about the request.
    if let Err(error) = authorize_client(first.access, &parts, peer) {
        return first.error_response(&error);
    }
    let Some(route) = routes().find(|route| route.methods().contains(&parts.method)) else {
        let methods: Vec<_> = routes().flat_map(AdminRoute::methods).map(Method::as_str).collect();
        return method_not_allowed(first, &methods.join(", "));
    };
    let notes = AuditNotes::default();
    let result = match (&route.action, authorize_operator(route.access, &parts, peer, admin)) {
        (Action::Page(_) | Action::Read(_), Err(error)) => return route.error_response(&error),
        (Action::Page(respond), Ok(())) => return respond(&parts, admin),
        (Action::Read(read), Ok(())) => read(Call::new(admin, route, &parts, Bytes::new(), &notes)).await,
        (Action::Command(_, name, run), access) => {
            let (decision, result) = match access.and_then(|()| access::authorize_change(&parts.headers)) {
                Err(error) => ("denied", Err(error)),
                Ok(()) => {
                    let result = match read_body(body).await {
                        Ok(body) => run(Call::new(admin, route, &parts, body, &notes)).await,
                        Err(error) => Err(error),
                    };
                    (if result.is_ok() { "done" } else { "failed" }, result)
                }
            };
            log::write_audit(|record| {
                record.text(label!("what"), name);
                record.text(label!("decision"), decision);
                for (label, value) in notes.borrow().iter() {
                    record.text(*label, value);
                }
                record_operator(record, peer, admin.snapshot.get().config.admin.commands);
            });
            result
        }
    };
    match result {
        Ok(document) => json_response(StatusCode::OK, &document),
        Err(error) => json_error(&error),
    }
}

/// Whether the route is open to a client at this place.
fn authorize_client(access: Access, parts: &Parts, peer: AdminPeer) -> Result<(), AdminError> {
    match access {
        Access::Everyone => Ok(()),
        Access::Monitoring => access::authorize_metrics(&parts.headers, peer),
        Access::Local | Access::Operators => access::authorize_local(&parts.headers, peer),
    }
}

fn authorize_operator(access: Access, parts: &Parts, peer: AdminPeer, admin: &AdminContext) -> Result<(), AdminError> {
    match access {
        Access::Everyone | Access::Monitoring | Access::Local => Ok(()),
        Access::Operators => access::authorize_operator(&parts.headers, peer, &admin.snapshot.get().config.admin),
    }
}

/// Names the sender of a command, as far as it is known.
fn record_operator(record: &mut LogRecord<'_>, peer: AdminPeer, commands: AdminCommands) {
    match peer {
        AdminPeer::Tcp(address) => {
            record.text(label!("via"), if commands == AdminCommands::Token { "token" } else { "loopback" });
            record.text(label!("client"), &address.to_string());
        }
        AdminPeer::Process { uid, pid } => {
            record.text(label!("via"), "socket");
            record.text(label!("operator"), &user_name(uid).unwrap_or_else(|| uid.to_string()));
            record.number(label!("operator_uid"), uid.into());
            if let Some(pid) = pid {
                record.number(label!("operator_pid"), pid.into());
            }
        }
    }
}

async fn read_body(body: Incoming) -> Result<Bytes, AdminError> {
    let body = timeout(BODY_TIMEOUT, Limited::new(body, MAX_BODY_SIZE).collect()).await;
    let body = body.ok().and_then(Result::ok).map(http_body_util::Collected::to_bytes);
    body.ok_or_else(|| AdminError::bad_request("the request body is too large, or did not arrive in time"))
}

/// Notes where a change of the deny list is active, and makes an outage of the store an error.
pub fn report_scope<T>(call: &Call<'_>, result: Result<T, Unavailable>) -> Result<T, AdminError> {
    let scope = if result.is_ok() { "all replicas" } else { "this gateway" };
    call.note(label!("scope"), &scope);
    result.map_err(|_| {
        AdminError::unavailable(
            "the token store is unavailable. The change is active at this gateway. Other replicas learn of it when the \
             store is available again, unless this gateway stops before: then repeat it.",
        )
    })
}

fn probe_response(probe: Probe, parts: &Parts, admin: &AdminContext) -> Response<AdminBody> {
    let ProbeResult { is_healthy, text } = admin.health.probe(probe, parts.uri.query());
    text_response(if is_healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, &text)
}

fn metrics(parts: &Parts, admin: &AdminContext) -> Response<AdminBody> {
    update_upstream_metrics(admin);
    let accept = parts.headers.get(ACCEPT).and_then(|value| value.to_str().ok());
    let format = ExpositionFormat::from_accept(accept.unwrap_or_default());
    response(StatusCode::OK, format.content_type(), admin.metrics.encode(format))
}

fn unknown_path(method: &Method) -> Response<AdminBody> {
    if !matches!(*method, Method::GET | Method::HEAD) {
        return method_not_allowed(&ROUTES[0], "GET, HEAD");
    }
    let paths = |all: &[Access]| {
        let mut paths: Vec<_> =
            ROUTES.iter().filter(|route| all.contains(&route.access)).map(|route| route.path).collect();
        paths.dedup();
        paths.join(", ")
    };
    let public = paths(&[Access::Everyone, Access::Monitoring]);
    let local = paths(&[Access::Local, Access::Operators]);
    let message = format!("unknown path; paths are {public}, and from this machine also {local}");
    text_response(StatusCode::NOT_FOUND, &message)
}

fn method_not_allowed(route: &AdminRoute, methods: &str) -> Response<AdminBody> {
    let message = format!("method not allowed; use {methods}");
    let error = AdminError::new(StatusCode::METHOD_NOT_ALLOWED, message);
    let mut response = route.error_response(&error);
    let allow = HeaderValue::from_str(methods).expect("methods are tokens");
    response.headers_mut().insert(ALLOW, allow);
    response
}

fn json_error(error: &AdminError) -> Response<AdminBody> {
    let mut document = json!({ "status": "error", "data": error.message });
    if let Some(problems) = &error.problems {
        document["problems"] = problems.clone();
    }
    json_response(error.status, &document)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The access is decided before the method is known.
    #[test]
    fn routes_of_one_path_have_the_same_access() {
        for route in &ROUTES {
            let same_path = ROUTES.iter().filter(|other| other.path == route.path);
            assert!(same_path.into_iter().all(|other| other.access == route.access), "{}", route.path);
        }
    }

    #[test]
    fn only_a_path_with_a_trailing_slash_is_a_prefix() {
        let matching = |path: &str| ROUTES.iter().filter(|route| route.strip_route(path).is_some()).count();
        for (path, count) in
            [("/", 1), ("/livez", 1), ("/livez/", 0), ("/explain/a/b", 1), ("/explain", 0), ("/log-level", 2)]
        {
            assert_eq!(matching(path), count, "{path}");
        }
    }
}
