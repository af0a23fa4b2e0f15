//! Reads the route profiles: which paths are forwarded, and what requests to them must contain. Matches no request.

mod builtin;
mod cors;
mod entry;
mod open;

use std::fmt;
use std::time::Duration;

use http::Method;
use serde_json::Value;

use crate::base::label_values::label_values;
use crate::config::HostHeader;
use crate::config::file;
use crate::config::list_entry::{EmptyKeys, ListEntry};
use crate::config::sources::Problem;
use crate::http::media_type::MediaType;

pub use builtin::{AGENT_LOG_PATHS, BUILT_IN, THRIFT_PATHS, defaults};
pub use cors::CorsOptions;
pub use open::requires_credential;

/// Requirements for requests below a path.
#[derive(Clone, Debug, PartialEq)]
pub struct RouteProfile {
    /// Shown in logs and metrics in place of the path.
    pub name: String,
    /// Each begins and ends with a slash, and also matches without the last one. The longest prefix of all routes that
    /// matches is used.
    pub prefixes: Vec<String>,
    /// Accepted media types of `Content-Type`; `None`: any.
    pub content_types: Option<Vec<MediaType>>,
    /// Which requests must have a `Content-Type`.
    pub content_type: ContentTypeRule,
    /// Accepted methods.
    pub methods: Vec<Method>,
    /// Maximum size of a request body in bytes.
    pub max_body: u64,
    /// Part of a request body that is received before the request is sent; `None`: `limits.buffer`.
    pub buffer: Option<u64>,
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
    /// Which pages of other origins may send requests; `None`: none.
    pub cors: Option<CorsOptions>,
    /// In place of the upstream's timeout for the response headers.
    pub response_timeout: Option<Duration>,
    /// In place of the upstream's timeout between two reads of the response body.
    pub body_timeout: Option<Duration>,
    /// What keeps requests on one endpoint; `None`: nothing.
    pub affinity: Option<AffinityKey>,
    /// The `Host` that the backend receives; `None`: as the upstream says.
    pub host_header: Option<HostHeader>,
    /// Whether GET opens a stream of events that stays open while the client runs, as in MCP.
    pub has_event_streams: bool,
}

label_values! {
    /// Which requests must have a `Content-Type`. One that is present must always be accepted.
    ContentTypeRule {
        /// All, as Timbr documents it.
        Always = "always",
        /// Those with a body.
        WithContent = "with_content",
    }
}

/// What keeps requests on the same endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AffinityKey {
    /// `Mcp-Session-Id`: requests reach the endpoint that issued it.
    McpSession,
    /// The caller.
    User,
    /// The value of this header.
    Header(http::HeaderName),
    /// The value of this cookie.
    Cookie(String),
}

impl AffinityKey {
    fn parse(text: &str) -> Result<AffinityKey, String> {
        let error = || "must be none, user, mcp-session-id, cookie:NAME or the name of a header".to_owned();
        match (text, text.strip_prefix("cookie:")) {
            ("mcp-session-id", _) => Ok(AffinityKey::McpSession),
            ("user", _) => Ok(AffinityKey::User),
            (_, Some(name)) if http::HeaderName::from_bytes(name.as_bytes()).is_ok() => {
                Ok(AffinityKey::Cookie(name.to_owned()))
            }
            _ => http::HeaderName::from_bytes(text.as_bytes()).map(AffinityKey::Header).map_err(|_| error()),
        }
    }
}

impl fmt::Display for AffinityKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AffinityKey::McpSession => f.write_str("mcp-session-id"),
            AffinityKey::User => f.write_str("user"),
            AffinityKey::Header(name) => f.write_str(name.as_str()),
            AffinityKey::Cookie(name) => write!(f, "cookie:{name}"),
        }
    }
}

/// The kinds of credentials that a route accepts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AcceptedCredentials {
    /// `x-api-key`.
    pub api_key: bool,
    /// `x-jwt-token`.
    pub jwt: bool,
    /// `Authorization: Basic`, with `token` or `token@<ontology>` as the user name and a key as the password.
    pub basic: bool,
    /// `Authorization: Bearer` with a key or, if `jwt` is accepted, a JWT.
    pub bearer: bool,
    /// None at all: the backend authenticates the sender. Never combined with the others.
    pub none: bool,
}

