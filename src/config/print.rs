//! The configuration in force, for people: values and where they came from, secrets left out.

use std::fmt::Write as _;

use serde::Serialize;
use serde_json::{Value, json};

use crate::config::file::Node;
use crate::config::options::{self, OptionSpec, Shape};
use crate::config::routes::{RouteProfile, defaults};
use crate::config::size;
use crate::config::sources::{Settings, ValueOrigin};
use crate::http::media_type::MediaType;

/// One option that has a value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EffectiveOption {
    /// Its key.
    pub key: &'static str,
    /// Its value; `None` if that is secret.
    pub value: Option<String>,
    /// Where that came from, in words.
    pub origin: String,
}

/// The options that have values, without secrets.
pub fn effective_options(settings: &Settings) -> Vec<EffectiveOption> {
    let entry = |option: &'static OptionSpec| {
        let setting = settings.values.get(option.key)?;
        // SECURITY: a secret is named, never shown.
        let value = (option.shape != Shape::Secret).then(|| setting.text.expose().to_owned());
        Some(EffectiveOption { key: option.key, value, origin: setting.origin.to_string() })
    };
    options::all().filter_map(entry).collect()
}

/// The configuration as a file that the gateway reads back, without its secrets. With `origins`, each line tells
/// where its value came from.
pub fn to_yaml(settings: &Settings, routes: &[RouteProfile], origins: bool) -> String {
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
        let origin = if origins { format!("  # {}", setting.origin) } else { String::new() };
        if option.shape == Shape::Secret {
            // SECURITY: a secret is named, never shown.
            let origin = if setting.origin == ValueOrigin::Default { String::new() } else { origin };
            let _ = writeln!(text, "{indent}# {name}: (set, not shown){origin}");
        } else {
            let value = scalar(option.shape, setting.text.expose());
            let _ = writeln!(text, "{indent}{name}: {value}{origin}");
        }
    }
    text.push_str("routes:\n");
    for route in routes {
        let content_types: Vec<_> = route.content_types.iter().map(|t| quoted(t.as_str())).collect();
        let methods: Vec<_> = route.methods.iter().map(|m| quoted(m.as_str())).collect();
        let _ = writeln!(
            text,
            "  - name: {}\n    prefix: {}\n    content_types: [{}]\n    methods: [{}]\n    max_body: {}\n    client_certificate: {}\n    credentials: [{}]",
            quoted(&route.name),
            quoted(&route.prefix),
            content_types.join(", "),
            methods.join(", "),
            quoted(&size::format(route.max_body)),
            if route.client_certificate { "required" } else { "optional" },
            route.accepts.words().join(", ")
        );
    }
    // SECURITY: a route that is left out of a file is there by default, so one that was switched off is named too.
    for route in defaults(0) {
        if !routes.iter().any(|other| other.name == route.name) {
            let _ = writeln!(text, "  - name: {}\n    enabled: false", quoted(&route.name));
        }
    }
    text
}

/// The same for programs: each option with its value, or that it is a secret, and where it came from.
pub fn to_json(settings: &Settings, routes: &[RouteProfile]) -> Value {
    let options = options::all().filter_map(|option| {
        let setting = settings.values.get(option.key)?;
        let origin = setting.origin.to_string();
        // SECURITY: a secret is named, never shown.
        Some(match option.shape {
            Shape::Secret => json!({ "key": option.key, "secret": true, "origin": origin }),
            shape => {
                json!({ "key": option.key, "value": value(shape, setting.text.expose()), "origin": origin })
            }
        })
    });
    let routes = routes.iter().map(|route| {
        json!({
            "name": route.name,
            "prefix": route.prefix,
            "content_types": route.content_types.iter().map(MediaType::as_str).collect::<Vec<_>>(),
            "methods": route.methods.iter().map(http::Method::as_str).collect::<Vec<_>>(),
            "max_body": size::format(route.max_body),
            "client_certificate": if route.client_certificate { "required" } else { "optional" },
            "credentials": route.accepts.words(),
        })
    });
    json!({ "options": options.collect::<Vec<_>>(), "routes": routes.collect::<Vec<_>>() })
}

