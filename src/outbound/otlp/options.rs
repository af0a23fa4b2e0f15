//! The standard environment variables for traces over OTLP/HTTP (OpenTelemetry specification, "Environment Variable
//! Specification" and "OTLP Exporter Configuration"). It validates them and connects to nothing.

use std::path::PathBuf;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::base::percent;
use crate::config::url::{ResourceUrl, parse_resource};
use crate::observability::trace::Sampler;

/// The validated environment variables.
#[derive(Clone, Debug)]
pub struct OtlpOptions {
    /// URL of the collector.
    pub endpoint: ResourceUrl,
    /// Headers of each export. SECURITY: often a credential; marked as sensitive and never shown.
    pub headers: HeaderMap,
    /// PEM file of CA certificates that replace the system's.
    pub ca_file: Option<PathBuf>,
    /// Timeout of an export.
    pub timeout: Duration,
    /// Which requests are traced.
    pub sampler: Sampler,
    /// Resource attributes that describe this process.
    pub resource: Vec<(String, String)>,
    /// Maximum number of requests queued for export.
    pub max_queued_requests: usize,
    /// Maximum number of spans per export.
    pub max_batch_spans: usize,
    /// How long an export waits for further spans.
    pub batch_delay: Duration,
}

/// Parses the variables. `None` if traces are off, which is the default: nothing is exported unless an endpoint or the
/// exporter is set. An error is a message that names the variable.
pub fn from_variables(get: impl Fn(&str) -> Option<String>) -> Result<Option<OtlpOptions>, String> {
    let get = |name: &str| get(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty());
    // The variable for traces takes precedence over the one for all signals.
    let either = |name: &str| {
        get(&format!("OTEL_EXPORTER_OTLP_TRACES_{name}")).or_else(|| get(&format!("OTEL_EXPORTER_OTLP_{name}")))
    };
    if get("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true")) {
        return Ok(None);
    }
    match get("OTEL_TRACES_EXPORTER").as_deref() {
        Some("none") => return Ok(None),
        Some("otlp") => {}
        None if either("ENDPOINT").is_none() => return Ok(None),
        None => {}
        Some(other) => return Err(format!("OTEL_TRACES_EXPORTER must be otlp or none, not {other:?}")),
    }
    match either("PROTOCOL").as_deref() {
        None | Some("http/protobuf") => {}
        Some(other) => {
            return Err(format!("OTEL_EXPORTER_OTLP_PROTOCOL must be http/protobuf (port 4318), not {other:?}"));
        }
    }
    let endpoint = match get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") {
        Some(url) => url,
        None => {
            let base = get("OTEL_EXPORTER_OTLP_ENDPOINT");
            let base = base.unwrap_or_else(|| "http://localhost:4318".to_owned());
            format!("{}/v1/traces", base.trim_end_matches('/'))
        }
    };
    let sampler = get("OTEL_TRACES_SAMPLER").unwrap_or_else(|| "parentbased_always_on".to_owned());
    let number = |name: &str, default: u64| match get(name).map(|value| value.parse()) {
        None => Ok(default),
        Some(Ok(value)) if value > 0 => Ok(value),
        Some(_) => Err(format!("{name} must be a number above 0")),
    };
    let count = |name: &str, default| number(name, default).map(|n| usize::try_from(n).unwrap_or(usize::MAX >> 4));
    let timeout = either("TIMEOUT").map_or(Ok(10_000), |value| value.parse());
    let timeout = timeout.map_err(|_| "OTEL_EXPORTER_OTLP_TIMEOUT must be a number of milliseconds")?;
    Ok(Some(OtlpOptions {
        endpoint: parse_resource(&endpoint).map_err(|error| format!("OTEL_EXPORTER_OTLP_ENDPOINT {error}"))?,
        headers: parse_headers(&either("HEADERS").unwrap_or_default())?,
        ca_file: either("CERTIFICATE").map(PathBuf::from),
        timeout: Duration::from_millis(timeout),
        sampler: Sampler::from_name(&sampler, get("OTEL_TRACES_SAMPLER_ARG").as_deref())?,
        resource: resource_attributes(get("OTEL_SERVICE_NAME"), &get("OTEL_RESOURCE_ATTRIBUTES").unwrap_or_default())?,
        max_queued_requests: count("OTEL_BSP_MAX_QUEUE_SIZE", 2048)?.min(1 << 20),
        max_batch_spans: count("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 512)?,
        batch_delay: Duration::from_millis(number("OTEL_BSP_SCHEDULE_DELAY", 5000)?),
    }))
}

