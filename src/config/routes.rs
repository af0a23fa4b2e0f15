//! Reads the route profiles: which paths are forwarded, and what requests to them must contain. Matches no request.

use std::fmt;
use std::time::Duration;

use http::Method;

use crate::config::file::Node;
use crate::config::options::OptionType;
use crate::config::sources::Problem;
use crate::config::{DEFAULT_UPSTREAM, size};
use crate::http::media_type::MediaType;

/// Requirements for requests below a path.
#[derive(Clone, Debug, PartialEq)]
pub struct RouteProfile {
    /// Shown in logs and metrics in place of the path.
    pub name: String,
    /// Begins and ends with a slash. The longest prefix that matches is used.
    pub prefix: String,
    /// Accepted media types of `Content-Type`.
    pub content_types: Vec<MediaType>,
    /// Accepted methods.
    pub methods: Vec<Method>,
    /// Maximum size of a request body in bytes.
    pub max_body: u64,
    /// The time after which a response begins before the backend's, and the interval of its blanks.
    pub response_keepalive: Option<Duration>,
    /// Whether a TLS client certificate is required.
    pub client_certificate: bool,
    /// Accepted credentials.
    pub accepts: AcceptedCredentials,
    /// Whether the file sets the accepted credentials.
    pub has_explicit_credentials: bool,
    /// Index of the upstream in `Config::all_upstreams`.
    pub upstream: usize,
    /// Name of the upstream.
    pub upstream_name: String,
}

/// The kinds of credentials that a route accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AcceptedCredentials {
    /// `x-api-key`.
    pub api_key: bool,
    /// `x-jwt-token`.
    pub jwt: bool,
    /// `Authorization: Basic`, with `token` as the user name and a key as the password.
    pub basic: bool,
}

impl AcceptedCredentials {
    /// Accepted by default. JWTs are removed if there are no issuers.
    const DEFAULT: AcceptedCredentials = AcceptedCredentials { api_key: true, jwt: true, basic: false };

    fn from_words(words: &[String]) -> AcceptedCredentials {
        let has = |word: &str| words.iter().any(|other| other == word);
        AcceptedCredentials { api_key: has("api_key"), jwt: has("jwt"), basic: has("basic") }
    }

    /// The accepted kinds as words of the configuration.
    pub fn words(self) -> Vec<&'static str> {
        [("api_key", self.api_key), ("jwt", self.jwt), ("basic", self.basic)]
            .into_iter()
            .filter_map(|(word, is)| is.then_some(word))
            .collect()
    }
}

const CREDENTIALS: [&str; 3] = ["api_key", "jwt", "basic"];

impl RouteProfile {
    /// The media types as a phrase: "`a/b` or `c/d`".
    pub fn content_type_list(&self) -> String {
        join_or(self.content_types.iter())
    }
}

fn join_or<T: fmt::Display>(items: impl ExactSizeIterator<Item = T>) -> String {
    let count = items.len();
    let mut text = String::new();
    for (i, item) in items.enumerate() {
        let separator = match i {
            0 => "",
            _ if i + 1 == count => " or ",
            _ => ", ",
        };
        text.push_str(&format!("{separator}`{item}`"));
    }
    text
}

const METHODS: [Method; 6] = [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::PATCH, Method::DELETE];

fn profile(name: &str, prefix: &str, content_types: &[&str], max_body: u64) -> RouteProfile {
    let media_type = |text: &&str| MediaType::parse_bare(text).expect("the defaults are valid");
    RouteProfile {
        name: name.to_owned(),
        prefix: prefix.to_owned(),
        content_types: content_types.iter().map(media_type).collect(),
        methods: METHODS.to_vec(),
        max_body,
        response_keepalive: None,
        client_certificate: false,
        accepts: AcceptedCredentials::DEFAULT,
        has_explicit_credentials: false,
        upstream: 0,
        upstream_name: DEFAULT_UPSTREAM.to_owned(),
    }
}

