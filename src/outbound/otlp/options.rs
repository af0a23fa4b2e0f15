//! The standard variables (OpenTelemetry specification, "Environment Variable Specification" and "OTLP Exporter
//! Configuration"), as far as they concern traces over OTLP/HTTP.

use std::path::PathBuf;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::base::percent;
use crate::config::url::{ResourceUrl, parse_resource};
use crate::observability::trace::Sampler;

/// Where traces go, and how.
#[derive(Clone, Debug)]
pub struct OtlpOptions {
    /// The receiver.
    pub endpoint: ResourceUrl,
    /// Fields of each request to it. SECURITY: often a credential; marked so, and never shown.
    pub headers: HeaderMap,
    /// Whom to trust instead of the system's authorities.
    pub ca_file: Option<PathBuf>,
    /// What one export may take.
    pub timeout: Duration,
    /// Which requests are traced.
    pub sampler: Sampler,
    /// What is said of this process.
    pub resource: Vec<(String, String)>,
    /// Requests that may wait to be exported.
    pub max_queued_requests: usize,
    /// Spans that are exported together.
    pub max_batch_spans: usize,
    /// How long spans are gathered.
    pub batch_delay: Duration,
}

/// What the variables ask for; `None` if traces are not wanted. Nothing is exported unless an endpoint or the exporter is
/// named: a gateway sends nothing to anybody unasked.
pub fn from_variables(get: impl Fn(&str) -> Option<String>) -> Result<Option<OtlpOptions>, String> {
    let get = |name: &str| get(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty());
    // The one of traces alone goes before the one of all signals.
    let either = |name: &str| {
        get(&format!("OTEL_EXPORTER_OTLP_TRACES_{name}"))
            .or_else(|| get(&format!("OTEL_EXPORTER_OTLP_{name}")))
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
            return Err(format!(
                "OTEL_EXPORTER_OTLP_PROTOCOL must be http/protobuf (port 4318), not {other:?}"
            ));
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
    let count =
        |name: &str, default| number(name, default).map(|n| usize::try_from(n).unwrap_or(usize::MAX >> 4));
    let timeout = either("TIMEOUT").map_or(Ok(10_000), |value| value.parse());
    let timeout = timeout.map_err(|_| "OTEL_EXPORTER_OTLP_TIMEOUT must be a number of milliseconds")?;
    Ok(Some(OtlpOptions {
        endpoint: parse_resource(&endpoint)
            .map_err(|error| format!("OTEL_EXPORTER_OTLP_ENDPOINT {error}"))?,
        headers: parse_headers(&either("HEADERS").unwrap_or_default())?,
        ca_file: either("CERTIFICATE").map(PathBuf::from),
        timeout: Duration::from_millis(timeout),
        sampler: Sampler::from_name(&sampler, get("OTEL_TRACES_SAMPLER_ARG").as_deref())?,
        resource: resource_attributes(
            get("OTEL_SERVICE_NAME"),
            &get("OTEL_RESOURCE_ATTRIBUTES").unwrap_or_default(),
        )?,
        max_queued_requests: count("OTEL_BSP_MAX_QUEUE_SIZE", 2048)?.min(1 << 20),
        max_batch_spans: count("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 512)?,
        batch_delay: Duration::from_millis(number("OTEL_BSP_SCHEDULE_DELAY", 5000)?),
    }))
}

/// `key=value,key=value`, values percent-encoded (W3C Baggage).
fn parse_pairs(text: &str, variable: &str) -> Result<Vec<(String, String)>, String> {
    // SECURITY: what is wrong is not shown; it may be a credential.
    let wrong = || format!("{variable} must be key=value,key=value, values percent-encoded");
    let pair = |pair: &str| {
        let (key, value) = pair.split_once('=').ok_or_else(wrong)?;
        let value = percent::decode(value.trim()).ok_or_else(wrong)?.into_owned();
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
            return Err(format!("{VARIABLE} holds what no header field can"));
        };
        value.set_sensitive(true);
        map.append(name, value);
    }
    Ok(map)
}

fn resource_attributes(service: Option<String>, text: &str) -> Result<Vec<(String, String)>, String> {
    let mut attributes = parse_pairs(text, "OTEL_RESOURCE_ATTRIBUTES")?;
    let given = attributes.iter().position(|(key, _)| key == "service.name");
    let given = given.map(|at| attributes.remove(at).1);
    let name = service.or(given).unwrap_or_else(|| env!("CARGO_PKG_NAME").to_owned());
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
    fn nothing_is_sent_unasked() {
        assert!(options_from(&[]).expect("valid").is_none());
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318");
        assert!(options_from(&[endpoint, ("OTEL_SDK_DISABLED", "true")]).expect("valid").is_none());
        assert!(options_from(&[endpoint, ("OTEL_TRACES_EXPORTER", "none")]).expect("valid").is_none());
        let by_name = options_from(&[("OTEL_TRACES_EXPORTER", "otlp")]).expect("valid").expect("wanted");
        assert_eq!((by_name.endpoint.origin.port, by_name.endpoint.target.as_str()), (4318, "/v1/traces"));
    }

    #[test]
    fn the_variables_of_traces_go_before_those_of_all_signals() {
        let options = options_from(&[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://all:4318/base/"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "100"),
            ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "200"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Basic%20abc,x=1"),
            ("OTEL_SERVICE_NAME", "gateway-of-sales"),
            ("OTEL_RESOURCE_ATTRIBUTES", "service.name=other,deployment.environment=prod"),
        ]);
        let options = options.expect("valid").expect("wanted");
        assert_eq!(options.endpoint.target, "/base/v1/traces");
        assert_eq!(options.timeout, Duration::from_millis(200));
        assert_eq!(options.headers["authorization"], "Basic abc");
        assert!(!format!("{options:?}").contains("abc"), "a credential is not shown");
        let of_key = |key: &str| {
            options.resource.iter().find(|(known, _)| known == key).map(|(_, value)| value.as_str())
        };
        assert_eq!(of_key("service.name"), Some("gateway-of-sales"));
        assert_eq!(of_key("deployment.environment"), Some("prod"));
    }

    #[test]
    fn what_is_wrong_is_said() {
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
