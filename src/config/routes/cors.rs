//! Reads `cors` of a route: pages of which other origins may send requests to it (the CORS protocol of the Fetch
//! standard). Handles no request.

use std::net::IpAddr;
use std::time::Duration;

use http::Method;

use crate::base::byte_class::ByteClass;
use crate::config::list_entry::ListEntry;
use crate::config::options::OptionType;
use crate::config::routes::parse_method;
use crate::config::url;

/// Which pages may send requests, and what they may send and read.
#[derive(Clone, Debug, PartialEq)]
pub struct CorsOptions {
    /// Origins such as `https://app.example.com`; empty: every origin.
    pub origins: Vec<String>,
    /// Methods for `Access-Control-Allow-Methods`; empty: those of the route.
    pub methods: Vec<Method>,
    /// Names of request headers for `Access-Control-Allow-Headers`.
    pub headers: Vec<String>,
    /// Whether the browser sends cookies and client certificates.
    pub credentials: bool,
    /// How long a browser caches the response to a preflight.
    pub max_age: Duration,
}

/// The request headers of Timbr's clients that require a permission under the Fetch standard.
const DEFAULT_HEADERS: [&str; 14] = [
    "authorization",
    "content-type",
    "last-event-id",
    "mcp-protocol-version",
    "mcp-session-id",
    "nested",
    "results-limit",
    "x-agent",
    "x-api-impersonate-user",
    "x-api-key",
    "x-async",
    "x-jwt-tenant-id",
    "x-jwt-token",
    "x-ontology",
];

const DEFAULT_MAX_AGE: Duration = Duration::from_secs(10 * 60);

/// Reads the value of `cors`.
pub fn read(mut entry: ListEntry<'_>) -> Option<CorsOptions> {
    let origins = origins(&mut entry);
    let methods = entry.parsed_texts("methods", parse_method);
    let headers = entry.parsed_texts("headers", |name| match http::HeaderName::from_bytes(name.as_bytes()) {
        Ok(name) => Ok(name.as_str().to_owned()),
        Err(_) => Err(format!("{name:?} is not the name of a header")),
    });
    let credentials = entry.flag("credentials");
    let max_age = entry.text("max_age").map(|text| Duration::parse(&text));
    if let Some(Err(message)) = &max_age {
        entry.problem("max_age", message);
    }
    // SECURITY: every page of the web could act with the cookies of its visitors.
    if credentials && origins.as_ref().is_some_and(Vec::is_empty) {
        entry.problem("credentials", "cannot be true for every origin; list the origins");
    }
    let cors = CorsOptions {
        origins: origins.unwrap_or_default(),
        methods: methods.unwrap_or_default(),
        headers: headers.unwrap_or_else(|| DEFAULT_HEADERS.map(str::to_owned).to_vec()),
        credentials,
        max_age: max_age.and_then(Result::ok).unwrap_or(DEFAULT_MAX_AGE),
    };
    entry.finish().then_some(cors)
}

/// Empty for `*`; `None` after a problem.
fn origins(entry: &mut ListEntry<'_>) -> Option<Vec<String>> {
    let Some(origins) = entry.texts("origins") else {
        entry.problem("origins", "is missing: a list such as [\"https://app.example.com\"], or \"*\"");
        return None;
    };
    if origins == ["*"] {
        return Some(Vec::new());
    }
    let mut serialized = Vec::with_capacity(origins.len());
    for origin in origins {
        match serialize(&origin) {
            Ok(origin) => serialized.push(origin),
            Err(message) => entry.problem("origins", message),
        }
    }
    Some(serialized)
}

/// An origin as browsers send it.
///
/// SECURITY: a browser sends the origin in exactly one form, and it is compared byte for byte.
fn serialize(origin: &str) -> Result<String, String> {
    if origin.contains('*') {
        return Err(format!("{origin:?} would match no page: list every origin, or set \"*\" alone for all of them"));
    }
    let form = || format!("{origin:?} must be an origin such as https://app.example.com");
    let mut parsed = url::parse_origin(origin).map_err(|_| form())?;
    parsed.host = match parsed.host.parse::<IpAddr>() {
        Ok(address) => address.to_string(),
        Err(_) if ByteClass::HOST.contains_all(parsed.host.as_bytes()) => parsed.host.to_ascii_lowercase(),
        Err(_) => return Err(form()),
    };
    let scheme = if parsed.tls { "https" } else { "http" };
    Ok(format!("{scheme}://{}", parsed.authority()))
}
