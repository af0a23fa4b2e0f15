//! Tries each route with one request that changes nothing, and the credential that the route takes.

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION};
use http::{Method, StatusCode};

use crate::auth::basic_authorization;
use crate::cli::doctor::chain::{DoctorClient, DoctorResponse, rejects_token, suggest_fix};
use crate::cli::doctor::report::DoctorReport;
use crate::config::RouteProfile;

/// The routes whose requests are those of the published clients.
const TRIED_BY_QUERIES: [&str; 2] = ["api", "openapi"];

/// `CloseSession` of HiveServer2's `TCLIService` with an unknown session, in the binary protocol of Thrift. The backend
/// authenticates it, and has nothing to close.
const THRIFT: &[u8] = b"\x80\x01\x00\x01\x00\x00\x00\x0cCloseSession\x00\x00\x00\x00\
    \x0c\x00\x01\x0c\x00\x01\x0c\x00\x01\
    \x0b\x00\x01\x00\x00\x00\x10timbr-gateway-dr\x0b\x00\x02\x00\x00\x00\x10timbr-gateway-dr\
    \x00\x00\x00\x00";

/// `Discover` of XML for Analysis.
const XMLA: &[u8] = b"<Envelope xmlns=\"http://schemas.xmlsoap.org/soap/envelope/\"><Body>\
    <Discover xmlns=\"urn:schemas-microsoft-com:xml-analysis\"><RequestType>DISCOVER_DATASOURCES</RequestType>\
    <Restrictions/><Properties/></Discover></Body></Envelope>";

/// `initialize` of the Model Context Protocol, without which a server accepts no other message.
const MCP: &[u8] = br#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-06-18",
    "capabilities":{},"clientInfo":{"name":"timbr-gateway doctor","version":"1"}}}"#;

/// The request for a route.
struct RouteRequest {
    method: Method,
    content_type: &'static str,
    body: &'static [u8],
}

/// Tries the routes with this token. `backend_fix` is for a backend that rejects it.
pub async fn check(
    routes: &[RouteProfile],
    token: &str,
    backend_fix: &str,
    client: &DoctorClient,
    report: &mut DoctorReport,
) {
    for route in routes.iter().filter(|route| !TRIED_BY_QUERIES.contains(&route.name.as_str())) {
        let name = &route.name;
        let (request, credential) =
            match request_for(route).and_then(|request| Ok((request, credential(route, token)?))) {
                Ok(request) => request,
                Err(why) => {
                    report.skipped("route", format!("{name}: {why}"));
                    continue;
                }
            };
        let RouteRequest { method, content_type, body } = request;
        let path = match route.prefixes[0].trim_end_matches('/') {
            "" => "/",
            path => path,
        };
        let accept = (ACCEPT.as_str(), "application/json, text/event-stream, */*");
        let mut headers = vec![accept];
        headers.extend(credential.as_ref().map(|(name, value)| (*name, value.as_str())));
        let response = client.send(method.clone(), path, content_type, &headers, Bytes::from_static(body)).await;
        report_route(&format!("{name}: {method} {path}"), response, backend_fix, report);
    }
}

/// The error says why the route is not tried.
fn request_for(route: &RouteProfile) -> Result<RouteRequest, &'static str> {
    let post = |content_type, body| RouteRequest { method: Method::POST, content_type, body };
    Ok(match route.name.as_str() {
        _ if route.client_certificate => return Err("requires a TLS client certificate"),
        "mcp" => post("application/json", MCP),
        "hive" => post("application/x-thrift", THRIFT),
        "mdx" => post("text/xml", XMLA),
        // Not the path of a log: it would be stored.
        "agent-log" => post("application/json", b"{}"),
        _ if route.methods.contains(&Method::GET) => {
            RouteRequest { method: Method::GET, content_type: "application/json", body: b"" }
        }
        _ => return Err("accepts no GET, and a different method could change something"),
    })
}

type RouteCredential = Option<(&'static str, String)>;

fn credential(route: &RouteProfile, token: &str) -> Result<RouteCredential, &'static str> {
    let accepts = route.accepts;
    Ok(match (accepts.none, accepts.api_key, accepts.basic, accepts.bearer) {
        (true, ..) => None,
        (_, true, ..) => Some(("x-api-key", token.to_owned())),
        (_, _, true, _) => {
            Some((AUTHORIZATION.as_str(), basic_authorization("token", token.as_bytes()).as_str().to_owned()))
        }
        (.., true) => Some((AUTHORIZATION.as_str(), format!("Bearer {token}"))),
        _ => return Err("accepts only JWTs, and doctor has none"),
    })
}

fn report_route(tried: &str, response: Result<DoctorResponse, String>, backend_fix: &str, report: &mut DoctorReport) {
    let DoctorResponse { status, body } = match response {
        Ok(response) => response,
        Err(why) => return report.failed("route", format!("{tried}: {why}"), "see the message"),
    };
    let code = status.as_u16();
    if let Some(reason) = body["reason"].as_str() {
        let message = body["data"].as_str().unwrap_or_default();
        let detail = format!("{tried}: the gateway returned {code} {reason}: {message}");
        let fix = if rejects_token(reason) { backend_fix } else { suggest_fix(Some(reason), status) };
        return report.failed("route", detail, fix);
    }
    let detail = format!("{tried}: the backend returned {code}");
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => report.failed("route", detail, backend_fix),
        StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => {
            report.skipped("route", format!("{detail}: the service behind the route does not have this path"));
        }
        _ if status.is_server_error() => {
            report.warning("route", detail, "the backend, or the upstream of the route");
        }
        _ => report.ok("route", detail),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::statement::{StatementFormat, TokenRequest};

    #[test]
    fn the_thrift_message_is_one_call_of_a_session() {
        assert_eq!(TokenRequest::read(StatementFormat::Thrift, THRIFT), TokenRequest::No);
        assert_eq!(TokenRequest::read(StatementFormat::Mcp, MCP), TokenRequest::No);
    }
}