/// A value in JSON's own form where it has one.
fn value(shape: Shape, text: &str) -> Value {
    let node = match shape {
        Shape::Bool | Shape::Count | Shape::Limit => serde_json::from_str(text).ok(),
        Shape::List => Node::parse(text).ok().map(|node| node.to_json()),
        _ => None,
    };
    node.unwrap_or_else(|| text.into())
}

fn scalar(shape: Shape, value: &str) -> String {
    match shape {
        Shape::Bool | Shape::Count | Shape::Limit => value.to_owned(),
        // The values of variables and flags may stand on several lines; here is one.
        Shape::List => Node::parse(value).map_or_else(|_| quoted(value), |node| node.to_flow()),
        _ => quoted(value),
    }
}

/// JSON's strings are YAML's double-quoted ones.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Sources, load};

    #[test]
    fn what_is_printed_can_be_read_back_and_shows_no_secret() {
        let salt = "cw_0x689RpI-jtRR7oE8h_eQsKImvJapLeSbXpwF4e4=";
        let env = vec![
            ("API_AUTH_SALT".into(), salt.into()),
            ("TIMBR_GATEWAY_UPSTREAM_URL".into(), "http://127.0.0.1:8000".into()),
            ("TIMBR_GATEWAY_WORKERS".into(), "3".into()),
        ];
        let sources = Sources { environment: env, ..Sources::default() };
        let (config, settings) = load(&sources).expect("valid");
        let printed = to_yaml(&settings, &config.routes, true);
        assert!(!printed.contains(salt));
        assert!(printed.contains("workers: 3  # variable TIMBR_GATEWAY_WORKERS"), "{printed}");

        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("printed.yaml");
        std::fs::write(&path, &printed).expect("written");
        let again = Sources {
            environment: vec![("API_AUTH_SALT".into(), salt.into())],
            file: Some(path),
            ..Sources::default()
        };
        let (config, settings) = load(&again).expect("what was printed is valid");
        assert_eq!(to_yaml(&settings, &config.routes, false), strip_origins(&printed));
    }

    #[test]
    fn programs_are_told_values_and_origins_and_no_secret() {
        let environment = vec![
            ("API_AUTH_SALT".into(), "cw_0x689RpI-jtRR7oE8h_eQsKImvJapLeSbXpwF4e4=".into()),
            ("TIMBR_GATEWAY_UPSTREAM_URL".into(), "http://127.0.0.1:8000".into()),
            ("TIMBR_GATEWAY_TLS_CERTIFICATES".into(), "[{cert_file: a, key_file: b}]".into()),
        ];
        let (config, settings) = load(&Sources { environment, ..Sources::default() }).expect("valid");
        let told = to_json(&settings, &config.routes);
        let of =
            |key: &str| told["options"].as_array().expect("a list").iter().find(|o| o["key"] == key).cloned();
        assert_eq!(
            of("api_auth_salt"),
            Some(json!({"key": "api_auth_salt", "secret": true, "origin": "variable API_AUTH_SALT"}))
        );
        assert_eq!(
            of("tokens.max"),
            Some(json!({"key": "tokens.max", "value": 1_000_000, "origin": "default"}))
        );
        assert_eq!(
            of("tls.certificates").expect("given")["value"],
            json!([{"cert_file": "a", "key_file": "b"}])
        );
        assert_eq!(told["routes"][0]["name"], "api");
    }

    #[test]
    fn a_route_that_is_off_stays_off_when_what_was_printed_is_read_back() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("gateway.yaml");
        let read = |text: &str| {
            std::fs::write(&path, text).expect("written");
            let environment = vec![
                ("API_AUTH_SALT".into(), "cw_0x689RpI-jtRR7oE8h_eQsKImvJapLeSbXpwF4e4=".into()),
                ("TIMBR_GATEWAY_UPSTREAM_URL".into(), "http://127.0.0.1:8000".into()),
            ];
            load(&Sources { environment, file: Some(path.clone()), ..Sources::default() }).expect("valid")
        };
        let (config, settings) = read("routes:\n  - {name: openapi, enabled: false}\n");
        let (again, _) = read(&to_yaml(&settings, &config.routes, false));
        let names: Vec<_> = again.routes.iter().map(|route| route.name.as_str()).collect();
        assert_eq!(names, ["api"]);
    }

    fn strip_origins(text: &str) -> String {
        text.lines().map(|line| line.split("  # ").next().unwrap_or(line).to_owned() + "\n").collect()
    }
}
