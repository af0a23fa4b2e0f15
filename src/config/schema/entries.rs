//! The keys of the entries of list options, for the schema and the tables of `docs/configuration.md`. Does not read
//! them: that is done by `routes`, `jwt`, `rules` and `transport`, and a test compares the keys.

use std::sync::LazyLock;

use crate::config::options::{self, OptionSpec, Shape};
use crate::config::routes::CREDENTIALS;

/// A key of an entry.
#[derive(Clone, Copy, Debug)]
pub struct EntryKey {
    /// Name in the entry: `jwks_url`.
    pub key: &'static str,
    /// Form of the value.
    pub(super) form: EntryForm,
    /// Whether every entry must have it.
    pub(super) required: bool,
    /// Whether an entry must have exactly one of the keys with this mark.
    pub(super) one_of: bool,
    /// Description for the schema and the documentation, in Markdown.
    pub meaning: &'static str,
}

/// The form of a value in an entry.
#[derive(Clone, Copy, Debug)]
pub(super) enum EntryForm {
    /// Text that is not empty.
    Text,
    /// One text, or a list of them.
    Texts,
    /// A group of keys, each with one text or a list of them.
    TextsByName,
    /// One of these words, or a list of them.
    Words(&'static [&'static str]),
    /// A list of these words.
    WordList(&'static [&'static str]),
    /// One of these words.
    Word(&'static [&'static str]),
    /// `true` or `false`.
    Flag,
    /// A word of lower-case letters, digits, `-` and `_`.
    Name,
    /// Prefix of a path.
    Prefix,
    /// A number.
    Number,
    /// A number of bytes with its unit: `10MiB`.
    Size,
    /// A duration with its unit: `20s`.
    Duration,
    /// `any`, or a list of media types.
    MediaTypes,
    /// A list of prefixes.
    Prefixes,
    /// A group of these keys.
    Group(&'static [EntryKey]),
    /// The form of this option.
    Option(&'static OptionSpec),
}

const fn key(key: &'static str, form: EntryForm, meaning: &'static str) -> EntryKey {
    EntryKey { key, form, required: false, one_of: false, meaning }
}

const fn required(key: &'static str, form: EntryForm, meaning: &'static str) -> EntryKey {
    EntryKey { key, form, required: true, one_of: false, meaning }
}

const fn one_of(key: &'static str, form: EntryForm, meaning: &'static str) -> EntryKey {
    EntryKey { key, form, required: false, one_of: true, meaning }
}

const METHODS: &[&str] = &["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];

/// The keys of `routes`, which exists in the file only.
pub const ROUTES: &[EntryKey] = &[
    required("name", EntryForm::Name, "Name of the profile, shown in logs and metrics in place of the path."),
    key(
        "prefix",
        EntryForm::Prefix,
        "Prefix of the path, such as `/timbr/api/`. It matches with and without its last slash.",
    ),
    key("prefixes", EntryForm::Prefixes, "Several prefixes, in place of `prefix`."),
    key(
        "content_types",
        EntryForm::MediaTypes,
        "Accepted media types of `Content-Type`, without parameters, or `any`. Default of a new route: `application/json`.",
    ),
    key(
        "content_type",
        EntryForm::Word(&["always", "with_content"]),
        "`always`: every request must have a `Content-Type`, as Timbr documents it for `api` and `openapi`. \
         `with_content`: those with a body. Default: `with_content`, except for `api` and `openapi`.",
    ),
    key(
        "methods",
        EntryForm::WordList(METHODS),
        "Accepted methods: GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS. Default of a new route: all except OPTIONS.",
    ),
    key(
        "credentials",
        EntryForm::WordList(&CREDENTIALS),
        "Accepted credentials: `api_key`, `jwt`, `basic` (`token` or `token@<ontology>`, and a key), `bearer` (a key or a \
         JWT in `Authorization: Bearer`), or `none` alone: the backend authenticates the sender. Default: `api_key` and, \
         if `auth.jwt_issuers` is set, `jwt`.",
    ),
    key("max_body", EntryForm::Size, "Maximum size of a request body, such as `10MiB`. Default: `limits.body`."),
    key(
        "buffer",
        EntryForm::Size,
        "Part of a request body that is received before the request is sent, such as `1MiB`. Default: `limits.buffer`.",
    ),
    key(
        "response_keepalive",
        EntryForm::Duration,
        "Time after which a response begins although the backend has not responded, such as `20s`; see *Long queries*. \
         Default: never.",
    ),
    key(
        "client_certificate",
        EntryForm::Word(&["required", "optional"]),
        "`required`: this path requires a TLS client certificate (see `tls.client_auth`). Default: `optional`.",
    ),
    key("upstream", EntryForm::Name, "Name of an entry of `upstreams`. Default: `default`, the section `upstream`."),
    key(
        "cors",
        EntryForm::Group(CORS),
        "Pages of other origins that may send requests: {origins, methods, headers, credentials, max_age}.",
    ),
    key("response_timeout", EntryForm::Duration, "In place of `response_timeout` of the upstream."),
    key("body_timeout", EntryForm::Duration, "In place of `body_timeout` of the upstream."),
    key(
        "affinity",
        EntryForm::Text,
        "What keeps requests on one endpoint: `mcp-session-id`, `user`, the name of a header, `cookie:NAME`, or `none`. \
         Default: `mcp-session-id` for `mcp`, else `none`.",
    ),
    key("host_header", EntryForm::Word(&["backend", "client"]), "In place of `host_header` of the upstream."),
    key("enabled", EntryForm::Flag, "`false` disables the profile."),
];

const CORS: &[EntryKey] = &[
    required("origins", EntryForm::Texts, "Origins such as https://app.example.com, or `*`."),
    key("methods", EntryForm::Words(METHODS), "Methods that pages may use. Default: those of the route."),
    key("headers", EntryForm::Texts, "Headers that pages may send. Default: those of Timbr's clients."),
    key("credentials", EntryForm::Flag, "`true`: the browser sends cookies and client certificates."),
    key("max_age", EntryForm::Duration, "How long a browser caches the permission. Default: 10m."),
];

const JWT_ISSUERS: &[EntryKey] = &[
    required("issuer", EntryForm::Text, "Expected claim `iss`, compared exactly."),
    one_of("jwks_url", EntryForm::Text, "URL of the key set: `https`, or `http` on this machine."),
    one_of(
        "discovery_url",
        EntryForm::Text,
        "URL of the issuer's OpenID Connect discovery document, which names the key set, in place of `jwks_url`: \
         `https://…/.well-known/openid-configuration`.",
    ),
    one_of("jwks_file", EntryForm::Text, "File with the key set, in place of `jwks_url`. Reloaded when it changes."),
    one_of(
        "secret_file",
        EntryForm::Text,
        "File with the shared secret of an HMAC, in place of a key set; at least 32 bytes.",
    ),
    key(
        "ca_file",
        EntryForm::Text,
        "Certificate authorities (PEM) for `jwks_url` or `discovery_url`, in place of the system's.",
    ),
    key(
        "decryption_key_file",
        EntryForm::Text,
        "RSA private key (PEM, PKCS #8) that decrypts encrypted tokens: `RSA-OAEP` or `RSA-OAEP-256` with `A128GCM`, \
         `A256GCM`, `A128CBC-HS256` or `A256CBC-HS512`. The token inside must be signed by the issuer.",
    ),
    required("audiences", EntryForm::Texts, "Accepted audiences: the claim `aud` must contain one of them."),
    key(
        "algorithms",
        EntryForm::Words(&[
            "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA", "HS256", "HS384", "HS512",
        ]),
        "Accepted signature algorithms. Default: `RS256`, `PS256`, `ES256`, `EdDSA`. Also the variants with 384 and 512, and \
         `HS256`, `HS384`, `HS512` with `secret_file` only. `none` is never accepted.",
    ),
    key("typ", EntryForm::Texts, "Accepted types of the token, such as `at+jwt`. Default: any."),
    key(
        "required_claims",
        EntryForm::TextsByName,
        "Claims that a token must have, with their accepted values: `{azp: [web, 'svc-*']}`. Names or patterns; `'*'` accepts \
         every value. A nested claim is written `a.b`.",
    ),
    key("user_claim", EntryForm::Text, "Claim that holds the user name. Default: `sub`."),
    key(
        "users",
        EntryForm::Texts,
        "User names that the issuer may use: names or patterns, compared with the claim. With several issuers, each \
         needs `users`, `user_prefix` or `tenant_user`. Default: all.",
    ),
    key("user_prefix", EntryForm::Text, "Text that is put before the user names of this issuer."),
    key(
        "groups_claims",
        EntryForm::Texts,
        "Claims with the groups or roles of the user, such as `groups` or `realm_access.roles`, for `groups` in rules.",
    ),
    key("tenants", EntryForm::Texts, "Accepted values of `x-jwt-tenant-id`. Default: the backend decides."),
    key(
        "tenant_claim",
        EntryForm::Text,
        "Claim with the tenant, which `x-jwt-tenant-id` must be equal to if it is sent.",
    ),
    key(
        "tenant_user",
        EntryForm::Flag,
        "`true`: user names are `tenant/user`, as with `JWT_USE_TENANT_USER` in Timbr. Needs `tenant_claim`, or \
         `tenants` with one tenant.",
    ),
];

const IMPERSONATION_RULES: &[EntryKey] = &[
    key("users", EntryForm::Texts, "Callers: names or patterns. Each rule needs `users` or `groups`."),
    key(
        "groups",
        EntryForm::Texts,
        "Groups of callers, from a JWT (`groups_claims`) or a directory (`ldap.groups_…`): names or patterns.",
    ),
    required("act_as", EntryForm::Texts, "Users whom they may act as: names or patterns."),
];

const AUTHORIZATION_RULES: &[EntryKey] = &[
    key(
        "users",
        EntryForm::Texts,
        "Users: names or patterns. With impersonation, the name of the impersonated user is compared.",
    ),
    key(
        "groups",
        EntryForm::Texts,
        "Groups of callers, from a JWT (`groups_claims`) or a directory (`ldap.groups_…`): names or patterns. A rule \
         with `users` and `groups` matches callers of either. With impersonation, groups do not match.",
    ),
    key("unknown_users", EntryForm::Flag, "`true`: also callers whose key only the backend knows."),
    key("routes", EntryForm::Texts, "Names of routes. Default: all."),
    key("methods", EntryForm::Words(METHODS), "HTTP methods. Default: all."),
    key(
        "ontologies",
        EntryForm::Texts,
        "Ontologies: names or patterns. Matches only if the request names the ontology: `/timbr/openapi/ontology/<name>/…`, \
         `/timbr/api/q/<name>/…`, `get_ontology`, `get_config` and `clear_cache`; `ontology_name` of \
         `/timbr/api/query/`, in a body of at most `limits.buffer`; the user part of Basic credentials.",
    ),
    key(
        "statements",
        EntryForm::Words(&["read", "write", "admin", "show", "unknown"]),
        "Classes of the statement in the body: see below. A request without a statement does not match. Default: all \
         requests.",
    ),
    key(
        "tools",
        EntryForm::Texts,
        "MCP tools: names or patterns. Matches requests to `/timbr/api/mcp/` that call one of them with `tools/call`, in a \
         body of at most `limits.buffer`, and all MCP requests that call none. Default: all requests.",
    ),
];

const LIMIT_RULES: &[EntryKey] = &[
    required("name", EntryForm::Name, "Name of the rule in logs and metrics."),
    key(
        "users",
        EntryForm::Texts,
        "Callers: names or patterns. Default: every caller, also those whom only the backend knows.",
    ),
    key(
        "groups",
        EntryForm::Texts,
        "Groups of callers, from a JWT (`groups_claims`) or a directory (`ldap.groups_…`): names or patterns. A rule \
         with `users` and `groups` matches callers of either. Each caller is counted on its own.",
    ),
    key("addresses", EntryForm::Texts, "Addresses or networks of the clients. Default: all."),
    key("routes", EntryForm::Texts, "Names of routes. Default: all."),
    key(
        "ontologies",
        EntryForm::Texts,
        "Ontologies in the path: names or patterns. Default: all, also paths without one.",
    ),
    key("requests_per_second", EntryForm::Number, "Requests of each caller per second, on average; may be a fraction."),
    key(
        "burst",
        EntryForm::Number,
        "Requests that a caller may send at once. Default: `requests_per_second`, rounded up.",
    ),
    key("concurrent", EntryForm::Number, "Concurrent requests of each caller."),
    key(
        "mode",
        EntryForm::Word(&["enforce", "shadow"]),
        "`shadow`: requests above the limit are counted, logged and forwarded. Default: `enforce`.",
    ),
];

const CERTIFICATES: &[EntryKey] = &[
    required("cert_file", EntryForm::Text, "Certificate chain (PEM), leaf first."),
    required("key_file", EntryForm::Text, "Private key (PEM)."),
];

/// The keys of the section `upstream`, and a name. Secrets are in files.
static UPSTREAMS: LazyLock<Vec<EntryKey>> = LazyLock::new(|| {
    let name = required("name", EntryForm::Name, "Name for `routes[].upstream`, shown in logs and metrics.");
    let keys = options::all().filter_map(|option| {
        let name = option.key.strip_prefix("upstream.")?;
        Some(match option.shape {
            Shape::Secret => key("api_key_file", EntryForm::Text, option.help),
            _ => key(name, EntryForm::Option(option), option.help),
        })
    });
    std::iter::once(name).chain(keys).collect()
});

/// The keys of all lists, by the key of the option.
pub fn lists() -> [(&'static str, &'static [EntryKey]); 7] {
    [
        ("routes", ROUTES),
        ("upstreams", &UPSTREAMS),
        ("auth.jwt_issuers", JWT_ISSUERS),
        ("impersonation.rules", IMPERSONATION_RULES),
        ("authorization.rules", AUTHORIZATION_RULES),
        ("limits.rules", LIMIT_RULES),
        ("tls.certificates", CERTIFICATES),
    ]
}

/// The keys of the entries of one list.
pub fn entry_keys(list: &str) -> Option<&'static [EntryKey]> {
    lists().into_iter().find(|(key, _)| *key == list).map(|(_, fields)| fields)
}