impl AcceptedCredentials {
    /// Accepted by default. JWTs are removed if there are no issuers.
    const DEFAULT: AcceptedCredentials =
        AcceptedCredentials { api_key: true, jwt: true, basic: false, bearer: false, none: false };

    fn from_words(words: &[String]) -> AcceptedCredentials {
        let has = |word: &str| words.iter().any(|other| other == word);
        AcceptedCredentials {
            api_key: has("api_key"),
            jwt: has("jwt"),
            basic: has("basic"),
            bearer: has("bearer"),
            none: has("none"),
        }
    }

    /// The accepted kinds as words of the configuration.
    pub fn words(self) -> Vec<&'static str> {
        let all = [self.api_key, self.jwt, self.basic, self.bearer, self.none];
        CREDENTIALS.into_iter().zip(all).filter_map(|(word, is)| is.then_some(word)).collect()
    }
}

/// The words of `credentials`.
pub const CREDENTIALS: [&str; 5] = ["api_key", "jwt", "basic", "bearer", "none"];

impl RouteProfile {
    /// The media types as a phrase: "`a/b` or `c/d`".
    pub fn content_type_list(&self) -> String {
        let names: Vec<_> = self.content_types.iter().flatten().map(|name| format!("`{name}`")).collect();
        match names.split_last() {
            Some((last, rest @ [_, ..])) => format!("{} or {last}", rest.join(", ")),
            _ => names.concat(),
        }
    }
}

const METHODS: [Method; 7] =
    [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::PATCH, Method::DELETE, Method::OPTIONS];

/// Merges `routes` of the file into the built-in profiles. `max_body` is `limits.body`, and `upstreams` has the names of
/// all upstreams.
pub fn merge(
    node: Option<&Value>,
    max_body: u64,
    upstreams: &[&str],
    problems: &mut Vec<Problem>,
) -> Vec<RouteProfile> {
    let mut profiles = defaults(max_body);
    let items = match node {
        None | Some(Value::Null) => &[][..],
        Some(Value::Array(items)) => items,
        Some(other) => {
            problems.push(Problem::new("routes", format!("must be a list, not {}", file::kind(other))));
            &[]
        }
    };
    let mut seen = Vec::new();
    for (index, item) in items.iter().enumerate() {
        let at = format!("routes[{index}]");
        let entry = ListEntry::new(at.clone(), item.clone(), problems);
        let entry = entry.map(|entry| entry.with_empty_keys(EmptyKeys::Rejected));
        if let Some(name) = entry.and_then(|entry| entry::apply(entry, max_body, upstreams, &mut profiles)) {
            if seen.contains(&name) {
                problems.push(Problem::new(format!("{at}.name"), format!("{name} is a duplicate")));
            }
            seen.push(name);
        }
    }
    for (index, one) in profiles.iter().enumerate() {
        for prefix in &one.prefixes {
            if let Some(other) = profiles[..index].iter().find(|other| other.prefixes.contains(prefix)) {
                let message = format!("{} and {} have the same prefix {prefix}", other.name, one.name);
                problems.push(Problem::new("routes", message));
            }
        }
    }
    open::check(&profiles, problems);
    if profiles.is_empty() {
        problems.push(Problem::new("routes", "all profiles are disabled: nothing would be forwarded"));
    }
    profiles
}

pub(super) fn is_name(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_')
}

pub(super) fn method(text: &str) -> Option<Method> {
    METHODS.into_iter().find(|method| method.as_str() == text)
}

