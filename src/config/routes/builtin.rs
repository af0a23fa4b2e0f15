//! The profiles of the paths that Timbr documents.

use http::Method;

use crate::config::routes::{AcceptedCredentials, ContentTypeRule, METHODS, RouteProfile};
use crate::config::{AffinityKey, DEFAULT_UPSTREAM, HostHeader};
use crate::http::media_type::MediaType;

const JSON: &[&str] = &["application/json"];

/// Paths of the services that take Thrift over HTTP: JDBC, ODBC, pytimbr-sqla, PyHive.
pub const THRIFT_PATHS: [&str; 3] = ["/timbr-server/", "/hive2/", "/cliservice/"];

/// The logs of langchain-timbr, which are JSON below a path of Thrift.
pub const AGENT_LOG_PATHS: [&str; 2] = ["/timbr-server/log_agent/", "/timbr-server/log_benchmark/"];

/// The profiles that are enabled without an entry in `routes`.
pub fn defaults(max_body: u64) -> Vec<RouteProfile> {
    ["api", "openapi", "mcp", "agent-log"].iter().filter_map(|name| built_in(name, max_body)).collect()
}

/// The names of all built-in profiles. An entry of `routes` with one of these names enables it.
pub const BUILT_IN: [&str; 8] = ["api", "openapi", "mcp", "agent-log", "hive", "mdx", "mcp-oauth", "platform"];

/// The built-in profile with this name.
pub fn built_in(name: &str, max_body: u64) -> Option<RouteProfile> {
    let profile = |prefixes: &[&str], content_types: &[&str]| profile(name, prefixes, content_types, max_body);
    let basic = AcceptedCredentials { basic: true, ..AcceptedCredentials::default() };
    let open = AcceptedCredentials { none: true, ..AcceptedCredentials::default() };
    Some(match name {
        "api" => RouteProfile { content_type: ContentTypeRule::Always, ..profile(&["/timbr/api/"], JSON) },
        "openapi" => RouteProfile {
            content_type: ContentTypeRule::Always,
            ..profile(&["/timbr/openapi/"], &["application/json", "application/text", "text/plain"])
        },
        "mcp" => RouteProfile {
            methods: vec![Method::GET, Method::POST, Method::DELETE],
            accepts: AcceptedCredentials { bearer: true, ..AcceptedCredentials::DEFAULT },
            affinity: Some(AffinityKey::McpSession),
            has_event_streams: true,
            ..profile(&["/timbr/api/mcp/"], JSON)
        },
        "agent-log" => RouteProfile { methods: vec![Method::POST], accepts: basic, ..profile(&AGENT_LOG_PATHS, JSON) },
        "hive" => RouteProfile {
            methods: vec![Method::POST],
            accepts: basic,
            ..profile(&THRIFT_PATHS, &["application/x-thrift"])
        },
        // XML for Analysis: Excel.
        "mdx" => RouteProfile {
            methods: vec![Method::POST],
            accepts: basic,
            ..profile(&["/mdx/", "/MDX/"], &["text/xml", "application/xml", "application/soap+xml"])
        },
        // What an MCP client requests before it has a credential. Timbr makes the URLs of its metadata from `Host`.
        "mcp-oauth" => RouteProfile {
            content_types: None,
            host_header: Some(HostHeader::Client),
            methods: vec![Method::GET, Method::HEAD, Method::POST],
            accepts: open,
            ..profile(
                &[
                    "/.well-known/oauth-protected-resource/",
                    "/.well-known/oauth-authorization-server/",
                    "/.well-known/openid-configuration/",
                    "/timbr/api/oauth/",
                ],
                &[],
            )
        },
        // Everything else of the host name, for users with a browser.
        "platform" => {
            RouteProfile { content_types: None, methods: METHODS.to_vec(), accepts: open, ..profile(&["/"], &[]) }
        }
        _ => return None,
    })
}

/// A profile with the defaults of a new route.
pub(super) fn profile(name: &str, prefixes: &[&str], content_types: &[&str], max_body: u64) -> RouteProfile {
    let media_type = |text: &&str| MediaType::parse_bare(text).expect("the defaults are valid");
    RouteProfile {
        name: name.to_owned(),
        prefixes: prefixes.iter().map(|prefix| (*prefix).to_owned()).collect(),
        content_types: Some(content_types.iter().map(media_type).collect()),
        content_type: ContentTypeRule::WithContent,
        methods: METHODS.into_iter().filter(|method| *method != Method::OPTIONS).collect(),
        max_body,
        buffer: None,
        response_keepalive: None,
        client_certificate: false,
        accepts: AcceptedCredentials::DEFAULT,
        has_explicit_credentials: false,
        upstream: 0,
        upstream_name: DEFAULT_UPSTREAM.to_owned(),
        cors: None,
        response_timeout: None,
        body_timeout: None,
        affinity: None,
        host_header: None,
        has_event_streams: false,
    }
}