/// The profiles of the documented Timbr API.
pub fn defaults(max_body: u64) -> Vec<RouteProfile> {
    let text = ["application/json", "application/text", "text/plain"];
    vec![profile("api", "/timbr/api/", &text[..1], max_body), profile("openapi", "/timbr/openapi/", &text, max_body)]
}

/// The profile of `pytimbr_sqla` over HTTP; disabled unless `routes` of the file has an entry for it.
fn thrift(max_body: u64) -> RouteProfile {
    RouteProfile {
        methods: vec![Method::POST],
        accepts: AcceptedCredentials { api_key: false, jwt: false, basic: true },
        ..profile("thrift", "/timbr-server/", &["application/x-thrift"], max_body)
    }
}

/// Merges `routes` of the file into the default profiles. `max_body` is `limits.body`, and `upstreams` has the names of
/// all upstreams.
pub fn merge(node: Option<&Node>, max_body: u64, upstreams: &[&str], problems: &mut Vec<Problem>) -> Vec<RouteProfile> {
    let mut profiles = defaults(max_body);
    let items = match node {
        None | Some(Node::Null) => &[][..],
        Some(Node::List(items)) => items,
        Some(other) => {
            problems.push(Problem::new("routes", format!("must be a list, not {}", other.kind())));
            &[]
        }
    };
    let mut seen = Vec::new();
    for (index, item) in items.iter().enumerate() {
        let mut entry = RouteEntry { at: format!("routes[{index}]"), max_body, upstreams, problems };
        if let Some(change) = entry.read(item) {
            if seen.contains(&change.name) {
                entry.problem("name", format!("{} is a duplicate", change.name));
            }
            seen.push(change.name.clone());
            entry.apply(change, &mut profiles);
        }
    }
    for (index, one) in profiles.iter().enumerate() {
        if let Some(other) = profiles[..index].iter().find(|other| other.prefix == one.prefix) {
            let message = format!("{} and {} have the same prefix {}", other.name, one.name, one.prefix);
            problems.push(Problem::new("routes", message));
        }
    }
    if profiles.is_empty() {
        problems.push(Problem::new("routes", "all profiles are disabled: nothing would be forwarded"));
    }
    profiles
}

/// The keys that one entry of `routes` sets.
#[derive(Default)]
struct RouteChange {
    name: String,
    prefix: Option<String>,
    content_types: Option<Vec<MediaType>>,
    methods: Option<Vec<Method>>,
    max_body: Option<u64>,
    response_keepalive: Option<Duration>,
    client_certificate: Option<bool>,
    accepts: Option<AcceptedCredentials>,
    upstream: Option<usize>,
    disabled: bool,
}

/// An entry of `routes` that is being read.
struct RouteEntry<'a> {
    at: String,
    max_body: u64,
    upstreams: &'a [&'a str],
    problems: &'a mut Vec<Problem>,
}