/// Parses `key=value,key=value`, values percent-encoded (W3C Baggage).
fn parse_pairs(text: &str, variable: &str) -> Result<Vec<(String, String)>, String> {
    // SECURITY: the value is not shown, because it may be a credential.
    let invalid = || format!("{variable} must be key=value,key=value, values percent-encoded");
    let pair = |pair: &str| {
        let (key, value) = pair.split_once('=').ok_or_else(invalid)?;
        let value = percent::decode(value.trim()).ok_or_else(invalid)?.into_owned();
        Ok((key.trim().to_owned(), value))
    };
    text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(pair).collect()
}

fn parse_headers(text: &str) -> Result<HeaderMap, String> {
    const VARIABLE: &str = "OTEL_EXPORTER_OTLP_HEADERS";
    let mut map = HeaderMap::new();
    for (name, value) in parse_pairs(text, VARIABLE)? {
        let name = HeaderName::from_bytes(name.as_bytes());
        let value = HeaderValue::from_str(&value);
        let (Ok(name), Ok(mut value)) = (name, value) else {
            return Err(format!("{VARIABLE} has an invalid header name or value"));
        };
        value.set_sensitive(true);
        map.append(name, value);
    }
    Ok(map)
}

fn resource_attributes(service: Option<String>, text: &str) -> Result<Vec<(String, String)>, String> {
    let mut attributes = parse_pairs(text, "OTEL_RESOURCE_ATTRIBUTES")?;
    let from_attributes = attributes.iter().position(|(key, _)| key == "service.name");
    let from_attributes = from_attributes.map(|at| attributes.remove(at).1);
    let name = service.or(from_attributes).unwrap_or_else(|| env!("CARGO_PKG_NAME").to_owned());
    attributes.push(("service.name".to_owned(), name));
    if !attributes.iter().any(|(key, _)| key == "service.version") {
        attributes.push(("service.version".to_owned(), env!("CARGO_PKG_VERSION").to_owned()));
    }
    Ok(attributes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options_from(variables: &[(&str, &str)]) -> Result<Option<OtlpOptions>, String> {
        let variables: std::collections::HashMap<_, _> = variables.iter().copied().collect();
        from_variables(|name| variables.get(name).map(ToString::to_string))
    }

    #[test]
    fn nothing_is_exported_by_default() {
        assert!(options_from(&[]).expect("valid").is_none());
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318");
        assert!(options_from(&[endpoint, ("OTEL_SDK_DISABLED", "true")]).expect("valid").is_none());
        assert!(options_from(&[endpoint, ("OTEL_TRACES_EXPORTER", "none")]).expect("valid").is_none());
        let by_name = options_from(&[("OTEL_TRACES_EXPORTER", "otlp")]).expect("valid").expect("enabled");
        assert_eq!((by_name.endpoint.origin.port, by_name.endpoint.target.as_str()), (4318, "/v1/traces"));
    }

    #[test]
    fn variables_for_traces_take_precedence() {
        let options = options_from(&[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://all:4318/base/"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "100"),
            ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "200"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Basic%20abc,x=1"),
            ("OTEL_SERVICE_NAME", "gateway-of-sales"),
            ("OTEL_RESOURCE_ATTRIBUTES", "service.name=other,deployment.environment=prod"),
        ]);
        let options = options.expect("valid").expect("enabled");
        assert_eq!(options.endpoint.target, "/base/v1/traces");
        assert_eq!(options.timeout, Duration::from_millis(200));
        assert_eq!(options.headers["authorization"], "Basic abc");
        assert!(!format!("{options:?}").contains("abc"), "a credential is not shown");
        let attribute =
            |key: &str| options.resource.iter().find(|(known, _)| known == key).map(|(_, value)| value.as_str());
        assert_eq!(attribute("service.name"), Some("gateway-of-sales"));
        assert_eq!(attribute("deployment.environment"), Some("prod"));
    }

    #[test]
    fn an_invalid_variable_is_named_without_its_value() {
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318");
        for (name, value) in [
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
            ("OTEL_TRACES_EXPORTER", "zipkin"),
            ("OTEL_TRACES_SAMPLER", "sometimes"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "hunter2"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "soon"),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "0"),
        ] {
            let error = options_from(&[endpoint, (name, value)]).expect_err(name);
            assert!(error.contains(name) && !error.contains("hunter2"), "{error}");
        }
    }
}
