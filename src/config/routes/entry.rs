//! Reads one entry of `routes` and applies it to the built-in profile of its name, or to a new one.

use std::time::Duration;

use http::Method;
use serde_json::Value;

use crate::config::file;
use crate::config::list_entry::{ListEntry, flag};
use crate::config::options::OptionType;
use crate::config::routes::builtin::{built_in, profile};
use crate::config::routes::{
    AcceptedCredentials, CREDENTIALS, ContentTypeRule, METHODS, RouteProfile, cors, is_name, method,
};
use crate::config::{AffinityKey, HostHeader, size};
use crate::http::media_type::MediaType;

const PREFIX_FORM: &str =
    "must begin with `/` and contain no character that needs escaping, such as \"/timbr/api/\" or \"/hive2\"";

const MEDIA_TYPE_FORM: &str = "must be media types without parameters, such as application/json";

/// Adds the route to the profiles, replaces it there, or removes it. Returns its name; `None` and problems if the entry
/// is not valid.
pub fn apply(
    mut entry: ListEntry<'_>,
    max_body: u64,
    upstreams: &[&str],
    profiles: &mut Vec<RouteProfile>,
) -> Option<String> {
    if !entry.has("name") {
        entry.problem("name", "is missing");
    }
    let name = entry.parse("name", name).unwrap_or_default();
    let known = profiles.iter().position(|profile| profile.name == name);
    let base = known.map(|index| profiles[index].clone()).or_else(|| built_in(&name, max_body));
    let is_new = base.is_none();
    let mut route = base.unwrap_or_else(|| profile(&name, &[], &["application/json"], max_body));
    match (entry.has("prefix"), entry.has("prefixes")) {
        (true, true) => entry.problem("prefix", "cannot be combined with prefixes; keep one of them"),
        (false, false) if is_new && !name.is_empty() => {
            entry.problem_of_entry("a new route requires prefix or prefixes");
        }
        _ => {}
    }
    replace(&mut route.prefixes, entry.parse("prefix", one_prefix));
    replace(&mut route.prefixes, list(&mut entry, "prefixes", PREFIX_FORM, prefix));
    replace(&mut route.content_types, content_types(&mut entry));
    replace(&mut route.content_type, entry.parse("content_type", word::<ContentTypeRule>));
    replace(&mut route.methods, list(&mut entry, "methods", &one_of(METHODS.each_ref().map(Method::as_str)), method));
    replace(&mut route.max_body, entry.parse("max_body", bytes));
    route.buffer = entry.parse("buffer", bytes).or(route.buffer);
    route.response_keepalive = entry.parse("response_keepalive", keepalive).or(route.response_keepalive);
    replace(&mut route.client_certificate, entry.parse("client_certificate", client_certificate));
    if let Some(accepts) = credentials(&mut entry) {
        route.accepts = accepts;
        route.has_explicit_credentials = true;
    }
    if let Some(index) = entry.parse("upstream", |node| upstream(node, upstreams)) {
        route.upstream = index;
        upstreams[index].clone_into(&mut route.upstream_name);
    }
    route.cors = entry.group("cors").and_then(cors::read).or(route.cors);
    route.response_timeout = entry.parse("response_timeout", duration).or(route.response_timeout);
    route.body_timeout = entry.parse("body_timeout", duration).or(route.body_timeout);
    replace(&mut route.affinity, entry.parse("affinity", affinity));
    route.host_header = entry.parse("host_header", word::<HostHeader>).or(route.host_header);
    if route.response_keepalive.is_some() && !can_respond_with_json(&route) {
        let message = "cannot be set here: the response begins as JSON, and the clients of this route read Thrift, XML or \
                       a stream of events";
        entry.problem("response_keepalive", message);
    }
    let is_enabled = entry.parse("enabled", flag).unwrap_or(true);
    if !entry.finish() {
        return None;
    }
    known.map(|index| profiles.remove(index));
    if is_enabled {
        profiles.push(route);
    }
    Some(name)
}

fn replace<T>(value: &mut T, new: Option<T>) {
    if let Some(new) = new {
        *value = new;
    }
}

/// The text of a node; empty for any other node.
fn text(node: &Value) -> &str {
    node.as_str().unwrap_or_default()
}

fn name(node: &Value) -> Result<String, String> {
    match node {
        Value::String(name) if is_name(name) => Ok(name.clone()),
        _ => Err("must be a word of a-z, 0-9, `-` and `_`".to_owned()),
    }
}

fn one_prefix(node: &Value) -> Result<Vec<String>, String> {
    prefix(text(node)).map(|prefix| vec![prefix]).ok_or_else(|| PREFIX_FORM.to_owned())
}

