//! Prints the effective configuration as YAML and JSON, with the origin of each value and without secrets.

use std::fmt::Write as _;
use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json};

use crate::config::file;
use crate::config::options::{self, OptionSpec, Shape};
use crate::config::routes::{RouteProfile, defaults};
use crate::config::size;
use crate::config::sources::{Settings, ValueOrigin};
use crate::http::media_type::MediaType;

/// An option that has a value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EffectiveOption {
    /// Key of the option: `upstream.url`.
    pub key: &'static str,
    /// The value as text; `None` for a secret.
    pub value: Option<String>,
    /// Source of the value: `variable TIMBR_GATEWAY_WORKERS`.
    pub origin: String,
}

/// The options that have values, without secrets.
pub fn effective_options(settings: &Settings) -> Vec<EffectiveOption> {
    let entry = |option: &'static OptionSpec| {
        let setting = settings.values.get(option.key)?;
        // SECURITY: a secret is named but never shown.
        let value = (option.shape != Shape::Secret).then(|| setting.text.expose().to_owned());
        Some(EffectiveOption { key: option.key, value, origin: setting.origin.to_string() })
    };
    options::all().filter_map(entry).collect()
}

/// Whether a comment on each line names the source of the value.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum OriginComments {
    /// `workers: 3  # variable TIMBR_GATEWAY_WORKERS`
    Printed,
    /// `workers: 3`
    Omitted,
}

/// The configuration as a YAML file that the gateway accepts, without secrets.
pub fn to_yaml(settings: &Settings, routes: &[RouteProfile], comments: OriginComments) -> String {
    let mut text = String::new();
    let mut group = "";
    for option in options::all() {
        let Some(setting) = settings.values.get(option.key) else { continue };
        let (parent, name) = option.key.rsplit_once('.').unwrap_or(("", option.key));
        if parent != group {
            group = parent;
            if !group.is_empty() {
                let _ = writeln!(text, "{group}:");
            }
        }
        let indent = if parent.is_empty() { "" } else { "  " };
        let origin =
            if comments == OriginComments::Printed { format!("  # {}", setting.origin) } else { String::new() };
        if option.shape == Shape::Secret {
            // SECURITY: a secret is named but never shown.
            let origin = if setting.origin == ValueOrigin::Default { String::new() } else { origin };
            let _ = writeln!(text, "{indent}# {name}: (set, not shown){origin}");
        } else {
            // JSON is YAML, on one line.
            let value = json_value(option.shape, setting.text.expose());
            let _ = writeln!(text, "{indent}{name}: {value}{origin}");
        }
    }
    text.push_str("routes:\n");
    for route in routes {
        let Value::Object(keys) = route_json(route) else { unreachable!("a route is an object") };
        let _ = writeln!(text, "  - name: {}", json!(route.name));
        for (key, value) in keys.iter().filter(|(key, _)| *key != "name") {
            let _ = writeln!(text, "    {key}: {value}");
        }
    }
    // SECURITY: a default route that is missing from the file would be enabled, so disabled ones are printed, too.
    for route in defaults(0) {
        if !routes.iter().any(|other| other.name == route.name) {
            let _ = writeln!(text, "  - name: {}\n    enabled: false", json!(route.name));
        }
    }
    text
}

/// The configuration as JSON: each option with its value, or the mark of a secret, and its origin.
pub fn to_json(settings: &Settings, routes: &[RouteProfile]) -> Value {
    let options = options::all().filter_map(|option| {
        let setting = settings.values.get(option.key)?;
        let origin = setting.origin.to_string();
        // SECURITY: a secret is named but never shown.
        Some(match option.shape {
            Shape::Secret => json!({ "key": option.key, "secret": true, "origin": origin }),
            shape => {
                json!({ "key": option.key, "value": json_value(shape, setting.text.expose()), "origin": origin })
            }
        })
    });
    let routes = routes.iter().map(route_json);
    json!({ "options": options.collect::<Vec<_>>(), "routes": routes.collect::<Vec<_>>() })
}