impl RouteEntry<'_> {
    fn problem(&mut self, key: &str, message: impl Into<String>) {
        self.problems.push(Problem::new(format!("{}.{key}", self.at), message));
    }

    fn read(&mut self, node: &Node) -> Option<RouteChange> {
        let Node::Map(entries) = node else {
            let message = format!("must be a group of keys, not {}", node.kind());
            self.problems.push(Problem::new(self.at.clone(), message));
            return None;
        };
        let before = self.problems.len();
        let mut change = RouteChange::default();
        for (key, value) in entries {
            match (key.as_str(), value) {
                ("name", Node::Text(name)) if is_name(name) => change.name.clone_from(name),
                ("name", _) => self.problem("name", "must be a word of a-z, 0-9, `-` and `_`"),
                ("prefix", Node::Text(prefix)) if is_prefix(prefix) => change.prefix = Some(prefix.clone()),
                ("prefix", _) => self.problem(
                    "prefix",
                    "must begin and end with `/` and contain no character that needs escaping, such as \"/timbr/api/\"",
                ),
                ("content_types", value) => {
                    change.content_types = self.list("content_types", value, MediaType::parse_bare);
                }
                ("methods", value) => change.methods = self.list("methods", value, method),
                ("max_body", Node::Text(text)) if size::parse(text).is_some() => {
                    change.max_body = size::parse(text);
                }
                ("max_body", _) => self.problem("max_body", "must be a size with its unit, such as \"10MiB\""),
                ("response_keepalive", Node::Text(text)) => match keepalive(text) {
                    Ok(interval) => change.response_keepalive = Some(interval),
                    Err(message) => self.problem("response_keepalive", message),
                },
                ("response_keepalive", _) => {
                    self.problem("response_keepalive", "must be a duration with its unit, such as \"20s\"");
                }
                ("client_certificate", Node::Text(word)) if word == "required" || word == "optional" => {
                    change.client_certificate = Some(word == "required");
                }
                ("client_certificate", _) => {
                    self.problem("client_certificate", "must be required or optional");
                }
                ("credentials", value) => {
                    let known = |text: &str| CREDENTIALS.contains(&text).then(|| text.to_owned());
                    change.accepts =
                        self.list("credentials", value, known).map(|words| AcceptedCredentials::from_words(&words));
                }
                ("upstream", Node::Text(name)) if self.upstreams.contains(&name.as_str()) => {
                    change.upstream = self.upstreams.iter().position(|other| other == name);
                }
                ("upstream", _) => {
                    let known = self.upstreams.join(", ");
                    self.problem("upstream", format!("must be the name of an upstream: {known}"));
                }
                ("enabled", Node::Bool(enabled)) => change.disabled = !enabled,
                ("enabled", _) => self.problem("enabled", "must be true or false"),
                (other, _) => self.problem(
                    other,
                    "unknown key; must be one of name, prefix, content_types, methods, max_body, response_keepalive, \
                     client_certificate, credentials, upstream, enabled",
                ),
            }
        }
        if change.name.is_empty() && self.problems.len() == before {
            self.problem("name", "is missing");
        }
        (self.problems.len() == before).then_some(change)
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

    fn apply(&mut self, change: RouteChange, profiles: &mut Vec<RouteProfile>) {
        let known = profiles.iter().position(|profile| profile.name == change.name);
        let mut profile = match (known, &change.prefix, &change.content_types) {
            (Some(index), _, _) => profiles.remove(index),
            (None, _, _) if change.name == "thrift" => thrift(self.max_body),
            (None, Some(prefix), Some(_)) => profile(&change.name, prefix, &[], self.max_body),
            (None, _, _) => {
                let message = "a new route requires prefix and content_types";
                self.problems.push(Problem::new(self.at.clone(), message));
                return;
            }
        };
        if change.disabled {
            return;
        }
        profile.prefix = change.prefix.unwrap_or(profile.prefix);
        profile.content_types = change.content_types.unwrap_or(profile.content_types);
        profile.methods = change.methods.unwrap_or(profile.methods);
        profile.max_body = change.max_body.unwrap_or(profile.max_body);
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
        profiles.push(profile);
    }
}

/// An interval of at least a second: each one costs a write and a wakeup per request.
fn keepalive(text: &str) -> Result<Duration, String> {
    let interval = <Duration as OptionType>::parse(text)?;
    <Duration as OptionType>::check(&interval, Some(("1s", "10m")))?;
    Ok(interval)
}

pub(super) fn is_name(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_')
}

/// SECURITY: a prefix is compared with the path as the client sent it, so it must have only one spelling.
fn is_prefix(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"/-_.~".contains(&b);
    text.starts_with('/')
        && text.ends_with('/')
        && !text.contains("//")
        && !text.split('/').any(|segment| segment == "." || segment == "..")
        && text.bytes().all(plain)
}

