//! Reads one entry of `routes` and applies it to the built-in profile of its name, or to a new one.

use std::time::Duration;

use http::Method;

use crate::config::file::Node;
use crate::config::options::OptionType;
use crate::config::routes::builtin::{built_in, profile};
use crate::config::routes::{
    AcceptedCredentials, CREDENTIALS, ContentTypeRule, CorsOptions, RouteProfile, cors, is_name, method,
};
use crate::config::sources::Problem;
use crate::config::{AffinityKey, HostHeader, size};
use crate::http::media_type::MediaType;

/// The keys that one entry of `routes` sets.
#[derive(Default)]
pub struct RouteChange {
    pub name: String,
    prefixes: Option<Vec<String>>,
    content_types: Option<Option<Vec<MediaType>>>,
    content_type: Option<ContentTypeRule>,
    methods: Option<Vec<Method>>,
    max_body: Option<u64>,
    buffer: Option<u64>,
    response_keepalive: Option<Duration>,
    client_certificate: Option<bool>,
    accepts: Option<AcceptedCredentials>,
    upstream: Option<usize>,
    cors: Option<CorsOptions>,
    response_timeout: Option<Duration>,
    body_timeout: Option<Duration>,
    affinity: Option<Option<AffinityKey>>,
    host_header: Option<HostHeader>,
    disabled: bool,
}

/// An entry of `routes` that is being read.
pub struct RouteEntry<'a> {
    pub at: String,
    pub max_body: u64,
    pub upstreams: &'a [&'a str],
    pub problems: &'a mut Vec<Problem>,
}

const PREFIX_FORM: &str =
    "must begin with `/` and contain no character that needs escaping, such as \"/timbr/api/\" or \"/hive2\"";