/// The keys of an entry of `routes`.
fn route_json(route: &RouteProfile) -> Value {
    let content_types = route.content_types.as_ref();
    let types = content_types.map(|types| types.iter().map(MediaType::as_str).collect::<Vec<_>>());
    let methods =
        |methods: &[http::Method]| methods.iter().map(http::Method::as_str).map(Value::from).collect::<Value>();
    let duration = |duration: Duration| humantime::format_duration(duration).to_string();
    let mut json = json!({
        "name": route.name,
        "prefixes": route.prefixes,
        "content_types": types.map_or(json!("any"), |types| json!(types)),
        "content_type": route.content_type.as_str(),
        "methods": methods(&route.methods),
        "max_body": size::format(route.max_body),
        "client_certificate": if route.client_certificate { "required" } else { "optional" },
        "credentials": route.accepts.words(),
        "upstream": route.upstream_name,
        "affinity": route.affinity.as_ref().map_or("none".to_owned(), ToString::to_string),
    });
    let timeouts = [
        ("response_timeout", route.response_timeout),
        ("body_timeout", route.body_timeout),
        ("response_keepalive", route.response_keepalive),
    ];
    for (key, timeout) in timeouts.into_iter().filter_map(|(key, timeout)| Some((key, timeout?))) {
        json[key] = duration(timeout).into();
    }
    if let Some(size) = route.buffer {
        json["buffer"] = size::format(size).into();
    }
    if let Some(host) = route.host_header {
        json["host_header"] = host.as_str().into();
    }
    if let Some(cors) = &route.cors {
        json["cors"] = json!({
            "origins": if cors.origins.is_empty() { vec!["*"] } else { cors.origins.iter().map(String::as_str).collect() },
            "headers": cors.headers,
            "credentials": cors.credentials,
            "max_age": duration(cors.max_age),
        });
        if !cors.methods.is_empty() {
            json["cors"]["methods"] = methods(&cors.methods);
        }
    }
    json
}

/// The text of an option as a JSON number, boolean or list where it has that type, otherwise as a string.
pub fn json_value(shape: Shape, text: &str) -> Value {
    let node = match shape {
        Shape::Bool | Shape::Count | Shape::Limit => serde_json::from_str(text).ok(),
        Shape::List => file::parse(text).ok(),
        _ => None,
    };
    node.unwrap_or_else(|| text.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::testing::{SALT, load_exactly, load_with_settings};

    #[test]
    fn printed_yaml_can_be_loaded_and_contains_no_secret() {
        let (config, settings) = load_with_settings("", &[("WORKERS", "3")]).expect("valid");
        let printed = to_yaml(&settings, &config.routes, OriginComments::Printed);
        assert!(!printed.contains(SALT));
        assert!(printed.contains("workers: 3  # variable TIMBR_GATEWAY_WORKERS"), "{printed}");
        let (config, settings) = load_exactly(&printed, &[("API_AUTH_SALT", SALT)]).expect("printed YAML is valid");
        assert_eq!(to_yaml(&settings, &config.routes, OriginComments::Omitted), strip_origins(&printed));
    }

    #[test]
    fn json_has_values_and_origins_and_no_secret() {
        let certificates = ("TLS_CERTIFICATES", "[{cert_file: a, key_file: b}]");
        let (config, settings) = load_with_settings("", &[certificates]).expect("valid");
        let printed = to_json(&settings, &config.routes);
        let options = printed["options"].as_array().expect("a list");
        let option = |key: &str| options.iter().find(|option| option["key"] == key).expect("printed");
        let salt = json!({"key": "api_auth_salt", "secret": true, "origin": "variable API_AUTH_SALT"});
        assert_eq!(option("api_auth_salt"), &salt);
        assert_eq!(option("tokens.max"), &json!({"key": "tokens.max", "value": 1_000_000, "origin": "default"}));
        assert_eq!(option("tls.certificates")["value"], json!([{"cert_file": "a", "key_file": "b"}]));
        assert_eq!(printed["routes"][0]["name"], "api");
    }

    #[test]
    fn disabled_routes_stay_disabled_when_printed_yaml_is_loaded() {
        let disabled = "routes:\n  - {name: openapi, enabled: false}\n";
        let (config, settings) = load_with_settings(disabled, &[]).expect("valid");
        let printed = to_yaml(&settings, &config.routes, OriginComments::Omitted);
        let (again, _) = load_exactly(&printed, &[("API_AUTH_SALT", SALT)]).expect("valid");
        let names: Vec<_> = again.routes.iter().map(|route| route.name.as_str()).collect();
        assert_eq!(names, ["api", "mcp", "agent-log"]);
    }

    fn strip_origins(text: &str) -> String {
        text.lines().map(|line| line.split("  # ").next().unwrap_or(line).to_owned() + "\n").collect()
    }
}