/// `Some(None)` for `any`.
fn content_types(entry: &mut ListEntry<'_>) -> Option<Option<Vec<MediaType>>> {
    match entry.remove("content_types")? {
        Value::String(word) if word == "any" => Some(None),
        node => list_of(entry, "content_types", MEDIA_TYPE_FORM, node, MediaType::parse_bare).map(Some),
    }
}

fn bytes(node: &Value) -> Result<u64, String> {
    size::parse(text(node)).ok_or_else(|| "must be a size with its unit, such as \"10MiB\"".to_owned())
}

/// Each interval costs a write and a wakeup per request.
fn keepalive(node: &Value) -> Result<Duration, String> {
    let interval = duration(node)?;
    <Duration as OptionType>::check(&interval, Some(("1s", "10m"))).map(|()| interval)
}

/// Whether the clients of a route may read JSON. Those that send Thrift or XML receive the same.
fn can_respond_with_json(route: &RouteProfile) -> bool {
    let is_other = |name: &str| name.ends_with("thrift") || name.ends_with("/xml") || name.ends_with("+xml");
    let has_json = |types: &[MediaType]| types.iter().any(|media_type| !is_other(media_type.as_str()));
    !route.has_event_streams && route.content_types.as_deref().is_none_or(has_json)
}

fn upstream(node: &Value, known: &[&str]) -> Result<usize, String> {
    let index = known.iter().position(|name| *name == text(node));
    index.ok_or_else(|| format!("must be the name of an upstream: {}; add others to upstreams", known.join(", ")))
}

fn affinity(node: &Value) -> Result<Option<AffinityKey>, String> {
    match text(node) {
        "none" => Ok(None),
        text => AffinityKey::parse(text).map(Some),
    }
}

fn credentials(entry: &mut ListEntry<'_>) -> Option<AcceptedCredentials> {
    let known = |text: &str| CREDENTIALS.contains(&text).then(|| text.to_owned());
    let words = list(entry, "credentials", &one_of(CREDENTIALS), known)?;
    let accepts = AcceptedCredentials::from_words(&words);
    // SECURITY: a request without a credential would otherwise be accepted beside those with one.
    if accepts.none && words.len() > 1 {
        entry.problem("credentials", "none cannot be combined with other credentials");
    }
    if accepts.basic && accepts.bearer {
        entry.problem("credentials", "basic cannot be combined with bearer: both are in Authorization");
    }
    Some(accepts)
}

fn word<T: OptionType>(node: &Value) -> Result<T::Value, String> {
    T::parse(text(node))
}

fn client_certificate(node: &Value) -> Result<bool, String> {
    match text(node) {
        "required" => Ok(true),
        "optional" => Ok(false),
        _ => Err("must be required or optional".to_owned()),
    }
}

fn duration(node: &Value) -> Result<Duration, String> {
    match node {
        Value::String(text) => Duration::parse(text),
        _ => Err("must be a duration with its unit, such as \"30s\" or \"10m\"".to_owned()),
    }
}

fn one_of<const N: usize>(words: [&str; N]) -> String {
    format!("must be {}", words.join(", "))
}

/// `form` is the begin of an error: "must be …".
fn list<T>(
    entry: &mut ListEntry<'_>,
    key: &'static str,
    form: &str,
    parse: impl Fn(&str) -> Option<T>,
) -> Option<Vec<T>> {
    let node = entry.remove(key)?;
    list_of(entry, key, form, node, parse)
}

fn list_of<T>(
    entry: &mut ListEntry<'_>,
    key: &str,
    form: &str,
    node: Value,
    parse: impl Fn(&str) -> Option<T>,
) -> Option<Vec<T>> {
    let Value::Array(items) = node else {
        entry.problem(key, format!("must be a list, not {}", file::kind(&node)));
        return None;
    };
    if items.is_empty() {
        entry.problem(key, "must not be empty: it would match nothing");
    }
    let mut list = Vec::new();
    for item in items {
        match item {
            Value::String(text) => match parse(&text) {
                Some(value) => list.push(value),
                None => entry.problem(key, format!("{form}, not {text:?}")),
            },
            other => entry.problem(key, format!("must contain text, not {}", file::kind(&other))),
        }
    }
    Some(list)
}

/// The prefix with a slash at its end; `None` if it is not valid.
///
/// SECURITY: a prefix is compared with the path as the client sent it, so it must have only one spelling.
fn prefix(text: &str) -> Option<String> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"/-_.~".contains(&b);
    let is_valid = text.starts_with('/')
        && !text.contains("//")
        && !text.split('/').any(|segment| segment == "." || segment == "..")
        && text.bytes().all(plain);
    let end = if text.ends_with('/') { "" } else { "/" };
    is_valid.then(|| format!("{text}{end}"))
}