impl RouteEntry<'_> {
    pub fn problem(&mut self, key: &str, message: impl Into<String>) {
        self.problems.push(Problem::new(format!("{}.{key}", self.at), message));
    }

    pub fn read(&mut self, node: &Node) -> Option<RouteChange> {
        let Node::Map(entries) = node else {
            let message = format!("must be a group of keys, not {}", node.kind());
            self.problems.push(Problem::new(self.at.clone(), message));
            return None;
        };
        let before = self.problems.len();
        let mut change = RouteChange::default();
        for (key, value) in entries {
            self.read_key(key, value, &mut change);
        }
        if change.name.is_empty() && self.problems.len() == before {
            self.problem("name", "is missing");
        }
        if entries.iter().filter(|(key, _)| key == "prefix" || key == "prefixes").count() > 1 {
            self.problem("prefix", "cannot be combined with prefixes; keep one of them");
        }
        (self.problems.len() == before).then_some(change)
    }

    fn read_key(&mut self, key: &str, value: &Node, change: &mut RouteChange) {
        match (key, value) {
            ("name", Node::Text(name)) if is_name(name) => change.name.clone_from(name),
            ("name", _) => self.problem("name", "must be a word of a-z, 0-9, `-` and `_`"),
            ("prefix", Node::Text(text)) if prefix(text).is_some() => {
                change.prefixes = prefix(text).map(|prefix| vec![prefix]);
            }
            ("prefix", _) => self.problem("prefix", PREFIX_FORM),
            ("prefixes", value) => change.prefixes = self.list("prefixes", value, prefix),
            ("content_types", Node::Text(word)) if word == "any" => change.content_types = Some(None),
            ("content_types", value) => {
                change.content_types = self.list("content_types", value, MediaType::parse_bare).map(Some);
            }
            ("content_type", value) => {
                let words = [("always", ContentTypeRule::Always), ("with_content", ContentTypeRule::WithContent)];
                change.content_type = self.word("content_type", value, &words);
            }
            ("methods", value) => change.methods = self.list("methods", value, method),
            ("max_body", Node::Text(text)) if size::parse(text).is_some() => change.max_body = size::parse(text),
            ("buffer", Node::Text(text)) if size::parse(text).is_some() => change.buffer = size::parse(text),
            (key @ ("max_body" | "buffer"), _) => {
                self.problem(key, "must be a size with its unit, such as \"10MiB\"");
            }
            ("response_keepalive", value) => {
                change.response_keepalive = self.duration("response_keepalive", value).filter(|interval| {
                    // Each interval costs a write and a wakeup per request.
                    let checked = <Duration as OptionType>::check(interval, Some(("1s", "10m")));
                    checked.map_err(|message| self.problem("response_keepalive", message)).is_ok()
                });
            }
            ("client_certificate", value) => {
                let words = [("required", true), ("optional", false)];
                change.client_certificate = self.word("client_certificate", value, &words);
            }
            ("credentials", value) => change.accepts = self.credentials(value),
            ("upstream", Node::Text(name)) if self.upstreams.contains(&name.as_str()) => {
                change.upstream = self.upstreams.iter().position(|other| other == name);
            }
            ("upstream", _) => {
                let known = self.upstreams.join(", ");
                self.problem("upstream", format!("must be the name of an upstream: {known}"));
            }
            ("cors", value) => change.cors = cors::read(format!("{}.cors", self.at), value, self.problems),
            ("response_timeout", value) => change.response_timeout = self.duration("response_timeout", value),
            ("body_timeout", value) => change.body_timeout = self.duration("body_timeout", value),
            ("affinity", Node::Text(word)) if word == "none" => change.affinity = Some(None),
            ("affinity", value) => {
                let text = if let Node::Text(text) = value { text } else { "" };
                match AffinityKey::parse(text) {
                    Ok(affinity) => change.affinity = Some(Some(affinity)),
                    Err(message) => self.problem("affinity", message),
                }
            }
            ("host_header", value) => {
                let words = [("backend", HostHeader::Backend), ("client", HostHeader::Client)];
                change.host_header = self.word("host_header", value, &words);
            }
            ("enabled", Node::Bool(enabled)) => change.disabled = !enabled,
            ("enabled", _) => self.problem("enabled", "must be true or false"),
            (other, _) => self.problem(
                other,
                "unknown key; must be one of name, prefix, prefixes, content_types, content_type, methods, max_body, \
                 buffer, response_keepalive, client_certificate, credentials, upstream, cors, response_timeout, body_timeout, affinity, \
                 host_header, enabled",
            ),
        }
    }

    fn credentials(&mut self, value: &Node) -> Option<AcceptedCredentials> {
        let known = |text: &str| CREDENTIALS.contains(&text).then(|| text.to_owned());
        let words = self.list("credentials", value, known)?;
        let accepts = AcceptedCredentials::from_words(&words);
        // SECURITY: a request without a credential would otherwise be accepted beside those with one.
        if accepts.none && words.len() > 1 {
            self.problem("credentials", "none cannot be combined with other credentials");
        }
        if accepts.basic && accepts.bearer {
            self.problem("credentials", "basic cannot be combined with bearer: both are in Authorization");
        }
        Some(accepts)
    }

    fn word<T: Copy>(&mut self, key: &str, node: &Node, words: &[(&str, T)]) -> Option<T> {
        let found = words.iter().find(|(word, _)| matches!(node, Node::Text(text) if text == word));
        if found.is_none() {
            let known: Vec<_> = words.iter().map(|(word, _)| *word).collect();
            self.problem(key, format!("must be {}", known.join(" or ")));
        }
        found.map(|(_, value)| *value)
    }

    fn duration(&mut self, key: &str, node: &Node) -> Option<Duration> {
        let parsed = match node {
            Node::Text(text) => Duration::parse(text),
            _ => Err("must be a duration with its unit, such as \"30s\" or \"10m\"".to_owned()),
        };
        parsed.map_err(|message| self.problem(key, message)).ok()
    }

    fn list<T>(&mut self, key: &str, node: &Node, parse: impl Fn(&str) -> Option<T>) -> Option<Vec<T>> {
        let Node::List(items) = node else {
            self.problem(key, format!("must be a list, not {}", node.kind()));
            return None;
        };
        let mut list = Vec::new();
        for item in items {
            match item {
                Node::Text(text) => match parse(text) {
                    Some(value) => list.push(value),
                    None => self.problem(key, format!("{text:?} is not valid here")),
                },
                other => self.problem(key, format!("must contain text, not {}", other.kind())),
            }
        }
        if items.is_empty() {
            self.problem(key, "must not be empty: it would match nothing");
        }
        Some(list)
    }

    pub fn apply(&mut self, change: RouteChange, profiles: &mut Vec<RouteProfile>) {
        let known = profiles.iter().position(|profile| profile.name == change.name);
        let mut profile = match (known, built_in(&change.name, self.max_body), &change.prefixes) {
            (Some(index), _, _) => profiles.remove(index),
            (None, Some(built_in), _) => built_in,
            (None, None, Some(_)) => profile(&change.name, &[], &["application/json"], self.max_body),
            (None, None, None) => {
                let message = "a new route requires prefix or prefixes";
                self.problems.push(Problem::new(self.at.clone(), message));
                return;
            }
        };
        if change.disabled {
            return;
        }
        profile.prefixes = change.prefixes.unwrap_or(profile.prefixes);
        profile.content_types = change.content_types.unwrap_or(profile.content_types);
        profile.content_type = change.content_type.unwrap_or(profile.content_type);
        profile.methods = change.methods.unwrap_or(profile.methods);
        profile.max_body = change.max_body.unwrap_or(profile.max_body);
        profile.buffer = change.buffer.or(profile.buffer);
        profile.response_keepalive = change.response_keepalive.or(profile.response_keepalive);
        profile.client_certificate = change.client_certificate.unwrap_or(profile.client_certificate);
        if let Some(index) = change.upstream {
            profile.upstream = index;
            self.upstreams[index].clone_into(&mut profile.upstream_name);
        }
        if let Some(accepts) = change.accepts {
            profile.accepts = accepts;
            profile.has_explicit_credentials = true;
        }
        profile.cors = change.cors.or(profile.cors);
        profile.response_timeout = change.response_timeout.or(profile.response_timeout);
        profile.body_timeout = change.body_timeout.or(profile.body_timeout);
        profile.affinity = change.affinity.unwrap_or(profile.affinity);
        profile.host_header = change.host_header.or(profile.host_header);
        profiles.push(profile);
    }
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