/// The same with an error that reads as a sentence.
pub(super) fn parse_method(text: &str) -> Result<Method, String> {
    method(text).ok_or_else(|| format!("{text:?} is not a valid method"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merged(yaml: &str) -> (Vec<RouteProfile>, Vec<String>) {
        let node = file::parse(yaml).expect("valid YAML");
        let mut problems = Vec::new();
        let routes = merge(Some(&node), 1000, &["default", "timbr-server"], &mut problems);
        (routes, problems.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn the_documented_api_is_the_default() {
        let mut problems = Vec::new();
        let profiles = merge(None, 1000, &["default"], &mut problems);
        let names: Vec<_> = profiles.iter().map(|profile| profile.name.as_str()).collect();
        assert_eq!(names, ["api", "openapi", "mcp", "agent-log"]);
        assert_eq!(profiles[0].prefixes, ["/timbr/api/"]);
        assert_eq!(problems, []);
    }

    #[test]
    fn entries_change_known_profiles_and_add_new_ones() {
        let (routes, problems) = merged(
            "- {name: api, content_types: [application/json, text/json]}\n\
             - {name: extra, prefix: /extra/, content_types: [text/csv], methods: [GET], max_body: 1MiB, buffer: 1MiB}\n",
        );
        assert_eq!(problems, [""; 0]);
        let api = routes.iter().find(|r| r.name == "api").expect("kept");
        assert_eq!(
            (api.prefixes.join(" ").as_str(), api.content_type_list().as_str()),
            ("/timbr/api/", "`application/json` or `text/json`")
        );
        let extra = routes.iter().find(|r| r.name == "extra").expect("added");
        assert_eq!(extra.methods, [Method::GET]);
        assert_eq!((api.max_body, extra.max_body), (1000, 1 << 20));
        assert_eq!((api.buffer, extra.buffer), (None, Some(1 << 20)));
        assert_eq!(extra.content_type_list(), "`text/csv`");
        assert_eq!(routes.len(), 5);
    }

    #[test]
    fn built_in_profiles_are_enabled_by_their_names() {
        let named = |yaml: &str, name: &str| merged(yaml).0.into_iter().find(|route| route.name == name);
        for name in BUILT_IN {
            let profile = named(&format!("- {{name: {name}, upstream: timbr-server}}\n"), name).expect(name);
            assert_eq!((profile.upstream, profile.upstream_name.as_str()), (1, "timbr-server"));
            assert!(named(&format!("- {{name: {name}, enabled: false}}\n"), name).is_none(), "{name}");
        }
        let hive = named("- {name: hive}\n", "hive").expect("enabled");
        assert_eq!((hive.prefixes[1].as_str(), hive.accepts.words()), ("/hive2/", vec!["basic"]));
        assert!(named("- {name: api}\n", "hive").is_none());
    }

    #[test]
    fn an_entry_has_several_prefixes_with_or_without_the_last_slash() {
        let (routes, problems) = merged(
            "- {name: hooks, prefixes: [/a, /b/c/], credentials: [none], content_types: any, content_type: always,\n   \
             response_timeout: 2s, affinity: user, host_header: client, methods: [GET, OPTIONS],\n   \
             cors: {origins: ['https://App.example.com:443', 'http://[0:0::1]:80'], max_age: 1h, credentials: true}}\n",
        );
        assert_eq!(problems, [""; 0]);
        let hooks = routes.last().expect("added");
        assert_eq!(hooks.prefixes, ["/a/", "/b/c/"]);
        assert!(hooks.content_types.is_none() && hooks.content_type == ContentTypeRule::Always);
        assert_eq!((hooks.response_timeout, &hooks.affinity), (Some(Duration::from_secs(2)), &Some(AffinityKey::User)));
        let cors = hooks.cors.as_ref().expect("set");
        assert_eq!(
            (cors.origins.join(" ").as_str(), cors.max_age.as_secs()),
            ("https://app.example.com http://[::1]", 3600)
        );
    }

    #[test]
    fn affinity_has_a_key() {
        for text in ["mcp-session-id", "user", "x-team", "cookie:session"] {
            assert_eq!(AffinityKey::parse(text).map(|key| key.to_string()), Ok(text.to_owned()));
        }
        for text in ["", "a b", "cookie:", "cookie:a b"] {
            assert!(AffinityKey::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn profiles_can_be_disabled() {
        let (routes, problems) = merged("- {name: openapi, enabled: false}\n");
        assert_eq!(problems, [""; 0]);
        assert_eq!(routes.len(), 3);
    }

    #[test]
    fn problems_have_a_place() {
        for (yaml, expected) in [
            ("- {name: a b}", "routes[0].name: must be a word"),
            ("- {name: x, prefix: x}", "routes[0].prefix: must begin with"),
            ("- {name: x, prefix: /x, prefixes: [/y]}", "routes[0].prefix: cannot be combined"),
            ("- {name: x, prefixes: [/x y]}", "routes[0].prefixes: must begin with `/`"),
            ("- {name: x, prefix: /x, credentials: [none, basic]}", "none cannot be combined"),
            ("- {name: x, prefix: /x, credentials: [basic, bearer]}", "basic cannot be combined"),
            ("- {name: x, prefix: /x, response_timeout: 3}", "routes[0].response_timeout: must be a duration"),
            (
                "- {name: x, prefix: /x, content_type: never}",
                "routes[0].content_type: must be one of always, with_content, not",
            ),
            ("- {name: x, prefix: /x, cors: {}}", "routes[0].cors.origins: is missing"),
            ("- {name: x, prefix: /x, cors: {origins: [a.example]}}", "routes[0].cors.origins: \"a.example\" must be"),
            (
                "- {name: x, prefix: /x, cors: {origins: ['https://*.a.example']}}",
                "origins: \"https://*.a.example\" would match",
            ),
            ("- {name: x, prefix: /x, cors: {origins: ['*', 'https://a.example']}}", "set \"*\" alone"),
            ("- {name: x, prefix: /x, cors: {origins: ['https://a(b)']}}", "must be an origin such as"),
            ("- {name: x, prefix: /x, cors: {origins: '*', credentials: true}}", "cors.credentials: cannot be true"),
            ("- {name: x, prefix: /x, cors: {origins: '*', colour: red}}", "routes[0].cors.colour: unknown key"),
            ("- {name: x, prefix: /timbr/api/get_token/, credentials: [none]}", "must not cover /timbr/api/get_token"),
            ("- {name: x, prefix: /Timbr/OpenAPI/x, credentials: [none]}", "must not cover /timbr/openapi"),
            ("- {name: y, prefix: /y}\n- {name: x, prefix: /Y, credentials: [none]}", "must not cover /y"),
            ("- {name: x, prefix: /x/../, content_types: [text/csv]}", "routes[0].prefix"),
            ("- {name: x, prefix: /%78/, content_types: [text/csv]}", "routes[0].prefix"),
            ("- {name: x}", "routes[0]: a new route requires prefix or prefixes"),
            ("- {name: api, content_types: [json]}", "such as application/json, not \"json\""),
            ("- {name: api, content_types: []}", "must not be empty"),
            ("- {name: api, methods: [CONNECT]}", "routes[0].methods: must be GET, HEAD, POST, "),
            ("- {name: api, max_body: 10}", "routes[0].max_body: must be a size"),
            ("- {name: api, buffer: x}", "routes[0].buffer: must be a size"),
            ("- {name: api, response_keepalive: 20}", "routes[0].response_keepalive: must be a duration"),
            ("- {name: api, response_keepalive: 10ms}", "response_keepalive: must be between 1s and 10m"),
            ("- {name: mcp, response_keepalive: 20s}", "routes[0].response_keepalive: cannot be set here"),
            ("- {name: hive, response_keepalive: 20s}", "cannot be set here: the response begins as JSON"),
            ("- {name: mdx, response_keepalive: 20s}", "cannot be set here"),
            ("- {name: api, client_certificate: yes}", "routes[0].client_certificate: must be required"),
            ("- {name: api, upstream: mdx}", "routes[0].upstream: must be the name of an upstream: default, timbr-"),
            ("- {name: api, colour: red}", "routes[0].colour: unknown key"),
            ("- {prefix: /x/}", "routes[0].name: is missing"),
            ("- {name: api}\n- {name: api}", "is a duplicate"),
            ("- {name: x, prefix: /timbr/api/, content_types: [text/csv]}", "the same prefix"),
            ("{name: x}", "routes: must be a list"),
            (
                "- {name: api, enabled: false}\n- {name: openapi, enabled: false}\n- {name: mcp, enabled: false}\n\
                 - {name: agent-log, enabled: false}",
                "all profiles are disabled",
            ),
        ] {
            let (_, problems) = merged(yaml);
            assert!(problems.iter().any(|p| p.contains(expected)), "{yaml}: {problems:?}");
        }
    }
}