pub(super) fn method(text: &str) -> Option<Method> {
    METHODS.into_iter().find(|method| method.as_str() == text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merged(yaml: &str) -> (Vec<RouteProfile>, Vec<String>) {
        let node = Node::parse(yaml).expect("valid YAML");
        let mut problems = Vec::new();
        let routes = merge(Some(&node), 1000, &["default", "timbr-server"], &mut problems);
        (routes, problems.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn the_documented_api_is_the_default() {
        let mut problems = Vec::new();
        let names: Vec<_> =
            merge(None, 1000, &["default"], &mut problems).into_iter().map(|p| (p.name, p.prefix)).collect();
        assert_eq!(names, [("api".into(), "/timbr/api/".into()), ("openapi".into(), "/timbr/openapi/".to_owned())]);
        assert_eq!(problems, []);
    }

    #[test]
    fn entries_change_known_profiles_and_add_new_ones() {
        let (routes, problems) = merged(
            "- {name: api, content_types: [application/json, text/json]}\n\
             - {name: extra, prefix: /extra/, content_types: [text/csv], methods: [GET], max_body: 1MiB}\n",
        );
        assert_eq!(problems, [""; 0]);
        let api = routes.iter().find(|r| r.name == "api").expect("kept");
        assert_eq!((api.prefix.as_str(), api.content_types.len()), ("/timbr/api/", 2));
        let extra = routes.iter().find(|r| r.name == "extra").expect("added");
        assert_eq!(extra.methods, [Method::GET]);
        assert_eq!((api.max_body, extra.max_body), (1000, 1 << 20));
        assert_eq!(extra.content_type_list(), "`text/csv`");
        assert_eq!(routes.len(), 3);
    }

    #[test]
    fn the_thrift_profile_exists_if_it_is_named() {
        let thrift = |yaml| merged(yaml).0.into_iter().find(|route| route.name == "thrift");
        let profile = thrift("- {name: thrift, enabled: true}\n").expect("on");
        assert_eq!((profile.prefix.as_str(), profile.accepts.words()), ("/timbr-server/", vec!["basic"]));
        assert!(thrift("- {name: thrift, enabled: false}\n").is_none() && thrift("- {name: api}\n").is_none());
    }

    #[test]
    fn profiles_can_be_disabled() {
        let (routes, problems) = merged("- {name: openapi, enabled: false}\n");
        assert_eq!(problems, [""; 0]);
        assert_eq!(routes.len(), 1);
    }

    #[test]
    fn problems_have_a_place() {
        for (yaml, expected) in [
            ("- {name: a b}", "routes[0].name: must be a word"),
            ("- {name: x, prefix: /x}", "routes[0].prefix: must begin and end"),
            ("- {name: x, prefix: /x/../, content_types: [text/csv]}", "routes[0].prefix"),
            ("- {name: x, prefix: /%78/, content_types: [text/csv]}", "routes[0].prefix"),
            ("- {name: x}", "routes[0]: a new route requires prefix and content_types"),
            ("- {name: api, content_types: [json]}", "routes[0].content_types: \"json\" is not valid"),
            ("- {name: api, content_types: []}", "must not be empty"),
            ("- {name: api, methods: [CONNECT]}", "routes[0].methods: \"CONNECT\" is not valid"),
            ("- {name: api, max_body: 10}", "routes[0].max_body: must be a size"),
            ("- {name: api, response_keepalive: 20}", "routes[0].response_keepalive: must be a duration"),
            ("- {name: api, response_keepalive: 10ms}", "response_keepalive: must be between 1s and 10m"),
            ("- {name: api, client_certificate: yes}", "routes[0].client_certificate: must be required"),
            ("- {name: api, upstream: mdx}", "routes[0].upstream: must be the name of an upstream: default, timbr-"),
            ("- {name: api, colour: red}", "routes[0].colour: unknown key"),
            ("- {prefix: /x/}", "routes[0].name: is missing"),
            ("- {name: api}\n- {name: api}", "is a duplicate"),
            ("- {name: x, prefix: /timbr/api/, content_types: [text/csv]}", "the same prefix"),
            ("{name: x}", "routes: must be a list"),
            ("- {name: api, enabled: false}\n- {name: openapi, enabled: false}", "all profiles are disabled"),
        ] {
            let (_, problems) = merged(yaml);
            assert!(problems.iter().any(|p| p.contains(expected)), "{yaml}: {problems:?}");
        }
    }
}
